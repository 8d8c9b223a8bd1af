"""Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias
Correction").

A channel between two layers can be divided by any positive number in the first and multiplied by it in the
second without changing the function: ReLU, max-pooling and the flattening let it through. It is chosen such
that the largest weight of a channel is the same on both sides. With weights quantized per channel the gain is
in the activations, whose channels then fill their common range more evenly; it may also be a loss, so it is
tried rather than done.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vgg_calibration import chain
from vgg_calibration.observe import Array, Seen
from vgg_export.core.errors import CheckFailedError
from vgg_export.graphs.tensors import array, store, tensors_of

if TYPE_CHECKING:
    import onnx

    from vgg_export.graphs.tensors import Tensors


Floats = npt.NDArray[np.float32]


ROUNDS = 100  # at most; a pair that is equalized disturbs its neighbours, so that it takes some


SETTLED = 1e-3  # largest relative change of a channel at which it ends


TOLERANCE = 1e-4  # of the path norm: the weights are rounded to fp32, twice each


def find_scales(model: "onnx.ModelProto") -> list[Array]:
    """What to divide the channels [C] behind every layer but the last by."""
    return solve(maxima(chain.layers(model), tensors_of(model)))


def equalize(model: "onnx.ModelProto", scales: list[Array]) -> None:
    """Apply what ``find_scales`` found, in place; the channels of the input and the logits stay as they are.

    Raises:
        CheckFailedError: the function is not the same afterwards.
    """
    layers, tensors = chain.layers(model), tensors_of(model)
    norm = path_norm(layers, tensors)
    for layer, read, written in zip(layers, [None, *scales], [*scales, None], strict=True):
        rescale(layer, tensors, read, written)
    ensure_unchanged(norm, path_norm(layers, tensors))


def solve(largest: list[Floats]) -> list[Array]:
    """The scales for layers whose largest weights between channels are ``largest`` [outputs, inputs] each,
    which is used up."""
    scales = [np.ones(len(weight)) for weight in largest[:-1]]
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


def maxima(layers: list[chain.Layer], tensors: "Tensors") -> list[Floats]:
    """Largest |weight| between the channels of every layer: [outputs, inputs] each."""
    return [
        _channel_maxima(layer, before, tensors)
        for layer, before in zip(layers, [None, *layers], strict=False)
    ]


def _channel_maxima(layer: chain.Layer, before: chain.Layer | None, tensors: "Tensors") -> Floats:
    weight = array(tensors[layer.weight])
    if layer.kind == "Conv":
        return np.asarray(np.abs(weight).max((2, 3)))
    channels = (
        len(weight) if before is None else tensors[before.weight].dims[0 if before.kind == "Conv" else 1]
    )
    by_channel = weight.reshape(channels, -1, weight.shape[1])
    return np.ascontiguousarray(np.maximum(by_channel.max(1), -by_channel.min(1)).T)


def path_norm(layers: list[chain.Layer], tensors: "Tensors") -> Array:
    """For each logit the sum over all paths, from the input or a bias, of the product of the largest weights
    on it (after Neyshabur et al. 2015). Scaling a channel on one side and undoing it on the other does not
    change it."""
    largest = maxima(layers, tensors)
    reached = np.ones(largest[0].shape[1])
    for layer, weight in zip(layers, largest, strict=True):
        reached = weight @ reached
        if layer.bias:
            reached += np.abs(array(tensors[layer.bias]))
    return reached


def ensure_unchanged(before: Array, after: Array) -> None:
    """Check that the path norms [classes] are the same.

    Raises:
        CheckFailedError: a channel was not multiplied on one side by what it was divided by on the other.
    """
    difference = float((np.abs(after - before) / np.maximum(before, np.finfo(np.float64).tiny)).max())
    if not difference <= TOLERANCE:
        raise CheckFailedError(
            f"equalizing changed the function: its path norm by {difference:.2g}, at most {TOLERANCE:g}"
            " allowed"
        )


def rescale(layer: chain.Layer, tensors: "Tensors", read: Array | None, written: Array | None) -> None:
    """Multiply what a layer reads of a channel by ``read`` and divide what it writes by ``written``, in
    place."""
    weight = array(tensors[layer.weight]).copy()
    outputs, inputs = (0, 1) if layer.kind == "Conv" else (1, 0)
    if read is not None:
        _multiply(weight, np.repeat(read, weight.shape[inputs] // len(read)), inputs)
    if written is not None:
        _multiply(weight, 1 / written, outputs)
        if layer.bias:
            store(tensors[layer.bias], (array(tensors[layer.bias]) / written).astype(np.float32))
    store(tensors[layer.weight], weight)


def _multiply(weight: Floats, factors: Array, axis: int) -> None:
    weight *= factors.astype(np.float32).reshape([-1 if k == axis else 1 for k in range(weight.ndim)])


def rescaled(seen: dict[str, Seen], layers: list[chain.Layer], scales: list[Array]) -> dict[str, Seen]:
    """What was seen in the tensors of a graph, as it would have been seen after ``equalize``."""
    found = dict(seen)
    for layer, read, written in zip(layers, [None, *scales], [*scales, None], strict=True):
        if read is not None:
            found[layer.input] = seen[layer.input].divided(read)
        if written is not None:
            found[layer.output] = seen[layer.output].divided(written)
    return found
