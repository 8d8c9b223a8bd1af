"""Reads files of torch.save, whole modules too, without running anything that they name.

``torch.load`` would have to import the classes that a file names, or to refuse the file; given stubs in their
place it still cannot read dictionaries of the user's own classes, nor pickles of a newer protocol. Here a
class is a name and an object of it a ``Stub`` with its attributes (see pickle_machine.py); only tensors
become what they are. No table of torch's is touched.
"""

import dataclasses
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vgg_export.core.errors import CheckpointError
from vgg_runtime.text import printable

from .hostile_names import is_hostile
from .pickle_machine import Global, Machine, PickleError, Stub

if TYPE_CHECKING:
    import torch

__all__ = ["Global", "Stub", "load"]

LONGEST_PICKLE_BYTES = 200_000_000  # the pickle in an archive; tensors are not part of it
MOST_MEMBERS = 100_000  # of an archive
MOST_DIMENSIONS = 16
SHOWN_NAMES = 4
# What pickle.dump, unlike torch.save, writes for the numbers of a tensor.
_TENSOR_IN_PICKLE = "torch.storage._load_from_bytes"

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the format before PyTorch 1.6

_DTYPES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
_NEW_DTYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", *_DTYPES.values())


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """Numbers [n] of one type that tensors are views of."""

    numbers: "torch.Tensor"


def load(path: Path) -> Any:
    """What a file of torch.save holds: tensors, plain values, and ``Stub`` for an object of any class. An
    ordered or counting dictionary is a plain one, numpy's numbers are Python's. Classes and functions are
    ``Global``. The tensors of an archive lie in the file, which is mapped into memory; clone what you keep.

    Raises:
        CheckpointError: the file is no file of torch.save, is damaged or absurd, or names functions that
            start programs or run code.
    """
    names = set[Global]()
    try:
        with path.open("rb") as file:
            load_it = _load_archive if file.read(4) == b"PK\x03\x04" else _load_old
        return load_it(path, names)
    except (
        PickleError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        ValueError,
        RuntimeError,
    ) as error:
        _ensure_harmless(path, names)
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint or is truncated: fetch it again"
            f" ({printable(str(error), 300)})"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check that you may read it"
        ) from error


def _ensure_harmless(path: Path, names: set[Global]) -> None:
    found = sorted(one.full for one in names if is_hostile(one.module, one.name))
    if found == [_TENSOR_IN_PICKLE]:
        raise CheckpointError(
            f"{path} is a plain Python pickle of tensors, each of which would run torch.load inside, so it is"
            " not read; expected a file of torch.save: load it where it was made, and save it again by"
            " torch.save(model.state_dict(), FILE)"
        )
    if found:
        shown = ", ".join(printable(name, 80) for name in found[:SHOWN_NAMES])
        more = f" and {len(found) - SHOWN_NAMES} more" if len(found) > SHOWN_NAMES else ""
        raise CheckpointError(
            f"{path} holds {shown}{more}, which a checkpoint has no use for: do not open it with torch.load;"
            " fetch it from a source you trust"
        )


# An archive, as PyTorch writes since 1.6: ROOT/data.pkl beside ROOT/data/KEY with the bytes of storages


def _load_archive(path: Path, names: set[Global]) -> Any:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = {info.filename: info for info in archive.infolist()[: MOST_MEMBERS + 1]}
        if len(members) > MOST_MEMBERS:
            raise PickleError(f"it has more than {MOST_MEMBERS} members")
        pickled = next((name for name in members if name.rpartition("/")[2] == "data.pkl"), None)
        if pickled is None:
            raise PickleError("it has no member data.pkl")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in members and _content(archive, members[f"{root}byteorder"]) != b"little":
            raise PickleError("its numbers are big-endian; expected little-endian ones")
        mapped, claimed = _bytes_of(path, size), 0

        def numbers(key: str, dtype: "torch.dtype", count: int) -> "torch.Tensor":
            nonlocal claimed
            info = members.get(f"{root}data/{key}")
            claimed += count * dtype.itemsize
            if info is None or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise PickleError(f"its member data/{key} is missing, compressed or encrypted")
            start = _start(file, info)
            if not count * dtype.itemsize <= min(info.file_size, size - start) or claimed > size:
                raise PickleError(f"its member data/{key} is shorter than the tensors in it")
            return _typed(mapped[start : start + count * dtype.itemsize], dtype)

        with archive.open(members[pickled]) as opened:
            return _run(
                Machine(_builders(), _Storages(numbers).of),
                _Bounded(opened, LONGEST_PICKLE_BYTES),
                names,
                path,
            )


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(16)


