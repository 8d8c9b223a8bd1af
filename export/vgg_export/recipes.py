"""The variants as data: a recipe is a list of steps, and steps that variants share run once.

A step is an object that holds everything particular to it; no other code asks for its name. To add a step or
a variant, add an object here.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from vgg_runtime.board.targets import TARGETS
from vgg_runtime.result import StepLoss

from . import builds
from .bundle import writer
from .compress import distil, factorise, prune
from .core import cache
from .core.errors import NothingToGainError, OptionsError
from .core.losses import Losses
from .core.progress import Progress
from .data.splits import Splits
from .graphs import export
from .int8 import quantize
from .network import checkpoint as checkpoints
from .network import input_size
from .options import AUTO_BITS, RecipeOptions

log = logging.getLogger(__name__)

FLOAT_SHARE = 0.5  # share of the allowed drop that may be lost before int8; the rest is left to int8
CHECKPOINT, MODEL = ".safetensors", ".onnx"  # the kinds of file that steps read and write


@dataclasses.dataclass(frozen=True)
class Context:
    """What a step may use besides the artifact of the step before. ``checkpoint``: the original, which is the
    teacher. ``folder``: the folder of the steps' files. ``shared``: the folder of the teacher's answers and
    the sensitivity table. ``steps``: the steps so far, the current one last. ``records``: where a search
    keeps what the original computes; None: it is not kept."""

    checkpoint: cache.Artifact
    splits: Splits
    options: RecipeOptions
    progress: Progress
    folder: Path
    shared: Path
    steps: "tuple[Step, ...]" = ()
    records: Path | None = None

    @property
    def output(self) -> Path:
        """The file that the current step writes."""
        return self.folder / ("+".join(("checkpoint", *names(self.steps))) + self.steps[-1].suffix)


@dataclasses.dataclass(frozen=True)
class Step:
    """One way to make an artifact of another. ``takes`` and ``suffix``: the kinds of file before and after
    it. ``run``: makes ``context.output``. ``searched``: a search for a budget decides how strong it is.
    ``integers``: it makes int8, of which different cores need different builds. ``hindered``: why it cannot
    be done with the network of a context; None: it can."""

    name: str
    takes: str
    suffix: str
    run: Callable[[cache.Artifact, Context], cache.Artifact]
    searched: bool = False
    integers: bool = False
    hindered: Callable[[Context], str | None] = lambda _: None


def names(steps: Iterable[Step]) -> tuple[str, ...]:
    """The names of steps in records, in logs and in file names."""
    return tuple(step.name for step in steps)


def _prune(before: cache.Artifact, context: Context) -> cache.Artifact:
    return prune.run(before, context.splits, context.output, context.options.prune, context.progress)


def _finetune(before: cache.Artifact, context: Context) -> cache.Artifact:
    options = context.options.finetune
    return distil.run(
        before, context.checkpoint, context.splits, context.output, options, context.progress, context.shared
    )


def _factorise(before: cache.Artifact, context: Context) -> cache.Artifact:
    options = context.options.factorise
    return factorise.run(
        before, context.splits, context.output, options, context.progress, context.shared, context.records
    )


def _distil(before: cache.Artifact, context: Context) -> cache.Artifact:
    """Distil level by level. Without an allowed drop: as long as each level helps. With one: until the loss
    is at most half of it; the other half is left to int8."""
    budget = context.options.budget
    for name, level in context.options.distil.levels(budget).items():
        output = builds.beside(context.output, name)
        before = distil.run(
            before, context.checkpoint, context.splits, output, level, context.progress, context.shared
        )
        tuned = before.read(distil.Measured).tuned
        # a skipped level has logged why
        if tuned is None or _is_enough(tuned, name, budget.max_drop):
            break
    return before


def _is_enough(tuned: distil.Tuned, level: str, allowed: float | None) -> bool:
    """Whether no further level is needed: the loss is small enough, or, without an allowed drop, this level
    did not help."""
    if allowed is None:
        return not tuned.kept_epoch
    lost, error = tuned.points_lost, tuned.loss_error_points
    words = f"{lost:+.1f} ± {error:.1f} points lost in fp32, {allowed * FLOAT_SHARE:g} allowed before int8"
    log.info("distilled, %s: %s", level, words)
    return bool(lost + error <= allowed * FLOAT_SHARE)


def _fold(before: cache.Artifact, context: Context) -> cache.Artifact:
    return input_size.run(before, context.output, smaller_px(context), context.progress)


def smaller_px(context: Context) -> int:
    """The side of the smaller input of a context's network; raises what ``input_size.smaller_px`` raises."""
    chain = checkpoints.read_header(context.checkpoint.path).chain
    return input_size.smaller_px(chain, context.options.scaled_px)


