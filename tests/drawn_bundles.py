"""Small bundles with each kind of output. Their networks are one linear layer on the mean colour of a
picture, so that every logit can be computed by hand."""

import contextlib
import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from conftest import ROOT, serving
from PIL import Image

from vgg_export.bundle import evaluate, writer
from vgg_export.core import cache, files
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Item
from vgg_runtime.bundle import manifest, outputs, self_check
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model
from vgg_runtime.result import Evaluation

Array = npt.NDArray[np.float64]

PX = 12
MEAN, STD = 0.5, 0.25
NAMES = {
    outputs.SOFTMAX: ("red", "green", "blue"),
    outputs.SIGMOID: ("day", "night"),
    outputs.MULTI_LABEL: ("sun", "rain", "wind", "snow", "fog", "ice", "dust"),
}
TESTED = 120  # pictures; a recommendation needs 100


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A bundle, and the layers of its variants: weight [channels, outputs] and bias [outputs]."""

    folder: Path
    output: str
    spec: InputSpec
    layers: dict[str, tuple[Array, Array]]

    @property
    def labels(self) -> tuple[str, ...]:
        return NAMES[self.output]

    def logits(self, variant: str, *colours: tuple[int, int, int]) -> Array:
        """Logits [n, outputs] of pictures of one colour each."""
        weight, bias = self.layers[variant]
        values = np.array([self._channels(colour) for colour in colours]) / 255
        found: Array = (values - MEAN) / STD @ weight + bias
        return found

    def _channels(self, colour: tuple[int, int, int]) -> tuple[int, ...]:
        if self.spec.channels == 1:
            red, green, blue = colour
            return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16,)  # ITU-R 601, as Pillow has it
        return colour[::-1] if self.spec.bgr else colour


@contextlib.contextmanager
def served(drawn: Drawn) -> Iterator[int]:
    """The port of the page of a bundle."""
    launcher = [sys.executable, str(ROOT / "runtime/compare.py")]
    with serving([*launcher, "--serve", "--port", "0", "--bundle", str(drawn.folder)], dict(os.environ)) as (
        port,
        _,
    ):
        yield port


def colours(count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Colours of which some are close to grey."""
    found = np.random.default_rng(seed).integers(0, 256, (count, 3))
    return [(int(r), int(g), int(b)) for r, g, b in found]


def paint(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)
    return path


def draw(folder: Path, output: str, **input_: object) -> Drawn:
    """Write a bundle with the variants baseline, close and far, evaluated on TESTED pictures. ``input_``:
    fields of its InputSpec; three channels unless they say otherwise."""
    channels = int(str(input_.get("channels", 3)))
    spec = InputSpec(PX, PX, (MEAN,) * channels, (STD,) * channels, **input_)  # type: ignore[arg-type]
    count = 1 if output == outputs.SIGMOID else len(NAMES[output])
    random = np.random.default_rng(1)
    weight, bias = random.normal(size=(channels, count)), -0.3 * abs(random.normal(size=count))
    layers = {"baseline": (weight, bias), "close": (weight, bias + 0.05), "far": (weight - 0.5, bias + 0.3)}
    drawn = Drawn(folder, output, spec, layers)
    (folder / "models").mkdir(parents=True)
    for name, (own, shift) in layers.items():
        _save(folder / f"models/{name}.onnx", spec, own, shift)
    sample = paint(folder / "samples/1.png", (200, 40, 90))
    (folder / "labels.txt").write_text("\n".join(drawn.labels) + "\n")
    (folder / "splits.json").write_text('{"fitted": []}')
    _record_expected(drawn, sample)
    _write_manifest(drawn, _figures(drawn))
    return drawn


def _save(path: Path, spec: InputSpec, weight: Array, bias: Array) -> None:
    """Mean over the picture, flatten, linear layer: ``input`` [batch, channels, px, px] -> ``logits``."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    tensors = [
        onnx.numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in (("weight", weight), ("bias", bias))
    ]
    given = helper.make_tensor_value_info("input", kind, ["batch", *spec.shape])
    found = helper.make_tensor_value_info("logits", kind, ["batch", len(bias)])
    graph = helper.make_graph(nodes, "drawn", [given], [found], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _record_expected(drawn: Drawn, sample: Path) -> None:
    inputs = load(sample, drawn.spec)[None]
    arrays = {self_check.input_key(drawn.spec.px): inputs}
    for name in drawn.layers:
        model = Model(drawn.folder / f"models/{name}.onnx", manifest.SessionSettings(), 1)
        arrays[self_check.logits_key(name)] = model(inputs)
    np.savez(drawn.folder / "expected.npz", **arrays)  # type: ignore[arg-type]


def tested(folder: Path, classes: int) -> list[Item]:
    """Pictures of one colour each, with classes in turn."""
    found = []
    for k, colour in enumerate(colours(TESTED, seed=2)):
        path = paint(folder / f"{k}.png", colour)
        found.append(Item(path, k % classes, files.sha256(path), f"source {k}"))
    return found


def _figures(drawn: Drawn) -> dict[str, Evaluation]:
    items = tested(drawn.folder.parent / "tested", len(drawn.labels))
    models = {name: cache.of(drawn.folder / f"models/{name}.onnx") for name in drawn.layers}
    subjects = [
        evaluate.Subject(name, model, drawn.spec, output=drawn.output) for name, model in models.items()
    ]
    return evaluate.evaluate(subjects, items, drawn.folder.parent, Quiet())


def _write_manifest(drawn: Drawn, figures: dict[str, Evaluation]) -> None:
    def entry(path: str) -> manifest.FileEntry:
        content = (drawn.folder / path).read_bytes()
        return manifest.FileEntry(path, hashlib.sha256(content).hexdigest(), len(content))

    def variant(name: str) -> manifest.Variant:
        model, sessions = entry(f"models/{name}.onnx"), writer.SESSIONS["fp32"]
        build = manifest.Build(name, "", (), model, None, sessions, figures[name])
        size = sum(part.size for part in drawn.layers[name])
        return manifest.Variant(name, name, "drawn", "fp32", size, size, drawn.spec, (), (build,))

    written = manifest.Manifest(
        created_by={"vgg-export": "tests"},
        family="network of 1 layer",
        weights={"weights": "file", "what": "drawn"},
        notice=None,
        figures_absent=None,
        target="nothing: no int8 model",
        labels=entry("labels.txt"),
        class_ids=None,
        expected=entry("expected.npz"),
        samples=(manifest.Sample(entry("samples/1.png"), None, False),),
        variants=tuple(map(variant, drawn.layers)),
        files=(entry("splits.json"),),
        output=drawn.output,
        network={
            "family": "network of 1 layer",
            "layers": [{"type": "linear", "name": "fc1"}],
            "classes": len(drawn.labels),
        },
    )
    files.write_json(drawn.folder / manifest.FILE_NAME, written.to_json())
