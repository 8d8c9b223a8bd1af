"""An ONNX file as a graph of nodes, safely: tensors come from its own folder only, and constants are computed
by a few plain operators."""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vgg_export.core.errors import CheckpointError
from vgg_runtime.text import printable

from .onnx_constants import computed
from .onnx_nodes import attribute, label

DOMAINS = ("", "ai.onnx")
OLDEST_OPSET = 7
_QUANTIZED = "Quant", "QLinear", "ConvInteger", "MatMulInteger"
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")


class Graph:
    """The nodes of an ONNX model that its output depends on, and its constants.

    ``version``: of the operators. ``producer``: the program that wrote it.

    Raises:
        CheckpointError: it cannot be read, has several inputs or outputs, or is no plain graph.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        model = onnx.load(path, load_external_data=False)
        self.version = _ensure_plain(model)
        self.producer = printable(model.producer_name, 40)
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        graph = model.graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        nodes = list(graph.node)
        in_nodes = [a.t for node in nodes for a in node.attribute if a.HasField("t")]
        _ensure_inside([*self._stored.values(), *in_nodes], path.parent)
        self._folder = path.parent
        inputs = [value for value in graph.input if value.name not in self._stored]
        self.input = _only(inputs, "inputs")
        self.output: str = _only(list(graph.output), "outputs").name
        self._makers = {name: node for node in nodes for name in node.output if name}
        self.nodes = self._alive(nodes)
        self._constants: dict[str, np.ndarray[Any, Any]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def _alive(self, nodes: Sequence[Any]) -> list[Any]:
        """The nodes whose numbers the output depends on, in order. Of what a Shape reads, the numbers do not
        matter."""
        needed, kept = {self.output}, []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                kept.append(node)
                if node.op_type not in ("Shape", "Size"):
                    needed.update(node.input)
        return kept[::-1]

    @cached_property
    def _readers(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    def forget(self) -> None:
        """Start again, for another size of the input."""
        self._constants = {name: value for name, value in self._constants.items() if name in self._stored}
        self.shapes = {}

    def readers(self, value: str) -> list[Any]:
        """The nodes that compute with a value; its shape alone is a constant here."""
        return [node for node in self._readers.get(value, []) if node.op_type not in ("Shape", "Size")]

    def maker(self, value: str) -> Any:
        """The node that gives a value; None for the input."""
        return self._makers.get(value)

    def constant(self, name: str) -> "np.ndarray[Any, Any] | None":
        """The value of a constant; None where it depends on the input."""
        if name not in self._constants:
            value = self._value(name)
            if value is None:  # perhaps not yet
                return None
            self._constants[name] = value
        return self._constants[name]

    def _value(self, name: str) -> "np.ndarray[Any, Any] | None":
        if name in self._stored:
            return self.array(self._stored[name])
        node = self._makers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return self._of_constant(node)
        if node.op_type == "Shape":
            shape = self._shape(node.input[0])
            start, end = attribute(node, "start", 0), attribute(node, "end")
            return None if shape is None else np.asarray(shape[start:end], np.int64)
        values = [self.constant(one) if one else None for one in node.input]
        if any(value is None and one for value, one in zip(values, node.input, strict=True)):
            return None
        return computed(node, [value for value in values if value is not None], self.version)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a constant, or of a value that was passed, perhaps behind a Transpose."""
        node = self._makers.get(name)
        if name in self.shapes or node is None:
            return self.shapes.get(name)
        if node.op_type in ("Transpose", "Cast", "Identity"):
            shape = self._shape(node.input[0])
            order = attribute(node, "perm", range(len(shape or ())))
            return shape if shape is None else tuple(shape[k] for k in order)
        constant = self.constant(name)
        return None if constant is None else constant.shape

    def _of_constant(self, node: Any) -> "np.ndarray[Any, Any]":
        for kind in ("value_int", "value_float", "value_ints", "value_floats"):
            if (found := attribute(node, kind)) is not None:
                return np.asarray(found, np.float32 if "float" in kind else np.int64)
        tensor = attribute(node, "value")
        if tensor is None:
            raise CheckpointError(f"{label(node)} holds no tensor of numbers; expected one")
        return self.array(tensor)

    def array(self, tensor: Any) -> "np.ndarray[Any, Any]":
        """The numbers of a stored tensor, in its own type."""
        import onnx

        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.ClearField("data_location")
            copy.raw_data = _outside(tensor, self._folder)
            tensor = copy
        return np.asarray(onnx.numpy_helper.to_array(tensor))


