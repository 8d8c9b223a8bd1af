"""Checks whether a checkpoint understands its pictures, before anything takes time.

With another normalisation, swapped channels or classes in another order, a network is as sure of its answers
as ever, and its variants agree with it. Only its accuracy on labelled pictures shows that something is wrong.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_calibration import choose
from vgg_export.core import cache
from vgg_export.core.errors import AccuracyError
from vgg_export.core.progress import Progress
from vgg_runtime.bundle import metrics
from vgg_runtime.bundle.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, load
from vgg_runtime.measure.recommend import LEAST_LABELLED
from vgg_runtime.records import Record
from vgg_runtime.text import printable

from .splits import Item

log = logging.getLogger(__name__)

MOST_ASKED = 200
MOST_FOR_READINGS = 100  # how many of the pictures are also tried as other inputs
BATCH = 10
LEAST_EXPLAINED = 0.5  # share of the held-out pictures that another order of the classes must get right
CERTAIN = 0.9  # from this share on, the classes are said to be in that order
MOSTLY_ONE_CLASS = 0.5  # share of one class from which a good network is hardly better than naming that class
MOST_SHOWN = 60  # how many classes of an order a message shows
CAUSES = (
    "the likely causes are another normalisation or range of values, another order of the channels (BGR),"
    " another order of the classes,"
    " or pictures of something else"
)

Floats = npt.NDArray[np.float32]
Ask = Callable[[Floats], Floats]  # a batch [n, 3, px, px] -> logits [n, classes]

_MEAN, _STD = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
_CAFFE_MEAN_BGR = np.asarray((103.939, 116.779, 123.68), np.float32).reshape(3, 1, 1)


def _unit(x: Floats) -> Floats:
    """RGB from 0 to 1, from a tensor that is normalised as ImageNet's."""
    return x * _STD + _MEAN


# Other inputs that a network may have been trained on, made of a tensor [n, 3, px, px] that is normalised as
# ImageNet's.
READINGS: dict[str, Callable[[Floats], Floats]] = {
    "BGR with ImageNet's mean and standard deviation in that order": lambda x: (
        (_unit(x)[:, ::-1] - _MEAN) / _STD
    ).astype(np.float32),
    "the same values with red and blue exchanged": lambda x: np.ascontiguousarray(x[:, ::-1]),
    "values of 0 to 1": _unit,
    "values of -1 to 1": lambda x: 2 * _unit(x) - 1,
    "values of 0 to 255": lambda x: 255 * _unit(x),
    "BGR of 0 to 255 less the mean, as Caffe's and Keras' VGG": lambda x: (
        255 * _unit(x)[:, ::-1] - _CAFFE_MEAN_BGR
    ),
}


@dataclasses.dataclass(frozen=True)
class Answers(Record):
    """The answers of a checkpoint on ``n`` labelled pictures: ``right`` of them are correct. ``chance``: the
    share of the most frequent class, or that of guessing. ``largest``: the name of that class.
    ``mean_probability``: the mean probability of the predicted classes. The other fields would explain the
    errors.

    ``order``: the class names in the order of the outputs (None: not seen, one of the ``missing``). It was
    found on half of the pictures, and is right on ``order_right`` of the ``order_n`` others. ``reading``:
    another input, which is right on ``reading_right`` of ``reading_n`` of the pictures."""

    n: int
    right: int
    chance: float
    largest: str
    single_class: bool
    mean_probability: float
    order: tuple[str | None, ...] | None = None
    missing: tuple[str, ...] = ()
    order_right: int = 0
    order_n: int = 0
    reading: str | None = None
    reading_right: int = 0
    reading_n: int = 0

    @property
    def order_certain(self) -> bool:
        return self.order is not None and self.order_right / self.order_n >= CERTAIN

    @property
    def better_than_chance(self) -> bool:
        return metrics.better_than_chance(self.right, self.n, self.chance)

    @property
    def telling(self) -> bool:
        """Whether these pictures could show anything. If nearly all are of one class, even a perfect network
        is not clearly better than chance."""
        return metrics.better_than_chance(self.n, self.n, self.chance)

    @property
    def misordered(self) -> bool:
        """Whether another order of the classes is right more than twice as often, so that most classes have
        wrong names."""
        return self.order is not None and 2 * self.right / self.n < self.order_right / self.order_n

    @property
    def understood(self) -> bool:
        return self.better_than_chance and not self.misordered

    @property
    def doubtful(self) -> bool:
        """Whether the network is near chance, or right clearly less often than its mean probability says."""
        return (
            not self.better_than_chance
            or metrics.wilson_interval(self.right, self.n)[1] < self.mean_probability
        )

    @property
    def suspicious(self) -> bool:
        """Whether something is wrong although the pictures count as understood."""
        return (
            self.right / self.n < self.mean_probability / 2
            or self.order is not None
            or self.reading is not None
        )


