"""Reads a network from a file of any kind."""

from pathlib import Path

from vgg_export.core.errors import CheckpointError

from . import exported_programs, file_kinds, keras_files, onnx_files, torch_files, torch_scripts
from .found import Found

_READERS = {
    file_kinds.SAFETENSORS: torch_files.read,
    file_kinds.TORCH_ZIP: torch_files.read,
    file_kinds.PICKLE: torch_files.read,
    file_kinds.TORCHSCRIPT: torch_scripts.read,
    file_kinds.EXPORTED: exported_programs.read,
    file_kinds.ONNX: onnx_files.read,
    file_kinds.KERAS: keras_files.read,
    file_kinds.HDF5: keras_files.read,
}


def read(path: Path) -> Found:
    """The network in a file, whatever its name is.

    Raises:
        CheckpointError: the file is missing, damaged, or of a kind that holds no network that can be read;
            the message says what it is.
    """
    if path.is_dir():
        raise CheckpointError(file_kinds.folder(path))
    if not path.is_file():
        raise CheckpointError(
            f"there is no file {path}; expected a file of PyTorch, Keras or ONNX (or one of the words auto,"
            " imagenet, demo and random, where a command takes --weights)"
        )
    try:
        kind = file_kinds.recognise(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check that you may read it"
        ) from error
    if kind.readable is None:
        raise CheckpointError(f"{path} is {kind.what}; {kind.do}")
    try:
        return _READERS[kind.readable](path)
    except CheckpointError as error:
        words = str(error)
        raise CheckpointError(words if str(path) in words else f"{path}: {words}") from error
