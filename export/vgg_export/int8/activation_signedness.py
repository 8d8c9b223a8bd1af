"""Signed instead of unsigned activations of an int8 graph, or the other way round: the same function, other
kernels.

Both graphs can share the file of their weights.
"""

from pathlib import Path

import numpy as np

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError
from vgg_export.core.progress import Progress
from vgg_runtime.board import device
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle import self_check
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.preprocess import Preprocessing
from vgg_runtime.bundle.session import Model

from . import qdq

# Largest difference of logits as a fraction of their spread. The sums are exact in both; only how a tie is
# rounded may differ.
TOLERANCE = 0.02


def run(quantized: cache.Artifact, target: str, output: Path, progress: Progress) -> cache.Artifact:
    """Retype the activations of a file that ``quantize`` wrote for a target whose weights have the same
    range."""

    def make(path: Path) -> dict[str, object]:
        import onnx

        with progress.task(f"retyping for {target}", None):
            model = onnx.load(quantized.path)
            qdq.retype(model, signed=TARGETS[target].signed_activations)
            onnx.save(model, path)
            found = ensure_same(quantized, path)
        return quantized.measured | {"target": target, "deviation": found}

    return cache.produce("retype", {"target": target}, {"model": quantized}, output, make)


def ensure_same(before: cache.Artifact, path: Path) -> float:
    """How far the logits of the two graphs are apart on noise.

    Raises:
        CheckFailedError: further than rounding explains.
    """
    px = Preprocessing.from_json(before.measured["model"]["preprocessing"]).crop_px
    x = np.random.default_rng(0).standard_normal((3, 3, px, px), np.float32)
    expected, found = (Model(p, SessionSettings(), device.usable_cores())(x) for p in (before.path, path))
    apart = self_check.deviation(found, expected)
    if not apart <= TOLERANCE:
        raise CheckFailedError(
            f"the retyped graph's logits differ by {apart:.2g} of their spread, at most {TOLERANCE:g} allowed"
        )
    return apart
