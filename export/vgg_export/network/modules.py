"""Builds the torch module of a chain."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from .activations import NONE, Activation
from .chain import (
    Activate,
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool,
    Chain,
    Conv,
    Flatten,
    Linear,
    MaxPool,
    Part,
    Placed,
    Scale,
    Site,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    Modules = OrderedDict[str, nn.Module]


def build(chain: Chain, *, batch_norm: bool = False, dropout: float = 0.0) -> "nn.Sequential":
    """The network of a chain with PyTorch's default initial weights: [N, channels, px, px] -> logits [N,
    units]. Its parameters have the names of the chain's tensors.

    Args:
        batch_norm: for training: a batch norm behind each convolution, called NAME_norm, which has no bias
            then.
        dropout: for training: the share of dropped features behind each fully connected layer but the last.
    """
    from torch import nn

    modules: Modules = OrderedDict()
    sites, last = {site.name: site for site in chain.sites}, chain.sites[-1].name
    for k, placed in enumerate(chain.placed):
        layer = placed.layer
        if isinstance(layer, Conv | Linear):
            norm = batch_norm and isinstance(layer, Conv)
            _add_site(modules, sites[layer.name], bias=not norm)
            if norm:
                modules[f"{layer.name}_norm"] = nn.BatchNorm2d(layer.outputs)
            if layer.activation != NONE:
                modules[f"{layer.name}_activation"] = Activation.of(layer.activation).module()
            if dropout and isinstance(layer, Linear) and layer.name != last:
                modules[f"{layer.name}_dropout"] = nn.Dropout(dropout)
        elif made := between(placed):
            modules[layer.name if isinstance(layer, Scale) else f"layer{k}"] = made
    return nn.Sequential(modules)


def _add_site(modules: "Modules", site: Site, *, bias: bool) -> None:
    from torch import nn

    for part in site.parts():
        top, left, bottom, right = part.padding
        if (top, left) != (bottom, right):
            modules[f"{part.name}_padding"] = nn.ZeroPad2d((left, right, top, bottom))
        modules[part.name] = module(part, bias=part.bias and bias)


def module(part: Part, *, bias: bool) -> "nn.Module":
    """A convolution or fully connected layer with PyTorch's default initial weights. A padding that differs
    between opposite sides is left to a module before it."""
    from torch import nn

    if part.kernel is None:
        return nn.Linear(part.inputs, part.outputs, bias=bias)
    top, left, bottom, right = part.padding
    padding = (top, left) if (top, left) == (bottom, right) else (0, 0)
    return nn.Conv2d(part.inputs, part.outputs, part.kernel, part.stride, padding, bias=bias)


def between(placed: Placed) -> "nn.Module | None":
    """The module of a layer that is neither a convolution nor fully connected; None where it does nothing."""
    from torch import nn

    from .channel_scale import ChannelScale

    match placed.layer:
        case Scale():
            return ChannelScale(placed.inputs[0])
        case Activate(activation):
            return Activation.of(activation).module()
        case MaxPool(kernel, stride, padding, ceil):
            return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
        case AvgPool(kernel, stride, ceil):
            return nn.AvgPool2d(kernel, stride, ceil_mode=ceil)
        case AdaptiveAvgPool(size):
            return None if placed.inputs == placed.outputs else _adaptive(size, placed)
        case AdaptiveMaxPool(size):
            return None if placed.inputs == placed.outputs else nn.AdaptiveMaxPool2d(size)
        case Flatten():
            return nn.Flatten()
    raise TypeError(f"{placed.layer} is no layer between others")


def _adaptive(size: tuple[int, int], placed: Placed) -> "nn.Module":
    """An adaptive average pool; a plain one where all its windows have one size, which exports better."""
    from torch import nn

    _, height, width = placed.inputs
    if size == (1, 1) or height % size[0] or width % size[1]:
        return nn.AdaptiveAvgPool2d(size)
    window = (height // size[0], width // size[1])
    return nn.AvgPool2d(window, window)


def scale_and_shift(
    *,
    gamma: "torch.Tensor",
    beta: "torch.Tensor",
    mean: "torch.Tensor",
    variance: "torch.Tensor",
    epsilon: float = 1e-5,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """What an evaluation-mode batch norm of vectors [n] does: x * scale + shift, both [n] in float64."""
    scale = gamma.double() / (variance.double() + epsilon).sqrt()
    return scale, beta.double() - mean.double() * scale


def scaled_outputs(
    weight: "torch.Tensor", bias: "torch.Tensor | None", scale: "torch.Tensor", shift: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """A layer with a scale and a shift [n] behind it as one layer.

    Args:
        weight: [n, ...]; bias: [n] or None.

    Returns:
        weight [n, ...] and bias [n] in float32, computed in float64.
    """
    shape = (-1, *(1,) * (weight.dim() - 1))
    moved = shift if bias is None else shift + bias.double() * scale
    return (weight.double() * scale.view(shape)).float(), moved.float()
