"""A checkpoint that does not understand its pictures is noticed before anything takes time, and nothing near
chance is recommended."""

import dataclasses
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from conftest import CLASSES, first, reseal, small_torchvision_vgg
from rows import ABOUT, a_row

from vgg_export import by_hand, command_options, inputs, pipeline
from vgg_export.core.errors import AccuracyError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data import sanity, signs
from vgg_export.data.answers import judge
from vgg_export.data.drawn import draw_signs
from vgg_export.data.splits import PARTS, Item, Splits, resolve
from vgg_export.data.trials import Floats
from vgg_export.data.verdict import ensure_understood, why
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import weights
from vgg_export.network.provenance import PICTURES, Provenance
from vgg_export.options import (
    DataOptions,
    DrawOptions,
    InputOptions,
    PruneOptions,
    RecipeOptions,
    RunOptions,
    WeightsOptions,
    default_targets,
)
from vgg_runtime.bundle import manifest, metrics
from vgg_runtime.bundle.input_spec import for_input, normalized
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.measure import measure
from vgg_runtime.measure.recommend import near_chance, recommend
from vgg_runtime.measure.running import Options, empty_row
from vgg_runtime.report import tables
from vgg_runtime.result import Evaluation, Prediction, Proportion, Row

Run = Callable[..., subprocess.CompletedProcess[str]]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
ONE, ZERO = torch.ones(3).double(), torch.zeros(3).double()
NOT_TOLD = InputOptions()

# Chance.


@pytest.mark.parametrize(
    ("right", "n", "p"),
    [(0, 10, 0.3), (3, 10, 0.3), (10, 10, 0.5), (11, 200, 0.05), (60, 1000, 0.05), (1, 1, 0.0)],
)
def test_the_binomial_test_is_exact(right: int, n: int, p: float) -> None:
    yes, of = Fraction(p).as_integer_ratio()  # whole numbers, as fractions are reduced at every step
    exact = sum(math.comb(n, k) * yes**k * (of - yes) ** (n - k) for k in range(right, n + 1))
    assert metrics.binomial_tail(right, n, p) == pytest.approx(float(Fraction(exact, of**n)), rel=1e-9)


def test_the_binomial_test_of_many_pictures_and_of_nonsense() -> None:
    # two standard deviations above
    assert metrics.binomial_tail(2600, 50_000, 0.05) == pytest.approx(0.0208, rel=0.02)
    assert metrics.binomial_tail(5, 10, 1.0) == 1.0
    # a billion pictures, a thousandth of a point above chance: 1.45 standard deviations
    assert metrics.binomial_tail(50_010_000, 10**9, 0.05) == pytest.approx(0.0734, rel=0.01)
    assert metrics.binomial_tail(1, 10**9, 0.5) == pytest.approx(1.0)
    assert metrics.binomial_tail(10**9, 10**9, 0.5) == 0.0
    for wrong in ((11, 10, 0.5), (0, 0, 0.5), (1, 2, 1.5)):
        with pytest.raises(ValueError, match="a binomial test needs"):
            metrics.binomial_tail(*wrong)


def test_chance_is_the_share_of_the_largest_class() -> None:
    assert metrics.chance(np.array([0, 0, 0, 1]), 2) == 0.75
    assert metrics.chance(np.array([3, 3, 3]), 20) == 1 / 20  # all of one class: what guessing would reach
    assert metrics.chance(np.array([], np.int64), 20) is None
    assert metrics.better_than_chance(19, 200, 0.05)  # 9.5 %
    assert not metrics.better_than_chance(18, 200, 0.05)  # p = 0.011
    assert not metrics.better_than_chance(96, 100, 0.95)


# What the answers say.

NAMES = tuple(f"class {k}" for k in range(10))


def said(outputs: np.ndarray[Any, Any], sure: float = 6.0, classes: int = 10) -> Floats:
    """Logits that name these outputs."""
    logits = np.zeros((len(outputs), classes), np.float32)
    logits[np.arange(len(outputs)), outputs] = sure
    return logits


