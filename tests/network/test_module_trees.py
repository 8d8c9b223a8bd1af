import copy
import functools
import importlib
import itertools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as f
from torch.nn.utils import prune
from torch_networks import TOLERANCE, chain_of, difference, initialise, narrow_vgg, small
from torchvision import models, transforms
from torchvision.models.vgg import VGG

from vgg_export.core.errors import CheckpointError
from vgg_export.network.chain import AdaptiveAvgPool, Conv, Linear
from vgg_export.network.provenance import ASSUMED, CONVENTION, FILE
from vgg_export.network.readers import module_trees, unpickle
from vgg_export.network.readers.found import Found
from vgg_export.network.readers.pickle_machine import Stub
from vgg_runtime.bundle.input_spec import IMAGENET_MEAN


def read(network: object, folder: Path) -> Found:
    torch.save(network, folder / "network.pth")
    return module_trees.read_module(unpickle.load(folder / "network.pth"), folder / "network.pth")


def same(network: nn.Module, folder: Path) -> Found:
    """What is read of a network, once it is sure that it computes the same."""
    found = read(network, folder)
    assert difference(found, network) < TOLERANCE
    return found


def refusal(network: object, folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read(network, folder)
    return str(error.value)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_saved_vgg_of_torchvision_computes_the_same(batch_norm: bool, tmp_path: Path) -> None:
    found = same(narrow_vgg(batch_norm), tmp_path)
    assert found.container == "a PyTorch module (torchvision.models.vgg.VGG)"
    assert (found.input.px, found.input.resize_px, found.input.mean) == (224, 256, IMAGENET_MEAN)
    assert (found.origins.activations, found.origins.px, found.origins.output) == (FILE, CONVENTION, ASSUMED)
    assert found.assumed == ()
    names = [site.name for site in chain_of(found).convs]
    assert names == ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv5_1"]


SLOPE = nn.PReLU(init=0.3)
LAYERS = [
    nn.LeakyReLU(0.2),
    *(
        nn.ELU(0.7),
        nn.CELU(),
        nn.ReLU6(),
        nn.Hardtanh(0, 6),
        nn.Tanh(),
        nn.Sigmoid(),
        nn.SiLU(),
        nn.GELU(),
        nn.GELU("tanh"),
    ),
    *(nn.Hardtanh(0, 6), SLOPE, nn.RReLU(), nn.Identity(), nn.Dropout2d()),
    *(nn.BatchNorm2d(6), nn.BatchNorm2d(6, eps=0.1), nn.BatchNorm2d(6, affine=False), nn.SyncBatchNorm(6)),
    nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)),
    *(nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d((2, 1))),
    *(
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AdaptiveMaxPool2d((5, 3)),
        nn.ZeroPad2d((1, 0, 2, 1)),
    ),
    nn.AdaptiveAvgPool2d((None, None)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_each_layer_computes_the_same(layer: nn.Module, tmp_path: Path) -> None:
    network = small(layer)
    found = same(network, tmp_path)
    assert found.origins.activations == FILE
    # a layer that was dropped or changed would be seen
    assert isinstance(layer, nn.Identity | nn.Dropout2d | nn.AdaptiveAvgPool2d) or changes(found, network)


def changes(found: Found, network: nn.Sequential) -> bool:
    without = copy.deepcopy(network)
    del without[1]
    return difference(found, without) > TOLERANCE


@pytest.mark.parametrize(
    "conv",
    [
        {"stride": 2},
        {"kernel_size": 5, "padding": "same"},
        {"kernel_size": (2, 5), "padding": "same"},
        {"padding": "valid"},
        {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2), "bias": False},
    ],
)
def test_each_convolution_computes_the_same(conv: dict[str, Any], tmp_path: Path) -> None:
    same(small(nn.ReLU(), **conv), tmp_path)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (small(padding_mode="reflect"), "0 (Conv2d) has padding_mode reflect; expected zeros"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "0 is a convolution with 2 groups"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2)), "dilation (2, 2)"),
        (small(nn.MaxPool2d(2, dilation=2)), "1 (MaxPool2d) has dilation 2; expected 1"),
        (small(nn.MaxPool2d(2, return_indices=True)), "return_indices True"),
        (small(nn.AvgPool2d(3, padding=1)), "1 (AvgPool2d) has padding 1; expected 0"),
        (small(nn.AvgPool2d(2, divisor_override=3)), "divisor_override 3"),
        (small(nn.AdaptiveAvgPool2d((None, 2))), "1 (AdaptiveAvgPool2d) has the output_size (None, 2)"),
        (small(nn.BatchNorm2d(6, track_running_stats=False)), "keeps no running statistics"),
        (small(nn.PReLU(6)), "1 (PReLU) has 6 slopes; expected one"),
        (small(nn.SELU()), "1 (SELU) is an activation that this program does not know"),
        (small(nn.GroupNorm(2, 6)), "1 (GroupNorm) is a layer that this program does not read"),
        (small(nn.Upsample(scale_factor=2)), "1 (Upsample) is a layer that this program does not"),
        (small(nn.ReflectionPad2d(1)), "1 (ReflectionPad2d) is a layer that this"),
        (small(nn.Softmax(dim=2)), "1 (Softmax) has dim 2"),
        (small(nn.ConstantPad2d(1, 3.0)), "has value 3.0; expected 0"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "expected a convolution, which reads pictures"),
        (nn.Sequential(nn.ReLU()), "has no convolution and no fully connected layer"),
        (models.resnet18(num_classes=2), "the network has branches, first in layer1.0 (BasicBlock)"),
        (models.densenet121(num_classes=2), "has branches, first in features.denseblock1 (_DenseBlock)"),
        (models.squeezenet1_1(num_classes=2), "has branches, first in features.3 (Fire)"),
        (models.mobilenet_v2(num_classes=2), "has branches, first in features.1 (InvertedResidual)"),
        (
            models.googlenet(num_classes=2, init_weights=False),
            "has branches, first in inception3a (Inception)",
        ),
    ],
)
def test_what_a_chain_cannot_do_is_refused(network: nn.Module, words: str, tmp_path: Path) -> None:
    said = refusal(network, tmp_path)
    assert words in said
    assert "\n" not in said
    assert "does not read" not in said or "ONNX" not in said


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.shortcut = nn.Conv2d(3, 4, 1)


