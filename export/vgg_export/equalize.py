"""Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction").

A channel between two layers can be divided by any positive number in the first and multiplied by it in the second without
changing the function: ReLU, max-pooling and the flattening let it through. It is chosen such that the largest weight of a
channel is the same on both sides. With weights quantized per channel the gain is in the activations, whose channels then fill
their common range more evenly; it may also be a loss, so it is tried rather than done.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import vgg_calibration.chain as chain
from vgg_calibration.observe import Seen

from .errors import CheckFailedError

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[np.float64]

ROUNDS = 100  # at most; a pair that is equalized disturbs its neighbours, so that it takes some
SETTLED = 1e-3  # largest relative change of a channel at which it ends
TOLERANCE = 1e-4  # of the path norm: the weights are rounded to fp32, twice each


def equalize(model: "onnx.ModelProto") -> dict[str, Array]:
    """Equalize the weights of an exported float graph in place; the channels of the input and the logits stay as they are.

    Returns:
        What each channel was divided by [C], by the name of the tensor behind the layer (and its ReLU).

    Raises:
        CheckFailedError: the function is not the same afterwards.
    """
    layers = chain.layers(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    before = maxima(layers, tensors)
    norm, scales = path_norm(before, biases(layers, tensors)), solve(before)
    for k, layer in enumerate(layers):
        rescale(layer, tensors, scales[k - 1] if k else None, scales[k] if k < len(scales) else None)
    ensure_unchanged(norm, path_norm(maxima(layers, tensors), biases(layers, tensors)))
    return {layer.output: scale for layer, scale in zip(layers, scales, strict=False)}


def maxima(layers: list[chain.Layer], tensors: "dict[str, onnx.TensorProto]") -> list[Array]:
    """Largest |weight| between the channels of every layer: [outputs, inputs] each."""
    return [channel_maxima(layer, before, tensors) for layer, before in zip(layers, [None, *layers], strict=False)]


def biases(layers: list[chain.Layer], tensors: "dict[str, onnx.TensorProto]") -> list[Array]:
    """|bias| of every layer [outputs], zeros where it has none."""
    return [
        np.abs(array(tensors[layer.bias])).astype(np.float64) if layer.bias else np.zeros(channels_of(layer, tensors)) for layer in layers
    ]


def path_norm(largest: list[Array], offsets: list[Array]) -> Array:
    """For each logit the sum over all paths from the input of the product of the weights on it (Neyshabur et al. 2015), which
    scaling channels between layers does not change."""
    reached = np.ones(largest[0].shape[1])
    for weight, offset in zip(largest, offsets, strict=True):
        reached = weight @ reached + offset
    return reached


def ensure_unchanged(before: Array, after: Array) -> None:
    """Check that the path norms [classes] are the same.

    Raises:
        CheckFailedError: a channel was not multiplied on one side by what it was divided by on the other.
    """
    difference = float(np.abs(after / np.maximum(before, 1e-300) - 1).max())
    if not difference <= TOLERANCE:
        raise CheckFailedError(f"equalizing changed the function: its path norm by {difference:.2g}, at most {TOLERANCE:g} allowed")


def solve(maxima: "list[Array]") -> list[Array]:
    """The factors for layers with the largest weights ``maxima[k]`` [outputs, inputs]: one array less than there are layers."""
    largest = [m.copy() for m in maxima]
    scales = [np.ones(len(m)) for m in largest[:-1]]
    for _ in range(ROUNDS):
        change = 0.0
        for k in range(len(scales)):
            written, read = largest[k].max(1), largest[k + 1].max(0)
            alive = (written > 0) & (read > 0)
            factor = np.sqrt(np.divide(written, read, out=np.ones_like(written), where=alive))
            largest[k] /= factor[:, None]
            largest[k + 1] *= factor
            scales[k] *= factor
            change = max(change, float(np.abs(np.log(factor)).max()))
        if change < SETTLED:
            break
    return scales


def channel_maxima(layer: chain.Layer, before: chain.Layer | None, tensors: "dict[str, onnx.TensorProto]") -> Array:
    """Largest |weight| between channels: [outputs, channels of the layer before]."""
    weight = np.abs(array(tensors[layer.weight]))
    if layer.kind == "Conv":
        return np.asarray(weight.max((2, 3)), np.float64)
    channels = len(weight) if before is None else channels_of(before, tensors)
    return np.asarray(weight.reshape(channels, -1, weight.shape[1]).max(1).T, np.float64)


def channels_of(layer: chain.Layer, tensors: "dict[str, onnx.TensorProto]") -> int:
    """How many channels a layer writes."""
    return int(tensors[layer.weight].dims[0 if layer.kind == "Conv" else 1])


def rescale(layer: chain.Layer, tensors: "dict[str, onnx.TensorProto]", read: Array | None, written: Array | None) -> None:
    """Multiply what a layer reads of a channel by ``read`` and divide what it writes by ``written``, in place."""
    weight = array(tensors[layer.weight])
    axes = (0, 1) if layer.kind == "Conv" else (1, 0)
    by = np.ones(weight.shape[axes[1]]) if read is None else np.repeat(read, weight.shape[axes[1]] // len(read))
    out = np.ones(weight.shape[axes[0]]) if written is None else 1 / written
    shape = [[-1 if k == axis else 1 for k in range(weight.ndim)] for axis in axes]
    store(tensors[layer.weight], weight * out.reshape(shape[0]).astype(np.float32) * by.reshape(shape[1]).astype(np.float32))
    if layer.bias:
        store(tensors[layer.bias], (array(tensors[layer.bias]) * out).astype(np.float32))


def rescaled(seen: dict[str, Seen], layers: list[chain.Layer], scales: dict[str, Array]) -> dict[str, Seen]:
    """What was seen in the tensors of a graph, as it would have been seen after ``equalize``."""
    found, scale = dict(seen), None
    for layer in layers:
        for name, factor in ((layer.input, scale), (layer.output, scales.get(layer.output))):
            if factor is not None:
                found[name] = seen[name].divided(factor)
        scale = scales.get(layer.output)
    return found


def array(tensor: "onnx.TensorProto") -> npt.NDArray[np.float32]:
    import onnx

    result: npt.NDArray[np.float32] = onnx.numpy_helper.to_array(tensor)
    return result


def store(tensor: "onnx.TensorProto", values: npt.NDArray[np.generic]) -> None:
    """Replace a tensor's values, its name, type and shape kept."""
    import onnx

    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(array(tensor).dtype, copy=False), tensor.name))
