"""ONNX files as exporters write them, compared with what ONNX Runtime computes; and files that must not be
followed or that are no chain."""

import builtins
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from foreign import assert_same, pictures
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vgg_export.core.errors import CheckpointError
from vgg_export.network.provenance import ASSUMED, CONVENTION, FILE
from vgg_export.network.readers import onnx_files

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def said(path: Path, seen: Any, *, last: bool = False) -> Any:
    """What ONNX Runtime says of prepared pictures, one at a time."""
    session = ort.InferenceSession(str(path))
    name, kind = session.get_inputs()[0].name, session.get_inputs()[0].type
    types = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16, "tensor(double)": np.float64}
    x = (seen.transpose(0, 2, 3, 1) if last else seen).astype(types.get(kind, np.float32))
    answers: list[Any] = [session.run(None, {name: one[None]})[0] for one in x]
    return np.concatenate(answers)


def imagenet(seen: np.ndarray) -> np.ndarray:
    mean, std = (np.reshape(numbers, (1, 3, 1, 1)) for numbers in (MEAN, STD))
    return np.asarray((seen / 255 - mean) / std)


# networks of PyTorch, through both exporters


class Chain(nn.Module):
    """Layers, a flattening, a head, and what is done to the input before."""

    def __init__(self, features: nn.Module, head: nn.Module, before: Any = None, flatten: Any = None) -> None:
        super().__init__()
        self.features, self.head, self.before, self.flat = features, head, before, flatten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x) if self.before else x
        x = self.features(x)
        return self.head(self.flat(x) if self.flat else torch.flatten(x, 1))  # type: ignore[no-any-return]


def vgg() -> nn.Module:
    """As torchvision arranges it, narrow, with batch norm."""
    layers: list[nn.Module] = []
    for before, width in ((3, 8), (8, 12), (12, 16)):
        layers += [
            nn.Conv2d(before, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.MaxPool2d(2),
        ]
    layers.append(nn.AdaptiveAvgPool2d((4, 4)))
    head = [nn.Linear(256, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 5)]
    return Chain(nn.Sequential(*layers), nn.Sequential(*head))


def unusual() -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(3, 2, 1),
        nn.ZeroPad2d((1, 0, 2, 1)),
        nn.Conv2d(8, 8, (3, 1)),
        nn.LeakyReLU(0.2),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1),
        nn.GELU(approximate="tanh"),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 1),
        nn.ELU(0.7),
    )
    head = nn.Sequential(
        nn.Linear(8, 6),
        nn.Tanh(),
        nn.BatchNorm1d(6),
        nn.Linear(6, 4),
        nn.ReLU6(),
        nn.Linear(4, 3),
        nn.LogSoftmax(1),
    )
    return Chain(features, head, flatten=lambda x: x.mean(3).mean(2))


def normalised_inside() -> nn.Module:
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(init=0.1), nn.AdaptiveMaxPool2d(1))
    return Chain(features, nn.Linear(8, 3), lambda x: (x - mean) / std)


def caffe_inside() -> nn.Module:
    mean = torch.tensor((103.939, 116.779, 123.68)).view(3, 1, 1)
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, 2, ceil_mode=True))
    head = nn.Sequential(nn.Linear(4 * 16 * 16, 1), nn.Sigmoid())
    nn.init.uniform_(head.get_parameter("0.weight"), -3e-4, 3e-4)
    return Chain(features, head, lambda x: x[:, [2, 1, 0]] * 255 - mean, lambda x: x.view(x.size(0), -1))


def turned() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU())
    return Chain(features, nn.Linear(4, 2), lambda x: x.flip(1) * 2 - 1, lambda x: x.amax((2, 3)))


def convolutions_alone() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1))
    return Chain(features, nn.Softmax(1), flatten=lambda x: x.squeeze(-1).squeeze(-1))


def unit(seen: np.ndarray) -> np.ndarray:
    return seen / 255


TORCH: dict[str, tuple[Callable[[], nn.Module], Callable[[np.ndarray], np.ndarray]]] = {
    make.__name__: (make, prepare)
    for make, prepare in (
        (vgg, imagenet),
        (unusual, imagenet),
        (normalised_inside, unit),
        (caffe_inside, unit),
        (turned, unit),
        (convolutions_alone, imagenet),
    )
}