def test_a_branch_of_the_users_own_is_named(tmp_path: Path) -> None:
    assert "first in 0 (Joined), whose shortcut runs beside" in refusal(nn.Sequential(Joined()), tmp_path)
    assert "first in network (Joined)" in refusal(Joined(), tmp_path)


class Tail(nn.Module):
    """A class of the user's own with these modules."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Functional(nn.Module):
    """ReLU as a function, pools as modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(8 * 16, 12)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.pool1(f.relu(self.bn1(self.conv1(x))))
        x = self.pool2(f.relu(self.conv2(x)))
        return self.fc2(self.drop(f.relu(self.fc1(x.flatten(1)))))


def test_relu_as_a_function_is_assumed_and_said(tmp_path: Path) -> None:
    found = same(initialise(Functional()), tmp_path)
    assert found.origins.activations == ASSUMED
    assert found.assumed[0].startswith("the layers of Functional in the order in which they were made")
    assert (found.input.px, found.input.resize, found.origins.px) == (16, "squash", CONVENTION)
    assert "16 px, the first of the 16 to 19 px that fit" in found.assumed[1]


class NormOfFeatures(nn.Module):
    """Batch norm of the flattened maps, or of their means, before the head; ReLU as a function."""

    def __init__(self, pool: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.bn = nn.BatchNorm2d(6)
        if pool > 1:
            self.pool = nn.MaxPool2d(pool)
        self.means = pool == 1
        self.bn1d = nn.BatchNorm1d(6 if self.means else 6 * 9)
        self.fc1 = nn.Linear(6 if self.means else 6 * 9, 12)
        self.fc2 = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = f.relu(self.bn(self.conv(x)))
        x = x.mean((2, 3)) if self.means else self.pool(x).flatten(1)
        return self.fc2(f.relu(self.fc1(self.bn1d(x))))


@pytest.mark.parametrize("pool", [1, 2])
def test_batch_norm_of_features_follows_the_flattening_and_the_activation(pool: int, tmp_path: Path) -> None:
    same(initialise(NormOfFeatures(pool)), tmp_path)


class OneOfAll(nn.Module):
    """One activation for all layers; pools of their own."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.act = activation
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.pool2 = nn.MaxPool2d(2)
        self.fcs = nn.ModuleList([nn.Linear(8 * 16, 12), nn.Linear(12, 4)])
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> Any:
        x = self.pool1(self.act(self.conv1(x)))
        x = self.pool2(self.act(self.conv2(x)))
        return self.fcs[1](self.act(self.fcs[0](x.flatten(1))))


@pytest.mark.parametrize(("activation", "origin"), [(nn.ReLU(), ASSUMED), (nn.LeakyReLU(0.3), CONVENTION)])
def test_one_activation_for_all_layers_is_placed_behind_each(
    activation: nn.Module, origin: str, tmp_path: Path
) -> None:
    found = same(initialise(OneOfAll(activation)), tmp_path)
    assert found.origins.activations == origin
    assert any("behind every layer but the last" in words for words in found.assumed)
    assert (found.output, found.origins.output) == ("multi-label", FILE)
    assert (found.input.channels, found.input.mean, found.input.std) == (1, (0.0,), (1.0,))


def test_several_activations_that_cannot_be_placed_are_refused(tmp_path: Path) -> None:
    network = OneOfAll(nn.ReLU())
    network.tanh = nn.Tanh()
    said = refusal(network, tmp_path)
    assert "act (ReLU) and sigmoid (Sigmoid) and tanh (Tanh) are fewer than the layers" in said
    assert "torch.onnx.export(model, x, 'model.onnx')" in said


class OnePool(nn.Module):
    """PyTorch's tutorial: one pool for two convolutions. Taken as it stands it would fit another size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 10)


def test_one_pool_for_several_convolutions_is_refused(tmp_path: Path) -> None:
    said = refusal(OnePool(), tmp_path)
    assert said.startswith("pool (MaxPool2d) stands once in OnePool beside 2 convolutions")
    assert "torch.onnx.export" in said


def test_what_was_made_in_another_order_than_it_runs(tmp_path: Path) -> None:
    network = small(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    convs, head = network[:4], network[6]
    gap = read(
        Tail(flatten=nn.Flatten(), out=nn.Softmax(1), convs=convs, gap=nn.AdaptiveAvgPool2d(2), head=head),
        tmp_path,
    )
    assert difference(gap, network) < TOLERANCE
    assert (gap.output, gap.origins.output, gap.origins.activations) == ("softmax", FILE, FILE)
    for early in (nn.AdaptiveAvgPool2d(2), nn.ReLU(), nn.MaxPool2d(1)):
        said = refusal(Tail(early=early, convs=convs, gap=nn.AdaptiveAvgPool2d(2), head=head), tmp_path)
        assert said.startswith("early (")
        assert "torch.onnx.export" in said


IN_A_ROW: dict[str, list[tuple[str, nn.Module]]] = {
    "pool1 (MaxPool2d) and pool2 (MaxPool2d) were made in a row": [
        *(("conv1", nn.Conv2d(3, 6, 3)), ("conv2", nn.Conv2d(6, 6, 3)), ("relu1", nn.ReLU())),
        *(("relu2", nn.ReLU()), ("pool1", nn.MaxPool2d(2)), ("pool2", nn.MaxPool2d(2))),
    ],
    "pool1 (MaxPool2d) and pool2 (AvgPool2d) were made in a row": [
        *(("conv1", nn.Conv2d(3, 6, 3)), ("conv2", nn.Conv2d(6, 6, 3))),
        *(("pool1", nn.MaxPool2d(2)), ("pool2", nn.AvgPool2d(2))),
    ],
    "bn1 (BatchNorm2d) and bn2 (BatchNorm2d) were made in a row": [
        *(("conv1", nn.Conv2d(3, 6, 3, 2)), ("conv2", nn.Conv2d(6, 6, 3, 2))),
        *(("bn1", nn.BatchNorm2d(6)), ("relu", nn.ReLU()), ("bn2", nn.BatchNorm2d(6))),
    ],
}


@pytest.mark.parametrize("words", IN_A_ROW)
def test_layers_made_behind_all_convolutions_are_refused(words: str, tmp_path: Path) -> None:
    said = refusal(Tail(**dict(IN_A_ROW[words]), fc=nn.Linear(24, 3)), tmp_path)
    assert said.startswith(words)
    assert "torch.onnx.export" in said
    assert ("state_dict()" in said) == ("BatchNorm2d" in words)  # a state dict does not tell pools


def test_an_average_pool_behind_the_last_max_pool_is_read(tmp_path: Path) -> None:
    layers = {
        "conv1": nn.Conv2d(3, 6, 3, padding=1),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 8, 3, padding=1),
        "pool2": nn.MaxPool2d(2),
        "avg": nn.AvgPool2d(2),
    }
    found = read(Tail(**layers, fc=nn.Linear(8 * 4, 3)), tmp_path)
    assert found.input.px == 16


def test_an_activation_made_last_is_not_behind_the_logits(tmp_path: Path) -> None:
    convs, head = small(nn.ReLU(), stride=2)[:-1], nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3))
    for activation in (nn.ReLU(), nn.Tanh()):
        said = refusal(Tail(convs=convs, head=head, act=activation), tmp_path)
        assert said.startswith(f"act ({type(activation).__name__}) was made behind the last fully connected")
        assert "torch.onnx.export" in said
    assert read(Tail(convs=convs, head=head, act=nn.Sigmoid()), tmp_path).output == "multi-label"


