"""The order of the stages for ``vgg-export all``. A variant is a list of steps; steps that variants share are done once."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vgg_runtime import manifest
from vgg_runtime.manifest import Manifest

from . import bundle, data, evaluate, factorise, finetune, fold, model, prune, quantize, stage, to_onnx, weights
from .errors import DataError, OptionsError
from .options import AllOptions, DataOptions, WeightsOptions
from .progress import Progress
from .storage import exclusive, explain_write_errors, write_json

log = logging.getLogger(__name__)


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
        "layers factorised and fitted in closed form, classifier distilled, smaller input, 8-bit integers",
        ("factorise", "distil", "fold", "export", "quantize"),
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
        "layers factorised and fitted in closed form, classifier distilled, smaller input; for boards where integers are no faster",
        ("factorise", "distil", "fold", "export"),
    ),
)


class Steps:
    """What each step name of a recipe does to the artifact of the step before."""

    def __init__(self, checkpoint: stage.Artifact, splits: data.Splits, options: AllOptions, progress: Progress) -> None:
        self.checkpoint, self.splits, self.options, self.progress = checkpoint, splits, options, progress
        self._done: dict[tuple[str, ...], stage.Artifact] = {(): checkpoint}

    def make(self, steps: tuple[str, ...]) -> stage.Artifact:
        """The artifact after ``steps``; beginnings that were made before are not made again."""
        if steps not in self._done:
            before = self.make(steps[:-1])
            perform: Callable[[stage.Artifact, Path], stage.Artifact] = getattr(self, f"_{steps[-1]}")
            suffix = ".onnx" if {"export", "quantize"} & set(steps) else ".safetensors"
            self._done[steps] = perform(before, self.options.work_folder / ("checkpoint+" + "+".join(steps) + suffix))
        return self._done[steps]

    def _prune(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        return prune.run(before, self.splits, output, self.options.prune, self.progress)

    def _finetune(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        return finetune.run(before, self.checkpoint, self.splits, output, self.options.finetune, self.progress)

    def _factorise(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        return factorise.run(before, self.splits, output, self.options.factorise, self.progress)

    def _distil(self, before: stage.Artifact, output: Path) -> stage.Artifact:
        """Level by level, as long as each helps; what the last one left is the artifact."""
        for name, level in self.options.distil.levels().items():
            made = output.with_name(f"{output.stem}-{name}{output.suffix}")
            before = finetune.run(before, self.checkpoint, self.splits, made, level, self.progress)
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


def run(options: AllOptions, progress: Progress) -> Manifest:
    """Everything from the weights to the bundle."""
    recipes = chosen_recipes(options.variants)
    bundle.ensure_replaceable(options.output)
    with exclusive(options.work_folder):
        return _run(recipes, options, progress)


def _run(recipes: Sequence[Recipe], options: AllOptions, progress: Progress) -> Manifest:
    checkpoint, splits, ids = prepare(options, progress)
    steps = Steps(checkpoint, splits, options, progress)
    entries = []
    for recipe in recipes:
        log.info("variant %s: %s", recipe.id, " -> ".join(recipe.steps))
        entries.append(bundle.Entry(recipe.id, recipe.title, recipe.description, recipe.steps, steps.make(recipe.steps)))
    figures, absent = _evaluate(entries, splits, options, progress)
    contents = bundle.Contents(tuple(entries), splits, ids, figures, absent)
    return bundle.run(contents, options.output, progress)


def chosen_recipes(wanted: Sequence[str] | None) -> tuple[Recipe, ...]:
    """The recipes of these names, the baseline first and always.

    Raises:
        OptionsError: a name that is no variant.
    """
    known = [recipe.id for recipe in RECIPES]
    if unknown := [name for name in wanted or () if name not in known]:
        raise OptionsError(f"there is no variant {unknown[0]!r}; expected some of {', '.join(known)}")
    return tuple(recipe for recipe in RECIPES if wanted is None or recipe.id in (*wanted, RECIPES[0].id))


def prepare(options: AllOptions, progress: Progress) -> tuple[stage.Artifact, data.Splits, tuple[str, ...] | None]:
    """The checkpoint as a file in the work folder, the three sets of pictures, and WordNet ids if there are any."""
    saved = checkpoint_file(options.weights, options.data, options.work_folder, progress)
    checkpoint_source, labels = _source_and_labels(saved)
    ids = data.ids_for(checkpoint_source)
    splits = data.resolve(options.data, checkpoint_source["weights"], labels, ids, options.work_folder, progress)
    log.info("%s: %d pictures to fit, %d to select, %d to test", splits.origin, len(splits.fit), len(splits.select), len(splits.test))
    return saved, splits, ids


def checkpoint_file(
    wanted: WeightsOptions, pictures: DataOptions | None, folder: Path, progress: Progress, name: str = "checkpoint"
) -> stage.Artifact:
    """``--weights`` as a checkpoint file in our own format: as it is, or converted into ``folder``."""
    given = Path(wanted.spec)
    if given.suffix == ".safetensors" and given.is_file() and not wanted.labels and model.is_checkpoint(given):
        return stage.of(given)
    with progress.task("reading the weights", None):
        checkpoint = weights.resolve(wanted, data.class_folders(pictures) if pictures else None)
        options = {"weights": weights.fingerprint(checkpoint), "source": checkpoint.source}
        return stage.produce("weights", options, {}, folder / f"{name}.safetensors", lambda path: _save(checkpoint, path))


def _source_and_labels(artifact: stage.Artifact) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Where a checkpoint's or an exported model's weights came from, and its class names."""
    if artifact.path.suffix == ".onnx":
        info = artifact.measured["model"]
        return info["source"], tuple(info["labels"])
    checkpoint = model.load(artifact.path)
    return checkpoint.source, checkpoint.labels


