"""Compares a mixed graph with the two graphs that it was made of, layer by layer.

Each layer of these gets what the layer of the mixed graph reads, and must give what that one gives: of the
int8 graph where the layer is int8, else of the float graph. A whole network would not do: on noise an int8
network may differ from its float one by a fifth of the spread of the logits, and that would hide a layer with
wrong weights.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vgg_calibration import chain
from vgg_calibration.chain import Layer
from vgg_export.core.errors import CheckFailedError
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import session_options
from vgg_runtime.output import temporary_folder

from .mixed import PAIR
from .mixed_cost import FP32, INT8

if TYPE_CHECKING:
    import onnx

Floats = npt.NDArray[np.float32]

# The largest allowed difference of what a layer gives, as a fraction of its spread. The steps of 8 bits are a
# 255th of the range or more, where not all of it is used, and a sum between two steps may round either way.
# For floats, see ``winograd``.
TOLERANCE = {INT8: 0.02, FP32: 1e-4}


def ensure_same(
    floating: "onnx.ModelProto",
    integers: "onnx.ModelProto",
    made: "onnx.ModelProto",
    ways: Mapping[str, str],
    settings: SessionSettings,
) -> float:
    """The largest difference of what a layer gives on noise, as a fraction of its spread.

    Args:
        ways: how each layer of ``made`` is computed.
        settings: with which int8 sums are exact on this machine.

    Raises:
        CheckFailedError: it is larger than that in TOLERANCE.
    """
    layers = chain.layers(floating)
    reads, gives = _seen(made, layers, ways, settings)
    largest = 0.0
    for source, model in ((INT8, integers), (FP32, floating)):
        chosen = [layer for layer in layers if (ways[layer.name] == INT8) == (source == INT8)]
        ends = [gives[layer.name][0] for layer in chosen]
        expected = _alone(model, chosen, reads, ends, settings)
        for layer, values in zip(chosen, expected, strict=True):
            apart = _apart(gives[layer.name][1], values)
            if not apart <= TOLERANCE[source]:
                raise CheckFailedError(
                    f"{layer.name} of the mixed graph gives values that differ by {apart:.2g} of their spread"
                    f" from those of the {source} graph for the same input; at most"
                    f" {TOLERANCE[source]:.2g} allowed"
                )
            largest = max(largest, apart)
    return largest


def _apart(found: Floats, expected: Floats) -> float:
    spread = max(float(expected.max() - expected.min()), 1e-12)
    return float(np.abs(found - expected).max()) / spread


def _seen(
    made: "onnx.ModelProto", layers: Sequence[Layer], ways: Mapping[str, str], settings: SessionSettings
) -> tuple[dict[str, Floats], dict[str, tuple[str, Floats]]]:
    """What every layer of the mixed graph reads, by its name, and the name and values of what it gives."""
    (given,) = made.graph.input
    x = np.random.default_rng(0).standard_normal((1, *_shape(given)), np.float32)
    known = {name for node in made.graph.node for name in node.output}
    read = {layer.name: _rounded(layer.input, known) for layer in layers}
    ends = {layer.name: _end(layer, known, integer=ways[layer.name] == INT8) for layer in layers}
    wanted = list(dict.fromkeys(name for name in (*read.values(), *ends.values()) if name != given.name))
    values = {given.name: x}
    values |= zip(wanted, _run(made, {given.name: x}, wanted, settings), strict=True)
    return (
        {layer: values[name] for layer, name in read.items()},
        {layer: (name, values[name]) for layer, name in ends.items()},
    )


def _shape(given: "onnx.ValueInfoProto") -> list[int]:
    return [d.dim_value for d in given.type.tensor_type.shape.dim[1:]]


def _rounded(tensor: str, known: Collection[str]) -> str:
    """The name of a tensor behind its rounding, if it is rounded."""
    name = f"{tensor}_{PAIR[1]}_Output"
    return name if name in known else tensor


def _end(layer: Layer, known: Collection[str], *, integer: bool) -> str:
    """The name of the last tensor before the next layer that is as in the layer's own graph: what a float
    layer gives is rounded for an int8 one, to a range that noise may leave."""
    if integer:
        return _rounded(layer.gives, known)
    return layer.gives if _rounded(layer.output, known) == layer.output else layer.output


def _alone(
    model: "onnx.ModelProto",
    layers: Sequence[Layer],
    reads: Mapping[str, Floats],
    ends: Sequence[str],
    settings: SessionSettings,
) -> list[Floats]:
    """The tensors at the ``ends`` of these layers of a graph, each of which gets what it ``reads``."""
    from onnx import TensorProto, helper

    cut = type(model)()
    cut.CopyFrom(model)
    nodes = {node.name: node for node in cut.graph.node}
    (x,) = model.graph.input
    given = {x.name: np.zeros((1, *_shape(x)), np.float32)}
    for layer in layers:
        name, values = f"{layer.name}.read", reads[layer.name]
        cut.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape))
        nodes[layer.node].input[0] = name
        given[name] = values
    return _run(cut, given, ends, settings)


def _run(
    model: "onnx.ModelProto", given: Mapping[str, Floats], wanted: Sequence[str], settings: SessionSettings
) -> list[Floats]:
    """The values of the ``wanted`` tensors of a graph."""
    import onnx
    import onnxruntime as ort

    shown = type(model)()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        onnx.save(shown, path)
        del shown
        session: Any = ort.InferenceSession(
            str(path), session_options(settings, 1), providers=["CPUExecutionProvider"]
        )
        names = {value.name for value in session.get_inputs()}
        found: list[Floats] = session.run(
            list(wanted), {name: x for name, x in given.items() if name in names}
        )
    return found