class Normalized(nn.Module):
    """A network that normalises values of 0 to ``whole`` itself."""

    def __init__(self, whole: int, shape: tuple[int, ...], mean: str = "mean", std: str = "std") -> None:
        super().__init__()
        self.net = small(nn.ReLU())
        self.register_buffer(mean, whole * torch.tensor((0.2, 0.3, 0.4)).view(shape))
        self.register_buffer(std, whole * torch.tensor((0.5, 0.6, 0.7)).view(shape))


@pytest.mark.parametrize("whole", [1, 255])
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
@pytest.mark.parametrize("prefix", ["", "pixel_"])
def test_the_tensors_of_a_normalisation_are_that_of_the_input(
    whole: int, shape: tuple[int, ...], prefix: str, tmp_path: Path
) -> None:
    network = Normalized(whole, shape, f"{prefix}mean", f"{prefix}std")
    found = read(network, tmp_path)
    assert found.input.mean == pytest.approx((0.2, 0.3, 0.4))
    assert found.input.std == pytest.approx((0.5, 0.6, 0.7))
    assert found.origins.normalize == FILE
    assert any(f"x from 0 to 1, by {prefix}mean and {prefix}std" in words for words in found.assumed)
    assert difference(found, network.net) < TOLERANCE


def test_bytes_that_are_only_divided_are_values_of_0_to_1(tmp_path: Path) -> None:
    """The mean alone, which is zero, would not tell that the values are those of bytes."""
    network = Normalized(255, (3,))
    network.mean, network.std = torch.zeros(3), torch.full((3,), 255.0)
    found = read(network, tmp_path)
    assert found.input.mean == pytest.approx((0, 0, 0))
    assert found.input.std == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", torch.ones(1), "network (Tail) holds temperature [1] beside its layers"),
        ("mask", torch.ones(8, 8), "mask [8, 8]"),
        ("mean", torch.ones(3), "mean [3]"),
    ],
)
def test_tensors_that_no_layer_has_are_refused(
    name: str, value: torch.Tensor, words: str, tmp_path: Path
) -> None:
    network = Tail(net=small(nn.ReLU()))
    network.register_buffer(name, value)
    said = refusal(network, tmp_path)
    assert words in said
    assert "torch.onnx.export" in said
    network = Tail(net=small(nn.ReLU()))
    network.register_parameter(name, nn.Parameter(value))
    assert words in refusal(network, tmp_path)


