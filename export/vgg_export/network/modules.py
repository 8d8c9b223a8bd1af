"""Builds the torch module of a plan."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from .chain import Layer, Plan

if TYPE_CHECKING:
    import torch
    from torch import nn


def build(plan: Plan, *, batch_norm: bool = False, dropout: float = 0.0) -> "nn.Sequential":
    """The network of a plan with PyTorch's default initial weights: [N, 3, input_px, input_px] -> logits [N,
    classes]."""
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    convs = plan.convs()
    for b, block in enumerate(plan.blocks, 1):
        for _ in block:
            name, c, n = next(convs)
            for part in plan.parts(name, c, n, plan.input_px):
                layers[part.name] = module(part, bias=part.bias and not batch_norm)
            if batch_norm:
                layers[name.replace("conv", "bn")] = nn.BatchNorm2d(n)
            layers[name.replace("conv", "relu")] = nn.ReLU(inplace=True)
        layers[f"pool{b}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    for name, c, n in plan.linears():
        for part in plan.parts(name, c, n, 1):
            layers[part.name] = module(part, bias=part.bias)
        if name != "fc3":
            layers[name.replace("fc", "relu_fc")] = nn.ReLU(inplace=True)
            if dropout:
                layers[name.replace("fc", "dropout")] = nn.Dropout(dropout)
    return nn.Sequential(layers)


def module(layer: Layer, *, bias: bool) -> "nn.Module":
    """A layer with PyTorch's default initial weights."""
    from torch import nn

    if layer.kernel is None:
        return nn.Linear(layer.inputs, layer.outputs, bias=bias)
    height, width = layer.kernel
    return nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, padding=(height // 2, width // 2), bias=bias)


def fold_batch_norm(
    weight: "torch.Tensor",
    bias: "torch.Tensor | None",
    *,
    gamma: "torch.Tensor",
    beta: "torch.Tensor",
    mean: "torch.Tensor",
    variance: "torch.Tensor",
    epsilon: float = 1e-5,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Multiply an evaluation-mode batch norm into the convolution before it.

    Args:
        weight: [n, c, 3, 3]; bias [n] or None; the batch norm's vectors [n].

    Returns:
        weight [n, c, 3, 3] and bias [n] of the single convolution with the same function, computed in
        float64.
    """
    scale = gamma.double() / (variance.double() + epsilon).sqrt()
    shift = beta.double() + ((0 if bias is None else bias.double()) - mean.double()) * scale
    return (weight.double() * scale.view(-1, 1, 1, 1)).float(), shift.float()
