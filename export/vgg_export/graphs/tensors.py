"""Reads and writes the weights of an ONNX graph."""

from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

    Tensors = dict[str, onnx.TensorProto]


def tensors_of(model: "onnx.ModelProto") -> "Tensors":
    return {tensor.name: tensor for tensor in model.graph.initializer}


def array(tensor: "onnx.TensorProto") -> npt.NDArray[Any]:
    """A tensor's values. The array must not be written to."""
    import onnx

    result: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    return result


def store(tensor: "onnx.TensorProto", values: npt.NDArray[Any]) -> None:
    """Replace a tensor's values by others of the same type and shape, without an intermediate copy."""
    for field in ("float_data", "int32_data"):
        tensor.ClearField(field)
    tensor.raw_data = values.tobytes()
