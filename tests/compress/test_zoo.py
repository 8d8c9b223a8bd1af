"""Every way to make a network smaller, on small networks of every kind that people have, where the right
answer is known."""

import dataclasses
from pathlib import Path

import pytest
import torch
from networks import ZOO, awake, conv, drawn, linears, of_zoo, pictures

from vgg_export.compress import (
    distil,
    factorise,
    feature_maps,
    least_squares,
    obs,
    prune,
    reconstruct,
    solved,
    training,
)
from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.data.tensors import stacked
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.activations import RELU
from vgg_export.network.chain import Activate, Chain, Factor, Flatten, MaxPool
from vgg_export.options import CLASSIFIER, FactoriseOptions, FinetuneOptions, PruneOptions
from vgg_runtime.bundle import outputs

HALF = PruneOptions(ratio=0.5, first_stage=1, multiple=4)
A, B = 2, 5  # two filters that say the same


def without_labels(splits: Splits) -> Splits:
    parts = {
        n: tuple(dataclasses.replace(i, label=None) for i in getattr(splits, n))
        for n in ("fit", "select", "test")
    }
    return Splits(splits.origin, parts["fit"], parts["select"], parts["test"])


def logits(checkpoint: checkpoints.Checkpoint, count: int = 4) -> torch.Tensor:
    with torch.inference_mode():
        said: torch.Tensor = checkpoint.model()(pictures(checkpoint, count, seed=7))
    return said


def prunable(chain: Chain) -> list[str]:
    """The convolutions whose channels something reads."""
    return [site.name for site in chain.sites[:-1] if site.is_conv]


def scales_behind(chain: Chain, name: str) -> list[str]:
    return [str(p.layer.name) for p in chain.site(name).behind if hasattr(p.layer, "name")]


def reader(chain: Chain, name: str) -> str:
    names = [site.name for site in chain.sites]
    return names[names.index(name) + 1]


