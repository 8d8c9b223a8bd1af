"""The options of each stage: frozen dataclasses that are validated when made. The default and the help text
of an option stand beside its field and nowhere else."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_runtime.board.targets import TARGETS, here
from vgg_runtime.bundle import input_spec
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.manifest import MadeWith
from vgg_runtime.bundle.outputs import OUTPUTS

from .core.errors import OptionsError
from .core.files import work_folder
from .core.option import Option, asked, asked_as
from .core.progress import Progress, Quiet

WIDTH_MULTIPLE = 16  # onnxruntime's fast int8 kernels on ARM want multiples of 4 input and 16 output channels
CLASSIFIER = "classifier"  # of --train-from: the fully connected layers alone
REPAIR_IMAGES, REPAIR_HELD_IMAGES = (
    200,
    60,
)  # pictures to fit layers on, and others to choose and measure with
CRITERIA = ("l2", "l1", "random", "obs")
ALLOCATIONS = ("uniform", "sensitivity")
SEED = Option("--seed", "Seed for every random draw and split.", bounds=(0, 99))
REPAIR = Option("--repair-images", "Number of pictures to fit layers on, at most.")
EPOCH_IMAGES = Option("--finetune-images", "Number of training pictures per epoch, at most.")


AUTO = "auto"  # the labelled pictures decide
ACTIVATIONS = ("relu", "leaky_relu", "relu6", "elu", "tanh", "sigmoid", "silu", "gelu", "none")
WITH_SLOPE = ("leaky_relu", "elu")  # a number in brackets may follow


def activation(text: str) -> str:
    """One of ACTIVATIONS, those WITH_SLOPE also as in "leaky_relu(0.2)".

    Raises:
        OptionsError: it is something else.
    """
    found = re.fullmatch(r"([a-z0-9_]+)(?:\([0-9]+(?:\.[0-9]+)?\))?", text)
    if not found or found[1] not in ACTIVATIONS or ("(" in text and found[1] not in WITH_SLOPE):
        raise OptionsError(
            f"--activation must be one of {', '.join(ACTIVATIONS)}, {' and '.join(WITH_SLOPE)} also with a"
            f" slope as in leaky_relu(0.2); found {text!r}"
        )
    return text


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """What the user tells about the input and the output of the network, because tensors cannot tell it.
    None, and ``bgr`` false: not told. ``normalize`` AUTO: the one that fits the labelled pictures best."""

    input_px: int | None = asked(
        None,
        "--input-px",
        "Side of the input that the network was trained with  [default: what the file tells, else 224]",
        bounds=(8, 2048),
    )
    channels: int | None = asked(
        None,
        "--channels",
        "Number of input channels: 1 for grey, 3 for colours  [default: what the file tells]",
        choices=tuple(map(str, input_spec.CHANNELS)),
        parse=int,
    )
    resize: str | None = asked(
        None,
        "--resize",
        "How the pictures were resized: crop (shorter side, then the middle), squash (both sides) or pad"
        " (longer side, black around); with the side in pixels as in crop:256  [default: what the file"
        " tells, else crop]",
        metavar="crop|squash|pad[:PX]",
    )
    normalize: str | None = asked(
        None,
        "--normalize",
        "How the pixels were scaled: half is -1 to 1, unit 0 to 1, none 0 to 255, caffe BGR less the mean;"
        " MEAN/STD for values of 0 to 1, such as 0.5,0.5,0.5/0.25,0.25,0.25. auto: the one that is right most"
        " often on labelled pictures  [default: what the file tells, else imagenet]",
        metavar="|".join((*input_spec.NORMALIZATIONS, AUTO, input_spec.NUMBERS)),
    )
    bgr: bool = asked(False, "--bgr", "The network takes blue first, as OpenCV reads pictures.")
    activation: str | None = asked(
        None,
        "--activation",
        "Activation behind the layers where the file does not tell  [default: relu]",
        metavar="relu|leaky_relu|leaky_relu(0.2)|relu6|elu|tanh|sigmoid|silu|gelu|none",
        parse=activation,
    )
    output_kind: str | None = asked(
        None,
        "--output-kind",
        "softmax: one class per picture; sigmoid: one output, two classes; multi-label: each label by itself"
        "  [default: what the file tells, else sigmoid for one output and softmax for several]",
        choices=OUTPUTS,
    )

    def __post_init__(self) -> None:
        if self.input_px is not None and not 8 <= self.input_px <= 2048:
            raise OptionsError(f"--input-px must be from 8 to 2048, found {self.input_px}")
        if self.channels not in (None, *input_spec.CHANNELS):
            raise OptionsError(f"--channels must be 1 or 3, found {self.channels}")
        if self.output_kind not in (None, *OUTPUTS):
            kinds = ", ".join(OUTPUTS)
            raise OptionsError(f"--output-kind must be one of {kinds}, found {self.output_kind!r}")
        if self.activation is not None:
            activation(self.activation)
        if self.channels == input_spec.GREY and self.bgr:
            raise OptionsError("--bgr exchanges red and blue, and --channels 1 has neither; leave one out")
        self._ensure_readable()

    def _ensure_readable(self) -> None:
        """Check what can be checked before the network is known.

        Raises:
            OptionsError: a word cannot be read, or does not fit what else is told.
        """
        channels = self.channels or input_spec.COLOURS
        px = self.input_px or 1  # where the size is not told, any side in pixels may be right
        spec = InputSpec(px, px, (0.0,) * channels, (1.0,) * channels, channels)
        try:
            if self.resize is not None:
                input_spec.resized(spec, self.resize)
        except ValueError as error:
            raise OptionsError(f"--resize: {error}") from error
        try:
            if self.normalize is not None and self.normalize != AUTO:
                input_spec.normalized(spec, self.normalize, bgr=self.bgr)
        except ValueError as error:
            raise OptionsError(f"--normalize: {error}") from error

    @property
    def normalization_told(self) -> bool:
        """Whether the user says how pixels are scaled, so that pictures must not overrule it."""
        return self.bgr or (self.normalize is not None and self.normalize != AUTO)


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """``spec``: auto, imagenet, demo, random, or a file. ``input``: what is told about its input."""

    spec: str = asked(
        "auto",
        "--weights",
        "The checkpoint: a file, or one of the built-in names.",
        metavar="auto|imagenet|demo|random|FILE",
    )
    labels: Path | None = asked(
        None,
        "--labels",
        'File of class names in class order: one per line, or JSON (a list, {"0": name} or {name: 0}).',
    )
    seed: int = asked_as(0, SEED)
    input: InputOptions = dataclasses.field(default_factory=InputOptions)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """``spec``: imagenette, none, a folder, or None for what fits the weights."""

    spec: str | None = asked(
        None,
        "--data",
        "Folder of pictures, or one of the built-in names  [default: a set that fits the weights]",
        metavar="imagenette|DIR|none",
    )
    seed: int = asked_as(0, SEED)
    calibration_images: int = asked(
        128, "--calibration-images", "Number of pictures that calibrate int8, at most."
    )
    test_images: int = asked(1200, "--test-images", "Number of pictures to evaluate on, at most.")

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise OptionsError(f"--calibration-images must be at least 1, found {self.calibration_images}")
        if self.test_images < 1:
            raise OptionsError(f"--test-images must be at least 1, found {self.test_images}")


def stage(text: str) -> int | None:
    """ "4" or "conv4" as 4; nothing as None.

    Raises:
        OptionsError: it is something else.
    """
    if text and not (number := _stage_number(text)):
        raise OptionsError(f"--prune-from takes the number of a stage, such as 4, found {text!r}")
    return number if text else None


def trainable(text: str) -> int | str | None:
    """ "4" or "conv4" as 4; "classifier" or "fc1" as CLASSIFIER; nothing as None.

    Raises:
        OptionsError: it is something else.
    """
    if text in (CLASSIFIER, "fc1"):
        return CLASSIFIER
    if text and not (number := _stage_number(text)):
        raise OptionsError(
            f"--train-from takes the number of a stage, such as 4, or {CLASSIFIER}, found {text!r}"
        )
    return number if text else None


def _stage_number(text: str) -> int | None:
    found = re.fullmatch(r"(?:conv)?([1-9][0-9]{0,2})", text)
    return int(found[1]) if found else None


def _ensure_stage(flag: str, number: int | None) -> None:
    if number is not None and number < 1:
        raise OptionsError(f"{flag} counts stages from 1, found {number}")


@dataclasses.dataclass(frozen=True)
class PruneOptions:
    """``ratio``: the share of filters to remove from every convolution from stage ``first_stage`` on, counted
    from 1 between pools; None: from the last but one. Widths are rounded to a multiple of ``multiple``.
    ``allocation`` "sensitivity" removes as much arithmetic as "uniform", but more filters where the network
    misses them less. ``repair`` fits the remaining layers in closed form on ``images`` pictures, and chooses
    and measures with ``held_images`` others."""

    ratio: float = asked(0.10, "--prune-ratio", "Share of the filters to remove from each layer.")
    first_stage: int | None = asked(
        None,
        "--prune-from",
        "First stage to prune: stages lie between pools and count from 1  [default: the last but one]",
        metavar="STAGE",
        parse=stage,
    )
    criterion: str = asked(
        "l2", "--criterion", "How the importance of a filter is measured.", choices=CRITERIA
    )
    multiple: int = asked(
        WIDTH_MULTIPLE,
        "--width-multiple",
        "Round widths to a multiple of this  [default: what the target's int8 kernels want, 8 or 16]",
        derived=True,
    )
    seed: int = asked_as(0, SEED)
    repair: bool = asked(True, "--no-repair", "Leave out the closed-form repair, to see what it gains.")
    images: int = asked_as(REPAIR_IMAGES, REPAIR)
    held_images: int = REPAIR_HELD_IMAGES
    allocation: str = asked(
        "uniform",
        "--prune-widths",
        "Remove the same ratio everywhere, or more where filters are missed less (needs --criterion obs).",
        choices=ALLOCATIONS,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise OptionsError(f"--prune-ratio must be at least 0 and below 1, found {self.ratio}")
        _ensure_stage("--prune-from", self.first_stage)
        if self.criterion not in CRITERIA:
            raise OptionsError(f"--criterion must be one of {', '.join(CRITERIA)}, found {self.criterion!r}")
        if self.allocation not in ALLOCATIONS:
            raise OptionsError(
                f"--prune-widths must be one of {', '.join(ALLOCATIONS)}, found {self.allocation!r}"
            )
        if self.allocation == "sensitivity" and self.criterion != "obs":
            raise OptionsError(
                "--prune-widths sensitivity needs costs that can be compared between layers, which"
                f" --criterion {self.criterion} does not"
                " measure; use --criterion obs or --prune-widths uniform"
            )
        if self.multiple < 1:
            raise OptionsError(f"--width-multiple must be at least 1, found {self.multiple}")
        if min(self.images, self.held_images) < 1:
            raise OptionsError(f"--repair-images must be at least 1, found {self.images}")

    @property
    def sees_pictures(self) -> bool:
        """Whether pictures choose filters or repair what is left."""
        return self.repair or self.criterion == "obs"


@dataclasses.dataclass(frozen=True)
class FinetuneOptions:
    """A short distillation. ``rate``: the largest learning rate, relative to the root mean square of each
    tensor; None: a short test finds it. ``train_from``: the first stage whose weights change, counted from 1
    between pools, or CLASSIFIER for the fully connected layers alone; None: the last ``trained_stages``,
    or fewer where the maps before them are large.
    ``images``: the pictures per epoch, at most; each is cropped to at least ``least_area`` of its area, and
    where there are fewer pictures it is shown in up to ``crops`` crops."""

    epochs: int = asked(
        2,
        "--finetune-epochs",
        "Number of epochs; 0 leaves the fine-tuning out. The compact variants of 'all' have --distil-up-to.",
    )
    rate: float | None = asked(
        None,
        "--learning-rate",
        "Largest learning rate, relative to the size of each tensor; it falls to 0 along half a cosine"
        "  [default: found by a short test]",
    )
    batch: int = 16
    temperature: float = 2.0
    train_from: int | str | None = asked(
        None,
        "--train-from",
        "First stage whose weights are trained, as --prune-from counts them; classifier: only what follows"
        " the convolutions  [default: the last but one]",
        metavar="STAGE|classifier",
        parse=trainable,
    )
    trained_stages: int = 2
    images: int = asked_as(1000, EPOCH_IMAGES)
    crops: int = 4
    select_images: int = 400
    least_area: float = 0.4
    seed: int = asked_as(0, SEED)

    def __post_init__(self) -> None:
        if not 0 < self.least_area <= 1:
            raise OptionsError(
                "the least share of a picture that a crop shows must be above 0 and at most 1, found"
                f" {self.least_area}"
            )
        if self.epochs < 0 or self.batch < 1 or self.images < 1 or self.select_images < 1:
            found = f"{self.epochs}, {self.batch}, {self.images} and {self.select_images}"
            raise OptionsError(
                "epochs must not be negative, batch and the numbers of images must be positive; found"
                f" {found}"
            )
        if self.rate is not None and self.rate <= 0:
            raise OptionsError(f"--learning-rate must be positive, found {self.rate:g}")
        if min(self.trained_stages, self.crops, self.temperature) <= 0:
            found = f"{self.trained_stages}, {self.crops} and {self.temperature}"
            raise OptionsError(
                "the numbers of trained stages and of crops and the temperature must be positive; found"
                f" {found}"
            )
        if isinstance(self.train_from, str):
            if self.train_from != CLASSIFIER:
                raise OptionsError(
                    f"--train-from takes the number of a stage or {CLASSIFIER!r}, found {self.train_from!r}"
                )
        else:
            _ensure_stage("--train-from", self.train_from)

    def shown(self, pictures: int) -> int:
        """The pictures of an epoch where there are so many different ones; crops count."""
        return min(self.images, self.crops * pictures)


# The levels of recovery from the cheapest to the most expensive: the classifier on features that are computed
# once, the deeper stages with it on inputs that are computed once, the whole network.
DISTIL_LEVELS = {
    "classifier": FinetuneOptions(8, train_from=CLASSIFIER),
    "blocks": FinetuneOptions(5, trained_stages=3),
    "network": FinetuneOptions(3, train_from=1),
}
DISTIL_CHOICES = ("auto", "none", *DISTIL_LEVELS)


@dataclasses.dataclass(frozen=True)
class DistilOptions:
    """``up_to``: the last level of DISTIL_LEVELS to try, "none", or "auto": the classifier, or for a
    ``Budget`` the deeper blocks. ``epochs``: of the level "blocks"; None: its own."""

    up_to: str = asked(
        "auto",
        "--distil-up-to",
        "How much of the compact variants to train again. auto: the classifier, and for a budget the deeper"
        " blocks with it.",
        choices=DISTIL_CHOICES,
    )
    images: int = asked_as(FinetuneOptions.images, EPOCH_IMAGES)
    seed: int = asked_as(0, SEED)
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.up_to not in DISTIL_CHOICES:
            raise OptionsError(
                f"--distil-up-to must be one of {', '.join(DISTIL_CHOICES)}, found {self.up_to!r}"
            )

    def levels(self, budget: "Budget") -> dict[str, FinetuneOptions]:
        """The levels to try one after the other, by name. The classifier alone learns the few pictures by
        heart, which the blocks that follow could not mend, so it is a level only where it is the last."""
        last = self.up_to
        if last == "auto":  # not the whole network, which takes minutes an epoch
            last = "blocks" if budget.asked else "classifier"
        names = {"none": [], "network": ["blocks", "network"]}.get(last, [last])
        levels = {
            name: dataclasses.replace(DISTIL_LEVELS[name], images=self.images, seed=self.seed)
            for name in names
        }
        if self.epochs and "blocks" in levels:
            levels["blocks"] = dataclasses.replace(levels["blocks"], epochs=self.epochs)
        return levels


def ranks(text: str) -> tuple[int, ...] | None:
    """ "256,128" as numbers; nothing as None.

    Raises:
        OptionsError: it is something else.
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text else None
    except ValueError as error:
        raise OptionsError(f"--fc-ranks takes whole numbers such as 256,128, found {text!r}") from error


