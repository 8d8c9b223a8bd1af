"""Drawn networks whose predictions depend on the picture, and a zoo of small ones of every kind."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import input_size
from vgg_export.network.activations import NONE, RELU
from vgg_export.network.chain import (
    Activate,
    AdaptiveAvgPool,
    AvgPool,
    Chain,
    Conv,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Scale,
    named,
)
from vgg_export.network.provenance import Provenance
from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.input_spec import InputSpec


def at_64_px(checkpoint: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """A small checkpoint whose input is 64 px, so that a test is quick."""
    return input_size.fold(checkpoint, 64)


def undecided(checkpoint: checkpoints.Checkpoint, x: torch.Tensor) -> checkpoints.Checkpoint:
    """The checkpoint with logits that have mean zero and standard deviation two over the pictures ``x``. Most
    drawn networks give every picture the same class, so surely that changes of their layers hardly show."""
    with torch.inference_mode():
        logits = checkpoint.model()(x)
    last = checkpoint.chain.sites[-1].name
    weight, bias = (checkpoint.tensors[f"{last}.{part}"] for part in ("weight", "bias"))
    scale = 2 / logits.std(0)
    by_output = scale.view(-1, *(1,) * (weight.dim() - 1))
    changed = {f"{last}.weight": weight * by_output, f"{last}.bias": (bias - logits.mean(0)) * scale}
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | changed)


def awake(checkpoint: checkpoints.Checkpoint, layer: str, x: torch.Tensor) -> checkpoints.Checkpoint:
    """The checkpoint with a convolution whose filters each have mean zero over the pictures ``x`` before the
    activation. Some drawn filters are zero, or nearly so, for every picture."""
    network = checkpoint.model()
    with torch.inference_mode():
        said = network[: list(dict(network.named_children())).index(layer) + 1](x)
    changed = {f"{layer}.bias": checkpoint.tensors[f"{layer}.bias"] - said.mean((0, 2, 3))}
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | changed)


def drawn(
    layers: Sequence[Layer], px: int, channels: int = 3, output: str = outputs.SOFTMAX, seed: int = 0
) -> checkpoints.Checkpoint:
    """A checkpoint of these layers with drawn tensors and logits that depend on the picture. Convolutions and
    fully connected layers get the names of ``chain.named``."""
    spec = InputSpec(px, px, (0.5,) * channels, (0.25,) * channels, channels)
    network = Chain(spec, named(layers)[0], output)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in network.tensor_shapes().items():
        tensor = torch.randn(shape, generator=generator)
        fan_in = tensor[0].numel()
        spread = 0.1 if name.endswith("bias") else (2 / fan_in) ** 0.5
        is_scale = tensor.dim() == 1 and name.endswith("weight")
        tensors[name] = 1 + 0.3 * tensor if is_scale else spread * tensor
    labels = tuple(f"class {k}" for k in range(network.classes))
    made = checkpoints.Checkpoint(network, tensors, labels, Provenance("file", "drawn for tests"))
    return undecided(made, pictures(made, 30))


def pictures(checkpoint: checkpoints.Checkpoint, count: int, seed: int = 0) -> torch.Tensor:
    """Noise [count, channels, px, px] for a network."""
    spec = checkpoint.chain.input
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, spec.channels, spec.px, spec.px, generator=generator)


def conv(outputs: int, size: int = 3, activation: str = RELU, **more: Any) -> Conv:
    """A convolution with a square kernel that keeps the size of the map."""
    half = size // 2
    usual = {"kernel": (size, size), "padding": (half,) * 4, "activation": activation}
    return Conv("", outputs, **(usual | more))


def linears(*widths: int, activation: str = RELU) -> list[Linear]:
    """Fully connected layers; the last one gives logits."""
    return [*(Linear("", width, activation) for width in widths[:-1]), Linear("", widths[-1], NONE)]


def _layers(*layers: Layer) -> tuple[Layer, ...]:
    """Layers with names that differ from each other."""
    return tuple(
        dataclasses.replace(layer, name=f"layer{k}") if isinstance(layer, Conv | Linear | Scale) else layer
        for k, layer in enumerate(layers)
    )


_BODY = (conv(16), conv(16), MaxPool(), conv(24), MaxPool())
_GLOBAL = (AdaptiveAvgPool((1, 1)), Flatten())
# Small networks of every kind that people have, as arguments of ``drawn``.
_KINDS: dict[str, dict[str, Any]] = {
    "global pooling": {"layers": (*_BODY, conv(24), *_GLOBAL, *linears(5)), "px": 32},
    "no adaptive pool": {"layers": (*_BODY, conv(16), MaxPool(), Flatten(), *linears(20, 5)), "px": 32},
    "large kernels": {
        "layers": (
            *(conv(16, 7, stride=(2, 2)), MaxPool((3, 3), (2, 2), (1, 1))),
            *(conv(24, 5, stride=(2, 2), padding=(1, 1, 2, 2)), conv(16, 1), conv(16, 5)),
            *(AdaptiveAvgPool((2, 2)), Flatten(), *linears(20, 5)),
        ),
        "px": 48,
    },
    **{
        f"{kind} head": {"layers": (*_BODY, Flatten(), *linears(24, 20, 5, activation=kind)), "px": 32}
        for kind in ("leaky_relu(0.2)", "tanh", "silu")
    },
    "sigmoid everywhere": {
        "layers": (
            *(conv(16, activation="sigmoid"), AvgPool(), conv(16, activation="elu"), AvgPool(), Flatten()),
            *linears(20, 5, activation="sigmoid"),
        ),
        "px": 32,
    },
    "scales": {
        "layers": (
            *(
                Scale(""),
                conv(16),
                Scale(""),
                MaxPool(),
                conv(24, activation=NONE),
                MaxPool(),
                Activate("tanh"),
            ),
            *(Scale(""), Flatten(), Scale(""), Linear("", 20), Scale(""), *linears(5), Scale("")),
        ),
        "px": 32,
    },
    "one channel": {"layers": (*_BODY, conv(16), Flatten(), *linears(20, 5)), "px": 48, "channels": 1},
    "sigmoid": {
        "layers": (*_BODY, AdaptiveAvgPool((4, 4)), Flatten(), *linears(20, 1)),
        "px": 32,
        "output": outputs.SIGMOID,
    },
    "multi-label": {
        "layers": (*_BODY, *_GLOBAL, *linears(20, 6)),
        "px": 32,
        "output": outputs.MULTI_LABEL,
    },
    "one linear layer": {"layers": (*_BODY, Flatten(), *linears(5)), "px": 32},
    "four linear layers": {"layers": (*_BODY, Flatten(), *linears(32, 24, 20, 5)), "px": 32},
    "convolutions alone": {"layers": (*_BODY, conv(24), conv(5, 1, NONE), *_GLOBAL), "px": 32},
}
ZOO = tuple(_KINDS)


def of_zoo(name: str, seed: int = 0) -> checkpoints.Checkpoint:
    """A small network of the zoo."""
    kind = _KINDS[name]
    return drawn(**{**kind, "layers": _layers(*kind["layers"]), "seed": seed})
