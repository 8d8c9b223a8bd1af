"""Completes a network that was read from a file by what the user told about it, and says what is assumed."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError, OptionsError
from vgg_export.options import AUTO, InputOptions
from vgg_runtime.bundle import input_spec
from vgg_runtime.bundle.input_spec import InputSpec

from . import input_options
from .activations import RELU, Activation
from .assemble import Assembled, side_of
from .chain import AdaptiveAvgPool, AdaptiveMaxPool, Chain, Conv, Layer, Linear
from .provenance import ASSUMED, CONVENTION, TOLD, Origins
from .readers.found import PADDED, Found

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Specified:
    """A network with everything that it needs to run. ``assumed``: sentences about what nobody said."""

    chain: Chain
    tensors: "dict[str, torch.Tensor]"
    origins: Origins
    assumed: tuple[str, ...]


def specify(found: Found, told: InputOptions) -> Specified:
    """Apply what was told to what was found.

    Raises:
        OptionsError: what was told contradicts the file.
        CheckpointError: the layers do not fit the input.
    """
    spec = _input(found.input, told, found.network.channels)
    network, assumed = _sized(found, told, spec.px)
    if told.activation:
        network = dataclasses.replace(network, layers=_activated(network.layers, told, found.origins))
    chain = Chain(spec, network.layers, told.output_kind or found.output)
    origins = _origins(found.origins, told)
    told_better = {flag for flag in FLAGS.values() if any(flag in words for words in assumed)}
    usual = (words for flag, words in in_words(chain, origins) if flag not in told_better)
    return Specified(chain, network.tensors, origins, (*usual, *assumed))


def retold(chain: Chain, told: InputOptions) -> Chain:
    """The chain of a file in our own format with what was told about its input and its output.

    Raises:
        OptionsError: it cannot be so.
    """
    if told.activation:
        raise OptionsError(
            "--activation contradicts the checkpoint, which knows its activations; leave it out"
        )
    spec = _input(chain.input, told, chain.input.channels)
    try:
        return dataclasses.replace(chain, input=spec, output=told.output_kind or chain.output)
    except CheckpointError as error:
        raise OptionsError(f"the checkpoint cannot take what was told: {error}") from error


def _input(spec: InputSpec, told: InputOptions, channels: int) -> InputSpec:
    """The input with what was told about it, for a network whose first layer reads so many channels."""
    spec = input_options.told(spec, told)
    if spec.channels != channels:
        raise OptionsError(
            f"--channels {spec.channels} contradicts the file, whose first layer reads {channels} channels;"
            " leave it out"
        )
    return spec


def _origins(origins: Origins, told: InputOptions) -> Origins:
    parts = {
        "px": told.input_px,
        "channels": told.channels,
        "resize": told.resize,
        "normalize": told.bgr or (told.normalize if told.normalize != AUTO else None),
        "activations": told.activation,
        "output": told.output_kind,
    }
    return dataclasses.replace(origins, **{name: TOLD for name, value in parts.items() if value})


def _sized(found: Found, told: InputOptions, px: int) -> tuple[Assembled, tuple[str, ...]]:
    """The network as it fits the input, and sentences about what is assumed of its layers. Convolutions
    without padding that fit exactly come before a pool that nothing shows."""
    assumed = tuple(words for words in found.assumed if not told.input_px or FLAGS["px"] not in words)
    if found.unpadded and not found.network.fits(px) and found.unpadded.fits(px):
        rest = tuple(words for words in assumed if words != PADDED)
        return found.unpadded, (f"convolutions without padding, since only so {px} px fit", *rest)
    network, pool = _fitting(found.network, px)
    return network, (*pool, *assumed)


def _fitting(network: Assembled, px: int) -> tuple[Assembled, tuple[str, ...]]:
    """The network with an adaptive average pool before its head where it would not fit the input otherwise,
    and a sentence about that.

    Raises:
        CheckpointError: it does not fit in any way.
    """
    if network.fits(px):
        return network, ()
    has_pool = any(isinstance(layer, AdaptiveAvgPool | AdaptiveMaxPool) for layer in network.layers)
    head = next((layer for layer in network.layers if isinstance(layer, Linear)), None)
    columns, sizes = network.columns, network.sizes()
    if head and columns and not has_pool:
        before = network.layers[: network.layers.index(head)]
        width = next(layer.outputs for layer in reversed(before) if isinstance(layer, Conv))
        side = side_of(columns // width)
        if side and (pooled := network.pooled_to((side, side))).fits(px):
            return pooled, (
                f"an adaptive average pool to {side} x {side} before the head, which reads so many places and"
                f" would not fit {px} px without",
            )
    fitting = f"{sizes[0]} to {sizes[-1]} px fit" if sizes else "no size fits"
    raise CheckpointError(
        f"the layers do not fit an input of {px} px ({fitting}); tell the size that the network was trained"
        " with by --input-px"
    )


def _activated(layers: tuple[Layer, ...], told: InputOptions, origins: Origins) -> tuple[Layer, ...]:
    """The layers with another activation behind the fully connected ones where ReLU was assumed.

    Raises:
        OptionsError: the file says which activations there are.
    """
    assert told.activation
    if origins.activations != ASSUMED:
        raise OptionsError(
            f"--activation {told.activation} contradicts the file, which says its activations; leave it out"
        )
    text = Activation.of(told.activation).text
    return tuple(
        dataclasses.replace(layer, activation=text)
        if isinstance(layer, Linear) and layer.activation == RELU
        else layer
        for layer in layers
    )


def in_words(chain: Chain, origins: Origins) -> Iterator[tuple[str, str]]:
    """What is assumed or follows from a convention, part by part: the flag that says otherwise, and a
    sentence with it."""
    spec = chain.input
    said = {
        "activations": "ReLU behind every layer but the last",
        "px": f"an input of {spec.px} x {spec.px} px",
        "normalize": input_spec.normalization_in_words(spec),
        "resize": input_spec.resize_in_words(spec),
        "output": OUTPUT_WORDS[chain.output],
    }
    for part, words in said.items():
        origin = getattr(origins, part)
        if origin == ASSUMED or (origin == CONVENTION and part in ("px", "normalize", "resize")):
            yield FLAGS[part], f"{words} (else {FLAGS[part]})"


FLAGS = {
    "activations": "--activation",
    "px": "--input-px",
    "normalize": "--normalize and --bgr",
    "resize": "--resize",
    "output": "--output-kind",
}
OUTPUT_WORDS = {
    "softmax": "one class per picture (softmax)",
    "sigmoid": "two classes, told by one output (sigmoid)",
    "multi-label": "each label by itself there or not (sigmoids)",
}
