"""Writes the folder that is copied to the board: models, labels, samples, expected outputs, the runtime, the
manifest.

A bundle is either complete or absent: it is written beside its place, synced, and exchanged with the old one
in one step.
"""

import dataclasses
import functools
import json
import logging
import operator
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vgg_runtime
from vgg_export.core import cache, sources
from vgg_export.core.errors import DataError, OutputError
from vgg_export.core.files import explain_write_errors, folder_beside, is_unfinished, sha256, write_json
from vgg_export.core.progress import Progress
from vgg_export.data.sanity import Checked
from vgg_export.data.splits import Item, Splits, short_hash
from vgg_export.graphs import external_data
from vgg_export.graphs.model_info import Described, ModelInfo
from vgg_export.network.chain import Chain
from vgg_runtime.board import device
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle import bill, builds, self_check
from vgg_runtime.bundle import manifest as m
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model
from vgg_runtime.errors import BundleError
from vgg_runtime.result import Evaluation, StepLoss

log = logging.getLogger(__name__)

SAMPLES = 8
CHECKED_SAMPLES = 2  # replayed on the device before anything is measured
# fields of the provenance that the manifest holds elsewhere
_APART = ("notice", "figures_absent", "history", "fitted_on", "assumed")
_IGNORED = ("__pycache__", ".mypy_cache", ".DS_Store")
# what a killed 'evaluate --record' or compare.py --html leaves
_LEFT = re.compile(r"\.compare-[0-9]+\.partial")


SESSIONS = {
    # Packing its weights does not make a float kernel faster here (measured). Unpacked weights stay in the
    # file's pages.
    "fp32": {
        builds.FAST: m.SessionSettings(),
        builds.LEAN: m.SessionSettings(config={"session.disable_prepacking": "1"}),
    },
    # An int8 kernel without packed weights is 3.5 times slower.
    "int8": {builds.FAST: m.SessionSettings(), builds.LEAN: m.SessionSettings()},
}


@dataclasses.dataclass(frozen=True)
class Build:
    """One form of a variant: its model for the cores in ``targets`` (empty: any core). ``figures``: the id of
    the build whose figures on test images also hold for this one, because both compute the same."""

    id: str
    form: str
    targets: tuple[str, ...]
    model: cache.Artifact
    figures: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A variant to be bundled. ``model``: its model, made by ``export`` or ``quantize``, for the cores in
    ``targets`` (empty: those that its sidecar names, or any core). ``others``: its builds for other cores."""

    id: str
    title: str
    description: str
    steps: tuple[str, ...]
    model: cache.Artifact
    losses: tuple[StepLoss, ...] = ()
    targets: tuple[str, ...] = ()
    others: tuple[Build, ...] = ()

    @property
    def builds(self) -> tuple[Build, ...]:
        targets = self.targets or self._described.targets
        return (Build(self.id, "", targets, self.model, self.id), *self.others)

    @property
    def info(self) -> ModelInfo:
        return self._described.model

    @property
    def chain(self) -> Chain:
        return self.info.chain

    @property
    def preprocessing(self) -> InputSpec:
        return self.info.preprocessing

    @functools.cached_property
    def _described(self) -> Described:
        return self.model.read(Described)


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a bundle. ``evaluation``: figures by build, or None with the reason in
    ``evaluation_absent``. ``max_drop``: the points that a recommended variant may lose, where that was asked
    for; ``sure``: with the standard error of the loss. ``checked``: the result of the check whether the
    checkpoint understands the pictures. ``searched``: what a search for a budget chose."""

    entries: tuple[Entry, ...]
    splits: Splits
    class_ids: tuple[str, ...] | None
    evaluation: Mapping[str, Evaluation] | None
    evaluation_absent: str | None
    max_drop: float | None = None
    checked: Checked = dataclasses.field(default_factory=Checked)
    searched: m.Searched | None = None
    sure: bool = False
    made_with: m.MadeWith | None = None

    def __post_init__(self) -> None:
        ids = [entry.id for entry in self.entries]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise DataError(
                f"two models are called {twice[0]!r}; a variant is named after its file, so rename one"
            )
        first = self.entries[0]
        for entry in self.entries[1:]:
            if entry.info.labels != first.info.labels:
                raise DataError(
                    f"{entry.id} has {len(entry.info.labels)} classes, {first.id} has"
                    f" {len(first.info.labels)}, or their names differ;"
                    " the models of a bundle must have the same classes in the same order"
                )
            if entry.chain.output != first.chain.output:
                raise DataError(
                    f"the output of {entry.id} is {entry.chain.output}, that of {first.id} is"
                    f" {first.chain.output}; the models of a bundle must have the same"
                )
        self._ensure_inputs_fit()

    @property
    def network(self) -> dict[str, Any]:
        """Family, layers and number of classes of the first entry, for the manifest."""
        chain = self.entries[0].chain
        return {"family": chain.family, "layers": chain.to_json()["layers"], "classes": chain.classes}

    def _ensure_inputs_fit(self) -> None:
        """Raise where two models of one input size want pictures prepared in different ways: the device
        prepares a picture once per size."""
        first: dict[int, Entry] = {}
        for entry in self.entries:
            same_size = first.setdefault(entry.preprocessing.px, entry)
            if entry.preprocessing != same_size.preprocessing:
                raise DataError(
                    f"{entry.id} and {same_size.id} both take {entry.preprocessing.px} px, but pictures are"
                    " prepared for them in different ways (resizing, channels or normalisation); put them"
                    " into two bundles"
                )

    @property
    def target(self) -> str:
        """The cores that the int8 models were made for, as their sidecars say."""
        int8 = [build for entry in self.entries if entry.info.precision == "int8" for build in entry.builds]
        names = dict.fromkeys(name for build in int8 for name in build.targets)
        return "; ".join(f"{name} ({TARGETS[name].reason})" for name in names) or "nothing: no int8 model"

    def fitted(self) -> list[str]:
        """Short hashes of all pictures that any of the models was fitted, calibrated or selected on."""
        fitted = set(self.splits.fitted())
        for entry in self.entries:
            fitted |= {*(entry.info.calibrated_on or ()), *entry.info.provenance.fitted_on}
        return sorted(fitted)