def filled(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = make()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 1.5)
    return network.eval()


def exported(network: nn.Module, path: Path, px: int = 34, **options: Any) -> Path:
    x = torch.randn(1, 3, px, px)
    if not options.get("dynamo"):
        options.setdefault("dynamic_axes", {"x": {0: "n"}})
    torch.onnx.export(network, (x,), path, input_names=["x"], verbose=False, **options)
    return path


EXPORTERS: dict[str, dict[str, Any]] = {
    "old": {"dynamo": False, "opset_version": 13},
    "old_7": {"dynamo": False, "opset_version": 7},
    "old_9_unfolded": {"dynamo": False, "opset_version": 9, "do_constant_folding": False},
    "old_20": {"dynamo": False, "opset_version": 20},
    "new": {"dynamo": True},
}


# what an exporter has no operator for
LACKING = {
    ("unusual", "old_7"),  # Erf
    ("normalised_inside", "old_7"),
    ("turned", "old_7"),
    ("turned", "old_9_unfolded"),
}
PAIRS = [(name, exporter) for name in TORCH for exporter in EXPORTERS if (name, exporter) not in LACKING]


@pytest.mark.parametrize(("name", "exporter"), PAIRS)
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_pytorch_says_what_onnx_runtime_says(name: str, exporter: str, tmp_path: Path) -> None:
    make, prepare = TORCH[name]
    px = 32 if name == "vgg" else 34
    path = exported(filled(make), tmp_path / "model.onnx", px, **EXPORTERS[exporter])
    found = onnx_files.read(path)
    assert found.input.px == px
    assert found.origins.px == found.origins.activations == found.origins.channels == FILE
    assert found.origins.resize == ASSUMED
    assert found.origins.normalize == (FILE if prepare is unit else ASSUMED)
    assert found.container.startswith("an ONNX model (operators of version ")
    if name in ("vgg", "normalised_inside"):
        assert (found.input.mean, found.input.std) == (MEAN, STD)
    seen = pictures(3, px)
    assert_same(found, seen, said(path, prepare(seen)))


# graphs as other exporters write them, node by node


def graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Any],
    shape: Sequence[int | str] = ("n", 3, 16, 16),
    version: int = 17,
    kind: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A model from x to the output of the last node."""
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, stored),
        opset_imports=[helper.make_opsetid("", version)],
        ir_version=8,
        producer_name="by hand",
    )
    helper.set_model_props(made, metadata or {})
    onnx.save(made, path)
    return path


def node(kind: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    """A node: inputs and, last, its output, which is its name, too."""
    return helper.make_node(kind, names[:-1], names[-1:], names[-1], **attributes)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.2, shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


POOLED = (node("GlobalAveragePool", "a", "p"), node("Flatten", "p", "f"), node("Gemm", "f", "d", "e", "y"))
W = {"w": weight(4, 3, 3, 3), "d": weight(4, 2), "e": weight(2)}


def test_channels_last_as_keras_converters_write_them(tmp_path: Path) -> None:
    """The input is NHWC, a Transpose leads to NCHW, and another one back before the flattening."""
    nodes = [
        node("Mul", "x", "by", "m"),
        node("Sub", "m", "one", "s"),
        node("Transpose", "s", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t", "w", "b", "c", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Clip", "c", "zero", "six", "r"),
        node("MaxPool", "r", "p", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("Transpose", "p", "back", perm=[0, 2, 3, 1]),
        node("Reshape", "back", "flat", "f"),
        node("MatMul", "f", "d", "g"),
        node("Add", "g", "e", "h"),
        node("Softmax", "h", "y"),
    ]
    weights = {
        "by": np.float32(1 / 127.5),
        "one": np.ones((1, 1, 1, 3), np.float32),
        "w": weight(4, 3, 3, 3),
        "b": weight(4),
        "zero": np.float32(0),
        "six": np.float32(6),
        "flat": ints(-1, 64),
        "d": weight(64, 3),
        "e": weight(3),
    }
    path = graph(tmp_path / "m.onnx", nodes, weights, ("n", 16, 16, 3))
    found = onnx_files.read(path)
    assert (found.input.resize, found.origins.resize, found.origins.normalize) == ("squash", CONVENTION, FILE)
    assert (found.output, found.origins.output) == ("softmax", FILE)
    assert np.allclose(found.input.mean, 0.5)
    assert np.allclose(found.input.std, 0.5)
    seen = pictures(3, 16)
    assert_same(found, seen, said(path, seen, last=True))


def test_grey_pictures_whose_transposition_is_a_reshape(tmp_path: Path) -> None:
    nodes = [
        node("Reshape", "x", "to", "t"),
        node("Conv", "t", "w", "a"),
        node("Transpose", "a", "back", perm=[0, 2, 3, 1]),
        node("Flatten", "back", "f"),
        node("Gemm", "f", "d", "y", alpha=0.5, transB=1),
    ]
    weights = {"to": ints(-1, 1, 16, 16), "w": weight(2, 1, 3, 3), "d": weight(3, 2 * 14 * 14)}
    path = graph(tmp_path / "m.onnx", nodes, weights, ("n", 16, 16, 1))
    found = onnx_files.read(path)
    assert (found.input.channels, found.input.mean, found.input.std) == (1, (0.0,), (1.0,))
    seen = pictures(1, 16)
    assert_same(found, seen, said(path, unit(seen), last=True))


def test_bytes_are_values_up_to_255(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "float", to=TensorProto.FLOAT),
        node("Div", "float", "by", "s"),
        node("Conv", "s", "w", "a"),
        *POOLED,
    ]
    weights = W | {"by": np.float32(255)}
    path = graph(tmp_path / "m.onnx", nodes, weights, kind=TensorProto.UINT8)
    seen = pictures(3, 16)
    assert_same(onnx_files.read(path), seen, said(path, seen))


@pytest.mark.parametrize("kind", ["float16", "float64", "bfloat16"])
def test_weights_of_any_float_type(kind: str, tmp_path: Path) -> None:
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if kind == "bfloat16" else np.dtype(kind)
    stored = {name: value.astype(dtype) for name, value in W.items()}
    casts = [node("Cast", name, f"{name}32", to=TensorProto.FLOAT) for name in stored]
    nodes = [*casts, node("Conv", "x", "w32", "a"), *POOLED[:2], node("Gemm", "f", "d32", "e32", "y")]
    found = onnx_files.read(graph(tmp_path / "m.onnx", nodes, stored))
    same = graph(
        tmp_path / "same.onnx",
        [node("Conv", "x", "w", "a"), *POOLED],
        {name: value.astype(np.float32) for name, value in stored.items()},
    )
    seen = pictures(3, 16)
    assert_same(found, seen, said(same, imagenet(seen)))


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("Clip", "c", "a", min=0.0)], {}),
        ([node("Elu", "c", "a", alpha=0.3)], {}),
        ([node("PRelu", "c", "slope", "a")], {"slope": np.full((4, 1, 1), 0.3, np.float32)}),
        ([node("Max", "c", "zero", "a")], {"zero": np.float32(0)}),
        ([node("Sigmoid", "c", "s"), node("Mul", "c", "s", "a")], {}),
        (
            [
                node("Mul", "c", "half", "h"),
                node("Mul", "c", "root", "r"),
                node("Erf", "r", "erf"),
                node("Add", "erf", "one", "o"),
                node("Mul", "h", "o", "a"),
            ],
            {"half": np.float32(0.5), "root": np.float32(0.5**0.5), "one": np.float32(1)},
        ),
        ([node("Relu", "c", "q"), node("Dropout", "q", "i"), node("Identity", "i", "a")], {}),
        ([node("AveragePool", "c", "a", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], {}),
        (
            [
                node("Pad", "c", "sides", "low", "q"),
                node("MaxPool", "q", "a", kernel_shape=[3, 3], strides=[2, 2]),
            ],
            {"sides": ints(0, 0, 0, 0, 0, 0, 1, 1), "low": np.float32(-np.inf)},
        ),
    ],
)
def test_activations_and_pools(nodes: list[onnx.NodeProto], weights: dict[str, Any], tmp_path: Path) -> None:
    old = any(one.op_type == "Clip" for one in nodes)
    version = 9 if old else 17
    conv = node("Conv", "x", "w", "c")
    path = graph(tmp_path / "m.onnx", [conv, *nodes, *POOLED], W | weights, version=version)
    seen = pictures(3, 16)
    assert_same(onnx_files.read(path), seen, said(path, imagenet(seen)))


def test_an_open_size_is_the_usual_one_or_what_the_head_reads(tmp_path: Path) -> None:
    shape = ("n", 3, "h", "w")
    conv = node("Conv", "x", "w", "a", pads=[1, 1, 1, 1])
    found = onnx_files.read(graph(tmp_path / "m.onnx", [conv, *POOLED], W, shape))
    assert (found.input.px, found.origins.px) == (224, ASSUMED)
    head = [node("MaxPool", "a", "p", kernel_shape=[16, 16], strides=[16, 16]), *POOLED[1:]]
    found = onnx_files.read(graph(tmp_path / "m.onnx", [conv, *head], W | {"d": weight(4 * 4, 2)}, shape))
    assert (found.input.px, found.origins.px) == (32, ASSUMED)
    with pytest.raises(CheckpointError, match="no input size up to 1024 px fits: y reads 15 features"):
        onnx_files.read(graph(tmp_path / "m.onnx", [conv, *head], W | {"d": weight(15, 2)}, shape))


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"class_names": '["cat", "dog"]'}, ("cat", "dog")),
        ({"class_to_idx": '{"dog": 1, "cat": 0}'}, ("cat", "dog")),
        ({"classes": "{0: 'cat', 1: 'dog'}"}, ("cat", "dog")),
        ({"labels": "cat,dog"}, ("cat", "dog")),
        ({"labels": "cat\ndog\n"}, ("cat", "dog")),
        ({"author": "me"}, None),
    ],
)
def test_class_names_in_the_metadata(metadata: dict[str, str], names: Any, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [node("Conv", "x", "w", "a"), *POOLED], W, metadata=metadata)
    found = onnx_files.read(path)
    assert (found.names and found.names.names) == names
    assert found.names_fault is None


def test_class_names_that_contradict_each_other_are_a_fault(tmp_path: Path) -> None:
    metadata = {"classes": "cat,dog", "labels": "dog,cat"}
    path = graph(tmp_path / "m.onnx", [node("Conv", "x", "w", "a"), *POOLED], W, metadata=metadata)
    found = onnx_files.read(path)
    assert found.names is None
    assert "contradicts itself" in (found.names_fault or "")


# what no chain can have

CONV = node("Conv", "x", "w", "a")
TO_A = node("Conv", "x", "w", "c")
REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "residual": (
        [TO_A, node("Conv", "c", "w2", "k"), node("Add", "c", "k", "a")],
        {"w2": weight(4, 4, 1, 1)},
        r"the network branches behind c \(Conv\): k \(Conv\) and a \(Add\) read the same value",
    ),
    "concatenation": (
        [TO_A, node("Relu", "c", "r"), node("Concat", "c", "r", "q", axis=1), node("Conv", "q", "w2", "a")],
        {"w2": weight(4, 8, 1, 1)},
        r"the network branches behind c \(Conv\): r \(Relu\) and q \(Concat\)",
    ),
    "hard swish": ([TO_A, node("HardSwish", "c", "a")], {}, r"a \(HardSwish\) is an activation that this"),
    "mish": (
        [TO_A, node("Softplus", "c", "s"), node("Tanh", "s", "t"), node("Mul", "c", "t", "a")],
        {},
        r"s \(Softplus\) to a \(Mul\) compute an activation that this program does not have",
    ),
    "clip": (
        [TO_A, node("Clip", "c", "low", "high", "a")],
        {"low": np.float32(-1), "high": np.float32(1)},
        r"a \(Clip\) clips to \[-1.0, 1.0\]",
    ),
    "slopes": (
        [TO_A, node("PRelu", "c", "slope", "a")],
        {"slope": weight(4, 1, 1)},
        r"a \(PRelu\) has a slope for each channel",
    ),
    "transposed convolution": (
        [node("ConvTranspose", "x", "v", "a")],
        {"v": weight(3, 4, 3, 3)},
        r"a \(ConvTranspose\) is no layer that this program knows",
    ),
    "groups": (
        [node("Conv", "x", "g", "a", group=3)],
        {"g": weight(6, 1, 3, 3)},
        "a is a convolution with 3 groups; expected one group",
    ),
    "training": (
        [TO_A, node("BatchNormalization", "c", "v", "v", "v", "v", "a", training_mode=1)],
        {"v": weight(4)},
        r"a \(BatchNormalization\) is a batch norm in its form for training",
    ),
    "training dropout": (
        [TO_A, node("Dropout", "c", "ratio", "yes", "a")],
        {"ratio": np.float32(0.5), "yes": np.bool_(True)},
        "is a dropout in its form for training",
    ),
    "int8": (
        [
            node("QuantizeLinear", "x", "s", "q"),
            node("DequantizeLinear", "q", "s", "r"),
            node("Conv", "r", "w", "a"),
        ],
        {"s": np.float32(0.1)},
        r"it is quantized already \(q \(QuantizeLinear\)\); expected the float model",
    ),
    "other operators": (
        [TO_A, helper.make_node("FusedConv", ["c"], ["a"], "a", domain="com.microsoft")],
        {},
        r"a \(FusedConv\) is an operator of com.microsoft, not of ONNX",
    ),
    "decision": (
        [
            helper.make_node(
                "If",
                ["yes"],
                ["a"],
                "a",
                then_branch=helper.make_graph([], "t", [], []),
                else_branch=helper.make_graph([], "e", [], []),
            )
        ],
        {"yes": np.bool_(True)},
        r"a \(If\) decides or repeats while it runs",
    ),
    "mean picture": (
        [node("Sub", "x", "mean", "s"), node("Conv", "s", "w", "a")],
        {"mean": weight(1, 3, 16, 16)},
        r"s \(Sub\) has numbers of the shape \[1, 3, 16, 16\]; expected one, or one per channel",
    ),
    "part of the channels": (
        [node("Gather", "x", "some", "s", axis=1), node("Conv", "s", "w", "a")],
        {"some": ints(0, 1, 1)},
        "takes a part of the channels; expected all of it, or the channels turned round",
    ),
    "reflected padding": (
        [node("Pad", "x", "sides", "s", mode="reflect"), node("Conv", "s", "w", "a")],
        {"sides": ints(0, 0, 1, 1, 0, 0, 1, 1)},
        "pads with other numbers than zeros",
    ),
    "padding that counts": (
        [TO_A, node("AveragePool", "c", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
        r"a \(AveragePool\) is a pool with the padding \[1, 1, 1, 1\]",
    ),
    "huge constant": (
        [node("ConstantOfShape", "many", "z"), node("Add", "x", "z", "s"), node("Conv", "s", "w", "a")],
        {"many": ints(2**20, 2**20)},
        r"z \(ConstantOfShape\) makes a constant of more than",
    ),
    "weights from the network": (
        [TO_A, node("Conv", "c", "c", "a")],
        {},
        r"a \(Conv\) takes its c from the network itself",
    ),
    "mean of one side": (
        [TO_A, node("ReduceMean", "c", "s", axes=[2]), node("Relu", "s", "a")],
        {},
        r"a \(Relu\) follows a mean over one side; expected one over both",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_chain_can_have_is_named(name: str, tmp_path: Path) -> None:
    nodes, weights, expected = REFUSED[name]
    path = graph(tmp_path / "m.onnx", [*nodes, *POOLED], W | weights)
    with pytest.raises(CheckpointError, match=expected) as error:
        onnx_files.read(path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("n", 3, 16, 20), "it takes pictures of 16 x 20 px; expected square ones"),
        ((2, 3, 16, 16), "it takes 2 pictures at once; expected one, or any number"),
        (("n", 3, 16), "its input has 3 dimensions; expected 4"),
        (("n", 5, 16, 16), r"the network reads 5 channels; expected 3 \(colours\) or 1 \(grey\)"),
    ],
)
def test_inputs_that_are_no_pictures(shape: Sequence[int | str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=expected):
        onnx_files.read(graph(tmp_path / "m.onnx", [CONV, *POOLED], W, shape))


def test_several_inputs_or_outputs(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [CONV, *POOLED], W)
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"it has 2 outputs \(y, a\); expected one picture in"):
        onnx_files.read(path)
    model.graph.output.pop()
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"it has 2 inputs \(x, z\); expected one picture in"):
        onnx_files.read(path)


def test_functions_and_old_operators(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [CONV, *POOLED], W, version=6)
    with pytest.raises(CheckpointError, match="operators are of version 6; expected at least 7"):
        onnx_files.read(path)
    model = onnx.load(path)
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [], []))
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="it has functions of its own; expected plain operators"):
        onnx_files.read(path)


# tensors in other files


def outside(path: Path, location: str, offset: int = 0) -> Path:
    """A model whose weights lie in ``location``."""
    graph(path, [CONV, *POOLED], W)
    model = onnx.load(path)
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "432")):
        entry = stored.external_data.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)
    return path


def test_tensors_beside_the_file(tmp_path: Path) -> None:
    path = outside(tmp_path / "m.onnx", "m.data", 64)
    (tmp_path / "m.data").write_bytes(bytes(64) + W["w"].tobytes())
    seen = pictures(3, 16)
    assert_same(onnx_files.read(path), seen, said(path, imagenet(seen)))


@pytest.mark.parametrize(
    "location", ["../../../../../../etc/passwd", "/etc/passwd", "link", "down/../../x.data", ""]
)
def test_nothing_outside_the_folder_is_read(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "x.data").write_bytes(bytes(1000))
    (folder / "link").symlink_to(tmp_path / "x.data")
    path = outside(folder / "m.onnx", location)
    opened = list[str]()

    def watched(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            opened.append(str(arguments[0]))
            return real(*arguments, **options)

        return call

    for module, name in ((Path, "open"), (os, "open"), (builtins, "open")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    with pytest.raises(CheckpointError, match="outside the folder of the file, and is not read"):
        onnx_files.read(path)
    assert not [name for name in opened if "passwd" in name or name.endswith(("link", ".data"))]


def test_tensors_that_are_not_there_or_end_too_early(tmp_path: Path) -> None:
    path = outside(tmp_path / "m.onnx", "m.data")
    with pytest.raises(CheckpointError, match=r"its tensors lie in 'm.data' beside it, which is not there"):
        onnx_files.read(path)
    (tmp_path / "m.data").write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=r"its tensor w lies beyond the end of 'm.data'"):
        onnx_files.read(path)
    (tmp_path / "m.data").write_bytes(bytes(1000))
    with pytest.raises(CheckpointError, match=r"lies beyond the end of"):
        onnx_files.read(outside(tmp_path / "m.onnx", "m.data", -64))


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [CONV, *POOLED], W)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"is an ONNX model that cannot be read .* export it again"):
        onnx_files.read(path)
    model = onnx.load_from_string(whole)
    model.graph.initializer[0].dims[0] = 2**40
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"is an ONNX model that cannot be read .* export it again"):
        onnx_files.read(path)


def test_a_number_in_another_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one in the folder that the program runs in, which onnx itself would read."""
    value = numpy_helper.from_array(np.zeros(1, np.float32), "v")
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "numbers"), ("length", "4")):
        entry = value.external_data.add()
        entry.key, entry.value = key, text
    full = node("ConstantOfShape", "shape", "z", value=value)
    path = graph(
        tmp_path / "m.onnx",
        [full, node("Add", "x", "z", "s"), node("Conv", "s", "w", "a"), *POOLED],
        W | {"shape": ints(1)},
    )
    (tmp_path / "numbers").write_bytes(bytes(4))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="keeps its number in another file; expected it in the graph"):
        onnx_files.read(path)
