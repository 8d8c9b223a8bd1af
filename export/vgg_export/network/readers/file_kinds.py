"""Recognises what a file is by its content, since its name may be wrong."""

import codecs
import dataclasses
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgg_runtime.text import printable

SAFETENSORS, TORCH_ZIP, PICKLE = "safetensors", "torch", "pickle"
HEAD_BYTES = 4096
LONGEST_HEADER_BYTES = 100_000_000  # of a safetensors file, as its own library allows
LONGEST_TEXT_BYTES = 50_000_000  # read whole to see whether it is JSON
SHOWN_MEMBERS = 3

_TO_STATE_DICT = "save the tensors of the trained network in PyTorch: torch.save(model.state_dict(), FILE)"
_FETCH_AGAIN = "fetch the file itself again"
_UNPACK = "unpack it and give the checkpoint inside to --weights"

_STARTS = (  # first bytes, what the file is, what to do
    (b"\x93NUMPY", "a NumPy array (.npy), not a checkpoint", _TO_STATE_DICT),
    (b"\x89PNG", "a PNG picture", "give it to --data in a folder, and a checkpoint to --weights"),
    (b"\xff\xd8\xff", "a JPEG picture", "give it to --data in a folder, and a checkpoint to --weights"),
    (b"%PDF", "a PDF document", _FETCH_AGAIN),
    (b"GGUF", "a GGUF model of llama.cpp", _TO_STATE_DICT),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard-compressed file", _UNPACK),
)
_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file is.

    ``readable`` is SAFETENSORS, TORCH_ZIP or PICKLE. It is None where there is no reader; then ``what`` says
    what the file is, and ``do`` what to do.
    """

    readable: str | None
    what: str = ""
    do: str = ""


def recognise(path: Path) -> Kind:
    """What the file at ``path`` is. One of no other kind counts as a pickle (the old format of torch.save).

    Raises:
        OSError: it cannot be opened.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return Kind(None, "empty (0 bytes): it is truncated, or was never written", _FETCH_AGAIN)
    if _is_safetensors(head, size):
        return Kind(SAFETENSORS)
    if zipfile.is_zipfile(path) and head.startswith(b"PK"):
        return _zip(path)
    return _text(path, head, size) or _binary(path, head) or Kind(PICKLE)


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether the file begins with eight bytes, a little-endian length, and a JSON object of that length."""
    length = int.from_bytes(head[:8], "little")
    return (
        len(head) > 8
        and head[8:9] == b"{"
        and 2 <= length <= min(size + LONGEST_HEADER_BYTES, LONGEST_HEADER_BYTES)
    )


def _zip(path: Path) -> Kind:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names if "/" in name}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        what = "a TorchScript program (torch.jit.save): a network as code, which is not run from a file"
        return Kind(
            None,
            what,
            "load it in PyTorch and save its tensors: torch.save(torch.jit.load(FILE).state_dict(),"
            " 'weights.pth')",
        )
    if (
        any(name in ("archive_format", "models/model.json") for name in inside)
        or "serialized_exported_program.json" in names
    ):
        do = (
            "load it in PyTorch and save its tensors: torch.save(torch.export.load(FILE).state_dict,"
            " 'weights.pth')"
        )
        return Kind(None, "an exported program (torch.export.save)", do)
    if "data.pkl" in inside:
        return Kind(TORCH_ZIP)
    if {"config.json", "metadata.json"} <= set(names):
        return Kind(None, "a Keras model (.keras)", "this version does not read Keras; " + _TO_STATE_DICT)
    if names and all(name.endswith(".npy") for name in names):
        return Kind(None, "an archive of NumPy arrays (.npz)", _TO_STATE_DICT)
    return Kind(None, f"a zip archive of {_some(names)}", _UNPACK)


def _binary(path: Path, head: bytes) -> Kind | None:
    for start, what, do in _STARTS:
        if head.startswith(start):
            return Kind(None, what, do)
    if _is_hdf5(path, head):
        return Kind(
            None, "an HDF5 file, as Keras writes (.h5)", "this version does not read Keras; " + _TO_STATE_DICT
        )
    if not head.strip(b"\0"):
        return Kind(None, "all zero bytes at its beginning, as after a broken download", _FETCH_AGAIN)
    if head[4:8] == b"TFL3":
        return Kind(
            None, "a TensorFlow Lite model (.tflite)", "its weights have been converted; " + _TO_STATE_DICT
        )
    if tarfile.is_tarfile(path):
        return Kind(None, f"a tar archive of {_some(_tar_members(path))}", _UNPACK)
    for start, name in _COMPRESSED:
        if head.startswith(start):
            return Kind(None, f"a file compressed with {name}", _UNPACK)
    if _is_onnx(path):
        return Kind(None, "an ONNX model", "this version does not read ONNX; " + _TO_STATE_DICT)
    return None


def _is_hdf5(path: Path, head: bytes) -> bool:
    """HDF5's signature stands at byte 0, 512, 1024, 2048 …, because a user block may precede it."""
    signature = b"\x89HDF\r\n\x1a\n"
    return any(head[place : place + 8] == signature for place in (0, 512, 1024, 2048))


