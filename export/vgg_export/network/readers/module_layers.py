"""What each of torch's own layers does to a chain, by the attributes that a saved module has."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vgg_export.core.errors import CheckpointError
from vgg_export.network import modules
from vgg_export.network.activations import Activation
from vgg_export.network.assemble import SOFTMAXES, Assembly
from vgg_runtime.text import printable

from .pickle_machine import Stub
from .plain_tensors import plain

if TYPE_CHECKING:
    import torch

# where the classes live whose layers are known; the classes of "torch.ao" are quantized ones
_LIBRARIES = ("torch.nn.modules.", "torchvision.ops.", "timm.layers.", "timm.models.layers.")
EXPORT = "export the network to ONNX, which says what runs when: torch.onnx.export(model, x, 'model.onnx')"


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A layer of a saved module. ``path``: its name in the network ("features.0"). ``owner``: the path of the
    module that runs it where the code of that is unknown; None: the code is known. ``covers``: a convolution
    that covers the whole map, to whose size smaller maps are pooled."""

    path: str
    stub: Stub
    owner: str | None = None
    covers: bool = False

    @property
    def kind(self) -> str:
        """The name of its class: "Conv2d"; empty where it is no class of a known library."""
        return self.stub.name.rpartition(".")[2] if self.stub.name.startswith(_LIBRARIES) else ""

    @property
    def shown(self) -> str:
        """What a person calls it."""
        return f"{printable(self.path, 80)} ({printable(self.stub.name.rpartition('.')[2], 60)})"

    def get(self, name: str, default: Any = None) -> Any:
        """A setting, such as the stride. A tensor is none: comparing one gives no yes or no."""
        value = self.stub.attributes.get(name, default)
        return Stub("torch.Tensor") if hasattr(value, "dtype") else value

    def inside(self, name: str) -> dict[str, Any]:
        """What it holds by name: "_modules", "_parameters" or "_buffers"."""
        held = self.get(name)
        return (
            {key: one for key, one in held.items() if isinstance(key, str)} if isinstance(held, dict) else {}
        )

    def inside_any(self, name: str) -> list[Any]:
        """The values that it holds under names of any type."""
        held = self.get(name)
        return list(held.values()) if isinstance(held, dict) else []

    def pair(self, name: str, default: Any = None) -> tuple[int, int]:
        """A setting for rows and columns, which may be one number for both."""
        value = self.get(name, default)
        pair = (value, value) if isinstance(value, int) else value
        match pair:
            case (int() as rows, int() as columns):
                return rows, columns
        raise CheckpointError(
            f"{self.shown} has the {name} {printable(str(value), 60)}; expected whole numbers"
        )

    def number(self, name: str, default: float) -> float:
        """A setting that is a number."""
        value = self.get(name, default)
        if isinstance(value, int | float):
            return float(value)
        raise CheckpointError(f"{self.shown} has the {name} {printable(str(value), 60)}; expected a number")

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Its weights by name, with masks and lengths multiplied out."""
        import torch

        own = {**self.inside("_parameters"), **self.inside("_buffers")}
        named = {f"x.{name}": t for name, t in own.items() if isinstance(t, torch.Tensor)}
        if any(isinstance(value, Stub) for value in own.values()):
            raise CheckpointError(f"{self.shown} holds weights of a special kind; expected dense numbers")
        return {name.removeprefix("x."): t.clone() for name, t in plain(named).items()}

    def expect(self, **values: Any) -> None:
        """Make sure that settings are as given, for what a chain has no layer for."""
        for name, expected in values.items():
            found = self.get(name, expected)
            pair = found if isinstance(found, tuple | list) and len(found) == 2 else (found, found)
            if not all(isinstance(one, int | float | str | None) and one == expected for one in pair):
                raise CheckpointError(
                    f"{self.shown} has {name} {printable(str(found), 60)}; expected {expected}, the only one"
                    " that this program can do"
                )


def _conv(leaf: Leaf, to: Assembly) -> None:
    weight, bias = weight_and_bias(leaf, 4)
    leaf.expect(transposed=False)
    kernel, padding = leaf.pair("kernel_size"), leaf.get("padding", 0)
    if padding == "same":
        total = [side - 1 for side in kernel]
        sides = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        rows, columns = (0, 0) if padding == "valid" else leaf.pair("padding", 0)
        sides = (rows, columns, rows, columns)
    if any(sides):
        leaf.expect(padding_mode="zeros")
    to.conv(
        leaf.path,
        weight,
        bias,
        stride=leaf.pair("stride", 1),
        padding=sides,
        groups=int(leaf.number("groups", 1)),
        dilation=leaf.pair("dilation", 1),
    )


def weight_and_bias(leaf: Leaf, dimensions: int) -> "tuple[torch.Tensor, torch.Tensor | None]":
    """The weight [n, ...] with so many dimensions and the bias [n] of a convolution or fully connected layer.

    Raises:
        CheckpointError: they are missing or have other shapes.
    """
    tensors = leaf.tensors()
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or weight.dim() != dimensions or (bias is not None and bias.shape != weight.shape[:1]):
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise CheckpointError(
            f"{leaf.shown} holds {printable(str(found), 100)}; expected a weight of {dimensions} dimensions"
            " and, if there is one, a bias for each of its outputs"
        )
    return weight, bias


def _linear(leaf: Leaf, to: Assembly) -> None:
    to.linear(leaf.path, *weight_and_bias(leaf, 2))


def _covering_conv(leaf: Leaf, to: Assembly) -> None:
    """A convolution that covers the whole map, as the fully connected layer that it is."""
    weight, bias = weight_and_bias(leaf, 4)
    rows, columns = weight.shape[2:]
    if (rows, columns) != (1, 1):
        to.adaptive_avg_pool((rows, columns))
    to.linear(leaf.path, weight.flatten(1), bias)


def _norm(leaf: Leaf, to: Assembly) -> None:
    import torch

    tensors = leaf.tensors()
    mean, variance = tensors.get("running_mean"), tensors.get("running_var")
    if mean is None or variance is None:
        raise CheckpointError(
            f"{leaf.shown} keeps no running statistics (track_running_stats=False): it normalises by the"
            " pictures that it sees together, which a chain cannot; expected running_mean and running_var"
        )
    if not bool((variance >= 0).all()):
        raise CheckpointError(f"{leaf.shown} has variances below zero: the file is damaged")
    if leaf.kind == OF_FEATURES:
        to.flatten()  # it takes no maps, so that code has flattened them
    to.norm(
        leaf.path,
        *modules.scale_and_shift(
            gamma=tensors.get("weight", torch.ones_like(mean)),
            beta=tensors.get("bias", torch.zeros_like(mean)),
            mean=mean,
            variance=variance,
            epsilon=leaf.number("eps", 1e-5),
        ),
    )


def _normalize(leaf: Leaf, to: Assembly) -> None:
    """torchvision's transform as a module: (x - mean) / std."""
    import torch

    mean, std = (_numbers(leaf, name) for name in ("mean", "std"))
    scale = 1 / torch.tensor(std, dtype=torch.float64)
    to.norm(leaf.path, scale, -torch.tensor(mean, dtype=torch.float64) * scale)


