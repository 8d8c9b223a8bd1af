"""Splits large fully connected layers of an int8 graph into two with half as many outputs each, so that
loading the graph takes less memory.

onnxruntime packs a weight into a buffer of its own while the file's pages of it are still mapped. So for a
moment fc1 of a VGG, two thirds of the model, is in memory twice; of two halves, only one is there twice at a
time. The sums of each output are the same, and joining the halves copies some kilobytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vgg_export.core.errors import CheckFailedError
from vgg_runtime.board import device
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model

if TYPE_CHECKING:
    import onnx

LARGE_BYTES = 32_000_000  # the smallest weight that is split; a second copy of a smaller one hardly matters
PARTS = 2


def halve(model: "onnx.ModelProto", large_bytes: int = LARGE_BYTES) -> list[str]:
    """Replace every Gemm of an int8 QDQ graph whose weight [inputs, outputs] is large, in place. Returns the
    names of these weights.

    Raises:
        CheckFailedError: such a Gemm is not as 'vgg-export quantize' writes it: with weight and bias
            dequantized along the outputs, and the result quantized.
    """
    nodes, tensors = model.graph.node, {t.name: t for t in model.graph.initializer}
    makers = {node.output[0]: node for node in nodes}
    done = []
    for gemm in [node for node in nodes if node.op_type == "Gemm"]:
        constants = [
            node
            for name in gemm.input[1:]
            if (node := makers.get(name)) is not None and node.op_type == "DequantizeLinear"
        ]
        if len(constants) != len(gemm.input) - 1:
            continue  # it stays float
        weight = constants[0]  # and the bias, where there is one
        if np.prod(tensors[weight.input[0]].dims) < large_bytes:
            continue
        quantizer = next((node for node in nodes if gemm.output[0] in node.input), None)
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            raise CheckFailedError(
                f"{gemm.name} is large and its result is not quantized; expected a layer that is int8 as a"
                " whole"
            )
        at = list(nodes).index(quantizer)
        for node in reversed(list(_halves(model, gemm, constants, quantizer))):
            nodes.insert(at, node)
        for node in (gemm, *constants, quantizer):
            nodes.remove(node)
        for name in (name for node in constants for name in node.input):
            model.graph.initializer.remove(tensors[name])
        done.append(weight.input[0])
    return done


def _halves(
    model: "onnx.ModelProto",
    gemm: "onnx.NodeProto",
    constants: "Sequence[onnx.NodeProto]",
    quantizer: "onnx.NodeProto",
) -> "Iterator[onnx.NodeProto]":
    """The nodes that replace a Gemm, the nodes that dequantize its weight and bias, and the node that
    quantizes its result."""
    from onnx.helper import make_node

    results = []
    for part in range(PARTS):
        inputs = [gemm.input[0]]
        for constant in constants:
            names = [_part(model, name, part) for name in constant.input]
            inputs.append(f"{constant.output[0]}_part{part}")
            yield make_node(
                "DequantizeLinear",
                names,
                inputs[-1:],
                f"{constant.name}_part{part}",
                axis=next(a.i for a in constant.attribute if a.name == "axis"),
            )
        summed, integer, result = (
            f"{name}_part{part}"
            for name in (gemm.output[0], quantizer.output[0], f"{gemm.output[0]}_rounded")
        )
        half = make_node("Gemm", inputs, [summed], f"{gemm.name}_part{part}")
        half.attribute.extend(gemm.attribute)
        yield half
        yield make_node(
            "QuantizeLinear", [summed, *quantizer.input[1:]], [integer], f"{quantizer.name}_part{part}"
        )
        # Each half is dequantized before the Concat and quantized again after it, which does not change the
        # values: onnxruntime knows how to fuse an operator between such pairs, and on x86 it turns signed
        # activations into unsigned ones pair by pair.
        yield make_node(
            "DequantizeLinear", [integer, *quantizer.input[1:]], [result], f"{result}_DequantizeLinear"
        )
        results.append(result)
    yield make_node("Concat", results, [f"{gemm.output[0]}_joined"], f"{gemm.name}_joined", axis=1)
    yield make_node(
        "QuantizeLinear",
        [f"{gemm.output[0]}_joined", *quantizer.input[1:]],
        quantizer.output,
        f"{quantizer.name}_joined",
    )


def _part(model: "onnx.ModelProto", name: str, part: int) -> str:
    """Add a part of a tensor, along the outputs, to the graph. Returns its name."""
    from onnx import numpy_helper

    whole = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
    made = np.ascontiguousarray(np.array_split(whole, PARTS, axis=-1)[part])
    model.graph.initializer.append(numpy_helper.from_array(made, f"{name}_part{part}"))
    return f"{name}_part{part}"


def ensure_equal(before: Path, after: Path, spec: InputSpec) -> None:
    """Check that the logits on noise, as an input of ``spec``, are equal to the last bit.

    Raises:
        CheckFailedError: they differ.
    """
    x = np.random.default_rng(0).standard_normal((1, *spec.shape), np.float32)
    expected, found = (Model(path, SessionSettings(), device.usable_cores())(x) for path in (before, after))
    if not np.array_equal(expected, found):
        raise CheckFailedError(
            "splitting the largest layer changed the int8 model's logits by up to"
            f" {np.abs(found - expected).max():.2g}; expected no change"
        )
