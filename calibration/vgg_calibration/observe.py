"""Gathers statistics of every tensor of a float network over the calibration pictures, in one pass that keeps
no activations.

onnxruntime's own Percentile and Entropy calibration keep all activations in memory: 150 MB per picture for a
VGG19 at 224 px.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vgg_runtime.board.device import usable_cores
from vgg_runtime.bundle.input_spec import InputSpec

from .chain import Layer
from .reader import ImageReader

Array = npt.NDArray[np.float64]

# on each side of zero; at least half of them lie below the largest value, which makes four per 8-bit step
BINS = 2048
SAMPLED = 100_000  # a picture adds at most this many values of a tensor to its histogram
# shares of the observed range, among which the one with the least rounding error is chosen
SHARES = tuple(k / 40 for k in range(12, 41))


class Histogram:
    """Counts of values in bins of equal width around zero; the width doubles when a value lies outside."""

    def __init__(self) -> None:
        self.width = 0.0
        self.counts = np.zeros(2 * BINS, np.int64)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count at most SAMPLED of the values, evenly spread."""
        step = -(-values.size // SAMPLED) | 1  # odd, so that the samples are not all in one column
        chosen = values.reshape(-1)[::step]
        largest = float(np.abs(chosen).max())
        if not self.width:
            self.width = largest / BINS
        while largest > self.width * BINS:
            self._double()
        if self.width:
            index = np.floor(chosen / self.width).astype(np.int64) + BINS
            self.counts += np.bincount(index.clip(0, 2 * BINS - 1), minlength=2 * BINS)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts[:] = 0
        self.counts[BINS // 2 : BINS // 2 + BINS] = pairs
        self.width *= 2

    def least_error(self, low: float, high: float) -> tuple[float, float]:
        """The part (low, high) of the range from ``low`` to ``high`` with the least squared error in 8 bits.

        The range holds zero. Values outside the part are clipped.
        """
        values = (np.arange(-BINS, BINS) + 0.5) * self.width
        best, least = 1.0, np.inf
        for share in reversed(SHARES):  # of equal ones the widest
            scale = max(share * (high - low) / 255, 1e-30)
            rounded = (np.round(values.clip(share * low, share * high) / scale)) * scale
            error = float((self.counts * (values - rounded) ** 2).sum())
            if error < least:
                best, least = share, error
        return best * low, best * high


@dataclasses.dataclass
class Seen:
    """Statistics of a tensor [1, C, H, W] or [1, n] over all pictures.

    ``low`` and ``high``, [C] or [n], are the extremes of each channel, and ``mean`` [C, H, W] or [n] is the
    mean over the pictures. ``spread`` counts the values; it is None once they have been scaled. ``vectors``
    are the values of every picture, float32 [n] each; of maps they are not kept.
    """

    low: Array
    high: Array
    mean: Array
    spread: Histogram | None
    vectors: list[npt.NDArray[np.float32]] = dataclasses.field(default_factory=list)

    def range(self) -> tuple[float, float]:
        """The range of all channels. It includes zero, because padding puts zeros there."""
        return min(0.0, float(self.low.min())), max(0.0, float(self.high.max()))

    def clipped(self) -> tuple[float, float]:
        """The part of the range with the least squared error in 8 bits; all of it where the spread is not
        known."""
        return self.range() if self.spread is None else self.spread.least_error(*self.range())

    def divided(self, scale: Array) -> Self:
        """The statistics once the channels are divided by ``scale`` [C], or [n / positions] after a
        flattening."""
        by = np.repeat(scale, len(self.low) // len(scale))
        return type(self)(
            self.low / by,
            self.high / by,
            self.mean / by.reshape(-1, *(1,) * (self.mean.ndim - 1)),
            None,
            [(values / by).astype(np.float32) for values in self.vectors],
        )

    def values(self) -> npt.NDArray[np.float32]:
        """The values of every picture, [pictures, n], of a tensor [1, n]."""
        return np.stack(self.vectors)


def observe(
    path: Path,
    layers: Sequence[Layer],
    pictures: Sequence[Path],
    preprocessing: InputSpec,
    scratch: Path,
    on_image: Callable[[], None],
) -> dict[str, Seen]:
    """Statistics of the tensors of the float model ``path`` that have ranges of their own, and of what every
    layer reads, by the tensor's name.

    ``scratch`` is a folder for a copy of the file; ``on_image`` is called after every picture.
    """
    source = layers[0].input
    names = [
        name
        for name in dict.fromkeys([n for layer in layers for n in (layer.input, *layer.ranged())])
        if name != source
    ]
    session = session_with(path, [name for name in names if name != layers[-1].gives], scratch)
    reader = ImageReader(pictures, preprocessing, source, on_image)
    gathered: dict[str, Seen] = {}
    while feed := reader.get_next():
        for name, values in zip([source, *names], [feed[source], *session.run(names, feed)], strict=True):
            _add(gathered, name, values[0])
    for seen in gathered.values():
        seen.mean /= len(pictures)
    return gathered


def _add(gathered: dict[str, Seen], name: str, values: npt.NDArray[np.float32]) -> None:
    by_channel = values.reshape(len(values), -1)
    low, high = by_channel.min(1).astype(np.float64), by_channel.max(1).astype(np.float64)
    seen = gathered.get(name)
    if seen is None:
        seen = gathered[name] = Seen(low, high, np.zeros(values.shape), Histogram())
    seen.low, seen.high = np.minimum(seen.low, low), np.maximum(seen.high, high)
    seen.mean += values
    if values.ndim == 1:
        seen.vectors.append(values)
    if seen.spread is not None:
        seen.spread.add(values)


def session_with(path: Path, names: Sequence[str], scratch: Path) -> Any:
    """A session that also outputs the named tensors.

    Two protobuf messages in a row are read as one merged message. The additional outputs are therefore
    appended to a copy of the file, and half a gigabyte of weights is not parsed and written again.
    """
    import onnx
    import onnxruntime as ort

    extra = onnx.ModelProto()
    extra.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = usable_cores(), 1
    options.log_severity_level = 3
    copy = scratch / "observed.onnx"
    shutil.copyfile(path, copy)
    with copy.open("ab") as file:
        file.write(extra.SerializeToString())
    try:
        return ort.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])
    finally:
        copy.unlink()
