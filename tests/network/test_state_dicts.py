"""State dicts of networks as people write them: the chain that is read computes what the network does."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
import timm
import torch
from conftest import small_torchvision_vgg
from timm.models import vgg as timm_vgg
from torch import nn
from torch.nn import functional, utils
from torch.nn.utils import prune
from torchvision import models

from vgg_export.core.errors import CheckpointError
from vgg_export.network import modules
from vgg_export.network.chain import CONVS_PER_STAGE, Chain
from vgg_export.network.provenance import ASSUMED, CONVENTION
from vgg_export.network.readers import state_dicts
from vgg_export.network.readers.found import Found
from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.input_spec import IMAGENET_MEAN, IMAGENET_STD

VGG11 = (8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M")
VGG13 = (8, 8, "M", 16, 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M")
VGG16 = (8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M")
Configuration = Sequence[int | str]
Parts = dict[str, nn.Module | Callable[[torch.Tensor], torch.Tensor]]


def alive(network: nn.Module) -> nn.Module:
    """The network in evaluation mode with weights and statistics of which every layer matters."""
    torch.manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -0.3, 0.3)
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.7, 1.3)
                nn.init.uniform_(layer.bias, -0.3, 0.3)
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.7, 1.3)
    return network.eval()


def ensure_same(found: Found, network: nn.Module) -> Chain:
    """Make sure that the chain computes the network's logits at its own input size; gives the chain."""
    chain = Chain(found.input, found.network.layers, found.output)
    module = modules.build(chain).eval()
    module.load_state_dict(found.network.tensors)
    x = torch.randn(2, chain.input.channels, chain.input.px, chain.input.px)
    with torch.inference_mode():
        said, expected = module(x), network(x.clone())
    assert float((said - expected).abs().max() / expected.abs().max()) < 1e-4
    assert said.argmax(1).equal(expected.argmax(1))
    return chain


def read(network: nn.Module) -> Found:
    return state_dicts.read(network.state_dict())


def ensure_names_tell_the_order(network: nn.Module, found: Found) -> None:
    """Make sure that tensors sorted by name, as safetensors keeps them, make the same layers."""
    names = sorted(network.state_dict().items())
    again = state_dicts.read(dict(names), in_order=False)
    assert again.network.layers == found.network.layers
    assert all(t.equal(found.network.tensors[name]) for name, t in again.network.tensors.items())


def features(configuration: Configuration, *, norm: bool = False, channels: int = 3) -> list[nn.Module]:
    """torchvision's layers of a configuration."""
    layers: list[nn.Module] = []
    for width in configuration:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(nn.ReLU(inplace=True))
        channels = width
    return layers


class Own(nn.Module):
    """A network of named parts that run one behind the other; what is no module is a function."""

    def __init__(self, **parts: nn.Module | Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.order = list(parts.values())
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.order:
            x = part(x)
        return x


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


def pool(x: torch.Tensor) -> torch.Tensor:
    return functional.max_pool2d(x, 2)


def seven(x: torch.Tensor) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(x, 7)


def mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


def head(*widths: int, norm: bool = False, dropout: bool = True) -> nn.Sequential:
    """Fully connected layers with ReLU, and dropout behind it."""
    layers: list[nn.Module] = []
    for k, (inputs, units) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, units))
        if k + 2 < len(widths):
            layers += [nn.BatchNorm1d(units)] if norm else []
            layers.append(nn.ReLU())
            layers += [nn.Dropout()] if dropout else []
    return nn.Sequential(*layers)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("family", list(CONVS_PER_STAGE))
def test_every_family_member_keeps_its_function(family: str, batch_norm: bool) -> None:
    network = small_torchvision_vgg(family, batch_norm)
    found = read(network)
    chain = ensure_same(found, network)
    assert (chain.family, chain.classes, chain.input.px, chain.input.resize_px) == (family, 7, 224, 256)
    assert (chain.input.mean, chain.input.std, chain.input.resize) == (IMAGENET_MEAN, IMAGENET_STD, "crop")
    assert (found.origins.px, found.origins.normalize) == (CONVENTION, ASSUMED)
    assert found.assumed == ()


