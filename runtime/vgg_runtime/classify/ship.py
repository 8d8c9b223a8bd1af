"""Writes a folder that classifies and does nothing else: one model, its class names and its self-check, and
the runtime."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vgg_runtime.bundle import bill, self_check
from vgg_runtime.bundle import manifest as m
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.errors import BundleError, RuntimeInputError
from vgg_runtime.output import remove_abandoned, temporary_folder
from vgg_runtime.text import in_bytes

_BUILT_FOR = re.compile(r"^wheels/.*-cp3(\d+)-cp3\d+-\w+?_(aarch64|x86_64)\.whl$")
RUNTIME = "runtime/"
NEEDED = "runtime/classify.py"  # and the requirements with hashes, which came with it
ZIP = ".zip"
FOUND_IN_A_ZIP = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # the date of every file in it, so that the same content is the same file


@dataclasses.dataclass(frozen=True)
class Shipped:
    """What was written: ``path`` is a folder or a zip file, ``bytes`` the size of the folder (unpacked),
    ``model_bytes`` that of the model in it, ``packed_bytes`` that of the zip file; None: it is a folder.
    ``made_for``: the cores that the model was made for; empty: any."""

    path: Path
    variant: str
    bytes: int
    model_bytes: int
    packed_bytes: int | None = None
    made_for: tuple[str, ...] = ()


def in_words(shipped: Shipped) -> str:
    """What was written, in one line."""
    packed = "" if shipped.packed_bytes is None else f" in a file of {in_bytes(shipped.packed_bytes)}"
    return (
        f"{shipped.path}: variant {shipped.variant}, made for {', '.join(shipped.made_for) or 'any core'},"
        f" {in_bytes(shipped.bytes)}{packed}, of which the model"
        f" takes {in_bytes(shipped.model_bytes)}; run classify.py in its folder runtime"
    )


def ship(
    bundle: Bundle, variant: m.Variant, output: Path, extra: Mapping[str, Path] | None = None
) -> Shipped:
    """Write one variant, in the build that comes first, to a folder, or to a zip file where ``output`` ends
    in ``.zip``.

    Args:
        extra: further files, by their path in the folder.

    Raises:
        BundleError: a file of the bundle is damaged, or the bundle's runtime cannot classify alone.
        RuntimeInputError: ``output`` exists and is not empty, or cannot be written.
    """
    runtime = [entry for entry in bundle.manifest.files if entry.path.startswith(RUNTIME)]
    if NEEDED not in [entry.path for entry in runtime]:
        raise BundleError(
            f"the runtime of this bundle has no {NEEDED}: an older vgg-export made it; make it again"
        )
    splits = m.splits_entry(bundle.manifest)
    bundle.check([bundle.manifest.labels, bundle.manifest.expected, splits, *variant.build.files, *runtime])
    _ensure_free(output)
    with _written_beside(output) as folder:
        for entry in (bundle.manifest.labels, *variant.build.files, *runtime):
            _copy(bundle.folder / entry.path, folder / entry.path)
        for path, source in (extra or {}).items():
            _copy(source, folder / path)
        alone = dataclasses.replace(variant, builds=(variant.build,))
        materials = bill.of(bundle.manifest.family, [alone], _locked(bundle.folder))
        (folder / bill.BILL_NAME).write_text(json.dumps(materials, indent=1) + "\n", encoding="utf-8")
        _write_expected(bundle, variant, folder)
        fitted = sorted(m.read_fitted(bundle.folder))
        (folder / m.SPLITS_NAME).write_text(json.dumps({"fitted": fitted}), encoding="utf-8")
        (folder / "README.md").write_text(_readme(bundle, variant, extra or {}), encoding="utf-8")
        described = _manifest(bundle.manifest, variant, folder)
        (folder / m.FILE_NAME).write_text(json.dumps(described.to_json(), indent=1), encoding="utf-8")
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        packed = _zipped(folder) if output.suffix == ZIP else None
    return Shipped(output, variant.id, total, variant.build.bytes, packed, variant.build.targets)


def _locked(folder: Path) -> str:
    """The requirements with versions; empty in a bundle of an older vgg-export."""
    path = folder / bill.LOCKED
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _ensure_free(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise RuntimeInputError(f"there is no folder {output.absolute().parent} to write {output.name} into")
    if output.is_dir() and output.suffix != ZIP and not any(output.iterdir()):
        return
    if output.exists():
        raise RuntimeInputError(f"{output} exists already; remove it, or choose another place")


@contextlib.contextmanager
def _written_beside(output: Path) -> Iterator[Path]:
    """A new folder; what it holds, or the zip file beside it, takes the place of ``output`` when the block
    ends well."""
    output = output.absolute()
    remove_abandoned(output.parent, prefix := f".{output.name}.shipping-")
    try:
        with temporary_folder(f"{prefix}{os.getpid()}.", output.parent) as new:
            folder = new / "app"
            folder.mkdir()
            yield folder
            for path in folder.parent.rglob("*"):  # a board that loses power keeps it whole or not at all
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            (folder.with_suffix(ZIP) if output.suffix == ZIP else folder).replace(output)
    except OSError as error:
        raise RuntimeInputError(
            f"{output} cannot be written ({error.strerror or error}); choose another place"
        ) from error


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_expected(bundle: Bundle, variant: m.Variant, folder: Path) -> None:
    """The recorded inputs and logits of this build alone."""
    px, build = variant.preprocessing.px, variant.build.id
    inputs, logits = self_check.load_expected(bundle.folder / bundle.manifest.expected.path, build, px)
    arrays = {self_check.input_key(px): inputs, self_check.logits_key(build): logits}
    np.savez_compressed(folder / bundle.manifest.expected.path, **arrays)  # type: ignore[arg-type]


def _manifest(whole: m.Manifest, variant: m.Variant, folder: Path) -> m.Manifest:
    """The manifest of the folder: one variant in one build, no samples."""
    models = {entry.path for entry in variant.build.files}
    listed = {whole.labels.path, whole.expected.path, *models}
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    searched = whole.searched if whole.searched and whole.searched.variant == variant.id else None
    return dataclasses.replace(
        whole,
        expected=_entry(folder, whole.expected.path),
        samples=(),
        variants=(dataclasses.replace(variant, builds=(variant.build,)),),
        files=tuple(_entry(folder, path) for path in paths if path not in listed),
        searched=searched,
    )


def _entry(folder: Path, path: str) -> m.FileEntry:
    content = (folder / path).read_bytes()
    return m.FileEntry(path, hashlib.sha256(content).hexdigest(), len(content))


def _readme(bundle: Bundle, variant: m.Variant, extra: Mapping[str, Path]) -> str:
    packed = next(filter(None, map(_BUILT_FOR.search, extra)), None)  # one of the packages says for what
    wheels = "--no-index -f wheels " if packed else ""
    needs = "64-bit Linux and Python 3.11 to 3.13 (newer ones: requirements.txt, without hashes)"
    if packed:
        needs = f"Python 3.{packed[1]} on 64-bit Linux ({packed[2]}); for others leave out `{wheels.strip()}`"
    cores = ", ".join(variant.build.targets) or "any core"
    return (
        f"# {bundle.manifest.family}, variant {variant.id}, {len(bundle.labels)} classes\n\n"
        f"    python3 -m venv venv && venv/bin/pip install {wheels}-r {bill.LOCKED}\n"
        "    venv/bin/python runtime/classify.py photo.jpg folder/ --json\n\n"
        f"Made for {cores}; {in_bytes(variant.build.bytes)}, {variant.preprocessing.px} px."
        f" Needs {needs}.\n"
        "In a script, with `PYTHONPATH=runtime`:\n\n"
        '    from vgg_runtime import Classifier\n    Classifier(".").classify("photo.jpg")\n'
    )


def _zipped(folder: Path) -> int:
    """Pack a folder into a zip file beside it; returns its size in bytes."""
    path = folder.with_suffix(ZIP)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), FOUND_IN_A_ZIP)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            info.file_size = file.stat().st_size
            with file.open("rb") as source, packed.open(info, "w") as place:
                shutil.copyfileobj(source, place)
    return path.stat().st_size