def _has_no_smaller_input(context: Context) -> str | None:
    try:
        smaller_px(context)
    except NothingToGainError as error:
        return str(error)
    return None


def _export(before: cache.Artifact, context: Context) -> cache.Artifact:
    return export.run(before, context.output, context.progress)


def _quantize(before: cache.Artifact, context: Context) -> cache.Artifact:
    return _quantized(before, context, context.output, context.options.quantize.target)


def _quantized(before: cache.Artifact, context: Context, output: Path, target: str) -> cache.Artifact:
    """The int8 model for one core."""
    pictures, wanted = context.options.data, dataclasses.replace(context.options.quantize, target=target)
    count, seed = pictures.calibration_images, pictures.seed
    return quantize.run(before, context.splits, count, output, wanted, context.progress, seed)


PRUNE = Step("prune", CHECKPOINT, CHECKPOINT, _prune)
FINETUNE = Step("finetune", CHECKPOINT, CHECKPOINT, _finetune)
FACTORISE = Step("factorise", CHECKPOINT, CHECKPOINT, _factorise, searched=True)
DISTIL = Step("distil", CHECKPOINT, CHECKPOINT, _distil)
FOLD = Step("fold", CHECKPOINT, CHECKPOINT, _fold, hindered=_has_no_smaller_input)
EXPORT = Step("export", CHECKPOINT, MODEL, _export)
QUANTIZE = Step("quantize", MODEL, MODEL, _quantize, integers=True)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A variant: the steps that make it out of the checkpoint, in order."""

    id: str
    title: str
    description: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        present = CHECKPOINT
        for step in self.steps:
            if step.takes != present:
                raise ValueError(f"{self.id}: {step.name} takes a {step.takes} file, found {present}")
            present = step.suffix
        if present != MODEL:
            raise ValueError(f"{self.id}: the last step must write a {MODEL} file, found {present}")

    def hindered(self, context: Context) -> str | None:
        """Why it cannot be made of the network of a context; None: it can."""
        return next(filter(None, (step.hindered(context) for step in self.steps)), None)

    @property
    def searched(self) -> bool:
        """Whether a search for a budget decides how strong it is."""
        return any(step.searched for step in self.steps)

    @property
    def integers(self) -> bool:
        """Whether it is an int8 model."""
        return any(step.integers for step in self.steps)


BASELINE = Recipe("baseline", "Baseline", "the checkpoint as it is", (EXPORT,))
COMPACT = Recipe(
    "compact",
    "Compact",
    "layers factorised and fitted in closed form, distilled, then 8-bit integers",
    (FACTORISE, DISTIL, EXPORT, QUANTIZE),
)
COMPACT_SCALED = Recipe(
    "compact-scaled",
    "Compact, smaller input",
    "smaller input; for it, layers factorised and fitted in closed form, distilled, then 8-bit integers",
    (FOLD, FACTORISE, DISTIL, EXPORT, QUANTIZE),
)
RECIPES = (
    BASELINE,
    Recipe(
        "pruned",
        "Pruned",
        "filters removed from the deeper blocks, then fine-tuned",
        (PRUNE, FINETUNE, EXPORT),
    ),
    Recipe("quantized", "Quantized", "8-bit integers instead of 32-bit floats", (EXPORT, QUANTIZE)),
    Recipe(
        "pruned-quantized",
        "Pruned, quantized",
        "filters removed, fine-tuned, then 8-bit integers",
        (PRUNE, FINETUNE, EXPORT, QUANTIZE),
    ),
    Recipe(
        "scaled",
        "Smaller input",
        "a smaller picture into the same network, not retrained",
        (FOLD, EXPORT),
    ),
    Recipe(
        "pruned-quantized-scaled",
        "All three",
        "pruned, fine-tuned, smaller input, 8-bit integers",
        (PRUNE, FINETUNE, FOLD, EXPORT, QUANTIZE),
    ),
    COMPACT,
    COMPACT_SCALED,
    Recipe(
        "compact-fp32",
        "Compact, fp32",
        "layers factorised and fitted in closed form, distilled; for boards where integers are no faster",
        (FACTORISE, DISTIL, EXPORT),
    ),
    Recipe(
        "compact-scaled-fp32",
        "Compact, smaller input, fp32",
        "smaller input; for it, layers factorised and fitted in closed form, distilled; for boards where"
        " integers are no faster",
        (FOLD, FACTORISE, DISTIL, EXPORT),
    ),
)
SEARCHED = (
    COMPACT,
    COMPACT_SCALED,
)  # the variants that a search makes for a budget; it recommends one of them


class Steps:
    """Makes the artifacts of chains of steps, each once. ``known``: artifacts that are there already."""

    def __init__(
        self, context: Context, known: Mapping[tuple[Step, ...], cache.Artifact] | None = None
    ) -> None:
        self.context = context
        self._done: dict[tuple[Step, ...], cache.Artifact] = {(): context.checkpoint, **(known or {})}

    def make(self, steps: tuple[Step, ...]) -> cache.Artifact:
        """The artifact after ``steps``; steps that already ran are not run again."""
        if steps not in self._done:
            before = self.make(steps[:-1])
            self._done[steps] = steps[-1].run(before, dataclasses.replace(self.context, steps=steps))
        return self._done[steps]

    def losses(self, steps: tuple[Step, ...]) -> tuple[StepLoss, ...]:
        """The loss of each step, as its stage measured it on held-out pictures."""
        found = []
        for k in range(1, len(steps) + 1):
            made = self.make(steps[:k])
            if made is not self.make(steps[: k - 1]):  # else the step had nothing to do
                lost = made.read(Losses).losses
                found += [StepLoss(name, **dataclasses.asdict(loss)) for name, loss in lost.items()]
        return tuple(found)

    def entry(self, recipe: Recipe) -> writer.Entry:
        """A variant with its builds for all the cores to build for."""
        made, losses = self.make(recipe.steps), self.losses(recipe.steps)
        targets, others = self._builds(recipe, made)
        steps = names(recipe.steps)
        return writer.Entry(recipe.id, recipe.title, recipe.description, steps, made, losses, targets, others)

    def _builds(
        self, recipe: Recipe, made: cache.Artifact
    ) -> tuple[tuple[str, ...], tuple[writer.Build, ...]]:
        """The cores that the recipe's own model is for (empty: those that its sidecar names, or any), and the
        builds for the others. Of a factorised network layers may be float in one of these."""
        cores, progress = self.context.options.built_for, self.context.progress
        if not recipe.integers:
            return (), builds.float_builds(recipe.id, made, cores, progress)
        exported = self.make(recipe.steps[:-1])

        def quantize_for(output: Path, target: str) -> cache.Artifact:
            return _quantized(exported, self.context, output, target)

        mixed = exported if recipe.searched else None
        by_core = self.context.options.quantize.fc_bits == AUTO_BITS
        return builds.Integers(recipe.id, made, cores, quantize_for, mixed, by_core, progress).builds()


def not_worth_it(recipe: Recipe, entry: writer.Entry, options: RecipeOptions) -> str | None:
    """Why a variant is of no use on any of the cores that were asked for. None: it is of use, it was asked
    for by name, or no cores were asked for."""
    asked = [TARGETS[name] for name in options.targets or ()]
    if not asked or options.variants or recipe == BASELINE or entry.info.precision != "fp32":
        return None
    if all(target.ram_bytes and entry.model.path.stat().st_size > target.ram_bytes / 2 for target in asked):
        return (
            f"its weights alone are more than half the memory of {', '.join(target.name for target in asked)}"
        )
    has_integer_twin = any(other.steps == (*recipe.steps, QUANTIZE) for other in RECIPES)
    if all(target.dot_product for target in asked) and recipe.searched and has_integer_twin:
        return f"int8 is smaller and faster on {', '.join(target.name for target in asked)}"
    return None


def chosen_recipes(options: RecipeOptions) -> tuple[Recipe, ...]:
    """The recipes that are asked for, and always the baseline, which is the first.

    Raises:
        OptionsError: a name is no variant, or a budget is given without the variants that are searched.
    """
    wanted, known = options.variants, [recipe.id for recipe in RECIPES]
    if options.budget.asked and wanted is not None and not {recipe.id for recipe in SEARCHED} <= set(wanted):
        raise OptionsError(
            "a search for a budget recommends compact or compact-scaled; name both in --variants, or leave"
            " --variants out"
        )
    if unknown := [name for name in wanted or () if name not in known]:
        raise OptionsError(f"there is no variant {unknown[0]!r}; expected some of {', '.join(known)}")
    return tuple(recipe for recipe in RECIPES if wanted is None or recipe.id in (*wanted, BASELINE.id))
