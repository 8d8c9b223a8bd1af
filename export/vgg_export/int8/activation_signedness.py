"""Changes the activations of an int8 graph from unsigned to signed, or back. The function stays the same, and
onnxruntime runs other kernels.

Both graphs can share the file of their weights.
"""

import dataclasses
from pathlib import Path

import numpy as np

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError
from vgg_export.core.progress import Progress
from vgg_export.graphs.model_info import Described
from vgg_runtime.board import device
from vgg_runtime.board.targets import TARGETS, here
from vgg_runtime.bundle import self_check
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model, exact

from . import qdq
from .measured import Quantized, Retyped

# The largest allowed difference of logits, as a fraction of their spread. The sums are exact in both graphs;
# only the rounding of ties may differ.
TOLERANCE = 0.02

STAGE = cache.Stage("retype", __name__, Retyped)


def run(quantized: cache.Artifact, target: str, output: Path, progress: Progress) -> cache.Artifact:
    """Change the activations of a file that ``quantize`` wrote to the type of a target. The target's weights
    must have the same range."""

    def make(path: Path) -> Retyped:
        import onnx

        with progress.task(f"retyping for {target}", None):
            model = onnx.load(quantized.path)
            qdq.retype(model, signed=TARGETS[target].signed_activations)
            onnx.save(model, path)
            found = ensure_same(quantized, path)
        before = quantized.read(Quantized)
        known = {field.name: getattr(before, field.name) for field in dataclasses.fields(before)}
        return Retyped(**{**known, "target": target}, deviation=found)

    return cache.produce(STAGE, {"target": target}, {"model": quantized}, output, make)


def ensure_same(before: cache.Artifact, path: Path) -> float:
    """The largest difference of the two graphs' logits on noise, as a fraction of their spread.

    Raises:
        CheckFailedError: it is larger than TOLERANCE.
    """
    spec = before.read(Described).model.preprocessing
    x = np.random.default_rng(0).standard_normal((3, *spec.shape), np.float32)
    # without overflow where this machine's kernels have one and the target's have none
    settings = exact(SessionSettings(), here(), (before.read(Quantized).target,))
    expected, found = (Model(p, settings, device.usable_cores())(x) for p in (before.path, path))
    apart = self_check.deviation(found, expected)
    if not apart <= TOLERANCE:
        raise CheckFailedError(
            f"the retyped graph's logits differ by {apart:.2g} of their spread, at most {TOLERANCE:g} allowed"
        )
    return apart
