"""Structured pruning: removes whole filters, and with them the inputs of the next layer or the columns of
fc1, so that the tensors get smaller."""

import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, OptionsError
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress
from vgg_export.core.records import SidecarRecord
from vgg_export.data.splits import Splits, fit_and_held
from vgg_export.data.tensors import stacked
from vgg_export.network import chain
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import BLOCK_NAMES, PruneOptions, as_json
from vgg_runtime.bundle.preprocess import for_input
from vgg_runtime.records import Record

from . import allocate, feature_maps, obs, reconstruct

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Largest |difference of logits| between the pruned network and the original with the removed filters' outputs
# set to zero, relative to the largest |logit|: the two are the same sums in another order.
TOLERANCE = 1e-4
NOISE_IMAGES = 60


@dataclasses.dataclass(frozen=True)
class Widths(Record):
    """The output channels of every convolution by block, before and after pruning."""

    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Cost(Record):
    """The ``cost`` of the removed filters of a convolution that keeps ``filters`` filters, and ``curve``:
    that cost by number of filters kept."""

    filters: int
    cost: float
    curve: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Pruned(SidecarRecord):
    """``costs``: by convolution, with the criterion obs. ``images`` and ``layers``: on how many pictures
    layers were fitted again, and how each fit went. ``losses``: before and after the repair, where the
    pictures were real."""

    widths: Widths
    parameters: chain.Change
    macs: chain.Change
    costs: dict[str, Cost] | None = None
    images: int | None = None
    layers: tuple[reconstruct.Fit, ...] | None = None
    losses: dict[str, Loss] | None = None


STAGE = cache.Stage("prune", __name__, Pruned)


def run(
    checkpoint: cache.Artifact, splits: Splits | None, output: Path, options: PruneOptions, progress: Progress
) -> cache.Artifact:
    """Prune a checkpoint file and repair what is left; the sidecar records widths, parameters and MACs before
    and after, what the removed filters cost (criterion obs), how each layer was fitted, and what was lost
    before and after the repair.

    Without pictures (``splits`` is None) filters are chosen and layers fitted on noise with the spectrum of
    photographs, and no loss is claimed.
    """
    pictured = splits if options.sees_pictures else None
    inputs = {"checkpoint": checkpoint}
    if pictured:
        inputs["splits"] = cache.Artifact(Path("splits"), pictured.digest("fit", "select"), {})

    def make(path: Path) -> Pruned:
        original = checkpoints.load(checkpoint.path)
        # an impossible request fails before pictures are read
        shrinks = uniform_plan(original.plan, options) != original.plan
        shown = (
            _pictures(original.plan.input_px, pictured, options)
            if shrinks and _needs_pictures(original, options)
            else None
        )
        with tempfile.TemporaryDirectory(prefix=".prune.", dir=path.parent) as folder:
            removals = (
                obs.removals(original, shown.fit, Path(folder), progress)
                if shown and options.criterion == "obs"
                else None
            )
            with progress.task("pruning filters", None):
                made, kept = prune(original, options, removals)
                ensure_same_as_masked(original, made, kept)
            measured = Pruned(
                Widths(original.plan.blocks, made.plan.blocks),
                *chain.sizes(original.plan, made.plan),
                costs=_costs(made.plan, removals, options.multiple) if removals else None,
            )
            if shown and options.repair and original.has_knowledge:
                problem = reconstruct.Problem(original, made.tensors, kept, made.plan)
                with cache.unfinished(STAGE, as_json(options), inputs, output) as parts:
                    made, fits, losses = _repaired(
                        problem, made, shown, pictured, reconstruct.Folders(Path(folder), parts), progress
                    )
                measured = dataclasses.replace(
                    measured, images=len(shown.fit), layers=tuple(fits), losses=losses
                )
        if shown and pictured:
            made = dataclasses.replace(made, provenance=pictured.after_fitting(made.provenance))
        checkpoints.save(made, path)
        log.info("pruned %s", chain.sizes_in_words(original.plan, made.plan))
        return measured

    return cache.produce(STAGE, as_json(options), inputs, output, make)


def _needs_pictures(original: checkpoints.Checkpoint, options: PruneOptions) -> bool:
    """Whether pictures are used. Random weights have nothing to repair, so only the criterion obs uses
    them."""
    return options.sees_pictures and (original.has_knowledge or options.criterion == "obs")


