"""A network as a chain: its input, its layers in their order, and what its outputs mean.

A pruned or factorised network is only another chain. All later stages read the chain and never guess from the
names of layers.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from vgg_export.core.errors import CheckpointError
from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.input_spec import InputSpec, for_input
from vgg_runtime.records import FieldError, Record

from .activations import NONE, RELU, Activation

CONVS_PER_STAGE = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}

Shape = tuple[int, ...]  # of what passes between two layers: (channels, height, width) or (features,)


@dataclasses.dataclass(frozen=True)
class Factor(Record):
    """A layer made of two thinner ones with ``rank`` channels between them, and no activation there.

    ``kind``: "channel" is kxk to the rank, then 1x1 (Zhang et al. 2015); "spatial" is kx1, then 1xk
    (Jaderberg et al. 2014); "linear" is two fully connected layers.
    """

    kind: str
    rank: int


@dataclasses.dataclass(frozen=True)
class Layer(Record):
    """The base of all layers. A layer is written with its type, the name of its class in lower case."""

    def to_json(self) -> dict[str, Any]:
        return {"type": type(self).__name__.lower(), **super().to_json()}

    def shape_behind(self, shape: Shape) -> Shape:
        """The shape of what it gives for an input of ``shape``.

        Raises:
            CheckpointError: it cannot take this input.
        """
        raise NotImplementedError

    def _maps(self, shape: Shape) -> tuple[int, int, int]:
        if len(shape) != 3:
            raise CheckpointError(
                f"{self.in_words()} follows the flattening; expected it before, where there are maps"
            )
        return shape[0], shape[1], shape[2]

    def in_words(self) -> str:
        """The layer as a person names it."""
        return type(self).__name__


@dataclasses.dataclass(frozen=True)
class Conv(Layer):
    """A convolution with bias, and its activation. ``kernel`` and ``stride``: (height, width). ``padding``:
    zeros at (top, left, bottom, right). Its tensors: ``NAME.weight`` [outputs, channels, height, width] and
    ``NAME.bias`` [outputs]."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    activation: str = RELU
    factor: Factor | None = None

    def shape_behind(self, shape: Shape) -> Shape:
        _, *sides = self._maps(shape)
        top, left, bottom, right = self.padding
        padded = (sides[0] + top + bottom, sides[1] + left + right)
        return (self.outputs, *_windows(self, padded, self.kernel, self.stride))

    def in_words(self) -> str:
        return f"{self.name} ({self.kernel[0]}x{self.kernel[1]} convolution)"


