"""What a file is, by its content: real files of the other programs where these can be installed, else their
documented first bytes."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import small_checkpoint, small_torchvision_vgg
from PIL import Image
from safetensors.torch import save_file

from vgg_export.core.errors import CheckpointError
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import weights
from vgg_export.network.readers import file_kinds
from vgg_export.options import WeightsOptions


def tar(name: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def onnx_model() -> bytes:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    return bytes(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:])).SerializeToString()
    )


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), buffer)
    return buffer.getvalue()


HDF5 = b"\x89HDF\r\n\x1a\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 574673361\n"
OTHERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "hdf5": (lambda: HDF5 + b"\0" * 600, "is an HDF5 file, as Keras writes"),
    "hdf5_behind_a_user_block": (
        lambda: b"\0" * 512 + HDF5 + b"\0" * 600,
        "is an HDF5 file, as Keras writes",
    ),
    "keras": (
        lambda: zipped(**{"metadata.json": "{}", "config.json": "{}", "model.weights.h5": ""}),
        "is a Keras model (.keras)",
    ),
    "onnx": (onnx_model, "is an ONNX model"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + b"\0" * 500, "is a TensorFlow Lite model"),
    "torchscript": (scripted, "is a TorchScript program"),
    "exported": (exported, "is an exported program (torch.export.save)"),
    "lfs": (lambda: LFS.encode(), "is a Git-LFS pointer"),
    "lfs_windows": (lambda: LFS.replace("\n", "\r\n").encode(), "is a Git-LFS pointer"),
    "page": (lambda: b"<!DOCTYPE html><html>virus scan warning</html>", "is an HTML page"),
    "page_behind_blanks": (lambda: b"\xef\xbb\xbf\r\n  <HTML lang='en'><head>", "is an HTML page"),
    "page_after_a_comment": (lambda: b"<!-- saved from url --><html><body>", "is an HTML page"),
    "page_utf16": (lambda: "<!doctype html><html>".encode("utf-16"), "is an HTML page"),
    "xml": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an XML document"),
    "zip": (
        lambda: zipped(**{"vgg16.pth": "x", "readme.txt": "y"}),
        "is a zip archive of vgg16.pth, readme.txt; unpack it",
    ),
    "zip_of_nothing": (zipped, "is a zip archive of nothing"),
    "npz": (lambda: saved(lambda f: np.savez(f, a=np.zeros(2))), "is an archive of NumPy arrays (.npz)"),
    "npy": (lambda: saved(lambda f: np.save(f, np.zeros(2))), "is a NumPy array (.npy)"),
    "tar": (lambda: tar("vgg/weights.pth", "w"), "is a tar archive of vgg/weights.pth"),
    "tar_gz": (lambda: tar("vgg/weights.pth", "w:gz"), "is a tar archive of vgg/weights.pth"),
    "tar_xz": (lambda: tar("vgg/weights.pth", "w:xz"), "is a tar archive of vgg/weights.pth"),
    "gz": (lambda: gzip.compress(b"weights"), "is a file compressed with gzip"),
    "json": (lambda: b' {"0": "cat"}', "is JSON text without tensors"),
    "json_list": (lambda: b'["cat", "dog"]', "is JSON text without tensors"),
    "json_index": (
        lambda: json.dumps({"weight_map": {"a": "b"}}).encode(),
        "is the index of a checkpoint in several files",
    ),
    "json_keras": (
        lambda: json.dumps({"class_name": "Sequential", "config": {}}).encode(),
        "is the architecture of a Keras model",
    ),
    "text": (lambda: b"404: Not Found", "is a text file, which begins with '404: not found'"),
    "picture": (lambda: saved(lambda f: Image.new("RGB", (4, 4)).save(f, "PNG")), "is a PNG picture"),
    "photograph": (lambda: saved(lambda f: Image.new("RGB", (4, 4)).save(f, "JPEG")), "is a JPEG picture"),
    "empty": (lambda: b"", "is empty (0 bytes)"),
    "zeros": (lambda: bytes(5000), "is all zero bytes at its beginning"),
    "noise": (lambda: np.random.default_rng(0).bytes(5000), "is not a PyTorch checkpoint or is truncated"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".h5"])
@pytest.mark.parametrize("name", OTHERS)
def test_it_says_what_the_file_is(name: str, suffix: str, tmp_path: Path) -> None:
    """The content decides, not the name of the file."""
    content, expected = OTHERS[name]
    path = tmp_path / f"vgg16{suffix}"
    path.write_bytes(content())
    with pytest.raises(CheckpointError) as error:
        weights.resolve(WeightsOptions(str(path)))
    assert f"{path} {expected}" in str(error.value)
    assert len(str(error.value)) < 400


def test_checkpoints_are_none_of_these(tmp_path: Path) -> None:
    state = {k: v.contiguous() for k, v in small_torchvision_vgg("vgg11", False).state_dict().items()}
    torch.save(state, tmp_path / "new")
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "tensors")
    checkpoints.save(small_checkpoint(), tmp_path / "own")
    found = {
        name: file_kinds.recognise(tmp_path / name).readable for name in ("new", "old", "tensors", "own")
    }
    assert found == {"new": "torch", "old": "pickle", "tensors": "safetensors", "own": "safetensors"}


def test_a_folder_is_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    for name, expected in (
        ("saved_model.pb", "is a TensorFlow SavedModel"),
        ("data.pkl", "is an unpacked torch.save archive"),
    ):
        (tmp_path / "saved" / name).touch()
        with pytest.raises(CheckpointError, match=expected):
            weights.resolve(WeightsOptions(str(tmp_path / "saved")))
        (tmp_path / "saved" / name).unlink()
    with pytest.raises(CheckpointError, match="is a folder; --weights takes a file"):
        weights.resolve(WeightsOptions(str(tmp_path / "saved")))