@dataclasses.dataclass(frozen=True)
class FactoriseOptions:
    """``conv_share``: the share of the convolutions' arithmetic that is left, at most. ``fc_ranks``: the
    ranks of the fully connected layers but the last; None: ranks that fit the network, times ``fc_share``.
    ``images``: the pictures to fit on, and ``held_images`` those to choose and measure with, at most. Without
    ``repair`` the factors are the singular vectors of the weights, to see what the fit gains."""

    conv_share: float = asked(
        0.28, "--conv-share", "Share of the convolutions' arithmetic that is left, at most."
    )
    fc_ranks: tuple[int, ...] | None = asked(
        None,
        "--fc-ranks",
        "Ranks of the fully connected layers but the last  [default: from their widths and the number of"
        " classes]",
        metavar="A,B",
        parse=ranks,
    )
    multiple: int = WIDTH_MULTIPLE
    images: int = asked_as(REPAIR_IMAGES, REPAIR)
    held_images: int = REPAIR_HELD_IMAGES
    seed: int = asked_as(0, SEED)
    repair: bool = True
    fc_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.conv_share < 1:
            raise OptionsError(f"--conv-share must be above 0 and below 1, found {self.conv_share}")
        if not 0 < self.fc_share <= 1:
            raise OptionsError(
                f"the share of the default ranks must be above 0 and at most 1, found {self.fc_share}"
            )
        if min(self.multiple, self.images, self.held_images, *(self.fc_ranks or (1,))) < 1:
            ranks = ",".join(map(str, self.fc_ranks or ("default",)))
            found = f"{ranks}, {self.multiple}, {self.images} and {self.held_images}"
            raise OptionsError(
                f"ranks, their multiple and the numbers of images must be positive; found {found}"
            )