@dataclasses.dataclass(frozen=True)
class Linear(Layer):
    """A fully connected layer with bias, and its activation. Its tensors: ``NAME.weight`` [outputs, inputs],
    behind a flattening with the inputs in the order channel, row, column, and ``NAME.bias`` [outputs]."""

    name: str
    outputs: int
    activation: str = RELU
    factor: Factor | None = None

    def shape_behind(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise CheckpointError(f"{self.name} reads maps of {shape}; expected a flattening before it")
        return (self.outputs,)

    def in_words(self) -> str:
        return f"{self.name} (fully connected)"


@dataclasses.dataclass(frozen=True)
class Scale(Layer):
    """x * ``NAME.weight`` + ``NAME.bias``, both [channels]: a batch norm that fits into no other layer."""

    name: str

    def shape_behind(self, shape: Shape) -> Shape:
        return shape

    def in_words(self) -> str:
        return f"{self.name} (scale and shift per channel)"


@dataclasses.dataclass(frozen=True)
class Activate(Layer):
    """An activation that does not follow a convolution or a fully connected layer at once."""

    activation: str

    def shape_behind(self, shape: Shape) -> Shape:
        return shape

    def in_words(self) -> str:
        return self.activation


@dataclasses.dataclass(frozen=True)
class MaxPool(Layer):
    """The largest of each window. ``padding``: (rows, columns) on both sides. ``ceil``: a last window that is
    not full counts."""

    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    ceil: bool = False

    def shape_behind(self, shape: Shape) -> Shape:
        return _pooled(self, self._maps(shape), self.kernel, self.stride, self.padding, ceil=self.ceil)

    def in_words(self) -> str:
        return f"{self.kernel[0]}x{self.kernel[1]} max-pool"


@dataclasses.dataclass(frozen=True)
class AvgPool(Layer):
    """The mean of each window, without padding. ``ceil``: a last window that is not full counts, as the mean
    of what it has."""

    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    ceil: bool = False

    def shape_behind(self, shape: Shape) -> Shape:
        return _pooled(self, self._maps(shape), self.kernel, self.stride, (0, 0), ceil=self.ceil)

    def in_words(self) -> str:
        return f"{self.kernel[0]}x{self.kernel[1]} average pool"


@dataclasses.dataclass(frozen=True)
class AdaptiveAvgPool(Layer):
    """torch's ``AdaptiveAvgPool2d``: means over ``size`` (rows, columns) windows that cover the map. (1, 1)
    is global average pooling."""

    size: tuple[int, int]

    def shape_behind(self, shape: Shape) -> Shape:
        return (self._maps(shape)[0], *self.size)

    def in_words(self) -> str:
        rows, columns = self.size
        return "global average pool" if self.size == (1, 1) else f"adaptive average pool to {rows}x{columns}"


@dataclasses.dataclass(frozen=True)
class AdaptiveMaxPool(Layer):
    """As ``AdaptiveAvgPool`` with the largest of each window; (1, 1) is global max pooling."""

    size: tuple[int, int]

    def shape_behind(self, shape: Shape) -> Shape:
        return (self._maps(shape)[0], *self.size)

    def in_words(self) -> str:
        return (
            "global max-pool"
            if self.size == (1, 1)
            else f"adaptive max-pool to {self.size[0]}x{self.size[1]}"
        )


@dataclasses.dataclass(frozen=True)
class Flatten(Layer):
    """Maps [C, H, W] as one list of features in the order channel, row, column."""

    def shape_behind(self, shape: Shape) -> Shape:
        return (math.prod(shape),)


LAYERS: dict[str, type[Layer]] = {
    kind.__name__.lower(): kind
    for kind in (
        Conv,
        Linear,
        Scale,
        Activate,
        MaxPool,
        AvgPool,
        AdaptiveAvgPool,
        AdaptiveMaxPool,
        Flatten,
    )
}


def _windows(
    layer: Layer, sides: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]:
    """How many windows fit into each side."""
    if sides[0] < kernel[0] or sides[1] < kernel[1]:
        raise CheckpointError(
            f"the map is only {sides[0]} x {sides[1]} where {layer.in_words()} follows: the input is too"
            " small for this network"
        )
    return (sides[0] - kernel[0]) // stride[0] + 1, (sides[1] - kernel[1]) // stride[1] + 1


def _pooled(
    layer: Layer,
    shape: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    ceil: bool,
) -> Shape:
    channels, *sides = shape
    padded = (sides[0] + 2 * padding[0], sides[1] + 2 * padding[1])
    counts = list(_windows(layer, padded, kernel, stride))
    if ceil:
        for k in range(2):
            # a window that starts behind the map and its padding before it does not count, as in torch
            rounded = -(-(padded[k] - kernel[k]) // stride[k]) + 1
            counts[k] = rounded if (rounded - 1) * stride[k] < sides[k] + padding[k] else rounded - 1
    return (channels, *counts)


@dataclasses.dataclass(frozen=True)
class Placed:
    """A layer with the shapes of what it reads and what it gives."""

    layer: Layer
    inputs: Shape
    outputs: Shape


@dataclasses.dataclass(frozen=True)
class Part:
    """A convolution or fully connected layer as it is executed: a layer of the chain, or one of the two that
    it is made of. ``kernel``: (height, width), or None for a fully connected layer. ``sides``: those of the
    map that it gives."""

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] | None
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    sides: tuple[int, int]
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
        return math.prod(self.shape) * math.prod(self.sides)


@dataclasses.dataclass(frozen=True)
class Site:
    """A convolution or fully connected layer at its place. ``behind``: the other layers between it and the
    next one, in order."""

    layer: Conv | Linear
    inputs: Shape
    outputs: Shape
    behind: tuple[Placed, ...] = ()

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def is_conv(self) -> bool:
        return isinstance(self.layer, Conv)

    @property
    def channels(self) -> int:
        """The number of channels or features that it reads."""
        return self.inputs[0]

    @property
    def gives(self) -> Shape:
        """The shape that the next convolution or fully connected layer reads."""
        return self.behind[-1].outputs if self.behind else self.outputs

    def parts(self) -> tuple[Part, ...]:
        """The one or two layers that it is made of. The names of the two end in _reduce and _expand."""
        layer, factor = self.layer, self.layer.factor
        if isinstance(layer, Linear):
            sizes = [(self.channels, layer.outputs)]
            if factor:
                sizes = [(self.channels, factor.rank), (factor.rank, layer.outputs)]
            whole = [Part("", c, n, None, (1, 1), (0, 0, 0, 0), (1, 1), bias=True) for c, n in sizes]
        else:
            whole = list(_conv_parts(layer, self.inputs, self.outputs))
        names = [f"{layer.name}_reduce", f"{layer.name}_expand"] if factor else [layer.name]
        last = len(whole) - 1
        return tuple(
            dataclasses.replace(part, name=name, bias=k == last)
            for k, (part, name) in enumerate(zip(whole, names, strict=True))
        )

    def made_of(self, factor: Factor | None) -> "Site":
        """The same place with its layer made of two, or whole again."""
        return dataclasses.replace(self, layer=dataclasses.replace(self.layer, factor=factor))


def _conv_parts(layer: Conv, inputs: Shape, outputs: Shape) -> Iterator[Part]:
    c, n, factor = inputs[0], layer.outputs, layer.factor
    (height, width), (down, across) = layer.kernel, layer.stride
    top, left, bottom, right = layer.padding
    sides = (outputs[1], outputs[2])
    if factor is None:
        yield Part("", c, n, layer.kernel, layer.stride, layer.padding, sides, bias=True)
    elif factor.kind == "channel":
        yield Part("", c, factor.rank, layer.kernel, layer.stride, layer.padding, sides, bias=False)
        yield Part("", factor.rank, n, (1, 1), (1, 1), (0, 0, 0, 0), sides, bias=True)
    else:
        between = (sides[0], inputs[2])
        yield Part("", c, factor.rank, (height, 1), (down, 1), (top, 0, bottom, 0), between, bias=False)
        yield Part("", factor.rank, n, (1, width), (1, across), (0, left, 0, right), sides, bias=True)


@dataclasses.dataclass(frozen=True)
class Chain(Record):
    """A network: what it takes, its layers from the input to the logits, and what these mean (a word of
    ``vgg_runtime.bundle.outputs``).

    Batch norm is folded into the layers beside it and dropout is left out, as in evaluation mode; the softmax
    or sigmoid behind the logits is no layer but the ``output``. An adaptive pool stays a layer even where it
    does nothing at this input size, so that the network can be folded for another one.
    """

    input: InputSpec
    layers: tuple[Layer, ...]
    output: str = outputs.SOFTMAX

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers if isinstance(layer, Conv | Linear | Scale)]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise CheckpointError(f"two layers of the chain are called {repeated}")
        for layer in self.layers:
            _ensure_sound(layer)
        if not self.sites or len(self.placed[-1].outputs) != 1:
            raise CheckpointError(
                "the chain must end in one list of logits; expected a flattening and, most often, a fully"
                " connected layer at its end"
            )
        if self.output not in outputs.OUTPUTS:
            raise CheckpointError(
                f"the kind of output is {self.output!r}; expected one of {', '.join(outputs.OUTPUTS)}"
            )
        if (self.output == outputs.SIGMOID) != (self.units == 1):
            raise CheckpointError(
                f"a network with {self.units} outputs is said to be {self.output!r}; one output is a"
                f" {outputs.SIGMOID!r} for two classes, several are {outputs.SOFTMAX!r} or"
                f" {outputs.MULTI_LABEL!r}"
            )
        at_end = all(isinstance(placed.layer, Flatten) for placed in self.sites[-1].behind)
        if at_end and self.sites[-1].layer.activation != NONE:
            raise CheckpointError(
                f"the last layer has the activation {self.sites[-1].layer.activation}; expected logits, and"
                " the activation as a layer behind them"
            )

    @functools.cached_property
    def placed(self) -> tuple[Placed, ...]:
        """Every layer with its shapes, input to output.

        Raises:
            CheckpointError: a layer cannot take what the one before gives.
        """
        shape: Shape = self.input.shape
        found = []
        for layer in self.layers:
            behind = layer.shape_behind(shape)
            found.append(Placed(layer, shape, behind))
            shape = behind
        return tuple(found)

    @functools.cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every convolution and fully connected layer at its place, input to output. Layers before the first
        one belong to none."""
        found: list[Site] = []
        for placed in self.placed:
            if isinstance(placed.layer, Conv | Linear):
                found.append(Site(placed.layer, placed.inputs, placed.outputs))
            elif found:
                found[-1] = dataclasses.replace(found[-1], behind=(*found[-1].behind, placed))
        return tuple(found)

    @property
    def convs(self) -> tuple[Site, ...]:
        """The convolutions, input to output."""
        return tuple(site for site in self.sites if site.is_conv)

    @property
    def linears(self) -> tuple[Site, ...]:
        """The fully connected layers, input to output."""
        return tuple(site for site in self.sites if not site.is_conv)

    def site(self, name: str) -> Site:
        """The convolution or fully connected layer of this name."""
        return next(site for site in self.sites if site.name == name)

    @property
    def before_first(self) -> tuple[Placed, ...]:
        """The layers before the first convolution or fully connected layer; most often none."""
        first = next(k for k, one in enumerate(self.placed) if isinstance(one.layer, Conv | Linear))
        return self.placed[:first]

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the convolutions between pools, stage by stage; stage 1 is the first."""
        found: list[list[str]] = [[]]
        for layer in self.layers:
            if isinstance(layer, Conv):
                found[-1].append(layer.name)
            elif isinstance(layer, MaxPool | AvgPool) and max(layer.stride) > 1 and found[-1]:
                found.append([])
        return tuple(tuple(stage) for stage in found if stage)

    @property
    def stride_px(self) -> int:
        """How many pixels of the input one step on the last map is; 32 for a VGG."""
        return math.prod(max(getattr(layer, "stride", (1,))) for layer in self.layers)

    def widths(self) -> tuple[tuple[int, ...], ...]:
        """The output channels of every convolution, stage by stage."""
        channels = {site.name: site.layer.outputs for site in self.convs}
        return tuple(tuple(channels[name] for name in stage) for stage in self.stages)

    @property
    def units(self) -> int:
        """The number of logits."""
        return self.placed[-1].outputs[0]

    @property
    def classes(self) -> int:
        """The number of class names: two for a single sigmoid, else one per logit."""
        return 2 if self.output == outputs.SIGMOID else self.units

    @property
    def family(self) -> str:
        """ "vgg16" and the like where the convolutions are arranged so, else what the network is in words."""
        counts = tuple(len(stage) for stage in self.stages)
        known = next((name for name, convs in CONVS_PER_STAGE.items() if convs == counts), None)
        return known or f"network of {len(self.convs)} convolutions"

    @property
    def factorised(self) -> bool:
        """Whether a layer is made of two."""
        return any(site.layer.factor for site in self.sites)

    def parts(self) -> Iterator[Part]:
        """Every convolution and fully connected layer as it is executed, input to output."""
        for site in self.sites:
            yield from site.parts()

    def _scales(self) -> Iterator[Placed]:
        return (placed for placed in self.placed if isinstance(placed.layer, Scale))

    def parameters(self) -> int:
        """The number of weights and biases."""
        return sum(part.parameters() for part in self.parts()) + sum(2 * s.inputs[0] for s in self._scales())

    def macs(self) -> int:
        """Multiply-accumulates of one inference (biases not counted)."""
        return sum(part.macs() for part in self.parts()) + sum(math.prod(s.inputs) for s in self._scales())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every tensor."""
        shapes: dict[str, tuple[int, ...]] = {}
        for placed in self.placed:
            if isinstance(placed.layer, Scale):
                for part in ("weight", "bias"):
                    shapes[f"{placed.layer.name}.{part}"] = placed.inputs[:1]
        for one in self.parts():
            shapes[f"{one.name}.weight"] = one.shape
            if one.bias:
                shapes[f"{one.name}.bias"] = (one.outputs,)
        return shapes

    def at(self, px: int) -> Self:
        """The same layers for another input size.

        Raises:
            CheckpointError: the input is too small.
        """
        return dataclasses.replace(self, input=self.input.at(px))

    def changed(self, layers: Mapping[str, Conv | Linear]) -> Self:
        """The chain with other layers in place of those of these names."""
        return dataclasses.replace(
            self,
            layers=tuple(
                layers.get(layer.name, layer) if isinstance(layer, Conv | Linear) else layer
                for layer in self.layers
            ),
        )

    def with_widths(self, outputs_of: Mapping[str, int]) -> Self:
        """The chain with other numbers of outputs of some layers."""
        sites = {site.name: site.layer for site in self.sites if site.name in outputs_of}
        return self.changed(
            {name: dataclasses.replace(layer, outputs=outputs_of[name]) for name, layer in sites.items()}
        )

    def with_factors(self, factors: Mapping[str, Factor]) -> Self:
        """The chain with some layers made of two."""
        return self.changed({name: self.site(name).made_of(factor).layer for name, factor in factors.items()})

    @classmethod
    def from_json(cls, document: object, path: str = "") -> Self:
        """The chain that ``to_json`` gave, or the plan of a VGG as checkpoints of format 2 hold it.

        Raises:
            CheckpointError: the data is damaged.
        """
        try:
            if isinstance(document, dict) and "blocks" in document:
                plan = _Plan.from_json(document, path)
                return cls(for_input(plan.input_px), plan.layers())
            if not isinstance(document, dict) or not isinstance(document.get("layers"), list):
                raise FieldError(path, "an object with input and layers", document)
            layers = (_layer(one, f"{path}.layers[{k}]") for k, one in enumerate(document["layers"]))
            spec = InputSpec.from_json(document.get("input"), f"{path}.input")
            return cls(spec, tuple(layers), str(document.get("output", outputs.SOFTMAX)))
        except FieldError as error:
            raise CheckpointError(f"the description of the network is damaged ({error})") from error


def _layer(document: object, path: str) -> Layer:
    kind = LAYERS.get(str(document.get("type"))) if isinstance(document, dict) else None
    if kind is None:
        raise FieldError(path, f"a layer with a type of {', '.join(LAYERS)}", document)
    return kind.from_json(document, path)


def _ensure_sound(layer: Layer) -> None:
    """Make sure of what the types do not say."""
    if isinstance(layer, Conv | Linear):
        Activation.of(layer.activation)
        if layer.outputs < 1:
            raise CheckpointError(f"every layer needs at least one output, found none in {layer.name}")
        factor, kinds = layer.factor, ("linear",) if isinstance(layer, Linear) else ("channel", "spatial")
        if factor and (factor.kind not in kinds or factor.rank < 1):
            raise CheckpointError(
                f"{factor} is no factorisation of {layer.name}; expected a rank and one of {kinds}"
            )
    elif isinstance(layer, Activate):
        Activation.of(layer.activation)
    numbers = [n for name in ("kernel", "stride", "size") for n in getattr(layer, name, ())]
    if any(n < 1 for n in numbers) or any(n < 0 for n in getattr(layer, "padding", ())):
        raise CheckpointError(
            f"{layer} has a size below 1; expected kernels, strides and sizes of at least 1"
        )


def named(layers: Iterable[Layer]) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """The layers under the names that this program gives them: conv3_1 is the first convolution of the third
    stage, fc2 the second fully connected layer, scale1 the first scale. Also the new name of each old one."""
    found, names = [], dict[str, str]()
    stage, conv, linear, scale = 1, 0, 0, 0
    for layer in layers:
        if isinstance(layer, MaxPool | AvgPool) and max(layer.stride) > 1 and conv:
            stage, conv = stage + 1, 0
        new = ""
        if isinstance(layer, Conv):
            conv += 1
            new = f"conv{stage}_{conv}"
        elif isinstance(layer, Linear):
            linear += 1
            new = f"fc{linear}"
        elif isinstance(layer, Scale):
            scale += 1
            new = f"scale{scale}"
        if isinstance(layer, Conv | Linear | Scale):
            names[layer.name] = new
            layer = dataclasses.replace(layer, name=new)
        found.append(layer)
    return tuple(found), names


@dataclasses.dataclass(frozen=True)
class _OldFactor(Record):
    layer: str
    kind: str
    rank: int


@dataclasses.dataclass(frozen=True)
class _Plan(Record):
    """The plan of a checkpoint of format 2: torchvision's arrangement of a VGG with other widths. At sizes
    other than 224 px the pool is folded into the first fully connected layer."""

    family: str
    blocks: tuple[tuple[int, ...], ...]
    hidden: tuple[int, int]
    classes: int
    input_px: int = 224
    factors: tuple[_OldFactor, ...] = ()

    def layers(self) -> tuple[Layer, ...]:
        layers, factors = vgg_layers(self.blocks, (*self.hidden, self.classes)), {}
        for one in self.factors:
            factors[one.layer] = Factor(one.kind, one.rank)
        if self.input_px // 32 != 7:
            layers = tuple(layer for layer in layers if not isinstance(layer, AdaptiveAvgPool))
        return tuple(
            dataclasses.replace(layer, factor=factors.get(layer.name))
            if isinstance(layer, Conv | Linear)
            else layer
            for layer in layers
        )


def vgg_layers(stages: Iterable[Iterable[int]], linears: tuple[int, ...]) -> tuple[Layer, ...]:
    """The layers of a VGG as torchvision arranges them: 3x3 convolutions of these widths with a max-pool
    behind every stage, an adaptive pool to 7x7, and fully connected layers of these widths, the last one the
    logits."""
    layers: list[Layer] = []
    for widths in stages:
        layers += [Conv(str(len(layers) + k), width) for k, width in enumerate(widths)]
        layers.append(MaxPool())
    layers += [AdaptiveAvgPool((7, 7)), Flatten()]
    layers += [Linear(str(len(layers) + k), width) for k, width in enumerate(linears)]
    last = layers[-1]
    assert isinstance(last, Linear)
    layers[-1] = dataclasses.replace(last, activation=NONE)
    return named(layers)[0]


def full_width(family: str, classes: int = 1000) -> Chain:
    """torchvision's ``family`` (vgg11, vgg13, vgg16 or vgg19) with ImageNet's input."""
    widths = (64, 128, 256, 512, 512)
    stages = [(w,) * count for w, count in zip(widths, CONVS_PER_STAGE[family], strict=True)]
    return Chain(for_input(224), vgg_layers(stages, (4096, 4096, classes)))


@dataclasses.dataclass(frozen=True)
class Change(Record):
    """A number before and after a change of the network."""

    before: int
    after: int


def sizes(before: Chain, after: Chain) -> tuple[Change, Change]:
    """The change of parameters and of multiply-accumulates between two chains."""
    return Change(before.parameters(), after.parameters()), Change(before.macs(), after.macs())


def sizes_in_words(before: Chain, after: Chain) -> str:
    """``sizes`` as a phrase."""
    return (
        f"{before.parameters() / 1e6:.2f} M to {after.parameters() / 1e6:.2f} M parameters,"
        f" {before.macs() / 1e9:.2f} to {after.macs() / 1e9:.2f} GMACs"
    )
