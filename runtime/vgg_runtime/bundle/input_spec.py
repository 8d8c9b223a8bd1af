"""The input that a network was trained with: how a picture becomes its tensor. The checkpoint, the manifest
and the device share this description."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Self

from vgg_runtime.records import FieldError, Record

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# crop: the shorter side to ``resize_px``, then the middle. squash: both sides to ``resize_px``, then the
# middle; the aspect ratio is lost. pad: the longer side to ``resize_px``, and black around.
RESIZES = ("crop", "squash", "pad")
GREY, COLOURS = 1, 3  # the numbers of channels that pictures can have
CHANNELS = (GREY, COLOURS)
MOST_PX = 8192  # of a side: beyond, one picture's tensor fills the memory
LARGEST = 1e9  # of mean and std, which are float32 where they are used


@dataclasses.dataclass(frozen=True)
class InputSpec(Record):
    """The input of a network: float32 [N, channels, px, px].

    ``resize_px``: the side in pixels that ``resize`` makes (see RESIZES), before the middle ``px`` are cut
    out. ``channels``: 3 for colours, 1 for grey. ``bgr``: blue comes first. ``mean`` and ``std``: what is
    subtracted from values of 0 to 1, and then divides them, per channel in the order of the network.
    """

    resize_px: int
    px: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = COLOURS
    resize: str = "crop"
    bgr: bool = False

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise FieldError("channels", "1 (grey) or 3 (colours)", self.channels)
        if self.resize not in RESIZES:
            raise FieldError("resize", f"one of {', '.join(RESIZES)}", self.resize)
        if not 1 <= self.px <= self.resize_px:
            raise FieldError("px", f"at least 1 and at most resize_px ({self.resize_px})", self.px)
        if self.resize_px > MOST_PX:
            raise FieldError("resize_px", f"at most {MOST_PX}", self.resize_px)
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise FieldError(name, f"{self.channels} numbers, one per channel", list(getattr(self, name)))
        if min(self.std) <= 0:
            raise FieldError("std", "numbers above zero", list(self.std))
        if min(self.std) < 1 / LARGEST or max(*map(abs, self.mean), *self.std) > LARGEST:
            raise FieldError("mean and std", f"numbers between 1/{LARGEST:g} and {LARGEST:g}", [])
        if self.bgr and self.channels == GREY:
            raise FieldError("bgr", "false, because a grey picture has one channel", self.bgr)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the tensor of one picture: channels, px, px."""
        return self.channels, self.px, self.px

    def at(self, px: int) -> Self:
        """The same input at another size, with the same field of view."""
        return dataclasses.replace(self, resize_px=max(px, round(self.resize_px * px / self.px)), px=px)

    @classmethod
    def from_json(cls, document: object, path: str = "") -> Self:
        """What ``to_json`` gave; older documents say ``crop_px`` for ``px``.

        Raises:
            FieldError: a field is missing or holds something else.
        """
        if isinstance(document, dict) and "px" not in document and "crop_px" in document:
            document = {**document, "px": document["crop_px"]}
        return super().from_json(document, path)


def for_input(px: int) -> InputSpec:
    """ImageNet's evaluation preset at ``px``, with the field of view of 256 -> 224 kept (160 px: 183)."""
    return InputSpec(round(256 * px / 224), px)


@dataclasses.dataclass(frozen=True)
class Normalization:
    """A usual way to scale values of 0 to 1. ``mean`` and ``std``: of red, green and blue. ``grey``: the mean
    and the standard deviation of a grey picture; None: there is no usual one. ``bgr``: blue comes first.
    ``words``: what it is, in plain English."""

    words: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grey: tuple[float, float] | None
    bgr: bool = False