def _pictures(px: int, splits: Splits | None, options: PruneOptions) -> feature_maps.Pictures:
    if splits is None:
        return feature_maps.noise(NOISE_IMAGES, px, options.seed)
    sets = fit_and_held(splits, options.images, options.held_images, options.seed)
    return feature_maps.Pictures(*(stacked(items, for_input(px)) for items in sets))


def _costs(plan: chain.Plan, removals: dict[str, obs.Removal], multiple: int) -> dict[str, Cost]:
    """By convolution: the cost of its removed filters, and the cost at other widths."""
    return {
        name: Cost(
            filters=width,
            cost=round(removals[name].costs[-1 - width], 6),
            curve={str(w): round(cost, 6) for w, cost in removals[name].at_widths(multiple).items()},
        )
        for name, _, width in plan.convs()
    }


def _repaired(
    problem: reconstruct.Problem,
    pruned: checkpoints.Checkpoint,
    shown: feature_maps.Pictures,
    splits: Splits | None,
    folders: reconstruct.Folders,
    progress: Progress,
) -> tuple[checkpoints.Checkpoint, list[reconstruct.Fit], dict[str, Loss] | None]:
    """The pruned checkpoint with its layers fitted again, how each fit went, and the losses if there are
    pictures to measure them on."""
    tensors, fits = reconstruct.repair(problem, shown, folders, progress)
    words = (
        f"repaired in closed form on {len(shown.fit)} pictures"
        if splits
        else "repaired in closed form on noise, without pictures"
    )
    made = checkpoints.Checkpoint(pruned.plan, tensors, pruned.labels, pruned.provenance.then(words))
    if not splits:
        return made, fits, None
    with progress.task("measuring the loss of the pruning", None):
        losses = {
            "removed": reconstruct.loss(problem.original, pruned, shown.held),
            "repaired": reconstruct.loss(problem.original, made, shown.held),
        }
    log.info(
        "agreement with the original on %d held-out pictures: %.1f %% pruned, %.1f %% repaired",
        len(shown.held),
        *(100 * loss.agreement for loss in losses.values()),
    )
    return made, fits, losses


def target_width(width: int, ratio: float, multiple: int) -> int:
    """How many of ``width`` filters stay: the multiple of ``multiple`` nearest to ``width * (1 - ratio)``, at
    least one multiple and at most ``width``."""
    if ratio == 0:
        return width
    return min(width, max(multiple, multiple * round(width * (1 - ratio) / multiple)))


def uniform_plan(plan: chain.Plan, options: PruneOptions) -> chain.Plan:
    """The plan with the same ratio of filters removed from every convolution from ``first_block`` on.

    Raises:
        OptionsError: the ratio removes nothing after rounding, or the checkpoint is factorised.
    """
    if plan.factors:
        raise OptionsError(
            "the checkpoint is factorised; prune the one that it was made from, then factorise"
        )
    first = BLOCK_NAMES.index(options.first_block)
    smaller = dataclasses.replace(
        plan,
        blocks=(*plan.blocks[:first], *(tuple(_targets(block, options)) for block in plan.blocks[first:])),
    )
    if options.ratio > 0 and smaller == plan:
        raise OptionsError(
            f"a ratio of {options.ratio} from {options.first_block} on removes nothing of {plan.blocks}"
            f" when widths are rounded to {options.multiple};"
            " use a larger --prune-ratio or a smaller --width-multiple"
        )
    return smaller


def _targets(block: Iterable[int], options: PruneOptions) -> Iterator[int]:
    return (target_width(width, options.ratio, options.multiple) for width in block)


def sensitive_plan(plan: chain.Plan, removals: dict[str, obs.Removal], options: PruneOptions) -> chain.Plan:
    """The plan with at most the arithmetic of the uniform plan. From ``first_block`` on, filters are removed
    where they cost least. Raises what ``uniform_plan`` raises."""
    chosen = BLOCK_NAMES[BLOCK_NAMES.index(options.first_block) :]
    curves = {
        name: removals[name].at_widths(options.multiple) for name, *_ in plan.convs() if name[:5] in chosen
    }
    return allocate.with_widths(plan, allocate.widths(plan, curves, uniform_plan(plan, options).macs()))