def test_a_permuted_order_is_found_on_half_and_shown_on_the_rest() -> None:
    labels = np.repeat(np.arange(10), 12)
    order = np.random.default_rng(1).permutation(10)  # the output k stands for the class order[k]
    outputs = np.argsort(order)[labels]
    outputs[::20] = (outputs[::20] + 1) % 10  # 5 % of errors
    found = judge(said(outputs), labels, NAMES)
    assert not found.better_than_chance
    assert found.order == tuple(NAMES[k] for k in order)
    assert found.order_n == 60
    assert found.order_right >= 54
    assert "its classes are in another order" in why(found)
    assert f"0 {NAMES[order[0]]}, 1 {NAMES[order[1]]}" in why(found)


def test_two_exchanged_classes_of_ten_are_found_too_and_are_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = np.repeat(np.arange(10), 12)
    outputs = np.where(labels == 2, 7, np.where(labels == 7, 2, labels))
    found = judge(said(outputs), labels, NAMES)
    assert found.better_than_chance
    assert found.order is not None
    assert (found.order[2], found.order[7]) == (NAMES[7], NAMES[2])
    ensure_understood(found, accept=False)
    assert "is right on 80.0 % of 120 labelled pictures" in caplog.text
    assert "in another order" in caplog.text


def test_two_classes_the_wrong_way_round_stop() -> None:
    labels = np.arange(60) % 2
    found = judge(said(1 - labels, classes=2), labels, ("cat", "dog"))
    assert found.order == ("dog", "cat")
    with pytest.raises(
        AccuracyError, match=r"right on 0\.0 % of 60 .* always saying 'cat' \(50\.0 %\).*0 dog, 1 cat"
    ):
        ensure_understood(found, accept=False)


def test_a_class_that_was_not_seen_is_not_invented() -> None:
    labels = np.repeat(np.arange(8), 12)  # two classes have no pictures
    found = judge(said((labels + 1) % 10), labels, NAMES)
    assert found.order is not None
    assert (found.order[0], found.order[9], found.order[1]) == (None, None, NAMES[0])
    assert "0 (not seen)" in why(found)
    assert "(those not seen are class 8, class 9)" in why(found)


def test_noise_is_explained_by_no_order() -> None:
    """100 networks guess. An order that is fitted and judged on the same pictures would "explain" a third of
    them."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    found = [judge(said(generator.integers(0, 10, 120)), labels, NAMES) for _ in range(100)]
    assert not any(answers.order for answers in found)
    assert sum(answers.better_than_chance for answers in found) <= 5
    with pytest.raises(AccuracyError, match="the likely causes are another normalisation"):
        ensure_understood(next(answers for answers in found if not answers.better_than_chance), accept=False)


def test_a_sound_network_is_not_doubted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    labels = np.repeat(np.arange(10), 20)
    outputs = labels.copy()
    outputs[::12] = 0
    found = judge(said(outputs, sure=5.0), labels, NAMES)
    assert not found.doubtful
    assert not found.suspicious
    ensure_understood(found, accept=False)
    assert "the checkpoint is right on 92.5 % of 200 labelled pictures (88.0 to 95.4 %)" in caplog.text
    assert "!!" not in caplog.text


def test_half_as_often_right_as_it_is_sure_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.repeat(np.arange(10), 20)
    # about 46 %, no order explains the rest
    outputs = np.where(np.arange(200) % 5 < 2, labels, (labels + np.arange(200)) % 10)
    found = judge(said(outputs, sure=9.0), labels, NAMES)
    assert found.order is None
    assert found.right / found.n < found.mean_probability / 2
    ensure_understood(found, accept=False)
    assert "while its mean probability is 99.9 %: the likely causes are another normalisation" in caplog.text


def test_two_exchanged_classes_of_twenty_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Nine pictures in ten are right, and two classes never are."""
    labels = np.repeat(np.arange(20), 10)
    outputs = np.where(labels == 0, 5, np.where(labels == 5, 0, labels))
    found = judge(said(outputs, classes=20), labels, tuple(f"class {k}" for k in range(20)))
    assert found.order is not None
    assert (found.order[0], found.order[5]) == ("class 5", "class 0")
    ensure_understood(found, accept=False)
    assert "!! the checkpoint is right on 90.0 % of 200 labelled pictures" in caplog.text