def _start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """The place where the bytes of a member begin: behind its own header, whose length the archive's
    directory does not say."""
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise PickleError(f"its member {printable(info.filename)} is not where the directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name) + int(extra)


def _bytes_of(path: Path, size: int) -> "torch.Tensor":
    import torch

    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def _typed(numbers: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """The same bytes as numbers of a type, copied where they do not begin at a multiple of their size."""
    aligned = numbers.data_ptr() % 16 == 0
    return (numbers if aligned else numbers.clone()).view(dtype)


# The format before: five pickles, then the storages one after the other


def _load_old(path: Path, names: set[Global]) -> Any:
    import torch

    size = path.stat().st_size
    with path.open("rb") as raw:
        file, claimed = _Bounded(raw, size), 0

        def numbers(key: str, dtype: "torch.dtype", count: int) -> "torch.Tensor":
            nonlocal claimed
            claimed += count * dtype.itemsize
            if claimed > size:
                raise PickleError(f"its storage {printable(key)} is larger than the file")
            return torch.empty(count, dtype=dtype)

        storages = _Storages(numbers)

        def run() -> Any:
            return _run(Machine(_builders(), storages.of), file, names, path)

        if not _is(run(), _MAGIC):
            raise CheckpointError(
                f"{path} is a pickle that torch.save did not write; expected what torch.save(model, FILE) or"
                " torch.save(model.state_dict(), FILE) writes"
            )
        if (
            not _is(run(), _PROTOCOL)
            or not isinstance(system := run(), dict)
            or not system.get("little_endian", True)
        ):
            raise PickleError("its head is not that of a file of torch.save with little-endian numbers")
        value, keys = run(), run()
        named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not named or set(keys) != set(storages.known):
            raise PickleError("its list of storages is not that of its tensors")
        for key in keys:
            _fill(file, storages.known[key].numbers)
        return value


def _is(value: Any, expected: int) -> bool:
    """Whether it is this number; a tensor cannot be compared with a large one."""
    return type(value) is int and value == expected


def _fill(file: "_Bounded", numbers: "torch.Tensor") -> None:
    """Read one storage: the number of its elements in eight bytes, then these."""
    import torch

    (count,) = struct.unpack("<q", file.read(8))
    if count != len(numbers):
        raise PickleError(f"one of its storages has {count} elements, its tensors ask for {len(numbers)}")
    if count and file.readinto(numbers.view(torch.uint8).numpy()) < count * numbers.element_size():
        raise PickleError("it ends within a tensor")


class _Bounded:
    """A file that gives at most ``limit`` bytes from where it is, whatever length it is asked for."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._left = file, limit

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data

    def read(self, count: int) -> bytes:
        return self._took(self._file.read(min(count, self._left)))

    def readline(self) -> bytes:
        return self._took(self._file.readline(self._left))

    def readinto(self, target: Any) -> int:
        return int(self._file.readinto(target))  # type: ignore[attr-defined]


def _run(machine: Machine, file: _Bounded, names: set[Global], path: Path) -> Any:
    try:
        value = machine.run(file)
    finally:
        names |= machine.names
    _ensure_harmless(path, names)
    return value


class _Storages:
    """The storages of one file by their keys.

    Args:
        numbers: gives the numbers [n] of a key, a type and n.
    """

    def __init__(self, numbers: "Callable[[str, torch.dtype, int], torch.Tensor]") -> None:
        self._numbers = numbers
        self.known: dict[str, _Storage] = {}

    def of(self, key: Any) -> Any:
        """The storage, or the class, that a persistent id means."""
        match key:
            case ("module", Global() as made, *_):  # the old format keeps the text of the class beside it
                return made
            case ("storage", Global() as kind, str() as name, str(), int() as count, *view) if count >= 0:
                return self._storage(kind, name, count, view[0] if view else None)
        raise PickleError("its pickle is damaged (it refers to something that is no storage)")

    def _storage(self, kind: Global, name: str, count: int, view: Any) -> Any:
        import torch

        dtype = _DTYPES.get(kind.name.removesuffix("Storage")) if kind.module in _STORAGE_MODULES else None
        if dtype is None:
            return Stub(kind.full)
        if name not in self.known:
            self.known[name] = _Storage(self._numbers(name, getattr(torch, dtype), count))
        whole = self.known[name].numbers
        if view is None:
            return self.known[name]
        _, start, length = view
        if not 0 <= start <= start + length <= len(whole):
            raise PickleError("its pickle is damaged (a storage lies outside another)")
        return _Storage(whole[start : start + length])


_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")


# What stands for the functions that a checkpoint is made of


def _builders() -> dict[str, Callable[..., Any]]:
    return {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_type,
        "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch._tensor._rebuild_from_type_v2": _of_type,
        "torch.nn.parameter.Parameter": _first,
        "torch.nn.parameter.Buffer": _first,
        "torch.Size": lambda *args: tuple(_items(*args)),
        "collections.OrderedDict": _dictionary,
        "collections.Counter": _dictionary,
        "collections.defaultdict": lambda *args: _dictionary(*args[1:]),
        "builtins.dict": _dictionary,
        "builtins.list": lambda *args: _items(*args),
        "builtins.set": lambda *args: set(_items(*args)),
        "builtins.frozenset": lambda *args: frozenset(_items(*args)),
        "builtins.bytearray": _bytes,
        "builtins.getattr": _attribute,
        "_codecs.encode": _encoded,
        "numpy.core.multiarray.scalar": _number,
        "numpy._core.multiarray.scalar": _number,
    }


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    """A tensor that is a view of a storage; a Stub where its type is unknown or it repeats its numbers."""
    if not isinstance(storage, _Storage):
        return Stub("torch.Tensor")
    import torch

    sides = [*size, *stride, offset]
    if (
        len(size) != len(stride)
        or len(size) > MOST_DIMENSIONS
        or not all(type(n) is int and n >= 0 for n in sides)
    ):
        raise ValueError("a tensor has no proper shape")
    numbers, count = storage.numbers, math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and last >= len(numbers):
        raise ValueError("a tensor lies outside its storage")
    if count > len(numbers):
        return Stub("torch.Tensor")
    start = numbers.storage_offset() + (offset if count else 0)  # torch counts from the storage's beginning
    return torch.as_strided(numbers, tuple(size), tuple(stride), start)


def _tensor_of_type(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """As ``_tensor`` for the types without a storage of their own."""
    import torch

    dtype = rest[2]  # behind requires_grad and hooks
    name = dtype.name if isinstance(dtype, Global) and dtype.module == "torch" else ""
    found = getattr(torch, name, None) if name in _NEW_DTYPES else None
    if found is None or not isinstance(storage, _Storage) or storage.numbers.dtype != torch.uint8:
        return Stub("torch.Tensor")
    whole = len(storage.numbers) // found.itemsize * found.itemsize
    return _tensor(_Storage(storage.numbers[:whole].view(found)), offset, size, stride)


def _meta_tensor(_: Any, size: Any, *__: Any) -> Any:
    import torch

    return torch.empty(tuple(size), device="meta")


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _of_type(function: Any, _: Any, args: Any, *__: Any) -> Any:
    """A tensor of a subclass or with attributes, as the plain tensor."""
    name = function.full if isinstance(function, Global) else ""
    if name.startswith("torch._utils._rebuild_") and name in (table := _builders()):
        return table[name](*args)
    return Stub("torch.Tensor")


def _items(values: Any = (), *_: Any) -> list[Any]:
    """Of plain containers only: of a tensor they would be millions."""
    if not isinstance(values, list | tuple | set | frozenset | dict):
        raise TypeError("a list is made of something else")
    return list(values)


def _dictionary(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    return {key: value for key, value in map(_items, _items(pairs))}  # noqa: C416  (a pair has two)


def _bytes(value: Any = b"", *_: Any) -> bytes:
    """Of bytes only: of a number it would be so many zeros."""
    return value if isinstance(value, bytes) else b""


def _encoded(text: Any, encoding: Any = "", *_: Any) -> Any:
    """Bytes as protocol 2 writes them, as text in Latin-1."""
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return text.encode("latin-1")
    return Stub("_codecs.encode")


def _attribute(value: Any, name: Any) -> Any:
    """A class inside a class, by its name."""
    if isinstance(value, Global) and isinstance(name, str):
        return Global(value.module, f"{value.name}.{name}")
    return Stub("builtins.getattr", (value, name))


def _number(dtype: Any, data: Any = None, *_: Any) -> Any:
    """One of numpy's numbers as Python's."""
    import numpy

    name, order = (dtype.args[0] if dtype.args else "") if isinstance(dtype, Stub) else "", "<"
    if isinstance(dtype, Stub) and isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",):
        order = ">"
    if isinstance(data, bytes) and isinstance(name, str) and re.fullmatch("b1|[iu][1248]|f[248]", name):
        kind = numpy.dtype(order + name)
        if len(data) == kind.itemsize:
            return numpy.frombuffer(data, kind)[0].item()
    return Stub("numpy.scalar")
