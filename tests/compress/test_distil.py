import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, small_checkpoint
from divided import alone_and_divided

from vgg_calibration import choose
from vgg_export import options, recipes
from vgg_export.compress import distil, prune, training
from vgg_export.core import cache
from vgg_export.core.errors import DataError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data import tensors
from vgg_export.data.splits import Splits
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import input_size
from vgg_export.options import FinetuneOptions, PruneOptions
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.outputs import SOFTMAX


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[cache.Artifact, cache.Artifact]:
    """(student, teacher): a pruned small VGG and the original."""
    folder = tmp_path_factory.mktemp("pair")
    checkpoints.save(small_checkpoint(), folder / "teacher.safetensors")
    teacher = cache.of(folder / "teacher.safetensors")
    options = PruneOptions(ratio=0.5, first_stage=4, repair=False)
    return prune.run(teacher, None, folder / "student.safetensors", options, Quiet()), teacher


def unlabelled(splits: Splits) -> Splits:
    parts = {
        n: tuple(dataclasses.replace(i, label=None) for i in getattr(splits, n))
        for n in ("fit", "select", "test")
    }
    return Splits(splits.origin, parts["fit"], parts["select"], parts["test"])


def test_the_loss_is_the_published_one_by_hand() -> None:
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = (teacher / 2).softmax(1)
    by_hand = 4 * (p * (p / 0.5).log()).sum()
    none, known = torch.tensor([-1]), torch.tensor([0])
    assert training.distance(student, teacher, none, 2.0, SOFTMAX) == pytest.approx(float(by_hand))
    assert training.distance(student, teacher, known, 2.0, SOFTMAX) == pytest.approx(
        float(by_hand) + float(torch.tensor(2.0).log())
    )


