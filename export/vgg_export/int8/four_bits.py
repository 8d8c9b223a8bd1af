"""Stores large fully connected layers of an int8 graph in blocks of 4 bits: half the bytes of 8 bits.

The layer becomes onnxruntime's MatMulNBits, which reads its input in float and multiplies 8 bits by 4. A
block of inputs shares a scale per output. The weights are rounded one input after the other, and each error
is made up for by the inputs that are not rounded yet, so that the outputs on the calibration pictures change
least (Frantar et al. 2022, "GPTQ"). There are fewer pictures than inputs, so the inverse of the second
moments is never formed: all that is needed of it follows from the pictures' products among each other.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vgg_calibration.chain import Layer
from vgg_calibration.observe import Seen
from vgg_export.graphs.audit import FOUR_BIT_OP
from vgg_export.graphs.tensors import array, tensors_of

if TYPE_CHECKING:
    import onnx

Floats = npt.NDArray[np.float32]

DOMAIN = "com.microsoft"
# Inputs that share a scale. 32 lose a little less, but take 18 % more bytes and, on a Cortex-A76, a fourth
# more instructions (docs/low-bits.md).
BLOCK = 128
LARGEST = 8  # the largest value of a block becomes -8 steps; stored values are 0 to 15, and 8 is zero
SMALLEST = 1_000_000  # weights of the smallest layer that is stored in 4 bits
PICTURES = 128  # that the rounding looks at; twice as many gain nothing and take longer
# Variance that is added to each input, in multiples of the mean variance: with it the errors stay small on
# pictures that were not looked at, too. From 1 to 10 the loss is the same.
RIDGE = 3.0
ACCURACY = 4  # MatMulNBits rounds its inputs to 8 bits; in float it takes at least twice as long


def suited(layers: Sequence[Layer], floating: "onnx.ModelProto", kept: Collection[str] = ()) -> list[Layer]:
    """The layers that are worth it: large and fully connected, neither the last one, which is sensitive, nor
    ``kept`` in float."""
    weights = tensors_of(floating)
    return [
        layer
        for layer in layers[:-1]
        if layer.kind == "Gemm"
        and layer.name not in kept
        and int(np.prod(weights[layer.weight].dims)) >= SMALLEST
    ]


def rewrite(integer: "onnx.ModelProto", floating: "onnx.ModelProto", layer: Layer, seen: Seen) -> None:
    """Store a layer of the int8 graph in 4 bits, in place.

    The mean shift of each output over the pictures is taken out of its bias; a layer without one gets it.

    Args:
        floating: the float graph that ``integer`` was made of.
        seen: the statistics of what the layer reads.
    """
    import onnx

    weights = tensors_of(floating)
    gemm = next(node for node in integer.graph.node if node.name == layer.node)
    weight = array(weights[layer.weight])
    blocks, scales, shift = rounded(weight, seen.values()[:PICTURES])
    bias = array(weights[layer.bias]) if layer.bias else 0
    stored = {
        f"{layer.weight}_4bit": blocks,
        f"{layer.weight}_4bit_scale": scales,
        f"{layer.name}.bias_4bit": (bias - shift).astype(np.float32),
    }
    _remove_constants(integer, gemm.input[1:])
    integer.graph.initializer.extend(
        onnx.numpy_helper.from_array(tensor, name) for name, tensor in stored.items()
    )
    values, scale, added = stored
    made = onnx.helper.make_node(
        FOUR_BIT_OP,
        [gemm.input[0], values, scale, "", "", added],
        list(gemm.output),
        gemm.name,
        domain=DOMAIN,
        K=weight.shape[0],
        N=weight.shape[1],
        bits=4,
        block_size=BLOCK,
        accuracy_level=ACCURACY,
    )
    gemm.CopyFrom(made)
    if DOMAIN not in (one.domain for one in integer.opset_import):
        integer.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def _remove_constants(model: "onnx.ModelProto", names: Collection[str]) -> None:
    """Remove the nodes that dequantize these tensors, and what they read."""
    nodes, tensors = model.graph.node, tensors_of(model)
    for node in [node for node in nodes if set(node.output) & set(names)]:
        for name in node.input:
            model.graph.initializer.remove(tensors[name])
        nodes.remove(node)


def rounded(weight: Floats, x: Floats) -> tuple[npt.NDArray[np.uint8], Floats, Floats]:
    """A weight [d, n] in blocks of 4 bits, rounded such that the outputs for ``x`` [m, d] change least.

    Returns:
        The values [n, blocks, BLOCK / 2], two in a byte, the first in the low half; the scales [n, blocks];
        the mean shift of the outputs [n].
    """
    (inputs, outputs), mean = weight.shape, x.mean(0)
    x = x - mean
    count = -(-inputs // BLOCK)
    packed = np.empty((outputs, count, BLOCK // 2), np.uint8)
    scales = np.empty((outputs, count), np.float32)
    ridge = RIDGE * float(np.square(x, dtype=np.float64).sum()) / inputs or 1.0
    products = x.astype(np.float64) @ x.T + ridge * np.eye(len(x))  # of what is not rounded yet
    residual, shift = np.zeros((len(x), outputs), np.float32), np.zeros(outputs, np.float32)
    for block in range(count):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, inputs))
        inverse, seen = np.linalg.inv(products), x[:, part].astype(np.float64)
        wanted = weight[part] + seen.T.astype(np.float32) @ (inverse.astype(np.float32) @ residual)
        factor = np.linalg.cholesky((np.eye(seen.shape[1]) - seen.T @ inverse @ seen) / ridge)
        scales[:, block] = scale = _scale(wanted)
        steps = _in_steps(wanted, scale, factor.T.astype(np.float32))
        error = weight[part] - steps * scale
        residual += x[:, part] @ error
        shift -= mean[part] @ error
        products -= seen @ seen.T
        packed[:, block] = _packed(steps)
    return packed, scales, shift


def _scale(weight: Floats) -> Floats:
    """The step of each output [n] for a block of weights [b, n]. The value of the largest magnitude gets -8,
    which has no opposite, so the step has its sign."""
    low, high = weight.min(0), weight.max(0)
    largest = np.where(-low > high, low, high)
    return np.where(largest == 0, 1, largest / -LARGEST).astype(np.float32)


def _in_steps(weight: Floats, scale: Floats, factor: Floats) -> Floats:
    """A block of weights [b, n] as whole steps from -8 to 7. ``factor`` [b, b] is the upper Cholesky factor
    of the inverse second moments: its row tells how the following inputs make up for an error."""
    left, steps = weight / scale, np.empty_like(weight)
    for k, row in enumerate(factor):
        steps[k] = np.rint(left[k]).clip(-LARGEST, LARGEST - 1)
        left[k + 1 :] -= np.outer(row[k + 1 :], (left[k] - steps[k]) / row[k])
    return steps


def _packed(steps: Floats) -> npt.NDArray[np.uint8]:
    """Whole steps [b, n] as [n, BLOCK / 2] bytes; a short block is filled with zeros."""
    stored = np.full((steps.shape[1], BLOCK), LARGEST, np.uint8)
    stored[:, : len(steps)] = steps.T + LARGEST
    return stored[:, 0::2] | stored[:, 1::2] * np.uint8(16)
