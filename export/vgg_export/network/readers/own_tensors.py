"""The parameters and buffers that a class of the user's own has beside those of its layers."""

import re
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError
from vgg_runtime.text import printable

from .module_layers import EXPORT, NORMALIZE, Leaf
from .pickle_machine import Stub
from .torch_inputs import white_of

if TYPE_CHECKING:
    import torch

_MEAN, _STD = "mean", "std"
_OF_THE_LOSS = re.compile(r"(?:class|pos|loss|label|ce)_?weights?")


def normalisation(leaf: Leaf) -> Leaf | None:
    """The normalisation of the input, (x - mean) / std of values of 0 to 1, that the tensors of a module
    stand for; None: it has none.

    Raises:
        CheckpointError: it has other tensors, which its code uses in a way that the file does not tell.
    """
    import torch

    held = {**leaf.inside("_parameters"), **leaf.inside("_buffers")}
    unread = {
        name: one
        for name, one in held.items()
        if isinstance(one, torch.Tensor | Stub) and not (_is_counter(one) or _OF_THE_LOSS.fullmatch(name))
    }
    found = None
    for name in [name for name in unread if name.endswith(_MEAN)]:
        other = name.removesuffix(_MEAN) + _STD
        mean, std = unread[name], unread.get(other)
        if found or not isinstance(mean, torch.Tensor) or not isinstance(std, torch.Tensor):
            continue
        if _are_statistics(mean, std):
            found = _normalize(leaf, (name, other), mean, std)
            del unread[name], unread[other]
    if unread:
        names = " and ".join(f"{printable(name, 60)} {_shape(one)}" for name, one in unread.items())
        raise CheckpointError(
            f"{leaf.shown} holds {names} beside its layers, and what its code does with that is not in the"
            f" file: {EXPORT}"
        )
    return found


def _is_counter(value: "torch.Tensor | Stub") -> bool:
    return not isinstance(value, Stub) and value.numel() <= 1 and not value.is_floating_point()


def _shape(value: "torch.Tensor | Stub") -> str:
    return "of a special kind" if isinstance(value, Stub) else str(list(value.shape))


def _are_statistics(mean: "torch.Tensor | Stub", std: "torch.Tensor | Stub") -> bool:
    if isinstance(mean, Stub) or isinstance(std, Stub) or mean.numel() != std.numel():
        return False
    is_finite = all(bool(one.isfinite().all()) for one in (mean, std))
    return (
        mean.numel() > 0
        and max(mean.shape, default=1) == mean.numel()
        and is_finite
        and bool((std > 0).all())
    )


def _normalize(leaf: Leaf, names: tuple[str, str], mean: "torch.Tensor", std: "torch.Tensor") -> Leaf:
    white = white_of(mean, std)
    values = {"mean": (mean.double() / white).flatten(), "std": (std.double() / white).flatten()}
    stub = Stub(NORMALIZE, state={name: value.tolist() for name, value in values.items()})
    prefix = "" if leaf.path == "network" else f"{leaf.path}."
    return Leaf(f"{prefix}{names[0]} and {prefix}{names[1]}", stub, leaf.path)