def test_odd_statistics_are_no_normalisation(tmp_path: Path) -> None:
    network = Normalized(1, (3,))
    network.register_buffer("std", torch.zeros(3))
    assert "mean [3] and std [3] beside its layers" in refusal(network, tmp_path)
    late = Tail(first=nn.Conv2d(3, 3, 3, 2), rest=Normalized(1, (3,)))
    assert "rest.mean and rest.std belong to a part that is not the first" in refusal(late, tmp_path)


def test_counters_and_weights_of_the_loss_are_left_aside(tmp_path: Path) -> None:
    net = small(nn.ReLU())
    network = Tail(net=net)
    network.register_buffer("steps", torch.tensor(7))
    network.register_buffer("class_weights", torch.ones(3))
    assert difference(read(network, tmp_path), net) < TOLERANCE


def gate(layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), layer(6, 2), nn.ReLU(), layer(2, 6), nn.Sigmoid())


def one_by_one(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


@pytest.mark.parametrize(
    "parts",
    [
        {"gate": gate(one_by_one), "last": nn.Conv2d(6, 8, 3), "fc": nn.Linear(8, 3)},
        {"gate": gate(one_by_one)[:2], "last": nn.Conv2d(2, 8, 3), "fc": nn.Linear(8, 3)},
        {"gate": gate(one_by_one)[:2], "fc": nn.Linear(2, 3)},
        {"gate": gate(one_by_one), "fc": nn.Linear(6, 3)},
        {"gate": gate(one_by_one), "last": one_by_one(6, 3)},
        {"gate": gate(nn.Linear), "fc": nn.Linear(6, 3)},
        {"gate": gate(nn.Linear), "head": nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))},
    ],
)
def test_squeeze_and_excitation_is_refused(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    conv = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU())
    said = refusal(Tail(conv=conv, **parts), tmp_path)
    assert "gate.1 (" in said
    assert "stands behind gate.0 (AdaptiveAvgPool2d), as in squeeze-and-excitation" in said


