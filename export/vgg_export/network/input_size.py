"""Another input size: multiplies the adaptive pool into the first fully connected layer, so that a smaller
picture needs neither a pooling operator nor retraining.

torchvision's ``AdaptiveAvgPool2d((7, 7))`` and fc1 are both linear, so their product is exact: fc1 [n, c*49]
times the pool's [49, h*w] matrix is a fully connected layer on the h x w feature map. Behind global pooling
nothing has to be multiplied.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, CheckpointError, NothingToGainError, OptionsError
from vgg_export.core.progress import Progress
from vgg_runtime.records import Record

from . import adaptive_pool
from . import checkpoint as checkpoints
from .chain import AdaptiveAvgPool, AdaptiveMaxPool, Chain

if TYPE_CHECKING:
    pass

# The largest allowed |difference of logits| between the folded and the pooled network, relative to the
# largest |logit|.
TOLERANCE = 1e-4
SMALLER = 5 / 7  # of the own input: 160 px of 224


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
            made = fold(original, input_px)
            difference = ensure_same_as_pooled(original, made)
            checkpoints.save(made, path)
        return Folded(difference, TOLERANCE, made.chain.parameters(), made.chain.macs())

    return cache.produce(STAGE, {"input_px": input_px}, {"checkpoint": checkpoint}, output, make)


def smaller_px(chain: Chain, asked: int | None) -> int:
    """The side of the smaller input: the one that was asked for, else the multiple of the network's stride
    nearest to 5/7 of its own input (160 px of 224).

    Raises:
        NothingToGainError: the network takes no smaller input, and none was asked for.
        OptionsError: it cannot take the one that was asked for.
    """
    own, stride = chain.input.px, chain.stride_px
    if asked is not None:
        if asked >= own:
            raise OptionsError(f"--scaled-px must be below the network's own {own} px, found {asked}")
        ensure_resizable(chain, asked)
        return asked
    px = min(round(own * SMALLER / stride), (own - 1) // stride) * stride
    if px == 0:
        raise NothingToGainError(
            f"there is no smaller input: the network takes {own} px, and one step on its last map is"
            f" {stride} px"
        )
    try:
        ensure_resizable(chain, px)
    except OptionsError as error:
        raise NothingToGainError(f"there is no smaller input: {error}") from error
    return px


def ensure_resizable(chain: Chain, input_px: int) -> None:
    """Make sure that a network can take another input size.

    Raises:
        OptionsError: it cannot, and why.
    """
    if not any(isinstance(layer, AdaptiveAvgPool | AdaptiveMaxPool) for layer in chain.layers):
        first = next((site.name for site in chain.linears), "the last layer")
        raise OptionsError(
            f"the network takes {chain.input.px} px and no other size: {first} reads the map as it is,"
            " without an adaptive or global pool before it; expected a network with such a pool, or"
            f" {chain.input.px} px"
        )
    try:
        chain.at(input_px)
    except CheckpointError as error:
        raise OptionsError(f"the network cannot take {input_px} px: {error}") from error


def fold(checkpoint: checkpoints.Checkpoint, input_px: int) -> checkpoints.Checkpoint:
    """The checkpoint for ``input_px``. It computes what the original computes with its adaptive pool.

    Raises:
        OptionsError: the network cannot take another size.
    """
    ensure_resizable(checkpoint.chain, input_px)
    folded = adaptive_pool.without_pool(dataclasses.replace(checkpoint, chain=checkpoint.chain.at(input_px)))
    words = f"adaptive pool folded into {checkpoint.chain.linears[0].name} for {input_px} px"
    if len(folded.chain.layers) == len(checkpoint.chain.layers):
        words = f"taken to {input_px} px"
    return dataclasses.replace(folded, provenance=checkpoint.provenance.then(words))


def ensure_same_as_pooled(original: checkpoints.Checkpoint, folded: checkpoints.Checkpoint) -> float:
    """The largest relative difference of logits between the folded network and the original with its pool.

    Raises:
        CheckFailedError: the difference is larger than TOLERANCE.
    """
    import torch

    spec = folded.chain.input
    x = torch.randn(1, *spec.shape, generator=torch.Generator().manual_seed(0))
    pooled = dataclasses.replace(original, chain=original.chain.at(spec.px))
    with torch.inference_mode():
        expected, found = pooled.model()(x), folded.model()(x)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= TOLERANCE:
        raise CheckFailedError(
            f"folding: logits differ by {difference:.2g} of the largest from the pooled network, at most"
            f" {TOLERANCE:g} allowed"
        )
    return difference