def _ensure_plain(model: Any) -> int:
    """The version of the operators of a model.

    Raises:
        CheckpointError: it has operators or parts that no chain is made of.
    """
    quantized = next((n for n in model.graph.node if any(word in n.op_type for word in _QUANTIZED)), None)
    if quantized is not None:
        raise CheckpointError(
            f"it is quantized already ({label(quantized)}); expected the float model that it was made from:"
            " give that one, it is quantized here"
        )
    for node in model.graph.node:
        if node.domain not in DOMAINS:
            raise CheckpointError(
                f"{label(node)} is an operator of {printable(node.domain, 40)}, not of ONNX; expected the"
                " model as it was exported, before another program optimised or extended it"
            )
        if node.op_type in _CONTROL or any(a.HasField("g") or a.graphs for a in node.attribute):
            raise CheckpointError(
                f"{label(node)} decides or repeats while it runs; expected a chain of layers"
            )
    if model.functions:
        raise CheckpointError(
            "it has functions of its own; expected plain operators: export it again with a newer exporter, or"
            " write onnx.inliner.inline_local_functions(onnx.load(FILE)) to a file"
        )
    if model.graph.sparse_initializer:
        raise CheckpointError("it holds sparse tensors; expected dense ones")
    version = next((one.version for one in model.opset_import if one.domain in DOMAINS), 1)
    if version < OLDEST_OPSET:
        raise CheckpointError(
            f"its operators are of version {version}; expected at least {OLDEST_OPSET}: convert it with"
            " onnx.version_converter"
        )
    return int(version)


def _only(values: list[Any], what: str) -> Any:
    if len(values) != 1:
        names = ", ".join(printable(value.name, 40) for value in values[:4])
        raise CheckpointError(
            f"it has {len(values)} {what}{f' ({names})' if names else ''}; expected one picture in and one"
            " list of logits out"
        )
    return values[0]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor outside the file lies: ``length`` bytes at ``offset``."""

    path: Path
    offset: int
    length: int


def _ensure_inside(tensors: Sequence[Any], folder: Path) -> None:
    """Make sure, before anything is read, that every tensor outside the file lies in a file of its folder."""
    import onnx

    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _place(tensor, folder)


def _place(tensor: Any, folder: Path) -> _Place:
    import onnx

    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    shown = printable(location, 80)
    path = folder / location
    inside = location and not Path(location).is_absolute() and ".." not in Path(location).parts
    if not inside or not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"its tensor {printable(tensor.name, 60)} lies in {shown!r}, outside the folder of the file, and"
            " is not read; expected a file beside it: copy both into one folder, and export with a plain"
            " file name"
        )
    if not path.is_file():
        raise CheckpointError(
            f"its tensors lie in {shown!r} beside it, which is not there; copy that file, too"
        )
    size = math.prod(tensor.dims) * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    offset = int(entries.get("offset", "0"))
    if min(size, offset, *tensor.dims, 0) < 0 or offset + size > path.stat().st_size:
        raise CheckpointError(
            f"its tensor {printable(tensor.name, 60)} lies beyond the end of {shown!r}; that file is"
            " truncated or of another model: fetch both again"
        )
    return _Place(path, offset, size)


def _outside(tensor: Any, folder: Path) -> bytes:
    place = _place(tensor, folder)
    with place.path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.length)
