"""The spatial form of a convolution against the definitions: what is exact, what is a least-squares solution,
what a rank keeps."""

import pytest
import torch

from vgg_export.compress import feature_maps, least_squares, separable
from vgg_export.core.errors import CheckFailedError
from vgg_export.network.chain import Conv

N, C = 10, 4


def patches(samples: int, seed: int = 0) -> torch.Tensor:
    """Patches [samples, 9 C] of maps whose places and channels have something in common."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(samples, C, 5, 5, generator=generator).cumsum(3).cumsum(1)
    return feature_maps.patches(maps, torch.full((samples, 1), 12), Conv("c", N))


def moments(x: torch.Tensor, y: torch.Tensor) -> least_squares.Moments:
    sums = least_squares.Sums(x.shape[1], y.shape[1])
    sums.add(x, y)
    return sums.moments()


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(N, C, 3, 3, generator=torch.Generator().manual_seed(5)).double()


def test_the_two_convolutions_are_the_joined_one(weight: torch.Tensor) -> None:
    made = separable.separate(weight, moments(patches(400), torch.zeros(400, 1)).xx, 5)
    vertical, horizontal = made.vertical, made.horizontal()
    x = torch.randn(2, C, 8, 8).double()
    between = torch.nn.functional.conv2d(x, vertical[..., None], padding=(1, 0))
    out = torch.nn.functional.conv2d(between, horizontal[:, :, None], padding=(0, 1))
    assert torch.allclose(
        out, torch.nn.functional.conv2d(x, separable.joined(vertical, horizontal), padding=1), atol=1e-10
    )


def test_at_full_rank_nothing_changes(weight: torch.Tensor) -> None:
    full = 3 * C
    made = separable.separate(weight, moments(patches(2000), torch.zeros(2000, 1)).xx, full)
    assert torch.allclose(separable.joined(made.vertical, made.horizontal()), weight, atol=1e-3)
    assert made.shares()[-1] == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(separable.joined(*separable.by_weights(weight, full)), weight, atol=1e-8)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (7, 2), (2, 3)])
def test_other_kernels_strides_and_paddings_come_apart_too(height: int, width: int) -> None:
    conv = Conv("c", N, (height, width), (2, 3), (1, 2, 0, 1))
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(N, C, height, width, generator=generator).double()
    maps = torch.randn(60, C, 12, 13, generator=generator)
    area = conv.shape_behind((C, 12, 13))[1] * conv.shape_behind((C, 12, 13))[2]
    seen = feature_maps.patches(maps, torch.arange(area).expand(60, area), conv)
    xx = moments(seen, seen[:, :1]).xx
    full = min(height * C, width * N)
    made = separable.separate(weight, xx, full)
    assert made.vertical.shape == (full, C, height)
    vertical, horizontal = made.vertical, made.horizontal()
    assert horizontal.shape == (N, full, width)
    assert torch.allclose(separable.joined(vertical, horizontal), weight, atol=1e-3)
    assert made.shares()[-1] == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(separable.joined(*separable.by_weights(weight, full)), weight, atol=1e-8)
    few = separable.separate(weight, xx, 3)
    vertical, horizontal = few.vertical, few.horizontal()
    x = torch.nn.functional.pad(maps.double(), (2, 1, 1, 0))
    between = torch.nn.functional.conv2d(x, vertical[..., None], stride=(2, 1))
    out = torch.nn.functional.conv2d(between, horizontal[:, :, None], stride=(1, 3))
    whole = torch.nn.functional.conv2d(x, separable.joined(vertical, horizontal), stride=(2, 3))
    assert torch.allclose(out, whole, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_horizontal_filters_are_the_least_squares_solution_and_the_share_is_what_is_measured(
    rank: int, weight: torch.Tensor
) -> None:
    x = patches(3000).double()
    x = x - x.mean(0)
    y = x @ weight.flatten(1).T
    made = separable.separate(weight, moments(x.float(), y.float()).xx, 8)
    vertical = made.vertical[:rank]
    seen = torch.einsum("mcvh,rcv->mrh", x.view(-1, C, 3, 3), vertical).flatten(1)
    reference = torch.linalg.lstsq(seen, y).solution.T.reshape(N, rank, 3)
    found = separable.separate(weight, moments(x.float(), y.float()).xx, rank).horizontal()
    assert torch.allclose(found, reference, rtol=1e-2, atol=1e-2)
    left = float((y - seen @ reference.flatten(1).T).square().sum() / y.square().sum())
    assert 1 - made.shares()[rank - 1] == pytest.approx(left, rel=2e-2, abs=1e-5)


def test_the_inputs_decide_what_is_kept(weight: torch.Tensor) -> None:
    """It loses less on such inputs than what the weights alone give, and nothing where the inputs have few
    directions."""
    x, other = patches(3000), patches(1000, seed=1)
    y, said = (a @ weight.float().flatten(1).T for a in (x, other))
    fitting, held = moments(x, y), moments(other, said)
    made = separable.separate(weight, fitting.xx, 4)
    aware = held.error(separable.joined(made.vertical, made.horizontal()).flatten(1))
    assert aware < 0.8 * held.error(separable.joined(*separable.by_weights(weight, 4)).flatten(1))
    x[:, 18:] = 0  # two of four channels say nothing
    few = separable.separate(weight, moments(x, y).xx, 6)
    assert few.shares()[-1] == pytest.approx(1.0, abs=1e-4)


def test_rounding_does_not_stop_it_and_nonsense_does() -> None:
    """Inputs that vary a thousandth of their mean leave second moments that are not quite positive."""
    x = torch.eye(6).double()
    x[5, 5] = -1e-7
    root = separable.cholesky(x)
    assert torch.allclose(root @ root.T, x, atol=1e-4)
    with pytest.raises(CheckFailedError, match="not positive"):
        separable.cholesky(-x)