HEADS: dict[str, Callable[[], nn.Module]] = {
    "one linear": lambda: nn.Linear(64 * 49, 5),
    "one linear in a Sequential": lambda: nn.Sequential(nn.Dropout(), nn.Linear(64 * 49, 5)),
    "two": lambda: head(64 * 49, 48, 5),
    "four": lambda: head(64 * 49, 48, 40, 32, 5),
    "without dropout": lambda: head(64 * 49, 48, 40, 5, dropout=False),
    "batch norm": lambda: head(64 * 49, 48, 40, 5, norm=True),
    "batch norm behind the activation": lambda: nn.Sequential(
        nn.Linear(64 * 49, 48), nn.ReLU(), nn.BatchNorm1d(48), nn.Dropout(), nn.Linear(48, 5)
    ),
    "batch norm behind the dropout": lambda: nn.Sequential(
        nn.Linear(64 * 49, 48), nn.ReLU(), nn.Dropout(), nn.BatchNorm1d(48), nn.Linear(48, 5)
    ),
    "batch norm of the features": lambda: nn.Sequential(nn.BatchNorm1d(64 * 49), nn.Linear(64 * 49, 5)),
    "names": lambda: nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(64 * 49, 48),
            relu=nn.ReLU(),
            fc2=nn.Linear(48, 5),
        )
    ),
    "blocks": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(64 * 49, 48), nn.ReLU()),
        nn.Sequential(nn.Linear(48, 32), nn.ReLU()),
        nn.Linear(32, 5),
    ),
    "last layer is a Sequential": lambda: nn.Sequential(
        nn.Linear(64 * 49, 48),
        nn.ReLU(),
        nn.Dropout(),
        nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5)),
    ),
    "no bias": lambda: nn.Linear(64 * 49, 5, bias=False),
    "one slope": lambda: nn.Sequential(nn.Linear(64 * 49, 48), nn.PReLU(), nn.Linear(48, 5)),
    "two linears without an activation": lambda: nn.Sequential(nn.Linear(64 * 49, 48), nn.Linear(48, 5)),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_ones_own(name: str) -> None:
    network = alive(
        Own(
            features=nn.Sequential(*features(VGG11, norm=len(name) % 2 == 0)),
            avgpool=nn.AdaptiveAvgPool2d(7),
            flat=flat,
            classifier=HEADS[name](),
        )
    )
    found = read(network)
    chain = ensure_same(found, network)
    assert (chain.family, chain.input.px, chain.units) == ("vgg11", 224, 5)
    ensure_names_tell_the_order(network, found)


def test_a_layer_appended_behind_the_classes_has_no_activation_before_it() -> None:
    for name in ("add_linear", "7"):
        network = small_torchvision_vgg("vgg11", False, 50)
        assert isinstance(network.classifier, nn.Sequential)
        network.classifier.add_module(name, nn.Linear(50, 5))
        found = read(alive(network))
        ensure_same(found, network)
        assert found.assumed == (f"no activation between classifier.6 and classifier.{name}",)
    vgg = small_torchvision_vgg("vgg11", False, 1000)
    beside = alive(Own(model=vgg, fc=nn.Linear(1000, 5)))
    found = read(beside)
    ensure_same(found, beside)
    assert found.assumed == ("no activation between model.classifier.6 and fc",)


def blocks(
    configuration: Configuration, *, norm: bool, inner: str, pools: bool = True
) -> dict[str, nn.Module]:
    """One Sequential for each stage, called ``inner`` and a number."""
    found: dict[str, nn.Module] = {}
    stage: list[int] = []
    channels = 3
    for width in configuration:
        if isinstance(width, int):
            stage.append(width)
            continue
        layers = features([*stage, "M"] if pools else stage, norm=norm, channels=channels)
        found[f"{inner}{len(found) + 1}"] = nn.Sequential(*layers)
        channels, stage = stage[-1], []
    return found


def functional_parts(
    configuration: Configuration, names: Iterable[str], *, norms: Iterable[str] = ()
) -> Parts:
    """Convolutions of these names, with what has no weights as functions."""
    found: Parts = {}
    naming, norm_names, channels = iter(names), iter(norms), 3
    for k, width in enumerate(configuration):
        if isinstance(width, str):
            found[f"pool at {k}"] = pool
            continue
        found[next(naming)] = nn.Conv2d(channels, width, 3, padding=1)
        if name := next(norm_names, None):
            found[name] = nn.BatchNorm2d(width)
        found[f"relu at {k}"] = torch.relu
        channels = width
    return found


def stage_names(configuration: Configuration, form: str) -> list[str]:
    stage, k, found = 1, 0, []
    for width in configuration:
        if isinstance(width, str):
            stage, k = stage + 1, 0
        else:
            k += 1
            found.append(form.format(stage, k))
    return found


