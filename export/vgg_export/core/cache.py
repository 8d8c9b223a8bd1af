"""Keeps the artifacts of stages: a file, its JSON sidecar, and the decision whether it is up to date.

The key of an artifact is a hash of its content: the stage's options, the hashes of the files it read and the
records of these, the versions of the libraries, and the source of the stage. File times do not matter.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import importlib.metadata
import json
import logging
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import vgg_runtime
from vgg_runtime.records import FieldError, Record

from . import sources
from .errors import DataError, VggExportError
from .files import atomic_file, explain_write_errors, sha256, write_json

log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")

_DAMAGED = (FieldError, VggExportError)  # a plan says itself what is wrong with it

R = TypeVar("R", bound=Record)


@dataclasses.dataclass(frozen=True)
class Stage(Generic[R]):
    """A kind of work. ``module``: the module that does it; results depend on its source and imports.
    ``measured``: the record of what it measures."""

    name: str
    module: str
    measured: type[R]


@dataclasses.dataclass(frozen=True)
class Nothing(Record):
    """The record of a stage that measures nothing."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished file and its hash. ``sidecar``: what was recorded when the file was made."""

    path: Path
    sha256: str
    sidecar: dict[str, Any]

    @property
    def measured(self) -> dict[str, Any]:
        """What the stage measured, as JSON; ``read`` gives it as a record."""
        measured: dict[str, Any] = self.sidecar.get("measured", {})
        return measured

    def read(self, record: type[R]) -> R:
        """What was measured, as the stage's record or as a record of some of its fields.

        Raises:
            DataError: the sidecar is missing or damaged, or holds another record.
        """
        try:
            return record.from_json(self.measured, "measured")
        except _DAMAGED as error:
            raise DataError(
                f"{sidecar_path(self.path)} is missing or damaged ({error}); make {self.path.name} again"
            ) from error


def sidecar_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def of(path: Path) -> Artifact:
    """An existing file as an input, with its sidecar if it has one."""
    return Artifact(path, sha256(path), _read(sidecar_path(path)) or {})


def produce(
    stage: Stage[R],
    options: dict[str, Any],
    inputs: dict[str, Artifact],
    output: Path,
    make: Callable[[Path], R],
) -> Artifact:
    """Make ``output`` unless it is up to date.

    Args:
        make: writes the artifact to the path it is given and returns what it measured.
    """
    if done := current(stage, options, inputs, output):
        log.info("%s: up to date", stage.name)
        return done
    start = time.perf_counter()
    with atomic_file(output) as temporary:
        sidecar_path(output).unlink(missing_ok=True)
        measured = make(temporary)
        digest, size = sha256(temporary), temporary.stat().st_size
    sidecar = {
        "stage": stage.name,
        "key": _key(stage, options, inputs),
        "options": options,
        "inputs": {name: artifact.sha256 for name, artifact in inputs.items()},
        "output": {"sha256": digest, "bytes": size},
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 2),
        "measured": measured.to_json(),
    }
    write_json(sidecar_path(output), sidecar)
    # through JSON, as the next run will read it, because keys depend on it
    return Artifact(output, digest, json.loads(json.dumps(sidecar)))


@contextlib.contextmanager
def unfinished(
    stage: Stage[R], options: dict[str, Any], inputs: dict[str, Artifact], output: Path
) -> Iterator[Path]:
    """A folder beside ``output`` for its finished parts. When the block ends well the folder is removed.
    Otherwise it stays, so that the next attempt with the same key continues from it. Folders of attempts with
    other keys are removed."""
    folder = output.with_name(f".{output.name}.{_key(stage, options, inputs)[:16]}.parts")
    with explain_write_errors(folder):
        for left in output.parent.glob(f".{glob.escape(output.name)}.*.parts"):
            if left != folder:
                shutil.rmtree(left)
        folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)


def current(
    stage: Stage[R], options: dict[str, Any], inputs: dict[str, Artifact], output: Path
) -> Artifact | None:
    """``output`` if it was made from the same options and inputs and not changed since, else None."""
    sidecar = _read(sidecar_path(output))
    if not sidecar or sidecar.get("key") != _key(stage, options, inputs) or not output.is_file():
        return None
    try:
        stage.measured.from_json(sidecar["measured"])
        if sha256(output) != sidecar["output"]["sha256"]:
            return None
    except (*_DAMAGED, KeyError, TypeError):
        return None
    return Artifact(output, sidecar["output"]["sha256"], sidecar)


def _key(stage: Stage[R], options: dict[str, Any], inputs: dict[str, Artifact]) -> str:
    # The records of the inputs are part of the key: class names, for example, are only in the sidecar of an
    # ONNX file, and a stage passes them on.
    hashes = {name: [artifact.sha256, artifact.measured] for name, artifact in inputs.items()}
    return hashlib.sha256(
        json.dumps(
            [stage.name, options, hashes, versions(), sources.digest(stage.module)], sort_keys=True
        ).encode()
    ).hexdigest()


def seconds_spent(folder: Path) -> float:
    """The seconds that making the artifacts of a folder took, whoever made them; 0 where there are none."""
    found = (_read(path) for path in folder.glob("*.json"))
    seconds = [sidecar.get("seconds") for sidecar in found if sidecar]
    return float(sum(one for one in seconds if isinstance(one, int | float) and 0 <= one < math.inf))


def digest(module: str, *of: object) -> str:
    """A name for what ``module`` computes from JSON values: it changes with these, with the module's source
    and imports and with the versions of the libraries."""
    said = json.dumps([of, versions(), sources.digest(module)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # without a readable sidecar the work is done again
    return data if isinstance(data, dict) else None


@functools.cache
def versions() -> dict[str, str]:
    """The versions of this program, Python and the libraries that compute a result."""
    found = {"vgg-export": vgg_runtime.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