@dataclasses.dataclass(frozen=True)
class Int8Form:
    """A way to make an int8 model of a float graph. The plain one takes each range from the smallest to the
    largest value seen. ``equalized``: channels are first scaled between layers. ``clipped``: each range is
    cut to the part with the least squared error. ``corrected``: the mean shift that rounding the weights
    causes is taken out of the biases. ``rounded``: the weights of convolutions are rounded together, such
    that their outputs change least, and the biases are corrected."""

    name: str
    equalized: bool = False
    clipped: bool = False
    corrected: bool = False
    rounded: bool = False

    @property
    def base(self) -> str:
        """The name of the form without correction and common rounding."""
        return self.name.partition("-")[0]


INT8_FORMS = {
    form.name: form
    for form in (
        Int8Form("minmax"),
        Int8Form("minmax-corrected", corrected=True),
        Int8Form("minmax-rounded", corrected=True, rounded=True),
        Int8Form("clipped", clipped=True),
        Int8Form("clipped-corrected", clipped=True, corrected=True),
        Int8Form("clipped-rounded", clipped=True, corrected=True, rounded=True),
        Int8Form("equalized", equalized=True),
        Int8Form("equalized-corrected", equalized=True, corrected=True),
        Int8Form("equalized-rounded", equalized=True, corrected=True, rounded=True),
    )
}


