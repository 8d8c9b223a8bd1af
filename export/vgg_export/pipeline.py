"""Runs the stages of ``vgg-export all``, ``sweep``, ``bundle`` and ``evaluate``. A variant is a list of
steps; steps that variants share run once."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.manifest import Manifest
from vgg_runtime.result import Evaluation

from . import inputs
from .bundle import evaluate, writer
from .core.errors import DataError, NothingToGainError, OptionsError, OtherInputError
from .core.files import exclusive, exclusive_output, work_folder, write_json
from .core.progress import Progress
from .data import wordnet
from .data.splits import ensure_there
from .graphs.model_info import Described
from .options import Budget, DataOptions, RecipeOptions, RunOptions, SweepOptions
from .recipes import BASELINE, RECIPES, Context, Recipe, Steps, chosen_recipes, names, not_worth_it
from .search import pareto, points, search, within_budget

log = logging.getLogger(__name__)


def run(options: RecipeOptions, how: RunOptions) -> Manifest:
    """Make a bundle from the weights."""
    recipes = chosen_recipes(options)
    writer.ensure_replaceable(how.output)
    with exclusive_output(how.output), exclusive(how.work_folder):
        return _run(recipes, options, how)


def _run(recipes: Sequence[Recipe], options: RecipeOptions, how: RunOptions) -> Manifest:
    if how.like:
        inputs.ensure_machine(how.like)
    given, outcome = inputs.read(options, how), None
    made_with = inputs.made_with(given, how)
    context = _context(given, options, how)
    _ensure_possible(recipes, context)
    if options.budget.asked:
        outcome = within_budget.found_for(context)
    everything = Steps(context)
    entries = _entries(recipes, context, outcome.maker if outcome else lambda _: everything)
    figures, absent = _evaluate(entries, context)
    contents = writer.Contents(
        tuple(entries),
        given.splits,
        given.class_ids,
        figures,
        absent,
        options.budget.max_drop,
        given.checked,
        within_budget.for_the_board(outcome.found, entries) if outcome else None,
        options.budget.sure,
        made_with,
    )
    made_bundle = writer.run(contents, how.output, how.progress)
    if outcome:
        found = within_budget.with_test_figures(outcome.found, entries, figures, options.budget)
        found = within_budget.unless_problem(given.checked, found)
        pareto.write(how.output, found, options.budget)
        log.info("%s", found.reason)
    return made_bundle


def _ensure_possible(recipes: Sequence[Recipe], context: Context) -> None:
    """Make sure that the network can have the variants that are asked for by name.

    Raises:
        OptionsError: it cannot have one of them.
    """
    for recipe in recipes if context.options.variants else ():
        if reason := recipe.hindered(context):
            raise OptionsError(f"--variants: {recipe.id} cannot be made: {reason}")


def _context(given: inputs.Given, options: RecipeOptions, how: RunOptions) -> Context:
    work = how.work_folder
    return Context(given.checkpoint, given.splits, options, how.progress, work, work)


def _entries(
    recipes: Sequence[Recipe], context: Context, maker: Callable[[Recipe], Steps]
) -> list[writer.Entry]:
    """The variants that are worth it. ``maker``: what makes each of them."""
    options, entries = context.options, []
    for recipe in recipes:
        log.info("variant %s: %s", recipe.id, " -> ".join(names(recipe.steps)))
        try:
            if reason := recipe.hindered(context):
                raise NothingToGainError(reason)
            entry = maker(recipe).entry(recipe)
        except NothingToGainError as error:
            # it was asked for by name; a search asks for both compact variants, and finds an input for one
            if options.variants and not isinstance(error, OtherInputError):
                raise
            log.warning("%s is left out: %s", recipe.id, error)
            continue
        if reason := not_worth_it(recipe, entry, options):
            log.info("%s is left out: %s", recipe.id, reason)
            continue
        entries.append(entry)
    return entries


def run_sweep(options: RecipeOptions, wanted: SweepOptions, how: RunOptions) -> points.Found:
    """Make every point of the sweep, and write the front as files to ``how.output``."""
    with exclusive(how.work_folder):
        given = inputs.read(options, how)
        with within_budget.opened(_context(given, options, how), ("select", "test")) as tried:
            found = within_budget.unless_problem(given.checked, search.sweep(tried, wanted))
    pareto.write(how.output, found, Budget(wanted.max_drop))
    return found


def bundle_files(models: Sequence[Path], pictures: DataOptions, output: Path, progress: Progress) -> Manifest:
    """Make a bundle of model files without evaluating it. Each variant is named after its file."""
    ensure_there(pictures)
    artifacts = [inputs.model_file(path) for path in models]
    source, _ = inputs.source_and_labels(artifacts[0])
    known = {recipe.id: recipe for recipe in RECIPES}
    entries = []
    for artifact in artifacts:
        name = artifact.path.stem
        steps = artifact.read(Described).model.provenance.history
        if recipe := known.get(name):
            entry = writer.Entry(name, recipe.title, recipe.description, names(recipe.steps), artifact)
        else:
            entry = writer.Entry(name, name, "; ".join(steps) or BASELINE.description, (), artifact)
        entries.append(entry)
    splits = inputs.splits_for(artifacts[0], pictures, work_folder(output), progress)
    absent = source.figures_absent or "not evaluated; run 'vgg-export evaluate --record'"
    return writer.run(
        writer.Contents(tuple(entries), splits, wordnet.ids_for(source), None, absent), output, progress
    )


ALONE = "this bundle holds one variant: agreement and KL are those with itself"


def evaluate_bundle(
    folder: Path, pictures: DataOptions, progress: Progress, *, record: bool, accept: bool = False
) -> tuple[dict[str, Evaluation], int, tuple[str, ...], str]:
    """Evaluate a bundle's variants on pictures that were not used to make it. ``record`` writes the figures
    into its manifest.

    Returns:
        The figures by build, the number of pictures, notices that belong to the figures, and the kind of
        output, one of ``outputs.OUTPUTS``.

    Raises:
        DataError: the weights are random, or no pictures are left.
        AccuracyError: the baseline is not clearly better than chance on them, unless that is to be
            ``accept``-ed.
    """
    with exclusive_output(folder), exclusive(work_folder(folder)):
        return _evaluate_bundle(folder, pictures, progress, record=record, accept=accept)


def _evaluate_bundle(
    folder: Path, pictures: DataOptions, progress: Progress, *, record: bool, accept: bool
) -> tuple[dict[str, Evaluation], int, tuple[str, ...], str]:
    given = inputs.read_bundle(folder, pictures, progress)
    present = given.manifest
    alone = len(present.variants) == 1
    if record and alone:
        raise DataError(
            "this bundle holds one variant, so there is nothing to compare it with, and its recorded figures"
            " stay; leave --record out"
        )
    checked = inputs.ensure_bundle_understood(given, progress, accept=accept)
    figures = evaluate.evaluate(given.subjects, given.items, given.work, progress)
    if record:
        variants = tuple(_with_figures(v, figures) for v in present.variants)
        # so that 'all' writes its own figures again
        made_by = present.created_by | {"key": "evaluated later"}
        changed = dataclasses.replace(
            present,
            variants=variants,
            created_by=made_by,
            unchecked=checked.unchecked,
            problem=checked.problem,
        )
        write_json(folder / manifest.FILE_NAME, changed.to_json())
    return (
        figures,
        len(given.items),
        tuple(filter(None, (present.notice, checked.unchecked, checked.problem, ALONE if alone else None))),
        present.output,
    )


def _with_figures(variant: manifest.Variant, figures: Mapping[str, Evaluation]) -> manifest.Variant:
    evaluated = tuple(
        dataclasses.replace(b, evaluation=figures[b.id], evaluation_absent=None) for b in variant.builds
    )
    return dataclasses.replace(variant, builds=evaluated)


def _evaluate(
    entries: list[writer.Entry], context: Context
) -> tuple[dict[str, Evaluation] | None, str | None]:
    """The figures by build, or None and the reason why there are none."""
    splits = context.splits
    absent = entries[0].info.provenance.figures_absent or (
        None if splits.test else splits.note or "there are no test pictures"
    )
    if absent:
        log.info("not evaluated: %s", absent)
        return None, absent
    subjects = [
        evaluate.Subject(b.id, b.model, e.preprocessing, b.targets, output=e.chain.output)
        for e in entries
        for b in e.builds
        if b.id == b.figures
    ]
    output = context.folder / "evaluation.json"
    made = evaluate.run(subjects, splits.test, output, context.progress)
    return made.read(evaluate.Evaluated).figures, None
