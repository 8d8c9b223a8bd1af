"""The manifest of a bundle. Its keys and its version are defined only here: ``vgg_export.bundle.writer``
writes it with these classes, and the device reads it with them.
"""

import dataclasses
import json
import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Self

from vgg_runtime.errors import BundleError
from vgg_runtime.records import FieldError, Record, parse, text_of
from vgg_runtime.records import read as read_as
from vgg_runtime.result import Evaluation, Loss, StepLoss

from .input_spec import InputSpec
from .outputs import OUTPUTS, SOFTMAX
from .self_check import TOLERANCE

FORMAT = "vgg-export-bundle"
# 2: variants have builds, weights lie beside the graphs; 3: kinds of output, inputs of one or three channels
SCHEMA = 3
OLDEST_SCHEMA = 2  # that is read
ADDED = ("output", "network", "searched", "sure", "made_with")  # keys that no manifest in schema 2 has
FILE_NAME = "manifest.json"
MODES = frozenset(("fast", "lean"))  # of memory: a session for each
# in the names of those of onnxruntime's settings that make it read or write files, also outside the bundle
_OF_FILES = ("file", "path", "folder", "library")
PLACE = "FILE"  # in MadeWith, for a file or folder of the user's: its content counts, not its name
SPLITS_NAME = "splits.json"
REPORT_NAME = "report.html"  # written after the bundle, by its own runtime; not listed in the manifest
# likewise not listed; written where a budget was searched for
FRONT_NAMES = ("front.json", "front.csv", "front.svg", "front.png", "front.html")


@dataclasses.dataclass(frozen=True)
class FileEntry(Record):
    """A file of the bundle: path relative to the bundle with forward slashes, sha256 as hex, size in
    bytes."""

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        parts, absolute = PurePosixPath(self.path).parts, self.path.startswith("/")  # also "//", a root too
        if not parts or absolute or ".." in parts or "\\" in self.path or ":" in self.path:
            raise BundleError(
                f"the manifest names {self.path!r}, which is not inside the bundle; do not use this bundle"
            )
        if not self.path.isprintable():
            raise FieldError("path", "a name without control characters", self.path)
        if self.bytes < 0:
            raise FieldError("bytes", "a number of bytes", self.bytes)


@dataclasses.dataclass(frozen=True)
class SessionSettings(Record):
    """The settings of an onnxruntime session: memory arena, and config entries by name."""

    arena: bool = True
    config: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Build(Record):
    """One form of a variant, for the cores in ``targets`` (empty: any core).

    ``model`` is the graph. ``weights`` is the file beside it with its large tensors, which several builds may
    share; None when they are in the graph. ``sessions`` are the settings of onnxruntime by memory mode,
    ``fast`` and ``lean``. ``evaluation`` has the figures on test images from build time; when it is None,
    ``evaluation_absent`` says why.
    """

    id: str
    form: str
    targets: tuple[str, ...]
    model: FileEntry
    weights: FileEntry | None
    sessions: dict[str, SessionSettings]
    evaluation: Evaluation | None = None
    evaluation_absent: str | None = None

    def __post_init__(self) -> None:
        if not self.id.isprintable() or not self.id.strip(".") or {"/", "\\"} & set(self.id):
            raise FieldError("id", "a name that a file can have", self.id)
        if not self.sessions.keys() >= MODES:
            raise FieldError("sessions", f"entries {' and '.join(sorted(MODES))}", sorted(self.sessions))
        if self.weights and PurePosixPath(self.weights.path).parent != PurePosixPath(self.model.path).parent:
            raise FieldError("weights.path", "a file beside the model", self.weights.path)
        for mode, session in self.sessions.items():
            for key in session.config:
                if any(word in key.lower() for word in _OF_FILES):
                    raise FieldError(f"sessions.{mode}.config", "no setting that names files", key)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return (self.model,) if self.weights is None else (self.model, self.weights)

    @property
    def bytes(self) -> int:
        """The size in bytes of all files that are loaded."""
        return sum(entry.bytes for entry in self.files)


@dataclasses.dataclass(frozen=True)
class Sample(Record):
    """A sample picture of the bundle. ``label`` is a class index, None when unknown. ``fitted``: models were
    calibrated or trained on it, so it must count for no figure."""

    file: FileEntry
    label: int | None
    fitted: bool


@dataclasses.dataclass(frozen=True)
class Variant(Record):
    """One model of the bundle, in one or more builds. The first build is the one that is used; ``for_core``
    puts it there.

    ``losses``: the loss of each step in making it, on held-out pictures, in order.
    """

    id: str
    title: str
    description: str
    precision: str
    parameters: int
    macs: int
    preprocessing: InputSpec
    steps: tuple[str, ...]
    builds: tuple[Build, ...]
    losses: tuple[StepLoss, ...] = ()

    def __post_init__(self) -> None:
        if not self.builds:
            raise FieldError("builds", "at least one", [])
        if self.precision not in TOLERANCE:
            raise FieldError("precision", f"one of {', '.join(TOLERANCE)}", self.precision)

    @property
    def build(self) -> Build:
        return self.builds[0]

    def using(self, build: Build) -> Self:
        """The variant with one of its builds in front."""
        return dataclasses.replace(
            self, builds=(build, *(other for other in self.builds if other is not build))
        )


