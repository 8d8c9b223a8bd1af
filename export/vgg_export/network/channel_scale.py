"""The torch module of a ``chain.Scale``, in a file of its own because it needs torch to be imported."""

import torch
from torch import nn


class ChannelScale(nn.Module):
    """x * weight + bias per channel, both [channels]: [N, channels, ...] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (-1, *(1,) * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)
