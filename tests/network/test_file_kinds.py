"""What a file is, by its content: real files of the other programs where these can be installed, else their
documented first bytes."""

import gzip
import io
import json
import pickle
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


def message(fields: dict[int, int | bytes]) -> bytes:
    """A message of protocol buffers: numbers, and texts or messages."""

    def number(value: int) -> bytes:
        low, rest = value & 127, value >> 7
        return bytes([low | 128]) + number(rest) if rest else bytes([low])

    return b"".join(
        number(key << 3) + number(value)
        if isinstance(value, int)
        else number(key << 3 | 2) + number(len(value)) + value
        for key, value in fields.items()
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
    "hdf5": (lambda: HDF5 + b"\0" * 600, "is an HDF5 file that cannot be read"),
    "hdf5_behind_a_user_block": (
        lambda: b"\0" * 512 + HDF5 + b"\0" * 600,
        "is an HDF5 file that cannot be read",
    ),
    "keras": (
        lambda: zipped(**{"metadata.json": "{}", "config.json": "{}", "model.weights.h5": ""}),
        "is a Keras model (.keras) that cannot be read",
    ),
    "onnx": (onnx_model, "is an ONNX model"),
    "onnx_cut_off": (lambda: onnx_model()[:-8], "is an ONNX model that cannot be read"),
    "frozen_graph": (
        lambda: message({1: message({1: b"x", 2: b"Placeholder"})}) * 2 + message({4: message({1: 24})}),
        "is a frozen graph of TensorFlow (.pb); convert it: python -m tf2onnx.convert --graphdef",
    ),
    "saved_model_graph": (
        lambda: message({1: 1, 2: message({1: message({5: b"2.15"})})}),
        "is the graph of a TensorFlow SavedModel, without the weights",
    ),
    "caffe": (
        lambda: message({1: b"VGG", 100: message({1: b"data", 2: b"Input"})}),
        "is a Caffe model (.caffemodel); convert it to ONNX or to PyTorch first",
    ),
    "caffe_of_the_first_version": (
        lambda: message({1: b"VGG_ILSVRC_16_layers", 2: message({5: 5, 2: b"data"})}),
        "is a Caffe model (.caffemodel)",
    ),
    "core_ml": (lambda: message({1: 4, 2: b"", 500: message({1: b""})}), "is a Core ML model (.mlmodel)"),
    "prototxt": (
        lambda: b'name: "VGG"\ninput: "data"\ninput_dim: 1\n',
        "is the description of a Caffe network (.prototxt) without its weights",
    ),
    "ncnn": (
        lambda: b"7767517\n75 83\nInput data 0 1 data",
        "is the description of a model of ncnn (.param)",
    ),
    "openvino": (
        lambda: b'<?xml version="1.0"?>\n<net name="vgg" version="11">',
        "is the description of a model of OpenVINO (.xml)",
    ),
    "checkpoint_list": (
        lambda: b'model_checkpoint_path: "model.ckpt-3"',
        "is the list of the checkpoints of a TensorFlow training",
    ),
    "checkpoint_index": (
        lambda: b"\0\1\xffx" * 100 + bytes.fromhex("57fb808b247547db"),
        "is a part of a TensorFlow checkpoint (.index and .data); load it where it was made",
    ),
    "matlab": (lambda: b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(500), "is a MATLAB file (.mat)"),
    "matlab_in_hdf5": (
        lambda: (b"MATLAB 7.3 MAT-file, Platform: GLNXA64").ljust(512, b" ") + HDF5 + bytes(600),
        "is a MATLAB file (.mat)",
    ),
    "pickle_of_numpy": (
        lambda: pickle.dumps({"conv1_1": np.zeros(3)}),
        "is a Python pickle of NumPy arrays, which could run code and is not loaded",
    ),
    "joblib": (
        lambda: b"\x80\x04\x95\0\0\0\0\0\0\0\0\x8c\x13joblib.numpy_pickle\x94.",
        "is a Python pickle of joblib, which could run code and is not loaded",
    ),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + b"\0" * 500, "is a TensorFlow Lite model"),
    "exported by an older version": (
        lambda: zipped(**{"serialized_exported_program.json": "{}", "version": "8.2"}),
        "is an exported program (torch.export.save) of another version of PyTorch; load it in PyTorch",
    ),
    "lfs": (lambda: LFS.encode(), "is a Git-LFS pointer"),
    "lfs_windows": (lambda: LFS.replace("\n", "\r\n").encode(), "is a Git-LFS pointer"),
    "page": (lambda: b"<!DOCTYPE html><html>virus scan warning</html>", "is an HTML page"),
    "page_behind_blanks": (lambda: b"\xef\xbb\xbf\r\n  <HTML lang='en'><head>", "is an HTML page"),
    "page_after_a_comment": (lambda: b"<!-- saved from url --><html><body>", "is an HTML page"),
    "page_of_google_drive": (
        lambda: b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>",
        "is an HTML page: the warning of Google Drive before a large file, not the file; download it in a",
    ),
    "page_of_a_log_in": (
        lambda: b"<!DOCTYPE html><html><head><title>Sign in to GitLab</title>",
        "is an HTML page: the web server asked for a log-in instead of giving the file",
    ),
    "page_utf16": (lambda: "<!doctype html><html>".encode("utf-16"), "is an HTML page"),
    "xml": (
        lambda: b"<?xml version='1.0'?><feed>",
        "is an XML document, most often a server's error message",
    ),
    "xml_of_a_storage_server": (
        lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "is an XML document: a storage server's error message (AccessDenied) instead of the file",
    ),
    "zip": (
        lambda: zipped(**{"vgg16.pth": "x", "readme.txt": "y"}),
        "is a zip archive of vgg16.pth, readme.txt; unpack it and give vgg16.pth instead",
    ),
    "zip_of_nothing": (zipped, "is a zip archive of nothing"),
    "npz": (lambda: saved(lambda f: np.savez(f, a=np.zeros(2))), "is an archive of NumPy arrays (.npz)"),
    "npy": (lambda: saved(lambda f: np.save(f, np.zeros(2))), "is a NumPy array (.npy)"),
    "tar": (
        lambda: tar("vgg/weights.pth", "w"),
        "is a tar archive of vgg/weights.pth; unpack it and give vgg/weights.pth",
    ),
    "tar_gz": (lambda: tar("vgg/weights.pth", "w:gz"), "is a tar archive of vgg/weights.pth"),
    "tar_xz": (lambda: tar("vgg/weights.pth", "w:xz"), "is a tar archive of vgg/weights.pth"),
    "gz": (lambda: gzip.compress(b"weights"), "is a file compressed with gzip; unpack it and give the"),
    "gz_of_a_checkpoint": (
        lambda: gzip.compress(saved(lambda f: torch.save({}, f))),
        "is a file compressed with gzip, most likely a PyTorch checkpoint; unpack it",
    ),
    "gz_cut_off": (
        lambda: gzip.compress(np.random.default_rng(0).bytes(9000))[:2000],
        "is a file compressed with gzip, which is damaged",
    ),
    "json": (lambda: b' {"0": "cat"}', "is JSON text without tensors"),
    "json_of_a_server": (
        lambda: b'{"error": "Repository not found"}',
        "is a server's error message (JSON) instead of the file",
    ),
    "json_list": (lambda: b'["cat", "dog"]', "is JSON text without tensors"),
    "json_index": (
        lambda: json.dumps({"weight_map": {"a": "b"}}).encode(),
        "is the index of a checkpoint in several files",
    ),
    "json_keras": (
        lambda: json.dumps({"class_name": "Sequential", "config": {}}).encode(),
        "is the architecture of a Keras model",
    ),
    "text": (lambda: b"404: Not Found", "is a text file, which begins with '404: Not Found'"),
    "picture": (lambda: saved(lambda f: Image.new("RGB", (4, 4)).save(f, "PNG")), "is a PNG picture"),
    "photograph": (lambda: saved(lambda f: Image.new("RGB", (4, 4)).save(f, "JPEG")), "is a JPEG picture"),
    "document": (lambda: b"%PDF-1.4\n", "is a PDF document"),
    "video": (lambda: b"\0\0\0\x20ftypisom\0\0\2\0avc1mp41" + bytes(50), "is a video or a picture of a"),
    "program": (lambda: b"\x7fELF" + bytes(50), "is a program or library of Linux"),
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
    (tmp_path / "script").write_bytes(scripted())
    (tmp_path / "program").write_bytes(exported())
    assert {path.name: file_kinds.recognise(path).readable for path in tmp_path.iterdir()} == {
        "new": "torch",
        "old": "pickle",
        "tensors": "safetensors",
        "own": "safetensors",
        "script": "torchscript",
        "program": "torch.export",
    }