STAGE = cache.Stage("sanity", __name__, Answers)


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of the check. ``unchecked``: why there was none. ``problem``: a problem that was found and
    accepted. Both are shown with every figure."""

    unchecked: str | None = None
    problem: str | None = None


def check(
    network: Callable[[], Ask],
    asked: cache.Artifact,
    preprocessing: Preprocessing,
    sets: Sequence[Sequence[Item]],
    names: Sequence[str],
    output: Path,
    progress: Progress,
    *,
    accept: bool,
) -> Checked:
    """Check a checkpoint on pictures of ``sets``, those of the first set first. The other arguments are those
    of ``ask``.

    Raises:
        AccuracyError: it does not understand them and ``accept`` is false.
    """
    items = labelled(sets)
    if unchecked := _unchecked(len(items), sum(map(len, sets))):
        log.warning("!! %s", unchecked)
        return Checked(unchecked)
    answers = ask(network, asked, preprocessing, items, names, output, progress)
    if not answers.telling:
        uneven = (
            f"{100 * answers.chance:.0f} % of {answers.n} labelled pictures are"
            f" {printable(answers.largest)!r}, so that they cannot tell"
        )
        log.warning("!! %s", unchecked := _not_checked(uneven))
        return Checked(unchecked)
    return Checked(problem=ensure_understood(answers, accept=accept))


def labelled(sets: Sequence[Sequence[Item]]) -> list[Item]:
    """The labelled pictures to ask about: up to MOST_ASKED, of the first set and then of the next ones."""
    chosen: list[Item] = []
    for items in sets:
        known = [item for item in items if item.label is not None]
        chosen += choose.limit(known, [item.source for item in known], MOST_ASKED - len(chosen), 0)
    return chosen


def _unchecked(count: int, pictures: int) -> str | None:
    """The reason why nothing can be checked, as a notice that is shown with every figure. None: there are
    enough pictures."""
    if count >= LEAST_LABELLED:
        return None
    if count:
        return _not_checked(
            f"{count} labelled pictures that nothing is fitted on are too few (at least {LEAST_LABELLED})"
        )
    if pictures:
        return _not_checked("the pictures that nothing is fitted on have no labels")
    return _not_checked("all pictures are fitted on")


def _not_checked(why: str) -> str:
    return (
        f"NOT CHECKED: {why}, so nobody knows whether the checkpoint understands its pictures as they are"
        " prepared here (normalisation,"
        " channel order, range, order of classes); agreement says only that the variants answer like it"
    )


def ask(
    network: Callable[[], Ask],
    asked: cache.Artifact,
    preprocessing: Preprocessing,
    items: Sequence[Item],
    names: Sequence[str],
    output: Path,
    progress: Progress,
) -> Answers:
    """Run a checkpoint on labelled pictures, unless the same was done before.

    Args:
        network: makes the function that computes logits; called only if it is needed.
        asked: the file of the network.
        names: the class names in the assumed order.
        output: the JSON file where the answers are kept.
    """
    options = {
        "images": [[i.sha256, i.label] for i in items],
        "names": list(names),
        "preprocessing": preprocessing.to_json(),
    }

    def make(path: Path) -> Answers:
        answers = _ask(network(), preprocessing, items, names, progress)
        path.write_text(json.dumps(answers.to_json(), indent=1))
        return answers

    return cache.produce(STAGE, options, {"checkpoint": asked}, output, make).read(Answers)


def _ask(
    network: Ask,
    preprocessing: Preprocessing,
    items: Sequence[Item],
    names: Sequence[str],
    progress: Progress,
) -> Answers:
    labels = np.array([i.label for i in items], np.int64)
    doing = "asking the checkpoint about labelled pictures"
    (logits,) = _logits(network, preprocessing, items, {"as it is": lambda x: x}, doing, progress).values()
    answers = judge(logits, labels, names)
    if not answers.doubtful or answers.order_certain:
        return answers
    step = math.ceil(len(items) / MOST_FOR_READINGS)
    some, own = items[::step], labels[::step]
    others = _logits(network, preprocessing, some, READINGS, "asking it again with other inputs", progress)
    hits = {name: said.argmax(1) == own for name, said in others.items()}
    best = max(hits, key=lambda name: int(hits[name].sum()))
    right = int(hits[best].sum())
    if not _clearly_more(hits[best], logits[::step].argmax(1) == own):
        return answers
    if answers.order is not None and right / len(some) > answers.order_right / answers.order_n:
        answers = dataclasses.replace(answers, order=None)
    return dataclasses.replace(answers, reading=best, reading_right=right, reading_n=len(some))


def _clearly_more(some: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]) -> bool:
    """Whether the first is right more often than the second on the same pictures (exact sign test at 1 %)."""
    won, lost = int((some & ~others).sum()), int((others & ~some).sum())
    return won > lost and metrics.binomial_tail(won, won + lost, 0.5) < metrics.CHANCE_LEVEL


def _logits(
    network: Ask,
    preprocessing: Preprocessing,
    items: Sequence[Item],
    readings: dict[str, Callable[[Floats], Floats]],
    doing: str,
    progress: Progress,
) -> dict[str, Floats]:
    said: dict[str, list[Floats]] = {name: [] for name in readings}
    with progress.task(doing, len(items)) as task:
        for batch in _batches(items):
            x = np.stack([load(item.path, preprocessing) for item in batch])
            for name, reading in readings.items():
                said[name].append(network(np.ascontiguousarray(reading(x), np.float32)))
            task.advance(len(batch))
    return {name: np.concatenate(parts) for name, parts in said.items()}


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def judge(logits: Floats, labels: npt.NDArray[np.int64], names: Sequence[str]) -> Answers:
    """Judge ``logits`` [n, classes] of pictures whose classes are ``labels`` [n]. ``names``: the class names
    in the assumed order."""
    chance = metrics.chance(labels, logits.shape[1])
    assert chance is not None
    predicted = logits.argmax(1)
    counts = np.bincount(labels, minlength=len(names))
    answers = Answers(
        n=len(labels),
        right=int((predicted == labels).sum()),
        chance=chance,
        largest=names[int(counts.argmax())],
        single_class=int((counts > 0).sum()) == 1,
        mean_probability=float(metrics.softmax(logits).max(1).mean()),
    )
    return (
        dataclasses.replace(answers, **_other_order(predicted, labels, names))
        if answers.doubtful
        else answers
    )


def _other_order(
    predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    """The order of the classes that the confusion matrix suggests. It is found on every other picture of each
    class, and kept only if it is right on the other pictures clearly more often than the assumed order."""
    place = np.zeros(len(labels), np.int64)  # the index of a picture among those of its class
    for label in np.unique(labels):
        place[labels == label] = np.arange((labels == label).sum())
    fit, apart = place % 2 == 0, place % 2 == 1
    if not apart.any():
        return {}
    confusion = np.zeros((len(names), len(names)), np.int64)  # [class, output]
    np.add.at(confusion, (labels[fit], predicted[fit]), 1)
    class_of = _assigned(confusion)
    meant = np.array([class_of.get(int(output), -1) for output in predicted[apart]])
    hits, n = meant == labels[apart], int(apart.sum())
    right = int(hits.sum())
    if right / n < LEAST_EXPLAINED or not _clearly_more(hits, predicted[apart] == labels[apart]):
        return {}
    if len(class_of) == len(names) - 1:  # the last class belongs to the last output
        (output,), (label,) = (
            set(range(len(names))) - set(class_of),
            set(range(len(names))) - set(class_of.values()),
        )
        class_of[output] = label
    order = tuple(names[class_of[k]] if k in class_of else None for k in range(len(names)))
    missing = tuple(name for k, name in enumerate(names) if k not in class_of.values())
    return {"order": order, "missing": missing, "order_right": right, "order_n": n}


def _assigned(confusion: npt.NDArray[np.int64]) -> dict[int, int]:
    """The class of each output. The most frequent pairs are taken first; each output and class is used
    once."""
    pairs = [
        (int(confusion[label, output]), int(label), int(output))
        for label, output in zip(*np.nonzero(confusion), strict=True)
    ]
    class_of: dict[int, int] = {}
    taken: set[int] = set()
    for _, label, output in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if output not in class_of and label not in taken:
            class_of[output] = label
            taken.add(label)
    return class_of


def ensure_understood(answers: Answers, *, accept: bool) -> str | None:
    """Log what was found, and warn where something is wrong although the pictures count as understood.

    Returns:
        The accepted problem as a sentence, or None.

    Raises:
        AccuracyError: the checkpoint is not clearly better than chance, or its classes are in another order,
            and
            ``accept`` is false.
    """
    found = _found(answers)
    if answers.understood:
        if answers.suspicious:
            log.warning(
                "!! %s, while its mean probability is %.1f %%: %s",
                found,
                100 * answers.mean_probability,
                _why(answers),
            )
        elif answers.single_class:
            log.warning(
                "!! %s; all of them are %s, so a network that always answers that would pass too",
                found,
                printable(answers.largest),
            )
        else:
            log.info("%s", found)
        return None
    against = f"guessing among the classes ({100 * answers.chance:.1f} %)"
    if not answers.single_class:
        against = f"always saying {printable(answers.largest)!r} ({100 * answers.chance:.1f} %)"
    better = answers.better_than_chance
    problem = (
        f"{found}, which is {'' if better else 'not clearly '}better than"
        f" {against}{', but' if better else ':'} {_why(answers)}"
    )
    if not accept:
        raise AccuracyError(f"{problem}. With --accept-accuracy the run goes on, and recommends nothing")
    log.warning("!! %s. The run goes on because of --accept-accuracy, and recommends nothing", problem)
    return problem


def _found(answers: Answers) -> str:
    low, high = (100 * bound for bound in metrics.wilson_interval(answers.right, answers.n))
    rate = 100 * answers.right / answers.n
    return (
        f"the checkpoint is right on {rate:.1f} % of {answers.n} labelled pictures ({low:.1f} to"
        f" {high:.1f} %)"
    )


def _why(answers: Answers) -> str:
    if answers.order is not None:
        fact = (
            "its classes are in another order"
            if answers.order_certain
            else "another order of its classes would explain a part of its errors"
        )
        return (
            f"{fact}, with which it is right on {answers.order_right} of {answers.order_n} pictures apart:"
            f" {_order_in_words(answers.order, answers.missing)}. Give the names in that order with"
            " --labels, or"
            " correct them in the file if it names them"
        )
    if answers.reading is not None:
        return (
            f"it seems to have been trained on another input: asked with {answers.reading} it is right on"
            f" {answers.reading_right} of"
            f" {answers.reading_n} of them. This version prepares every picture as ImageNet's, so change"
            " the first layer to take that"
            " (weights and bias), or train with ImageNet's normalisation"
        )
    if answers.chance >= MOSTLY_ONE_CLASS:
        return (
            f"{CAUSES}; or these pictures show too little, since most are of one class: give more"
            " pictures of the other classes"
        )
    return CAUSES


def _order_in_words(order: Sequence[str | None], missing: Sequence[str]) -> str:
    names = [f"{k} {'(not seen)' if name is None else printable(name)}" for k, name in enumerate(order)]
    shown = ", ".join(names[:MOST_SHOWN]) + (f", … {len(names)} in all" if len(names) > MOST_SHOWN else "")
    return shown + (
        f" (those not seen are {', '.join(map(printable, missing[:MOST_SHOWN]))})" if missing else ""
    )