AUTO_BITS = "auto"
FC_BITS = ("8", "4", AUTO_BITS)


@dataclasses.dataclass(frozen=True)
class QuantizeOptions:
    """``target``: a key of TARGETS. ``method``: a key of INT8_FORMS, or "auto" for the form that is closest
    to the float model on up to ``held_images`` pictures that calibrate nothing. Where the agreement on these
    is below ``min_agreement``, up to ``float_layers`` layers stay float. ``fc_bits``: the bits of the weights
    of large fully connected layers, one of FC_BITS. ``every_form``: whether "auto" tries the
    equalized forms and the one whose weights are rounded together, which take most of the time, even where
    another form agrees as often as asked for."""

    target: str = asked(
        "pi5", "--target", "The core that the int8 model is made for.", choices=tuple(TARGETS)
    )
    method: str = asked(
        "auto",
        "--int8-method",
        "How int8 ranges and weights are chosen. auto: minmax; where that is not close enough to the float"
        " model, the form that is closest.",
        choices=("auto", *INT8_FORMS),
    )
    min_agreement: float = asked(
        0.98,
        "--min-agreement",
        "Least agreement with the float model. Below it the most sensitive layers stay float, except in"
        " compact variants of 'all --max-drop'. 0: no layer stays float.",
    )
    fc_bits: str = asked(
        "8",
        "--fc-bits",
        "Bits of the weights of large fully connected layers of int8 models. 4 halves what these take of the"
        " file. auto: 4 on cores with a dot product, where they take no longer, if as many answers stay the"
        " same.",
        choices=FC_BITS,
    )
    float_layers: int = 3
    held_images: int = 60
    every_form: bool = True

    def __post_init__(self) -> None:
        if self.fc_bits not in FC_BITS:
            raise OptionsError(f"--fc-bits must be one of {', '.join(FC_BITS)}, found {self.fc_bits!r}")
        if self.target not in TARGETS:
            raise OptionsError(f"--target must be one of {', '.join(TARGETS)}, found {self.target!r}")
        if self.method not in ("auto", *INT8_FORMS):
            raise OptionsError(
                f"--int8-method must be one of auto, {', '.join(INT8_FORMS)}, found {self.method!r}"
            )
        if not 0 <= self.min_agreement <= 1:
            raise OptionsError(f"--min-agreement must be from 0 to 1, found {self.min_agreement}")
        if self.float_layers < 0 or self.held_images < 1:
            found = f"{self.float_layers} and {self.held_images}"
            raise OptionsError(
                "the number of float layers must not be negative, and that of held-out pictures must be"
                f" positive; found {found}"
            )


