"""Variants as data: a recipe is a list of steps, and steps that variants share are done once."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vgg_runtime.board.targets import TARGETS, Target

from .bundle import writer
from .compress import distil, factorise, prune
from .core import cache
from .core.errors import NothingToGainError, OptionsError
from .core.losses import Losses
from .core.progress import Progress
from .data import splits
from .graphs import export, winograd
from .int8 import activation_signedness, quantize
from .int8.measured import Quantized
from .network import input_size
from .options import AllOptions

log = logging.getLogger(__name__)

FLOAT_SHARE = 0.5  # of the allowed drop may be lost before int8, which takes a share of its own


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A variant: the steps that make it out of the checkpoint, in order."""

    id: str
    title: str
    description: str
    steps: tuple[str, ...]


RECIPES = (
    Recipe("baseline", "Baseline", "the checkpoint as it is", ("export",)),
    Recipe(
        "pruned",
        "Pruned",
        "filters removed from the deeper blocks, then fine-tuned",
        ("prune", "finetune", "export"),
    ),
    Recipe("quantized", "Quantized", "8-bit integers instead of 32-bit floats", ("export", "quantize")),
    Recipe(
        "pruned-quantized",
        "Pruned, quantized",
        "filters removed, fine-tuned, then 8-bit integers",
        ("prune", "finetune", "export", "quantize"),
    ),
    Recipe(
        "scaled",
        "Smaller input",
        "a smaller picture into the same network, not retrained",
        ("fold", "export"),
    ),
    Recipe(
        "pruned-quantized-scaled",
        "All three",
        "pruned, fine-tuned, smaller input, 8-bit integers",
        ("prune", "finetune", "fold", "export", "quantize"),
    ),
    Recipe(
        "compact",
        "Compact",
        "layers factorised and fitted in closed form, distilled, then 8-bit integers",
        ("factorise", "distil", "export", "quantize"),
    ),
    Recipe(
        "compact-scaled",
        "Compact, smaller input",
        "layers factorised and fitted in closed form, smaller input, distilled at that size, 8-bit integers",
        ("factorise", "fold", "distil", "export", "quantize"),
    ),
    Recipe(
        "compact-fp32",
        "Compact, fp32",
        "layers factorised and fitted in closed form, distilled; for boards where integers are no faster",
        ("factorise", "distil", "export"),
    ),
    Recipe(
        "compact-scaled-fp32",
        "Compact, smaller input, fp32",
        "layers factorised and fitted in closed form, smaller input, distilled at that size; for boards"
        " where integers are no faster",
        ("factorise", "fold", "distil", "export"),
    ),
)