def test_convolutions_behind_a_global_pool_may_give_the_logits(tmp_path: Path) -> None:
    conv = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), one_by_one(6, 5), nn.ReLU(), one_by_one(5, 3), nn.Flatten())
    network = nn.Sequential(conv, head)
    initialise(network)
    assert difference(read(Tail(conv=conv, head=head), tmp_path), network) < TOLERANCE


def named(name: str) -> nn.Module:
    """A block of two convolutions from a class of this name."""
    block: Callable[..., nn.Module] = type(name, (Tail,), {"__module__": __name__})
    globals()[name] = block
    return block(
        conv1=nn.Conv2d(6, 6, 3, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(6, 6, 3, padding=1),
        relu2=nn.ReLU(),
    )


@pytest.mark.parametrize(
    "name", ["ResBlk", "Res", "RB", "SE", "SEBlock", "SqueezeExcite", "PixelAttn", "MyResidual", "CBAM"]
)
def test_classes_whose_names_say_branches_are_refused(name: str, tmp_path: Path) -> None:
    said = refusal(small(named(name), stride=2), tmp_path)
    assert f"the network has branches, first in 1 ({name})" in said


def test_a_block_that_may_add_its_input_is_said_loudly(tmp_path: Path) -> None:
    (words,) = [one for one in read(small(named("Pair"), stride=2), tmp_path).assumed if "WRONG" in one]
    assert "in 1 (Pair), whose input and output have as many channels: if the code adds its input" in words
    assert "torch.onnx.export" in words


def test_names_of_tensors_that_say_branches_are_refused(tmp_path: Path) -> None:
    layer = nn.Sequential(named("Pair"))
    network = Tail(stem=nn.Conv2d(3, 6, 3, 2), layer1=layer, fc=nn.Linear(6, 3))
    assert "it looks like a ResNet or another residual network (layer1.0.conv1.weight" in refusal(
        network, tmp_path
    )


def test_pools_as_functions_are_refused(tmp_path: Path) -> None:
    network = OnePool()
    del network.pool
    said = refusal(network, tmp_path)
    assert "its 2 convolutions have no pool between them" in said
    assert "torch.onnx.export" in said


class Cifar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        vgg = narrow_vgg(batch_norm=True)
        self.features = nn.Sequential(*vgg.features, nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(16, 10)
        self.criterion = nn.CrossEntropyLoss()
        self.class_to_idx = {f"class {k}": 9 - k for k in range(10)}

    def forward(self, x: torch.Tensor) -> Any:
        return self.classifier(self.features(x).flatten(1))


def test_a_network_for_32_px_is_known_by_its_shapes(tmp_path: Path) -> None:
    found = same(initialise(Cifar()), tmp_path)
    assert (found.input.px, found.input.resize_px, found.input.resize) == (32, 32, "squash")
    assert found.origins.activations == FILE
    assert found.names
    assert found.names.names == tuple(f"class {9 - k}" for k in range(10))


class Functions(nn.Module):
    """Global pooling as a function."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = narrow_vgg().features
        self.fc1 = nn.Linear(16, 12)
        self.fc2 = nn.Linear(12, classes)
        self.hparams = Parameters(classes=[f"class {k}" for k in range(classes)])

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc2(f.relu(self.fc1(self.features(x).mean((2, 3)))))


class Parameters(dict[str, Any]):
    """As Lightning's."""


def test_global_pooling_as_a_function_is_assumed_but_for_cifar(tmp_path: Path) -> None:
    found = same(initialise(Functions(5)), tmp_path)
    assert found.assumed[1].startswith("global average pooling before the head")
    assert (found.input.px, found.origins.px, found.origins.activations) == (224, ASSUMED, ASSUMED)
    assert found.names
    assert found.names.where == "hparams.classes in network.pth"
    assert same(initialise(Functions(10)), tmp_path).input.px == 32


def test_class_names_that_contradict_each_other_are_no_names(tmp_path: Path) -> None:
    network = narrow_vgg(classes=2)
    network.class_to_idx, network.classes = {"a": 0, "b": 1}, ["b", "a"]
    found = read(network, tmp_path)
    assert found.names is None
    assert found.names_fault
    assert "contradicts itself" in found.names_fault


WRAPPERS: dict[str, Callable[[VGG], Any]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "OptimizedModule": functools.partial(torch.compile, backend="eager"),
    "class of one's own": lambda network: Tail(model=network, loss=nn.BCEWithLogitsLoss()),
    "twice": lambda network: nn.DataParallel(Tail(net=network)),
    "with a copy": lambda network: Tail(net=network, ema_net=copy.deepcopy(network)),
    "with a second name": lambda network: Tail(net=network, features=network.features),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_wraps_a_network_is_taken_off(wrapper: str, tmp_path: Path) -> None:
    network = narrow_vgg()
    found = read(WRAPPERS[wrapper](network), tmp_path)
    assert difference(found, network) < TOLERANCE
    assert found.origins.activations == FILE
    assert found.remarks == (
        ("ema_net, a copy of the network, is left aside",) if wrapper == "with a copy" else ()
    )


def test_an_appended_layer_follows_the_logits_without_an_activation(tmp_path: Path) -> None:
    network = narrow_vgg(classes=20)
    fc = nn.Linear(20, 3)
    found = read(Tail(vgg=network, fc=fc), tmp_path)
    assert difference(found, nn.Sequential(network, fc)) < TOLERANCE
    assert [site.layer.activation for site in chain_of(found).linears] == ["relu", "relu", "none", "none"]


@pytest.mark.parametrize(
    ("layer", "output"),
    [(nn.LogSoftmax(dim=1), "softmax"), (nn.Softmax(dim=-1), "softmax"), (nn.Sigmoid(), "multi-label")],
)
def test_the_layer_behind_the_logits_says_what_they_mean(
    layer: nn.Module, output: str, tmp_path: Path
) -> None:
    network = small(nn.ReLU())
    found = read(nn.Sequential(network, layer), tmp_path)
    assert difference(found, network) < TOLERANCE
    assert (found.output, found.origins.output) == (output, FILE)


def test_one_output_is_a_sigmoid(tmp_path: Path) -> None:
    found = same(small(nn.ReLU(), head=nn.Linear(16, 1)), tmp_path)
    assert (found.output, found.origins.output) == ("sigmoid", ASSUMED)
    assert read(nn.Sequential(*small(head=nn.Linear(16, 1)), nn.Sigmoid()), tmp_path).origins.output == FILE


def test_one_layer_in_several_places_of_a_sequence_runs_in_each(tmp_path: Path) -> None:
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), relu, pool, nn.Conv2d(4, 4, 3, padding=1), relu, pool),
        *(nn.Flatten(), nn.Linear(64, 5), relu, nn.Linear(5, 3)),
    )
    found = same(initialise(network), tmp_path)
    assert (found.assumed, found.input.px) == (
        ("16 px, the first of the 16 to 19 px that fit (else --input-px)",),
        16,
    )


