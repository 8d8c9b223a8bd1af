"""The input of a network of PyTorch, whose file does not say how pictures are prepared for it."""

import dataclasses
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError
from vgg_export.network.assemble import Assembled
from vgg_runtime.bundle.input_spec import COLOURS, IMAGENET_MEAN, IMAGENET_STD, InputSpec

if TYPE_CHECKING:
    import torch

USUAL_PX, USUAL_RESIZE_PX = 224, 256

MOST_UNIT = 3  # the largest sum of mean and standard deviation that is one of values of 0 to 1

Vector = tuple[float, ...]  # one number for each channel


def as_usual(
    network: Assembled, px: int, mean: Vector | None = None, std: Vector | None = None, *, bgr: bool = False
) -> InputSpec:
    """An input of ``px``: the middle of the picture at 224 px, else the whole picture.

    Args:
        mean, std: of the values that the network itself gets, of 0 to 1; without them ImageNet's for colours,
            else the values as they are. A normalisation at the front of the network is put on top.

    Raises:
        CheckpointError: the network multiplies its input by a number that is not above zero.
    """
    plain = usual(px, network.channels)
    if mean is None or std is None:
        mean, std = plain.mean, plain.std
    mean, std = _with_norm(network, mean, std)
    return dataclasses.replace(plain, mean=mean, std=std, bgr=bgr and network.channels == COLOURS)


def usual(px: int, channels: int) -> InputSpec:
    """The commonest input of ``px``: colours with ImageNet's mean and standard deviation, grey as it is."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == COLOURS else ((0.0,), (1.0,))
    if px == USUAL_PX:
        return InputSpec(USUAL_RESIZE_PX, px, mean, std, channels)
    return InputSpec(px, px, mean, std, channels, "squash")


def white_of(mean: "torch.Tensor", std: "torch.Tensor") -> float:
    """The value of white that a mean and a standard deviation, [channels] each, belong to: 1 where they are
    of values of 0 to 1, else 255."""
    return 1.0 if float((mean.abs() + std).max()) <= MOST_UNIT else 255.0


def _with_norm(network: Assembled, mean: Vector, std: Vector) -> tuple[Vector, Vector]:
    """Mean and standard deviation with what the network does to its input first."""
    if network.scale is None or network.shift is None:
        return mean, std
    if not bool((network.scale > 0).all()):
        raise CheckpointError(
            "a factor of the batch norm of its input is not above zero; expected all above zero, as training"
            " leaves them: export the network to ONNX"
        )
    both = zip(mean, std, network.scale.tolist(), network.shift.tolist(), strict=True)
    pairs = [(m - t * s / f, s / f) for m, s, f, t in both]
    return tuple(m for m, _ in pairs), tuple(s for _, s in pairs)
