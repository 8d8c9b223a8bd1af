"""Makes a chain of the layers that a reader finds in a file, in their order.

Readers say what they see. Here batch norm is folded, activations find their layer, what does nothing
disappears, and fully connected layers are brought to the order channel, row, column. The chain computes what
the file does in evaluation mode.
"""

import bisect
import dataclasses
import math
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError
from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.records import FieldError

from . import modules
from .activations import NONE, RELU, Activation
from .chain import (
    Activate,
    AdaptiveAvgPool,
    AdaptiveMaxPool,
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

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

SOFTMAXES = ("softmax", "log_softmax")
MOST_PX = 1024  # the largest input that is looked for


@dataclasses.dataclass(frozen=True)
class Assembled:
    """``layers`` and ``tensors`` under the names of ``chain.named``. ``names``: for each of these names, that
    in the file. ``channels``: of the input. ``output``: what follows the logits in the file; None: nothing
    does. ``scale`` and ``shift``: what the file does to each channel of its input before the first layer, in
    the order of the network; ``reversed``: the file reverses the order of the channels first."""

    layers: tuple[Layer, ...]
    tensors: "Tensors"
    names: dict[str, str]
    channels: int
    output: str | None = None
    scale: "torch.Tensor | None" = None
    shift: "torch.Tensor | None" = None
    reversed: bool = False

    @property
    def columns(self) -> int | None:
        """The number of features that the first fully connected layer reads; None: there is no such layer."""
        first = next((layer for layer in self.layers if isinstance(layer, Linear)), None)
        return self.tensors[f"{first.name}.weight"].shape[1] if first else None

    def fits(self, px: int) -> bool:
        """Whether the layers can take an input of this size."""
        try:
            chain = Chain(_plain_input(px, self.channels), self.layers, self._any_output())
        except CheckpointError:
            return False
        return not self.columns or chain.linears[0].channels == self.columns

    def _any_output(self) -> str:
        last = next(layer for layer in reversed(self.layers) if isinstance(layer, Conv | Linear))
        return outputs.SIGMOID if last.outputs == 1 else outputs.SOFTMAX

    def sizes(self) -> range:
        """The input sizes that fit, up to MOST_PX; empty: none does."""
        tried, wanted = range(MOST_PX + 1), self.columns or 1
        first = bisect.bisect_left(tried, wanted, key=self._features)
        behind = bisect.bisect_right(tried, wanted, key=self._features)
        return range(first, behind)

    def _features(self, px: int) -> int:
        """The number of features before the first fully connected layer, which grows with the input; 0: the
        input is too small; 1: there is no such layer."""
        try:
            chain = Chain(_plain_input(px, self.channels), self.layers, self._any_output())
        except (CheckpointError, FieldError):
            return 0
        return chain.linears[0].channels if self.columns else 1

    def pooled_to(self, size: tuple[int, int]) -> "Assembled":
        """With an adaptive average pool before the first fully connected layer."""
        k = next(k for k, layer in enumerate(self.layers) if isinstance(layer, Flatten))
        layers = (*self.layers[:k], AdaptiveAvgPool(size), *self.layers[k:])
        return dataclasses.replace(self, layers=layers)


def _plain_input(px: int, channels: int) -> InputSpec:
    return InputSpec(px, px, (0.0,) * channels, (1.0,) * channels, channels)


class Assembly:
    """The layers so far. Every method takes the next layer as the file has it; ``name`` is its name there,
    for errors. Raises CheckpointError where a layer cannot be part of a chain.

    Args:
        channels: of the input.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._layers: list[Layer] = []
        self._tensors: Tensors = {}
        self._width = channels  # of what the last layer gives
        self._padding = (0, 0, 0, 0)  # asked for, and not yet part of a layer
        self._channels_last = False
        self._output: str | None = None
        self._scale: torch.Tensor | None = None
        self._shift: torch.Tensor | None = None
        self._reversed = False
        self._of_features: tuple[str, torch.Tensor, torch.Tensor] | None = None  # between Flatten and Linear

    def conv(
        self,
        name: str,
        weight: "torch.Tensor",
        bias: "torch.Tensor | None" = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        groups: int = 1,
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        """A convolution [n, c, height, width] with padding (top, left, bottom, right)."""
        if groups != 1 or tuple(dilation) != (1, 1):
            found = f"{groups} groups" if groups != 1 else f"dilation {tuple(dilation)}"
            raise CheckpointError(
                f"{name} is a convolution with {found}; expected one group and dilation 1: this program reads"
                " plain convolutions"
            )
        self._expect(name, weight, 4)
        total = tuple(a + b for a, b in zip(padding, self._take_padding(), strict=True))
        height, width = weight.shape[2:]
        layer = Conv(
            name, len(weight), (height, width), stride, (total[0], total[1], total[2], total[3]), NONE
        )
        self._weighted(layer, weight, bias)

    def linear(self, name: str, weight: "torch.Tensor", bias: "torch.Tensor | None" = None) -> None:
        """A fully connected layer [n, inputs]. A flattening is put before it where there are maps."""
        if not any(isinstance(layer, Flatten) for layer in self._layers):
            self.flatten()
        if any(isinstance(layer, Linear) for layer in self._layers):
            self._expect(name, weight, 2)
        positions, rest = divmod(weight.shape[-1], self._width)
        if weight.dim() != 2 or rest or not positions:
            raise CheckpointError(
                f"{name} is {list(weight.shape)}; expected a matrix whose columns are a multiple of the"
                f" {self._width} channels before it"
            )
        if self._of_features:
            weight, bias = self._with_norm_of_features(name, weight, bias)
        if self._channels_last and positions > 1:
            weight = weight.view(len(weight), positions, self._width).transpose(1, 2).flatten(1)
        self._channels_last = False
        self._weighted(Linear(name, len(weight), NONE), weight, bias)

    def _with_norm_of_features(
        self, name: str, weight: "torch.Tensor", bias: "torch.Tensor | None"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The weights of a fully connected layer with the batch norm of the flattened maps before it."""
        assert self._of_features
        norm, scale, shift = self._of_features
        self._of_features = None
        if weight.shape[1] != len(scale):
            raise CheckpointError(
                f"{name} reads {weight.shape[1]} features; expected {len(scale)}, the number that {norm}"
                " before it has"
            )
        added = weight.double() @ shift
        return (weight.double() * scale).float(), (added if bias is None else bias.double() + added).float()

    @property
    def has_norm_of_features(self) -> bool:
        """Whether a batch norm of flattened maps waits for the fully connected layer that it is part of."""
        return self._of_features is not None

    def _no_norm_of_features(self, before: str) -> None:
        if self._of_features:
            raise CheckpointError(
                f"{self._of_features[0]}, a batch norm of the flattened maps, stands before {before};"
                " expected the fully connected layer behind it"
            )

    def _expect(self, name: str, weight: "torch.Tensor", dimensions: int) -> None:
        if weight.dim() != dimensions or weight.shape[1] != self._width:
            raise CheckpointError(
                f"{name} is {list(weight.shape)}; expected {dimensions} dimensions and {self._width} inputs,"
                " which is what the layer before gives: the layers do not form a chain"
            )

    def _weighted(self, layer: Conv | Linear, weight: "torch.Tensor", bias: "torch.Tensor | None") -> None:
        import torch

        if any(f"{layer.name}.weight" == known for known in self._tensors):
            raise CheckpointError(f"{layer.name} is used twice; expected a chain, where each layer runs once")
        if self._output:
            raise CheckpointError(f"{layer.name} follows the {self._output}; expected the logits before it")
        self._layers.append(layer)
        self._width = layer.outputs
        self._tensors[f"{layer.name}.weight"] = weight.float().contiguous()
        zeros = torch.zeros(layer.outputs)
        self._tensors[f"{layer.name}.bias"] = zeros if bias is None else bias.float().contiguous()

    def norm(self, name: str, scale: "torch.Tensor", shift: "torch.Tensor") -> None:
        """x * scale + shift per channel, both [channels] in float64: a batch norm in evaluation mode, or a
        normalisation of the input. Behind a flattening of maps: per feature, both [features]."""
        kinds = {type(layer) for layer in self._layers}
        is_flat = Flatten in kinds and Linear not in kinds
        positions, rest = divmod(scale.numel(), self._width)
        if is_flat and scale.shape == shift.shape and scale.dim() == 1 and positions > 1 and not rest:
            self._norm_of_features(name, scale, shift)
            return
        if scale.shape != (self._width,) or shift.shape != (self._width,):
            raise CheckpointError(
                f"{name} has {scale.numel()} channels; expected {self._width}, which is what the layer before"
                " gives"
            )
        if not self._layers:
            if self._scale is not None and self._shift is not None:
                scale, shift = scale * self._scale, shift + scale * self._shift
            self._scale, self._shift = scale, shift
            return
        last = self._layers[-1]
        if isinstance(last, Scale):
            before = [self._tensors[f"{last.name}.{part}"].double() for part in ("weight", "bias")]
            scale, shift = scale * before[0], shift + scale * before[1]
            self._tensors |= {f"{last.name}.weight": scale.float(), f"{last.name}.bias": shift.float()}
            return
        if isinstance(last, MaxPool) and len(self._layers) > 1 and bool((scale > 0).all()):
            last = self._layers[-2]  # the largest of each window stays the largest
        if isinstance(last, Conv | Linear) and last.activation == NONE:
            tensors = [self._tensors[f"{last.name}.{part}"] for part in ("weight", "bias")]
            weight, bias = modules.scaled_outputs(tensors[0], tensors[1], scale, shift)
            self._tensors |= {f"{last.name}.weight": weight, f"{last.name}.bias": bias}
        else:
            self._layers.append(Scale(name))
            self._tensors |= {f"{name}.weight": scale.float(), f"{name}.bias": shift.float()}

    def _norm_of_features(self, name: str, scale: "torch.Tensor", shift: "torch.Tensor") -> None:
        if self._of_features:
            _, first, second = self._of_features
            if first.shape != scale.shape:
                raise CheckpointError(f"{name} has {len(scale)} features; expected {len(first)}")
            scale, shift = scale * first, shift + scale * second
        self._of_features = (name, scale, shift)

    def activation(self, text: str) -> None:
        """An activation, or the softmax behind the logits."""
        if text != NONE:
            self._no_norm_of_features(f"the activation {text}")
        if text in SOFTMAXES:
            self._output = outputs.SOFTMAX
            return
        kind = Activation.of(text)
        if kind.kind == NONE:
            return
        k = len(self._layers) - 1
        while k >= 0 and (
            isinstance(self._layers[k], Flatten) or (isinstance(self._layers[k], MaxPool) and kind.rising)
        ):
            k -= 1  # the same before these
        layer = self._layers[k] if k >= 0 else None
        if isinstance(layer, Conv | Linear) and layer.activation == NONE:
            self._layers[k] = dataclasses.replace(layer, activation=kind.text)
        elif not (isinstance(layer, Conv | Linear) and layer.activation == kind.text == RELU):
            self._layers.append(Activate(kind.text))

    def pad(self, padding: tuple[int, int, int, int]) -> None:
        """Zeros at (top, left, bottom, right) of the maps, which the next convolution adds."""
        before = self._padding
        self._padding = (
            before[0] + padding[0],
            before[1] + padding[1],
            before[2] + padding[2],
            before[3] + padding[3],
        )

    def _take_padding(self) -> tuple[int, int, int, int]:
        taken, self._padding = self._padding, (0, 0, 0, 0)
        return taken

    def _no_padding(self, before: str) -> None:
        if any(self._take_padding()):
            raise CheckpointError(
                f"a zero padding stands before a {before}; expected a convolution behind it"
            )

    def max_pool(
        self,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int] = (0, 0),
        *,
        ceil: bool = False,
    ) -> None:
        """A max-pool with padding (rows, columns) on both sides."""
        self._no_padding("max-pool")
        if max(*kernel, *stride) > 1:
            self._layers.append(MaxPool(kernel, stride, padding, ceil))

    def avg_pool(self, kernel: tuple[int, int], stride: tuple[int, int], *, ceil: bool = False) -> None:
        """An average pool without padding."""
        self._no_padding("average pool")
        if max(*kernel, *stride) > 1:
            self._layers.append(AvgPool(kernel, stride, ceil))

    def adaptive_avg_pool(self, size: tuple[int, int]) -> None:
        """torch's adaptive average pool; (1, 1): global average pooling."""
        self._no_padding("pool")
        self._layers.append(AdaptiveAvgPool(size))

    def adaptive_max_pool(self, size: tuple[int, int]) -> None:
        """torch's adaptive max-pool; (1, 1): global max pooling."""
        self._no_padding("pool")
        self._layers.append(AdaptiveMaxPool(size))

    def flatten(self, *, channels_last: bool = False) -> None:
        """A flattening; ``channels_last``: of maps whose channels come last, as Keras' and ONNX files made of
        them. A second one does nothing."""
        self._no_padding("flattening")
        if not any(isinstance(layer, Flatten) for layer in self._layers):
            self._layers.append(Flatten())
            self._channels_last = channels_last

    def reverse_channels(self) -> None:
        """The order of the input's channels turned round: RGB to BGR."""
        if self._layers:
            raise CheckpointError("the channels are reversed between layers; expected that at the input only")
        self._reversed = not self._reversed
        if self._scale is not None and self._shift is not None:
            self._scale, self._shift = self._scale.flip(0), self._shift.flip(0)

    def finish(self) -> Assembled:
        """The layers with what can be folded folded, under their own names.

        Raises:
            CheckpointError: there are no layers with weights, or a weight is not finite.
        """
        if not self._tensors:
            raise CheckpointError("the file has no convolution and no fully connected layer")
        self._no_padding("end")
        self._no_norm_of_features("the end")
        if not any(isinstance(layer, Flatten) for layer in self._layers):
            self.flatten()
        self._end_in_logits()
        self._fold_scales_forward()
        layers, names = named(self._layers)
        tensors = {}
        for name, tensor in self._tensors.items():
            layer, _, part = name.rpartition(".")
            if layer in names:
                tensors[f"{names[layer]}.{part}"] = tensor
        return Assembled(
            layers,
            tensors,
            {new: old for old, new in names.items()},
            self._channels,
            self._output,
            self._scale,
            self._shift,
            self._reversed,
        )

    def _end_in_logits(self) -> None:
        """Take a sigmoid at the end for what the outputs mean, and let other activations there be layers."""
        if self._layers[-1] == Activate("sigmoid"):
            self._layers.pop()
            self._output = outputs.SIGMOID if self._width == 1 else outputs.MULTI_LABEL
        k = max(k for k, layer in enumerate(self._layers) if isinstance(layer, Conv | Linear))
        last = self._layers[k]
        assert isinstance(last, Conv | Linear)
        at_end = all(isinstance(layer, Flatten) for layer in self._layers[k + 1 :])
        if last.activation == NONE or not at_end:
            return
        self._layers[k] = dataclasses.replace(last, activation=NONE)
        if last.activation == "sigmoid":
            self._output = outputs.SIGMOID if last.outputs == 1 else outputs.MULTI_LABEL
        else:
            self._layers.append(Activate(last.activation))

    def _fold_scales_forward(self) -> None:
        """Multiply each scale into the layer behind it, where that is exact: padding puts zeros between them,
        and a max-pool keeps the order of positive multiples only."""
        for scale in [layer for layer in self._layers if isinstance(layer, Scale)]:
            factor, shift = (self._tensors[f"{scale.name}.{part}"].double() for part in ("weight", "bias"))
            for layer in self._layers[self._layers.index(scale) + 1 :]:
                if isinstance(layer, Conv | Linear):
                    if isinstance(layer, Linear) or not any(layer.padding):
                        self._into(layer, factor, shift)
                        self._layers.remove(scale)
                    break
                if not isinstance(layer, Flatten | AvgPool | AdaptiveAvgPool) and not (
                    isinstance(layer, MaxPool | AdaptiveMaxPool) and bool((factor > 0).all())
                ):
                    break

    def _into(self, layer: Conv | Linear, factor: "torch.Tensor", shift: "torch.Tensor") -> None:
        """Fold a scale and a shift of what a layer reads into its weights."""
        weight = self._tensors[f"{layer.name}.weight"].double()
        by_channel = weight.view(len(weight), len(factor), -1)
        added = (by_channel * shift.view(1, -1, 1)).sum((1, 2))
        scaled = (by_channel * factor.view(1, -1, 1)).view(weight.shape)
        bias = self._tensors[f"{layer.name}.bias"].double() + added
        self._tensors |= {f"{layer.name}.weight": scaled.float(), f"{layer.name}.bias": bias.float()}


def input_affine(assembled: Assembled, whole: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of values of 0 to 1 that equal what a file does to its input.

    Args:
        whole: the value that the file's input has for white, most often 255.

    Raises:
        CheckpointError: a factor is not above zero.
    """
    if assembled.scale is None or assembled.shift is None:
        return (0.0,) * assembled.channels, (1 / whole,) * assembled.channels
    if not bool((assembled.scale > 0).all()):
        raise CheckpointError("the file multiplies its input by a number that is not above zero")
    std = [1 / (whole * float(s)) for s in assembled.scale]
    mean = [0.0 - float(t) * s for t, s in zip(assembled.shift, std, strict=True)]
    return tuple(mean), tuple(std)


def side_of(positions: int) -> int | None:
    """The side of a square map of so many positions; None: it is not square."""
    side = math.isqrt(positions)
    return side if side * side == positions else None