def run(contents: Contents, output: Path, progress: Progress) -> m.Manifest:
    """Write the bundle, unless the folder already holds the same bundle undamaged.

    Raises:
        OutputError: the folder holds files that are not of a bundle, or cannot be written.
    """
    ensure_replaceable(output)
    key = _key(contents)
    if present := _same(output, key):
        log.info("bundle: up to date")
        return present
    with folder_beside(output) as folder:
        with progress.task("writing the bundle", len(contents.entries) + 3) as task:
            written = _write(folder, contents, key, task.advance)
        m.verify(folder, written.all_files())
    return written


def ensure_replaceable(output: Path) -> None:
    """Refuse to replace a folder that holds anything a bundle does not list.

    Raises:
        OutputError: the folder holds such files (the message names the first few), or cannot be written.
    """
    with explain_write_errors(output):
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(output.parent, os.W_OK):
                raise OutputError(f"{output.parent} cannot be written to; choose another --output")
            return
        if not output.is_dir():
            raise OutputError(f"{output} is a file; --output takes a folder")
        if not os.access(output, os.W_OK) or not os.access(output.parent, os.W_OK):
            raise OutputError(f"{output} cannot be written to; choose another --output")
        found = {
            p.relative_to(output).as_posix()
            for p in output.rglob("*")
            if p.is_file() and not any(part in _IGNORED for part in p.parts) and not _is_left(p.name)
        }
    if not found:
        return
    try:
        known = {
            m.FILE_NAME,
            m.REPORT_NAME,
            *m.FRONT_NAMES,
            *(entry.path for entry in m.read(output).all_files()),
        }
    except BundleError as error:
        shown = ", ".join(sorted(found)[:3])
        raise OutputError(
            f"{output} is not empty and not a readable bundle (it holds {shown}); move it away or choose"
            " another --output"
        ) from error
    if extra := sorted(found - known):
        raise OutputError(
            f"{output} holds files that are not part of the bundle and would be lost: {', '.join(extra[:5])};"
            " move them or choose another --output"
        )


def _is_left(name: str) -> bool:
    return is_unfinished(name) or _LEFT.fullmatch(name) is not None