def model_file(path: Path) -> stage.Artifact:
    """An ONNX file that ``export`` or ``quantize`` wrote, with its sidecar.

    Raises:
        DataError: no such file, or no sidecar beside it.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; expected a model that 'vgg-export export' or 'quantize' wrote")
    found = stage.of(path)
    if "model" not in found.measured:
        raise DataError(
            f"{path} has no sidecar {stage.sidecar_path(path).name}; expected a model that 'vgg-export export' or 'quantize' wrote"
        )
    return found


def splits_for(artifact: stage.Artifact, pictures: DataOptions, folder: Path, progress: Progress) -> data.Splits:
    """The three sets of pictures for a checkpoint or an exported model."""
    source, labels = _source_and_labels(artifact)
    return data.resolve(pictures, source["weights"], labels, data.ids_for(source), folder, progress)


def at_input_px(checkpoint: stage.Artifact, input_px: int, folder: Path, progress: Progress) -> stage.Artifact:
    """The checkpoint for another input size; itself when it already is."""
    if model.load(checkpoint.path).plan.input_px == input_px:
        return checkpoint
    return fold.run(checkpoint, folder / f"{checkpoint.path.stem}-{input_px}px.safetensors", input_px, progress)


def bundle_files(models: Sequence[Path], pictures: DataOptions, output: Path, progress: Progress) -> Manifest:
    """A bundle of model files, each named after its file; not evaluated."""
    artifacts = [model_file(path) for path in models]
    source, _ = _source_and_labels(artifacts[0])
    known = {recipe.id: recipe for recipe in RECIPES}
    entries = []
    for artifact in artifacts:
        name = artifact.path.stem
        steps = tuple(artifact.measured["model"]["source"].get("history", ()))
        recipe = known.get(name) or Recipe(name, name, "; ".join(steps) or "the checkpoint as it is", ())
        entries.append(bundle.Entry(name, recipe.title, recipe.description, recipe.steps, artifact))
    splits = splits_for(artifacts[0], pictures, output.parent / f".{output.name}.work", progress)
    absent = source.get("figures_absent") or "not evaluated; run 'vgg-export evaluate --record'"
    return bundle.run(bundle.Contents(tuple(entries), splits, data.ids_for(source), None, absent), output, progress)


def evaluate_bundle(folder: Path, pictures: DataOptions, progress: Progress, *, record: bool) -> tuple[dict[str, Any], int, str | None]:
    """Figures of a bundle's variants on pictures it was not made with; how many, and the bundle's notice; ``record``
    writes them into its manifest.

    Raises:
        DataError: random weights, or no pictures are left.
    """
    present = manifest.read(folder)
    manifest.verify(folder, present.all_files())
    if present.figures_absent:
        raise DataError(f"nothing to evaluate: {present.figures_absent}")
    labels = manifest.read_labels(folder, present)
    fitted = manifest.read_fitted(folder)
    work = folder.resolve().parent / f".{folder.resolve().name}.work"
    items = data.unseen(pictures, present.weights["weights"], labels, present.class_ids, fitted, work, progress)
    subjects = [
        evaluate.Subject(v.id, stage.Artifact(folder / v.model.path, v.model.sha256, {}), v.preprocessing, v.session)
        for v in present.variants
    ]
    with explain_write_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    figures = evaluate.evaluate(subjects, items, work, progress)
    if record:
        variants = tuple(dataclasses.replace(v, evaluation=figures[v.id], evaluation_absent=None) for v in present.variants)
        made_by = present.created_by | {"key": "evaluated later"}  # so that 'all' writes its own figures again
        write_json(folder / manifest.FILE_NAME, dataclasses.replace(present, variants=variants, created_by=made_by).to_json())
    return figures, len(items), present.notice


def _save(checkpoint: model.Checkpoint, path: Path) -> dict[str, object]:
    model.save(checkpoint, path)
    return {"parameters": checkpoint.plan.parameters(), "macs": checkpoint.plan.macs()}


def _evaluate(
    entries: list[bundle.Entry], splits: data.Splits, options: AllOptions, progress: Progress
) -> tuple[dict[str, object] | None, str | None]:
    """Figures by variant, or None and the reason."""
    absent = entries[0].info["source"].get("figures_absent") or (None if splits.test else splits.note or "there are no test pictures")
    if absent:
        log.info("not evaluated: %s", absent)
        return None, absent
    subjects = [evaluate.Subject(e.id, e.model, e.preprocessing) for e in entries]
    return evaluate.run(subjects, splits.test, options.work_folder / "evaluation.json", progress).measured, None
