"""Recognises what a file is by its content, since its name may be wrong."""

import bz2
import codecs
import dataclasses
import gzip
import itertools
import json
import lzma
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vgg_runtime.text import printable

from . import protobufs

SAFETENSORS, TORCH_ZIP, PICKLE = "safetensors", "torch", "pickle"
TORCHSCRIPT, EXPORTED = "torchscript", "torch.export"
ONNX, KERAS, HDF5 = "onnx", "keras", "hdf5"
HEAD_BYTES = 4096
LONGEST_HEADER_BYTES = 100_000_000  # of a safetensors file, as its own library allows
LONGEST_TEXT_BYTES = 50_000_000  # read whole to see whether it is JSON
SHOWN_MEMBERS = 3
MOST_MEMBERS = 1000  # of an archive that are looked at

_TO_STATE_DICT = "save the tensors of the trained network in PyTorch: torch.save(model.state_dict(), FILE)"
_FETCH_AGAIN = "fetch the file itself again"
_UNPACK = "unpack it and give {} instead"
_TO_KERAS = "load it where it was made, and save the whole model: model.save('model.keras')"
_TO_ONNX = "convert it: python -m tf2onnx.convert {} --output model.onnx"
_MATLAB = (
    "a MATLAB file (.mat), as of MatConvNet and VGG-Face",
    "read it with scipy.io.loadmat, put its weights into a network of PyTorch, and save that:"
    " torch.save(model.state_dict(), FILE)",
)
_CHECKPOINTS = (".pth", ".pt", ".safetensors", ".keras", ".h5", ".hdf5", ".onnx", ".ckpt", ".tar", ".bin")

_STARTS = (  # first bytes, what the file is, what to do
    (b"\x93NUMPY", "a NumPy array (.npy), not a checkpoint", _TO_STATE_DICT),
    (b"\x89PNG", "a PNG picture", "give the checkpoint instead; pictures go into the folder of --data"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the checkpoint instead; pictures go into the folder of --data"),
    (b"\x7fELF", "a program or library of Linux (ELF)", _FETCH_AGAIN),
    (b"GGUF", "a GGUF model of llama.cpp", _TO_STATE_DICT),
    (b"Rar!", "a RAR archive", _UNPACK.format("the checkpoint inside")),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK.format("the checkpoint inside")),
    (b"\x28\xb5\x2f\xfd", "a Zstandard-compressed file", _UNPACK.format("the checkpoint inside")),
)
_PROTOBUFS = {
    protobufs.GRAPH_DEF: (
        "a frozen graph of TensorFlow (.pb)",
        _TO_ONNX.format("--graphdef FILE --inputs INPUT:0 --outputs OUTPUT:0"),
    ),
    protobufs.SAVED_MODEL: (
        "the graph of a TensorFlow SavedModel, without the weights in the folder variables beside it",
        _TO_ONNX.format("--saved-model FOLDER"),
    ),
    protobufs.CAFFE: (
        "a Caffe model (.caffemodel)",
        "convert it to ONNX or to PyTorch first, together with its .prototxt: tell --normalize caffe then",
    ),
    protobufs.CORE_ML: ("a Core ML model (.mlmodel)", "give the model that it was converted from"),
}
_TABLE_END = bytes.fromhex("57fb808b247547db")  # of a table of TensorFlow's checkpoints (.index)
_TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # that torch.save wrote first before it wrote archives


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file is.

    ``readable`` is one of the words above. It is None where there is no reader; then ``what`` says what the
    file is, and ``do`` what to do.
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
    if head.startswith(b"PK") and is_zip(path):
        return _zip(path)
    if head.startswith(b"%PDF"):  # its beginning may be text
        return Kind(None, "a PDF document", _FETCH_AGAIN)
    return _text(path, head, size) or _binary(path, head, size) or _raw(path, head) or Kind(PICKLE)


def is_zip(path: Path) -> bool:
    """Whether a file ends like a zip archive, also like a damaged one."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError, struct.error):  # of several disks, say
        return True


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether the file begins with eight bytes, a little-endian length, and a JSON object of that length."""
    length = int.from_bytes(head[:8], "little")
    return (
        len(head) > 8
        and head[8:9] == b"{"
        and 2 <= length <= min(size + LONGEST_HEADER_BYTES, LONGEST_HEADER_BYTES)
    )


def _zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        what = f"a zip archive whose directory cannot be read ({printable(str(error), 80)}): it is damaged"
        return Kind(None, what, _FETCH_AGAIN)
    inside = {name.partition("/")[2] for name in names if "/" in name}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return Kind(TORCHSCRIPT)
    if {"archive_format", "models/model.json"} <= inside:
        return Kind(EXPORTED)
    if "archive_format" in inside or "serialized_exported_program.json" in names:
        do = (
            "load it in PyTorch and save its tensors: torch.save(torch.export.load(FILE).state_dict,"
            " 'weights.pth')"
        )
        return Kind(None, "an exported program (torch.export.save) of another version of PyTorch", do)
    if "data.pkl" in inside:
        return Kind(TORCH_ZIP)
    if "config.json" in names and {"metadata.json", "model.weights.h5"} & set(names):
        return Kind(KERAS)
    if names and all(name.endswith(".npy") for name in names):
        return Kind(None, "an archive of NumPy arrays (.npz)", _TO_STATE_DICT)
    return Kind(None, f"a zip archive of {_some(names)}", _unpack(names))


