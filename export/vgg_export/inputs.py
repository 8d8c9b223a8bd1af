"""Reads the inputs of a command: the checkpoint, the pictures, models and bundles. Checks whether a
checkpoint understands its pictures."""

import contextlib
import dataclasses
import logging
from pathlib import Path

from vgg_runtime.board import device
from vgg_runtime.bundle import builds, manifest
from vgg_runtime.bundle.manifest import MadeWith, Manifest
from vgg_runtime.bundle.session import Model
from vgg_runtime.records import Record

from .bundle import evaluate
from .core import cache, devices
from .core.errors import DataError, OptionsError
from .core.files import explain_write_errors, work_folder
from .core.progress import Progress
from .data import sanity, tensors, wordnet
from .data.splits import Item, Splits, class_folders, ensure_there, resolve, unseen
from .data.trials import Settled
from .graphs.model_info import Described, described
from .network import checkpoint as checkpoints
from .network import input_size, weights
from .network.provenance import FILE, PICTURES, Origins, Provenance
from .options import (
    AUTO,
    DataOptions,
    InputOptions,
    RecipeOptions,
    RunOptions,
    WeightsOptions,
    default_targets,
)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sizes(Record):
    """The number of weights and biases, and of multiply-accumulates per inference."""

    parameters: int
    macs: int


# the weights' fingerprint is among its options; so its source is only the code that writes checkpoints
CHOSEN = cache.Stage("input", checkpoints.__name__, Sizes)
WEIGHTS = cache.Stage("weights", checkpoints.__name__, Sizes)


@dataclasses.dataclass(frozen=True)
class Given:
    """The checkpoint as a file, the three sets of pictures, WordNet ids if there are any, and the result of
    the check whether the checkpoint understands the pictures."""

    checkpoint: cache.Artifact
    splits: Splits
    class_ids: tuple[str, ...] | None
    checked: sanity.Checked


def read(options: RecipeOptions, how: RunOptions) -> Given:
    """Read the inputs of ``vgg-export all`` and ``sweep``.

    Raises:
        AccuracyError: the checkpoint does not understand the pictures.
    """
    folder, progress = how.work_folder, how.progress
    saved = checkpoint_file(options.weights, options.data, folder, progress)
    if options.scaled_px is not None:  # an impossible request fails before anything takes time
        input_size.smaller_px(checkpoints.read_header(saved.path).chain, options.scaled_px)
    source, labels = source_and_labels(saved)
    ids = wordnet.ids_for(source)
    splits = resolve(options.data, source.kind, labels, ids, folder, progress)
    splits = splits.without(source.fitted_on)
    log.info(
        "%s: %d pictures to fit, %d to select, %d to test",
        splits.origin,
        len(splits.fit),
        len(splits.select),
        len(splits.test),
    )
    checked = ensure_understood(
        saved, splits, folder, progress, accept=options.accept_accuracy, told=options.weights.input
    )
    return Given(with_chosen_input(saved, checked, folder), splits, ids, checked)


def ensure_no_auto(wanted: WeightsOptions) -> None:
    """Make sure that the normalisation is not left to pictures, for work that asks none.

    Raises:
        OptionsError: it is.
    """
    if wanted.input.normalize == AUTO:
        raise OptionsError(
            "--normalize auto needs labelled pictures, and here none are asked; tell the normalisation, or"
            " leave it out"
        )


def with_chosen_input(checkpoint: cache.Artifact, checked: sanity.Checked, folder: Path) -> cache.Artifact:
    """The checkpoint with the input that labelled pictures chose; the same file where they chose none."""
    spec = checked.input
    if spec is None:
        return checkpoint

    def make(path: Path) -> Sizes:
        found = checkpoints.load(checkpoint.path)
        origins = dataclasses.replace(found.provenance.origins or Origins(), normalize=PICTURES)
        source = dataclasses.replace(found.provenance, origins=origins)
        chosen = dataclasses.replace(found.chain, input=spec.at(found.chain.input.px))
        return _save(dataclasses.replace(found, chain=chosen, provenance=source), path)

    output = folder / f"{checkpoint.path.stem}-input.safetensors"
    return cache.produce(CHOSEN, {"input": spec.to_json()}, {"checkpoint": checkpoint}, output, make)


