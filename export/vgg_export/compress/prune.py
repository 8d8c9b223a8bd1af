"""Structured pruning: removes whole filters, and with them the inputs of the next layer or, behind the
flattening, its columns, so that the tensors get smaller."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, NothingToGainError, OptionsError
from vgg_export.core.files import scratch_folder
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress
from vgg_export.core.records import SidecarRecord
from vgg_export.data.splits import Splits, fit_and_held
from vgg_export.data.tensors import stacked
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain, Change, Conv, Flatten, Linear, Scale, sizes, sizes_in_words
from vgg_export.options import PruneOptions, as_json
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.records import Record

from . import allocate, feature_maps, obs, reconstruct, stages

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Largest |difference of logits| between the pruned network and the original in which nothing reads the
# removed filters, relative to the largest |logit|: the two are the same sums in another order.
TOLERANCE = 1e-4
NOISE_IMAGES = 60


@dataclasses.dataclass(frozen=True)
class Widths(Record):
    """The output channels of every convolution by stage, before and after pruning."""

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
    parameters: Change
    macs: Change
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
        shrinks = uniform_widths(original.chain, options) != original.chain
        shown = (
            _pictures(original.chain.input, pictured, options)
            if shrinks and _needs_pictures(original, options)
            else None
        )
        with scratch_folder(path.parent) as folder:
            removals = (
                obs.removals(original, shown.fit, folder, progress)
                if shown and options.criterion == "obs"
                else None
            )
            with progress.task("pruning filters", None):
                made, kept = prune(original, options, removals)
                ensure_same_as_masked(original, made, kept)
            measured = Pruned(
                Widths(original.chain.widths(), made.chain.widths()),
                *sizes(original.chain, made.chain),
                costs=_costs(made.chain, removals, options.multiple) if removals else None,
            )
            if shown and options.repair and original.has_knowledge:
                problem = reconstruct.Problem(original, made.tensors, kept, made.chain)
                with cache.unfinished(STAGE, as_json(options), inputs, output) as parts:
                    made, fits, losses = _repaired(
                        problem, made, shown, pictured, reconstruct.Folders(folder, parts), progress
                    )
                measured = dataclasses.replace(
                    measured, images=len(shown.fit), layers=tuple(fits), losses=losses
                )
        if shown and pictured:
            made = dataclasses.replace(made, provenance=pictured.after_fitting(made.provenance))
        checkpoints.save(made, path)
        log.info("pruned %s", sizes_in_words(original.chain, made.chain))
        return measured

    return cache.produce(STAGE, as_json(options), inputs, output, make)


def _needs_pictures(original: checkpoints.Checkpoint, options: PruneOptions) -> bool:
    """Whether pictures are used. Random weights have nothing to repair, so only the criterion obs uses
    them."""
    return options.sees_pictures and (original.has_knowledge or options.criterion == "obs")


def _pictures(spec: InputSpec, splits: Splits | None, options: PruneOptions) -> feature_maps.Pictures:
    if splits is None:
        return feature_maps.noise(NOISE_IMAGES, spec, options.seed)
    sets = fit_and_held(splits, options.images, options.held_images, options.seed)
    return feature_maps.Pictures(*(stacked(items, spec) for items in sets))


def _costs(chain: Chain, removals: dict[str, obs.Removal], multiple: int) -> dict[str, Cost]:
    """By convolution: the cost of its removed filters, and the cost at other widths."""
    return {
        name: Cost(
            filters=chain.site(name).layer.outputs,
            cost=round(found.costs[-1 - chain.site(name).layer.outputs], 6),
            curve={str(w): round(cost, 6) for w, cost in found.at_widths(multiple).items()},
        )
        for name, found in removals.items()
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
    tensors, fits = reconstruct.repair_together(problem, shown, folders, progress)
    words = (
        f"repaired in closed form on {len(shown.fit)} pictures"
        if splits
        else "repaired in closed form on noise, without pictures"
    )
    made = checkpoints.Checkpoint(pruned.chain, tensors, pruned.labels, pruned.provenance.then(words))
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


def uniform_widths(chain: Chain, options: PruneOptions) -> Chain:
    """The chain with the same ratio of filters removed from every convolution from ``first_stage`` on.

    Raises:
        NothingToGainError: the ratio removes nothing after rounding.
        OptionsError: the network is factorised, or has fewer stages.
    """
    if chain.factorised:
        raise OptionsError(
            "the checkpoint is factorised; prune the one that it was made from, then factorise"
        )
    first = stages.first_of(chain, options.first_stage, "--prune-from")
    names = stages.names_from(chain, first)
    smaller = chain.with_widths(
        {
            name: target_width(chain.site(name).layer.outputs, options.ratio, options.multiple)
            for name in names
        }
    )
    if options.ratio > 0 and smaller == chain:
        raise NothingToGainError(
            f"a ratio of {options.ratio} from conv{first} on removes nothing of {chain.widths()}"
            f" when widths are rounded to {options.multiple};"
            " use a larger --prune-ratio or a smaller --width-multiple"
            if names
            else f"from conv{first} on the network has no convolution whose filters can go: those of the last"
            " one are the classes; use a smaller --prune-from"
        )
    return smaller


def sensitive_widths(chain: Chain, removals: dict[str, obs.Removal], options: PruneOptions) -> Chain:
    """The chain with at most the arithmetic of the uniform one. From ``first_stage`` on, filters are removed
    where they cost least. Raises what ``uniform_widths`` raises."""
    bound = uniform_widths(chain, options).macs()
    names = stages.names_from(chain, stages.first_of(chain, options.first_stage, "--prune-from"))
    curves = {name: removals[name].at_widths(options.multiple) for name in names}
    return chain.with_widths(allocate.widths(chain, curves, bound))


def prune(
    checkpoint: checkpoints.Checkpoint, options: PruneOptions, removals: dict[str, obs.Removal] | None = None
) -> "tuple[checkpoints.Checkpoint, dict[str, torch.Tensor]]":
    """The smaller checkpoint, and the sorted indices of the filters kept per convolution.

    Args:
        removals: what ``obs.removals`` measured; the criterion obs needs it where anything is removed.

    Raises:
        NothingToGainError: the ratio removes nothing after rounding.
        OptionsError: the checkpoint is factorised, or has fewer stages.
    """
    import torch

    chain = checkpoint.chain
    smaller = uniform_widths(chain, options)
    if removals and options.ratio > 0 and options.allocation == "sensitivity":
        smaller = sensitive_widths(chain, removals, options)
    generator = torch.Generator().manual_seed(options.seed)
    kept: dict[str, torch.Tensor] = {}
    for site, left in zip(chain.convs, smaller.convs, strict=True):
        name, count = site.name, left.layer.outputs
        if count == site.layer.outputs:
            kept[name] = torch.arange(count)
        elif options.criterion == "obs":
            assert removals  # as the docstring says
            kept[name] = removals[name].order[-count:].sort().values
        else:
            score = _scores(checkpoint.tensors[f"{name}.weight"], options.criterion, generator)
            kept[name] = score.argsort(descending=True, stable=True)[:count].sort().values
    source = checkpoint.provenance.then(_words(chain, options))
    return checkpoints.Checkpoint(smaller, remove_filters(checkpoint, kept), checkpoint.labels, source), kept


def _words(chain: Chain, options: PruneOptions) -> str:
    where = ", more where they are missed less" if options.allocation == "sensitivity" else ""
    first = stages.first_of(chain, options.first_stage, "--prune-from")
    return (
        f"pruned about {options.ratio:.0%} of the filters from conv{first} on by {options.criterion}{where}"
    )


def _scores(weight: "torch.Tensor", criterion: str, generator: "torch.Generator") -> "torch.Tensor":
    """Importance of each filter of [n, c, height, width]: its norm (Li et al. 2017), or a random number as
    the baseline to beat. ``obs`` measures the importance for the criterion obs."""
    import torch

    if criterion == "random":
        return torch.rand(weight.shape[0], generator=generator)
    norm: torch.Tensor = torch.linalg.vector_norm(weight.flatten(1), ord=2 if criterion == "l2" else 1, dim=1)
    return norm


def remove_filters(
    checkpoint: checkpoints.Checkpoint, kept: "dict[str, torch.Tensor]"
) -> "dict[str, torch.Tensor]":
    """The tensors with only the kept filters and what reads them."""
    tensors = {}
    read = inputs_left(checkpoint.chain, kept)
    for layer in checkpoint.chain.layers:
        if not isinstance(layer, Conv | Linear | Scale):
            continue
        weight, bias = checkpoint.tensors[f"{layer.name}.weight"], checkpoint.tensors[f"{layer.name}.bias"]
        inputs = read.get(layer.name)
        if isinstance(layer, Scale):
            weight, bias = (weight, bias) if inputs is None else (weight[inputs], bias[inputs])
        else:
            if layer.name in kept:
                weight, bias = weight[kept[layer.name]], bias[kept[layer.name]]
            weight = weight if inputs is None else weight[:, inputs]
        tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"] = (
            weight.contiguous(),
            bias.contiguous(),
        )
    return tensors


def inputs_left(chain: Chain, kept: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The indices of the inputs that each layer with tensors has left, when ``kept`` are the filters that the
    convolutions keep. Layers whose inputs all stay are absent. Features behind the flattening are ordered
    channel * positions + position."""
    import torch

    found: dict[str, torch.Tensor] = {}
    left: torch.Tensor | None = None  # None: all
    for placed in chain.placed:
        layer = placed.layer
        if isinstance(layer, Conv | Linear | Scale) and left is not None:
            found[layer.name] = left
        if isinstance(layer, Conv | Linear):
            left = kept.get(layer.name)
        elif isinstance(layer, Flatten) and left is not None:
            positions = math.prod(placed.inputs[1:])
            left = (left[:, None] * positions + torch.arange(positions)).flatten()
    return found


def ensure_same_as_masked(
    original: checkpoints.Checkpoint, pruned: checkpoints.Checkpoint, kept: "dict[str, torch.Tensor]"
) -> None:
    """Check that the pruned network equals the original in which nothing reads the removed filters. Their
    outputs cannot be zeroed instead: some activations make something else of a zero.

    Raises:
        CheckFailedError: the logits differ, so the removal mixed up channels.
    """
    import torch

    spec, masked = original.chain.input, dict(original.tensors)
    x = torch.randn(1, spec.channels, spec.px, spec.px, generator=torch.Generator().manual_seed(0))
    sites = {site.name for site in original.chain.sites}
    for name, inputs in inputs_left(original.chain, kept).items():
        if name in sites:
            weight = torch.zeros_like(masked[f"{name}.weight"])
            weight[:, inputs] = masked[f"{name}.weight"][:, inputs]
            masked[f"{name}.weight"] = weight
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