def size_in_bytes(text: str) -> int:
    """ "20MB", "500 kB" or "20000000" in bytes.

    Raises:
        OptionsError: it is no size.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgG]?)[bB]?\s*", text)
    if not found:
        raise OptionsError(f"--target-size takes a size such as 20MB, found {text!r}")
    return round(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2].lower()])


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits that the compact variants must keep; None: no limit. ``max_drop``: points of top-1 that may be
    lost, or of agreement where there are no labels. ``size_bytes``: the size of the file, at most.
    ``speedup``: the speed relative to the baseline on this machine, at least. ``sure``: a loss counts with
    its standard error."""

    max_drop: float | None = asked(
        None,
        "--max-drop",
        "Points of top-1 that compact variants may lose. Starts a search.",
        metavar="POINTS",
    )
    size_bytes: int | None = asked(
        None,
        "--target-size",
        "Largest size of a compact variant's file, e.g. 20MB. Starts a search.",
        metavar="SIZE",
        parse=size_in_bytes,
    )
    speedup: float | None = asked(
        None,
        "--target-speedup",
        "Least speed of a compact variant relative to the baseline on this machine. Starts a search.",
        metavar="X",
    )
    sure: bool = asked(
        False,
        "--sure",
        "Be sure of --max-drop: a loss counts as it is counted, with its standard error, here and in"
        " compare.py. Takes more pictures, or finds slower variants.",
    )

    def __post_init__(self) -> None:
        if self.sure and self.max_drop is None:
            raise OptionsError("--sure is about the loss that --max-drop allows; give --max-drop, too")
        if self.max_drop is not None and not 0 < self.max_drop < float("inf"):
            raise OptionsError(
                f"--max-drop must be above 0, found {self.max_drop:g}; no number of pictures shows that"
                " nothing at all is lost"
            )
        for flag, value, low in (
            ("--target-size", self.size_bytes, 1),
            ("--target-speedup", self.speedup, 1),
        ):
            if value is not None and not low <= value < float("inf"):
                raise OptionsError(f"{flag} must be at least {low}, found {value:g}")

    @property
    def asked(self) -> bool:
        return self != Budget()

    def in_words(self) -> str:
        """The limits as a phrase for logs and the recommendation."""
        words = (
            []
            if self.max_drop is None
            else [f"a loss of at most {self.max_drop:g} point{'' if self.max_drop == 1 else 's'}"]
        )
        words += ["its standard error included"] if self.sure else []
        words += [] if self.size_bytes is None else [f"a file of at most {self.size_bytes / 1e6:g} MB"]
        words += [] if self.speedup is None else [f"at least {self.speedup:g} times the baseline's speed"]
        return ", ".join(words)