def test_a_folder_is_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    for names, expected in (
        (["saved_model.pb"], r"is a TensorFlow SavedModel .* python -m tf2onnx.convert --saved-model"),
        (["data.pkl"], "is an unpacked torch.save archive"),
        (["checkpoint", "model.index"], "is a folder of TensorFlow checkpoints; load it where it was made"),
        (["config.json", "model.weights.h5"], "is an unpacked Keras model; give the .keras file itself"),
        (["Manifest.json", "Data/model.mlmodel"], r"is a Core ML package \(.mlpackage\)"),
    ):
        for name in names:
            (tmp_path / "saved" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "saved" / name).touch()
        with pytest.raises(CheckpointError, match=expected):
            weights.resolve(WeightsOptions(str(tmp_path / "saved")))
        for name in names:
            (tmp_path / "saved" / name).unlink()
    with pytest.raises(CheckpointError, match="is a folder; give the checkpoint's file"):
        weights.resolve(WeightsOptions(str(tmp_path / "saved")))


def test_a_file_whose_description_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "vgg.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    for suffix, program in ((".xml", "OpenVINO"), (".param", "ncnn")):
        beside = tmp_path / f"vgg{suffix}"
        beside.touch()
        found = file_kinds.recognise(tmp_path / "vgg.bin")
        assert found.what == f"the weights of a model of {program}, described in {beside.name} beside it"
        beside.unlink()
    assert file_kinds.recognise(tmp_path / "vgg.bin").readable == file_kinds.PICKLE
    part = tmp_path / "model.ckpt-3.data-00000-of-00001"
    part.write_bytes(np.random.default_rng(0).bytes(5000))
    assert file_kinds.recognise(part).what.startswith("a part of a TensorFlow checkpoint")


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_archive_that_breaks_off_anywhere_is_said_to_be_one(
    mode: str, name: str, tmp_path: Path
) -> None:
    whole, path = tar("weights.pth", mode), tmp_path / "c.pth"
    said = set()
    for size in range(16, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as refused:
            weights.find(WeightsOptions(str(path)))
        said.add("archive" if "is a tar archive" in str(refused.value) else "file")
        assert "is a tar archive" in str(refused.value) or f"a file compressed with {name}" in str(
            refused.value
        )
    assert "file" in said
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"is a tar archive of .*weights\.pth"):
        weights.find(WeightsOptions(str(path)))