def test_it_recovers_without_labels_and_leaves_early_blocks_alone(
    pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    student, teacher = pair
    options = FinetuneOptions(epochs=3, rate=1e-2)
    made = distil.run(student, teacher, unlabelled(splits), tmp_path / "tuned.safetensors", options, Quiet())
    losses = made.measured["selection_loss"]
    assert made.measured["kept_epoch"] > 0
    assert min(losses) < 0.8 * losses[0]
    before, after = checkpoints.load(student.path), checkpoints.load(made.path)
    assert torch.equal(before.tensors["conv3_2.weight"], after.tensors["conv3_2.weight"])
    assert not torch.equal(before.tensors["conv4_1.weight"], after.tensors["conv4_1.weight"])
    assert after.provenance.history[-1].startswith(f"distilled for {made.measured['kept_epoch']} of 3 epochs")


def test_too_large_a_step_is_rolled_back_and_made_smaller(
    pair: tuple[cache.Artifact, cache.Artifact],
    splits: Splits,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without labels: a random teacher contradicts them, and the least loss that both allow is hardly below
    where it begins."""
    student, teacher = pair
    options = FinetuneOptions(epochs=8, rate=100.0, train_from="classifier", crops=1)
    with caplog.at_level("INFO"):
        made = distil.run(
            student, teacher, unlabelled(splits), tmp_path / "tuned.safetensors", options, Quiet()
        )
    losses, kept = made.measured["selection_loss"], made.measured["kept_epoch"]
    assert losses[1] > losses[0]  # such a step makes it worse: nine times at least in six drawn networks
    assert kept > 1
    # 0.05 to 0.52; from weights that such steps have spoilt it does not recover
    assert losses[kept] == min(losses) < 0.7 * losses[0]
    assert "(start" in caplog.text
    rates = [float(line.split()[-2]) for line in caplog.messages if line.startswith("epoch")]
    per_epoch = -(-made.measured["crops"] // options.batch)
    warm_up = max(1, options.epochs * per_epoch // 10)
    top, since = 100.0, 0  # since an optimizer began: each begins slowly, and with smaller steps
    for epoch, rate in enumerate(rates):
        falling = (1 + math.cos(math.pi * epoch / options.epochs)) / 2
        expected = top * falling * min(1.0, (since + 1) / warm_up)
        assert rate == pytest.approx(expected, rel=0.06)  # logged with two digits
        astray = losses[epoch + 1] >= losses[0]
        top, since = (top * training.BACK_OFF, 0) if astray else (top, since + per_epoch)
    assert top < 100


def test_teacher_and_student_see_the_pictures_at_their_own_size(
    pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    _, teacher = pair
    smaller = input_size.run(teacher, tmp_path / "smaller.safetensors", 96, Quiet())
    options = FinetuneOptions(epochs=1, rate=1e-4, train_from="classifier", images=12)
    made = distil.run(smaller, teacher, splits, tmp_path / "tuned.safetensors", options, Quiet(), tmp_path)
    assert checkpoints.load(made.path).chain.input.px == 96
    assert made.measured["kept_epoch"] == 1
    chosen = choose.limit(
        splits.select, [i.source for i in splits.select], options.select_images, options.seed
    )
    known = distil.Answers(tmp_path, teacher.sha256).read(
        distil._Pictures("selection", [(item, 0) for item in chosen], 1.0, options.seed, 16, Quiet()),
        for_input(224),
    )
    assert known is not None  # and not of 96 px
    with torch.inference_mode():
        expected = checkpoints.load(teacher.path).model()(tensors.stacked(chosen, for_input(224)))
    assert torch.allclose(known, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("same", [True, False])
def test_the_teachers_answers_are_its_own_whether_or_not_the_first_blocks_are_shared(
    same: bool, pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    student, teacher = (checkpoints.load(artifact.path) for artifact in pair)
    if not same:
        student.tensors["conv1_1.bias"] += 0.01
    frozen, _ = distil._divide(student.model(), "conv4_1")
    assert distil._begins_with(teacher.model(), frozen) == same
    pictures = distil._Pictures("fitting", [(item, 0) for item in splits.fit[:5]], 0.5, 0, 2, Quiet())
    answers = distil.Answers(tmp_path, pair[1].sha256)
    assert answers.read(pictures, for_input(224)) is None
    cached = distil._cache(pictures, for_input(224), frozen, teacher, None, tmp_path / "f")
    answers.write(pictures, for_input(224), cached.teacher)
    known = answers.read(pictures, for_input(224))
    assert known is not None
    assert torch.equal(known, cached.teacher)
    assert answers.read(pictures, for_input(160)) is None  # another question
    for other in (
        {"items": pictures.items[:4]},
        {"items": [(item, 1) for item, _ in pictures.items]},
        {"least_area": 1.0},
        {"seed": 1},
    ):
        assert answers.read(dataclasses.replace(pictures, **other), for_input(224)) is None
    assert distil.Answers(tmp_path, "another teacher").read(pictures, for_input(224)) is None
    again = distil._cache(pictures, for_input(224), frozen, teacher, known, tmp_path / "g")
    assert torch.equal(torch.from_numpy(again.features[:]), torch.from_numpy(cached.features[:]))
    drawn = tensors.batches_of(splits.fit[:5], for_input(224), 0.5)
    x = torch.stack([drawn[k][0] for k in range(len(pictures.items))])
    with torch.inference_mode():
        assert torch.allclose(cached.teacher, teacher.model()(x), rtol=1e-4, atol=1e-5)
        assert torch.allclose(torch.from_numpy(cached.features[:]), frozen(x), rtol=1e-4, atol=1e-5)


@pytest.mark.release
def test_answers_that_are_given_are_not_asked_for_again_and_change_nothing(
    pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    student, teacher = pair
    options = FinetuneOptions(epochs=1, select_images=9)
    asked: list[str] = []

    class Listening(Quiet):
        @contextlib.contextmanager
        def task(self, label: str, total: int | None) -> Iterator[Quiet]:
            asked.append(label)
            yield self

    alone = distil.run(student, teacher, splits, tmp_path / "alone.safetensors", options, Quiet(), tmp_path)
    given = tmp_path / "given"
    given.mkdir()
    with torch.inference_mode():
        x = tensors.stacked(splits.select, for_input(224))
        logits = checkpoints.load(teacher.path).model()(x).numpy()
    distil.give_answers(given, teacher, splits.select, logits, options)
    made = distil.run(student, teacher, splits, tmp_path / "made.safetensors", options, Listening(), given)
    assert "asking the teacher, fitting pictures" in asked
    assert "asking the teacher, selection pictures" not in asked
    assert made.measured["selection_loss"] == pytest.approx(alone.measured["selection_loss"], rel=1e-4)
    (kept,) = [path for path in given.glob("answers-*.npy") if len(np.load(path)) == 9]
    before = kept.stat().st_mtime_ns
    distil.give_answers(given, teacher, splits.select, logits + 1, options)  # known answers stay
    assert kept.stat().st_mtime_ns == before


def test_it_never_ends_worse_than_it_began(
    pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    student, teacher = pair
    ruinous = FinetuneOptions(epochs=1, rate=10.0)
    made = distil.run(student, teacher, splits, tmp_path / "tuned.safetensors", ruinous, Quiet())
    assert made.measured["selection_loss"][1] > made.measured["selection_loss"][0]
    assert made.measured["kept_epoch"] == 0
    before, after = checkpoints.load(student.path), checkpoints.load(made.path)
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())


def test_without_selection_pictures_or_for_random_weights_it_says_why(
    pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    student, teacher = pair
    few = Splits("few", splits.fit[:3], (), (), "too few to set some apart")
    made = distil.run(student, teacher, few, tmp_path / "a.safetensors", FinetuneOptions(), Quiet())
    assert made.measured["skipped"] == "too few to set some apart"
    none = distil.run(
        student, teacher, splits, tmp_path / "b.safetensors", FinetuneOptions(epochs=0), Quiet()
    )
    assert none.measured["skipped"] == "no epochs were asked for"


@pytest.mark.parametrize("third", [4.0, 6.0])
def test_it_keeps_the_best_epoch_not_the_last(
    third: float,
    pair: tuple[cache.Artifact, cache.Artifact],
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge finds the second of four epochs best, whatever they learned, and that is what is left. The
    third loses less than the start, and the training goes on from it, or more, and it is given up."""
    said, judged, begun = [5.0, 3.0, 1.0, third, 2.0], list[dict[str, torch.Tensor]](), list[torch.Tensor]()
    real, layers = training.train_epoch, {"0": "fc1", "2": "fc2", "4": "fc3"}  # of what is trained

    def weights(trained: torch.nn.Module) -> dict[str, torch.Tensor]:
        named = ((*name.split("."), tensor.clone()) for name, tensor in trained.state_dict().items())
        return {f"{layers[place]}.{kind}": tensor for place, kind, tensor in named}

    def judge(trained: torch.nn.Module, *_: object) -> float:
        judged.append(weights(trained))
        return said[len(judged) - 1]

    def train(trained: torch.nn.Module, *rest: Any) -> None:
        begun.append(weights(trained)["fc1.weight"])
        real(trained, *rest)

    monkeypatch.setattr(training, "selection_loss", judge)
    monkeypatch.setattr(training, "train_epoch", train)
    options = FinetuneOptions(epochs=4, rate=1e-2, train_from="classifier", images=16)
    made = distil.run(*pair, splits, tmp_path / "tuned.safetensors", options, Quiet())
    assert (made.measured["selection_loss"], made.measured["kept_epoch"]) == (said, 2)
    left = checkpoints.load(made.path)
    assert len(judged[2]) == 6
    assert all(torch.equal(left.tensors[name], tensor) for name, tensor in judged[2].items())
    others = [judged[k]["fc1.weight"] for k in (0, 1, 3, 4)]
    assert not any(torch.equal(left.tensors["fc1.weight"], weight) for weight in others)
    before = [judged[k]["fc1.weight"] for k in (0, 1, 2, 3 if third < said[0] else 2)]
    assert all(torch.equal(a, b) for a, b in zip(begun, before, strict=True))
    assert left.provenance.history[-1].startswith("distilled for 2 of 4 epochs on ")


def test_a_teacher_of_other_classes_is_refused(
    pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    checkpoints.save(small_checkpoint(classes=5), tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="the student has 7 classes"):
        distil.run(
            pair[0],
            cache.of(tmp_path / "other.safetensors"),
            splits,
            tmp_path / "t.safetensors",
            FinetuneOptions(),
            Quiet(),
        )
    for bad, said in (
        ({"epochs": -1}, "epochs must not be negative"),
        ({"rate": 0.0}, "--learning-rate must be positive, found 0"),
        ({"crops": 0}, "the numbers of trained stages and of crops and the temperature must be positive"),
        ({"train_from": "conv9"}, "--train-from takes the number of a stage or 'classifier', found"),
    ):
        with pytest.raises(OptionsError, match=said):
            FinetuneOptions(**bad)


@pytest.mark.release
def test_two_processes_learn_what_one_learns(
    pair: tuple[cache.Artifact, cache.Artifact], signs_folder: Path, tmp_path: Path
) -> None:
    student, teacher = pair
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES))
    arguments = ["finetune", "--weights", student.path, "--teacher", teacher.path, "--data", signs_folder]
    arguments += ["--finetune-epochs", "2", "--learning-rate", "1e-2", "--accept-accuracy"]
    paths = alone_and_divided(arguments, tmp_path, ".safetensors")
    one, both = (json.loads(Path(f"{path}.json").read_text())["measured"] for path in paths)
    assert (one["processes"], both["processes"]) == (1, 2)
    assert one["images"] == both["images"]
    assert min(both["selection_loss"]) < 0.97 * both["selection_loss"][0]
    # the batches are the same ones, and only the sums over them are rounded otherwise
    assert both["selection_loss"] == pytest.approx(one["selection_loss"], rel=1e-3)
    assert both["kept_epoch"] == one["kept_epoch"]
    alone, divided = (checkpoints.load(path) for path in paths)
    assert divided.chain == alone.chain
    for name, tensor in alone.tensors.items():
        change = float((tensor - divided.tensors[name]).norm() / tensor.norm())
        assert change < 1e-3, (name, change)


def test_steps_do_not_depend_on_how_two_layers_share_their_scale(
    pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    """One layer a thousandth of what it was and the next a thousand times as large is the same function, and
    learns the same; the halves of a factorised layer differ as much, and with one rate for all the smaller
    half would be spoilt by its first step."""
    student, teacher = pair
    options = FinetuneOptions(epochs=1, rate=1e-2, train_from="classifier", images=24)
    losses = []
    for factor in (1, 1000):
        scaled = checkpoints.load(student.path)
        for name, by in (("fc1.weight", 1 / factor), ("fc1.bias", 1 / factor), ("fc2.weight", factor)):
            scaled.tensors[name] = scaled.tensors[name] * by
        checkpoints.save(scaled, tmp_path / f"{factor}.safetensors")
        made = distil.run(
            cache.of(tmp_path / f"{factor}.safetensors"),
            teacher,
            unlabelled(splits),
            tmp_path / f"{factor}-tuned.safetensors",
            options,
            Quiet(),
        )
        losses.append(made.measured["selection_loss"])
    assert losses[0][1] < 0.95 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("labelled", ["all", "some", "none"])
def test_what_is_lost_is_counted_in_top_1_where_there_are_labels_and_else_in_agreement(
    labelled: str, pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    """The labels are what the teacher says, so that it has something to lose; the student says another class
    of half of the pictures."""
    _, teacher = pair
    x = tensors.stacked(splits.select, for_input(224))
    changed = checkpoints.load(teacher.path)
    with torch.inference_mode():
        logits = changed.model()(x)
        wanted = logits.argmax(1)
        rarest = int(wanted.bincount(minlength=len(CLASSES)).argmin())
        behind = logits.max(1).values - logits[:, rarest]
        changed.tensors["fc3.bias"][rarest] += behind.quantile(0.5)
        said = changed.model()(x).argmax(1)
    checkpoints.save(changed, tmp_path / "student.safetensors")
    student = cache.of(tmp_path / "student.safetensors")
    places = behind.argsort().argsort()  # every other picture, from those that change to those that do not
    known = torch.tensor([labelled == "all" or (labelled == "some" and k % 2 == 0) for k in places.tolist()])
    select = tuple(
        dataclasses.replace(i, label=int(w) if k else None)
        for i, w, k in zip(splits.select, wanted, known, strict=True)
    )
    # rolled back: what is counted is the student
    ruinous = FinetuneOptions(epochs=1, rate=100.0, train_from="classifier", images=16)
    made = distil.run(
        student,
        teacher,
        dataclasses.replace(splits, select=select),
        tmp_path / "tuned.safetensors",
        ruinous,
        Quiet(),
    )
    assert made.measured["kept_epoch"] == 0
    counted = known if labelled != "none" else torch.ones_like(known)
    rate = float((said != wanted)[counted].float().mean())
    expected = 100 * rate
    assert 0.2 < rate < 0.8
    assert made.measured["loss_error_points"] == pytest.approx(
        100 * (rate * (1 - rate) / int(counted.sum())) ** 0.5
    )
    assert made.measured["points_lost"] == pytest.approx(expected)


@pytest.mark.release
@pytest.mark.parametrize(
    ("budget", "up_to", "levels"),
    [
        (options.Budget(), "auto", ["classifier"]),
        (options.Budget(max_drop=0.001), "auto", ["blocks"]),
        (options.Budget(speedup=25.0), "auto", ["blocks"]),
        (options.Budget(max_drop=0.001), "classifier", ["classifier"]),
        (options.Budget(max_drop=100.0), "network", ["blocks"]),
        (options.Budget(max_drop=0.001), "network", ["blocks", "network"]),
        (options.Budget(max_drop=0.001), "none", []),
    ],
)
def test_distilling_goes_as_deep_as_a_budget_takes(
    budget: options.Budget,
    up_to: str,
    levels: list[str],
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network that lost half of its filters and was not repaired does not get back to all of the original's
    answers so fast. Where much may be lost the pictures have labels, of which a drawn network has few right
    and so few to lose."""
    monkeypatch.setattr(
        options,
        "DISTIL_LEVELS",
        {n: dataclasses.replace(o, epochs=1) for n, o in options.DISTIL_LEVELS.items()},
    )
    checkpoints.save(small_checkpoint(), tmp_path / "checkpoint.safetensors")
    wanted = options.RecipeOptions(
        prune=PruneOptions(ratio=0.5, first_stage=2, repair=False),
        distil=options.DistilOptions(up_to, images=8),
        budget=budget,
    )
    shown = splits if budget.max_drop else unlabelled(splits)
    original = cache.of(tmp_path / "checkpoint.safetensors")
    steps = recipes.Steps(recipes.Context(original, shown, wanted, Quiet(), tmp_path, tmp_path))
    made = steps.make((recipes.PRUNE, recipes.DISTIL))
    assert sorted(p.stem.rpartition("-")[2] for p in tmp_path.glob("*distil-*.safetensors")) == levels
    if levels:
        assert (
            made.path
            == tmp_path
            / f"checkpoint+prune+distil-{max(levels, key=list(options.DISTIL_LEVELS).index)}.safetensors"
        )


def test_few_pictures_are_shown_in_several_crops(
    pair: tuple[cache.Artifact, cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    student, teacher = pair
    few = dataclasses.replace(splits, fit=splits.fit[:9])
    for limit, crops in ((40, 36), (20, 20), (9, 9), (6, 6)):
        options = FinetuneOptions(1, rate=1e-4, train_from="classifier", images=limit, select_images=8)
        made = distil.run(
            student, teacher, few, tmp_path / f"{limit}.safetensors", options, Quiet(), tmp_path
        )
        assert (made.measured["images"], made.measured["crops"]) == (min(9, limit), crops)
        history = checkpoints.load(made.path).provenance.history[-1]
        assert f"on {crops} crops of {min(9, limit)} pictures" in history


def test_crops_of_a_picture_differ_and_are_the_same_every_time(splits: Splits) -> None:
    items = [splits.fit[0]] * 3
    one, again = (tensors.batches_of(items, for_input(64), 0.4, 0, (0, 1, 2)) for _ in range(2))
    assert [torch.equal(one[k][0], again[k][0]) for k in range(3)] == [True] * 3
    assert not torch.equal(one[0][0], one[1][0])
    assert not torch.equal(one[1][0], one[2][0])
    plain = tensors.batches_of(items, for_input(64), 0.4, 0)
    assert torch.equal(one[0][0], plain[0][0])


class _Line(torch.nn.Module):
    """Logits (w x, 0) of a number x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.weight * x, torch.zeros_like(x)], 1)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([9.0, 5.0, 4.5], 8e-3),  # 4 of 4.5 are kept by the larger one
        ([9.0, 8.0, 4.0, 3.9], 4e-3),  # 1 of 5 is too little, 5 of 5.1 are most
        ([9.0, 12.0, 10.0, 9.5, 9.2, 9.1], 5e-4),  # none helps: the smallest steps
        ([9.0, 12.0, 10.0, 9.5, 8.0, 7.9], 1e-3),  # the last test is of a smaller one that gains little more
        ([9.0, float("nan"), 7.0, 7.0], 4e-3),
    ],
)
def test_the_largest_rate_that_keeps_most_of_the_gain_is_taken(
    losses: list[float], expected: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said, network = iter(losses), _Line()
    monkeypatch.setattr(training, "selection_loss", lambda *_: next(said))
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    cached = training.Cached(x, torch.zeros(40, 2), torch.full((40,), -1), SOFTMAX)
    with caplog.at_level("INFO"):
        rate = training._tested_rate(network, cached, cached, FinetuneOptions(), Quiet())
    assert rate == expected
    assert next(said, None) is None  # no more tests than needed
    assert network.weight.item() == 1.0
    assert f"learning rate {expected:.1e}" in caplog.text


def test_a_test_of_a_rate_trains_with_it_and_leaves_the_weights_as_they_were() -> None:
    """The slope of the logit should be 5: with steps of 0.8 % of its size it grows most."""
    network, x = _Line(), np.linspace(-1, 1, 1600, dtype=np.float32)[:, None]
    teacher = torch.cat([5 * torch.from_numpy(x), torch.zeros(1600, 1)], 1)
    cached = training.Cached(x, teacher, torch.full((1600,), -1), SOFTMAX)
    assert training._tested_rate(network, cached, cached, FinetuneOptions(), Quiet()) == training.RATES[0]
    assert network.weight.item() == 1.0
    losses, kept = training.train(network, cached, cached, FinetuneOptions(2), Quiet())
    assert losses[kept] < losses[0]
    assert network.weight.item() > 1.5