def _tar_members(path: Path) -> Iterator[str]:
    try:
        with tarfile.open(path) as archive:
            yield from (member.name for member in archive)
    except (tarfile.TarError, OSError, EOFError):
        # the rest is damaged; what was seen is enough to say what it is
        return


def _is_onnx(path: Path) -> bool:
    """Whether onnx itself reads the file as a model with a graph. Tensors in files beside it are not read."""
    import onnx

    with path.open("rb") as file:
        # the fields of a ModelProto that may come first
        if file.read(1)[0] >> 3 not in range(1, 9) or file.seek(0):
            return False
    try:
        loaded = onnx.load(path, load_external_data=False)
    except Exception:  # a file that is no protobuf can raise any error
        return False
    return loaded.ir_version > 0 and bool(loaded.graph.node)


def _text(path: Path, head: bytes, size: int) -> Kind | None:
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    start = head.decode(encoding, errors="replace").lstrip().lower()
    if start.startswith("version https://git-lfs.github.com/spec/"):
        return Kind(
            None,
            "a Git-LFS pointer: the few lines that stand for a file which was not fetched",
            "run 'git lfs pull' there",
        )
    if start.startswith(("<!doctype html", "<html")) or (
        "<html" in start and start.startswith(("<", "<?xml"))
    ):
        return Kind(
            None,
            "an HTML page: what was downloaded is a web page, most often a log-in or a warning",
            _FETCH_AGAIN,
        )
    if start.startswith("<?xml"):
        return Kind(None, "an XML document, most often a server's error message", _FETCH_AGAIN)
    if start.startswith(("{", "[")) and size <= LONGEST_TEXT_BYTES and (found := _json(path, encoding)):
        return found
    if start and "\ufffd" not in start[:-1] and all(c.isprintable() or c.isspace() for c in start):
        return Kind(
            None,
            f"a text file, which begins with {printable(start.splitlines()[0])!r}",
            "give the checkpoint itself to --weights",
        )
    return None


def _json(path: Path, encoding: str) -> Kind | None:
    try:
        found: Any = json.loads(path.read_text(encoding=encoding))
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict) and "weight_map" in found:
        return Kind(
            None,
            "the index of a checkpoint in several files (JSON); the tensors are in those",
            "join them into one file first",
        )
    if isinstance(found, dict) and {"class_name", "config"} <= found.keys():
        return Kind(None, "the architecture of a Keras model (JSON) without its weights", _TO_STATE_DICT)
    return Kind(None, "JSON text without tensors", "class names go to --labels, a checkpoint to --weights")


def folder(path: Path) -> str:
    """What a folder is that was given as a checkpoint, and what to do."""
    if (path / "saved_model.pb").is_file():
        return (
            f"{path} is a TensorFlow SavedModel (a folder); this version does not read it: {_TO_STATE_DICT}"
        )
    if (path / "data.pkl").is_file():
        return f"{path} is an unpacked torch.save archive; give the file as torch.save wrote it"
    return f"{path} is a folder; --weights takes a file"


def _some(names: Iterator[str] | list[str]) -> str:
    files = [name for name in names if not name.endswith("/")]
    if not files:
        return "nothing"
    shown = ", ".join(printable(name, 60) for name in files[:SHOWN_MEMBERS])
    return shown + (f" and {len(files) - SHOWN_MEMBERS} more" if len(files) > SHOWN_MEMBERS else "")
