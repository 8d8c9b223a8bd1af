"""Assembles the network of a file whose padding depends on the sizes of its maps, as in Keras and ONNX."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vgg_export.core.errors import CheckpointError
from vgg_export.network.activations import NONE, Activation
from vgg_export.network.assemble import MOST_PX, SOFTMAXES, Assembled, Assembly, input_affine
from vgg_export.network.chain import Conv, Linear
from vgg_export.network.provenance import FILE, Origins
from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.input_spec import COLOURS, GREY, NORMALIZATIONS, InputSpec, exchanged, normalized

from .torch_inputs import USUAL_PX, white_of

if TYPE_CHECKING:
    import torch

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]  # top, left, bottom, right
T = TypeVar("T")

SAME_UPPER, SAME_LOWER, VALID = "same", "same_lower", "valid"

COMMON_PX = (32, 48, 64, 96, 128, 150, 160, 192, 200, 256, 299, 384, 448, 512)


class SizeError(CheckpointError):
    """A layer cannot take the maps of this input size; another size may fit."""


class Tracked:
    """The layers so far and the size of what they give. ``name`` is a layer's name in the file.

    ``sides``: (rows, columns) of the maps; None behind the flattening. ``width``: channels, or features
    behind the flattening. Every method raises CheckpointError where a layer cannot be part of a chain, and
    SizeError where another input size may help.
    """

    def __init__(self, channels: int, sides: Pair) -> None:
        self._assembly = Assembly(channels)
        self.width = channels
        self.sides: Pair | None = sides
        self._padded = False  # zeros wait for a convolution
        self._last: str | None = None  # the last layer with weights, if a convolution of more than 1x1
        self._activated = False  # an activation follows it

    def conv(
        self,
        name: str,
        weight: "torch.Tensor",
        bias: "torch.Tensor | None",
        *,
        stride: Pair = (1, 1),
        padding: Sides | str = VALID,
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> None:
        """A convolution [n, c, height, width]. ``padding``: numbers, or SAME_UPPER, SAME_LOWER or VALID."""
        sides = self._maps(name)
        if weight.dim() != 4:
            raise CheckpointError(
                f"{name} has a weight of {weight.dim()} dimensions; expected 4, as of a convolution of"
                " pictures"
            )
        kernel = (weight.shape[2], weight.shape[3])
        pads = _pads(sides, kernel, stride, padding)
        self._assembly.conv(name, weight, bias, stride=stride, padding=pads, groups=groups, dilation=dilation)
        self.sides = _counts(name, sides, kernel, stride, pads)
        self.width, self._padded = weight.shape[0], False
        self._last, self._activated = (None if kernel == (1, 1) else name), False

    def pad(self, name: str, padding: Sides) -> None:
        """Zeros around the maps."""
        rows, columns = self._maps(name)
        if min(padding) < 0:
            raise CheckpointError(f"{name} cuts the maps ({list(padding)}); expected a padding with zeros")
        top, left, bottom, right = padding
        self._assembly.pad(padding)
        self.sides = (rows + top + bottom, columns + left + right)
        self._padded = self._padded or any(padding)

    def pool(
        self,
        name: str,
        kernel: Pair,
        stride: Pair,
        padding: Sides | str = VALID,
        *,
        mean: bool,
        ceil: bool = False,
        counts_padding: bool = False,
    ) -> None:
        """A max-pool, or an average pool (``mean``). ``ceil``: a last window that is not full counts.
        ``counts_padding``: an average is over the padding, too."""
        sides = self._maps(name)
        pads = _pads(sides, kernel, stride, padding)
        (top, left, bottom, right) = pads
        given = _counts(name, sides, kernel, stride, pads, ceil=ceil)
        even = (top, left) if (top, left) == (bottom, right) else (0, 0)
        if mean:
            even = (0, 0)
        whole = _counts(name, sides, kernel, stride, (*even, *even), ceil=False)
        partial = given != whole
        plain = (top, left) == even and given == _counts(
            name, sides, kernel, stride, (*even, *even), ceil=partial
        )
        if not plain or (mean and partial and counts_padding):
            raise CheckpointError(
                f"{name} is a pool with the padding {list(pads)} (top, left, bottom, right) on maps of"
                f" {sides[0]} x {sides[1]}, which this program cannot write as one of its own; expected no"
                " padding, or windows that go beyond the last row and column only"
            )
        if mean:
            self._assembly.avg_pool(kernel, stride, ceil=partial)
        else:
            self._assembly.max_pool(kernel, stride, even, ceil=partial)
        self.sides = given

    def global_pool(self, name: str, *, mean: bool, keep: bool) -> None:
        """The mean, or the largest, of each map. ``keep``: it stays a map of one place."""
        self._maps(name)
        (self._assembly.adaptive_avg_pool if mean else self._assembly.adaptive_max_pool)((1, 1))
        self.sides = (1, 1)
        if not keep:
            self.flatten(channels_last=False)

    def flatten(self, *, channels_last: bool) -> None:
        """A flattening in the order row, column, channel (``channels_last``), or channel, row, column."""
        if self.sides is not None:
            self._assembly.flatten(channels_last=channels_last)
            self.width *= self.sides[0] * self.sides[1]
            self.sides = None

    def linear(self, name: str, weight: "torch.Tensor", bias: "torch.Tensor | None") -> None:
        """A fully connected layer [n, inputs]. On maps it is a 1x1 convolution."""
        if weight.dim() != 2:
            raise CheckpointError(f"{name} has a weight of {weight.dim()} dimensions; expected a matrix")
        if self.sides is not None:
            self.conv(name, weight[:, :, None, None], bias)
            return
        if weight.shape[1] != self.width:
            raise SizeError(
                f"{name} reads {weight.shape[1]} features; the layers before it give {self.width} for this"
                " input size"
            )
        self._assembly.linear(name, weight, bias)
        self.width, self._last = weight.shape[0], None

    def norm(self, name: str, scale: "torch.Tensor", shift: "torch.Tensor") -> None:
        """x * scale + shift per channel or feature, both [width] in float64."""
        if self._padded and bool((shift != 0).any()):
            raise CheckpointError(
                f"{name} stands between a zero padding and its convolution, so that its zeros change;"
                " expected the padding behind it"
            )
        if scale.shape != (self.width,) or shift.shape != (self.width,):
            raise CheckpointError(
                f"{name} has {scale.numel()} numbers; expected {self.width}, one per channel before it"
            )
        self._assembly.norm(name, scale, shift)

    def activation(self, name: str, text: str) -> None:
        """An activation, or the softmax behind the logits."""
        if self._assembly.has_norm_of_features:
            raise CheckpointError(
                f"{name} stands between a normalisation of the flattened maps and the fully connected layer,"
                " where nothing can be folded; expected the normalisation beside the fully connected layer"
            )
        if text in SOFTMAXES:
            if self.sides not in (None, (1, 1)):
                raise CheckpointError(f"{name} is a softmax on maps; expected one behind the logits")
        elif self._padded and not Activation.of(text).keeps_zero:
            raise CheckpointError(f"{name} stands between a zero padding and its convolution")
        self._activated = self._activated or text not in (NONE, *SOFTMAXES)
        self._assembly.activation(text)

    def reverse_channels(self) -> None:
        """The order of the input's channels turned round."""
        self._assembly.reverse_channels()

    def finish(self) -> Assembled:
        """The network.

        Raises:
            CheckpointError: it does not end in one list of logits, or it has no classifier.
        """
        if self._last and self._activated:
            raise CheckpointError(
                f"it holds the features only (the last layer with weights is {self._last}, a convolution with"
                " an activation); its classifier is missing: save the whole network"
            )
        if self.sides not in (None, (1, 1)):
            raise CheckpointError(
                f"the network ends in maps of {self.sides[0]} x {self.sides[1]}; expected one list of logits,"
                " as of a network that classifies"
            )
        return self._assembly.finish()

    def _maps(self, name: str) -> Pair:
        if self.sides is None:
            raise CheckpointError(f"{name} follows the flattening; expected it before, where there are maps")
        return self.sides