_STEP = 1 / 255  # of a byte, in values of 0 to 1
NORMALIZATIONS = {
    "imagenet": Normalization(
        "ImageNet's mean and standard deviation", IMAGENET_MEAN, IMAGENET_STD, (0.449, 0.226)
    ),
    "half": Normalization("values of -1 to 1", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.5, 0.5)),
    "unit": Normalization("values of 0 to 1", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0)),
    "none": Normalization("values of 0 to 255", (0.0, 0.0, 0.0), (_STEP, _STEP, _STEP), (0.0, _STEP)),
    "caffe": Normalization(
        "values of 0 to 255 less the mean, as Caffe's and Keras' VGG",
        (123.68 / 255, 116.779 / 255, 103.939 / 255),
        (_STEP, _STEP, _STEP),
        None,
        bgr=True,
    ),
    "cifar": Normalization(
        "CIFAR-10's mean and standard deviation",
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        (0.4808, 0.2392),
    ),
}
NUMBERS = "MEAN/STD"


def normalized(spec: InputSpec, words: str, *, bgr: bool = False) -> InputSpec:
    """``spec`` with the normalisation of these words: one of NORMALIZATIONS, or numbers as in
    "0.5,0.5,0.5/0.5,0.5,0.5" or "0.5/0.5", for values of 0 to 1.

    ``bgr`` exchanges red and blue. The mean and the standard deviation of a word stay with their colours;
    numbers are in the order of the network.

    Raises:
        ValueError: the words cannot be read, or do not fit the channels.
    """
    if spec.channels == GREY and bgr:
        raise ValueError("a grey picture has one channel, so red and blue cannot be exchanged")
    if usual := NORMALIZATIONS.get(words):
        bgr = usual.bgr or bgr
        mean, std = _of_channels(words, usual, spec.channels, bgr=bgr)
    else:
        mean, std = _numbers(words, spec.channels)
    return dataclasses.replace(spec, mean=mean, std=std, bgr=bgr)


