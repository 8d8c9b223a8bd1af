"""Structured pruning: whole filters leave, the tensors get smaller, the next layer's inputs and fc1's columns follow."""

import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_runtime.preprocess import for_input

from . import model, repair, stage
from .data import Splits, fit_and_held, stacked
from .errors import CheckFailedError, OptionsError
from .options import BLOCK_NAMES, PruneOptions, as_json
from .progress import Progress

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Largest |difference of logits| between the pruned network and the original with the removed filters' outputs set to
# zero, relative to the largest |logit|: the two are the same sums in another order.
TOLERANCE = 1e-4
NOISE_IMAGES = 60


def run(checkpoint: stage.Artifact, splits: Splits | None, output: Path, options: PruneOptions, progress: Progress) -> stage.Artifact:
    """Prune a checkpoint file and repair what is left; the sidecar records widths, parameters and MACs before and after, how each
    layer was fitted, and what was lost before and after the repair.

    Without pictures (``splits`` is None) the repair is fitted on noise with the spectrum of photographs, and no loss is claimed.
    """

    def make(path: Path) -> dict[str, object]:
        with progress.task("pruning filters", None):
            original = model.load(checkpoint.path)
            pruned, kept = prune(original, options)
            ensure_same_as_masked(original, pruned, kept)
        fitted: dict[str, Any] = {}
        if options.repair and pruned.plan != original.plan and original.has_knowledge:
            pruned, fitted = _repaired(original, pruned, kept, splits, options, path.parent, progress)
        model.save(pruned, path)
        before, after = original.plan, pruned.plan
        log.info("pruned %s", model.sizes_in_words(before, after))
        return {"widths": {"before": before.blocks, "after": after.blocks}, **model.sizes(before, after), **fitted}

    inputs = {"checkpoint": checkpoint}
    if options.repair and splits:
        inputs["splits"] = stage.Artifact(Path("splits"), splits.digest("fit", "select"), {})
    return stage.produce("prune", as_json(options), inputs, output, make)


def _repaired(
    original: model.Checkpoint,
    pruned: model.Checkpoint,
    kept: "dict[str, torch.Tensor]",
    splits: Splits | None,
    options: PruneOptions,
    scratch: Path,
    progress: Progress,
) -> tuple[model.Checkpoint, dict[str, Any]]:
    """The pruned checkpoint with its layers fitted again, and what that did."""
    px = original.plan.input_px
    if splits:
        sets = fit_and_held(splits, options.images, options.held_images, options.seed)
        pictures = repair.Pictures(*(stacked(items, for_input(px)) for items in sets))
        words = f"repaired in closed form on {len(sets[0])} pictures"
    else:
        pictures = repair.noise(NOISE_IMAGES, px, options.seed)
        words = "repaired in closed form on noise, without pictures"
    with tempfile.TemporaryDirectory(prefix=".repair.", dir=scratch) as folder:
        tensors, fits = repair.repair(repair.Problem(original, pruned.tensors, kept, pruned.plan), pictures, Path(folder), progress)
    source = pruned.source | {"history": [*pruned.source["history"], words]} | ({"fitted_on": splits.fitted()} if splits else {})
    made = model.Checkpoint(pruned.plan, tensors, pruned.labels, source)
    measured: dict[str, Any] = {"images": len(pictures.fit), "layers": [fit.to_json() for fit in fits]}
    if splits:
        with progress.task("measuring what the pruning cost", None):
            measured["losses"] = {
                "removed": repair.loss(original, pruned, pictures.held),
                "repaired": repair.loss(original, made, pictures.held),
            }
        agreement = [100 * loss["agreement"] for loss in measured["losses"].values()]
        log.info("agreement with the original on %d held-out pictures: %.1f %% pruned, %.1f %% repaired", len(pictures.held), *agreement)
    return made, measured


def target_width(width: int, ratio: float, multiple: int) -> int:
    """How many of ``width`` filters stay: the multiple nearest to ``width * (1 - ratio)``, at least one, never more than there are."""
    if ratio == 0:
        return width
    return min(width, max(multiple, multiple * round(width * (1 - ratio) / multiple)))


