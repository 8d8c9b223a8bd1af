"""The order of the stages for ``vgg-export all``. A variant is a list of steps; steps that variants share are
done once."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vgg_runtime.board import device
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle import builds, manifest
from vgg_runtime.bundle.manifest import Manifest
from vgg_runtime.bundle.metrics import loss_error_points
from vgg_runtime.bundle.preprocess import for_input
from vgg_runtime.bundle.session import Model

from .bundle import evaluate, writer
from .core import cache
from .core.errors import DataError, NothingToGainError, OptionsError
from .core.files import exclusive, explain_write_errors, write_json
from .core.progress import Progress
from .core.records import Record
from .data import sanity, wordnet
from .data.splits import Splits, class_folders, resolve, unseen
from .graphs.model_info import Described, described
from .network import checkpoint as checkpoints
from .network import input_size, weights
from .network.provenance import Provenance
from .options import AllOptions, DataOptions, SweepOptions, WeightsOptions
from .recipes import RECIPES, Recipe, Steps, chosen_recipes
from .search import pareto, search

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sizes(Record):
    """Weights and biases, and multiply-accumulates of one inference."""

    parameters: int
    macs: int


# what it is made of is among its options; the rest is how a checkpoint is written
WEIGHTS = cache.Stage("weights", checkpoints.__name__, Sizes)


def run(options: AllOptions, progress: Progress) -> Manifest:
    """Everything from the weights to the bundle."""
    recipes = chosen_recipes(options.variants)
    writer.ensure_replaceable(options.output)
    with exclusive(options.work_folder):
        return _run(recipes, options, progress)


def _run(recipes: Sequence[Recipe], options: AllOptions, progress: Progress) -> Manifest:
    checkpoint, splits, ids, checked = prepare(options, progress)
    steps = compact = Steps(checkpoint, splits, options, progress)
    found = None
    if options.budget.asked:
        found, within = _search(checkpoint, splits, options, progress)
        compact = Steps(checkpoint, splits, within, progress, options.work_folder)
    entries = []
    for recipe in recipes:
        log.info("variant %s: %s", recipe.id, " -> ".join(recipe.steps))
        maker = compact if "factorise" in recipe.steps else steps
        try:
            entry = maker.entry(recipe)
        except NothingToGainError as error:
            if options.variants:  # it was asked for by name
                raise
            log.warning("%s is left out: %s", recipe.id, error)
            continue
        if reason := not_worth_it(entry, options):
            log.info("%s is left out: %s", recipe.id, reason)
            continue
        entries.append(entry)
    figures, absent = _evaluate(entries, splits, options, progress)
    contents = writer.Contents(tuple(entries), splits, ids, figures, absent, options.budget.max_drop, checked)
    made_bundle = writer.run(contents, options.output, progress)
    if found:
        found = _unless(checked, _with_test_figures(found, entries, figures, options.budget.max_drop))
        pareto.write(options.output, found)
        log.info("%s", found.reason)
    return made_bundle


def _search(
    checkpoint: cache.Artifact, splits: Splits, options: AllOptions, progress: Progress
) -> tuple[search.Found, AllOptions]:
    """The points tried within the budget, and the options that make the compact variants the recommended
    ones.

    Raises:
        OptionsError: there are too few pictures for what is allowed.
    """
    allowed, n = options.budget.max_drop, len(splits.select)
    if allowed is not None and n and (least := loss_error_points(0, 0, n)) > allowed:
        raise OptionsError(
            f"a loss of at most {allowed:g} points cannot be shown with {n} selection pictures, on which"
            " no loss at all"
            f" is one of 0 ± {least:.2g}; allow more, or give more pictures (class folders in val/)"
        )
    with _search_in(checkpoint, splits, options, ("select",), progress) as tried:
        found = search.run(tried)
        return found, tried.at(found.rung)


@contextlib.contextmanager
def _search_in(
    checkpoint: cache.Artifact,
    splits: Splits,
    options: AllOptions,
    sets: Sequence[str],
    progress: Progress,
) -> Iterator[search.Search]:
    """What a search needs, for as long as it takes.

    Raises:
        OptionsError: these weights have no accuracy to lose, or there are no pictures to choose with.
    """
    if absent := _source_and_labels(checkpoint)[0].figures_absent:
        raise OptionsError(f"points of accuracy cannot be counted: {absent}")
    if not splits.select:
        raise OptionsError(
            "a budget needs pictures that nothing is fitted on to choose with; give more than a dozen with"
            " --data"
        )
    baseline = Steps(checkpoint, splits, options, progress).make(("export",))
    judge = search.Judge(
        baseline, {name: getattr(splits, name) for name in sets}, options.work_folder, progress
    )
    try:
        yield search.Search(checkpoint, splits, options, judge, progress)
    finally:
        judge.close()


def _with_test_figures(
    found: search.Found,
    entries: Sequence[writer.Entry],
    figures: Mapping[str, evaluate.Figures] | None,
    allowed: float | None,
) -> search.Found:
    """The points that became variants of the bundle with their figures on the test pictures, and what these
    say of the budget."""
    if not figures:
        return found
    known = {entry.model.sha256: figures[entry.id] for entry in entries}
    baseline = dataclasses.replace(found.baseline, test=known[found.baseline.sha256])
    points = tuple(dataclasses.replace(p, test=known.get(p.sha256)) for p in found.points)
    best = next((p for p in points if found.recommended and p.sha256 == found.recommended.sha256), None)
    reason = found.reason
    if best and best.test:
        name = next(entry.id for entry in entries if entry.model.sha256 == best.sha256)
        reason += (
            f"; as {name} in the bundle, on {best.test.n} test pictures"
            f" {search.lost_in_words(best, baseline, 'test')}"
        )
        if allowed is not None and search.drop(best, baseline, "test") > allowed + 1e-9:
            reason += f", which is more than the {allowed:g} allowed"
    return dataclasses.replace(found, points=points, baseline=baseline, recommended=best, reason=reason)


def _unless(checked: sanity.Checked, found: search.Found) -> search.Found:
    """Nothing is recommended of a checkpoint that does not understand its pictures."""
    if not checked.problem or found.recommended is None:
        return found
    return dataclasses.replace(found, recommended=None, reason=f"none is recommended: {checked.problem}")


def run_sweep(options: AllOptions, wanted: SweepOptions, progress: Progress) -> search.Found:
    """Every point of the sweep, and the front as files in ``options.output``."""
    with exclusive(options.work_folder):
        checkpoint, splits, _, checked = prepare(options, progress)
        with _search_in(checkpoint, splits, options, ("select", "test"), progress) as tried:
            found = _unless(checked, search.sweep(tried, wanted))
    pareto.write(options.output, found)
    return found


def prepare(
    options: AllOptions, progress: Progress
) -> tuple[cache.Artifact, Splits, tuple[str, ...] | None, sanity.Checked]:
    """The checkpoint as a file in the work folder, the three sets of pictures, WordNet ids if there are any,
    and whether the checkpoint understands the pictures.

    Raises:
        AccuracyError: it does not.
    """
    saved = checkpoint_file(options.weights, options.data, options.work_folder, progress)
    checkpoint_source, labels = _source_and_labels(saved)
    ids = wordnet.ids_for(checkpoint_source)
    splits = resolve(options.data, checkpoint_source.kind, labels, ids, options.work_folder, progress)
    splits = splits.without(checkpoint_source.fitted_on)
    log.info(
        "%s: %d pictures to fit, %d to select, %d to test",
        splits.origin,
        len(splits.fit),
        len(splits.select),
        len(splits.test),
    )
    return (
        saved,
        splits,
        ids,
        ensure_understood(saved, splits, options.work_folder, progress, accept=options.accept_accuracy),
    )


def ensure_understood(
    checkpoint: cache.Artifact, splits: Splits, folder: Path, progress: Progress, *, accept: bool
) -> sanity.Checked:
    """Ask a checkpoint about labelled pictures that nothing is fitted on.

    Raises:
        AccuracyError: it does not understand them, unless that is to be accepted.
    """
    header = checkpoints.read_header(checkpoint.path)
    if not header.provenance.has_knowledge:
        return sanity.Checked()

    def network() -> sanity.Ask:
        import torch

        layers = checkpoints.load(checkpoint.path).model().to(memory_format=torch.channels_last)

        def answer(x: sanity.Floats) -> sanity.Floats:
            with torch.inference_mode():
                return layers(torch.from_numpy(x)).numpy()  # type: ignore[no-any-return]

        return answer

    sets, output = (splits.select, splits.test), folder / "sanity.json"
    return sanity.check(
        network,
        checkpoint,
        for_input(header.plan.input_px),
        sets,
        header.labels,
        output,
        progress,
        accept=accept,
    )


def checkpoint_file(
    wanted: WeightsOptions,
    pictures: DataOptions | None,
    folder: Path,
    progress: Progress,
    name: str = "checkpoint",
) -> cache.Artifact:
    """``--weights`` as a checkpoint file in our own format: as it is, or converted into ``folder``."""
    given = Path(wanted.spec)
    if not wanted.labels and wanted.spec not in weights.WORDS and weights.is_own(given):
        weights.say_what_is_assumed(checkpoints.read_header(given).provenance)
        return cache.of(given)
    with progress.task("reading the weights", None):
        checkpoint = weights.resolve(wanted, lambda: class_folders(pictures) if pictures else None)
        options = {"weights": weights.fingerprint(checkpoint), "source": checkpoint.provenance.to_json()}
        return cache.produce(
            WEIGHTS, options, {}, folder / f"{name}.safetensors", lambda path: _save(checkpoint, path)
        )


def _source_and_labels(artifact: cache.Artifact) -> tuple[Provenance, tuple[str, ...]]:
    """Where a checkpoint's or an exported model's weights came from, and its class names."""
    if artifact.path.suffix == ".onnx":
        info = artifact.read(Described).model
        return info.provenance, info.labels
    header = checkpoints.read_header(artifact.path)
    return header.provenance, header.labels


def model_file(path: Path) -> cache.Artifact:
    """An ONNX file that ``export`` or ``quantize`` wrote, with its sidecar.

    Raises:
        DataError: no such file, or no sidecar beside it.
    """
    if not path.is_file():
        raise DataError(
            f"there is no file {path}; expected a model that 'vgg-export export' or 'quantize' wrote"
        )
    found = cache.of(path)
    if described(found) is None:
        raise DataError(
            f"{path} has no sidecar {cache.sidecar_path(path).name}; expected a model that 'vgg-export"
            " export' or 'quantize' wrote"
        )
    return found


def splits_for(artifact: cache.Artifact, pictures: DataOptions, folder: Path, progress: Progress) -> Splits:
    """The three sets of pictures for a checkpoint or an exported model."""
    source, labels = _source_and_labels(artifact)
    return resolve(pictures, source.kind, labels, wordnet.ids_for(source), folder, progress)


def at_input_px(
    checkpoint: cache.Artifact, input_px: int, folder: Path, progress: Progress
) -> cache.Artifact:
    """The checkpoint for another input size; itself when it already is."""
    if checkpoints.read_header(checkpoint.path).plan.input_px == input_px:
        return checkpoint
    return input_size.run(
        checkpoint, folder / f"{checkpoint.path.stem}-{input_px}px.safetensors", input_px, progress
    )


def bundle_files(models: Sequence[Path], pictures: DataOptions, output: Path, progress: Progress) -> Manifest:
    """A bundle of model files, each named after its file; not evaluated."""
    artifacts = [model_file(path) for path in models]
    source, _ = _source_and_labels(artifacts[0])
    known = {recipe.id: recipe for recipe in RECIPES}
    entries = []
    for artifact in artifacts:
        name = artifact.path.stem
        steps = artifact.read(Described).model.provenance.history
        recipe = known.get(name) or Recipe(name, name, "; ".join(steps) or "the checkpoint as it is", ())
        entries.append(writer.Entry(name, recipe.title, recipe.description, recipe.steps, artifact))
    splits = splits_for(artifacts[0], pictures, output.parent / f".{output.name}.work", progress)
    absent = source.figures_absent or "not evaluated; run 'vgg-export evaluate --record'"
    return writer.run(
        writer.Contents(tuple(entries), splits, wordnet.ids_for(source), None, absent), output, progress
    )


def evaluate_bundle(
    folder: Path, pictures: DataOptions, progress: Progress, *, record: bool, accept: bool = False
) -> tuple[dict[str, evaluate.Figures], int, tuple[str, ...]]:
    """Figures of a bundle's variants on pictures it was not made with; how many, and what must be said with
    them; ``record`` writes them into its manifest.

    Raises:
        DataError: random weights, or no pictures are left.
        AccuracyError: the baseline is not clearly better than chance on them, unless that is to be
            ``accept``-ed.
    """
    present = manifest.read(folder)
    manifest.verify(folder, present.all_files())
    if present.figures_absent:
        raise DataError(f"nothing to evaluate: {present.figures_absent}")
    labels = manifest.read_labels(folder, present)
    fitted = manifest.read_fitted(folder)
    work = folder.resolve().parent / f".{folder.resolve().name}.work"
    items = unseen(pictures, present.weights["weights"], labels, present.class_ids, fitted, work, progress)
    subjects = [
        evaluate.Subject(
            b.id,
            cache.Artifact(folder / b.model.path, b.model.sha256, {}),
            v.preprocessing,
            b.targets,
            b.sessions[builds.FAST],
        )
        for v in present.variants
        for b in v.builds
    ]
    with explain_write_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    baseline = subjects[0]
    checked = sanity.check(
        lambda: Model(baseline.model.path, baseline.session, device.usable_cores()),
        baseline.model,
        baseline.preprocessing,
        (items,),
        labels,
        work / "sanity.json",
        progress,
        accept=accept,
    )
    figures = evaluate.evaluate(subjects, items, work, progress)
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
    return figures, len(items), tuple(filter(None, (present.notice, checked.unchecked, checked.problem)))


def _with_figures(variant: manifest.Variant, figures: Mapping[str, evaluate.Figures]) -> manifest.Variant:
    evaluated = tuple(
        dataclasses.replace(b, evaluation=figures[b.id].to_json(), evaluation_absent=None)
        for b in variant.builds
    )
    return dataclasses.replace(variant, builds=evaluated)


def not_worth_it(entry: writer.Entry, options: AllOptions) -> str | None:
    """Why a variant that was not asked for by name is no use on any of the cores that were; None when it is,
    or none were."""
    asked = [TARGETS[name] for name in options.targets or ()]
    if not asked or options.variants or entry.id == RECIPES[0].id or entry.info.precision != "fp32":
        return None
    if all(target.ram_bytes and entry.model.path.stat().st_size > target.ram_bytes / 2 for target in asked):
        return (
            f"its weights alone are more than half the memory of {', '.join(target.name for target in asked)}"
        )
    has_integer_twin = any(recipe.steps == (*entry.steps, "quantize") for recipe in RECIPES)
    if all(target.dot_product for target in asked) and entry.id.startswith("compact") and has_integer_twin:
        return f"int8 is smaller and faster on {', '.join(target.name for target in asked)}"
    return None


def _save(checkpoint: checkpoints.Checkpoint, path: Path) -> Sizes:
    checkpoints.save(checkpoint, path)
    return Sizes(checkpoint.plan.parameters(), checkpoint.plan.macs())


def _evaluate(
    entries: list[writer.Entry], splits: Splits, options: AllOptions, progress: Progress
) -> tuple[dict[str, evaluate.Figures] | None, str | None]:
    """Figures by variant, or None and the reason."""
    absent = entries[0].info.provenance.figures_absent or (
        None if splits.test else splits.note or "there are no test pictures"
    )
    if absent:
        log.info("not evaluated: %s", absent)
        return None, absent
    subjects = [
        evaluate.Subject(b.id, b.model, e.preprocessing, b.targets)
        for e in entries
        for b in e.builds
        if b.id == b.figures
    ]
    made = evaluate.run(subjects, splits.test, options.work_folder / "evaluation.json", progress)
    return made.read(evaluate.Evaluation).figures, None