def _key(contents: Contents) -> str:
    """The hash of everything that the bundle is made of."""
    import hashlib

    parts = [
        [(e.id, e.title, e.description, e.steps, e.info, e.losses) for e in contents.entries],
        [(b.id, b.form, b.targets, b.model.sha256, b.figures) for e in contents.entries for b in e.builds],
        contents.splits.digest(),
        [
            contents.class_ids,
            contents.target,
            dict(contents.evaluation or {}),
            contents.evaluation_absent,
            contents.max_drop,
            contents.searched,
            contents.sure,
            contents.made_with,
        ],
        dataclasses.asdict(contents.checked),
        [cache.versions(), sources.digest(__name__), *(sha256(path) for path in runtime_files())],
    ]
    content = json.dumps(parts, sort_keys=True, default=operator.methodcaller("to_json"))
    return hashlib.sha256(content.encode()).hexdigest()


def _same(output: Path, key: str) -> m.Manifest | None:
    try:
        present = m.read(output)
        if present.created_by.get("key") != key:
            return None
        m.verify(output, present.all_files())
    except BundleError:
        return None
    return present


def _write(folder: Path, contents: Contents, key: str, advance: Callable[[], None]) -> m.Manifest:
    info = contents.entries[0].info
    (folder / "labels.txt").write_text("\n".join(info.labels) + "\n", encoding="utf-8")
    samples = _write_samples(folder, contents)
    advance()
    variants = []
    for entry in contents.entries:
        variants.append(_write_model(folder, entry, contents))
        advance()
    _write_expected(folder, variants, [folder / s.file.path for s in samples[:CHECKED_SAMPLES]])
    advance()
    _write_runtime(folder / "runtime")
    write_json(folder / m.SPLITS_NAME, contents.splits.to_json() | {"fitted": contents.fitted()})
    (folder / "README.md").write_text(_readme(contents.entries), encoding="utf-8")
    locked = (folder / bill.LOCKED).read_text(encoding="utf-8")
    write_json(folder / bill.BILL_NAME, bill.of(info.chain.family, variants, locked))
    source = info.provenance
    models = {entry.path for variant in variants for build in variant.builds for entry in build.files}
    listed = {"labels.txt", "expected.npz", *models, *(s.file.path for s in samples)}
    others = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    written = m.Manifest(
        created_by=cache.versions() | {"key": key},
        family=info.chain.family,
        weights={k: v for k, v in source.to_json().items() if k not in _APART},
        notice=source.notice,
        figures_absent=source.figures_absent,
        target=contents.target,
        labels=_entry(folder, "labels.txt"),
        class_ids=contents.class_ids,
        expected=_entry(folder, "expected.npz"),
        samples=tuple(samples),
        variants=tuple(variants),
        files=tuple(_entry(folder, path) for path in others if path not in listed),
        max_drop=contents.max_drop,
        assumed=source.assumed,
        unchecked=contents.checked.unchecked,
        problem=contents.checked.problem,
        output=info.chain.output,
        network=contents.network,
        searched=contents.searched,
        sure=contents.sure,
        made_with=contents.made_with,
    )
    write_json(folder / m.FILE_NAME, written.to_json())
    advance()
    return written


def _entry(folder: Path, path: str) -> m.FileEntry:
    return m.FileEntry(path, sha256(folder / path), (folder / path).stat().st_size)


def _write_model(folder: Path, entry: Entry, contents: Contents) -> m.Variant:
    (folder / "models").mkdir(exist_ok=True)
    return m.Variant(
        id=entry.id,
        title=entry.title,
        description=entry.description,
        precision=entry.info.precision,
        parameters=entry.info.parameters,
        macs=entry.info.macs,
        preprocessing=entry.preprocessing,
        steps=(
            *entry.info.provenance.history,
            *(("quantized to int8",) if entry.info.precision == "int8" else ()),
        ),
        builds=tuple(_write_builds(folder, entry, contents)),
        losses=entry.losses,
    )


def _write_builds(folder: Path, entry: Entry, contents: Contents) -> Iterator[m.Build]:
    """The builds of a variant. Their graphs share a file of weights where these are the same."""
    known: list[external_data.Weights] = []
    for build in entry.builds:
        graph = folder / f"models/{build.id}.onnx"
        written = external_data.write(build.model.path, graph, known)
        known.append(written)
        yield m.Build(
            id=build.id,
            form=build.form,
            targets=build.targets,
            model=_entry(folder, graph.relative_to(folder).as_posix()),
            weights=_entry(folder, written.path.relative_to(folder).as_posix()),
            sessions=SESSIONS[entry.info.precision],
            evaluation=contents.evaluation[build.figures] if contents.evaluation else None,
            evaluation_absent=contents.evaluation_absent,
        )


