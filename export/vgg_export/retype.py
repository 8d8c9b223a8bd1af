"""Signed instead of unsigned activations of an int8 graph, or the other way round: the same function, other kernels.

x = scale (q - zero_point) stays the same when 128 is taken from q and from the zero point. Nothing else changes: scales, weights and
int32 biases are those that were calibrated, so that both graphs can share the file of their weights.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vgg_runtime import check, device
from vgg_runtime.manifest import SessionSettings
from vgg_runtime.preprocess import Preprocessing
from vgg_runtime.session import Model
from vgg_runtime.targets import TARGETS

from . import stage
from .errors import CheckFailedError
from .progress import Progress

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

OFFSET = 128
# Largest difference of logits as a fraction of their spread. The sums are exact in both; only how a tie is rounded may differ.
TOLERANCE = 0.02


def run(quantized: stage.Artifact, target: str, output: Path, progress: Progress) -> stage.Artifact:
    """Retype the activations of a file that ``quantize`` wrote for a target whose weights have the same range."""

    def make(path: Path) -> dict[str, object]:
        import onnx

        with progress.task(f"retyping for {target}", None):
            model = onnx.load(quantized.path)
            retype(model, signed=TARGETS[target].signed_activations)
            onnx.save(model, path)
            found = ensure_same(quantized, path)
        return quantized.measured | {"target": target, "deviation": found}

    return stage.produce("retype", {"target": target}, {"model": quantized}, output, make)


def retype(model: "onnx.ModelProto", *, signed: bool) -> None:
    """Change the zero points of all activations, in place.

    Raises:
        CheckFailedError: they are of that type already, or of another than 8 bits.
    """
    import onnx

    tensors = {t.name: t for t in model.graph.initializer}
    names = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    if not names:
        raise CheckFailedError("the graph has no QuantizeLinear; expected a file that 'vgg-export quantize' wrote")
    before, after, offset = (np.uint8, np.int8, -OFFSET) if signed else (np.int8, np.uint8, OFFSET)
    for name in sorted(names):
        value = onnx.numpy_helper.to_array(tensors[name])
        if value.dtype != before:
            raise CheckFailedError(f"the zero point {name} is {value.dtype}; expected {np.dtype(before)}")
        changed = onnx.numpy_helper.from_array((value.astype(np.int32) + offset).astype(after), name)
        tensors[name].CopyFrom(changed)
    del model.graph.value_info[:]  # it names the types of the activations


def ensure_same(before: stage.Artifact, path: Path) -> float:
    """How far the logits of the two graphs are apart on noise.

    Raises:
        CheckFailedError: further than rounding explains.
    """
    px = Preprocessing.from_json(before.measured["model"]["preprocessing"]).crop_px
    x = np.random.default_rng(0).standard_normal((3, 3, px, px), np.float32)
    expected, found = (Model(p, SessionSettings(), device.usable_cores())(x) for p in (before.path, path))
    apart = check.deviation(found, expected)
    if not apart <= TOLERANCE:
        raise CheckFailedError(f"the retyped graph's logits differ by {apart:.2g} of their spread, at most {TOLERANCE:g} allowed")
    return apart
