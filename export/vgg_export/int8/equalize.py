"""Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias
Correction").

A channel between two layers can be divided by any positive scale in the first layer and multiplied by it in
the second without changing the function, because ReLU, LeakyReLU, pooling and flattening commute with the
scale. Where something else is between them, the channel stays as it is. The
scale is chosen such that the largest weight of a channel is the same in both layers. The weights are
quantized per channel, so the gain is in the activations: their channels fill the common range more evenly.
Equalization can also be a loss, so it is only one of the forms that are tried.
"""

import itertools
from collections.abc import Sequence
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


ROUNDS = 100  # at most; equalizing one pair of layers disturbs its neighbours, so it takes several


SETTLED = 1e-3  # the rounds end when no channel changes by more than this share


TOLERANCE = 1e-4  # relative change of the path norm; each weight is rounded to fp32 twice


def find_scales(model: "onnx.ModelProto") -> list[Array]:
    """The scales [C] that divide the channels after each layer but the last."""
    layers = chain.layers(model)
    return solve(maxima(layers, tensors_of(model)), [layer.is_homogeneous for layer in layers])


def equalize(model: "onnx.ModelProto", scales: list[Array]) -> None:
    """Apply the scales of ``find_scales`` in place. The channels of the input and the logits are not scaled.

    Raises:
        CheckFailedError: the path norms differ afterwards.
    """
    layers, tensors = chain.layers(model), tensors_of(model)
    norm = path_norm(layers, tensors)
    for layer, read, written in zip(layers, [None, *scales], [*scales, None], strict=True):
        rescale(layer, tensors, read, written)
    ensure_unchanged(norm, path_norm(layers, tensors))


def solve(largest: list[Floats], free: Sequence[bool]) -> list[Array]:
    """The scales for layers with ``largest`` as their largest weights between channels, [outputs, inputs]
    each; they stay one behind a layer that is not ``free``. ``largest`` is overwritten."""
    scales = [np.ones(len(weight)) for weight in largest[:-1]]
    for _ in range(ROUNDS):
        change = 0.0
        for k in itertools.compress(range(len(scales)), free):
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
    """The largest |weight| between the channels of every layer: [outputs, inputs] each."""
    return [
        _channel_maxima(layer, before, tensors)
        for layer, before in zip(layers, [None, *layers], strict=False)
    ]


def _channel_maxima(layer: chain.Layer, before: chain.Layer | None, tensors: "Tensors") -> Floats:
    weight = array(tensors[layer.weight])
    if layer.kind == "Conv":
        found = np.asarray(np.abs(weight).max((2, 3)))
        return np.diag(found[:, 0]) if layer.groups > 1 else found
    channels = (
        len(weight) if before is None else tensors[before.weight].dims[0 if before.kind == "Conv" else 1]
    )
    by_channel = weight.reshape(channels, -1, weight.shape[1])
    return np.ascontiguousarray(np.maximum(by_channel.max(1), -by_channel.min(1)).T)


def path_norm(layers: list[chain.Layer], tensors: "Tensors") -> Array:
    """For each logit, the sum over all paths from the input or a bias of the product of the largest weights
    along the path (after Neyshabur et al. 2015). Scaling a channel on one side and undoing it on the other
    does not change it."""
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
            f"equalizing changed the path norm of the function by {difference:.2g}; expected at most"
            f" {TOLERANCE:g}"
        )


def rescale(layer: chain.Layer, tensors: "Tensors", read: Array | None, written: Array | None) -> None:
    """Multiply the weights that read a channel by ``read``, and divide those that write a channel and its
    bias by ``written``, in place."""
    weight = array(tensors[layer.weight]).copy()
    outputs, inputs = (0, 1) if layer.kind == "Conv" else (1, 0)
    if layer.groups > 1:
        inputs = outputs  # each channel by itself
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
    """The statistics of a graph's tensors as they are after ``equalize``."""
    found = dict(seen)
    for layer, read, written in zip(layers, [None, *scales], [*scales, None], strict=True):
        if read is not None:
            found[layer.input] = seen[layer.input].divided(read)
        if written is not None:
            for name in layer.ranged():
                found[name] = seen[name].divided(written)
    return found
