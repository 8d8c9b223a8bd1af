"""Writes large tensors to a file beside the graph. onnxruntime maps this file instead of copying the tensors
into its own memory, and the graphs of one variant for several cores can share it."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckFailedError
from vgg_export.core.files import scratch_folder

if TYPE_CHECKING:
    import onnx

SMALLEST_BYTES = (
    1024  # the smallest tensor that moves out; scales and biases of a few channels stay in the graph
)
INLINE_BYTES = 65536  # how much may stay in a graph that shares its other tensors
ALIGNMENT = 4096  # of a tensor of a page or more, so that few pages hold parts of two tensors


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file of tensors. ``offsets``: where each tensor begins, by the hash of its bytes."""

    path: Path
    offsets: Mapping[str, int]


def size_bytes(source: Path, scratch: Path) -> int:
    """The size in bytes of a model on the device: its graph and its file of tensors."""
    with scratch_folder(scratch) as folder:
        write(source, folder / "model.onnx")
        return sum(path.stat().st_size for path in folder.iterdir())


def write(source: Path, graph: Path, known: Sequence[Weights] = ()) -> Weights:
    """Write the one-file model ``source`` as ``graph`` and a file of its large tensors. That file is one of
    the ``known`` if it holds them, else a new one named after the graph.

    Raises:
        CheckFailedError: a tensor of ``source`` is in another file.
    """
    import onnx

    model = onnx.load(source, load_external_data=False)
    tensors = {t.name: _bytes(t) for t in model.graph.initializer}
    large = {name: content for name, content in tensors.items() if len(content) >= SMALLEST_BYTES}
    shared = next((weights for weights in known if _holds(weights, large)), None) or _store(
        large, graph.with_suffix(".data")
    )
    for tensor in model.graph.initializer:
        content = large.get(tensor.name)
        if content is not None and (offset := shared.offsets.get(_digest(content))) is not None:
            _refer(tensor, shared.path.name, offset, len(content))
    graph.write_bytes(model.SerializeToString())
    return shared


def _holds(shared: Weights, large: Mapping[str, bytes]) -> bool:
    """Whether the tensors that are not shared are small enough to stay in the graph."""
    return (
        sum(len(content) for content in large.values() if _digest(content) not in shared.offsets)
        <= INLINE_BYTES
    )


def _store(large: Mapping[str, bytes], path: Path) -> Weights:
    offsets: dict[str, int] = {}
    with path.open("wb") as file:
        for content in large.values():
            file.write(bytes(-file.tell() % (ALIGNMENT if len(content) >= ALIGNMENT else SMALLEST_BYTES)))
            offsets[_digest(content)] = file.tell()
            file.write(content)
    return Weights(path, offsets)


def _bytes(tensor: "onnx.TensorProto") -> bytes:
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise CheckFailedError(
            f"the tensor {tensor.name} lies outside its model; expected a model in one file"
        )
    return (
        bytes(tensor.raw_data)
        if tensor.HasField("raw_data")
        else bytes(onnx.numpy_helper.to_array(tensor).tobytes())
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _refer(tensor: "onnx.TensorProto", location: str, offset: int, length: int) -> None:
    """Make a tensor refer to bytes in a file beside the graph."""
    import onnx

    for field in (
        "raw_data",
        "float_data",
        "int32_data",
        "int64_data",
        "double_data",
        "uint64_data",
        "string_data",
    ):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
