"""Reads the weights of Keras files. Nothing outside a file is opened, and no more is read than it can
hold."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from vgg_export.core.errors import CheckpointError
from vgg_runtime.text import printable

from . import file_kinds

if TYPE_CHECKING:
    import h5py

LONGEST_CONFIG_BYTES = 64_000_000
MOST_BYTES = 2**33  # of the weights of a file
DENSEST = 1100  # how much smaller than its content compressed data can be, with deflate
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
_OLD_LAYERS = "_layer_checkpoint_dependencies"  # where TensorFlow 2.12 to 2.14 puts layers
SAVE = "save the whole model: model.save('model.keras')"

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer's weights are. ``names``: the layer and the models around it, outermost first.
    ``path``: the same as an archive (.keras) calls them, by class and number. ``old_path``: as one of
    TensorFlow 2.12 to 2.14 does, which counts a layer with weights twice."""

    names: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    old_path: tuple[str, ...] = ()


class Store:
    """The content of a Keras file: ``config`` of the model, ``version`` of Keras, and its weights.

    ``archived``: whether the weights are under paths of classes (.keras), else under names of layers (.h5).
    """

    def __init__(self, file: "h5py.File", config: Any, version: str, *, archived: bool) -> None:
        self.config, self.version, self.archived = config, printable(version, 20), archived
        self._file = file

    def weights(self, place: Place, most: int) -> list[Array]:
        """The first weights of a layer in the order in which Keras makes them; empty without any.

        Raises:
            CheckpointError: they are damaged, or link to something else.
        """
        if self.archived:
            old = _OLD_LAYERS in self._file
            within, path = (_OLD_LAYERS, place.old_path) if old else ("layers", place.path)
            group = self._group(*(part for name in path for part in (within, name)), "vars")
            count = 0 if group is None else min(len(group), most)
            return [self._numbers(group, str(k)) for k in range(count)]
        group = self._group("model_weights", *place.names[0].split("/"))
        if group is None:
            group = self._group(*place.names[0].split("/"))
        if group is None:
            return []
        names = [name for name in _listed(group, "weight_names") if _belongs(name, place.names)]
        return [self._numbers(group, name) for name in names[:most]]

    def _group(self, *parts: str) -> "h5py.Group | None":
        found: Any = self._file
        for part in parts:
            found = _member(found, part)
            if found is None or not hasattr(found, "keys"):
                return None
        return found

    def _numbers(self, group: "h5py.Group | None", name: str) -> Array:
        found: Any = group
        for part in name.split("/"):
            found = _member(found, part)
            if found is None:
                raise CheckpointError(f"the file lacks {printable(name, 80)}; it is damaged: fetch it again")
        _ensure_own_numbers(found, name)
        return np.asarray(found[()])


