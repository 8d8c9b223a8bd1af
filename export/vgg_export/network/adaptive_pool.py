"""Multiplies an adaptive average pool into the fully connected layer behind it."""

import dataclasses
from typing import TYPE_CHECKING

from . import checkpoint as checkpoints
from .chain import AdaptiveAvgPool, Flatten, Linear, Placed

if TYPE_CHECKING:
    import torch


def pooling_matrix(size: tuple[int, int], sides: tuple[int, int]) -> "torch.Tensor":
    """``AdaptiveAvgPool2d(size)`` on a map of ``sides`` (rows, columns), as a float64 matrix [places of
    ``size``, places of the map]."""
    import torch

    area = sides[0] * sides[1]
    basis = torch.eye(area, dtype=torch.float64).view(area, 1, *sides)
    return torch.nn.functional.adaptive_avg_pool2d(basis, size).flatten(1).T.contiguous()


def without_pool(checkpoint: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """The checkpoint with its adaptive average pool multiplied into the fully connected layer behind it,
    where the windows of the pool differ in size or overlap. The function stays the same."""
    chain = checkpoint.chain
    uneven = (k for k, placed in enumerate(chain.placed) if _is_uneven(placed))
    k = next(uneven, len(chain.layers))
    if [type(layer) for layer in chain.layers[k + 1 : k + 3]] != [Flatten, Linear]:
        return checkpoint
    placed, linear = chain.placed[k], chain.layers[k + 2]
    assert isinstance(linear, Linear)
    assert isinstance(placed.layer, AdaptiveAvgPool)  # as _is_uneven says
    matrix = pooling_matrix(placed.layer.size, (placed.inputs[1], placed.inputs[2]))
    name = f"{chain.site(linear.name).parts()[0].name}.weight"
    weight = checkpoint.tensors[name]
    folded = (weight.view(weight.shape[0], -1, matrix.shape[0]) @ matrix.to(weight.dtype)).flatten(1)
    layers = (*chain.layers[:k], *chain.layers[k + 1 :])
    return dataclasses.replace(
        checkpoint,
        chain=dataclasses.replace(chain, layers=layers),
        tensors=checkpoint.tensors | {name: folded},
    )


def _is_uneven(placed: Placed) -> bool:
    """Whether a layer is an adaptive average pool whose windows differ in size or overlap."""
    if not isinstance(placed.layer, AdaptiveAvgPool):
        return False
    (rows, columns), (_, height, width) = placed.layer.size, placed.inputs
    return bool(height % rows or width % columns)