@dataclasses.dataclass(frozen=True)
class Searched(Record):
    """The ``variant`` that a search chose, what it ``lost`` on the selection pictures, by which it was
    chosen, and the variants that the search ``judged`` on them."""

    variant: str
    lost: Loss
    judged: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MadeWith(Record):
    """What a run was given, so that ``--like`` can repeat it. ``options``: what was typed, by option, with
    files and folders as PLACE; ``core``: of the machine; ``checkpoint`` and ``pictures``: hashes of what was
    read; ``device``: "cpu" or the name of the CUDA device where torch computed in the run that wrote the
    manifest, of several processes the first one's; None in older bundles."""

    options: dict[str, Any]
    core: str
    checkpoint: str
    pictures: str
    device: str | None = None


@dataclasses.dataclass(frozen=True)
class Manifest(Record):
    """The whole bundle.

    ``schema`` is that of the file that it was read from: the copy of the runtime in that bundle may know no
    other. ``output`` is one of ``outputs.OUTPUTS``. ``network`` describes the network: its family, layers and
    classes, as the exporter says them.

    ``weights`` says where the checkpoint came from. ``class_ids`` are WordNet ids or None. ``assumed``: what
    the checkpoint's file does not say and was assumed (normalisation, activations, …).

    Four texts must be shown with every table: ``notice``; ``figures_absent``, why accuracy and agreement mean
    nothing for these weights (random ones); ``unchecked``, why it was not checked whether the checkpoint
    understands the pictures; ``problem``, that it does not. The user accepted a ``problem``, and nothing is
    recommended then. Each is None where it does not apply.

    ``searched``: what a search for a budget chose; None where there was none, and in older bundles.
    ``made_with``: what ``vgg-export all`` was given; None in bundles that it did not make, and in older ones.
    """

    created_by: dict[str, str]
    family: str
    weights: dict[str, Any]
    notice: str | None
    figures_absent: str | None
    target: str
    labels: FileEntry
    class_ids: tuple[str, ...] | None
    expected: FileEntry
    samples: tuple[Sample, ...]
    variants: tuple[Variant, ...]
    files: tuple[FileEntry, ...]  # everything else: runtime copy, README, splits
    # points of loss that a recommended variant may have, where the bundle was made for a budget
    max_drop: float | None = None
    assumed: tuple[str, ...] = ()
    unchecked: str | None = None
    problem: str | None = None
    output: str = SOFTMAX
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    searched: Searched | None = None
    # a loss counts with its standard error when a variant is recommended
    sure: bool = False
    made_with: MadeWith | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise FieldError("output", f"one of {', '.join(OUTPUTS)}", self.output)
        if not self.variants:
            raise FieldError("variants", "at least one", [])
        ids = [variant.id for variant in self.variants]
        if twice := next((name for name in ids if ids.count(name) > 1), None):
            raise FieldError("variants", "each id once", twice)
        if self.searched and self.searched.variant not in ids:
            raise FieldError("searched.variant", f"one of {', '.join(ids)}", self.searched.variant)

    @property
    def notices(self) -> list[str]:
        """The notices that must be shown with every answer."""
        return list(filter(None, (self.notice, self.figures_absent, self.unchecked, self.problem)))

    def variant(self, wanted: str) -> Variant:
        """The variant of this name, in whichever form of Unicode it is typed.

        Raises:
            BundleError: the bundle has no such variant.
        """
        for variant in self.variants:
            if unicodedata.normalize("NFC", variant.id) == unicodedata.normalize("NFC", wanted):
                return variant
        raise BundleError(
            f"there is no variant {wanted!r}; this bundle has {', '.join(v.id for v in self.variants)}"
        )

    def chosen(self, wanted: str) -> list[Variant]:
        """The variants that a list such as "baseline,quantized" names, each once.

        Raises:
            BundleError: the list is empty, or the bundle has no such variant.
        """
        names = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
        if not names:
            raise BundleError(
                f"--variants names no variant; this bundle has {', '.join(v.id for v in self.variants)}"
            )
        return [self.variant(name) for name in names]

    def all_files(self) -> list[FileEntry]:
        models = [entry for v in self.variants for build in v.builds for entry in build.files]
        every = [self.labels, self.expected, *models, *(s.file for s in self.samples), *self.files]
        return list(dict.fromkeys(every))  # builds may share their weights

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json in its ``schema``, with its own sha256."""
        fields = super().to_json()
        return seal({"format": FORMAT, **(_in_schema_2(fields) if self.schema == 2 else fields)})


def _in_schema_2(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a manifest as the older runtime in its bundle reads them."""
    variants = []
    for variant in fields["variants"]:
        spec = variant["preprocessing"]
        older = {"resize_px": spec["resize_px"], "crop_px": spec["px"], "mean": spec["mean"]}
        variants.append(variant | {"preprocessing": older | {"std": spec["std"]}})
    kept = {name: value for name, value in fields.items() if name not in ADDED}
    return kept | {"variants": variants}


