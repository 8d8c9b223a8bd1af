"""Variants as data: a recipe is a list of steps, and steps that variants share are done once."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import data, factorise, finetune, fold, prune, quantize, stage, to_onnx
from .errors import OptionsError
from .options import AllOptions
from .progress import Progress


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A variant: the steps that make it out of the checkpoint, in order."""

    id: str
    title: str
    description: str
    steps: tuple[str, ...]


RECIPES = (
    Recipe("baseline", "Baseline", "the checkpoint as it is", ("export",)),
    Recipe("pruned", "Pruned", "filters removed from the deeper blocks, then fine-tuned", ("prune", "finetune", "export")),
    Recipe("quantized", "Quantized", "8-bit integers instead of 32-bit floats", ("export", "quantize")),
    Recipe(
        "pruned-quantized",
        "Pruned, quantized",
        "filters removed, fine-tuned, then 8-bit integers",
        ("prune", "finetune", "export", "quantize"),
    ),
    Recipe("scaled", "Smaller input", "a smaller picture into the same network, not retrained", ("fold", "export")),
    Recipe(
        "pruned-quantized-scaled",
        "All three",
        "pruned, fine-tuned, smaller input, 8-bit integers",
        ("prune", "finetune", "fold", "export", "quantize"),
    ),
    Recipe(
        "compact",
        "Compact",
        "layers factorised and fitted in closed form, classifier distilled, then 8-bit integers",
        ("factorise", "distil", "export", "quantize"),
    ),
    Recipe(
        "compact-scaled",
        "Compact, smaller input",
        "layers factorised and fitted in closed form, smaller input, classifier distilled at that size, 8-bit integers",
        ("factorise", "fold", "distil", "export", "quantize"),
    ),
    Recipe(
        "compact-fp32",
        "Compact, fp32",
        "layers factorised and fitted in closed form, classifier distilled; for boards where integers are no faster",
        ("factorise", "distil", "export"),
    ),
    Recipe(
        "compact-scaled-fp32",
        "Compact, smaller input, fp32",
        "layers factorised and fitted in closed form, smaller input, classifier distilled at that size; for boards where integers"
        " are no faster",
        ("factorise", "fold", "distil", "export"),
    ),
)


class Steps:
    """What each step name of a recipe does to the artifact of the step before."""

    def __init__(
        self, checkpoint: stage.Artifact, splits: data.Splits, options: AllOptions, progress: Progress, answers: Path | None = None
    ) -> None:
        """``answers``: where the teacher's answers are kept, if not in the work folder."""
        self.checkpoint, self.splits, self.options, self.progress = checkpoint, splits, options, progress
        self._answers = answers or options.work_folder
        self._done: dict[tuple[str, ...], stage.Artifact] = {(): checkpoint}

    def make(self, steps: tuple[str, ...]) -> stage.Artifact:
        """The artifact after ``steps``; beginnings that were made before are not made again."""
        if steps not in self._done:
            before = self.make(steps[:-1])
            perform: Callable[[stage.Artifact, Path], stage.Artifact] = getattr(self, f"_{steps[-1]}")
            suffix = ".onnx" if {"export", "quantize"} & set(steps) else ".safetensors"
            self._done[steps] = perform(before, self.options.work_folder / ("checkpoint+" + "+".join(steps) + suffix))
        return self._done[steps]

    def losses(self, steps: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
        """What each step lost, as its stage measured it on held-out pictures: ``{"step", "agreement", "kl", "n", "against"}``."""
        found = []
        for k in range(1, len(steps) + 1):
            for name, loss in self.make(steps[:k]).measured.get("losses", {}).items():
                found.append({"step": name, **loss})
        return tuple(found)

    def _prune(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        return prune.run(before, self.splits, output, self.options.prune, self.progress)

    def _finetune(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        return finetune.run(before, self.checkpoint, self.splits, output, self.options.finetune, self.progress, self._answers)

    def _factorise(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        return factorise.run(before, self.splits, output, self.options.factorise, self.progress)

    def _distil(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        """Level by level, as long as each helps; what the last one left is the artifact."""
        for name, level in self.options.distil.levels().items():
            made = output.with_name(f"{output.stem}-{name}{output.suffix}")
            before = finetune.run(before, self.checkpoint, self.splits, made, level, self.progress, self._answers)
            if not before.measured["kept_epoch"]:
                break
        return before

    def _fold(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        return fold.run(before, output, self.options.scaled_px, self.progress)

    def _export(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        return to_onnx.run(before, output, self.progress)

    def _quantize(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        chosen = self.options.data
        return quantize.run(before, self.splits, chosen.calibration_images, output, self.options.quantize, self.progress, chosen.seed)


def chosen_recipes(wanted: Sequence[str] | None) -> tuple[Recipe, ...]:
    """The recipes of these names, the baseline first and always.

    Raises:
        OptionsError: a name that is no variant.
    """
    known = [recipe.id for recipe in RECIPES]
    if unknown := [name for name in wanted or () if name not in known]:
        raise OptionsError(f"there is no variant {unknown[0]!r}; expected some of {', '.join(known)}")
    return tuple(recipe for recipe in RECIPES if wanted is None or recipe.id in (*wanted, RECIPES[0].id))