def _binary(path: Path, head: bytes, size: int) -> Kind | None:
    for start, what, do in _STARTS:
        if head.startswith(start):
            return Kind(None, what, do)
    if head.startswith((b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file")):
        return Kind(None, *_MATLAB)
    if _is_hdf5(path, head):
        return Kind(HDF5)
    if not head.strip(b"\0"):
        return Kind(None, "all zero bytes at its beginning, as after a broken download", _FETCH_AGAIN)
    if head[4:8] == b"ftyp":
        return Kind(None, "a video or a picture of a camera (MP4, MOV, HEIC or AVIF)", _FETCH_AGAIN)
    if head[4:8] == b"TFL3":
        do = _TO_ONNX.format("--tflite FILE") + ", where its weights are floating-point numbers"
        return Kind(None, "a TensorFlow Lite model (.tflite)", do)
    if found := _archive(path, head):
        return found
    with path.open("rb") as file:
        protobuf = protobufs.kind(file, size)
    if protobuf == protobufs.ONNX:
        return Kind(ONNX)
    return Kind(None, *_PROTOBUFS[protobuf]) if protobuf else None


def _archive(path: Path, head: bytes) -> Kind | None:
    if _is_tar(path):
        names = list(itertools.islice(_tar_members(path), MOST_MEMBERS))
        return Kind(None, f"a tar archive of {_some(names)}", _unpack(names))
    for start, (name, opened) in _COMPRESSED.items():
        if head.startswith(start):
            return Kind(None, f"a file compressed with {name}{_inside(path, opened)}", _unpack([]))
    return None


def _raw(path: Path, head: bytes) -> Kind | None:
    """What is told by the end of a file, by the files beside it, or by the names in a pickle."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_TABLE_END)))
        end = file.read()
    if end == _TABLE_END or re.search(r"\.data-\d{5}-of-\d{5}$", path.name):
        return Kind(None, "a part of a TensorFlow checkpoint (.index and .data)", _TO_KERAS)
    for suffix, program in ((".xml", "OpenVINO"), (".param", "ncnn")):
        if path.suffix == ".bin" and path.with_suffix(suffix).is_file():
            what = (
                f"the weights of a model of {program}, described in {path.with_suffix(suffix).name} beside it"
            )
            return Kind(None, what, _SOURCE)
    if head[:1] == pickle.PROTO and head[1:2] <= b"\x05" and _TORCH_MAGIC not in head:
        return _pickle(head)
    return None


def _pickle(head: bytes) -> Kind | None:
    """A pickle that torch.save did not write. It is told by the names in it, which are not loaded."""
    programs = {
        b"joblib": "joblib",
        b"sklearn": "scikit-learn",
        b"pandas": "pandas",
        b"paddle": "PaddlePaddle",
    }
    program = next((words for name, words in programs.items() if name in head), None)
    numpy = b"numpy" in head and b"torch" not in head
    if not program and not numpy:
        return None
    return Kind(
        None,
        f"a Python pickle of {program or 'NumPy arrays'}, which could run code and is not loaded",
        _TO_STATE_DICT,
    )


_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error)  # what reading a compressed file can end with
_COMPRESSED: dict[bytes, tuple[str, Callable[..., Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
}


def _inside(path: Path, opened: Callable[..., Any]) -> str:
    """What the beginning of a compressed file is, as far as it can be told."""
    try:
        with opened(path) as file:
            head = file.read(HEAD_BYTES)
    except _DAMAGED:
        return ", which is damaged"
    if head.startswith(b"PK") or _TORCH_MAGIC in head:
        return ", most likely a PyTorch checkpoint"
    return ", a Keras or another HDF5 file" if head.startswith(b"\x89HDF") else ""


def _unpack(names: Sequence[str]) -> str:
    """What to do with an archive: give the checkpoint that it holds."""
    found = [name for name in names if name.lower().endswith(_CHECKPOINTS)]
    return _UNPACK.format(printable(found[0], 60) if len(found) == 1 else "the checkpoint inside")


def _is_hdf5(path: Path, head: bytes) -> bool:
    """HDF5's signature stands at byte 0, 512, 1024, 2048 …, because a user block may precede it."""
    signature = b"\x89HDF\r\n\x1a\n"
    return any(head[place : place + 8] == signature for place in (0, 512, 1024, 2048))


def _is_tar(path: Path) -> bool:
    """Whether it is a tar archive, maybe a compressed one; not where a compressed one breaks off at once."""
    try:
        return tarfile.is_tarfile(path)
    except _DAMAGED:
        return False


def _tar_members(path: Path) -> Iterator[str]:
    try:
        with tarfile.open(path) as archive:
            yield from (member.name for member in archive)
    except (tarfile.TarError, *_DAMAGED):
        # the rest is damaged; what was seen is enough to say what it is
        return


def _text(path: Path, head: bytes, size: int) -> Kind | None:
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = head.decode(encoding, errors="replace").lstrip()
    start = text.lower()
    if start.startswith("version https://git-lfs.github.com/spec/"):
        return Kind(
            None,
            "a Git-LFS pointer: the few lines that stand for a file which was not fetched",
            "run 'git lfs pull' there",
        )
    if start.startswith("<") and (found := _markup(text, start)):
        return found
    if start.startswith(("{", "[")) and size <= LONGEST_TEXT_BYTES and (found := _json(path, encoding)):
        return found
    for begins, what, do in _TEXTS:
        if re.match(begins, start):
            return Kind(None, what, do)
    if start and "\ufffd" not in start[:-1] and all(c.isprintable() or c.isspace() for c in start):
        return Kind(
            None,
            f"a text file, which begins with {printable(text.splitlines()[0])!r}",
            "give the checkpoint itself instead",
        )
    return None


_SOURCE = "give the model that it was converted from: a PyTorch, Keras or ONNX file"
_TEXTS = (  # how the text begins in lower case, what the file is, what to do
    (r"7767517\s", "the description of a model of ncnn (.param)", _SOURCE),
    (r"model_checkpoint_path:", "the list of the checkpoints of a TensorFlow training", _TO_KERAS),
    (
        r"(#[^\n]*\n|\s)*(name:\s*\"[^\"]*\"\s*)?(layers?\s*\{|input:\s*\"|input_dim:)",
        "the description of a Caffe network (.prototxt) without its weights",
        "convert it to ONNX or to PyTorch first, together with its .caffemodel",
    ),
)


def _markup(text: str, start: str) -> Kind | None:
    """An HTML page or an XML document, by its first characters; ``start``: the same in lower case."""
    if "<html" in start or start.startswith("<!doctype html"):
        what = "an HTML page: what was downloaded is a web page, most often a log-in or a warning"
        if "google drive" in start or "virus scan warning" in start:
            what = "an HTML page: the warning of Google Drive before a large file, not the file"
            return Kind(None, what, "download it in a browser, or with gdown")
        if re.search(r"sign in|log ?in|password", start):
            what = "an HTML page: the web server asked for a log-in instead of giving the file"
        return Kind(None, what, _FETCH_AGAIN)
    if code := re.search(r"<Error>\s*<Code>(\w+)", text):
        what = f"a storage server's error message ({printable(code[1], 40)}) instead of the file"
        return Kind(None, "an XML document: " + what, _FETCH_AGAIN)
    if re.match(r"(<\?xml[^>]*>)?\s*<net\s", start):
        return Kind(None, "the description of a model of OpenVINO (.xml)", _SOURCE)
    if start.startswith("<?xml"):
        return Kind(None, "an XML document, most often a server's error message", _FETCH_AGAIN)
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
        return Kind(None, "the architecture of a Keras model (JSON) without its weights", _TO_KERAS)
    if isinstance(found, dict) and {"error", "message", "detail"} & {str(key).lower() for key in found}:
        return Kind(None, "a server's error message (JSON) instead of the file", _FETCH_AGAIN)
    return Kind(None, "JSON text without tensors", "give the checkpoint instead; class names go to --labels")


def folder(path: Path) -> str:
    """What a folder is that was given as a checkpoint, and what to do."""
    if (path / "saved_model.pb").is_file():
        do = f"{_TO_ONNX.format(f'--saved-model {path}')}, or in Keras save it: model.save('model.keras')"
        return f"{path} is a TensorFlow SavedModel (a folder), which is not read; {do}"
    if (path / "checkpoint").is_file() and any(path.glob("*.index")):
        return f"{path} is a folder of TensorFlow checkpoints; {_TO_KERAS}"
    if (path / "config.json").is_file() and (path / "model.weights.h5").is_file():
        return f"{path} is an unpacked Keras model; give the .keras file itself, or zip these files again"
    if (path / "Manifest.json").is_file() and (path / "Data").is_dir():
        return f"{path} is a Core ML package (.mlpackage); {_SOURCE}"
    if (path / "data.pkl").is_file():
        return f"{path} is an unpacked torch.save archive; give the file as torch.save wrote it"
    return f"{path} is a folder; give the checkpoint's file"


def _some(names: Iterator[str] | list[str]) -> str:
    files = [name for name in names if not name.endswith("/")]
    if not files:
        return "nothing"
    shown = ", ".join(printable(name, 60) for name in files[:SHOWN_MEMBERS])
    return shown + (f" and {len(files) - SHOWN_MEMBERS} more" if len(files) > SHOWN_MEMBERS else "")