def _member(group: "h5py.Group", name: str) -> Any:
    """A member of a group; None: there is none.

    Raises:
        CheckpointError: it is a link, which is not followed.
    """
    import h5py

    link = group.get(name, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise CheckpointError(
            f"its {printable(name, 60)} is a link to another place or file, which is not followed; expected"
            f" weights in the file itself: {SAVE}"
        )
    return None if link is None else group[name]


def _ensure_own_numbers(found: Any, name: str) -> None:
    """Make sure that a data set holds floating-point numbers, in the file itself, and no more than the file
    can hold."""
    shown = printable(name, 60)
    if not hasattr(found, "dtype") or found.dtype.kind != "f":
        kind = getattr(found, "dtype", "a group")
        raise CheckpointError(
            f"its {shown} holds {printable(str(kind), 40)}; expected floating-point numbers: give the model"
            " before it was quantized"
        )
    if found.is_virtual or found.external:
        raise CheckpointError(
            f"its {shown} lies in another file, which is not read; expected weights in the file itself:"
            f" {SAVE}"
        )
    stored, size = found.id.get_storage_size(), math.prod(found.shape) * found.dtype.itemsize
    most = stored * DENSEST if found.chunks else stored
    if size > min(most, MOST_BYTES):
        raise CheckpointError(
            f"its {shown} is said to be {list(found.shape)}, which is more than the file holds; it is"
            " damaged: fetch it again"
        )


def _listed(group: "h5py.Group", key: str) -> list[str]:
    """A list of texts among a group's attributes; Keras cuts a long one into several: key0, key1, …"""
    found = (
        [key]
        if key in group.attrs
        else sorted(
            (name for name in group.attrs if re.fullmatch(rf"{key}\d+", name)),
            key=lambda n: int(n[len(key) :]),
        )
    )
    return [_text(name) for part in found for name in np.asarray(group.attrs[part]).ravel()]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _belongs(weight: str, names: tuple[str, ...]) -> bool:
    """Whether a weight is one of the layer that the last name says. In a model inside the model, all weights
    stand in one group, under the names of their layers."""
    layer = names[-1].split("/")
    return len(names) == 1 or weight.split("/")[-1 - len(layer) : -1] == layer


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """The content of a .keras or .h5 file.

    Raises:
        CheckpointError: it is damaged, or holds no model.
    """
    h5py = _h5py()
    if file_kinds.is_zip(path):
        with zipfile.ZipFile(path) as archive, tempfile.NamedTemporaryFile() as file:
            config = _json(archive, CONFIG, path)
            metadata = _json(archive, METADATA, path)
            _extract(archive, file, path)
            file.flush()
            _ensure_it_ends(Path(file.name))
            with h5py.File(file, "r") as weights:
                yield Store(weights, config, str(metadata.get("keras_version", "")), archived=True)
        return
    _ensure_it_ends(path)
    with h5py.File(path, "r") as weights:
        yield Store(weights, _config(weights), _text(weights.attrs.get("keras_version", "")), archived=False)


# Reads all of a file that it can hold; what is wrong in it is told by the one that reads it then.
_PROBE = """
import os, sys, h5py
size = os.path.getsize(sys.argv[1])
def read(name, thing):
    list(thing.attrs.items())
    if isinstance(thing, h5py.Dataset) and thing.nbytes <= size:
        for rows in thing.iter_chunks() if thing.chunks else (...,):
            thing[rows]
with h5py.File(sys.argv[1], "r") as file:
    read("", file)
    file.visititems(read)
"""
LEAST_S, BYTES_PER_S = 30.0, 5e6  # in which a whole file is read, also from a slow disk


def _ensure_it_ends(path: Path) -> None:
    """Let another process read a whole HDF5 file first: the library (2.0) goes round in circles in some that
    are damaged, and crashes in others.

    Raises:
        CheckpointError: it does not come back, or was killed.
    """
    limit = max(LEAST_S, path.stat().st_size / BYTES_PER_S)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, str(path)], capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"it is damaged: the HDF5 library did not read it to its end in {limit:.0f} s; fetch it again"
        ) from None
    if done.returncode < 0:
        raise CheckpointError("it is damaged: the HDF5 library crashes when it reads it; fetch it again")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError(
            "a Keras file is read with the package h5py, which is not there; run:"
            " pip install 'vgg-export[keras]'"
        ) from error
    return h5py


def _config(weights: "h5py.File") -> Any:
    text = weights.attrs.get("model_config")
    if text is None:
        keys = {str(key) for key in weights}
        if "layer_names" in weights.attrs or keys & {
            "layers",
            "model_weights",
            _OLD_LAYERS,
        }:
            raise CheckpointError(
                "it holds weights of Keras alone, without the layers that they belong to; load them into your"
                f" model (model.load_weights) and {SAVE}"
            )
        raise CheckpointError(
            f"it holds no Keras model, but {printable(', '.join(sorted(keys)), 80) or 'nothing'}; expected a"
            " file of model.save"
        )
    if len(text) > LONGEST_CONFIG_BYTES:
        raise CheckpointError("the description of its layers is too long; it is damaged: fetch it again")
    return json.loads(_text(text))


def _json(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    if name not in archive.namelist():
        raise CheckpointError(f"it lacks {name}; expected a file of model.save: {SAVE}")
    _ensure_plausible(archive.getinfo(name), path, LONGEST_CONFIG_BYTES)
    return json.loads(archive.read(name))


def _extract(archive: zipfile.ZipFile, file: IO[bytes], path: Path) -> None:
    """Write the weights of an archive to a file, since HDF5 reads here and there."""
    if WEIGHTS not in archive.namelist():
        raise CheckpointError(
            f"it lacks {WEIGHTS}; expected a file of model.save with one file of weights: {SAVE}"
        )
    member = archive.getinfo(WEIGHTS)
    _ensure_plausible(member, path, MOST_BYTES)
    left = member.file_size
    with archive.open(member) as source:
        while left > 0 and (block := source.read(min(left, 2**20))):
            file.write(block)
            left -= len(block)
    file.seek(0)


def _ensure_plausible(member: zipfile.ZipInfo, path: Path, most: int) -> None:
    if member.file_size > min(most, DENSEST * path.stat().st_size):
        raise CheckpointError(
            f"its {member.filename} unpacks to {member.file_size} bytes, which no network needs; it is not"
            " read"
        )