def test_a_layer_with_weights_in_two_places_is_refused(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 3, 3)
    assert "0 and 1 are the same layer" in refusal(nn.Sequential(conv, conv), tmp_path)
    assert "one and two are the same layer" in refusal(Tail(one=conv, two=conv), tmp_path)


def test_pruned_and_normalised_weights_are_multiplied_out(tmp_path: Path) -> None:
    network = small(nn.ReLU())
    prune.l1_unstructured(  # type: ignore[no-untyped-call]
        network[0], "weight", 0.5
    )
    prune.random_unstructured(  # type: ignore[no-untyped-call]
        network[0], "bias", 0.5
    )
    nn.utils.weight_norm(network[2])
    with torch.no_grad():
        network[2].weight_g.mul_(1.7)
    found = same(network, tmp_path)
    assert float((found.network.tensors["conv1_1.weight"] == 0).float().mean()) == pytest.approx(
        0.5, abs=0.01
    )


def test_the_transform_at_the_front_is_the_inputs_normalisation(tmp_path: Path) -> None:
    network = nn.Sequential(transforms.Normalize((0.2, 0.3, 0.4), (0.5, 0.6, 0.7)), *small(nn.ReLU()))
    found = read(network, tmp_path)
    assert found.input.mean == pytest.approx((0.2, 0.3, 0.4))
    assert found.input.std == pytest.approx((0.5, 0.6, 0.7))
    assert found.origins.normalize == FILE
    assert difference(found, network[1:]) < TOLERANCE