def _pads(sides: Pair, kernel: Pair, stride: Pair, padding: Sides | str) -> Sides:
    if not isinstance(padding, str):
        return padding
    if padding == VALID:
        return (0, 0, 0, 0)
    missing = [
        max((-(-side // s) - 1) * s + k - side, 0) for side, k, s in zip(sides, kernel, stride, strict=True)
    ]
    small, large = [n // 2 for n in missing], [n - n // 2 for n in missing]
    first, second = (small, large) if padding == SAME_UPPER else (large, small)
    return (first[0], first[1], second[0], second[1])


def _counts(name: str, sides: Pair, kernel: Pair, stride: Pair, pads: Sides, *, ceil: bool = False) -> Pair:
    """How many windows fit; ``ceil``: with a last one that is not full but begins in the map."""
    found = []
    for axis in range(2):
        padded = sides[axis] + pads[axis] + pads[axis + 2]
        if padded < kernel[axis]:
            raise SizeError(
                f"the maps are only {sides[0]} x {sides[1]} where {name} follows: the input is too small"
            )
        rest = padded - kernel[axis]
        count = rest // stride[axis] + 1
        if ceil and rest % stride[axis] and count * stride[axis] < sides[axis] + pads[axis]:
            count += 1
        found.append(count)
    return found[0], found[1]


def sized(walk: Callable[[int], T]) -> tuple[T, int]:
    """What ``walk`` makes at the usual input size, or at the first other one that fits, and that size.

    Raises:
        CheckpointError: no size fits.
    """
    try:
        return walk(USUAL_PX), USUAL_PX
    except SizeError as error:
        for px in itertools.chain(COMMON_PX, range(1, MOST_PX + 1)):
            try:
                return walk(px), px
            except SizeError:
                continue
        raise CheckpointError(f"no input size up to {MOST_PX} px fits: {error}") from error


def ensure_channels(channels: int) -> int:
    """The number of channels of the input.

    Raises:
        CheckpointError: pictures cannot have so many.
    """
    if channels not in (GREY, COLOURS):
        raise CheckpointError(
            f"the network reads {channels} channels; expected {COLOURS} (colours) or {GREY} (grey)"
        )
    return channels


def prepared(
    network: Assembled, base: InputSpec, origins: Origins, white: float | None = None
) -> tuple[InputSpec, Origins]:
    """The input of a network and how it is known: ``base`` and ``origins``, with what the file itself does
    to its input in place of a normalisation that is assumed.

    Args:
        white: the value of white in the file's input; None: it is told from the file's normalisation.

    Raises:
        CheckpointError: what the file does is no normalisation of a picture.
    """
    if network.scale is None or network.shift is None or _does_nothing(network.scale, network.shift):
        return (exchanged(base) if network.reversed and not base.bgr else base), origins
    mean, std = input_affine(network, white or _white(network.scale, network.shift))
    spec = dataclasses.replace(base, mean=mean, std=std, bgr=network.reversed)
    return _usual(spec), dataclasses.replace(origins, normalize=FILE)


def _usual(spec: InputSpec) -> InputSpec:
    """The usual normalisation that a file means: its numbers are rounded to float32 there."""
    for words in NORMALIZATIONS:
        if spec.channels == GREY and NORMALIZATIONS[words].grey is None:
            continue
        usual = normalized(spec, words)
        pairs = zip((*usual.mean, *usual.std), (*spec.mean, *spec.std), strict=True)
        if usual.bgr == spec.bgr and all(math.isclose(*pair, rel_tol=1e-6, abs_tol=1e-9) for pair in pairs):
            return usual
    return spec


def _does_nothing(scale: "torch.Tensor", shift: "torch.Tensor") -> bool:
    return bool((scale == 1).all()) and bool((shift == 0).all())


def _white(scale: "torch.Tensor", shift: "torch.Tensor") -> float:
    """The value of white that x * scale + shift expects; see ``white_of``."""
    return white_of(shift / scale, 1 / scale.abs().clamp_min(1e-30))


def from_keras(px: int, channels: int, *, pretrained: bool) -> InputSpec:
    """The input as it most often is in Keras: pictures squashed to the size, and values of 0 to 1, or as
    ``preprocess_input`` of Keras' own VGG makes them (``pretrained``)."""
    usual = "caffe" if pretrained and channels == COLOURS else "unit"
    plain = InputSpec(px, px, (0.0,) * channels, (1.0,) * channels, channels, "squash")
    return normalized(plain, usual)


def output_of(network: Assembled, origins: Origins) -> tuple[str, Origins]:
    """What the outputs mean, and how that is known."""
    if network.output:
        return network.output, dataclasses.replace(origins, output=FILE)
    last = next(layer for layer in reversed(network.layers) if isinstance(layer, Conv | Linear))
    return (outputs.SIGMOID if last.outputs == 1 else outputs.SOFTMAX), origins
