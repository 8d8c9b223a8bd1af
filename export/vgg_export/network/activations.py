"""The activations that a layer can have."""

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

NONE, RELU = "none", "relu"
_SLOPES = {"leaky_relu": 0.01, "elu": 1.0}  # the kinds with a number, and the number where none is given
_PLAIN = (RELU, "relu6", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh")
KINDS = (*_PLAIN, *_SLOPES, NONE)
# x < y gives f(x) <= f(y): such a function and a max-pool can change places
_RISING = (RELU, "relu6", "tanh", "sigmoid", NONE)


@dataclasses.dataclass(frozen=True)
class Activation:
    """``kind``: one of KINDS. ``slope``: of leaky_relu below zero, or alpha of elu; None for the others.

    As a text it is the kind, with the slope in brackets where there is one: ``relu``, ``leaky_relu(0.2)``.
    """

    kind: str
    slope: float | None = None

    @classmethod
    def of(cls, text: str) -> "Activation":
        """The activation that a text names.

        Raises:
            CheckpointError: there is no such activation, or its number is missing its meaning.
        """
        match = re.fullmatch(r"([a-z0-9_]+)(?:\(([-+.e0-9]+)\))?", text)
        if not match or match[1] not in KINDS or (match[2] and match[1] not in _SLOPES):
            raise CheckpointError(
                f"{text!r} is no activation that this program knows; expected one of {', '.join(KINDS)}, with"
                " a slope in brackets such as leaky_relu(0.2) for leaky_relu and elu"
            )
        try:
            slope = float(match[2]) if match[2] else _SLOPES.get(match[1])
        except ValueError as error:
            raise CheckpointError(f"the slope of {text!r} is no number") from error
        return cls(match[1], slope)

    @property
    def text(self) -> str:
        """What ``of`` reads."""
        return self.kind if self.slope is None else f"{self.kind}({self.slope:g})"

    @property
    def rising(self) -> bool:
        """Whether a larger input never gives a smaller output: it can change places with a max-pool."""
        return self.kind in _RISING or (self.slope is not None and self.slope >= 0)

    @property
    def keeps_zero(self) -> bool:
        """Whether zero stays zero."""
        return self.kind != "sigmoid"

    def function(self) -> "Callable[[torch.Tensor], torch.Tensor]":
        """The function on a tensor of any shape; it may change its input in place."""
        from torch.nn import functional as f

        slope = self.slope or 0.0
        table: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            NONE: lambda x: x,
            RELU: lambda x: x.relu_(),
            "relu6": f.relu6,
            "tanh": lambda x: x.tanh(),
            "sigmoid": lambda x: x.sigmoid(),
            "silu": f.silu,
            "gelu": f.gelu,
            "gelu_tanh": lambda x: f.gelu(x, approximate="tanh"),
            "leaky_relu": lambda x: f.leaky_relu(x, slope),
            "elu": lambda x: f.elu(x, slope),
        }
        return table[self.kind]

    def module(self) -> "nn.Module":
        """A torch module of the function."""
        from torch import nn

        slope = self.slope or 0.0
        table: dict[str, Callable[[], nn.Module]] = {
            NONE: nn.Identity,
            RELU: lambda: nn.ReLU(inplace=True),
            "relu6": nn.ReLU6,
            "tanh": nn.Tanh,
            "sigmoid": nn.Sigmoid,
            "silu": nn.SiLU,
            "gelu": nn.GELU,
            "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
            "leaky_relu": lambda: nn.LeakyReLU(slope),
            "elu": lambda: nn.ELU(slope),
        }
        return table[self.kind]()