QUICK, NORMAL, THOROUGH = "quick", "normal", "thorough"
EFFORTS = (QUICK, NORMAL, THOROUGH)


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How long a search for a budget goes on. ``effort``: one of EFFORTS; None: normal. ``max_minutes``: no
    point is begun that is expected to end later, and the best so far becomes the bundle."""

    effort: str | None = asked(
        None,
        "--effort",
        "How much a search tries: quick one input size, two points and fewer pictures, thorough all sizes and"
        " as many points as may help  [default: normal]",
        choices=EFFORTS,
    )
    max_minutes: float | None = asked(
        None,
        "--max-minutes",
        "Minutes of trying points: a search begins none that is expected to end later (one is always made)."
        " The best so far becomes the bundle, which takes some minutes more.",
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.effort is not None and self.effort not in EFFORTS:
            raise OptionsError(f"--effort must be one of {', '.join(EFFORTS)}, found {self.effort!r}")
        if self.max_minutes is not None and not 0 < self.max_minutes < float("inf"):
            raise OptionsError(f"--max-minutes must be above 0, found {self.max_minutes:g}")


def default_targets() -> tuple[str, ...]:
    """This machine, which evaluates and times the variants, and a Pi 5."""
    return tuple(dict.fromkeys((here().name, "pi5")))


def width_multiple(targets: Sequence[str]) -> int:
    """The multiple of channels that the fast int8 kernels of all targets want: the largest of theirs."""
    return max(TARGETS[name].width_multiple for name in targets)


SWEEP_RATIOS = (0.1, 0.3, 0.5)


def ratios(text: str) -> tuple[float, ...]:
    """ "0.1,0.3" as numbers.

    Raises:
        OptionsError: there is something else among them.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionsError(f"--ratios takes numbers such as 0.1,0.3, found {text!r}") from error


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """``ratios``: shares of filters to remove, from the first block on, for the families that remove filters.
    ``max_drop``: points that the recommended point may lose."""

    ratios: tuple[float, ...] = asked(
        SWEEP_RATIOS,
        "--ratios",
        "Shares of the filters to remove; each way to choose filters gets a point per share.",
        metavar="A,B",
        parse=ratios,
    )
    max_drop: float = asked(
        1.0, "--max-drop", "Points of top-1 that the recommended point may lose.", metavar="POINTS"
    )

    def __post_init__(self) -> None:
        if not all(0 < ratio < 1 for ratio in self.ratios):
            raise OptionsError(f"--ratios must lie above 0 and below 1, found {self.ratios}")
        Budget(self.max_drop)