def ensure_understood(
    checkpoint: cache.Artifact,
    splits: Splits,
    folder: Path,
    progress: Progress,
    *,
    accept: bool,
    told: InputOptions,
) -> sanity.Checked:
    """Check that a checkpoint understands labelled pictures that nothing is fitted on.

    Raises:
        AccuracyError: it does not understand them, or was clearly trained with another input, unless that is
            to be accepted.
        DataError: the pictures are to choose the input, and cannot.
    """
    header = checkpoints.read_header(checkpoint.path)
    if not header.provenance.has_knowledge:
        return sanity.Checked()

    sets, output = (splits.select, splits.test), folder / "sanity.json"
    with contextlib.ExitStack() as asked:
        subject = sanity.Subject(
            lambda: asked.enter_context(tensors.answering(checkpoints.load(checkpoint.path))),
            checkpoint,
            header.chain.input,
            header.labels,
            header.chain.output,
            _settled(header.provenance.origins, told),
        )
        return sanity.check(subject, sets, output, progress, accept=accept)


def _settled(origins: Origins | None, told: InputOptions) -> Settled:
    """The parts of the input that pictures must not overrule: those that are told, and those that the file
    says."""
    return Settled(
        told.normalization_told or (origins is not None and origins.normalize == FILE),
        told.resize is not None,
        told.normalize == AUTO,
    )


def checkpoint_file(
    wanted: WeightsOptions,
    pictures: DataOptions | None,
    folder: Path,
    progress: Progress,
    name: str = "checkpoint",
) -> cache.Artifact:
    """The checkpoint of ``--weights`` as a file in our own format: the given file, or one converted into
    ``folder``.

    Raises:
        DataError: ``pictures`` names no folder.
    """
    if pictures:
        ensure_there(pictures)
    given = Path(wanted.spec)
    as_it_is = not wanted.labels and wanted.input in (InputOptions(), InputOptions(normalize=AUTO))
    if as_it_is and wanted.spec not in weights.WORDS and weights.is_own(given):
        weights.say_what_is_assumed(checkpoints.read_header(given).provenance)
        return cache.of(given)
    with progress.task("reading the weights", None):
        checkpoint = weights.resolve(wanted, lambda: class_folders(pictures) if pictures else None)
        options = {"weights": weights.fingerprint(checkpoint), "source": checkpoint.provenance.to_json()}
        return cache.produce(
            WEIGHTS, options, {}, folder / f"{name}.safetensors", lambda path: _save(checkpoint, path)
        )


def _save(checkpoint: checkpoints.Checkpoint, path: Path) -> Sizes:
    checkpoints.save(checkpoint, path)
    return Sizes(checkpoint.chain.parameters(), checkpoint.chain.macs())


def source_and_labels(artifact: cache.Artifact) -> tuple[Provenance, tuple[str, ...]]:
    """The provenance of the weights of a checkpoint or an exported model, and its class names."""
    if artifact.path.suffix == ".onnx":
        info = artifact.read(Described).model
        return info.provenance, info.labels
    header = checkpoints.read_header(artifact.path)
    return header.provenance, header.labels


def model_file(path: Path) -> cache.Artifact:
    """An ONNX file that ``export`` or ``quantize`` wrote, with its sidecar.

    Raises:
        DataError: there is no such file, or no sidecar beside it.
    """
    if not path.is_file():
        raise DataError(
            f"there is no file {path}; expected a model that 'vgg-export export' or 'quantize' wrote"
        )
    found = cache.of(path)
    described(found, "'vgg-export export' or 'quantize'")
    return found