def prune(
    checkpoint: checkpoints.Checkpoint, options: PruneOptions, removals: dict[str, obs.Removal] | None = None
) -> "tuple[checkpoints.Checkpoint, dict[str, torch.Tensor]]":
    """The smaller checkpoint, and the sorted indices of the filters kept per convolution.

    Args:
        removals: what ``obs.removals`` measured; the criterion obs needs it where anything is removed.

    Raises:
        OptionsError: the ratio removes nothing after rounding, or the checkpoint is factorised.
    """
    import torch

    plan = checkpoint.plan
    smaller = uniform_plan(plan, options)
    if removals and options.ratio > 0 and options.allocation == "sensitivity":
        smaller = sensitive_plan(plan, removals, options)
    generator = torch.Generator().manual_seed(options.seed)
    kept: dict[str, torch.Tensor] = {}
    for (name, _, before), (*_, count) in zip(plan.convs(), smaller.convs(), strict=True):
        if count == before:
            kept[name] = torch.arange(before)
        elif options.criterion == "obs":
            assert removals  # as the docstring says
            kept[name] = removals[name].order[-count:].sort().values
        else:
            score = _scores(checkpoint.tensors[f"{name}.weight"], options.criterion, generator)
            kept[name] = score.argsort(descending=True, stable=True)[:count].sort().values
    source = checkpoint.provenance.then(_words(options))
    return checkpoints.Checkpoint(smaller, remove_filters(checkpoint, kept), checkpoint.labels, source), kept


def _words(options: PruneOptions) -> str:
    where = ", more where they are missed less" if options.allocation == "sensitivity" else ""
    return (
        f"pruned about {options.ratio:.0%} of the filters from {options.first_block} on by"
        f" {options.criterion}{where}"
    )


def _scores(weight: "torch.Tensor", criterion: str, generator: "torch.Generator") -> "torch.Tensor":
    """Importance of each filter of [n, c, 3, 3]: its norm (Li et al. 2017), or a random number as the
    baseline to beat. ``obs`` measures the importance for the criterion obs."""
    import torch

    if criterion == "random":
        return torch.rand(weight.shape[0], generator=generator)
    norm: torch.Tensor = torch.linalg.vector_norm(weight.flatten(1), ord=2 if criterion == "l2" else 1, dim=1)
    return norm


def remove_filters(
    checkpoint: checkpoints.Checkpoint, kept: "dict[str, torch.Tensor]"
) -> "dict[str, torch.Tensor]":
    """The tensors with only the kept filters; fc1's columns are ordered channel * positions + position."""
    import torch

    tensors = {}
    before: torch.Tensor | None = None
    for name, *_ in checkpoint.plan.convs():
        weight, bias = checkpoint.tensors[f"{name}.weight"], checkpoint.tensors[f"{name}.bias"]
        weight = weight[kept[name]] if before is None else weight[kept[name]][:, before]
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = (
            weight.contiguous(),
            bias[kept[name]].contiguous(),
        )
        before = kept[name]
    assert before is not None  # a plan has convolutions
    positions = checkpoint.plan.grid_px**2
    columns = (before[:, None] * positions + torch.arange(positions)).flatten()
    for name, *_ in checkpoint.plan.linears():
        tensors |= {f"{name}.{part}": checkpoint.tensors[f"{name}.{part}"] for part in ("weight", "bias")}
    tensors["fc1.weight"] = tensors["fc1.weight"][:, columns].contiguous()
    return tensors


def ensure_same_as_masked(
    original: checkpoints.Checkpoint, pruned: checkpoints.Checkpoint, kept: "dict[str, torch.Tensor]"
) -> None:
    """Check that the pruned network equals the original with the removed filters' outputs set to zero.

    Raises:
        CheckFailedError: the logits differ, so the removal mixed up channels.
    """
    import torch

    px = original.plan.input_px
    x = torch.randn(1, 3, px, px, generator=torch.Generator().manual_seed(0))
    masked = dict(original.tensors)
    for name, keep in kept.items():
        for part in ("weight", "bias"):
            zeroed = torch.zeros_like(masked[f"{name}.{part}"])
            zeroed[keep] = masked[f"{name}.{part}"][keep]
            masked[f"{name}.{part}"] = zeroed
    with torch.inference_mode():
        expected = dataclasses.replace(original, tensors=masked).model()(x)
        found = pruned.model()(x)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= TOLERANCE:
        raise CheckFailedError(
            f"pruning: the pruned network differs from the masked original by {difference:.2g} of its"
            " largest logit,"
            f" at most {TOLERANCE:g} allowed"
        )