def test_half_a_network_becomes_float(tmp_path: Path) -> None:
    network = small(nn.ReLU())
    assert difference(read(copy.deepcopy(network).half(), tmp_path), network) < 0.01


def test_lightnings_example_tells_the_size(tmp_path: Path) -> None:
    network = small(nn.ReLU())
    whole = Tail(net=network)
    whole.example_input_array = torch.zeros(1, 3, 48, 48)
    found = read(whole, tmp_path)
    assert (found.input.px, found.origins.px) == (48, FILE)
    assert (read(Tail(net=network), tmp_path).input.px, found.input.resize) == (224, "squash")


def test_a_module_that_does_not_fit_says_what_to_do(tmp_path: Path) -> None:
    said = refusal(Tail(features=small(nn.MaxPool2d(2))[:-1], head=nn.Linear(17, 3)), tmp_path)
    assert "head is [3, 17]; expected a matrix whose columns are a multiple of the 4 channels" in said
    assert "The code of Tail is not in the file" in said
    two_heads = Tail(features=small(nn.MaxPool2d(2))[:-1], age=nn.Linear(16, 2), sex=nn.Linear(16, 2))
    assert "sex is [2, 16]" in refusal(two_heads, tmp_path)


def test_a_layer_of_ones_own_is_refused_and_a_flattening_is_not(tmp_path: Path) -> None:
    network = small(nn.ReLU())
    layers = list(network)
    layers[-2] = Flatten()
    found = read(nn.Sequential(*layers), tmp_path)
    assert difference(found, network) < TOLERANCE
    assert "1 (Doubled) is no layer that this program knows" in refusal(small(Doubled()), tmp_path)


class Flatten(nn.Module):
    """A view, as tutorials have it."""


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def noted(module: nn.Module, inputs: Any, output: Any) -> None:
    """A hook."""


