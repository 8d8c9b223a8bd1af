"""Computes the constants of an ONNX graph: the arithmetic of shapes, and what becomes of stored weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vgg_export.core.errors import CheckpointError

from .onnx_nodes import attribute, label

Array = np.ndarray[Any, Any]
MOST_ELEMENTS = 2**30  # of a constant that is computed


def computed(node: Any, values: Sequence[Array], version: int) -> Array | None:
    """The output of a node whose inputs are all constants; None where it is of another kind.

    Args:
        values: the inputs that it has, in order.
        version: of the operators.

    Raises:
        CheckpointError: the output is too large for the weights of any network.
    """
    if node.op_type in _ARITHMETIC:
        rank = max(value.ndim for value in values)
        shapes = [(1,) * (rank - value.ndim) + value.shape for value in values]
        _ensure_small(node, [max(sides) for sides in zip(*shapes, strict=True)])
        return np.asarray(_ARITHMETIC[node.op_type](*values))
    function = _FOLDED.get(node.op_type)
    return function(node, values, version) if function else None


def _ensure_small(node: Any, shape: Sequence[int]) -> None:
    if math.prod(max(side, 0) for side in shape) > MOST_ELEMENTS:
        raise CheckpointError(
            f"{label(node)} makes a constant of more than {MOST_ELEMENTS} numbers; expected the weights of a"
            " network"
        )


def _cast(node: Any, values: Sequence[Array], _: int) -> Array:
    import onnx

    return values[0].astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


def _full(node: Any, values: Sequence[Array], _: int) -> Array:
    import onnx

    shape = [int(n) for n in values[0].ravel()]
    _ensure_small(node, shape)
    value = attribute(node, "value")
    if value is not None and value.data_location == onnx.TensorProto.EXTERNAL:
        raise CheckpointError(f"{label(node)} keeps its number in another file; expected it in the graph")
    return np.full(shape, 0.0 if value is None else onnx.numpy_helper.to_array(value).ravel()[0])


def _gather(node: Any, values: Sequence[Array], _: int) -> Array:
    return np.asarray(np.take(values[0], values[1], axis=attribute(node, "axis", 0)))


def _reshape(_: Any, values: Sequence[Array], __: int) -> Array:
    to = [values[0].shape[k] if n == 0 else int(n) for k, n in enumerate(values[1].ravel())]
    return values[0].reshape(to)


def _axes(node: Any, values: Sequence[Array]) -> tuple[int, ...] | None:
    """An input since version 13, an attribute before."""
    found = values[1].ravel().tolist() if len(values) > 1 else attribute(node, "axes")
    return None if found is None else tuple(found)


def _slice(node: Any, values: Sequence[Array], version: int) -> Array:
    if version < 10:
        bounds = [attribute(node, "starts"), attribute(node, "ends"), attribute(node, "axes")]
    else:
        bounds = [value.ravel().tolist() for value in values[1:]]
    starts, ends, axes, steps = [*bounds, None, None][:4]
    count = len(starts)
    cut = [slice(None)] * values[0].ndim
    for k in range(count):
        cut[axes[k] if axes else k] = slice(starts[k], ends[k], steps[k] if steps else 1)
    return values[0][tuple(cut)]


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Identity": lambda x: x,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": lambda x, y: x // y if np.issubdtype(x.dtype, np.integer) else x / y,
    "Pow": np.power,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Floor": np.floor,
}
_FOLDED: dict[str, Callable[[Any, Sequence[Array], int], Array]] = {
    "Cast": _cast,
    "ConstantOfShape": _full,
    "Gather": _gather,
    "Concat": lambda node, values, _: np.concatenate(values, axis=attribute(node, "axis")),
    "Transpose": lambda node, values, _: np.transpose(values[0], attribute(node, "perm")),
    "Reshape": _reshape,
    "Slice": _slice,
    "Unsqueeze": lambda node, values, _: np.expand_dims(values[0], _axes(node, values) or ()),
    "Squeeze": lambda node, values, _: np.squeeze(values[0], _axes(node, values)),
}