def by_channel(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A view [n, channels, taps or positions] of weights that read channels."""
    return weight.view(len(weight), channels, -1)


def repeat(original: checkpoints.Checkpoint, name: str) -> None:
    """Filter B says what A says, and the scales behind it do the same to both."""
    channels = original.chain.site(name).layer.outputs
    for layer in (name, *scales_behind(original.chain, name)):
        for part in ("weight", "bias"):
            rows = original.tensors[f"{layer}.{part}"].view(channels, -1)  # a scale may follow the flattening
            rows[B] = rows[A]


def everything(chain: Chain) -> dict[str, torch.Tensor]:
    return {site.name: torch.arange(site.layer.outputs) for site in chain.convs}


@pytest.mark.parametrize("kind", ZOO)
def test_a_filter_that_another_repeats_is_removed_without_a_trace(kind: str) -> None:
    """The layer that reads both gets the sum of their weights for the one that is left."""
    original = of_zoo(kind)
    for name in prunable(original.chain):
        repeat(original, name)
    expected, kept, tensors = logits(original), everything(original.chain), dict(original.tensors)
    for name in prunable(original.chain):
        channels, consumer = len(kept[name]), f"{reader(original.chain, name)}.weight"
        tensors[consumer] = tensors[consumer].clone()
        columns = by_channel(tensors[consumer], channels)
        columns[:, A] += columns[:, B]
        columns[:, B] = 99.0  # would be seen if it stayed
        kept[name] = torch.tensor([k for k in range(channels) if k != B])
    summed = dataclasses.replace(original, tensors=tensors)
    smaller = original.chain.with_widths({name: len(keep) for name, keep in kept.items()})
    made = dataclasses.replace(summed, chain=smaller, tensors=prune.remove_filters(summed, kept))
    assert prunable(original.chain)
    assert made.chain.parameters() < original.chain.parameters()
    torch.testing.assert_close(logits(made), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ZOO)
def test_pruned_is_the_original_in_which_nothing_reads_what_is_gone(kind: str) -> None:
    original = of_zoo(kind)
    made, kept = prune.prune(original, HALF)
    tensors = dict(original.tensors)
    for name in prunable(original.chain):
        n, consumer = original.chain.site(name).layer.outputs, f"{reader(original.chain, name)}.weight"
        assert len(kept[name]) == n // 2
        tensors[consumer] = tensors[consumer].clone()
        gone = [k for k in range(n) if k not in kept[name].tolist()]
        by_channel(tensors[consumer], n)[:, gone] = 0
    expected = logits(dataclasses.replace(original, tensors=tensors))
    torch.testing.assert_close(logits(made), expected, rtol=1e-4, atol=1e-4)
    assert made.chain.units == original.chain.units
    prune.ensure_same_as_masked(original, made, kept)
    # channels that are mixed up are seen wherever it happens
    for name in prunable(original.chain):
        consumer = f"{reader(original.chain, name)}.weight"
        wrong = made.tensors | {
            consumer: by_channel(made.tensors[consumer], len(kept[name]))
            .flip(1)
            .reshape_as(made.tensors[consumer])
        }
        with pytest.raises(CheckFailedError, match="differs from the masked original"):
            prune.ensure_same_as_masked(original, dataclasses.replace(made, tensors=wrong), kept)


def test_the_check_notices_scales_of_other_channels() -> None:
    original = of_zoo("scales")
    made, kept = prune.prune(original, HALF)
    scales = [*scales_behind(original.chain, "conv1_1"), *scales_behind(original.chain, "conv2_1")]
    assert len(scales) == 3
    for scale in scales:
        wrong = made.tensors | {f"{scale}.weight": made.tensors[f"{scale}.weight"].flip(0)}
        with pytest.raises(CheckFailedError, match="differs from the masked original"):
            prune.ensure_same_as_masked(original, dataclasses.replace(made, tensors=wrong), kept)


@pytest.mark.parametrize("kind", ZOO)
def test_the_surgeon_takes_one_of_two_equal_filters_first_and_for_nothing(kind: str, tmp_path: Path) -> None:
    original = of_zoo(kind)
    x = pictures(original, 10)
    for name in prunable(original.chain):
        original = awake(original, name, x)
        repeat(original, name)
    found = obs.removals(original, x, tmp_path, Quiet())
    assert list(found) == prunable(original.chain)  # not the logits
    for name, removal in found.items():
        n = original.chain.site(name).layer.outputs
        assert sorted(removal.order.tolist()) == list(range(n))
        # of two that are equal each costs nothing as long as the other one is there
        place = min(removal.order.tolist().index(k) for k in (A, B))
        assert removal.costs[place + 1] - removal.costs[place] < 1e-3
        assert removal.costs[-1] > 0.5


@pytest.mark.parametrize("kind", ZOO)
def test_the_repair_wins_back_most_of_what_pruning_lost(kind: str, tmp_path: Path) -> None:
    original = of_zoo(kind)
    shown = feature_maps.Pictures(pictures(original, 60), pictures(original, 20, seed=1))
    pruned, kept = prune.prune(original, dataclasses.replace(HALF, ratio=0.25))
    problem = reconstruct.Problem(original, pruned.tensors, kept, pruned.chain)
    tensors, fits = reconstruct.repair(problem, shown, reconstruct.Folders(tmp_path), Quiet())
    repaired = dataclasses.replace(pruned, tensors=tensors)
    before, after = (reconstruct.loss(original, one, shown.held) for one in (pruned, repaired))
    # of four drawn networks of each kind 0.01 to 0.48 of the divergence is left
    assert after.kl < 0.6 * before.kl
    assert (before.n, after.n) == (20, 20)
    assert [fit.layer for fit in fits] == [site.name for site in original.chain.sites[1:]]
    assert all(fit.error_after <= fit.error_before + 1e-9 for fit in fits if fit.layer.startswith("conv"))


def low_rank(original: checkpoints.Checkpoint, name: str, kind: str, rank: int) -> None:
    """A layer that two layers with ``rank`` channels between them can be, exactly."""
    weight = original.tensors[f"{name}.weight"]
    unfolded = weight.flatten(1) if weight.dim() == 2 or kind == "channel" else weight.permute(1, 2, 0, 3)
    matrix = unfolded.flatten(0, 1).flatten(1) if kind == "spatial" else unfolded
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    near = (u[:, :rank] * s[:rank]) @ v[:rank]
    if kind == "spatial":
        n, c, height, width = weight.shape
        weight[:] = near.view(c, height, n, width).permute(2, 0, 1, 3)
    else:
        weight[:] = near.view_as(weight)


def forms(chain: Chain) -> dict[str, Factor]:
    """A factor for every layer that can have one, of both forms for convolutions with wide kernels."""
    found = {site.name: Factor("linear", 5) for site in chain.linears[:-1]}
    for k, (site, kernel, kinds) in enumerate(solved.forms(chain)):
        assert kinds == (("channel", "spatial") if min(kernel) > 1 else ("channel",))
        found[site.name] = Factor(kinds[k % len(kinds)], 4)
    return found


@pytest.mark.parametrize("kind", ZOO)
def test_layers_of_low_rank_are_factorised_without_loss(kind: str, tmp_path: Path) -> None:
    original = of_zoo(kind)
    factors = forms(original.chain)
    for name, factor in factors.items():
        low_rank(original, name, factor.kind, factor.rank)
    smaller = original.chain.with_factors(factors)
    by_weights = factorise.truncated(original, smaller)
    made = checkpoints.Checkpoint(smaller, by_weights, original.labels, original.provenance)
    torch.testing.assert_close(logits(made), logits(original), rtol=1e-3, atol=1e-3)
    shown = feature_maps.Pictures(pictures(original, 60), pictures(original, 20, seed=1))
    problem = reconstruct.Problem(original, original.tensors, {}, smaller)
    tensors, fits = reconstruct.repair(problem, shown, reconstruct.Folders(tmp_path), Quiet())
    assert {fit.layer: fit.rank for fit in fits if fit.rank} == {name: f.rank for name, f in factors.items()}
    assert all(fit.error_after < 1e-4 for fit in fits)
    repaired = dataclasses.replace(made, tensors=tensors)
    torch.testing.assert_close(logits(repaired), logits(original), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ZOO)
def test_the_important_directions_are_the_gradients_of_the_logits(kind: str) -> None:
    original, count = of_zoo(kind), least_squares.COMBINATIONS
    mixed = torch.randn(3, count, original.chain.units, generator=torch.Generator().manual_seed(0))
    if original.chain.output == outputs.SOFTMAX:
        mixed -= mixed.mean(2, keepdim=True)
    for site in original.chain.linears:
        said = torch.randn(3, site.layer.outputs, generator=torch.Generator().manual_seed(2)) * 3
        with torch.inference_mode():  # as where it is used
            rows = least_squares.important(original, site.name, said)
        start = said.clone().requires_grad_(True)
        wanted = (least_squares.Behind(original, site.name, said).logits(start)[:, None] * mixed).sum((0, 2))
        for k in (0, count - 1):
            (gradient,) = torch.autograd.grad(wanted[k], start, retain_graph=True)
            torch.testing.assert_close(rows.view(3, count, -1)[:, k], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ZOO)
def test_maps_and_what_is_behind_a_layer_are_those_of_the_network(kind: str, tmp_path: Path) -> None:
    original = of_zoo(kind)
    x, chain = pictures(original, 9), original.chain
    with torch.inference_mode():
        maps, expected = feature_maps.begun(chain, x, original.tensors, tmp_path), original.model()(x)
        for site in chain.sites:
            seen = maps.read(0, 9)
            assert tuple(seen.shape[1:]) == site.inputs
            maps.advance(*feature_maps.forward(chain, site.name, original.tensors))
            if not site.is_conv:
                weight, bias = (original.tensors[f"{site.name}.{part}"] for part in ("weight", "bias"))
                said = torch.nn.functional.linear(seen, weight, bias)
                found = least_squares.Behind(original, site.name, said).logits(said)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(maps.read(0, 9), expected, rtol=1e-4, atol=1e-4)


def test_pictures_stay_as_they_are_where_an_activation_comes_first(tmp_path: Path) -> None:
    original = drawn((Activate(RELU), conv(8), MaxPool(), Flatten(), *linears(5)), 16)
    x = pictures(original, 3)
    before = x.clone()
    with torch.inference_mode():
        seen = feature_maps.begun(original.chain, x, original.tensors, tmp_path).read(0, 3)
    assert torch.equal(x, before)
    assert torch.equal(seen, before.relu())


@pytest.mark.parametrize("kind", ZOO)
def test_an_epoch_of_distillation_brings_a_pruned_network_nearer(
    kind: str, splits: Splits, tmp_path: Path
) -> None:
    original = of_zoo(kind)
    student, _ = prune.prune(original, HALF)
    options = FinetuneOptions(
        epochs=1, rate=1e-2, batch=8, train_from=CLASSIFIER, images=32, select_images=14
    )
    tuned, measured = distil.tune(student, original, without_labels(splits), options, tmp_path, Quiet())
    assert measured.kept_epoch == 1
    assert measured.selection_loss[1] < 0.97 * measured.selection_loss[0]
    first = (student.chain.linears or student.chain.sites[-1:])[0].name
    changed = {name for name, t in student.tensors.items() if not torch.equal(t, tuned.tensors[name])}
    assert f"{first}.weight" in changed
    assert not any(f"{name}.weight" in changed for name in prunable(student.chain))
    assert measured.losses["tuned"].n == 14


@pytest.mark.parametrize("kind", ["large kernels", "scales", "one channel", "sigmoid", "multi-label"])
def test_the_stages_run_on_files_with_pictures(kind: str, splits: Splits, tmp_path: Path) -> None:
    checkpoints.save(of_zoo(kind), tmp_path / "original.safetensors")
    original, shown = cache.of(tmp_path / "original.safetensors"), without_labels(splits)
    options = dataclasses.replace(
        HALF, criterion="obs", allocation="sensitivity", ratio=0.25, images=30, held_images=10
    )
    pruned = prune.run(original, shown, tmp_path / "pruned.safetensors", options, Quiet())
    wanted = FactoriseOptions(conv_share=0.8, multiple=4, images=30, held_images=10)
    compact = factorise.run(original, shown, tmp_path / "compact.safetensors", wanted, Quiet())
    for made in (pruned, compact):
        assert made.measured["macs"]["after"] < made.measured["macs"]["before"]
        assert made.measured["losses"]["repaired"]["kl"] < made.measured["losses"]["removed"]["kl"]
    # what is not repaired has more to learn than a few pictures teach wrongly
    cut = dataclasses.replace(wanted, repair=False)
    cut_off = factorise.run(original, shown, tmp_path / "cut.safetensors", cut, Quiet())
    tuning = FinetuneOptions(epochs=1, rate=1e-3, batch=8, train_from=1, images=32)
    tuned = distil.run(cut_off, original, shown, tmp_path / "tuned.safetensors", tuning, Quiet())
    assert tuned.measured["selection_loss"][1] < tuned.measured["selection_loss"][0]
    before, after = (checkpoints.load(made.path) for made in (cut_off, tuned))
    assert after.chain == before.chain
    first = before.chain.sites[0].parts()[0].name
    assert not torch.equal(after.tensors[f"{first}.weight"], before.tensors[f"{first}.weight"])


@pytest.mark.parametrize("kind", ["sigmoid", "multi-label"])
def test_the_loss_of_yes_and_no_by_hand(kind: str) -> None:
    original = of_zoo(kind)
    other, x = of_zoo(kind, seed=1), pictures(original, 12, seed=3)
    with torch.inference_mode():
        p, q = original.model()(x).double().sigmoid(), other.model()(x).double().sigmoid()
    by_hand = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    found = reconstruct.loss(original, other, x)
    assert found.kl == pytest.approx(float(by_hand.mean()), rel=1e-4)
    assert found.agreement == pytest.approx(float(((p > 0.5) == (q > 0.5)).double().mean()))
    assert 0.2 < found.agreement < 0.8
    teacher, student = (one.logit().float() for one in (p, q))
    unknown, known = torch.full((12,), -1), torch.arange(12) % 2
    hot = 4 * divergence_at_two(teacher, student)
    assert float(training.distance(student, teacher, unknown, 2.0, kind)) == pytest.approx(hot, rel=1e-4)
    wrong = torch.nn.functional.binary_cross_entropy(q, known[:, None].double().expand_as(q), reduction="sum")
    # a folder names one label of a picture, which says nothing of the others
    learned = hot + (float(wrong) if kind == "sigmoid" else 0)
    assert float(training.distance(student, teacher, known, 2.0, kind)) == pytest.approx(learned, rel=1e-4)


def divergence_at_two(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """The sum over pictures of the mean Bernoulli divergence over labels, at a temperature of 2."""
    p, q = (teacher / 2).double().sigmoid(), (student / 2).double().sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    return float(each.mean(1).sum())


def test_a_fully_connected_layer_of_one_sigmoid_is_judged_by_its_two_classes() -> None:
    original = of_zoo("sigmoid")
    said = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    judge = least_squares.Behind(original, "fc1", said)
    p, q = (judge.logits(of).double().sigmoid() for of in (said, 0.5 * said))
    by_hand = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert judge.divergence(0.5 * said) == pytest.approx(float(by_hand.mean()), rel=1e-4)
    assert judge.divergence(said) == 0


def test_labels_of_two_classes_are_learned_through_one_sigmoid(splits: Splits, tmp_path: Path) -> None:
    """The teacher's own answers as labels: what is lost is counted in top-1."""
    original = of_zoo("sigmoid")
    x = stacked(splits.select, original.chain.input)
    with torch.inference_mode():
        answers = (original.model()(x)[:, 0] > 0).long().tolist()
    select = tuple(dataclasses.replace(i, label=a) for i, a in zip(splits.select, answers, strict=True))
    assert 0 < sum(answers) < len(answers)
    student, _ = prune.prune(original, HALF)
    with torch.inference_mode():
        said = (student.model()(x)[:, 0] > 0).long().tolist()
    ruinous = FinetuneOptions(epochs=1, rate=100.0, train_from=CLASSIFIER, images=8, select_images=14)
    shown = dataclasses.replace(without_labels(splits), select=select)
    _, measured = distil.tune(student, original, shown, ruinous, tmp_path, Quiet())
    assert measured.kept_epoch == 0  # rolled back: what is counted is the student
    lost = sum(a != b for a, b in zip(answers, said, strict=True))
    assert measured.points_lost == pytest.approx(100 * lost / len(answers))
