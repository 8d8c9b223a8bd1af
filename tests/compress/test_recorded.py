"""What the original computes is recorded once, and its forms are solved at every rank at once."""

from pathlib import Path

import pytest
import torch
from conftest import small_checkpoint
from networks import at_64_px, pictures

from vgg_export.compress import feature_maps, layers, least_squares, reconstruct, recorded, solved
from vgg_export.core.progress import Quiet
from vgg_export.network.chain import Conv, Factor


@pytest.fixture
def shown() -> feature_maps.Pictures:
    original = at_64_px(small_checkpoint())
    return feature_maps.Pictures(pictures(original, 20), pictures(original, 7, seed=1))


@pytest.mark.parametrize("kept_bytes", [10**9, 0], ids=["stored", "computed again"])
def test_the_outputs_of_every_layer_are_recorded_at_the_sampled_places(
    shown: feature_maps.Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(feature_maps, "KEPT_BYTES", kept_bytes)
    original = at_64_px(small_checkpoint())
    chain = original.chain
    found = recorded.record(original, shown, chain.sites[0].name, tmp_path / "kept", tmp_path, Quiet())
    assert found.counts == (20, 7)
    x = torch.cat([shown.fit, shown.held])
    for site in chain.sites:
        weigh, rest, _ = feature_maps.halves(chain, site.name, original.tensors)
        y = weigh(x)
        wanted = y
        if isinstance(site.layer, Conv):
            places = found.places(site)
            rows, columns = places // site.outputs[2], places % site.outputs[2]
            wanted = y[torch.arange(27)[:, None], :, rows, columns]
        torch.testing.assert_close(found.said(site.name), wanted, rtol=1e-4, atol=1e-5)
        x = rest(y)


def test_a_finished_record_is_not_made_again(
    shown: feature_maps.Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = at_64_px(small_checkpoint())
    first, kept = original.chain.sites[0].name, tmp_path / "kept"
    once = recorded.record(original, shown, first, kept, tmp_path, Quiet())
    walked: list[str] = []
    monkeypatch.setattr(recorded, "_record", lambda site, *_: walked.append(site.name))
    again = recorded.record(original, shown, first, kept, tmp_path, Quiet())
    assert not walked
    assert torch.equal(again.said("conv2_1"), once.said("conv2_1"))
    (kept / "conv2_1.npy").unlink()
    recorded.record(original, shown, first, kept, tmp_path, Quiet())
    assert walked == [site.name for site in original.chain.sites]


def test_the_places_grow_with_the_inputs_of_a_layer_and_are_spread_over_the_pictures() -> None:
    chain = small_checkpoint().chain
    narrow, wide = chain.site("conv1_1"), chain.site("conv3_1")
    least = recorded.places_of(narrow, (100, 10))
    assert least.shape == (110, recorded.LEAST_PLACES // 100)
    assert all(len(set(row.tolist())) == len(row) for row in least)
    inputs = wide.channels * 9
    many = recorded.places_of(wide, (1, 1))
    area = wide.outputs[1] * wide.outputs[2]
    assert many.shape == (
        2,
        min(area, max(recorded.LEAST_PLACES, recorded.PLACES_PER_INPUT * inputs)),
    )


def test_the_forms_cut_to_a_rank_are_those_of_the_layer_by_itself(
    shown: feature_maps.Pictures, tmp_path: Path
) -> None:
    original = at_64_px(small_checkpoint())
    chain, name = original.chain, "conv2_1"
    solving = solved.Solving(original, 20)
    recorded.record(original, shown, chain.sites[0].name, tmp_path / "kept", tmp_path, Quiet(), solving.watch)
    made = solving.solved()
    solved.write(tmp_path / "forms.safetensors", made)
    read = solved.read(tmp_path / "forms.safetensors", made.shares)
    site = chain.site(name)
    assert isinstance(site.layer, Conv)
    maps = feature_maps.begun(chain, shown.fit, original.tensors, tmp_path)
    for before in [s.name for s in chain.sites][: [s.name for s in chain.sites].index(name)]:
        maps.advance(*feature_maps.forward(chain, before, original.tensors))
    seen = maps.read(0, 20)
    places = recorded.places_of(site, (20, 7))[:20]
    sums = least_squares.Sums(site.channels * 9, 1)
    rows = feature_maps.patches(seen, places, site.layer)
    sums.add(rows, rows[:, :1])
    moments = sums.moments()
    weight, bias = (original.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
    said = layers.weighted(layers.whole(site), seen, weight, bias)
    said = recorded.at_places(said, places).reshape(len(rows), -1)
    for kind in ("channel", "spatial"):
        _, wanted = reconstruct.in_two(name, weight.double(), moments.xx, Factor(kind, 4))
        part = read.factors(site, Factor(kind, 4), weight)
        network = read.unfitted(original, chain.with_factors({name: Factor(kind, 4)}))
        ours = feature_maps.begun(network.chain, seen, {}, tmp_path)
        weigh, *_ = feature_maps.halves(network.chain, name, network.tensors)
        found = recorded.at_places(weigh(ours.read(0, 20)), places).reshape(len(rows), -1)
        # as good as the fit of that layer by itself, with a bias for the mean
        centred = (rows.double() - moments.mean_x) @ wanted.T + said.double().mean(0)
        torch.testing.assert_close(found.double(), centred, rtol=1e-2, atol=1e-3)
        missed = float((said - found).square().sum() / (said - said.mean(0)).square().sum())
        assert missed == pytest.approx(1 - made.shares[name][kind][3], rel=0.02, abs=1e-4)
        assert part[f"{name}_reduce.weight"].shape[0] == 4
    assert (tmp_path / "forms.safetensors").stat().st_size == pytest.approx(solved.disk_bytes(chain), rel=0.1)