def _numbers(leaf: Leaf, name: str) -> list[float]:
    import torch

    value = leaf.stub.attributes.get(name)
    numbers = value.flatten().tolist() if isinstance(value, torch.Tensor) else value
    if isinstance(numbers, list | tuple) and all(isinstance(one, int | float) for one in numbers):
        return [float(one) for one in numbers]
    raise CheckpointError(f"{leaf.shown} has the {name} {printable(str(value), 60)}; expected numbers")


def _nothing(_: Leaf, __: Assembly) -> None:
    """Does nothing in evaluation mode."""


def _activation(leaf: Leaf, to: Assembly) -> None:
    to.activation(activation_of(leaf))


def _flatten(leaf: Leaf, to: Assembly) -> None:
    leaf.expect(start_dim=1, end_dim=-1)
    to.flatten()


def _pool_sides(leaf: Leaf) -> tuple[tuple[int, int], tuple[int, int]]:
    kernel = leaf.pair("kernel_size")
    return kernel, kernel if leaf.get("stride") is None else leaf.pair("stride")


def _max_pool(leaf: Leaf, to: Assembly) -> None:
    leaf.expect(dilation=1, return_indices=False)
    kernel, stride = _pool_sides(leaf)
    to.max_pool(kernel, stride, leaf.pair("padding", 0), ceil=bool(leaf.get("ceil_mode")))


def _avg_pool(leaf: Leaf, to: Assembly) -> None:
    leaf.expect(padding=0, divisor_override=None)
    to.avg_pool(*_pool_sides(leaf), ceil=bool(leaf.get("ceil_mode")))


def _adaptive(add: Callable[[Assembly, tuple[int, int]], None]) -> Callable[[Leaf, Assembly], None]:
    def read(leaf: Leaf, to: Assembly) -> None:
        size = leaf.get("output_size", 1)
        if size is not None and tuple(size if isinstance(size, list | tuple) else (size,)) != (None, None):
            add(to, leaf.pair("output_size", 1))

    return read


def _pad(leaf: Leaf, to: Assembly) -> None:
    leaf.expect(value=0)
    padding = leaf.get("padding")
    match (padding,) * 4 if isinstance(padding, int) else padding:
        case (int() as left, int() as right, int() as top, int() as bottom) if (
            min(left, right, top, bottom) >= 0
        ):
            to.pad((top, left, bottom, right))
        case _:
            raise CheckpointError(
                f"{leaf.shown} has the padding {padding}; expected four numbers from zero on"
            )


