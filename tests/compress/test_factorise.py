"""Ranks from a sensitivity table, and a factorised VGG through every later stage without special cases."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import small_checkpoint
from networks import undecided

from vgg_export.compress import distil, factorise, least_squares, prune, solved
from vgg_export.core import cache
from vgg_export.core.errors import CheckpointError, DataError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data import tensors
from vgg_export.data.splits import Splits, fit_and_held
from vgg_export.graphs import export
from vgg_export.int8 import quantize
from vgg_export.network import chain, input_size
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import FactoriseOptions, FinetuneOptions, PruneOptions, QuantizeOptions
from vgg_runtime.bundle.input_spec import for_input

OPTIONS = FactoriseOptions(conv_share=0.7, fc_ranks=(16, 8), multiple=4, images=30, held_images=10)


@pytest.fixture(scope="module")
def made(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[cache.Artifact, cache.Artifact]:
    """(original, factorised): checkpoint files."""
    folder = tmp_path_factory.mktemp("factorised")
    checkpoints.save(small_checkpoint(), folder / "original.safetensors")
    original = cache.of(folder / "original.safetensors")
    return original, factorise.run(original, splits, folder / "compact.safetensors", OPTIONS, Quiet())


def test_the_arithmetic_of_a_factorised_chain_by_hand() -> None:
    whole = chain.full_width("vgg11")
    factors = {"conv3_1": chain.Factor("channel", 64), "fc1": chain.Factor("linear", 256)}
    compact = whole.with_factors(factors)
    assert whole.macs() - compact.macs() == (
        9 * 128 * 256 - 64 * (9 * 128 + 256)
    ) * 56**2 + 25088 * 4096 - 256 * (25088 + 4096)
    assert whole.parameters() - compact.parameters() == 9 * 128 * 256 - 64 * (
        9 * 128 + 256
    ) + 25088 * 4096 - 256 * (25088 + 4096)
    assert chain.Chain.from_json(json.loads(json.dumps(compact.to_json()))) == compact
    shapes = compact.tensor_shapes()
    assert shapes["conv3_1_reduce.weight"] == (64, 128, 3, 3)
    assert shapes["conv3_1_expand.weight"] == (256, 64, 1, 1)
    assert "conv3_1_reduce.bias" not in shapes


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({"fc1": chain.Factor("channel", 4)}, "is no factorisation of fc1"),
        ({"conv3_1": chain.Factor("linear", 4)}, "is no factorisation of conv3_1"),
        ({"conv3_1": chain.Factor("channel", 0)}, "expected a rank and one of"),
    ],
)
def test_a_chain_with_impossible_factors_is_refused(factors: dict[str, chain.Factor], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        chain.full_width("vgg11").with_factors(factors)


def test_the_chosen_forms_and_ranks_are_the_best_within_the_bound() -> None:
    """Against all combinations: nothing with as little arithmetic keeps a larger product of variances."""
    network = chain.Chain(
        for_input(224), chain.vgg_layers(((16,), (16,), (16, 16), (16, 16), (16, 16)), (8, 8, 4))
    )
    generator = torch.Generator().manual_seed(1)

    def shares(fall: float) -> tuple[float, ...]:
        values = torch.exp(-fall * torch.arange(16.0)) + 0.01 * torch.rand(16, generator=generator)
        return tuple((values.sort(descending=True).values.cumsum(0) / values.sum()).tolist())

    names = [site.name for site in network.convs]
    table = {
        name: {"channel": shares(2 - 0.25 * k), "spatial": shares(0.05 + 0.1 * k)}
        for k, name in enumerate(names)
    }
    options = FactoriseOptions(conv_share=0.5, fc_ranks=(1, 1), multiple=5)
    chosen = factorise.choose_ranks(network, table, options)
    whole = {part.name: part.macs() for part in network.parts()}
    bound = 0.5 * sum(whole[name] for name in names)
    offers = [
        [(whole[name], 0.0, None), *factorise._offers(network.site(name), table[name], 5)] for name in names
    ]
    best = min(
        sum(o[1] for o in combination)
        for combination in itertools.product(*offers)
        if sum(o[0] for o in combination) <= bound
    )
    factors = {site.name: site.layer.factor for site in chosen.sites if site.layer.factor}
    found = [
        next(o for o in offer if o[2] == factors.get(name)) for name, offer in zip(names, offers, strict=True)
    ]
    assert sum(o[0] for o in found) <= bound
    assert sum(o[1] for o in found) <= 1.5 * best + 1e-9  # the hull leaves at most one step's slack
    assert {factor.kind for factor in factors.values()} == {"channel", "spatial", "linear"}


def test_it_halves_the_arithmetic_and_still_agrees(splits: Splits, tmp_path: Path) -> None:
    checkpoints.save(
        undecided(small_checkpoint(), tensors.stacked(splits.fit, for_input(224))),
        tmp_path / "original.safetensors",
    )
    original = cache.of(tmp_path / "original.safetensors")
    compact = factorise.run(original, splits, tmp_path / "compact.safetensors", OPTIONS, Quiet())
    measured = compact.measured
    assert measured["macs"]["after"] < 0.72 * measured["macs"]["before"]
    assert measured["parameters"]["after"] < 0.65 * measured["parameters"]["before"]
    losses = measured["losses"]
    assert losses["repaired"]["n"] == 10
    # Six drawn networks keep 0.5 to 0.9 of the answers, and without the fit 0.0 to 0.2; 0.01 to 0.07 of the
    # divergence is left.
    assert losses["repaired"]["agreement"] > losses["removed"]["agreement"]
    assert losses["repaired"]["kl"] < 0.2 * losses["removed"]["kl"]
    assert {layer["layer"] for layer in measured["layers"]} >= {"fc1", "fc2", "fc3"}
    assert all(0 <= layer["error_after"] < 0.5 for layer in measured["layers"])
    loaded = checkpoints.load(compact.path)
    assert loaded.chain == chain.Chain.from_json(measured["chain"])
    assert loaded.provenance.history[-1].startswith("factorised to ")
    assert len(loaded.provenance.fitted_on) > 0
    assert not checkpoints.load(original.path).chain.factorised


@pytest.mark.release
def test_later_stages_need_no_special_case(
    made: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    original, compact = made
    tuned = distil.run(
        compact,
        original,
        splits,
        tmp_path / "tuned.safetensors",
        FinetuneOptions(2, 1e-3, train_from="classifier", images=16),
        Quiet(),
    )
    before, after = checkpoints.load(compact.path).tensors, checkpoints.load(tuned.path).tensors
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("conv"))
    assert tuned.measured["kept_epoch"] > 0
    assert not torch.equal(before["fc1_reduce.weight"], after["fc1_reduce.weight"])
    scaled = input_size.run(tuned, tmp_path / "scaled.safetensors", 96, Quiet())
    exported = export.run(scaled, tmp_path / "scaled.onnx", Quiet())
    factors = sum(bool(site.layer.factor) for site in checkpoints.load(compact.path).chain.sites)
    assert exported.measured["ops"]["Conv"] + exported.measured["ops"]["Gemm"] == 8 + 3 + factors
    quantized = quantize.run(
        exported, splits, 8, tmp_path / "int8.onnx", QuantizeOptions("pi5", float_layers=0), Quiet()
    )
    assert quantized.measured["ops"]["QLinearConv"] == exported.measured["ops"]["Conv"]
    assert quantized.measured["ops"]["QGemm"] == exported.measured["ops"]["Gemm"]


def test_the_same_again_is_up_to_date(made: tuple[cache.Artifact, cache.Artifact], splits: Splits) -> None:
    original, compact = made
    stamp = compact.path.stat().st_mtime_ns
    factorise.run(original, splits, compact.path, OPTIONS, Quiet())
    assert compact.path.stat().st_mtime_ns == stamp


def test_what_cannot_be_had_is_said(
    made: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    original, compact = made
    with pytest.raises(OptionsError, match="cannot be factorised to 1% of their arithmetic"):
        factorise.run(
            original,
            splits,
            tmp_path / "x.safetensors",
            dataclasses.replace(OPTIONS, conv_share=0.01),
            Quiet(),
        )
    with pytest.raises(OptionsError, match="factorised already"):
        factorise.run(compact, splits, tmp_path / "x.safetensors", OPTIONS, Quiet())
    with pytest.raises(OptionsError, match="is factorised; prune the one"):
        prune.run(compact, None, tmp_path / "x.safetensors", PruneOptions(), Quiet())
    one = dataclasses.replace(splits, fit=splits.fit[:1], select=())
    with pytest.raises(DataError, match="at least two pictures of different sources, found 1"):
        factorise.run(original, one, tmp_path / "x.safetensors", OPTIONS, Quiet())
    assert not (tmp_path / "x.safetensors").exists()


def test_what_chooses_the_strength_is_never_fitted_on(splits: Splits) -> None:
    for given in (splits, dataclasses.replace(splits, select=())):
        fit, held = fit_and_held(given, 200, 60, 0)
        assert fit
        assert held
        assert not {i.source for i in fit} & {i.source for i in held}
        assert not {i.source for i in (*fit, *held)} & {i.source for i in splits.test}


@pytest.mark.release
def test_the_sensitivity_table_is_measured_once_for_every_share(
    made: tuple[cache.Artifact, cache.Artifact],
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, compact = made
    solved_once: list[str] = []
    solve = solved.Solving._solve

    def noted(own: solved.Solving, site: chain.Site, moments: least_squares.Moments) -> None:
        solved_once.append(site.name)
        solve(own, site, moments)

    monkeypatch.setattr(solved.Solving, "_solve", noted)
    more = dataclasses.replace(OPTIONS, conv_share=0.8)
    shared = compact.path.parent
    again = factorise.run(original, splits, tmp_path / "more.safetensors", more, Quiet(), shared)
    assert not solved_once
    assert again.measured["table"] == compact.measured["table"]
    fewer = dataclasses.replace(OPTIONS, images=4)  # other pictures: another table
    factorise.run(original, splits, tmp_path / "fewer.safetensors", fewer, Quiet(), shared)
    assert solved_once == [site.name for site in checkpoints.read_header(original.path).chain.convs]
    for kept in shared.glob("sensitivity-*.json"):
        kept.write_text('{"conv1_1": 7}')  # a damaged table is measured again instead of being believed
    solved_once.clear()
    factorise.run(original, splits, tmp_path / "more.safetensors", OPTIONS, Quiet(), shared)
    assert solved_once