def variant_names(text: str) -> tuple[str, ...] | None:
    """ "pruned, compact" as names; nothing as None."""
    return tuple(name.strip() for name in text.split(",")) if text else None


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """What is made: of which checkpoint, with which pictures, which variants, how, and for which cores. The
    seeds belong here because they change the result."""

    weights: WeightsOptions = dataclasses.field(default_factory=WeightsOptions)
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    prune: PruneOptions = dataclasses.field(default_factory=PruneOptions)
    finetune: FinetuneOptions = dataclasses.field(default_factory=FinetuneOptions)
    factorise: FactoriseOptions = dataclasses.field(default_factory=FactoriseOptions)
    distil: DistilOptions = dataclasses.field(default_factory=DistilOptions)
    quantize: QuantizeOptions = dataclasses.field(
        default_factory=lambda: QuantizeOptions(default_targets()[0])
    )
    budget: Budget = dataclasses.field(default_factory=Budget)
    search: SearchOptions = dataclasses.field(default_factory=SearchOptions)
    scaled_px: int | None = asked(
        None,
        "--scaled-px",
        "Side of the smaller input in pixels  [default: what a search finds, else about 5/7 of the network's"
        " own, 160 of 224]",
    )
    # None: all variants; the baseline is always made
    variants: tuple[str, ...] | None = asked(
        None,
        "--variants",
        "Variants to make beside the baseline  [default: all]",
        metavar="A,B",
        parse=variant_names,
    )
    # None: this machine and a Pi 5, with every variant that is worth it on any core
    targets: tuple[str, ...] | None = asked(
        None,
        "--target",
        "The core to build for; may be repeated. Only variants that are worth it on one of these cores are"
        " made  [default: this machine and pi5, every variant]",
        choices=tuple(TARGETS),
    )
    accept_accuracy: bool = asked(
        False,
        "--accept-accuracy",
        "Go on although the checkpoint is near chance on the labelled pictures or has its classes in"
        " another order.",
    )

    def __post_init__(self) -> None:
        if unknown := [name for name in self.targets or () if name not in TARGETS]:
            raise OptionsError(f"--target must be one of {', '.join(TARGETS)}, found {unknown[0]!r}")
        if self.quantize.target != self.built_for[0]:
            raise OptionsError(
                f"the int8 target must be the first of the targets, {self.built_for[0]}, found"
                f" {self.quantize.target}"
            )
        if self.search != SearchOptions() and not self.budget.asked:
            raise OptionsError(
                "--effort and --max-minutes are about a search; give --max-drop, --target-size or"
                " --target-speedup with them"
            )
        if self.scaled_px is not None and self.scaled_px < 1:
            raise OptionsError(f"--scaled-px must be at least 1, found {self.scaled_px}")

    @property
    def built_for(self) -> tuple[str, ...]:
        """The cores to build for, each once."""
        return tuple(dict.fromkeys(self.targets or default_targets()))


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; none of it changes the result. ``output``: the folder of the result.
    ``work``: the folder of intermediate files. ``progress``: what is told how far the run is. ``typed``: the
    options that were typed and decide the result; ``like``: what the run was given that this one repeats."""

    output: Path = asked(
        Path("artifacts"), "--output", "Folder of the bundle; it is replaced as a whole.", folder=True
    )
    work: Path | None = asked(
        None, "--work", "Folder of intermediate files  [default: .OUTPUT.work beside the output]", folder=True
    )
    progress: Progress = dataclasses.field(default_factory=Quiet)
    typed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    like: MadeWith | None = None

    def __post_init__(self) -> None:
        folder = self.output.resolve()
        if folder == Path.cwd().resolve() or folder in Path.cwd().resolve().parents:
            raise OptionsError(
                f"--output {self.output} contains the current folder; name a folder of its own"
            )
        if self.work and (self.work.resolve() == folder or folder in self.work.resolve().parents):
            raise OptionsError(
                f"--work {self.work} lies inside --output {self.output}; the output is replaced as a whole"
            )

    @property
    def work_folder(self) -> Path:
        """The folder where intermediate files stay, so that a second run skips what is up to date."""
        return self.work or work_folder(self.output)


@dataclasses.dataclass(frozen=True)
class DeployOptions:
    """``host``: HOST or USER@HOST, as ssh takes it. ``path``: the bundle's folder on the board, relative to
    the home folder. ``wheels``: this computer brings the packages along. ``web``: the page's packages are
    installed too. ``run``: the doctor and the comparison run there, with ``budget_s`` seconds per variant if
    that is not None. ``service``: what a service is to run instead; ``stop``, ``status`` and ``logs`` ask
    about one that is there."""

    host: str
    bundle: Path = asked(Path("artifacts"), "--bundle", "The bundle to copy to the board.", folder=True)
    output: Path | None = asked(
        None, "--output", "Folder for the results  [default: results/HOST]", folder=True
    )
    port: int | None = asked(
        None,
        "--port",
        "Port of the ssh server  [default: ssh's own, most often 22]",
        bounds=(1, 65535),
    )
    identity: Path | None = asked(
        None,
        "--identity",
        "The private key to log in with  [default: the one that ssh finds]",
        metavar="FILE",
    )
    path: str = asked("vgg-export", "--path", "Folder on the board, relative to the home folder.")
    variants: str | None = asked(
        None, "--variants", "Variants to copy and run beside the baseline  [default: all]", metavar="A,B"
    )
    wheels: bool = asked(
        False, "--wheels", "Copy the Python packages too, so that the board needs no internet."
    )
    web: bool = asked(False, "--web", "Also install what the page (compare.py --serve) needs.")
    budget_s: float | None = asked(
        None,
        "--budget",
        "Seconds of timed runs per variant  [default: compare.py's own]",
        metavar="SECONDS",
    )
    run: bool = asked(True, "--no-run", "Copy and install, but run nothing.")
    service: str | None = asked(
        None,
        "--service",
        "Instead of comparing, install a systemd user service that runs compare.py --live with these"
        " arguments, e.g. 'compact-scaled --source camera --log log.jsonl'.",
        metavar="ARGUMENTS",
    )
    stop: bool = asked(False, "--stop", "Stop and disable the service; copy nothing.")
    status: bool = asked(False, "--status", "Show the state of the service; copy nothing.")
    logs: bool = asked(False, "--logs", "Show the service's latest lines; copy nothing.")

    def __post_init__(self) -> None:
        self._ensure_one_task()
        if (
            not re.fullmatch(r"([^\s@/:\[\]-][^\s@/:\[\]]*@)?[^\s@/\[\]-][^\s@/\[\]]*", self.host)
            or not self.host.isprintable()
        ):
            raise OptionsError(
                f"expected HOST or USER@HOST such as pi@raspberrypi.local, found {self.host!r}"
            )
        if self.name.count(":") == 1:  # more of them are an IPv6 address
            raise OptionsError(
                f"{self.host} has a colon in it; a port goes into --port, a folder on the board into --path"
            )
        if self.identity and not self.identity.is_file():
            raise OptionsError(f"there is no key file {self.identity}; --identity takes the private key")
        if not self.path.strip() or not self.path.isprintable() or ":" in self.path:
            raise OptionsError(
                "--path takes a folder on the board without colons and control characters, found"
                f" {self.path!r}"
            )
        if self.budget_s is not None and not 0 < self.budget_s <= 86400:
            raise OptionsError(f"--budget must be above 0 and at most 86400 seconds, found {self.budget_s:g}")

    def _ensure_one_task(self) -> None:
        tasks = {"--service": self.service is not None, "--no-run": not self.run}
        tasks |= {"--stop": self.stop, "--status": self.status, "--logs": self.logs}
        if len(given := [name for name, is_given in tasks.items() if is_given]) > 1:
            raise OptionsError(f"{' and '.join(given)} do not go together; give one of them")
        if self.service is not None:
            try:
                words = self.service_words
            except ValueError as error:
                raise OptionsError(f"--service cannot be read ({error})") from error
            if not words or words[0].startswith("-") or not self.service.isprintable():
                raise OptionsError(
                    "--service takes a variant and options of compare.py --live in one argument"
                )

    @property
    def service_words(self) -> list[str]:
        """The service's variant and options, one by one; [] without a service."""
        return shlex.split(self.service or "")

    @property
    def asked_of_service(self) -> str | None:
        """What is asked of a service that is there: stop, status or logs; None: nothing."""
        return next((name for name in ("stop", "status", "logs") if getattr(self, name)), None)

    @property
    def name(self) -> str:
        """The host without the user."""
        return self.host.rpartition("@")[2]

    @property
    def output_folder(self) -> Path:
        """Where the results go on this computer."""
        return self.output or Path("results") / self.name

    @property
    def root(self) -> str:
        """The folder on the board, absolute or relative to the home folder."""
        return self.path[2:] if self.path.startswith("~/") else self.path


