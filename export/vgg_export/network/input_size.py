"""Input scaling: multiplies the adaptive pool into the first fully connected layer, so that a smaller picture
needs neither a pooling operator nor retraining.

torchvision's ``AdaptiveAvgPool2d((7, 7))`` and fc1 are both linear, so their product is exact: fc1 [n, c*49]
times the pool's [49, s*s] matrix is a fully connected layer on the s x s feature map.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, OptionsError
from vgg_export.core.progress import Progress
from vgg_runtime.records import Record

from . import chain
from . import checkpoint as checkpoints

if TYPE_CHECKING:
    import torch

# The largest allowed |difference of logits| between the folded and the pooled network, relative to the
# largest |logit|.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Folded(Record):
    """``parity``: the largest relative difference of logits. ``parameters`` and ``macs``: those of the folded
    network."""

    parity: float
    tolerance: float
    parameters: int
    macs: int


STAGE = cache.Stage("fold", __name__, Folded)


def run(checkpoint: cache.Artifact, output: Path, input_px: int, progress: Progress) -> cache.Artifact:
    """Fold a checkpoint file to another input size."""

    def make(path: Path) -> Folded:
        with progress.task(f"folding the pool for {input_px} px", None):
            original = checkpoints.load(checkpoint.path)
            folded = fold(original, input_px)
            difference = ensure_same_as_pooled(original, folded)
            checkpoints.save(folded, path)
        return Folded(difference, TOLERANCE, folded.plan.parameters(), folded.plan.macs())

    return cache.produce(STAGE, {"input_px": input_px}, {"checkpoint": checkpoint}, output, make)


def pooling_matrix(side: int) -> "torch.Tensor":
    """``AdaptiveAvgPool2d((7, 7))`` on a side x side map, as a float64 matrix [49, side * side]."""
    import torch

    basis = torch.eye(side * side, dtype=torch.float64).view(side * side, 1, side, side)
    return torch.nn.functional.adaptive_avg_pool2d(basis, chain.POOLED_PX).flatten(1).T.contiguous()


def fold(checkpoint: checkpoints.Checkpoint, input_px: int) -> checkpoints.Checkpoint:
    """The checkpoint for ``input_px``. It computes what the original computes with torchvision's adaptive
    pool.

    Raises:
        OptionsError: the checkpoint has already been folded to another size.
    """
    plan = checkpoint.plan
    if plan.grid_px != chain.POOLED_PX:
        raise OptionsError(
            f"the checkpoint already takes {plan.input_px} px; expected the one for"
            f" {chain.POOLED_PX * chain.STRIDE_PX} px"
        )
    smaller = dataclasses.replace(plan, input_px=input_px)
    name = f"{plan.first_linear()}.weight"
    weight = checkpoint.tensors[name]
    matrix = pooling_matrix(smaller.grid_px).to(weight.dtype)
    folded = weight.view(weight.shape[0], -1, matrix.shape[0]) @ matrix
    return checkpoints.Checkpoint(
        smaller,
        checkpoint.tensors | {name: folded.flatten(1)},
        checkpoint.labels,
        checkpoint.provenance.then(f"adaptive pool folded into fc1 for {input_px} px"),
    )


def ensure_same_as_pooled(original: checkpoints.Checkpoint, folded: checkpoints.Checkpoint) -> float:
    """The largest relative difference of logits between the folded network and the original with its pool.

    Raises:
        CheckFailedError: the difference is larger than TOLERANCE.
    """
    import torch

    px = folded.plan.input_px
    x = torch.randn(1, 3, px, px, generator=torch.Generator().manual_seed(0))
    layers = list(original.model().children())
    flatten = next(k for k, layer in enumerate(layers) if isinstance(layer, torch.nn.Flatten))
    pooled = torch.nn.Sequential(
        *layers[:flatten], torch.nn.AdaptiveAvgPool2d(chain.POOLED_PX), *layers[flatten:]
    )
    with torch.inference_mode():
        expected, found = pooled(x), folded.model()(x)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= TOLERANCE:
        raise CheckFailedError(
            f"folding: logits differ by {difference:.2g} of the largest from the pooled network, at most"
            f" {TOLERANCE:g} allowed"
        )
    return difference
