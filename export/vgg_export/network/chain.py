"""The channel plan of a VGG: its layers, their shapes and what they cost.

A pruned VGG is only another plan. All later stages (fold, export, quantize, the manifest) read the plan and
never guess from layer names.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Self

from vgg_export.core.errors import CheckpointError
from vgg_runtime.records import FieldError, Record

CONVS_PER_BLOCK = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


STRIDE_PX = 32  # five 2x2 max-pools


POOLED_PX = 7  # torchvision's AdaptiveAvgPool2d((7, 7)) in front of fc1


# How a layer of c inputs and n outputs is replaced by two thinner ones with r between them, without a
# non-linearity there.
FACTORS = {
    "channel": ((3, 3), (1, 1)),  # 3x3 c -> r, then 1x1 r -> n (Zhang et al. 2015)
    "spatial": ((3, 1), (1, 3)),  # 3x1 c -> r, then 1x3 r -> n (Jaderberg et al. 2014)
    "linear": (None, None),  # fully connected c -> r, then r -> n
}


@dataclasses.dataclass(frozen=True)
class Factor(Record):
    """A layer of the plan that is made of two. ``kind``: a key of FACTORS. ``rank``: the number of channels
    between the two."""

    layer: str
    kind: str
    rank: int


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with weights as it is executed. ``kernel``: height and width, or None for a fully connected
    layer. ``side_px``: the side of its feature map."""

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] | None
    side_px: int
    bias: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight tensor: [n, c, height, width] or [n, c]."""
        return (self.outputs, self.inputs, *(self.kernel or ()))

    def parameters(self) -> int:
        """The number of weights and biases."""
        return math.prod(self.shape) + (self.outputs if self.bias else 0)

    def macs(self) -> int:
        """Multiply-accumulates of one inference (biases not counted)."""
        return math.prod(self.shape) * self.side_px**2


@dataclasses.dataclass(frozen=True)
class Plan(Record):
    """The shape of a VGG: output channels of every convolution by block, then three fully connected layers.
    ``factors`` names the layers that are made of two thinner ones.

    ``input_px`` is the side of the square input the network takes. At 224 px the feature map is 7x7 and the
    adaptive pool of torchvision is the identity, so the network has no pool at all. For other sizes
    ``input_size.fold`` multiplies the pool into fc1.
    """

    family: str
    blocks: tuple[tuple[int, ...], ...]
    hidden: tuple[int, int]
    classes: int
    input_px: int = 224
    factors: tuple[Factor, ...] = ()

    def __post_init__(self) -> None:
        counts = tuple(len(block) for block in self.blocks)
        if CONVS_PER_BLOCK.get(self.family) != counts:
            known = ", ".join(f"{name} {convs}" for name, convs in CONVS_PER_BLOCK.items())
            raise CheckpointError(
                f"{self.family!r} with {counts} convolutions per block is not a VGG; expected one of: {known}"
            )
        if min(*(w for block in self.blocks for w in block), *self.hidden, self.classes) < 1:
            raise CheckpointError(
                f"every layer needs at least one output, found widths {self.blocks}, {self.hidden} and"
                f" {self.classes} classes"
            )
        if self.classes < 2:
            raise CheckpointError(
                "a network with one output has no classes to choose from; expected at least two classes,"
                " one output each"
            )
        if self.input_px < STRIDE_PX:
            raise CheckpointError(
                f"the input must be at least {STRIDE_PX} px, because a VGG halves it five times; found"
                f" {self.input_px}"
            )
        sizes = {name: (c, n) for name, c, n in (*self.convs(), *self.linears())}
        for factor in self.factors:
            kinds = ("linear",) if factor.layer.startswith("fc") else ("channel", "spatial")
            if factor.layer not in sizes or factor.kind not in kinds or factor.rank < 1:
                raise CheckpointError(
                    f"{factor} is no factorisation of a layer of {self.family}; expected a rank and one of"
                    f" {kinds}"
                )
        if len({factor.layer for factor in self.factors}) != len(self.factors):
            raise CheckpointError("a layer is factorised twice in the plan")

    @property
    def grid_px(self) -> int:
        """Side of the feature map that fc1 reads."""
        return self.input_px // STRIDE_PX

    def convs(self) -> Iterator[tuple[str, int, int]]:
        """``(name, input channels, output channels)`` of every convolution, input to output."""
        channels = 3
        for b, block in enumerate(self.blocks, 1):
            for j, width in enumerate(block, 1):
                yield f"conv{b}_{j}", channels, width
                channels = width

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """``(name, inputs, outputs)`` of the three fully connected layers."""
        sizes = (self.blocks[-1][-1] * self.grid_px**2, *self.hidden, self.classes)
        for k in range(3):
            yield f"fc{k + 1}", sizes[k], sizes[k + 1]

    def layers(self) -> Iterator[Layer]:
        """Every layer with weights as it is executed, input to output."""
        convs = self.convs()
        for b, block in enumerate(self.blocks):
            for _ in block:
                yield from self.parts(*next(convs), side_px=self.input_px // 2**b)
        for linear in self.linears():
            yield from self.parts(*linear, side_px=1)

    def parts(self, name: str, inputs: int, outputs: int, side_px: int) -> tuple[Layer, ...]:
        """The one or two layers that a layer of the plan is made of. The names of the two end in _reduce and
        _expand."""
        factor = next((f for f in self.factors if f.layer == name), None)
        if factor is None:
            kernel = None if name.startswith("fc") else (3, 3)
            return (Layer(name, inputs, outputs, kernel, side_px, bias=True),)
        first, second = FACTORS[factor.kind]
        return (
            Layer(f"{name}_reduce", inputs, factor.rank, first, side_px, bias=False),
            Layer(f"{name}_expand", factor.rank, outputs, second, side_px, bias=True),
        )

    def first_linear(self) -> str:
        """The name of the layer that reads the feature map."""
        return next(layer.name for layer in self.layers() if layer.kernel is None)

    def parameters(self) -> int:
        """The number of weights and biases."""
        return sum(layer.parameters() for layer in self.layers())

    def macs(self) -> int:
        """Multiply-accumulates of one inference (biases not counted)."""
        return sum(layer.macs() for layer in self.layers())

    @classmethod
    def from_json(cls, document: object, path: str = "") -> Self:
        """The plan that ``to_json`` gave.

        Raises:
            CheckpointError: the data is damaged.
        """
        try:
            return super().from_json(document, path)
        except FieldError as error:
            raise CheckpointError(
                f"the channel plan is damaged ({error}); expected family, blocks, hidden, classes, input_px"
            ) from error


@dataclasses.dataclass(frozen=True)
class Change(Record):
    """A number before and after a change of the plan."""

    before: int
    after: int


def sizes(before: Plan, after: Plan) -> tuple[Change, Change]:
    """The change of parameters and of multiply-accumulates between two plans."""
    return Change(before.parameters(), after.parameters()), Change(before.macs(), after.macs())


def sizes_in_words(before: Plan, after: Plan) -> str:
    """``sizes`` as a phrase."""
    return (
        f"{before.parameters() / 1e6:.2f} M to {after.parameters() / 1e6:.2f} M parameters,"
        f" {before.macs() / 1e9:.2f} to {after.macs() / 1e9:.2f} GMACs"
    )


def full_width(family: str, classes: int = 1000) -> Plan:
    """The plan of torchvision's ``family`` (vgg11, vgg13, vgg16 or vgg19)."""
    widths = (64, 128, 256, 512, 512)
    blocks = tuple((w,) * count for w, count in zip(widths, CONVS_PER_BLOCK[family], strict=True))
    return Plan(family, blocks, (4096, 4096), classes)


def expected_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of a plan."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in plan.layers():
        shapes[f"{layer.name}.weight"] = layer.shape
        if layer.bias:
            shapes[f"{layer.name}.bias"] = (layer.outputs,)
    return shapes
