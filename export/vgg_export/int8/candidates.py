"""Makes int8 graphs of one float graph, and compares each with it on held-out pictures."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vgg_calibration import chain, moments
from vgg_calibration.observe import Array, Seen, observe
from vgg_export.core.progress import Progress
from vgg_export.graphs.tensors import store, tensors_of
from vgg_export.options import INT8_FORMS, Int8Form
from vgg_runtime.board import device
from vgg_runtime.board.targets import Target, here
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.metrics import Comparison, compare
from vgg_runtime.bundle.outputs import SOFTMAX
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model, exact

from . import bias_correction, equalize, four_bits, qdq, rounding

if TYPE_CHECKING:
    import onnx

# number of held-out pictures that rank the layers; few, since each layer takes a pass of the whole network
RANKED_IMAGES = 10
MOMENTS_IMAGES = 64  # calibration pictures that tell how to round; what counts is the places in them


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate: an int8 graph. ``kept``: the layers of the chain that stay float in it. ``compared``: its
    comparison with the float model on the held-out pictures."""

    form: Int8Form
    kept: tuple[str, ...]
    path: Path
    compared: Comparison

    @property
    def judged(self) -> bool:
        """Whether there were held-out pictures."""
        return self.compared.n > 0


class Bench:
    """Makes and compares candidates of one float graph. Holds the statistics of its tensors over the
    calibration pictures, and its logits on the held-out pictures.

    ``scratch``: the folder of the candidates' graphs, which stay until the caller removes it. ``output``:
    what the logits mean, one of ``outputs.OUTPUTS``.
    """

    def __init__(
        self,
        source: Path,
        target: Target,
        preprocessing: InputSpec,
        scratch: Path,
        progress: Progress,
        output: str = SOFTMAX,
    ) -> None:
        import onnx

        self.source, self.target, self.preprocessing, self.scratch, self.progress, self.output = (
            source,
            target,
            preprocessing,
            scratch,
            progress,
            output,
        )
        self.session = exact(SessionSettings(), here(), (target.name,))
        self.layers = chain.layers(onnx.load(source))
        self.seen: dict[str, Seen] = {}
        self.scales: list[Array] | None = None  # scales of the equalized form, computed when first needed
        self.pictures: Sequence[Path] = ()
        self.rounded: dict[str, dict[str, npt.NDArray[np.int8]]] = {}  # weights, by the base of the form
        self.inputs: list[npt.NDArray[np.float32]] = []
        self.expected = np.zeros((0, 1), np.float32)

    def calibrate(self, pictures: Sequence[Path], held: Sequence[Path]) -> None:
        """Run the float graph once over the calibration pictures and once over the held-out pictures."""
        with self.progress.task(f"calibrating for {self.target.name}", len(pictures)) as task:
            self.seen = observe(
                self.source, self.layers, pictures, self.preprocessing, self.scratch, task.advance
            )
        self.pictures = pictures
        self.inputs = [load(path, self.preprocessing)[None] for path in held]
        if held:
            self.expected = self._logits(self.source, "asking the float model", self.inputs)

    def make(self, form: Int8Form, kept: Collection[str] = ()) -> Trial:
        """Write the int8 graph of a form, with ``kept`` layers of the chain in float, and compare it."""
        path = self._write(form, kept)
        label = f"trying {form.name}" + "".join(f", {name} in float" for name in kept)
        return Trial(form, tuple(kept), path, self._judged(path, label))

    def in_four_bits(self, trial: Trial) -> tuple[Trial, tuple[str, ...]]:
        """The candidate with its large fully connected layers in 4 bits, and their names; the same candidate
        where none is large."""
        import onnx

        floating, seen = self._floating(trial.form)
        layers = four_bits.suited(self.layers, floating, self.parts(trial.kept))
        if not layers:
            return trial, ()
        path = trial.path.with_name(f"{trial.path.stem}+4bit.onnx")
        with self.progress.task("rounding the large layers to 4 bits", len(layers)) as task:
            integer = onnx.load(trial.path)
            for layer in layers:
                four_bits.rewrite(integer, floating, layer, seen[layer.input])
                task.advance()
            onnx.save(integer, path)
            del integer, floating
        compared = self._judged(path, "trying 4 bits")
        return dataclasses.replace(trial, path=path, compared=compared), tuple(one.name for one in layers)

    def parts(self, names: Collection[str]) -> list[str]:
        """The names of the layers of the graph that make up these layers of the chain."""
        return [layer.name for layer in self.layers if layer.part_of in names]

    def sensitivity(self, form: Int8Form) -> dict[str, float]:
        """The mean KL in nats when only one layer is quantized, by layer of the chain, the largest first."""
        names = dict.fromkeys(layer.part_of for layer in self.layers)
        inputs, expected = self.inputs[:RANKED_IMAGES], self.expected[:RANKED_IMAGES]
        floating, seen = self._floating(form)
        limits = qdq.ranges(self.layers, seen, clipped=form.clipped)
        shared = qdq.share_weights(floating, self.scratch)
        del floating
        cost = {}
        with self.progress.task("ranking the layers", len(names)) as task:
            for name in names:
                parts = self.parts([name])
                path = self.scratch / "alone.onnx"
                one = qdq.with_weights_of(shared, [layer for layer in self.layers if layer.name in parts])
                qdq.write(one, self.layers, limits, self.target, path, only=parts)
                cost[name] = self._compared(self._logits(path, None, inputs), expected).kl
                task.advance()
        return dict(sorted(cost.items(), key=lambda item: -item[1]))

    def _judged(self, path: Path, label: str) -> Comparison:
        """A graph's comparison with the float model on the held-out pictures, of which there may be none."""
        found = self._logits(path, label, self.inputs) if self.inputs else self.expected
        return self._compared(found, self.expected)

    def _compared(self, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> Comparison:
        return compare(found, expected, output=self.output)

    def _write(self, form: Int8Form, kept: Collection[str]) -> Path:
        import onnx

        path = self.scratch / ("+".join([form.name, *kept]) + ".onnx")
        with self.progress.task(f"quantizing: {form.name}", None):
            if not form.corrected:
                floating, seen = self._floating(form)
                limits = qdq.ranges(self.layers, seen, clipped=form.clipped)
                qdq.write(floating, self.layers, limits, self.target, path, kept=self.parts(kept))
                return path
        before = self.scratch / ("+".join([form.base, *kept]) + ".onnx")
        if not before.is_file():
            self._write(INT8_FORMS[form.base], kept)
        floating, seen = self._floating(form)
        made = onnx.load(before)
        if form.rounded:
            self._round(form, floating, made)
        bias_correction.correct_biases(floating, self.layers, seen, made)
        onnx.save(made, path)
        return path

    def _round(self, form: Int8Form, floating: "onnx.ModelProto", made: "onnx.ModelProto") -> None:
        """Round the weights of convolutions together, in place. What was rounded once is known from then on:
        it does not depend on the layers that stay float."""
        quantized, known = tensors_of(made), self.rounded.setdefault(form.base, {})
        kernels = {
            layer: shape
            for layer, shape in rounding.kernels(floating, self.layers).items()
            if f"{layer.weight}_quantized" in quantized
        }
        groups = moments.passes({layer: kernels[layer] for layer in kernels if layer.weight not in known})
        scales = dict(zip(self.layers, [None, *(self.scales or ())], strict=False)) if form.equalized else {}
        pictures = self.pictures[:MOMENTS_IMAGES]
        with self.progress.task("rounding weights together", len(groups) * len(pictures)) as task:
            for group in groups:
                found = moments.gather(
                    self.source, group, pictures, self.preprocessing, self.scratch, task.advance
                )
                for layer in group:
                    seen, scale = found.pop(layer.name), scales.get(layer)
                    reads = seen if scale is None else seen.divided(scale)
                    known[layer.weight] = rounding.rounded(floating, layer, reads, made)
        for layer in kernels:
            store(quantized[f"{layer.weight}_quantized"], known[layer.weight])

    def _floating(self, form: Int8Form) -> "tuple[onnx.ModelProto, dict[str, Seen]]":
        """The float graph that a form starts from, in memory only, and the statistics of its tensors."""
        import onnx

        floating = onnx.load(self.source)
        if not form.equalized:
            return floating, self.seen
        if self.scales is None:
            self.scales = equalize.find_scales(floating)
        equalize.equalize(floating, self.scales)
        return floating, equalize.rescaled(self.seen, self.layers, self.scales)

    def _logits(
        self, path: Path, label: str | None, inputs: Sequence[npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float32]:
        """Logits [n, units], one picture at a time as on the device. Without a label no progress is
        shown."""
        session = Model(path, self.session, device.usable_cores())
        if label is None:
            return np.concatenate([session(x) for x in inputs])
        rows = []
        with self.progress.task(label, len(inputs)) as task:
            for x in inputs:
                rows.append(session(x))
                task.advance()
        return np.concatenate(rows)