def _write_samples(folder: Path, contents: Contents) -> list[m.Sample]:
    """Copy sample pictures for the device, of as many classes as possible. They are from the test set, else
    from the selection set, else from the fitting set."""
    (folder / "samples").mkdir()
    samples = []
    splits, fitted = contents.splits, set(contents.fitted())
    for number, item in enumerate(_varied(splits.test or splits.select or splits.fit), 1):
        name = f"samples/{number:02d}-{_plain(item.path.stem)}{item.path.suffix.lower()}"
        shutil.copyfile(item.path, folder / name)
        samples.append(m.Sample(_entry(folder, name), item.label, short_hash(item.sha256) in fitted))
    return samples


def _varied(items: Sequence[Item]) -> list[Item]:
    seen: set[int | None] = set()
    first: list[Item] = []
    others: list[Item] = []
    for item in items:
        (others if item.label in seen and item.label is not None else first).append(item)
        seen.add(item.label)
    return [*first, *others][:SAMPLES]


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:40]


def _write_expected(folder: Path, variants: Sequence[m.Variant], pictures: Sequence[Path]) -> None:
    """Write inputs and logits for the device's self-check. They are computed here with onnxruntime, one
    picture at a time."""
    if not pictures:
        raise DataError("a bundle needs at least one sample picture for its self-check")
    arrays = {}
    for variant in variants:
        inputs = np.stack([load(picture, variant.preprocessing) for picture in pictures])
        arrays[self_check.input_key(variant.preprocessing.px)] = inputs
        for build in variant.builds:
            session = Model(
                folder / build.model.path, builds.session_here(build, builds.FAST), device.usable_cores()
            )
            arrays[self_check.logits_key(build.id)] = np.concatenate(
                [session(inputs[k : k + 1]) for k in range(len(inputs))]
            )
    np.savez_compressed(folder / "expected.npz", **arrays)  # type: ignore[arg-type]


LAUNCHER = (
    *("compare.py", "classify.py", "_start.py"),
    *("requirements.txt", "requirements-locked.txt", "requirements-web.txt", "requirements-mqtt.txt"),
)


def runtime_folder() -> Path:
    """The folder of the launcher and the device's requirements: beside the package in a checkout, inside it
    in a wheel."""
    package = Path(vgg_runtime.__file__).parent
    return next(
        folder for folder in (package / "launcher", package.parent) if (folder / "compare.py").is_file()
    )


def _write_runtime(folder: Path) -> None:
    (folder / "vgg_runtime").mkdir(parents=True)
    package = Path(vgg_runtime.__file__).parent
    for path in runtime_files():
        inside = path.is_relative_to(package) and path.parent != package / "launcher"
        place = folder / ("vgg_runtime" / path.relative_to(package) if inside else path.name)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)


def runtime_files() -> list[Path]:
    """The files of the runtime that go to the device."""
    package = Path(vgg_runtime.__file__).parent
    launcher = [runtime_folder() / name for name in LAUNCHER]
    own = (path for path in sorted(package.rglob("*")) if path.suffix in (".py", ".html", ".typed"))
    return [*(path for path in own if path.parent != package / "launcher"), *launcher]


def _readme(entries: Sequence[Entry]) -> str:
    names = ", ".join(f"`{e.id}`" for e in entries)
    return (
        "# A VGG in several sizes, to be compared on this board\n\n"
        "    python3 -m venv venv && venv/bin/pip install -r runtime/requirements.txt\n"
        "    venv/bin/python runtime/compare.py\n"
        "    venv/bin/python runtime/classify.py photo.jpg folder/\n\n"
        "The first compares all variants and says which to use; the second uses it, and in a script"
        " `from vgg_runtime import Classifier`\n"
        "with `PYTHONPATH=runtime` does. `compare.py --live` classifies a camera, `compare.py --ship app`"
        " writes a folder with one model.\n"
        "Needs 64-bit Linux and Python 3.11 or newer; `--doctor` says what this board lacks, `--image"
        " FILE` classifies your own picture,\n"
        "`--help` lists the rest.\n"
        "As a page: `venv/bin/pip install -r runtime/requirements-web.txt`, then `venv/bin/python"
        " runtime/compare.py --serve`.\n"
        f"`{m.REPORT_NAME}`, if it is here, shows what the computer that made this folder measured; its"
        " times are not this board's.\n"
        f"Variants: {names}. What each is, and what it lost, is in `manifest.json`.\n"
    )