def test_hooks_and_functions_in_the_place_of_forward_are_said(tmp_path: Path) -> None:
    network = small(nn.ReLU())
    network[0].register_forward_hook(noted)
    (remark,) = same(network, tmp_path).remarks
    assert remark.startswith("test_module_trees.noted is hooked to 0 (Conv2d) and left aside")
    network = small(stride=2)
    network.forward = functools.partial(noted, network)
    assert read(network, tmp_path).assumed[0].startswith("the layers of Sequential in the order")


JUNK: tuple[Any, ...] = (
    *(None, -1, 0, 1e300, "x", (1, 2, 3), [], {}, torch.ones(2)),
    *(Stub("a.B"), (Stub("a.B"),) * 2, {"a": Stub("b.C")}),
)


@pytest.mark.release
def test_odd_attributes_never_give_another_kind_of_error(tmp_path: Path) -> None:
    network = small(nn.BatchNorm2d(6), nn.ELU(), nn.MaxPool2d(2))
    torch.save(Tail(features=network, head=nn.Linear(3, 2)), tmp_path / "n.pth")
    outcomes = set()
    stub = unpickle.load(tmp_path / "n.pth")
    settings = [(one.state, name) for _, one in module_trees.modules_of(stub) for name in one.state]
    for value, (state, name) in itertools.product(JUNK, settings):
        kept = state[name]
        state[name] = value
        try:
            module_trees.read_module(stub, tmp_path / "n.pth")
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
        state[name] = kept
    assert outcomes == {"read", "refused"}


def test_quantized_layers_are_named(tmp_path: Path) -> None:
    network = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
        small(nn.ReLU()), {nn.Linear}, dtype=torch.qint8
    )
    assert "is a quantized layer (torch.ao.nn.quantized.dynamic" in refusal(network, tmp_path)


def test_activations_of_a_head_beside_a_state_dict(tmp_path: Path) -> None:
    head = nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(9, 8),
            act=nn.LeakyReLU(0.2),
            drop=nn.Dropout(),
            fc2=nn.Linear(8, 3),
            out=nn.LogSoftmax(1),
        )
    )
    torch.save({"classifier": head, "epoch": 3}, tmp_path / "head.pth")
    stub = unpickle.load(tmp_path / "head.pth")["classifier"]
    assert module_trees.is_module(stub)
    assert module_trees.activations_of(stub) == {"fc1": "leaky_relu(0.2)", "fc2": "none"}
    tensors = module_trees.tensors_of(stub)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in head.state_dict().items()
    }


def test_timms_vgg_computes_the_same(tmp_path: Path) -> None:
    vgg = importlib.import_module("timm.models.vgg")
    layers = (4, "M", 6, "M", 6, 6, "M", 8, "M", 8, "M")
    network = vgg.VGG(layers, num_classes=5)
    found = same(initialise(network), tmp_path)
    assert (found.input.px, found.origins.activations, found.assumed) == (224, FILE, ())
    chain = chain_of(found)
    assert [type(layer) for layer in chain.layers if isinstance(layer, Linear | AdaptiveAvgPool)] == [
        AdaptiveAvgPool,
        *(Linear, Linear, Linear),
    ]
    assert len([layer for layer in chain.layers if isinstance(layer, Conv)]) == 6


def test_a_saved_lightning_module_computes_the_same(tmp_path: Path) -> None:
    lightning = importlib.import_module("lightning")
    metrics = importlib.import_module("torchmetrics")
    network = narrow_vgg()
    module = lightning.LightningModule()
    module.model, module.loss = network, nn.CrossEntropyLoss()
    module.accuracy = metrics.Accuracy(task="multiclass", num_classes=5)
    module.save_hyperparameters({"lr": 0.1, "class_to_idx": {f"class {k}": k for k in range(5)}})
    module.example_input_array = torch.zeros(1, 3, 160, 160)
    found = read(module, tmp_path)
    assert difference(found, network) < TOLERANCE
    assert (found.input.px, found.origins.px) == (160, FILE)
    assert found.names
    assert found.names.names == tuple(f"class {k}" for k in range(5))
