"""The bundle's manifest: its keys and its version exist here and nowhere else. ``vgg_export.bundle.writer``
writes with these classes, the device reads with them.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Self

from vgg_runtime.errors import BundleError
from vgg_runtime.records import FieldError
from vgg_runtime.result import Evaluation, StepLoss

from .preprocess import Preprocessing

FORMAT = "vgg-export-bundle"
SCHEMA = 2  # 2: variants have builds, weights lie beside the graphs
FILE_NAME = "manifest.json"
SPLITS_NAME = "splits.json"
REPORT_NAME = "report.html"  # written after the bundle, by its own runtime; not listed in the manifest
# likewise, where a budget was searched for
FRONT_NAMES = ("front.json", "front.csv", "front.svg", "front.png")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: path relative to the bundle with forward slashes, sha256 as hex, size in
    bytes."""

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in self.path or ":" in self.path:
            raise BundleError(
                f"the manifest names {self.path!r}, which is not inside the bundle; do not use this bundle"
            )


@dataclasses.dataclass(frozen=True)
class SessionSettings:
    """What the variant asks of onnxruntime: memory arena, and config entries by name."""

    arena: bool = True
    config: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Build:
    """One form of a variant, for the cores in ``targets`` (empty: any). ``model`` is the graph and
    ``weights`` the file beside it that holds its large tensors, which several builds may share (None: all are
    in the graph). ``sessions``: what is asked of onnxruntime to be ``fast`` and to be ``lean`` with memory.
    ``evaluation`` holds what was measured at build time on test images; where nothing could be it is None,
    and ``evaluation_absent`` says why.
    """

    id: str
    form: str
    targets: tuple[str, ...]
    model: FileEntry
    weights: FileEntry | None
    sessions: dict[str, SessionSettings]
    evaluation: Evaluation | None = None
    evaluation_absent: str | None = None

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return (self.model,) if self.weights is None else (self.model, self.weights)

    @property
    def bytes(self) -> int:
        """Of all that is loaded."""
        return sum(entry.bytes for entry in self.files)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture that travels with the bundle; ``label`` is a class index, None when unknown. ``fitted``:
    something was calibrated or trained on it, so that no figure may come from it."""

    file: FileEntry
    label: int | None
    fitted: bool


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model of the bundle, in one or more builds; the one that is used comes first (``for_core`` puts it
    there).

    ``losses``: what each step lost on held-out pictures while it was made, in order.
    """

    id: str
    title: str
    description: str
    precision: str
    parameters: int
    macs: int
    preprocessing: Preprocessing
    steps: tuple[str, ...]
    builds: tuple[Build, ...]
    losses: tuple[StepLoss, ...] = ()

    @property
    def build(self) -> Build:
        return self.builds[0]

    def using(self, build: Build) -> Self:
        """The variant with one of its builds in front."""
        return dataclasses.replace(
            self, builds=(build, *(other for other in self.builds if other is not build))
        )


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The whole bundle.

    ``weights`` says where the checkpoint came from. ``notice`` must be shown with every table.
    ``figures_absent`` is the reason why accuracy and agreement mean nothing for these weights (random ones),
    else None. ``class_ids`` are WordNet ids or None. ``assumed``: what the checkpoint's file does not say,
    and is taken to be so (normalisation, activations, …). ``unchecked``: why it was not asked whether the
    checkpoint understands the pictures; ``problem``: that it does not, which was accepted, so that nothing is
    recommended. Both are to be shown like ``notice``.
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
    # points that a recommended variant may lose, where the bundle was made for a budget
    max_drop: float | None = None
    assumed: tuple[str, ...] = ()
    unchecked: str | None = None
    problem: str | None = None

    def variant(self, wanted: str) -> Variant:
        for variant in self.variants:
            if variant.id == wanted:
                return variant
        raise BundleError(
            f"there is no variant {wanted!r}; this bundle has {', '.join(v.id for v in self.variants)}"
        )

    def chosen(self, wanted: str) -> list[Variant]:
        """The variants that a list such as "baseline,quantized" names, each once.

        Raises:
            BundleError: it names none, or one that is not there.
        """
        names = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
        if not names:
            raise BundleError(
                f"--variants names none; this bundle has {', '.join(v.id for v in self.variants)}"
            )
        return [self.variant(name) for name in names]

    def all_files(self) -> list[FileEntry]:
        models = [entry for v in self.variants for build in v.builds for entry in build.files]
        every = [self.labels, self.expected, *models, *(s.file for s in self.samples), *self.files]
        return list(dict.fromkeys(every))  # builds may share their weights

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json, sealed."""
        return seal({"format": FORMAT, "schema": SCHEMA, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = {k: v for k, v in data.items() if k in {f.name for f in dataclasses.fields(cls)}}
        fields["labels"] = FileEntry(**data["labels"])
        fields["expected"] = FileEntry(**data["expected"])
        fields["class_ids"] = None if data["class_ids"] is None else tuple(data["class_ids"])
        fields["samples"] = tuple(
            Sample(FileEntry(**s["file"]), s["label"], s["fitted"]) for s in data["samples"]
        )
        fields["variants"] = tuple(_variant(v, f"variants[{k}]") for k, v in enumerate(data["variants"]))
        fields["assumed"] = tuple(data.get("assumed", ()))
        fields["files"] = tuple(FileEntry(**f) for f in data["files"])
        return cls(**fields)


def _variant(data: dict[str, Any], path: str) -> Variant:
    losses = enumerate(data.get("losses", ()))
    parsed = {
        "preprocessing": Preprocessing.from_json(data["preprocessing"], f"{path}.preprocessing"),
        "steps": tuple(data["steps"]),
        "builds": tuple(_build(one, f"{path}.builds[{k}]") for k, one in enumerate(data["builds"])),
        "losses": tuple(StepLoss.from_json(one, f"{path}.losses[{k}]") for k, one in losses),
    }
    return Variant(**{**data, **parsed})


def _build(data: dict[str, Any], path: str) -> Build:
    evaluation = data.get("evaluation")
    parsed = {
        "targets": tuple(data["targets"]),
        "model": FileEntry(**data["model"]),
        "weights": None if data["weights"] is None else FileEntry(**data["weights"]),
        "sessions": {mode: SessionSettings(**settings) for mode, settings in data["sessions"].items()},
        "evaluation": None if evaluation is None else Evaluation.from_json(evaluation, f"{path}.evaluation"),
    }
    return Build(**{**data, **parsed})


def seal(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with the hash of everything else in it under ``sha256``, so that a damaged manifest is noticed
    as a damaged model is."""
    # OpenSSL takes 4 MB, which would count as a variant's: its process imports this module and hashes nothing
    import hashlib

    rest = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True)
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read(folder: Path) -> Manifest:
    """The manifest of the bundle in ``folder``.

    Raises:
        BundleError: no bundle there, not readable, damaged, or written by a newer vgg-export.
    """
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"there is no bundle in {folder} (no {FILE_NAME}); make one with 'vgg-export all' or name it"
            " with --bundle"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy the bundle again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f"{path} is not a {FORMAT}; name the folder that 'vgg-export all' wrote")
    schema = data.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise BundleError(
            f"{path} has schema {schema}; this runtime reads up to {SCHEMA}: use the bundle's own"
            " runtime/compare.py"
        )
    if schema < SCHEMA:
        raise BundleError(
            f"{path} has schema {schema}, this runtime reads {SCHEMA}: use the bundle's own"
            " runtime/compare.py, or make it again"
        )
    if data.get("sha256") != seal(data)["sha256"]:
        raise BundleError(
            f"{path} differs from what was written (its own sha256 does not fit); copy the bundle again"
        )
    try:
        return Manifest.from_json(data)
    except FieldError as error:
        raise BundleError(f"{path} is damaged ({error}); copy the bundle again") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is damaged ({error!r}); copy the bundle again") from error


