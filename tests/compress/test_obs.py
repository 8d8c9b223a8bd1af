"""The cost of a channel against the refit that it stands for, and what it sees that a norm does not."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_checkpoint
from networks import at_64_px, awake

from vgg_export.compress import allocate, feature_maps, least_squares, obs, prune
from vgg_export.core.progress import Quiet
from vgg_export.network import chain
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import PruneOptions
from vgg_runtime.bundle.input_spec import for_input

CHAIN = chain.Chain(
    for_input(64),
    tuple(
        layer
        for layer in chain.vgg_layers(((64,), (64,), (64, 64), (64, 64), (64, 64)), (8, 8, 4))
        if not isinstance(layer, chain.AdaptiveAvgPool)
    ),
)


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def refit_error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean squared error of the best linear map from x to y, both centred."""
    x, y = x - x.mean(0), y - y.mean(0)
    solution = torch.linalg.lstsq(x, y).solution
    return float((y - x @ solution).square().sum() / len(x))


def test_the_cost_is_what_the_refit_without_the_channels_loses() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 10, generator=generator, dtype=torch.float64).relu() @ mixed + 2
    weight = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    y = x @ weight.T
    sums = least_squares.Sums(10, 6)
    sums.add(x, y)
    moments = sums.moments()
    found = obs.removal(moments.xx, obs.gram(weight, 10), 0.0)
    assert sorted(found.order.tolist()) == list(range(10))
    for k in range(1, 10):
        left = found.order[k:]
        assert found.costs[k] * moments.yy == pytest.approx(
            refit_error(x[:, left], y), rel=1e-9, abs=1e-9 * moments.yy
        )
    assert found.costs[0] == 0
    assert found.costs[10] == pytest.approx(1, rel=1e-9)
    # and each step is the cheapest that there was
    for k in range(9):
        rest = found.order[k:].tolist()
        each = {c: refit_error(x[:, [d for d in rest if d != c]], y) for c in rest}
        assert min(each, key=each.__getitem__) == int(found.order[k])


def test_the_weights_that_read_a_channel_are_all_its_taps_and_positions() -> None:
    conv, linear = torch.randn(5, 4, 3, 3), torch.randn(7, 4 * 6)
    for weight, columns in ((conv, conv.flatten(2)), (linear, linear.view(7, 4, 6))):
        expected = torch.einsum("nct,ndt->cd", columns.double(), columns.double())
        assert torch.allclose(obs.gram(weight, 4), expected)


def test_the_covariance_is_that_of_what_the_consumer_reads(tmp_path: Path) -> None:
    original, x = at_64_px(small_checkpoint()), pictures(11)
    with torch.inference_mode():
        network, maps = original.model(), feature_maps.Maps(x, tmp_path)
        for site in original.chain.convs:
            maps.advance(*feature_maps.forward(original.chain, site.name, original.tensors))
        flatten = next(k for k, layer in enumerate(network) if isinstance(layer, torch.nn.Flatten))
        features = network[:flatten](x)
    rows = features.transpose(0, 1).flatten(1).double()
    # from products in float32: off by up to 2e-6 of the largest in six networks
    expected = torch.cov(rows, correction=0)
    assert torch.allclose(
        obs._covariance(maps, 11, len(rows)), expected, rtol=1e-4, atol=1e-5 * float(expected.max())
    )


def kept_of(original: checkpoints.Checkpoint, criterion: str, scratch: Path) -> list[int]:
    """The filters of conv4_1 that are kept when 4 of the 32 go."""
    options = PruneOptions(1 / 8, 4, criterion, multiple=1)
    measured = obs.removals(original, pictures(12), scratch, Quiet()) if criterion == "obs" else None
    return prune.prune(original, options, measured)[1]["conv4_1"].tolist()


def test_a_large_filter_that_another_repeats_goes_before_a_small_one_that_is_missed(tmp_path: Path) -> None:
    original = awake(at_64_px(small_checkpoint()), "conv4_1", pictures(12))
    for part in ("weight", "bias"):
        tensor = original.tensors[f"conv4_1.{part}"]
        tensor[9] *= 3
        tensor[5] = tensor[9]
        tensor[20] *= 0.8  # the smallest
    original.tensors["conv4_2.weight"][:, 20] *= 5  # but much is made of it
    large = kept_of(original, "l2", tmp_path)
    missed = kept_of(original, "obs", tmp_path)
    assert {5, 9} <= set(large)
    assert 20 not in large
    assert len({5, 9} & set(missed)) == 1
    assert 20 in missed


def test_a_large_filter_that_nothing_reads_goes_first(tmp_path: Path) -> None:
    original = at_64_px(small_checkpoint())
    original.tensors["conv4_1.weight"][7] *= 3
    original.tensors["conv4_2.weight"][:, 7] = 0
    assert 7 in kept_of(original, "l2", tmp_path)
    assert 7 not in kept_of(original, "obs", tmp_path)


