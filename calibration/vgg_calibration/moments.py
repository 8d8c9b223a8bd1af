"""Gathers the second moments of what the convolutions of a float network read, over the calibration pictures.

A convolution of 512 channels reads patches of 4608 values, whose moments take 85 MB. So that not all of them
are in memory at once, the pictures may pass through the network several times.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from vgg_runtime.bundle.input_spec import InputSpec

from .chain import Layer
from .observe import Array, session_with
from .reader import ImageReader

Floats = npt.NDArray[np.float32]

LARGEST = 4608  # values of a patch, at most: the work grows with the third power
# Patches per value of a patch, and at least altogether. More change the rounding of the weights no further.
PATCHES_PER_VALUE, LEAST_PATCHES = 4, 4096
BYTES = 512_000_000  # of the sums that one pass gathers


@dataclasses.dataclass
class Moments:
    """The sums over ``count`` patches: of the patches [d] in float64, and of their products [d, d] in
    float32. A patch is flattened channel by channel."""

    total: Array
    products: Floats
    count: int = 0

    def add(self, patches: Floats) -> None:
        """Add patches [n, d]."""
        self.total += patches.sum(0, dtype=np.float64)
        self.products += patches.T @ patches
        self.count += len(patches)

    def covariance(self) -> Array:
        """The second moments about the mean [d, d], float64."""
        mean = self.total / self.count
        return self.products.astype(np.float64) / self.count - np.outer(mean, mean)

    def divided(self, scale: Array) -> Self:
        """The moments once the channels are divided by ``scale`` [C]."""
        by = np.repeat(scale, len(self.total) // len(scale))
        products = (self.products / by / by[:, None]).astype(np.float32)
        return type(self)(self.total / by, products, self.count)


def passes(kernels: Mapping[Layer, tuple[int, ...]]) -> list[dict[Layer, tuple[int, ...]]]:
    """The convolutions in groups whose moments take at most BYTES together, or that are of one alone."""
    groups: list[dict[Layer, tuple[int, ...]]] = []
    room = 0
    for layer, kernel in kernels.items():
        size = 4 * _values(kernel) ** 2
        if not groups or size > room:
            groups.append({})
            room = BYTES
        groups[-1][layer] = kernel
        room -= size
    return groups


def gather(
    path: Path,
    kernels: Mapping[Layer, tuple[int, ...]],
    pictures: Sequence[Path],
    preprocessing: InputSpec,
    scratch: Path,
    on_image: Callable[[], None],
) -> dict[str, Moments]:
    """The moments of what these convolutions of the float model ``path`` read, by the layer's name; in one
    pass.

    Args:
        kernels: the shape (outputs, channels, height, width) of each one's weight.
        scratch: a folder for a copy of the file.
        on_image: is called after every picture.
    """
    found = {}
    for layer, kernel in kernels.items():
        values = _values(kernel)
        found[layer.name] = Moments(np.zeros(values), np.zeros((values, values), np.float32))
    names = list(dict.fromkeys(layer.input for layer in kernels))
    session = session_with(path, names, scratch)
    reader = ImageReader(pictures, preprocessing, session.get_inputs()[0].name, on_image)
    for turn, feed in enumerate(iter(reader.get_next, None)):
        seen = dict(zip(names, session.run(names, feed), strict=True))
        for layer, kernel in kernels.items():
            wanted = max(LEAST_PATCHES, PATCHES_PER_VALUE * _values(kernel)) / len(pictures)
            found[layer.name].add(patches(layer, kernel, seen[layer.input][0], wanted, turn))
    return found


def _values(kernel: Sequence[int]) -> int:
    return int(np.prod(kernel[1:]))


def patches(layer: Layer, kernel: Sequence[int], x: Floats, wanted: float, turn: int) -> Floats:
    """About ``wanted`` patches of a map [C, H, W], evenly spread, as an array [n, d]; other ones each
    ``turn``."""
    top, left, bottom, right = layer.pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel[2:]), (1, 2))
    windows = windows[:, :: layer.strides[0], :: layer.strides[1]]
    rows, columns = windows.shape[1:3]
    step = max(1, int(rows * columns / wanted))
    places = np.arange(turn % step, rows * columns, step)
    return windows[:, places // columns, places % columns].swapaxes(0, 1).reshape(len(places), -1)