def seal(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with the hash of all its other entries under ``sha256``, so that a damaged manifest is
    detected."""
    # imported here: a variant's process imports this module and hashes nothing; OpenSSL would add 4 MB to
    # its memory
    import hashlib

    rest = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True)
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read(folder: Path) -> Manifest:
    """Read the manifest of the bundle in ``folder``.

    Raises:
        BundleError: there is no bundle, or it cannot be read, is damaged, or has another schema.
    """
    path = folder / FILE_NAME
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{path} is a folder, a pipe or a device, not a file; copy the bundle again")
        data = parse(text_of(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"there is no bundle in {folder} (no {FILE_NAME}); make one with 'vgg-export all', or name"
            " its folder with --bundle"
        ) from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy the bundle again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f"{path} is not a {FORMAT}; name the folder that 'vgg-export all' wrote")
    schema = data.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise BundleError(
            f"{path} has schema {schema}; this runtime reads up to {SCHEMA}: use the bundle's own"
            " runtime/compare.py"
        )
    if schema < OLDEST_SCHEMA:
        raise BundleError(
            f"{path} has schema {schema}; this runtime reads {OLDEST_SCHEMA} to {SCHEMA}: use the bundle's"
            " own runtime/compare.py, or make the bundle again"
        )
    if data.get("sha256") != seal(data)["sha256"]:
        raise BundleError(
            f"{path} has changed since it was written (its own sha256 does not match); copy the bundle again"
        )
    try:
        return Manifest.from_json(data)
    except FieldError as error:
        raise BundleError(f"{path} is damaged ({error}); copy the bundle again") from error


def verify(
    folder: Path, entries: Iterable[FileEntry], on_file: Callable[[FileEntry], None] | None = None
) -> None:
    """Compare the size and the sha256 of files with the manifest; ``on_file`` is called before each.

    Raises:
        BundleError: a file cannot be read, differs or is a link out of the bundle; the first one is named.
    """
    import hashlib

    for entry in entries:
        if on_file:
            on_file(entry)
        path = folder / entry.path
        try:
            ensure_file_inside(folder, path)
            with path.open("rb") as file:
                size, digest = os.fstat(file.fileno()).st_size, ""
                if size == entry.bytes:  # else it may be without end, or nearly so
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}); copy the bundle again") from error
        if digest != entry.sha256:
            hashes = f"; sha256 {digest[:12]}…, expected {entry.sha256[:12]}…" if digest else ""
            raise BundleError(
                f"{path} differs from the manifest ({size} bytes, expected {entry.bytes}{hashes});"
                " copy the bundle again"
            )


def ensure_file_inside(folder: Path, path: Path) -> None:
    """Make sure that ``path`` in the bundle ``folder`` is a file, where it is there, and no link out of it.

    Raises:
        BundleError: it is a folder, a pipe or a device, or a link leads it out of the bundle.
    """
    if path.exists() and not path.is_file():
        raise BundleError(f"{path} is a folder, a pipe or a device, not a file; copy the bundle again")
    # links within the bundle are fine: its files are all listed; realpath raises for no loop of links
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise BundleError(f"{path} is a link that leads out of the bundle; do not use this bundle")


def read_fitted(folder: Path) -> frozenset[str]:
    """Short hashes (16 hex digits) of the pictures and sources on which the bundle's models were fitted,
    calibrated or selected.

    Raises:
        BundleError: splits.json cannot be read.
    """
    try:
        fitted = parse(text_of(folder / SPLITS_NAME))["fitted"]
        return frozenset(read_as(tuple[str, ...], fitted, "fitted"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder / SPLITS_NAME} cannot be read ({error!r}); copy the bundle again"
        ) from error


def splits_entry(manifest: Manifest) -> FileEntry:
    """The entry of splits.json.

    Raises:
        BundleError: the manifest does not list it.
    """
    for entry in manifest.files:
        if entry.path == SPLITS_NAME:
            return entry
    raise BundleError(f"the manifest does not list {SPLITS_NAME}; copy the bundle again")


def read_labels(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Class names, in the order of the logits.

    Raises:
        BundleError: their file cannot be read, is empty, or names fewer or more classes than the manifest
            speaks of.
    """
    path = folder / manifest.labels.path
    try:
        found = tuple(text_of(path).splitlines())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy the bundle again") from error
    ids, spoken_of = manifest.class_ids, [s.label for s in manifest.samples if s.label is not None]
    if not found or (ids and len(ids) != len(found)) or not all(0 <= k < len(found) for k in spoken_of):
        raise BundleError(
            f"{path} has {len(found)} class names, which are not those of the manifest; copy the bundle again"
        )
    return found