def repeated(original: checkpoints.Checkpoint, layer: str) -> None:
    """Half of a layer's filters say what the other half says."""
    for part in ("weight", "bias"):
        tensor = original.tensors[f"{layer}.{part}"]
        tensor[len(tensor) // 2 :] = tensor[: len(tensor) // 2]


@pytest.mark.release
@pytest.mark.parametrize(("layer", "share"), [("conv3_1", 0.3), ("conv4_2", 1.0), ("conv5_2", 1.1)])
def test_a_layer_made_redundant_loses_more_filters(layer: str, share: float, tmp_path: Path) -> None:
    """``share``: of what uniform widths lose. Eight drawn networks lose 0.02 to 0.10, 0.62 to 0.85 and 0.74
    to 0.96 of it: the deeper the layer, the less arithmetic its filters save for others."""
    options = PruneOptions(0.25, 3, "obs", allocation="sensitivity", multiple=4)
    plain, original = at_64_px(small_checkpoint()), at_64_px(small_checkpoint())
    repeated(original, layer)
    before = prune.prune(plain, options, obs.removals(plain, pictures(12), tmp_path, Quiet()))[0].chain
    measured = obs.removals(original, pictures(12), tmp_path, Quiet())
    assert measured[layer].costs[16] < 2e-3
    pruned, kept = prune.prune(original, options, measured)
    widths = {site.name: site.layer.outputs for site in pruned.chain.convs}
    assert widths[layer] <= 24  # 12 to 24, and 20 to 32 where nothing is repeated
    assert widths[layer] < before.site(layer).layer.outputs
    assert pruned.chain.widths()[:2] == original.chain.widths()[:2]
    assert all(n % 4 == 0 for n in widths.values())
    uniform = prune.uniform_widths(original.chain, options)
    assert pruned.chain.macs() <= uniform.macs()
    lost, uniformly = (
        sum(measured[site.name].costs[-1 - site.layer.outputs] for site in one.convs)
        for one in (pruned.chain, uniform)
    )
    assert lost < share * uniformly
    prune.ensure_same_as_masked(original, pruned, kept)


def curves(seed: int) -> dict[str, dict[int, float]]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for site in CHAIN.convs:
        name, n = site.name, site.layer.outputs
        steep = float(torch.rand(1, generator=generator)) * 4 + 0.5
        bumps = torch.rand(4, generator=generator).mul(0.1).cumsum(0).flip(0)
        found[name] = {
            w: ((n - w) / n) ** steep + (float(bumps[w // 16 - 1]) if w < n else 0)
            for w in range(16, n + 1, 16)
        }
    return found


def test_the_widths_are_near_the_best_of_all_within_the_bound() -> None:
    """The widths are compared with all combinations. Of 200 drawn tables three in four are solved optimally,
    one in 20 loses 6 % more and the worst 25 %; equal widths lose at least 86 % more."""
    names, bound = [site.name for site in CHAIN.convs], CHAIN.macs() // 3
    combinations = np.array(
        [widths for widths in itertools.product((16, 32, 48, 64), repeat=len(names)) if macs(widths) <= bound]
    )
    excess = []
    for seed in range(20):
        offered = curves(seed)
        chosen = allocate.widths(CHAIN, offered, bound)
        assert CHAIN.with_widths(chosen).macs() <= bound
        losses = [
            np.array([offered[name][16 * k] for k in range(1, 5)])[combinations[:, j] // 16 - 1]
            for j, name in enumerate(names)
        ]
        excess.append(sum(offered[name][w] for name, w in chosen.items()) / float(np.sum(losses, 0).min()))
    assert np.median(excess) < 1.03
    assert max(excess) < 1.4


def macs(widths: tuple[int, ...]) -> int:
    """The arithmetic of CHAIN with other widths; this is quicker than making a chain."""
    sides = (64, 32, 16, 16, 8, 8, 4, 4)
    convs = sum(9 * c * n * side**2 for c, n, side in zip((3, *widths), widths, sides, strict=False))
    return convs + widths[-1] * 4 * 8 + 8 * 8 + 8 * 4


def test_the_arithmetic_of_these_tests_is_the_chains() -> None:
    for widths in ((64,) * 8, (16, 32, 48, 64, 16, 32, 48, 64)):
        names = [site.name for site in CHAIN.convs]
        assert macs(widths) == CHAIN.with_widths(dict(zip(names, widths, strict=True))).macs()


def test_no_bound_removes_nothing_and_one_that_cannot_be_met_everything_that_may_go() -> None:
    offered = curves(0)
    assert set(allocate.widths(CHAIN, offered, CHAIN.macs()).values()) == {64}
    assert set(allocate.widths(CHAIN, offered, 0).values()) == {16}
    assert CHAIN.with_widths({}) == CHAIN


def test_the_hull_leaves_out_what_a_step_over_it_beats() -> None:
    points = [allocate.Point(size, loss, size) for size, loss in ((40, 0.0), (30, 0.5), (20, 0.6), (10, 2.0))]
    assert [p.size for p in allocate.hull(points)] == [40, 20, 10]


def test_noise_gives_costs_too(tmp_path: Path) -> None:
    original = at_64_px(small_checkpoint())
    measured = obs.removals(original, feature_maps.noise(5, for_input(64), 0).fit, tmp_path, Quiet())
    for site, (name, removal) in zip(original.chain.convs, measured.items(), strict=True):
        n = site.layer.outputs
        assert len(removal.order) == n, name
        assert all(a <= b for a, b in itertools.pairwise(removal.costs))
        assert removal.at_widths(16)[n] == 0
    assert dataclasses.is_dataclass(measured["conv1_1"])
    assert list(tmp_path.iterdir()) == []