def numbered(form: str, count: int) -> list[str]:
    return [form.format(k) for k in range(1, count + 1)]


def conv_block(inputs: int, width: int, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), *more)


def tutorial_layers() -> dict[str, nn.Module]:
    """One Sequential for each convolution, with the pool inside."""
    found: dict[str, nn.Module] = {}
    channels = 3
    for k, width in enumerate(VGG16):
        if isinstance(width, int):
            more = [nn.MaxPool2d(2, 2)] if VGG16[k + 1] == "M" else []
            found[f"layer{len(found) + 1}"] = conv_block(channels, width, *more)
            channels = width
    return found


def with_dropout(configuration: Configuration) -> nn.Sequential:
    """Dropout between the convolutions of a stage, so that every gap in the numbers is the same."""
    layers: list[nn.Module] = []
    channels = 3
    for k, width in enumerate(configuration):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Dropout(0.3)] if configuration[k + 1] != "M" else []
        channels = width
    return nn.Sequential(*layers)


class Lists(nn.Module):
    """Convolutions and fully connected layers in lists, with functions between them."""

    def __init__(self) -> None:
        super().__init__()
        widths = [width for width in VGG16 if isinstance(width, int)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip([3, *widths], widths, strict=False)
        )
        self.fcs = nn.ModuleList([nn.Linear(64, 48), nn.Linear(48, 10)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convs = iter(self.convs)
        for width in VGG16:
            x = pool(x) if width == "M" else next(convs)(x).relu()
        return self.fcs[1](self.fcs[0](x.flatten(1)).relu())  # type: ignore[no-any-return]


def conv_relu_norm(configuration: Configuration) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in features(configuration, norm=True):
        if isinstance(layer, nn.ReLU):
            norm = layers.pop()
            layers += [layer, norm]
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def conv_relu_pool_norm() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, units in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, units, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(units)]
    return nn.Sequential(*layers)


def nested(configuration: Configuration) -> nn.Sequential:
    """A block of convolution, batch norm and ReLU at each number, and a pool at others."""
    layers: list[nn.Module] = []
    channels = 3
    for width in configuration:
        layers.append(nn.MaxPool2d(2) if isinstance(width, str) else conv_block(channels, width))
        channels = channels if isinstance(width, str) else width
    return nn.Sequential(*layers)


class Unit(nn.Module):
    """A convolution and its batch norm under names of their own."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, units, 3, padding=1, bias=False), nn.BatchNorm2d(units)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()  # type: ignore[no-any-return]


def units(configuration: Configuration) -> nn.Sequential:
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stage: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for width in configuration:
        if isinstance(width, int):
            stage[f"unit{len(stage) + 1}"] = Unit(channels, width)
            channels = width
        else:
            stage["pool"] = nn.MaxPool2d(2)
            stages[f"stage{len(stages) + 1}"] = nn.Sequential(stage)
            stage = OrderedDict()
    return nn.Sequential(stages)


def fully_connected_functions(*widths: int) -> Parts:
    found: Parts = {"flat": flat}
    for k, (inputs, width) in enumerate(itertools.pairwise(widths), 1):
        found[f"fc{k}"] = nn.Linear(inputs, width)
        if k + 1 < len(widths):
            found[f"relu of fc{k}"] = torch.relu
    return found


# The network, the input size that is expected, and the number of pools.
CIFAR: dict[str, Callable[[], nn.Module]] = {
    "features and a bare classifier": lambda: Own(
        features=nn.Sequential(*features(VGG16, norm=True), nn.AvgPool2d(1, 1)),
        flat=flat,
        classifier=nn.Linear(64, 7),
    ),
    "layers and linear": lambda: Own(
        layers=nn.Sequential(*features(VGG13, norm=True)), flat=flat, linear=nn.Linear(64, 10)
    ),
    "three linears behind a dropout": lambda: Own(
        features=nn.Sequential(*features(VGG16)),
        flat=flat,
        classifier=nn.Sequential(nn.Dropout(), *head(64, 64, 64), nn.ReLU(), nn.Linear(64, 7)),
    ),
    "blocks": lambda: Own(**blocks(VGG16, norm=True, inner="block"), flat=flat, fc=nn.Linear(64, 10)),
    "names of Caffe": lambda: Own(
        **functional_parts(VGG16, stage_names(VGG16, "conv{}_{}")),
        **fully_connected_functions(64, 48, 32, 10),
    ),
    "names of Caffe with batch norms": lambda: Own(
        **functional_parts(VGG16, stage_names(VGG16, "conv{}_{}"), norms=stage_names(VGG16, "bn{}_{}")),
        **fully_connected_functions(64, 10),
    ),
    "names of Keras": lambda: Own(
        **functional_parts(VGG11, stage_names(VGG11, "block{}_conv{}")), **fully_connected_functions(64, 10)
    ),
    "numbers only": lambda: Own(
        **functional_parts(VGG13, numbered("conv{}", 10), norms=numbered("bn{}", 10)),
        **fully_connected_functions(64, 48, 10),
    ),
    "lists": Lists,
    "one Sequential for each convolution": lambda: Own(
        **tutorial_layers(),
        flat=flat,
        fc=head(64, 48, 10),
    ),
    "dropout within the stages": lambda: Own(
        features=with_dropout(VGG16), flat=flat, classifier=head(64, 64, 10, norm=True)
    ),
    "activation before the batch norm": lambda: Own(
        features=conv_relu_norm(VGG16), flat=flat, head=nn.Linear(64, 10)
    ),
    "nested blocks": lambda: Own(features=nested(VGG11), flat=flat, classifier=nn.Linear(64, 10)),
    "stages of units": lambda: Own(features=units(VGG11), flat=flat, output=nn.Linear(64, 10)),
    "one Sequential": lambda: nn.Sequential(*features(VGG11, norm=True), nn.Flatten(), nn.Linear(64, 10)),
    "batch norms without parameters": lambda: Own(
        features=nn.Sequential(
            *(
                nn.BatchNorm2d(layer.num_features, affine=False)
                if isinstance(layer, nn.BatchNorm2d)
                else layer
                for layer in features(VGG11, norm=True)
            )
        ),
        flat=flat,
        fc=nn.Linear(64, 10),
    ),
}


@pytest.mark.parametrize("name", CIFAR)
def test_networks_for_small_pictures(name: str) -> None:
    network = alive(CIFAR[name]())
    found = read(network)
    chain = ensure_same(found, network)
    assert (chain.input.px, chain.input.resize_px, chain.input.resize) == (32, 32, "squash")
    assert (len(chain.stages), found.origins.px) == (5, CONVENTION)
    ensure_names_tell_the_order(network, found)


OTHERS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "features and a head beside": (
        lambda: Own(
            backbone=nn.Sequential(*features(VGG11)), seven=seven, flat=flat, head=head(64 * 49, 48, 5)
        ),
        224,
        5,
    ),
    "global average pooling": (
        lambda: Own(
            backbone=nn.Sequential(*features(VGG11)),
            mean=mean,
            head=nn.Sequential(nn.Dropout(), nn.Linear(64, 5)),
        ),
        224,
        5,
    ),
    "batch norm between pooling and head": (
        lambda: Own(
            backbone=nn.Sequential(*features(VGG11)),
            mean=mean,
            head=nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5)),
        ),
        224,
        5,
    ),
    "grey pictures of 28 px": (
        lambda: nn.Sequential(
            *features((8, "M", 16, "M"), channels=1), nn.Flatten(), nn.Linear(16 * 49, 32), nn.ReLU(),
            nn.Linear(32, 10),
        ),
        28,
        2,
    ),
    "no pool behind the last convolution": (
        lambda: nn.Sequential(*features((8, 8, "M", 16, 16, "M", 32)), nn.Flatten(), nn.Linear(32 * 64, 5)),
        32,
        2,
    ),
    "global pooling in one Sequential": (
        lambda: nn.Sequential(
            *features((8, 8, "M", 16, 16, "M", 32)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
        ),
        224,
        2,
    ),
    "kernels of 5": (
        lambda: Own(
            conv=nn.Sequential(
                nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5, padding=2),
                nn.ReLU(), nn.MaxPool2d(2),
            ),
            flat=flat,
            fc=nn.Linear(16 * 64, 5),
        ),
        32,
        2,
    ),
    "four stages at 48 px": (
        lambda: Own(
            features=nn.Sequential(*features((8, 8, "M", 16, 16, "M", 32, 32, "M", 64, 64, "M"), norm=True)),
            flat=flat,
            classifier=head(64 * 9, 32, 7),
        ),
        48,
        4,
    ),
    "batch norm behind the pool": (
        lambda: Own(features=conv_relu_pool_norm(), flat=flat, fc=nn.Linear(64 * 16, 5)),
        32,
        3,
    ),
    "a convolution as the last layer": (
        lambda: Own(
            features=nn.Sequential(*features(VGG11)), classifier=nn.Conv2d(64, 5, 1), mean=mean
        ),
        224,
        5,
    ),
    "features in parallel": (
        lambda: Own(
            features=nn.DataParallel(nn.Sequential(*features(VGG11))),
            seven=seven,
            flat=flat,
            classifier=head(64 * 49, 48, 5),
        ),
        224,
        5,
    ),
    "a head of fastai": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Sequential(*features(VGG11, norm=True))),
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.BatchNorm1d(64),
                nn.Dropout(),
                nn.Linear(64, 32, bias=False),
                nn.ReLU(),
                nn.BatchNorm1d(32),
                nn.Dropout(),
                nn.Linear(32, 5, bias=False),
            ),
        ),
        224,
        5,
    ),
    "a head as functions, with a batch norm": (
        lambda: Own(
            features=nn.Sequential(*features(VGG11, norm=True)),
            seven=seven,
            flat=flat,
            fc1=nn.Linear(64 * 49, 40),
            bn1=nn.BatchNorm1d(40),
            relu=torch.relu,
            fc2=nn.Linear(40, 5),
        ),
        224,
        5,
    ),
    "a batch norm of the input": (
        lambda: Own(
            norm=nn.BatchNorm2d(3),
            features=nn.Sequential(*features(VGG11)),
            flat=flat,
            fc=nn.Linear(64 * 16, 5),
        ),
        128,
        5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks(name: str) -> None:
    make, px, pools = OTHERS[name]
    network = alive(make())
    found = read(network)
    chain = Chain(found.input, found.network.layers, found.output)
    assert chain.input.px == px
    assert sum(type(layer).__name__ == "MaxPool" for layer in chain.layers) == pools
    ensure_names_tell_the_order(network, found)
    if name != "a batch norm of the input":
        ensure_same(found, network)


def vgg_face(classes: int, *, convolutions: bool = False) -> nn.Module:
    parts = functional_parts(VGG16, stage_names(VGG16, "conv{}_{}"))
    if convolutions:
        head_ = {"fc6": nn.Conv2d(64, 48, 7), "fc7": nn.Conv2d(48, 48, 1), "fc8": nn.Conv2d(48, classes, 1)}
        return alive(Own(**parts, **with_relus(head_), flat=flat))
    linears = {"fc6": nn.Linear(64 * 49, 48), "fc7": nn.Linear(48, 48), "fc8": nn.Linear(48, classes)}
    return alive(Own(**parts, flat=flat, **with_relus(linears)))


def with_relus(layers: Mapping[str, nn.Module]) -> Parts:
    """A ReLU behind each layer but the last."""
    found: Parts = {}
    for k, (name, layer) in enumerate(layers.items(), 1):
        found[name] = layer
        if k < len(layers):
            found[f"relu of {name}"] = torch.relu
    return found


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("classes", [2622, 7])
def test_vgg_face_has_the_input_of_caffe(classes: int, convolutions: bool) -> None:
    network = vgg_face(classes, convolutions=convolutions)
    found = read(network)
    spec = ensure_same(found, network).input
    assert (spec.px, spec.bgr, found.origins.normalize) == (224, True, CONVENTION)
    assert [round(255 * m, 4) for m in spec.mean] == [93.594, 104.7624, 129.1863]
    assert [round(255 * s, 4) for s in spec.std] == [1, 1, 1]


def test_names_of_caffe_with_the_classes_of_imagenet_have_imagenets_mean() -> None:
    found = read(vgg_face(1000))
    assert (found.input.bgr, [round(255 * m, 3) for m in found.input.mean]) == (
        True,
        [103.939, 116.779, 123.68],
    )


def test_names_of_caffe_with_grey_pictures_have_no_mean_of_colours() -> None:
    network = vgg_face(7)
    network.conv1_1 = nn.Conv2d(1, 8, 3, padding=1)
    found = read(network)
    assert (found.input.mean, found.input.bgr, found.origins.normalize) == ((0.0,), False, ASSUMED)


def test_the_convolutional_head_of_timm() -> None:
    with torch.device("meta"):
        network = timm_vgg.VGG(list(VGG11), num_classes=5)
    network.features = nn.Sequential(*features(VGG11))
    network.pre_logits = timm_vgg.ConvMlp(64, 48, 7)
    network.head.fc = nn.Linear(48, 5)
    alive(network)
    found = read(network)
    chain = ensure_same(found, network)
    assert (chain.family, chain.input.px, found.container) == (
        "vgg11",
        224,
        "a PyTorch state dict of a timm VGG",
    )
    assert found.network.names["fc1"] == "pre_logits.fc1"


def test_timms_own_full_width() -> None:
    with torch.device("meta"):
        network = timm.create_model("vgg11_bn", num_classes=5)
    state = {name: torch.zeros(1).expand(t.shape) for name, t in network.state_dict().items() if t.dim()}
    found = state_dicts.read(state)
    chain = Chain(found.input, found.network.layers, found.output)
    assert [site.layer.outputs for site in chain.linears] == [4096, 4096, 5]
    assert (chain.family, chain.units) == ("vgg11", 5)


def test_the_output_is_assumed_by_the_number_of_units() -> None:
    for units_, kind in ((1, outputs.SIGMOID), (2, outputs.SOFTMAX), (20, outputs.SOFTMAX)):
        found = read(small_torchvision_vgg("vgg11", False, units_))
        assert (found.output, found.origins.output) == (kind, ASSUMED)


def test_grey_pictures_are_values_of_0_to_1() -> None:
    found = read(OTHERS["grey pictures of 28 px"][0]())
    assert (found.input.channels, found.input.mean, found.input.std) == (1, (0.0,), (1.0,))
    assert found.assumed[-1] == "28 px, since 28 to 31 px fit (else --input-px)"


def test_global_pooling_is_said_to_be_assumed() -> None:
    found = read(OTHERS["global average pooling"][0]())
    assert (found.origins.px, found.input.px) == (ASSUMED, 224)
    assert found.assumed == (
        "global average pooling before the head, since it reads one value for each channel",
        "padding that keeps the size of the maps",
    )


def test_a_batch_norm_of_the_input_becomes_part_of_the_normalisation() -> None:
    network = OTHERS["a batch norm of the input"][0]()
    alive(network)
    found = read(network)
    module = modules.build(Chain(found.input, found.network.layers, found.output)).eval()
    module.load_state_dict(found.network.tensors)
    pixels = torch.rand(2, 3, 128, 128)

    def prepared(mean_: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        return (pixels - torch.tensor(mean_).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.inference_mode():
        expected = network(prepared(IMAGENET_MEAN, IMAGENET_STD))
        said = module(prepared(found.input.mean, found.input.std))
    assert (
        float((said - expected).abs().max() / expected.abs().max()) < 1e-2
    )  # zeros around differ at the rim


def small() -> nn.Sequential:
    return nn.Sequential(*features((8, "M", 16, "M")), nn.Flatten(), nn.Linear(16 * 64, 7))


def normed(old: bool, kind: str) -> nn.Module:
    """The small network with weights that are made of others."""
    network = small()
    table: dict[tuple[bool, str], Callable[[nn.Module], nn.Module]] = {
        (True, "weight"): utils.weight_norm,
        (False, "weight"): utils.parametrizations.weight_norm,
        (True, "spectral"): utils.spectral_norm,
        (False, "spectral"): utils.parametrizations.spectral_norm,
    }
    for k in (0, 3, 7):
        table[old, kind](network[k])
    network(torch.randn(2, 3, 32, 32))
    return network.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_normalised_weights_are_multiplied_out(old: bool, kind: str) -> None:
    network = normed(old, kind)
    assert not any(name == "0.weight" for name in network.state_dict())
    ensure_same(read(network), network)


def test_pruning_masks_are_multiplied_out() -> None:
    network = small()
    alive(network)
    prune.l1_unstructured(network[3], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    prune.random_structured(network[7], "weight", amount=0.3, dim=0)  # type: ignore[no-untyped-call]
    network(torch.randn(2, 3, 32, 32))
    assert {"3.weight_orig", "3.weight_mask"} <= network.state_dict().keys()
    found = read(network)
    ensure_same(found, network)
    assert int((found.network.tensors["conv2_1.weight"] == 0).sum()) == 16 * 8 * 9 // 2


@pytest.mark.parametrize(("prefix", "white"), [("", 1), ("model.", 255)])
def test_mean_and_std_beside_the_layers_are_the_normalisation(prefix: str, white: int) -> None:
    network = small_torchvision_vgg("vgg11", False)
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    mean_, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    found = state_dicts.read(
        {**state, f"{prefix}mean": white * mean_.view(1, 3, 1, 1), f"{prefix}std": white * std}
    )
    assert found.input.mean == pytest.approx((0.4, 0.5, 0.6))
    assert found.input.std == pytest.approx((0.1, 0.2, 0.3))
    assert found.origins.normalize == CONVENTION
    assert f"the normalisation of the input by {prefix}mean and {prefix}std in the file" in found.assumed
    assert len(found.network.tensors) == len(state)
    ones = torch.ones(1)
    assert "for each of the 3 channels: remove them" in refusal({**state, "mean": ones, "std": ones})
    assert "1 of 23 tensors do not fit: mean [3]" in refusal({**state, "mean": mean_})


def test_weights_of_a_loss_are_left_aside_and_said() -> None:
    state = small_torchvision_vgg("vgg11", False).state_dict()
    found = state_dicts.read({**state, "class_weights": torch.ones(7), "loss.pos_weight": torch.ones(7)})
    assert found.remarks == ("class_weights, loss.pos_weight (weights of a loss): left aside",)
    assert found.network.layers == state_dicts.read(state).network.layers
    assert "class_weights [7, 7]" in refusal({**state, "class_weights": torch.ones(7, 7)})


def refusal(tensors: dict[str, torch.Tensor]) -> str:
    with pytest.raises(CheckpointError) as error:
        state_dicts.read(tensors)
    return str(error.value)


def shapes_of(make: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    """The state of a network as large as it may be, without its memory."""
    with torch.device("meta"):
        network = make()
    return {name: torch.zeros(1).expand(t.shape) for name, t in network.state_dict().items() if t.dim()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (models.resnet18, "it looks like a ResNet or another residual network (layer1.0.conv1.weight"),
        (models.densenet121, "it looks like a DenseNet (features.denseblock1.denselayer1.norm1.weight [64])"),
        (models.squeezenet1_1, "it looks like a SqueezeNet (features.3.squeeze.weight [16, 64, 1, 1])"),
        (lambda: models.googlenet(init_weights=False), "it looks like an Inception network (inception3a"),
        (models.vit_b_16, "it looks like a transformer or a network with attention (encoder.pos_embedding"),
        (
            models.efficientnet_b0,
            "features.1.0.block.0.0 reads 1 (depthwise, as in MobileNet and EfficientNet",
        ),
        (models.mobilenet_v2, "features.1.conv.0.0 reads 1 (depthwise"),
        (models.convnext_tiny, "(a normalisation by each picture's own statistics, as LayerNorm"),
        (
            models.alexnet,
            "features.0 is a 11x11 convolution [64, 3, 11, 11], whose stride and padding tensors",
        ),
        (lambda: nn.ModuleDict({"c": nn.Conv2d(3, 8, 3), "l": nn.LSTM(8, 8)}), "a recurrent network"),
        (lambda: nn.Sequential(nn.Linear(8, 8)), "it has no convolution"),
        (lambda: nn.Sequential(nn.Conv1d(3, 8, 3)), "0.weight [8, 3, 3], 0.bias [8] (a convolution in 1 dim"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3)), "(a transposed convolution)"),
        (lambda: models.vgg11().features, "it holds the features only (8 convolutions, the last one 18)"),
        (
            lambda: nn.ModuleDict({"vgg": models.vgg11(), "second": nn.Linear(4096, 2)}),
            "vgg.classifier.6 gives 1000 features, and second reads 4096, so the layers form no chain",
        ),
        (
            lambda: nn.ModuleDict({"f": nn.Sequential(*features(VGG11)), "fc": nn.Linear(128, 2)}),
            "(as fastai's AdaptiveConcatPool2d, which has two paths)",
        ),
        (
            lambda: nn.ModuleDict({"f": nn.Sequential(*features(VGG11)), "fc": nn.Linear(64 * 3, 2)}),
            "fc reads 192 features, that is 3 for each of the 64 channels of f.18",
        ),
        (
            lambda: nn.ModuleDict({"f": nn.Sequential(*features(VGG11)), "fc": nn.Linear(100, 2)}),
            "f.18 gives 64 channels, and fc reads 100, no multiple",
        ),
        (lambda: small()[:3].append(nn.Conv2d(7, 8, 3)), "0 gives 8 channels, and 3 reads 7"),
        (
            lambda: nn.Sequential(*features((8,), channels=4), nn.Linear(8, 2)),
            "0 reads 4 channels; expected 3",
        ),
        (
            lambda: nn.ModuleDict({"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 24, 3), "c": nn.Linear(24, 2)}),
            "neither the names nor the widths of its 2 convolutions show where it pools",
        ),
        (
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
                *(nn.Flatten(), nn.Linear(16 * 64, 5)),
            ),
            "no room for a pool (0, 2: one layer between two convolutions, the activation), so the"
            " convolutions have strides",
        ),
        (
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1)),
                *(nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5)),
            ),
            "no room for a pool (0, 3: ",
        ),
        (lambda: nn.Sequential(*small()[:1], nn.PReLU(8), nn.Linear(8, 2)), "(a PReLU with a slope for each"),
        (
            lambda: nn.ModuleDict({"c": nn.Conv2d(3, 8, 3), "x": nn.BatchNorm2d(5), "fc": nn.Linear(8, 2)}),
            "it does not show which layers x follow",
        ),
    ],
)
def test_what_is_no_chain_is_refused_by_its_first_tensor(make: Callable[[], nn.Module], words: str) -> None:
    assert words in refusal(shapes_of(make))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base_model.features.0.lora_A.weight", "it looks like a network with LoRA adapters"),
        ("features.0.zero_point", "it looks like a quantized network"),
        ("layer1.0.conv1.weight", "it looks like a ResNet"),
        ("features.0.parametrizations.weight.original", "part of a parametrized weight of an unknown kind"),
        ("mean.extra", "1 of 19 tensors do not fit: mean.extra [2, 2]"),
    ],
)
def test_tensors_that_tell_of_something_else_are_refused(name: str, words: str) -> None:
    state = dict(small_torchvision_vgg("vgg11", False).state_dict())
    state.pop("features.0.weight")
    state.pop("features.0.bias")
    state.pop("features.3.bias")
    state.pop("features.3.weight")
    assert words in refusal({**state, name: torch.zeros(2, 2)})


def test_damaged_state_dicts_are_refused() -> None:
    state = dict(small_torchvision_vgg("vgg11", True).state_dict())
    lacking = {name: t for name, t in state.items() if name != "features.1.running_var"}
    assert "(a batch norm that lacks features.1.running_var)" in refusal(lacking)
    without = {name: t for name, t in state.items() if name != "features.0.weight"}
    assert "features.0.bias [16] (it lacks features.0.weight)" in refusal(without)
    negative = state | {"features.1.running_var": -state["features.1.running_var"]}
    assert "features.1.running_var has values below zero" in refusal(negative)
    nan = state | {"classifier.6.bias": torch.full((7,), float("nan"))}
    assert "classifier.6.bias holds values that are not finite" in refusal(nan)
    masks = {"0.weight_orig": torch.zeros(8, 3, 3, 3), "0.weight_mask": torch.zeros(8, 3, 3)}
    assert "the parts of 0.weight are [8, 3, 3, 3], [8, 3, 3], which do not make one weight" in refusal(masks)


def test_a_classifier_that_was_never_trained_is_no_training_gone_wrong() -> None:
    state = dict(small_torchvision_vgg("vgg11", False).state_dict())
    nan = {name: torch.full_like(t, torch.nan) for name, t in state.items() if name.startswith("classifier")}
    assert "every weight of the classifier is NaN: the file holds the features only" in refusal(state | nan)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("9" * 5000, "gives 8 channels"),
        ("\u00b2", "gives 8 channels"),
        ("a" + "9" * 5000, "gives 8 channels"),
    ],
)
def test_names_that_no_layer_has_are_no_traceback(name: str, words: str) -> None:
    state = {f"{k}.weight": torch.zeros(8, 3, 3, 3) for k in (name, "1")}
    assert words in refusal(state)
    with pytest.raises(CheckpointError):
        state_dicts.read(state, in_order=False)


def test_layers_without_numbers_are_no_traceback() -> None:
    for shape in ([0, 3, 3, 3], [8, 0, 3, 3]):
        state = {"0.weight": torch.zeros(shape), "1.weight": torch.zeros(2, 8)}
        assert f"1 of 2 tensors do not fit: 0.weight {shape}" in refusal(state)
    many = {f"{k}.weight": torch.zeros(2, 2) for k in range(2000)} | {"c.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(CheckpointError, match="no chain"):
        state_dicts.read(many, in_order=False)
    inside = {
        "c.weight": torch.zeros(8, 3, 3, 3),
        "f.weight": torch.ones(8, 8),
        "f.0.weight": torch.ones(2, 8),
    }
    assert len(state_dicts.read(inside).network.layers) == 6
