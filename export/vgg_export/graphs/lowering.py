"""Brings a chain into the form that is exported: every layer is one that onnxruntime has an operator for, in
float and in 8 bits. The function of the network stays the same."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from vgg_export.core.errors import CheckpointError
from vgg_export.network.activations import NONE, RELU, Activation
from vgg_export.network.chain import (
    Activate,
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool,
    Chain,
    Conv,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Placed,
    Scale,
)

# The operators of an activation.
OPERATORS: Mapping[str, tuple[str, ...]] = {
    NONE: (),
    RELU: ("Relu",),
    "relu6": ("Clip",),
    "leaky_relu": ("LeakyRelu",),
    "elu": ("Elu",),
    "tanh": ("Tanh",),
    "sigmoid": ("Sigmoid",),
    "silu": ("Sigmoid", "Mul"),
    "gelu": ("Gelu",),
    "gelu_tanh": ("Gelu",),
}
# Rounding to 8 bits does what these do, if what is before them computes something. The later one of two that
# follow each other does what both do.
LIMITS = (RELU, "relu6")
GLOBAL = AdaptiveAvgPool((1, 1))


def lowered(chain: Chain) -> Chain:
    """The chain as it is exported. Layers that it has in addition are of type Scale and change nothing; see
    ``unit_scales``.

    Raises:
        CheckpointError: no operator computes one of its pools.
    """
    layers: list[Layer] = []
    for placed in chain.placed:
        layer = _with_windows(placed)
        if isinstance(layer, Activate):
            _insert(layer, layers)
        elif layer:
            layers.append(layer)
    return dataclasses.replace(chain, layers=tuple(_behind_layers(layers)))


def _with_windows(placed: Placed) -> Layer | None:
    """A layer with an adaptive pool written as a plain one; None where it does nothing."""
    layer = placed.layer
    if isinstance(layer, Flatten) and placed.inputs == placed.outputs:
        return None
    if not isinstance(layer, AdaptiveAvgPool | AdaptiveMaxPool):
        return layer
    if placed.inputs == placed.outputs:
        return None
    if layer == GLOBAL:
        return layer
    (rows, columns), (_, height, width) = layer.size, placed.inputs
    if height % rows or width % columns:
        raise CheckpointError(
            f"{layer.in_words()} gets a map of {height} x {width}, and no operator of ONNX has windows that"
            " differ in size; expected a fully connected layer behind the pool, or an input size (--input-px)"
            " with a map whose sides are multiples of the pool's"
        )
    window = (height // rows, width // columns)
    return AvgPool(window, window) if isinstance(layer, AdaptiveAvgPool) else MaxPool(window, window)


def _insert(layer: Activate, before: list[Layer]) -> None:
    """Put an activation behind the layers before it, but in front of a flattening, and of a max-pool if it
    can change places with it: there it is part of what computes its input. Of two limits one stays."""
    passes = (Flatten, MaxPool) if Activation.of(layer.activation).rising else (Flatten,)
    place = len(before)
    while place and isinstance(before[place - 1], passes):
        place -= 1
    last = before[place - 1] if place else None
    if isinstance(last, Conv | Linear | Activate) and {last.activation, layer.activation} <= {*LIMITS}:
        both = LIMITS[max(map(LIMITS.index, (last.activation, layer.activation)))]
        before[place - 1] = dataclasses.replace(last, activation=both)
    else:
        before.insert(place, layer)


def _behind_layers(layers: Sequence[Layer]) -> Iterator[Layer]:
    """The layers, with a Scale of one wherever something needs a layer before it: at the input, and before an
    activation that rounding does."""
    last: Layer | None = None
    for k, layer in enumerate(layers):
        limits = isinstance(layer, Activate) and layer.activation in LIMITS
        first = last is None and not isinstance(layer, Conv | Linear | Scale)
        if first or (limits and isinstance(last, AvgPool)):
            yield Scale(f"unit{k}")
        yield layer
        last = layer


def unit_scales(chain: Chain) -> dict[str, int]:
    """The scales that ``lowered`` adds to a chain, and their numbers of channels."""
    own = {layer.name for layer in chain.layers if isinstance(layer, Scale)}
    return {
        placed.layer.name: placed.inputs[0]
        for placed in lowered(chain).placed
        if isinstance(placed.layer, Scale) and placed.layer.name not in own
    }


def operators(chain: Chain) -> dict[str, int]:
    """The operators of the exported graph of a chain, and how many of each."""
    counts: collections.Counter[str] = collections.Counter()
    for placed in lowered(chain).placed:
        counts.update(_operators(placed))
    counts["Conv"] += sum(site.layer.factor is not None for site in chain.convs)
    counts["Gemm"] += sum(site.layer.factor is not None for site in chain.linears)
    return {op: count for op, count in sorted(counts.items()) if count}


def _operators(placed: Placed) -> tuple[str, ...]:
    match placed.layer:
        case Conv(activation=activation):
            return ("Conv", *OPERATORS[Activation.of(activation).kind])
        case Linear(activation=activation):
            return ("Gemm", *OPERATORS[Activation.of(activation).kind])
        case Activate(activation):
            return OPERATORS[Activation.of(activation).kind]
        case Scale():
            return ("Conv",) if len(placed.inputs) == 3 else ("Reshape", "Conv", "Reshape")
        case MaxPool():
            return ("MaxPool",)
        case AvgPool():
            return ("AveragePool",)
        case AdaptiveAvgPool():
            return ("GlobalAveragePool",)
        case Flatten():
            return ("Reshape",)
    raise TypeError(f"{placed.layer} has no operator")