def activation_of(leaf: Leaf) -> str:
    """The text of an activation layer, or of the softmax behind the logits.

    Raises:
        CheckpointError: it is a form that a chain does not have.
    """
    match leaf.kind:
        case "LeakyReLU":
            return Activation("leaky_relu", leaf.number("negative_slope", 0.01)).text
        case "RReLU":  # the mean slope in evaluation mode
            return Activation(
                "leaky_relu", (leaf.number("lower", 1 / 8) + leaf.number("upper", 1 / 3)) / 2
            ).text
        case "PReLU":
            return Activation("leaky_relu", _slope(leaf)).text
        case "ELU" | "CELU" if leaf.kind == "ELU" or leaf.number("alpha", 1.0) == 1:
            return Activation("elu", leaf.number("alpha", 1.0)).text
        case "GELU":
            return "gelu_tanh" if leaf.get("approximate") == "tanh" else "gelu"
        case "Hardtanh" if (leaf.number("min_val", -1), leaf.number("max_val", 1)) == (0, 6):
            return "relu6"
        case "Softmax" | "LogSoftmax":
            if leaf.get("dim") not in (None, 1, -1):
                leaf.expect(dim=1)
            return "softmax"
        case kind if kind in _PLAIN:
            return _PLAIN[kind]
    raise CheckpointError(
        f"{leaf.shown} is an activation that this program does not know; expected one of"
        f" {', '.join((*_PLAIN, 'LeakyReLU', 'ELU', 'GELU'))}"
    )


_PLAIN = {
    "ReLU": "relu",
    "ReLU6": "relu6",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
    "Swish": "silu",
}


def _slope(leaf: Leaf) -> float:
    slopes = leaf.tensors().get("weight")
    if slopes is None or slopes.numel() != 1:
        count = 0 if slopes is None else slopes.numel()
        raise CheckpointError(f"{leaf.shown} has {count} slopes; expected one for all channels")
    return float(slopes)


CONV, LINEAR, NORM, ACTIVATION, POOL, WHOLE_POOL, FLATTEN, OTHER = (
    *("conv", "linear", "norm", "activation"),
    *("pool", "whole pool", "flatten", "other"),
)
OF_FEATURES = "BatchNorm1d"
ACTIVATIONS = (
    *(
        "ReLU",
        "ReLU6",
        "Tanh",
        "Sigmoid",
        "SiLU",
        "Swish",
        "LeakyReLU",
        "RReLU",
        "PReLU",
        "ELU",
        "CELU",
        "GELU",
    ),
    *(
        "Softmax",
        "LogSoftmax",
        "Hardswish",
        "Hardsigmoid",
        "Hardtanh",
        "Hardshrink",
        "Mish",
        "SELU",
        "Softplus",
    ),
    *(
        "Softsign",
        "Softshrink",
        "Tanhshrink",
        "Threshold",
        "GLU",
        "LogSigmoid",
        "Softmin",
        "Softmax2d",
        "HardSwish",
    ),
)
_CLASSES: tuple[tuple[str, str, Callable[[Leaf, Assembly], None]], ...] = (
    (CONV, "Conv2d", _conv),
    (LINEAR, "Linear", _linear),
    (NORM, "BatchNorm1d BatchNorm2d SyncBatchNorm FrozenBatchNorm2d", _norm),
    (ACTIVATION, " ".join(ACTIVATIONS), _activation),
    (POOL, "MaxPool2d", _max_pool),
    (POOL, "AvgPool2d", _avg_pool),
    (
        WHOLE_POOL,
        "AdaptiveAvgPool2d FastAdaptiveAvgPool FastAdaptiveAvgPool2d",
        _adaptive(Assembly.adaptive_avg_pool),
    ),
    (WHOLE_POOL, "AdaptiveMaxPool2d FastAdaptiveMaxPool", _adaptive(Assembly.adaptive_max_pool)),
    (OTHER, "ZeroPad2d ConstantPad2d", _pad),
    (FLATTEN, "Flatten", _flatten),
    (
        OTHER,
        "Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout DropPath"
        " DropBlock2d StochasticDepth",
        _nothing,
    ),
)
_ROLES = {name: role for role, names, _ in _CLASSES for name in names.split()}
_READ = {name: read for _, names, read in _CLASSES for name in names.split()}
NORMALIZE = "torchvision.transforms.transforms.Normalize"


def role(leaf: Leaf) -> str | None:
    """What kind of layer it is; None where it is none of torch's that are known."""
    return OTHER if leaf.stub.name == NORMALIZE else _ROLES.get(leaf.kind)


def add(leaf: Leaf, to: Assembly) -> None:
    """Add a layer that has a role to a chain.

    Raises:
        CheckpointError: it is set in a way that a chain does not have.
    """
    if leaf.stub.name == NORMALIZE:
        _normalize(leaf, to)
    elif leaf.covers and role(leaf) == CONV:
        _covering_conv(leaf, to)
    else:
        _READ[leaf.kind](leaf, to)


def is_output(leaf: Leaf) -> bool:
    """Whether it is a softmax, which makes probabilities of logits."""
    return role(leaf) == ACTIVATION and "Softmax" in leaf.kind and activation_of(leaf) in SOFTMAXES