def test_an_order_that_explains_only_a_part_is_said_to_be_that() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 20)
    outputs = np.where(generator.random(200) < 0.7, 9 - labels, generator.integers(0, 10, 200))
    found = judge(said(outputs), labels, NAMES)
    assert found.order == NAMES[::-1]
    assert not found.order_certain
    assert why(found).startswith("another order of its classes would explain a part of its errors")


def test_pictures_that_are_nearly_all_of_one_class_cannot_tell(
    drawn: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """48 of 50 of one class: not even all of them right would be better than chance, so nothing is refused
    for that."""
    items = [dataclasses.replace(item, label=0 if k < 48 else 1) for k, item in enumerate(drawn.select[:50])]
    splits = dataclasses.replace(drawn, select=tuple(items), test=())
    found = asked(weights.resolve(WeightsOptions("demo")), splits, tmp_path)
    assert found.problem is None
    assert found.unchecked is not None
    assert found.unchecked.startswith("NOT CHECKED: 96 % of 50 labelled pictures are")
    assert "so that they cannot tell" in caplog.text
    reason = near_chance(Proportion(1.0, 50, (0, 1)), 0.96)
    assert reason is not None
    assert "even 100 % would not be clearly better than chance" in reason


def test_uneven_pictures_are_named_as_a_cause() -> None:
    labels = np.where(np.arange(100) < 90, 0, 1)
    with pytest.raises(AccuracyError, match="or these pictures show too little, since most are of one class"):
        ensure_understood(judge(said(np.where(np.arange(100) < 95, 0, 1)), labels, NAMES), accept=False)


def test_pictures_of_one_class_are_compared_with_guessing(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.zeros(40, np.int64)
    found = judge(said(labels), labels, NAMES)
    ensure_understood(found, accept=False)
    assert "all of them are class 0, so a network that always answers that would pass too" in caplog.text
    with pytest.raises(AccuracyError, match=r"guessing among the classes \(10\.0 %\)"):
        ensure_understood(judge(said(labels + 1), labels, NAMES), accept=False)


def test_accepted_it_goes_on_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(60) % 2
    ensure_understood(judge(said(1 - labels, classes=2), labels, ("cat", "dog")), accept=True)
    assert "The run goes on because of --accept-accuracy, and recommends nothing" in caplog.text


# Real checkpoints: the demo's network as trained on other inputs, as in ``WANTS``.


def rewritten(scale: torch.Tensor, shift: torch.Tensor, bgr: bool = False) -> checkpoints.Checkpoint:
    """The demo's network for an input u where a pixel in 0..1 is scale * u + shift; the same function but for
    the border."""
    demo = weights.resolve(WeightsOptions("demo"))
    tensors = dict(demo.tensors)
    weight = tensors["conv1_1.weight"].double()
    tensors["conv1_1.bias"] = (
        tensors["conv1_1.bias"].double() + (weight * ((shift - MEAN) / STD).view(1, 3, 1, 1)).sum((1, 2, 3))
    ).float()
    weight = weight * (scale / STD).view(1, 3, 1, 1)
    tensors["conv1_1.weight"] = (weight.flip(1) if bgr else weight).float().contiguous()
    return checkpoints.Checkpoint(demo.chain, tensors, demo.labels, Provenance("file", "rewritten"))


CAFFE = torch.tensor([123.68, 116.779, 103.939]).double() / 255
CIFAR = (torch.tensor([0.2023, 0.1994, 0.2010]).double(), torch.tensor([0.4914, 0.4822, 0.4465]).double())
WANTS = {  # what the network wants, and the flags that are to be given; none where it is right without
    "imagenet": ((STD, MEAN, False), None),
    "cifar": ((*CIFAR, False), None),
    "half": ((ONE / 2, ONE / 2, False), "--normalize half"),
    "unit": ((ONE, ZERO, False), "--normalize unit"),
    "raw255": ((ONE / 255, ZERO, False), "--normalize none"),
    "caffe": ((ONE / 255, CAFFE, True), "--normalize caffe"),
    "bgr": ((STD, MEAN, True), "--normalize imagenet --bgr"),
}


@click.command()
@command_options.given(InputOptions)
@click.pass_context
def tell(context: click.Context, /, **chosen: Any) -> None:
    context.obj.append(command_options.build(InputOptions, chosen))


def typed(flags: str) -> InputOptions:
    """The options of a command line."""
    made: list[InputOptions] = []
    assert tell.main(flags.split(), standalone_mode=False, obj=made) is None
    return made[0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Signs of all classes: 60 to select, as many to test."""
    folder = tmp_path_factory.mktemp("drawn") / "signs"
    draw_signs(DrawOptions(folder, train=20, test=60, size_px=160, val=60), Quiet())
    return resolve(DataOptions(str(folder)), "file", tuple(signs.CLASSES), None, folder, Quiet())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """300 signs to select."""
    folder = tmp_path_factory.mktemp("many") / "signs"
    draw_signs(DrawOptions(folder, train=20, test=20, size_px=160, val=300), Quiet())
    return resolve(DataOptions(str(folder)), "file", tuple(signs.CLASSES), None, folder, Quiet())


def asked(
    checkpoint: checkpoints.Checkpoint,
    splits: Splits,
    folder: Path,
    *,
    accept: bool = False,
    told: InputOptions = NOT_TOLD,
) -> sanity.Checked:
    checkpoints.save(checkpoint, folder / "c.safetensors")
    wanted = WeightsOptions(str(folder / "c.safetensors"), input=told)
    saved = inputs.checkpoint_file(wanted, None, folder, Quiet())
    return inputs.ensure_understood(saved, splits, folder, Quiet(), accept=accept, told=told)


def advised(error: Exception) -> str:
    """The flags that a message says to give."""
    found = re.search(r"Give (--[^;]*);", str(error))
    assert found, str(error)
    return found[1]


@pytest.mark.release
@pytest.mark.parametrize("name", ["imagenet", "caffe", "bgr"])
def test_another_input_is_named_and_right_when_given(
    name: str, drawn: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # in 60 pictures one of which the network cannot tell
    assert named_and_right(name, dataclasses.replace(drawn, test=()), tmp_path, caplog) >= 58


@pytest.mark.release
@pytest.mark.parametrize("name", WANTS)
def test_another_input_is_named_and_right_on_many_pictures(
    name: str, many: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert named_and_right(name, many, tmp_path, caplog) >= 0.98 * 300


def named_and_right(name: str, splits: Splits, folder: Path, caplog: pytest.LogCaptureFixture) -> int:
    """On how many pictures a network is right with the flags that the run says to give."""
    wanted, flags = WANTS[name]
    checkpoint, told = rewritten(*wanted), NOT_TOLD
    if name == "half":  # 97 % against 99 %: 300 pictures tell this clearly or only perhaps
        said = ""
        try:
            asked(checkpoint, splits, folder)
        except AccuracyError as stopped:
            said = str(stopped)
        assert f"ive {flags}" in said + caplog.text
        caplog.clear()
        told = typed(str(flags))
    elif flags:
        with pytest.raises(AccuracyError, match="seems to have been trained with") as error:
            asked(checkpoint, splits, folder)
        assert advised(error.value) == flags
        told = typed(flags)
    elif name == "cifar":  # so near ImageNet's that nothing stops; it is told by hand
        assert asked(checkpoint, splits, folder) == sanity.Checked()
        told = typed("--normalize cifar")
    assert asked(checkpoint, splits, folder, told=told) == sanity.Checked()
    assert "!!" not in caplog.text
    right = json.loads((folder / "sanity.json").read_text())["right"]
    assert isinstance(right, int)
    return right


@pytest.mark.release
def test_a_single_stage_goes_on_with_the_input_that_pictures_chose(drawn: Splits, tmp_path: Path) -> None:
    checkpoints.save(rewritten(*WANTS["caffe"][0]), tmp_path / "caffe.safetensors")
    wanted = WeightsOptions(str(tmp_path / "caffe.safetensors"), input=typed("--normalize auto"))
    pictures = DataOptions(str(drawn.select[0].path.parents[2]))
    by_hand.run_prune(
        wanted, pictures, PruneOptions(repair=False), tmp_path / "p.safetensors", Quiet(), accept=False
    )
    found = checkpoints.read_header(tmp_path / "p.safetensors")
    assert found.chain.input == normalized(for_input(224), "caffe")
    assert found.provenance.origins is not None
    assert found.provenance.origins.normalize == PICTURES


def test_auto_is_refused_where_no_pictures_are_asked(tmp_path: Path) -> None:
    wanted = WeightsOptions("demo", input=typed("--normalize auto"))
    with pytest.raises(OptionsError, match="auto needs labelled pictures, and here none are asked"):
        by_hand.run_export(wanted, tmp_path / "x.onnx", Quiet())
    with pytest.raises(OptionsError, match="auto needs labelled pictures"):
        by_hand.run_prune(wanted, None, PruneOptions(), tmp_path / "p.safetensors", Quiet(), accept=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.release
def test_another_order_of_the_classes_is_named_and_right_when_given(drawn: Splits, tmp_path: Path) -> None:
    demo = weights.resolve(WeightsOptions("demo"))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    moved = {name: demo.tensors[name][order].clone() for name in ("fc3.weight", "fc3.bias")}
    source = Provenance("file", "permuted")
    permuted = checkpoints.Checkpoint(demo.chain, {**demo.tensors, **moved}, demo.labels, source)
    with pytest.raises(AccuracyError) as error:
        asked(permuted, drawn, tmp_path)
    right = [demo.labels[k] for k in order]
    assert ", ".join(f"{k} {name}" for k, name in enumerate(right)) in str(error.value)
    # two classes of twenty stand where they should: 10 %, and still it stops
    assert "which is better than" in str(error.value)
    (tmp_path / "labels.txt").write_text("\n".join(right))
    found = weights.resolve(WeightsOptions(str(tmp_path / "c.safetensors"), tmp_path / "labels.txt"))
    parts: dict[str, Any] = {part: tuple(renumbered(getattr(drawn, part), right)) for part in PARTS}
    splits = dataclasses.replace(drawn, **parts)
    assert asked(found, splits, tmp_path) == sanity.Checked()


def renumbered(items: tuple[Item, ...], names: list[str]) -> list[Item]:
    return [dataclasses.replace(item, label=names.index(item.path.parent.name)) for item in items]


@pytest.mark.release
def test_what_was_asked_once_is_not_asked_again(
    drawn: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    demo = weights.resolve(WeightsOptions("demo"))
    for _ in range(2):
        asked(demo, drawn, tmp_path)
    assert caplog.text.count("sanity: up to date") == 1
    assert caplog.text.count("of 120 labelled pictures") == 2  # said each time


@pytest.mark.release
@pytest.mark.parametrize(
    ("select", "test", "words"),
    [
        ("unlabelled", "unlabelled", "NOT CHECKED: the pictures that nothing is fitted on have no labels"),
        (
            "few",
            "none",
            "NOT CHECKED: 19 labelled pictures that nothing is fitted on are too few (at least 20)",
        ),
        ("none", "none", "NOT CHECKED: all pictures are fitted on"),
    ],
)
def test_what_cannot_be_asked_is_a_notice(
    select: str, test: str, words: str, drawn: Splits, tmp_path: Path
) -> None:
    parts = {
        "unlabelled": tuple(dataclasses.replace(i, label=None) for i in drawn.select),
        "few": drawn.select[:19],
        "none": (),
    }
    apart = tuple(dataclasses.replace(i, source=f"other {i.source}") for i in parts[test])
    splits = dataclasses.replace(drawn, select=parts[select], test=apart, note="none")
    notice = asked(weights.resolve(WeightsOptions("demo")), splits, tmp_path).unchecked
    assert notice is not None
    assert notice.startswith(words)
    assert "nobody knows whether the checkpoint understands" in notice
    assert (
        asked(
            weights.resolve(WeightsOptions("demo")), dataclasses.replace(drawn, test=drawn.test[:1]), tmp_path
        )
        == sanity.Checked()
    )


# What is recommended.


def figures(rate: float, n: int = 600, chance: float | None = 0.07) -> Evaluation:
    agreement = Proportion(0.99, n, (0, 1))
    top1 = Proportion(rate, n, (0, 1))
    return Evaluation(n=n, top1=top1, chance=chance, agreement=agreement, loss_error_points=0.1)


def row(name: str, p50_ms: float, built: Evaluation) -> Row:
    return a_row(name, p50_ms=p50_ms, speedup=10 / p50_ms, built=built)


@pytest.mark.parametrize(
    ("rate", "chance", "recommended"),
    [(0.053, 0.07, False), (0.085, 0.07, False), (0.53, 0.07, True), (0.053, None, True)],
)
def test_nothing_is_recommended_near_chance(rate: float, chance: float | None, recommended: bool) -> None:
    built = figures(rate, chance=chance)
    answer = recommend([row("baseline", 10, built), row("quantized", 2, built)], "baseline")
    assert (answer.variant == "quantized") == recommended
    assert (answer.variant is None) == ("not clearly better than chance (7.0 %)" in answer.reason)
    assert near_chance(None, None) is None


@pytest.mark.parametrize(("count", "right", "recommended"), [(40, 3, False), (40, 30, True), (19, 0, True)])
def test_pictures_shown_on_the_device_speak_against_a_baseline(
    count: int, right: int, recommended: bool, bundle_folder: Path
) -> None:
    """The bundle was made without labels. Pictures on the board can prevent its recommendation, but never
    cause one."""
    bundle = Bundle.read(bundle_folder)
    images = [measure.Shown(Path(f"{k}.png"), k % 7) for k in range(count)]
    begun, rows = measure.skeleton(bundle, images, Options(1)), []
    said = tuple(Prediction(((k if k < right else k + 1) % 7,), (1.0,)) for k in range(count))
    for variant, p50_ms in zip(bundle.manifest.variants[:2], (10.0, 5.0), strict=True):
        built = figures(0.9, chance=None)
        rows.append(dataclasses.replace(empty_row(variant), p50_ms=p50_ms, built=built, predictions=said))
    answer = measure.finish(begun, rows, bundle, images).recommended
    assert answer is not None
    assert (answer.variant == "quantized") == recommended
    assert (
        recommended
        or f"of {count} pictures shown here, which is not clearly better than chance" in answer.reason
    )


def test_nothing_is_recommended_of_what_was_accepted() -> None:
    """A permuted order is right on a tenth of the pictures by its fixed points: better than chance, and no
    use."""
    built = figures(0.105)
    answer = recommend(
        [row("baseline", 10, built), row("quantized", 2, built)],
        "baseline",
        problem="the classes are in another order",
    )
    assert (answer.variant, answer.reason) == (None, "the classes are in another order")
    assert (
        recommend([row("baseline", 10, built), row("quantized", 2, built)], "baseline").variant == "quantized"
    )


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "mine.pth"
    torch.save(small_torchvision_vgg("vgg11", False, classes=20).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def signs_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all") / "signs"
    draw_signs(DrawOptions(folder, train=40, test=120, size_px=64, val=40), Quiet())
    return folder


@pytest.mark.parametrize("command", first(1, ["all", "sweep", "prune", "factorise", "finetune"]))
def test_every_command_stops_before_anything_is_made(
    command: str, in_this_process: Run, state: Path, signs_of_all: Path, tmp_path: Path
) -> None:
    outputs = {"all": "out", "sweep": "front"}
    more = {"finetune": ("--teacher", state), "prune": ("--no-repair",)}.get(command, ())
    output = outputs.get(command, "made.safetensors")
    done = in_this_process(command, "--weights", state, "--data", signs_of_all, *more, "--output", output)
    assert done.returncode == 2
    assert "of 160 labelled pictures" in done.stderr
    assert "is not clearly better than always saying" in done.stderr
    assert "With --accept-accuracy the run goes on" in done.stderr
    assert not (tmp_path / output).exists()
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.release
def test_accepted_a_bundle_recommends_nothing_and_evaluate_stops(
    in_this_process: Run, state: Path, signs_of_all: Path, tmp_path: Path
) -> None:
    arguments = (
        "--weights",
        state,
        "--data",
        signs_of_all,
        "--variants",
        "quantized",
        "--target",
        default_targets()[0],
        "--output",
        "out",
    )
    done = in_this_process("all", *arguments, "--accept-accuracy", "--no-compare")
    assert done.returncode == 0, done.stderr
    bundle = manifest.read(tmp_path / "out")
    assert bundle.assumed[0] == "ReLU behind every layer but the last (else --activation)"
    assert bundle.assumed[-1] == weights.ALPHABET
    assert bundle.unchecked is None
    assert bundle.problem is not None
    assert bundle.problem.startswith("the checkpoint is right on")
    told = tmp_path / "told.json"
    command = [
        sys.executable,
        "out/runtime/compare.py",
        "--budget",
        "0.2",
        "--rounds",
        "1",
        "--json",
        told,
        "--html",
        tmp_path / "told.html",
    ]
    shown = subprocess.run(
        [*map(str, command)],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "★" not in shown.stdout
    assert (
        "None is recommended: the checkpoint does not understand its pictures; the notice says what was found"
        in shown.stdout
    )
    assert shown.stdout.count(f"!! {bundle.problem}") == 2
    assert f"Assumed  {bundle.assumed[0]}; {bundle.assumed[1]}" in shown.stdout
    result = json.loads(told.read_text())
    assert result["recommended"]["variant"] is None
    assert result["bundle"]["assumed"] == list(bundle.assumed)
    assert 0.05 <= result["variants"][0]["built"]["chance"] <= 0.06
    stopped = in_this_process("evaluate", "--bundle", "out", "--data", signs_of_all)
    assert stopped.returncode == 2
    assert "of 120 labelled pictures" in stopped.stderr
    assert "variant" not in stopped.stdout
    done = in_this_process("evaluate", "--bundle", "out", "--data", signs_of_all, "--accept-accuracy")
    assert done.returncode == 0
    assert "!! the checkpoint is right on" in done.stdout


@pytest.mark.release
def test_evaluating_a_bundle_on_unlabelled_pictures_says_so_and_labelled_ones_clear_it(
    in_this_process: Run, bundle_copy: Path, signs_folder: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "photos"
    flat.mkdir()
    for path in (signs_folder / "test").rglob("*.png"):
        shutil.copy(path, flat / path.name)
    done = in_this_process("evaluate", "--bundle", bundle_copy, "--data", flat, "--record")
    assert done.returncode == 0, done.stderr
    assert "!! NOT CHECKED: the pictures that nothing is fitted on have no labels" in done.stdout
    unchecked = manifest.read(bundle_copy).unchecked
    assert unchecked is not None
    assert tables.notice(dataclasses.replace(ABOUT, unchecked=unchecked)) == f"!! {unchecked}"
    done = in_this_process(
        "evaluate", "--bundle", bundle_copy, "--data", signs_folder, "--record", "--accept-accuracy"
    )
    assert done.returncode == 0, done.stderr
    assert manifest.read(bundle_copy).unchecked is None
    assert manifest.read(bundle_copy).problem is not None


def test_a_bundle_made_before_has_nothing_assumed_and_says_nothing(bundle_copy: Path) -> None:
    content = json.loads((bundle_copy / "manifest.json").read_text())
    for key in ("assumed", "unchecked", "problem"):
        content.pop(key)
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest.seal(content)))
    found = manifest.read(bundle_copy)
    assert (found.assumed, found.unchecked, found.problem) == ((), None, None)
    reseal(bundle_copy, assumed=["a"], unchecked="b")
    assert manifest.read(bundle_copy).assumed == ("a",)


@pytest.mark.release
def test_a_search_near_chance_recommends_nothing(
    signs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vgg_export.options import Budget, DistilOptions, FactoriseOptions
    from vgg_export.search import points, search

    monkeypatch.setattr(points, "TIMING_S", 0.02)
    monkeypatch.setitem(search.BY_EFFORT, "normal", search.Effort(1, 1, (0.5,), 0, 1))
    torch.save(small_torchvision_vgg("vgg11", False).state_dict(), tmp_path / "mine.pth")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    options = RecipeOptions(
        weights=WeightsOptions(str(tmp_path / "mine.pth"), tmp_path / "names.txt"),
        data=DataOptions(str(signs_folder), calibration_images=8),
        factorise=FactoriseOptions(images=16, multiple=4),
        distil=DistilOptions("none"),
        budget=Budget(max_drop=100.0),
        scaled_px=96,
        variants=("compact", "compact-scaled"),
        targets=default_targets()[:1],
    )
    how = RunOptions(tmp_path / "out")
    with pytest.raises(AccuracyError, match="not clearly better than"):
        pipeline.run(options, how)
    pipeline.run(dataclasses.replace(options, accept_accuracy=True), how)
    front = json.loads((tmp_path / "out/front.json").read_text())
    assert front["recommended"] is None
    assert front["reason"].startswith("none is recommended: ")
    assert "not clearly better than" in front["reason"]
