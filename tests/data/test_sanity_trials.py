"""Other inputs are tried: the right one is found, luck finds none, and a sound network is hardly asked."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgg_export.core import cache
from vgg_export.core.errors import AccuracyError, DataError
from vgg_export.core.progress import Quiet
from vgg_export.data import sanity, trials
from vgg_export.data.splits import Item
from vgg_export.data.trials import NOTHING_SETTLED, Asked, Settled, try_others
from vgg_runtime.bundle import input_spec
from vgg_runtime.bundle.input_spec import InputSpec, for_input, normalized
from vgg_runtime.bundle.outputs import MULTI_LABEL, SIGMOID, class_logits

PX, CLASSES = 8, 6
ASSUMED = InputSpec(PX, PX)
NAMES = tuple("abcdef")
SERIAL = itertools.count(1)
COLOURS = np.array(
    [(220, 40, 40), (40, 60, 220), (60, 200, 60), (230, 220, 60), (90, 90, 90), (240, 240, 240)]
)


def pictures(folder: Path, count: int, noise: float = 40.0, classes: int = CLASSES) -> list[Item]:
    """Squares of a colour per class, with noise."""
    chance, found = np.random.default_rng(1), []
    for k in range(count):
        colour = COLOURS[k % classes] + chance.normal(0, noise, 3)
        path = folder / f"{k}.png"
        pixels = np.broadcast_to(np.clip(colour, 0, 255).astype(np.uint8), (PX, PX, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found.append(Item(path, k % classes, digest, str(k)))
    return found


def wanting(spec: InputSpec, order: Sequence[int] = range(CLASSES)) -> trials.Ask:
    """A network that names the class whose colour is nearest, for pictures prepared as ``spec``. ``order``:
    the class of each output."""

    def answer(x: trials.Floats) -> trials.Floats:
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (spec.mean, spec.std))
        colours = (x * std + mean).mean((2, 3))[:, :: -1 if spec.bgr else 1] * 255
        far = ((colours[:, None] - COLOURS[None, list(order)]) ** 2).sum(2)
        logits: trials.Floats = (-far / 2000).astype(np.float32)
        return logits

    return answer


class Counted:
    """A network, and the number of pictures that it was asked about."""

    def __init__(self, network: trials.Ask) -> None:
        self.network, self.count = network, 0

    def __call__(self, x: trials.Floats) -> trials.Floats:
        self.count += len(x)
        return self.network(x)


def found_by(
    network: trials.Ask, items: list[Item], settled: Settled = NOTHING_SETTLED
) -> tuple[trials.Trial, int]:
    """The trial of a network whose pictures are assumed to be prepared as ImageNet's, and the number of runs
    for others."""
    counted = Counted(network)
    asked = Asked(counted, "softmax", items, Quiet())
    (own,) = asked.said([ASSUMED], range(len(items)), "")
    found = try_others(asked, own, settled)
    return found.trial, counted.count - len(items)


def test_every_usual_normalisation_is_tried_in_both_orders_of_the_channels() -> None:
    words = {(input_spec.named(one) or ("numbers", one.bgr)) for one in trials.normalizations(ASSUMED)}
    both = {(word, bgr) for word in ("half", "unit", "none", "cifar") for bgr in (False, True)}
    assert words == {*both, ("imagenet", True), ("caffe", False), ("numbers", False), ("numbers", True)}
    grey = InputSpec(PX, PX, (0.5,), (0.5,), 1)
    assert [input_spec.named(one) for one in trials.normalizations(grey)] == [
        (word, False) for word in ("imagenet", "unit", "none", "cifar")
    ]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return pictures(tmp_path_factory.mktemp("noisy"), 120)


@pytest.mark.parametrize(
    ("word", "exchanged"),
    [("none", False), ("caffe", False), *((w, True) for w in ("half", "unit", "none", "caffe", "imagenet"))],
)
def test_the_input_that_a_network_wants_is_found(word: str, exchanged: bool, noisy: list[Item]) -> None:
    spec = normalized(ASSUMED, word)
    spec = input_spec.exchanged(spec) if exchanged else spec
    trial, _ = found_by(wanting(spec), noisy)
    assert trial.clear
    assert trial.better.input == spec
    assert (trial.assumed.input, trial.assumed.n, trial.better.n) == (ASSUMED, 120, 120)
    assert trial.better.right > 100
    assert sorted({said.n for said in trial.tried}) in ([20, 60, 120], [60, 120], [20, 120])


def test_a_sound_network_is_asked_little_more_than_once(noisy: list[Item]) -> None:
    trial, runs = found_by(wanting(ASSUMED), noisy)
    assert not trial.clear
    assert trial.assumed.rate > 0.9
    assert runs <= 300
    clean = [item for item in noisy if item.label in (4, 5)]
    trial, runs = found_by(wanting(ASSUMED), clean)
    assert (trial.tried, runs) == ((trial.assumed,), 0) or not trial.clear


def test_the_runs_are_bounded_where_nothing_is_right(tmp_path: Path) -> None:
    def guessing(x: trials.Floats) -> trials.Floats:
        seeds = [int(hashlib.sha256(one.tobytes()).hexdigest()[:8], 16) for one in x]
        return np.stack([np.random.default_rng(s).normal(size=CLASSES) for s in seeds]).astype(np.float32)

    items = pictures(tmp_path, 300)
    trial, runs = found_by(guessing, items)
    assert not trial.clear
    assert runs <= 1900


def equal(rate: float, seed: int) -> trials.Ask:
    """A network that is right at this rate whatever the normalisation is, on other pictures with each. The
    brightest place of a picture is its class."""

    def answer(x: trials.Floats) -> trials.Floats:
        labels = x[:, 1].reshape(len(x), -1).argmax(1)  # green stays where it is
        chance = np.abs(np.sin(x.sum((1, 2, 3), np.float64) * 12.9898 + seed) * 43758.5453) % 1
        logits = np.zeros((len(x), CLASSES), np.float32)
        said = np.where(chance < rate, labels, (labels + 1) % CLASSES)
        logits[np.arange(len(x)), said] = 1 + 5 * (chance * 1000 % 1)
        return logits

    return answer


@pytest.mark.release
@pytest.mark.parametrize("rate", [0.7, 0.95])
def test_the_best_of_many_equal_inputs_does_not_win_by_luck(rate: float, tmp_path: Path) -> None:
    """60 networks for which every normalisation is as good as the assumed one, though on other pictures. A
    few in a hundred may seem clear."""
    chance, items = np.random.default_rng(0), []
    for k in range(100):
        pixels = chance.integers(0, 200, (PX, PX, 3), np.uint8)
        pixels[0, k % CLASSES, 1] = 255
        Image.fromarray(pixels).save(tmp_path / f"{k}.bmp")
        items.append(Item(tmp_path / f"{k}.bmp", k % CLASSES, str(k), str(k)))
    found = [found_by(equal(rate, seed), items, Settled(resize=True))[0] for seed in range(60)]
    assert np.mean([trial.assumed.rate for trial in found]) == pytest.approx(rate, abs=0.03)
    assert sum(trial.clear for trial in found) <= 3


def test_another_way_of_resizing_is_found_if_it_is_clear(tmp_path: Path) -> None:
    """The class is seen at the ends of wide pictures, which only squash and pad show."""
    items = []
    for k in range(80):
        pixels = np.full((16, 64, 3), 128, np.uint8)
        pixels[:, :8] = pixels[:, -8:] = COLOURS[k % CLASSES]
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        items.append(Item(tmp_path / f"{k}.png", k % CLASSES, str(k), str(k)))

    def ends(x: trials.Floats) -> trials.Floats:
        return wanting(ASSUMED)(np.ascontiguousarray(x[:, :, :, [0, -1]]))

    trial, _ = found_by(ends, items)
    assert trial.clear
    assert (trial.better.input.resize, trial.better.input.mean) == ("squash", ASSUMED.mean)
    assert input_spec.changes(trial.better.input, ASSUMED) == "--resize squash"
    assert not found_by(ends, items, Settled(resize=True))[0].clear


# What is said, and what is done.


def subject(network: trials.Ask, folder: Path, **more: Any) -> sanity.Subject:
    # what a counted network was asked is kept; others are each a network of their own
    serial = 0 if isinstance(network, Counted) else next(SERIAL)
    (folder / "network").write_text(f"{serial} {more}")
    told: dict[str, Any] = {"names": NAMES, **more}
    return sanity.Subject(lambda: network, cache.of(folder / "network"), ASSUMED, **told)


def check(
    network: trials.Ask, items: Sequence[Item], folder: Path, *, accept: bool = False, **more: Any
) -> sanity.Checked:
    return sanity.check(subject(network, folder, **more), [items], folder / "s.json", Quiet(), accept=accept)


CAFFE = normalized(ASSUMED, "caffe")
HALF = normalized(ASSUMED, "half")


def test_the_run_stops_with_a_table_and_the_flags(noisy: list[Item], tmp_path: Path) -> None:
    with pytest.raises(AccuracyError) as error:
        check(wanting(CAFFE), noisy, tmp_path)
    said = str(error.value)
    assert "it seems to have been trained with BGR with values of 0 to 255 less the mean, as Caffe's" in said
    assert "Give --normalize caffe; --normalize imagenet keeps what was assumed" in said
    lines = said.splitlines()
    header = next(line for line in lines if line.startswith("prepared as"))
    assert header.split() == ["prepared", "as", "right", "95", "%", "interval", "pictures", "flags"]
    rows = lines[lines.index(header) + 2 :]
    assert rows[0].startswith("RGB with ImageNet's mean and standard deviation ")
    assert rows[0].endswith(["120", "(assumed)"][-1])
    assert rows[1].endswith("--normalize caffe")
    assert " 120 " in rows[1]


def test_accepted_it_goes_on_and_the_problem_is_kept(
    noisy: list[Item], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = check(wanting(CAFFE), noisy, tmp_path, accept=True)
    assert found.problem is not None
    assert "Give --normalize caffe" in found.problem
    assert "\n" not in found.problem  # the table is for the terminal, the problem is shown with every figure
    assert "recommends nothing" in caplog.text


def test_what_is_told_is_not_overruled_only_said(
    noisy: list[Item], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swapped = input_spec.exchanged(ASSUMED)
    assert check(wanting(swapped), noisy, tmp_path, settled=Settled(normalization=True)) == sanity.Checked()
    assert "The input is told, so it stays as it is" in caplog.text
    assert "--normalize imagenet --bgr" in caplog.text
    with pytest.raises(AccuracyError, match="Give --normalize imagenet --bgr"):
        check(wanting(swapped), noisy, tmp_path, settled=Settled(resize=True))


def test_told_or_not_chance_stops(noisy: list[Item], tmp_path: Path) -> None:
    settled = Settled(normalization=True, resize=True)
    with pytest.raises(AccuracyError, match="which is not clearly better than") as error:
        check(wanting(normalized(ASSUMED, "none")), noisy, tmp_path, settled=settled)
    assert "Give --normalize none" in str(error.value)


def test_auto_takes_the_best_and_says_so(
    noisy: list[Item], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = check(wanting(CAFFE), noisy, tmp_path, settled=Settled(auto=True))
    assert found == sanity.Checked(input=CAFFE)
    assert "--normalize auto takes BGR with values of 0 to 255 less the mean" in caplog.text
    assert check(wanting(ASSUMED), noisy, tmp_path, settled=Settled(auto=True)).input in (None, ASSUMED)
    assert "--normalize auto takes RGB with ImageNet's" in caplog.text


def test_auto_needs_labels(noisy: list[Item], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"--normalize auto needs labelled pictures that tell\. NOT CHECKED: 19"
    ):
        check(wanting(CAFFE), noisy[:19], tmp_path, settled=Settled(auto=True))


def test_another_input_and_another_order_together_are_named(noisy: list[Item], tmp_path: Path) -> None:
    order = (3, 0, 4, 5, 1, 2)
    with pytest.raises(AccuracyError) as error:
        check(wanting(CAFFE, order), noisy, tmp_path)
    said = str(error.value)
    assert "0 d, 1 a, 2 e, 3 f, 4 b, 5 c" in said
    assert "Give --normalize caffe;" in said
    assert "--labels" in said
    with pytest.raises(AccuracyError, match="its classes are in another order"):
        check(wanting(CAFFE, order), noisy, tmp_path, settled=Settled(auto=True))


def test_where_nothing_is_right_the_message_says_how_to_tell(noisy: list[Item], tmp_path: Path) -> None:
    def constant(x: trials.Floats) -> trials.Floats:
        return np.eye(CLASSES, dtype=np.float32)[np.zeros(len(x), int)]

    with pytest.raises(AccuracyError) as error:
        check(constant, noisy, tmp_path)
    assert "no usual normalisation, order of the channels or way of resizing is clearly better" in str(
        error.value
    )
    assert "in the program that trained it" in str(error.value)


def one_logit(network: trials.Ask) -> Callable[[trials.Floats], trials.Floats]:
    def answer(x: trials.Floats) -> trials.Floats:
        logits = network(x)
        return logits[:, 1:2] - logits[:, 0:1]

    return answer


def test_one_logit_of_a_sigmoid_is_judged_as_two_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    items = pictures(tmp_path, 60, classes=2)
    network = one_logit(wanting(ASSUMED))
    assert check(network, items, tmp_path, names=("no", "yes"), output=SIGMOID) == sanity.Checked()
    assert "is right on 100.0 % of 60 labelled pictures" in caplog.text
    with pytest.raises(AccuracyError, match="0 yes, 1 no"):
        check(lambda x: -network(x), items, tmp_path, names=("no", "yes"), output=SIGMOID)
    logits = class_logits(np.array([[2.0], [-1.0]], np.float32), SIGMOID)
    assert logits.tolist() == [[0.0, 2.0], [0.0, -1.0]]
    assert class_logits(logits, "softmax") is logits


def test_several_labels_are_not_checked_and_that_is_said(noisy: list[Item], tmp_path: Path) -> None:
    found = check(wanting(CAFFE), noisy, tmp_path, output=MULTI_LABEL)
    assert found.problem is None
    assert found.unchecked is not None
    assert found.unchecked.startswith("NOT CHECKED: a multi-label network has no top-1")


def test_the_trial_is_kept_with_the_answers(noisy: list[Item], tmp_path: Path) -> None:
    counted = Counted(wanting(CAFFE))
    for _ in range(2):
        with pytest.raises(AccuracyError, match="--normalize caffe"):
            check(counted, noisy, tmp_path)
    assert counted.count <= 120 + 900
    kept = json.loads((tmp_path / "s.json").read_text())
    assert kept["trial"]["clear"] is True
    assert kept["otherwise"]["right"] == kept["trial"]["best"]["right"]
    assert for_input(PX) != ASSUMED