@dataclasses.dataclass(frozen=True)
class ShipOptions:
    """Which variant goes into a folder of its own. ``variant``: None: the one that the bundle recommends for
    the core. ``target``: whose build; None: this machine's. ``wheels``: the board's packages come along, for
    its ``python``."""

    output: Path = asked(Path("app"), "--output", "Folder, or file that ends in .zip, to write.", folder=True)
    bundle: Path = asked(Path("artifacts"), "--bundle", "The bundle to take it from.", folder=True)
    variant: str | None = asked(
        None, "--variant", "The variant  [default: the one that the bundle recommends]", metavar="NAME"
    )
    target: str | None = asked(
        None, "--target", "Take the build for this core, e.g. pi4  [default: this machine's]", metavar="CORE"
    )
    wheels: bool = asked(
        False, "--wheels", "Bring the Python packages along, so that the board needs no internet."
    )
    python: str = asked("3.11", "--python", "The board's Python, for --wheels.", metavar="VERSION")

    def __post_init__(self) -> None:
        if self.python not in ("3.11", "3.12", "3.13"):
            raise OptionsError(f"--python takes 3.11, 3.12 or 3.13, found {self.python!r}")
        if not self.wheels and self.python != "3.11":
            raise OptionsError("--python belongs to --wheels")

    @property
    def version(self) -> tuple[int, int]:
        """The board's Python as numbers."""
        return 3, int(self.python[2:])


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """How many signs to draw: ``train``, ``val`` and ``test``, as square JPEG files of side ``size_px``.

    They go into class folders below ``output``/train, /test and, where any are asked for, /val.
    """

    output: Path
    train: int = asked(1200, "--train", "Pictures to draw for training.")
    test: int = asked(600, "--test", "Pictures to draw for testing, with other seeds.")
    size_px: int = asked(256, "--size-px", "Side of the square pictures in pixels.")
    seed: int = asked_as(0, SEED)
    val: int = asked(0, "--val", "Pictures to draw for selection, with other seeds.")

    def __post_init__(self) -> None:
        if min(self.train, self.test) < 1 or self.val < 0 or self.size_px < 32 or not 0 <= self.seed < 100:
            counts = f"--train {self.train} --val {self.val} --test {self.test}"
            found = f"{counts}, {self.size_px} px and seed {self.seed}"
            raise OptionsError(
                f"expected positive counts, a size of at least 32 px and a seed of 0 to 99; found {found}"
            )
        if max(self.train, self.val, self.test) > 1_000_000:
            raise OptionsError(
                f"a set has at most 1,000,000 signs, found {max(self.train, self.val, self.test)}; draw fewer"
            )


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """``host``: the address to open the page at; None: only this machine sees it."""

    bundle: Path = asked(Path("artifacts"), "--bundle", "The bundle to compare.", folder=True)
    port: int = asked(8000, "--port", "Port of the page; 0: any free port.", bounds=(0, 65535))
    host: str | None = asked(
        None,
        "--host",
        "Open the page to the network, e.g. 0.0.0.0  [default: this machine only]",
        metavar="ADDRESS",
    )


def as_json(options: Any) -> dict[str, Any]:
    """A dataclass as JSON with paths as text."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()}
