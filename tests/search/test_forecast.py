"""What is known of a search's rungs before any is made."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_checkpoint
from networks import undecided

from vgg_export import recipes
from vgg_export.compress import solved
from vgg_export.core import cache
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.data.tensors import answering, stacked
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import input_size
from vgg_export.options import FactoriseOptions, RecipeOptions
from vgg_export.search import forecast
from vgg_export.search.forecast import Costs, Forecast, sizes_of
from vgg_runtime.bundle.metrics import compare


@pytest.fixture
def forecasting(splits: Splits, tmp_path: Path) -> Callable[..., tuple[Forecast, cache.Artifact]]:
    """A forecast for a small network, and its checkpoint file."""
    original = small_checkpoint()
    x = stacked(splits.select, original.chain.input)
    original = undecided(original, x)
    checkpoints.save(original, tmp_path / "checkpoint.safetensors")
    made = cache.of(tmp_path / "checkpoint.safetensors")
    with torch.inference_mode():
        logits = original.model()(x).numpy()

    def make(scaled_px: int | None = None) -> tuple[Forecast, cache.Artifact]:
        options = RecipeOptions(
            factorise=FactoriseOptions(images=12, held_images=4, multiple=4), scaled_px=scaled_px
        )
        records = tmp_path / "records"
        records.mkdir(exist_ok=True)
        context = recipes.Context(made, splits, options, Quiet(), tmp_path, tmp_path, records=records)
        return Forecast(context, splits.select, logits), made

    return make


def test_the_sizes_to_look_at_are_steps_of_the_stride_or_the_one_asked_for(
    forecasting: Callable[..., tuple[Forecast, cache.Artifact]],
) -> None:
    found, _ = forecasting()
    chain = found._chain
    assert sizes_of(chain, None) == (224, 192, 160, 128, 96)
    assert sizes_of(chain, 150) == (224, 150)


def test_costs_are_the_divergence_from_the_originals_own_answers(
    forecasting: Callable[..., tuple[Forecast, cache.Artifact]], splits: Splits, tmp_path: Path
) -> None:
    known, made = forecasting()
    own = known.alone(224, made)
    assert own.size == pytest.approx(0, abs=1e-5)
    assert own.agreement == 1.0
    assert not own.hopeless
    assert own.ranks == {}
    input_size.run(made, tmp_path / "folded.safetensors", 96, Quiet())
    folded = cache.of(tmp_path / "folded.safetensors")
    costs = known.alone(96, folded)
    small = checkpoints.load(folded.path)
    with answering(small) as answer:
        logits = answer(np.asarray(stacked(splits.select, small.chain.input)))
    wanted = compare(logits, known._logits)
    assert costs.size == pytest.approx(wanted.kl, rel=1e-3)
    assert costs.agreement == pytest.approx(wanted.agreement)
    assert costs.pictures == len(splits.select)
    ranks = known.at(224, made, (0.7, 0.4)).ranks
    assert list(ranks) == ["0.7", "0.4"]
    assert 0.001 < ranks["0.7"] < ranks["0.4"]
    # at another size the forms are compared with the original at that size, from which few ranks are far
    at_96 = known.at(96, folded, (0.97, 0.4)).ranks
    assert at_96["0.97"] < 0.2 * costs.size
    assert at_96["0.97"] < at_96["0.4"]


def test_what_is_known_is_not_found_out_again(
    forecasting: Callable[..., tuple[Forecast, cache.Artifact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, made = forecasting()
    costs = first.at(224, made, (0.5,))

    def again(*_: object, **__: object) -> None:
        raise AssertionError("it was walked again")

    monkeypatch.setattr(solved.Solving, "_solve", again)
    monkeypatch.setattr(forecast, "compare", again)
    second, _ = forecasting()
    assert second.at(224, made, (0.5,)) == costs
    assert second.table(made) == first.table(made)
    for kept in made.path.parent.glob("costs-*.json"):
        kept.write_text("{}")
    with pytest.raises(AssertionError, match="walked again"):
        second.at(224, made, (0.5,))


def test_a_size_at_which_the_original_hardly_agrees_with_itself_is_hopeless() -> None:
    assert Costs(100, 2.0, 0.19, {}).hopeless
    assert not Costs(100, 2.0, 0.2, {}).hopeless


def test_between_two_shares_the_cost_is_read_off_a_straight_line_of_logarithms() -> None:
    chain = small_checkpoint().chain
    costs = Costs(100, 0.5, 0.8, {"0.4": 0.1, "0.1": 0.4})
    made = forecast.candidates(160, costs, dict.fromkeys((0.4, 0.2, 0.1), chain))
    assert [c.rank_kl for c in made] == pytest.approx([0.1, 0.2, 0.4])
    assert {c.size_kl for c in made} == {0.5}
    assert [(c.rung.conv_share, c.rung.fc_share, c.rung.px) for c in made] == [
        (0.4, 1.0, 160),
        (0.2, 0.5, 160),
        (0.1, 0.25, 160),
    ]
    assert {c.macs for c in made} == {chain.macs()}
    assert forecast.candidates(160, dataclasses.replace(costs, ranks={}), {0.4: chain}) == []
