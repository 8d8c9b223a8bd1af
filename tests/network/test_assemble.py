"""Layers in the orders that people have them become the chain that computes the same."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from vgg_export.core.errors import CheckpointError
from vgg_export.network import assemble, modules
from vgg_export.network.assemble import Assembled, Assembly
from vgg_export.network.chain import Activate, AdaptiveAvgPool, Chain, Conv, Linear, MaxPool, Scale
from vgg_runtime.bundle.input_spec import InputSpec

PX = 16


def drawn(network: nn.Sequential) -> nn.Sequential:
    torch.manual_seed(0)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return network.eval()


def seen(network: Sequence[nn.Module], channels: int = 3) -> Assembled:
    """What a reader of a plain sequence says."""
    made = Assembly(channels)
    for k, layer in enumerate(network):
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d):
            _weighted(made, f"l{k}", layer)
        elif not isinstance(layer, nn.Dropout):
            _other(made, layer)
    return made.finish()


def _weighted(made: Assembly, name: str, layer: nn.Module) -> None:
    match layer:
        case nn.Conv2d(padding=(int(rows), int(columns))):
            padding = (rows, columns, rows, columns)
            made.conv(name, layer.weight.data, _data(layer.bias), padding=padding)
        case nn.Linear():
            made.linear(name, layer.weight.data, _data(layer.bias))
        case (
            nn.BatchNorm2d(running_mean=mean, running_var=variance)
            | nn.BatchNorm1d(running_mean=mean, running_var=variance)
        ):
            assert mean is not None
            assert variance is not None
            gamma, beta = layer.weight.data, layer.bias.data
            folded = modules.scale_and_shift(gamma=gamma, beta=beta, mean=mean, variance=variance)
            made.norm(name, *folded)


def _other(made: Assembly, layer: nn.Module) -> None:
    match layer:
        case nn.MaxPool2d(kernel_size=int(size)):
            made.max_pool((size, size), (size, size))
        case nn.AvgPool2d(kernel_size=int(size)):
            made.avg_pool((size, size), (size, size))
        case nn.AdaptiveAvgPool2d():
            made.adaptive_avg_pool((1, 1))
        case nn.ZeroPad2d(padding=(left, right, top, bottom)):
            made.pad((top, left, bottom, right))
        case nn.Flatten():
            made.flatten()
        case nn.LeakyReLU():
            made.activation(f"leaky_relu({layer.negative_slope})")
        case _:
            made.activation(type(layer).__name__.lower())


def _data(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.data


def ensure_same(network: nn.Sequential, found: Assembled, px: int = PX) -> Chain:
    spec = InputSpec(px, px, (0.0,) * found.channels, (1.0,) * found.channels, found.channels)
    units = next(layer for layer in reversed(found.layers) if isinstance(layer, Conv | Linear)).outputs
    chain = Chain(spec, found.layers, "sigmoid" if units == 1 else found.output or "softmax")
    rebuilt = modules.build(chain)
    rebuilt.load_state_dict(found.tensors)
    x = torch.randn(4, found.channels, px, px)
    with torch.inference_mode():
        expected, logits = network(x), rebuilt.eval()(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    return chain


@pytest.mark.parametrize("norms", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_of_the_flattened_maps_is_folded(norms: int, bias: bool) -> None:
    layers = [conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *(nn.BatchNorm1d(256),) * norms]
    network = drawn(nn.Sequential(*layers, nn.Dropout(), nn.Linear(256, 3, bias=bias)))
    chain = ensure_same(network, seen(list(network)))
    assert not any(isinstance(layer, Scale) for layer in chain.layers)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.ReLU(), nn.Linear(256, 3)], "l2, a batch norm of the flattened maps, stands before the activ"),
        ([], "stands before the end; expected the fully connected layer"),
        ([nn.Linear(1024, 3)], "l3 reads 1024 features; expected 256, the number that l2 before it has"),
        ([nn.BatchNorm1d(128)], "l3 has 128 features; expected 256"),
    ],
)
def test_batch_norm_of_the_flattened_maps_needs_its_layer(layers: list[nn.Module], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        seen([conv(3, 4), nn.Flatten(), nn.BatchNorm1d(256), *layers])


def conv(c: int, n: int, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c, n, 3, padding=padding)


SAME: dict[str, tuple[Callable[[], list[nn.Module]], int, int]] = {
    # how it is arranged, the number of scales that stay, the number of activations that are layers
    "batch norm before the activation": (
        lambda: [conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 3)],
        0,
        0,
    ),
    "batch norm behind the activation, before a padded convolution": (
        lambda: [
            conv(3, 4),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            conv(4, 5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1280, 3),
        ],
        1,
        0,
    ),
    "batch norm behind the activation, before an unpadded convolution": (
        lambda: [conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4), conv(4, 5, 0), nn.Flatten(), nn.Linear(980, 3)],
        0,
        0,
    ),
    "batch norm behind pool and activation, before the head": (
        lambda: [
            conv(3, 4),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.MaxPool2d(2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 3),
        ],
        0,
        0,
    ),
    "pool before batch norm and activation": (
        lambda: [conv(3, 4), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)],
        0,
        0,
    ),
    "pool before a rising activation": (
        lambda: [conv(3, 4), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(256, 3)],
        0,
        0,
    ),
    "pool before an activation that also falls": (
        lambda: [conv(3, 4), nn.MaxPool2d(2), nn.SiLU(), nn.Flatten(), nn.Linear(256, 3)],
        0,
        1,
    ),
    "average pool before the activation": (
        lambda: [conv(3, 4), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)],
        0,
        1,
    ),
    "batch norm of features behind an activation that is a layer": (
        lambda: [
            conv(3, 4),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.ReLU(),
            nn.BatchNorm1d(256),
            nn.Linear(256, 3),
        ],
        0,
        1,
    ),
    "activation behind the flattening, and twice": (
        lambda: [conv(3, 4), nn.ReLU(), nn.Flatten(), nn.ReLU(), nn.Linear(1024, 3)],
        0,
        0,
    ),
    "batch norm in the head": (
        lambda: [
            conv(3, 4),
            nn.Flatten(),
            nn.Linear(1024, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(6, 3),
        ],
        0,
        0,
    ),
    "batch norm behind an activation of the head": (
        lambda: [
            conv(3, 4),
            nn.Flatten(),
            nn.Linear(1024, 6),
            nn.LeakyReLU(0.3),
            nn.BatchNorm1d(6),
            nn.Linear(6, 3),
        ],
        0,
        0,
    ),
    "an activation behind the last layer": (
        lambda: [conv(3, 4), nn.Flatten(), nn.Linear(1024, 3), nn.Tanh()],
        0,
        1,
    ),
    "global pooling and one linear layer": (
        lambda: [conv(3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)],
        0,
        0,
    ),
    "convolutions alone and global pooling": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        0,
        0,
    ),
    "a zero padding of its own, uneven": (
        lambda: [
            nn.ZeroPad2d((1, 2, 0, 3)),
            conv(3, 4, 0),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(17 * 17 * 4, 3),
        ],
        0,
        0,
    ),
}


@pytest.mark.parametrize("arranged", SAME)
def test_the_chain_computes_the_same(arranged: str) -> None:
    make, scales, activations = SAME[arranged]
    network = drawn(nn.Sequential(*make()))
    found = seen(list(network))
    ensure_same(network, found)
    assert sum(isinstance(layer, Scale) for layer in found.layers) == scales
    assert sum(isinstance(layer, Activate) for layer in found.layers) == activations


def test_a_negative_factor_does_not_pass_a_max_pool() -> None:
    network = drawn(
        nn.Sequential(
            conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 3)
        )
    )
    network[2].get_parameter("weight").data[1] = -1.0
    found = seen(list(network))
    assert [type(layer) for layer in found.layers[:3]] == [Conv, Scale, MaxPool]
    ensure_same(network, found)


def test_a_flattening_with_the_channels_last_is_brought_into_our_order() -> None:
    weight = torch.randn(3, 4 * 4 * 5)  # of a map of 4 x 4 x 5 channels, as Keras flattens it
    made = Assembly(3)
    kernel = torch.randn(5, 3, 1, 1)
    made.conv("a", kernel)
    made.flatten(channels_last=True)
    made.linear("b", weight)
    found = made.finish()
    x = torch.randn(2, 3, 4, 4)
    theirs = nn.functional.conv2d(x, kernel).permute(0, 2, 3, 1).flatten(1) @ weight.T
    rebuilt = modules.build(Chain(InputSpec(4, 4), found.layers))
    rebuilt.load_state_dict(found.tensors)
    torch.testing.assert_close(rebuilt(x), theirs)


def test_what_the_file_does_to_its_input_is_the_mean_and_the_deviation() -> None:
    made = Assembly(3)
    made.norm("to 0..1", torch.full((3,), 1 / 255).double(), torch.zeros(3).double())
    made.reverse_channels()
    made.norm("less", torch.tensor([2.0, 4.0, 5.0]).double(), torch.tensor([-0.5, -1.0, 0.0]).double())
    made.linear("a", torch.randn(2, 3 * 4))
    found = made.finish()
    mean, std = assemble.input_affine(found, 255.0)
    assert found.reversed
    assert mean == pytest.approx((0.25, 0.25, 0.0))
    assert std == pytest.approx((0.5, 0.25, 0.2))


@pytest.mark.parametrize(
    ("last", "units", "output"),
    [("sigmoid", 1, "sigmoid"), ("sigmoid", 4, "multi-label"), ("softmax", 4, "softmax"), ("none", 4, None)],
)
def test_what_follows_the_logits_says_what_they_mean(last: str, units: int, output: str | None) -> None:
    made = Assembly(3)
    made.linear("a", torch.randn(units, 3))
    made.activation(last)
    found = made.finish()
    assert found.output == output
    assert found.layers[-1] == Linear("fc1", units, "none")


def test_the_input_sizes_that_fit_are_found() -> None:
    network = drawn(
        nn.Sequential(
            conv(3, 4), nn.MaxPool2d(2), conv(4, 4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 36, 3)
        )
    )
    found = seen(list(network))
    assert found.sizes() == range(24, 28)
    assert found.columns == 144
    pooled = found.pooled_to((6, 6))
    assert AdaptiveAvgPool((6, 6)) in pooled.layers
    assert pooled.sizes() == range(4, 1025)


def test_what_is_no_chain_is_refused() -> None:
    made = Assembly(3)
    made.conv("first", torch.randn(4, 3, 3, 3))
    with pytest.raises(
        CheckpointError, match=r"second is \[4, 5, 3, 3\]; expected 4 dimensions and 4 inputs"
    ):
        made.conv("second", torch.randn(4, 5, 3, 3))
    with pytest.raises(CheckpointError, match="second is a convolution with 4 groups; expected one group"):
        made.conv("second", torch.randn(4, 1, 3, 3), groups=4)
    with pytest.raises(CheckpointError, match=r"second is a convolution with dilation \(2, 2\)"):
        made.conv("second", torch.randn(4, 4, 3, 3), dilation=(2, 2))
    with pytest.raises(CheckpointError, match="first is used twice"):
        made.conv("first", torch.randn(4, 4, 3, 3))
    with pytest.raises(CheckpointError, match="norm has 3 channels; expected 4"):
        made.norm("norm", torch.ones(3).double(), torch.zeros(3).double())
    with pytest.raises(CheckpointError, match="multiple of the 4 channels before it"):
        made.linear("head", torch.randn(2, 7))
    made.activation("softmax")
    with pytest.raises(CheckpointError, match="head follows the softmax; expected the logits before it"):
        made.linear("head", torch.randn(2, 8))
    with pytest.raises(CheckpointError, match="has no convolution and no fully connected layer"):
        Assembly(3).finish()