def splits_for(artifact: cache.Artifact, pictures: DataOptions, folder: Path, progress: Progress) -> Splits:
    """The three sets of pictures for a checkpoint or an exported model."""
    source, labels = source_and_labels(artifact)
    return resolve(pictures, source.kind, labels, wordnet.ids_for(source), folder, progress)


def ensure_machine(like: MadeWith) -> None:
    """Make sure, before anything is read, that this machine computes as the one of a run that is to be
    repeated.

    Raises:
        OptionsError: its core is another, or torch computes elsewhere.
    """
    core = default_targets()[0]
    if core != like.core:
        raise _unlike("core of this machine", core, like.core, "use such a machine")
    if like.device is not None and (at := devices.name()) != like.device:
        advice = "add --device cpu" if like.device == devices.CPU else "use a machine that has it"
        raise _unlike("device where torch computes", at, like.device, advice)


def made_with(given: Given, how: RunOptions) -> MadeWith:
    """What the run was given, for the manifest.

    Raises:
        OptionsError: it is to be like another run, and was given something else.
    """
    checkpoint, pictures = given.checkpoint.sha256, given.splits.digest()
    made = MadeWith(dict(how.typed), default_targets()[0], checkpoint, pictures, devices.name())
    if how.like is None:
        return made
    for name, here, there in (
        ("checkpoint (--weights, --labels)", checkpoint, how.like.checkpoint),
        ("pictures (--data)", pictures, how.like.pictures),
    ):
        if here != there:
            raise _unlike(name, here[:12], there[:12], "give the same")
    return dataclasses.replace(made, options=how.like.options)


def _unlike(name: str, here: str, there: str, advice: str) -> OptionsError:
    return OptionsError(
        f"--like: the {name} must be the same as in that run, {there}, found {here}; {advice}, or leave"
        " --like out"
    )


@dataclasses.dataclass(frozen=True)
class GivenBundle:
    """A finished bundle and the pictures to evaluate it on. ``subjects``: its builds, the baseline's first;
    ``work``: a folder for intermediate files."""

    manifest: Manifest
    labels: tuple[str, ...]
    items: list[Item]
    subjects: list[evaluate.Subject]
    work: Path


def read_bundle(folder: Path, pictures: DataOptions, progress: Progress) -> GivenBundle:
    """A verified bundle, and pictures that were not used to make it.

    Raises:
        DataError: the weights are random, or no pictures are left.
    """
    present = manifest.read(folder)
    ensure_there(pictures)
    manifest.verify(folder, present.all_files())
    if present.figures_absent:
        raise DataError(f"nothing to evaluate: {present.figures_absent}")
    labels = manifest.read_labels(folder, present)
    fitted = manifest.read_fitted(folder)
    work = work_folder(folder)
    items = unseen(pictures, present.weights["weights"], labels, present.class_ids, fitted, work, progress)
    subjects = [
        evaluate.Subject(
            b.id,
            cache.Artifact(folder / b.model.path, b.model.sha256, {}),
            v.preprocessing,
            b.targets,
            b.sessions[builds.FAST],
            present.output,
        )
        for v in present.variants
        for b in v.builds
    ]
    with explain_write_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    return GivenBundle(present, labels, items, subjects, work)


def ensure_bundle_understood(given: GivenBundle, progress: Progress, *, accept: bool) -> sanity.Checked:
    """Check that a bundle's baseline understands the pictures.

    Raises:
        AccuracyError: it is not clearly better than chance on them, unless that is to be accepted.
    """
    baseline = given.subjects[0]
    subject = sanity.Subject(
        lambda: Model(baseline.model.path, baseline.session, device.usable_cores()),
        baseline.model,
        baseline.preprocessing,
        given.labels,
        baseline.output,
        settled=Settled(normalization=True, resize=True),  # it was made with that
    )
    return sanity.check(subject, (given.items,), given.work / "sanity.json", progress, accept=accept)