class Steps:
    """What each step name of a recipe does to the artifact of the step before."""

    def __init__(
        self,
        checkpoint: cache.Artifact,
        splits: splits.Splits,
        options: AllOptions,
        progress: Progress,
        shared: Path | None = None,
    ) -> None:
        """``shared``: where the teacher's answers and the sensitivity table are kept, if not in the work
        folder."""
        self.checkpoint, self.splits, self.options, self.progress = checkpoint, splits, options, progress
        self._shared = shared or options.work_folder
        self._done: dict[tuple[str, ...], cache.Artifact] = {(): checkpoint}

    def make(self, steps: tuple[str, ...]) -> cache.Artifact:
        """The artifact after ``steps``; beginnings that were made before are not made again."""
        if steps not in self._done:
            before = self.make(steps[:-1])
            perform: Callable[[cache.Artifact, Path], cache.Artifact] = getattr(self, f"_{steps[-1]}")
            suffix = ".onnx" if {"export", "quantize"} & set(steps) else ".safetensors"
            self._done[steps] = perform(
                before, self.options.work_folder / ("checkpoint+" + "+".join(steps) + suffix)
            )
        return self._done[steps]

    def losses(self, steps: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
        """What each step lost, as its stage measured it on held-out pictures: ``{"step", "agreement", "kl",
        "n", "against"}``."""
        found = []
        for k in range(1, len(steps) + 1):
            made = self.make(steps[:k])
            if made is not self.make(steps[: k - 1]):  # else the step had nothing to do
                lost = made.read(Losses).losses
                found += [{"step": name, **loss.to_json()} for name, loss in lost.items()]
        return tuple(found)

    def _prune(self, before: cache.Artifact, output: Path) -> cache.Artifact:
        return prune.run(before, self.splits, output, self.options.prune, self.progress)

    def _finetune(self, before: cache.Artifact, output: Path) -> cache.Artifact:
        return distil.run(
            before, self.checkpoint, self.splits, output, self.options.finetune, self.progress, self._shared
        )

    def _factorise(self, before: cache.Artifact, output: Path) -> cache.Artifact:
        return factorise.run(before, self.splits, output, self.options.factorise, self.progress, self._shared)

    def _distil(self, before: cache.Artifact, output: Path) -> cache.Artifact:
        """Level by level: as long as each helps, or, where a drop is allowed, until half of it is kept (the
        other half is int8's)."""
        allowed = self.options.budget.max_drop
        for name, level in self.options.distil.levels(self.options.budget).items():
            made = output.with_name(f"{output.stem}-{name}{output.suffix}")
            before = distil.run(
                before, self.checkpoint, self.splits, made, level, self.progress, self._shared
            )
            tuned = before.read(distil.Measured).tuned
            if tuned is None:  # it was skipped, and says why
                break
            lost, error = tuned.points_lost, tuned.loss_error_points
            if allowed is not None:
                words = (
                    f"{lost:+.1f} ± {error:.1f} points lost in fp32, {allowed * FLOAT_SHARE:g} allowed"
                    " before int8"
                )
                log.info("distilled, %s: %s", name, words)
            if lost + error <= allowed * FLOAT_SHARE if allowed is not None else not tuned.kept_epoch:
                break
        return before

    def _fold(self, before: cache.Artifact, output: Path) -> cache.Artifact:
        return input_size.run(before, output, self.options.scaled_px, self.progress)

    def _export(self, before: cache.Artifact, output: Path) -> cache.Artifact:
        return export.run(before, output, self.progress)

    def _quantize(self, before: cache.Artifact, output: Path, target: str | None = None) -> cache.Artifact:
        chosen, wanted = self.options.data, self.options.quantize
        if target:
            wanted = dataclasses.replace(wanted, target=target)
        return quantize.run(
            before, self.splits, chosen.calibration_images, output, wanted, self.progress, chosen.seed
        )

    def entry(self, recipe: Recipe) -> writer.Entry:
        """A variant with its builds for all the cores that are asked for."""
        made, losses = self.make(recipe.steps), self.losses(recipe.steps)
        targets, others = (
            self._integer_builds(recipe, made)
            if "quantize" in recipe.steps
            else ((), self._float_builds(recipe, made))
        )
        return writer.Entry(
            recipe.id, recipe.title, recipe.description, recipe.steps, made, losses, targets, others
        )

    def _integer_builds(
        self, recipe: Recipe, made: cache.Artifact
    ) -> tuple[tuple[str, ...], tuple[writer.Build, ...]]:
        """The cores that the recipe's own model is right for, and the builds for the others."""
        forms: dict[tuple[bool, bool], list[str]] = {}
        for name in self.options.built_for:
            forms.setdefault((TARGETS[name].reduce_range, TARGETS[name].signed_activations), []).append(name)
        (own_range, _), own = next(iter(forms.items()))
        others, by_range = [], {own_range: (made, recipe.id)}
        for (reduced, _), names in list(forms.items())[1:]:
            build_id = f"{recipe.id}.{names[0]}"
            if reduced not in by_range:
                by_range[reduced] = (
                    self._quantize(self.make(recipe.steps[:-1]), self._named(made, names[0]), names[0]),
                    build_id,
                )
            source, figures = by_range[reduced]
            made_for = TARGETS[source.read(Quantized).target]
            if made_for.signed_activations != TARGETS[names[0]].signed_activations:
                source = activation_signedness.run(
                    source, names[0], self._named(made, f"{names[0]}-retyped"), self.progress
                )
            others.append(writer.Build(build_id, "", tuple(names), source, figures))
        return tuple(own), tuple(others)

    def _float_builds(self, recipe: Recipe, made: cache.Artifact) -> tuple[writer.Build, ...]:
        """Builds for the cores whose int8 is no faster than float: with Winograd's convolutions, where any
        layer gains by it."""
        others: dict[str, writer.Build] = {}
        for name in self.options.built_for:
            core = TARGETS[name].winograd_core
            if core is None:
                continue
            with contextlib.suppress(NothingToGainError):
                rewritten = winograd.run(made, core, self._named(made, core), self.progress)
                if not _has_room(TARGETS[name], made, rewritten):
                    log.info(
                        "%s: no Winograd build for %s, whose memory is too small for the transformed weights",
                        recipe.id,
                        name,
                    )
                    continue
                count = len(rewritten.read(winograd.Rewritten).winograd.layers)
                form = (
                    f"{count} convolutions as Winograd's, which take fewer instructions on a {core.title()}"
                )
                known = others.get(rewritten.sha256) or writer.Build(
                    f"{recipe.id}.{name}", form, (), rewritten, recipe.id
                )
                others[rewritten.sha256] = dataclasses.replace(known, targets=(*known.targets, name))
        return tuple(others.values())

    @staticmethod
    def _named(made: cache.Artifact, suffix: str) -> Path:
        return made.path.with_name(f"{made.path.stem}-{suffix}{made.path.suffix}")


def _has_room(target: Target, made: cache.Artifact, rewritten: cache.Artifact) -> bool:
    """Whether weights that are transformed while they are loaded leave half of a board's memory free."""
    weights = rewritten.read(winograd.Rewritten).winograd.weight_bytes
    needed = made.path.stat().st_size + weights.rewritten - weights.direct
    return target.ram_bytes is None or needed <= target.ram_bytes / 2


def chosen_recipes(wanted: Sequence[str] | None) -> tuple[Recipe, ...]:
    """The recipes of these names, the baseline first and always.

    Raises:
        OptionsError: a name that is no variant.
    """
    known = [recipe.id for recipe in RECIPES]
    if unknown := [name for name in wanted or () if name not in known]:
        raise OptionsError(f"there is no variant {unknown[0]!r}; expected some of {', '.join(known)}")
    return tuple(recipe for recipe in RECIPES if wanted is None or recipe.id in (*wanted, RECIPES[0].id))
