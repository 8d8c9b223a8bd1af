"""Bias correction: restores the mean of each layer's output to that of the float network.

Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction".
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vgg_calibration.chain import Layer
from vgg_calibration.observe import Array, Seen
from vgg_export.graphs.tensors import array, store, tensors_of

from .qdq import INT32, dequantized

if TYPE_CHECKING:
    import onnx


def correct_biases(
    floating: "onnx.ModelProto", layers: Sequence[Layer], seen: Mapping[str, Seen], integer: "onnx.ModelProto"
) -> dict[str, Array]:
    """Subtract the mean shift that rounding the weights adds to each channel from the int32 biases of
    ``integer``, in place.

    The shift is E[W_q x] - E[W x] (Nagel et al. 2019), with the means of x over the calibration pictures,
    padding included. A layer without bias passes its shift on to the next layer, if nothing is between them.
    The biases have steps of input scale times weight scale, hundreds of times finer than a step of the
    output, so correcting the float biases and quantizing everything again would gain nothing.

    Returns:
        The shift of every corrected channel [outputs], by the layer's name.
    """
    weights, quantized = tensors_of(floating), tensors_of(integer)
    shifts: dict[str, Array] = {}
    handed_on: Array | None = None
    for layer in layers:
        if f"{layer.weight}_quantized" not in quantized:
            handed_on = None
            continue
        mean = seen[layer.input].mean
        error = dequantized(layer, quantized)
        error -= array(weights[layer.weight])
        shift = mean_output(layer, error, mean)
        if handed_on is not None:
            everywhere = np.broadcast_to(handed_on.reshape(-1, *(1,) * (mean.ndim - 1)), mean.shape)
            shift += mean_output(layer, dequantized(layer, quantized), everywhere)
        handed_on = None if layer.bias or layer.steps else shift
        if layer.bias:
            shifts[layer.name] = shift
            _subtract(
                quantized[f"{layer.bias}_quantized"],
                shift / array(quantized[f"{layer.bias}_quantized_scale"]),
            )
    return shifts


def _subtract(bias: "onnx.TensorProto", steps: Array) -> None:
    changed = array(bias).astype(np.float64) - np.round(steps)
    store(bias, changed.clip(INT32.min + 1, INT32.max).astype(np.int32))


def mean_output(layer: Layer, weight: npt.NDArray[np.float32], mean: npt.NDArray[np.floating[Any]]) -> Array:
    """The mean output [outputs] per channel over pictures and places, of a layer without its bias.

    Args:
        weight: [n, c / groups, height, width], or [inputs, n] of a fully connected layer. Of several groups
            each has one channel.
        mean: the mean of its input over the pictures, [c, H, W] or [inputs].
    """
    if layer.kind == "Gemm":
        return (mean.astype(np.float32) @ weight).astype(np.float64)  # fc1 in float64 would be 800 MB
    height, width = weight.shape[2:]
    top, left, bottom, right = layer.pads
    padded = np.pad(mean, ((0, 0), (top, bottom), (left, right)))
    (down, across), (_, rows, columns) = layer.strides, padded.shape
    total = np.zeros(len(weight))
    for dy in range(height):
        for dx in range(width):
            places = padded[:, dy : rows - height + dy + 1 : down, dx : columns - width + dx + 1 : across]
            seen = places.mean((1, 2), dtype=np.float64)
            total += weight[:, 0, dy, dx] * seen if layer.groups > 1 else weight[:, :, dy, dx] @ seen
    return total
