"""Turns the layers of a Keras model into those of a chain."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg_export.core.errors import CheckpointError
from vgg_export.network import modules
from vgg_runtime.text import printable

from . import tracked
from .keras_config import JOIN, Step
from .keras_store import Array, Place, Store
from .tracked import Tracked

if TYPE_CHECKING:
    import torch

_TEXTS = {  # what Keras calls an activation, and what this program does
    **{name: name for name in ("relu", "relu6", "tanh", "sigmoid", "softmax", "log_softmax", "gelu", "silu")},
    "linear": "none",
    "swish": "silu",
    "elu": "elu(1)",
    "leaky_relu": "leaky_relu(0.2)",
}
# Layers that do nothing when a picture is classified.
_NOTHING = {
    *("InputLayer", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout"),
    *("GaussianNoise", "ActivityRegularization", "Identity", "Cast"),
    *("RandAugment", "AugMix", "MixUp", "CutMix"),
}
_CROPS = ("CenterCrop", "RandomCrop")
_EPSILON = 1e-7  # of Keras, the least standard deviation of Normalization
_SEPARABLE = ("SeparableConv2D", "DepthwiseConv2D", "SeparableConvolution2D")
_CODE = "Lambda"
_SLICE = {"start": (None, 0), "stop": (None,), "step": (None, 1)}  # of a slice that takes everything


def does_nothing(step: Step) -> bool:
    """Whether a layer gives what it gets when a picture is classified: dropout, noise and augmentation."""
    return step.kind in _NOTHING or (step.kind.startswith("Random") and step.kind not in _CROPS)


class Layers:
    """Adds one layer after the other to ``chain``, with its weights from ``store``."""

    def __init__(self, store: Store, chain: Tracked) -> None:
        self._store, self._chain = store, chain

    def add(self, step: Step) -> None:
        """Add the next layer.

        Raises:
            CheckpointError: it is none that a chain can have.
        """
        if does_nothing(step) or step.kind in ("Resizing", *_CROPS):
            return
        if step.kind in ("TFOpLambda", "SlicingOpLambda"):
            self._operation(step, str(step.config.get("function", "")))
        elif step.kind in _STEPS:
            _STEPS[step.kind](self, step)
        else:
            raise _unknown(step)

    def _weights(self, step: Step, count: int) -> list["torch.Tensor"]:
        import torch

        found = self._store.weights(step.place, count)
        if len(found) != count:
            raise CheckpointError(
                f"{step.shown} has {len(found)} weights in the file; expected {count}: it is damaged, or was"
                " written by a version of Keras that this program does not know"
            )
        return [torch.from_numpy(np.array(one, np.float32)) for one in found]

    def conv(self, step: Step) -> None:
        config = _of_today(step)
        _ensure_last(step, config)
        kernel, bias = [*self._weights(step, 1 + bool(config.get("use_bias", True))), None][:2]
        assert kernel is not None  # the first of at least one
        if kernel.dim() != 4:
            raise CheckpointError(f"{step.shown} has a kernel of {kernel.dim()} dimensions; expected 4")
        self._chain.conv(
            step.name,
            kernel.permute(3, 2, 0, 1).contiguous(),
            bias,
            stride=_pair(config.get("strides", 1), step),
            padding=_padding(config, step),
            dilation=_pair(config.get("dilation_rate", 1), step),
            groups=int(config.get("groups", 1)),
        )
        self._activate(step, config.get("activation"))

    def dense(self, step: Step) -> None:
        config = _of_today(step)
        kernel, bias = [*self._weights(step, 1 + bool(config.get("use_bias", True))), None][:2]
        assert kernel is not None  # the first of at least one
        self._chain.linear(step.name, kernel.T, bias)
        self._activate(step, config.get("activation"))

    def _activate(self, step: Step, activation: Any) -> None:
        """An activation by its name, or as a layer in the place of a name."""
        if isinstance(activation, dict):
            config = activation.get("config")
            if isinstance(config, dict):
                inner = Step(str(activation.get("class_name")), step.name, config, Place())
                if inner.kind not in _ACTIVATIONS:
                    raise _foreign(step, inner.kind)
                _STEPS[inner.kind](self, inner)
                return
            activation = config
        if activation is None:
            return
        if activation not in _TEXTS:
            raise _foreign(step, str(activation))
        self._chain.activation(step.shown, _TEXTS[activation])

    def activation(self, step: Step) -> None:
        self._activate(step, step.config.get("activation"))

    def relu(self, step: Step) -> None:
        slope, threshold = _number(step, "negative_slope", 0.0), _number(step, "threshold", 0.0)
        largest = _number(step, "max_value", math.inf)
        if threshold or (largest, slope) not in ((math.inf, slope), (6.0, 0.0)):
            raise CheckpointError(
                f"{step.shown} has max_value {largest:g}, negative_slope {slope:g} and threshold"
                f" {threshold:g}; expected ReLU, ReLU up to 6, or a slope alone"
            )
        text = "relu6" if largest == 6 else f"leaky_relu({slope:.6g})" if slope else "relu"
        self._chain.activation(step.shown, text)

    def leaky_relu(self, step: Step) -> None:
        slope = _number(step, "negative_slope", _number(step, "alpha", 0.3))
        self._chain.activation(step.shown, f"leaky_relu({slope:.6g})")

    def elu(self, step: Step) -> None:
        self._chain.activation(step.shown, f"elu({_number(step, 'alpha', 1.0):.6g})")

    def softmax(self, step: Step) -> None:
        if step.config.get("axis", -1) not in (-1, 1, [-1]):
            raise CheckpointError(
                f"{step.shown} is over the axis {step.config['axis']}; expected the classes"
            )
        self._chain.activation(step.shown, "softmax")

    def norm(self, step: Step) -> None:
        import torch

        config = step.config
        axes = config.get("axis", -1)
        axis = axes[0] if isinstance(axes, list) and len(axes) == 1 else axes
        if axis not in (-1, 3 if self._chain.sides else 1) or config.get("mode", 0) or config.get("renorm"):
            raise CheckpointError(
                f"{step.shown} normalises the axis {axes}; expected the last, as a batch norm of channels"
            )
        if step.keywords.get("training") is True:
            raise CheckpointError(
                f"{step.shown} is called with training=True, so that it normalises by the pictures at hand;"
                " expected the statistics of the training"
            )
        scaled, centred = bool(config.get("scale", True)), bool(config.get("center", True))
        found = self._weights(step, 2 + scaled + centred)
        mean, variance = found[-2:]
        scale, shift = modules.scale_and_shift(
            gamma=found[0] if scaled else torch.ones_like(mean),
            beta=found[int(scaled)] if centred else torch.zeros_like(mean),
            mean=mean,
            variance=variance,
            epsilon=_number(step, "epsilon", 1e-3),
        )
        self._chain.norm(step.name, scale, shift)

    def pool(self, step: Step) -> None:
        config = _of_today(step)
        _ensure_last(step, config)
        kernel = _pair(config.get("pool_size", 2), step)
        strides = config.get("strides")
        stride = kernel if strides is None else _pair(strides, step)
        mean = step.kind == "AveragePooling2D"
        self._chain.pool(step.shown, kernel, stride, _padding(config, step), mean=mean)

    def global_pool(self, step: Step) -> None:
        _ensure_last(step, _of_today(step))
        mean = step.kind in ("GlobalAveragePooling2D", "GlobalAvgPool2D")
        self._chain.global_pool(step.shown, mean=mean, keep=bool(step.config.get("keepdims")))

    def pad(self, step: Step) -> None:
        _ensure_last(step, _of_today(step))
        padding = step.config.get("padding", 1)
        rows, columns = [padding] * 2 if isinstance(padding, int) else padding
        top, bottom = [rows] * 2 if isinstance(rows, int) else rows
        left, right = [columns] * 2 if isinstance(columns, int) else columns
        self._chain.pad(step.shown, (int(top), int(left), int(bottom), int(right)))

    def flatten(self, step: Step) -> None:
        _ensure_last(step, step.config)
        self._chain.flatten(channels_last=True)

    def reshape(self, step: Step) -> None:
        """A Reshape that flattens, or that changes nothing."""
        to = list(step.config.get("target_shape", ()))
        sides, width = self._chain.sides, self._chain.width
        total = width * math.prod(sides or (1,))
        if to in ([-1], [total]):
            self._chain.flatten(channels_last=True)
        elif to != ([*sides, width] if sides else [width]):
            raise CheckpointError(f"{step.shown} makes the shape {to}; expected a flattening")

    def rescaling(self, step: Step) -> None:
        scale = self._vector(step, step.config.get("scale", 1.0))
        self._chain.norm(step.name, scale, self._vector(step, step.config.get("offset", 0.0)))

    def normalization(self, step: Step) -> None:
        given = [step.config.get(key) for key in ("mean", "variance")]
        if any(one is None for one in given):
            given = list(self._store.weights(step.place, 2)) or [0.0, 1.0]  # never adapted
        mean, variance = (self._vector(step, one) for one in given)
        std = variance.sqrt().clamp_min(_EPSILON)
        if step.config.get("invert"):
            self._chain.norm(step.name, std, mean)
        else:
            self._chain.norm(step.name, 1 / std, -mean / std)

    def _vector(self, step: Step, value: Any) -> "torch.Tensor":
        """A number, or one per channel, as [channels] in float64."""
        import torch

        if isinstance(value, dict):  # an array as Keras 3 writes it
            value = value.get("config", {}).get("value")
        try:
            numbers = torch.tensor(np.array(value, np.float64).ravel())
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{step.shown} is given {printable(str(value), 60)}; expected numbers"
            ) from error
        if numbers.numel() not in (1, self._chain.width):
            raise CheckpointError(
                f"{step.shown} has {numbers.numel()} numbers; expected one, or {self._chain.width}: one per"
                " channel"
            )
        return numbers.expand(self._chain.width).clone()

    def arithmetic(self, step: Step) -> None:
        self._calculate(step, _ARITHMETIC[step.kind])

    def _calculate(self, step: Step, sign: str) -> None:
        """A sum, difference, product or quotient with a constant."""
        import torch

        others = [value for value in (*step.arguments, *step.keywords.values()) if _is_number(value)]
        first = bool(step.arguments) and _is_number(step.arguments[0])
        if len(others) != 1 or (first and sign == "/"):
            raise _unknown(step)
        value = self._vector(step, others[0])
        one, zero = torch.ones_like(value), torch.zeros_like(value)
        scale, shift = {
            "+": (one, value),
            "-": (-one, value) if first else (one, -value),
            "*": (value, zero),
            "/": (1 / value, zero),
        }[sign]
        self._chain.norm(step.name, scale, shift)

    def operation(self, step: Step) -> None:
        self._chain.activation(step.shown, _TEXTS[_OPERATIONS[step.kind]])

    def _operation(self, step: Step, function: str) -> None:
        """An operation of TensorFlow, as versions 2 of Keras write it."""
        word = function.rpartition(".")[2].strip("_")
        if word == "getitem":
            self._turned(step)
        elif word in _FUNCTIONS:
            self._calculate(step, _FUNCTIONS[word])
        elif word in ("relu", "relu6", "sigmoid", "softmax", "log_softmax", "tanh", "silu", "swish"):
            self._chain.activation(step.shown, _TEXTS[word])
        elif word not in ("cast", "identity", "convert_to_tensor", "stop_gradient"):
            raise _unknown(step)

    def _turned(self, step: Step) -> None:
        """x[..., ::-1]: the channels turned round."""
        given = step.keywords.get("slice_spec") or next(iter(step.arguments[1:2]), None)
        places = given if isinstance(given, list) else []
        last = places[-1] if places else None
        if isinstance(last, dict) and isinstance(last.get("config"), dict):  # as Keras 3 writes a slice
            last = last["config"]
        turned = isinstance(last, dict) and [last.get(key) for key in _SLICE] == [None, None, -1]
        if not turned or not all(_is_everything(place) for place in places[:-1]):
            raise CheckpointError(
                f"{step.shown} takes a part of its input; expected all of it, or the channels turned round"
            )
        self._chain.reverse_channels()

    def join(self, step: Step) -> None:
        channels = list(range(self._chain.width))
        if list(step.order or ()) == channels[::-1]:
            self._chain.reverse_channels()
        elif list(step.order or ()) != channels:
            raise CheckpointError(f"{step.shown} joins the channels {step.order}; expected them turned round")

    def code(self, step: Step) -> None:
        raise CheckpointError(
            f"{step.shown} is a Lambda layer: it holds Python code, which is not run from a file. If it"
            " prepares the input, save the model without it and tell what it does with --normalize; else put"
            " layers of Keras in its place (Rescaling, Activation) and save the model again"
        )

    def separable(self, step: Step) -> None:
        raise CheckpointError(
            f"{step.shown} is a convolution of each channel by itself; expected plain convolutions (Conv2D)"
        )

    def prelu(self, step: Step) -> None:
        raise CheckpointError(
            f"{step.shown} has a slope of its own for each number; expected one slope for all, as in"
            " LeakyReLU"
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("class_name") in ("__tensor__", "__numpy__")
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, list) and bool(value)
    )


def _is_everything(place: Any) -> bool:
    """Whether a part of an index is an ellipsis or a whole slice."""
    if not isinstance(place, dict):
        return False
    config = place.get("config")
    inner = config if isinstance(config, dict) else place
    whole = all(inner.get(key) in allowed for key, allowed in _SLICE.items())
    return place.get("class_name") == "__ellipsis__" or whole


def _unknown(step: Step) -> CheckpointError:
    function = step.config.get("function")
    what = f"{step.shown}{f', which calls {printable(str(function), 40)},' if function else ''}"
    return CheckpointError(
        f"{what} is no layer that this program knows; expected convolutions, batch norm, pools, flattening,"
        " dense layers and plain activations"
    )


def _foreign(step: Step, activation: str) -> CheckpointError:
    return CheckpointError(
        f"{step.shown} has the activation {printable(activation, 40)}, which this program does not have;"
        " expected relu, leaky_relu, relu6, elu, tanh, sigmoid, silu or gelu"
    )


def _of_today(step: Step) -> Mapping[str, Any]:
    """The configuration of a layer with the keys of today, where version 1 of Keras had others."""
    config = dict(step.config)
    for old, new in _OLD_KEYS.items():
        if old in config:
            config.setdefault(new, config[old])
    if config.get("dim_ordering") in ("th", "tf"):
        config["data_format"] = "channels_first" if config["dim_ordering"] == "th" else "channels_last"
    return config


_OLD_KEYS = {"border_mode": "padding", "subsample": "strides", "bias": "use_bias"}


def _ensure_last(step: Step, config: Mapping[str, Any]) -> None:
    if config.get("data_format") == "channels_first":
        raise CheckpointError(
            f"{step.shown} takes its channels first; expected them last, as Keras has them unless it is told"
            " otherwise"
        )


def _padding(config: Mapping[str, Any], step: Step) -> str:
    padding = config.get("padding", "valid")
    if padding not in ("same", "valid"):
        raise CheckpointError(f"{step.shown} has the padding {padding!r}; expected same or valid")
    return tracked.SAME_UPPER if padding == "same" else tracked.VALID


def _pair(value: Any, step: Step) -> tracked.Pair:
    numbers = [value] * 2 if isinstance(value, int) else value
    if not isinstance(numbers, Iterable) or len(both := list(numbers)) != 2:
        raise CheckpointError(f"{step.shown} has the size {value}; expected rows and columns")
    return int(both[0]), int(both[1])


def _number(step: Step, key: str, default: float) -> float:
    value = step.config.get(key)
    if isinstance(value, dict):  # an array as Keras writes it
        config = value.get("config")
        value = config.get("value") if isinstance(config, dict) else value.get("value")
    if value is None:
        return default
    found: Array = np.asarray(value, np.float64).ravel()
    if found.size != 1:
        raise CheckpointError(f"{step.shown} has {found.size} numbers for {key}; expected one")
    return float(found[0])


_ARITHMETIC = {"Add": "+", "Subtract": "-", "Multiply": "*", "Divide": "/", "TrueDivide": "/"}
_FUNCTIONS = {
    "add": "+",
    "bias_add": "+",
    "subtract": "-",
    "sub": "-",
    "multiply": "*",
    "mul": "*",
    "divide": "/",
    "truediv": "/",
}
_OPERATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "silu",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
}
_ACTIVATIONS: dict[str, Callable[[Layers, Step], None]] = {
    "Activation": Layers.activation,
    "ReLU": Layers.relu,
    "LeakyReLU": Layers.leaky_relu,
    "ELU": Layers.elu,
    "Softmax": Layers.softmax,
    "PReLU": Layers.prelu,
}
_STEPS: dict[str, Callable[[Layers, Step], None]] = {
    **_ACTIVATIONS,
    **dict.fromkeys(("Conv2D", "Convolution2D"), Layers.conv),
    "Dense": Layers.dense,
    "BatchNormalization": Layers.norm,
    **dict.fromkeys(("MaxPooling2D", "AveragePooling2D"), Layers.pool),
    **dict.fromkeys(("GlobalAveragePooling2D", "GlobalMaxPooling2D"), Layers.global_pool),
    "ZeroPadding2D": Layers.pad,
    "Flatten": Layers.flatten,
    "Reshape": Layers.reshape,
    "Rescaling": Layers.rescaling,
    "Normalization": Layers.normalization,
    **dict.fromkeys(_ARITHMETIC, Layers.arithmetic),
    **dict.fromkeys(_OPERATIONS, Layers.operation),
    "GetItem": Layers._turned,
    JOIN: Layers.join,
    _CODE: Layers.code,
    **dict.fromkeys(_SEPARABLE, Layers.separable),
}