def _of_channels(
    word: str, usual: Normalization, channels: int, *, bgr: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of a usual normalisation, in the order of the channels."""
    if channels == GREY:
        if usual.grey is None:
            raise ValueError(f"{word} is for three channels, and the network takes one: grey")
        return usual.grey[:1], usual.grey[1:]
    return (usual.mean[::-1], usual.std[::-1]) if bgr else (usual.mean, usual.std)


def exchanged(spec: InputSpec) -> InputSpec:
    """``spec`` with red and blue exchanged; the mean and the standard deviation stay with their colours."""
    return dataclasses.replace(spec, mean=spec.mean[::-1], std=spec.std[::-1], bgr=not spec.bgr)


def _numbers(words: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of "MEAN/STD"; one number stands for all channels.

    Raises:
        ValueError: it is something else.
    """
    expected = (
        f"{', '.join(NORMALIZATIONS)} or {NUMBERS} for values of 0 to 1, such as"
        " 0.5,0.5,0.5/0.25,0.25,0.25 or 0.5/0.25"
    )
    number = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
    several = rf"\s*{number}\s*(?:,\s*{number}\s*)*"
    if not re.fullmatch(rf"{several}/{several}", words, re.ASCII):
        raise ValueError(f"expected {expected}, found {words!r}")
    mean, std = ([float(value) for value in part.split(",")] for part in words.split("/"))
    if {len(mean), len(std)} - {1, channels}:
        raise ValueError(
            f"expected one number or {channels} on each side of the slash, one per channel, found {words!r}"
        )
    if not all(0 < value < float("inf") for value in std) or not all(abs(v) < float("inf") for v in mean):
        raise ValueError(f"expected finite numbers, those behind the slash above zero, found {words!r}")
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    return tuple(mean), tuple(std)


def resized(spec: InputSpec, words: str) -> InputSpec:
    """``spec`` with the resizing of these words: "crop", "squash" or "pad", or with the side that it makes in
    pixels as in "crop:256". Without that side, crop keeps ImageNet's margin (256 px for 224), and the others
    have none.

    Raises:
        ValueError: the words cannot be read, or the side is smaller than the input.
    """
    resize, _, side = words.partition(":")
    if resize not in RESIZES or (":" in words and not re.fullmatch(r"[0-9]{1,5}", side)):
        raise ValueError(
            f"expected {', '.join(RESIZES)}, or one of them with a side in pixels such as crop:256, found"
            f" {words!r}"
        )
    resize_px = int(side) if side else _usual_side(resize, spec.px)
    if resize_px < spec.px:
        raise ValueError(f"expected a side of at least the input's {spec.px} px, found {words!r}")
    return dataclasses.replace(spec, resize=resize, resize_px=resize_px)


def _usual_side(resize: str, px: int) -> int:
    return for_input(px).resize_px if resize == "crop" else px


def named(spec: InputSpec) -> tuple[str, bool] | None:
    """The word of NORMALIZATIONS that a description has, and whether red and blue are exchanged in it. None:
    it has numbers of its own."""
    for bgr in (False, True) if spec.channels == COLOURS else (False,):
        for word, one in NORMALIZATIONS.items():
            if spec.channels == GREY and one.grey is None:
                continue
            if normalized(spec, word, bgr=bgr) == spec:
                return word, bgr
    return None


def flags(spec: InputSpec) -> tuple[str, ...]:
    """The words of a command line that ask for exactly this input, whatever else would be assumed:
    "--input-px", "224", ..."""
    return tuple(word for part in _flags(spec) for word in part)


def changes(spec: InputSpec, other: InputSpec) -> str:
    """The flags that make ``spec`` of ``other``, as they are typed. Empty: nothing differs."""
    pairs = zip(_flags(spec), _flags(other), strict=True)
    return " ".join(word for wanted, found in pairs if wanted != found for word in wanted)


def _flags(spec: InputSpec) -> tuple[tuple[str, ...], ...]:
    """The flags of each part of an input: size, channels, resizing and normalisation."""
    word, bgr = named(spec) or (f"{_listed(spec.mean)}/{_listed(spec.std)}", spec.bgr)
    usual = spec.resize_px == _usual_side(spec.resize, spec.px)
    return (
        ("--input-px", str(spec.px)),
        ("--channels", str(spec.channels)),
        ("--resize", spec.resize if usual else f"{spec.resize}:{spec.resize_px}"),
        ("--normalize", word, *(("--bgr",) if bgr else ())),
    )


def _listed(values: Sequence[float]) -> str:
    """Numbers as they are typed."""
    return ",".join(repr(float(value)) for value in _shortest(values))


def _shortest(values: Sequence[float]) -> Sequence[float]:
    """One number, where all are equal."""
    return values[:1] if len(set(values)) == 1 else values


def in_words(spec: InputSpec) -> str:
    """An input in plain English: the size, the channels, the normalisation, and the resizing."""
    size = f"{spec.px} x {spec.px} px"
    return f"{size}, {normalization_in_words(spec)}, {resize_in_words(spec)}"


def normalization_in_words(spec: InputSpec) -> str:
    """The channels and their values in plain English, such as "RGB with ImageNet's mean and standard
    deviation"."""
    order = "grey" if spec.channels == GREY else "BGR" if spec.bgr else "RGB"
    if found := named(spec):
        return f"{order} with {NORMALIZATIONS[found[0]].words}"
    mean, std = (", ".join(f"{value:.3g}" for value in _shortest(values)) for values in (spec.mean, spec.std))
    return f"{order} with the mean {mean} and the standard deviation {std} of values of 0 to 1"


def resize_in_words(spec: InputSpec) -> str:
    """The resizing in plain English."""
    if spec.resize == "pad":
        made = f"the longer side to {spec.resize_px} px, and black around"
    elif spec.resize == "squash":
        made = f"both sides to {spec.resize_px} px"
    else:
        made = f"the shorter side to {spec.resize_px} px"
    cut = spec.resize == "crop" or spec.resize_px > spec.px
    return f"{made}{f', the middle {spec.px} px taken' if cut else ''}"