def verify(
    folder: Path, entries: Iterable[FileEntry], on_file: Callable[[FileEntry], None] | None = None
) -> None:
    """Compare size and sha256 of files with the manifest.

    Raises:
        BundleError: the first file that is missing or differs.
    """
    import hashlib

    for entry in entries:
        if on_file:
            on_file(entry)
        path = folder / entry.path
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}); copy the bundle again") from error
        if digest != entry.sha256:
            size = path.stat().st_size
            raise BundleError(
                f"{path} differs from the manifest ({size} bytes, expected {entry.bytes};"
                f" sha256 {digest[:12]}…, expected {entry.sha256[:12]}…); copy the bundle again"
            )


def read_fitted(folder: Path) -> frozenset[str]:
    """Short hashes (16 hex digits) of the pictures and sources that the bundle's models were fitted to,
    calibrated or selected on."""
    try:
        return frozenset(json.loads((folder / SPLITS_NAME).read_text(encoding="utf-8"))["fitted"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder / SPLITS_NAME} cannot be read ({error!r}); copy the bundle again"
        ) from error


def splits_entry(manifest: Manifest) -> FileEntry:
    """The entry of splits.json."""
    for entry in manifest.files:
        if entry.path == SPLITS_NAME:
            return entry
    raise BundleError(f"the manifest does not list {SPLITS_NAME}; copy the bundle again")


def read_labels(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Class names, in the order of the logits."""
    try:
        return tuple((folder / manifest.labels.path).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{folder / manifest.labels.path} cannot be read ({error}); copy the bundle again"
        ) from error