def prune(checkpoint: model.Checkpoint, options: PruneOptions) -> "tuple[model.Checkpoint, dict[str, torch.Tensor]]":
    """The smaller checkpoint, and the sorted indices of the filters kept per convolution.

    Raises:
        OptionsError: the ratio removes nothing after rounding, or the checkpoint is factorised.
    """
    import torch

    plan = checkpoint.plan
    if plan.factors:
        raise OptionsError("the checkpoint is factorised; prune the one that it was made from, then factorise")
    generator = torch.Generator().manual_seed(options.seed)
    kept: dict[str, torch.Tensor] = {}
    for name, _, width in plan.convs():
        chosen = name[:5] in BLOCK_NAMES[BLOCK_NAMES.index(options.first_block) :]
        count = target_width(width, options.ratio, options.multiple) if chosen else width
        score = _scores(checkpoint.tensors[f"{name}.weight"], options.criterion, generator)
        kept[name] = score.argsort(descending=True, stable=True)[:count].sort().values
    blocks = tuple(tuple(len(kept[f"conv{b}_{j}"]) for j in range(1, len(block) + 1)) for b, block in enumerate(plan.blocks, 1))
    if options.ratio > 0 and blocks == plan.blocks:
        raise OptionsError(
            f"a ratio of {options.ratio} from {options.first_block} on removes nothing of {plan.blocks}"
            f" when widths are rounded to {options.multiple};"
            " use a larger --prune-ratio or a smaller --width-multiple"
        )
    source = checkpoint.source | {"history": [*checkpoint.source.get("history", []), _words(options)]}
    smaller = dataclasses.replace(plan, blocks=blocks)
    return model.Checkpoint(smaller, remove_filters(checkpoint, kept), checkpoint.labels, source), kept


def _words(options: PruneOptions) -> str:
    return f"pruned about {options.ratio:.0%} of the filters from {options.first_block} on by {options.criterion}"


def _scores(weight: "torch.Tensor", criterion: str, generator: "torch.Generator") -> "torch.Tensor":
    """Importance of each filter of [n, c, 3, 3]: its norm (Li et al. 2017), or chance as the baseline to be beaten."""
    import torch

    if criterion == "random":
        return torch.rand(weight.shape[0], generator=generator)
    norm: torch.Tensor = torch.linalg.vector_norm(weight.flatten(1), ord=2 if criterion == "l2" else 1, dim=1)
    return norm


def remove_filters(checkpoint: model.Checkpoint, kept: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors with only the kept filters; fc1's columns are ordered channel * positions + position."""
    import torch

    tensors = {}
    before: torch.Tensor | None = None
    for name, *_ in checkpoint.plan.convs():
        weight, bias = checkpoint.tensors[f"{name}.weight"], checkpoint.tensors[f"{name}.bias"]
        weight = weight[kept[name]] if before is None else weight[kept[name]][:, before]
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight.contiguous(), bias[kept[name]].contiguous()
        before = kept[name]
    assert before is not None  # a plan has convolutions
    positions = checkpoint.plan.grid_px**2
    columns = (before[:, None] * positions + torch.arange(positions)).flatten()
    for name, *_ in checkpoint.plan.linears():
        tensors |= {f"{name}.{part}": checkpoint.tensors[f"{name}.{part}"] for part in ("weight", "bias")}
    tensors["fc1.weight"] = tensors["fc1.weight"][:, columns].contiguous()
    return tensors


def ensure_same_as_masked(original: model.Checkpoint, pruned: model.Checkpoint, kept: "dict[str, torch.Tensor]") -> None:
    """Removing filters must give what zeroing their outputs in the original gives.

    Raises:
        CheckFailedError: it does not; the removal mixed up channels.
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
            f"pruning: the pruned network differs from the masked original by {difference:.2g} of its largest logit,"
            f" at most {TOLERANCE:g} allowed"
        )
