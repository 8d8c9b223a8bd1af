"""Checks whether a checkpoint understands its pictures, before anything takes time.

With another normalisation, swapped channels or classes in another order, a network is as sure of its answers
as ever, and its variants agree with it. Only its accuracy on labelled pictures shows that something is wrong.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from vgg_calibration import choose
from vgg_export.core import cache
from vgg_export.core.errors import DataError
from vgg_export.core.progress import Progress
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.outputs import MULTI_LABEL, SOFTMAX
from vgg_runtime.measure.recommend import LEAST_LABELLED
from vgg_runtime.text import printable

from . import class_order
from .answers import Answers, judge
from .splits import Item
from .trials import NOTHING_SETTLED, Ask, Asked, Settled, tried, try_others
from .verdict import ensure_understood

log = logging.getLogger(__name__)

MOST_ASKED = 300

STAGE = cache.Stage("sanity", __name__, Answers)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The checkpoint that is asked. ``network``: makes the function that computes its outputs; called only if
    it is needed. ``file``: its artifact. ``input``: the input that is assumed, and ``settled`` which parts
    of it pictures must not overrule. ``names``: the class names in the assumed order. ``output``: what the
    outputs mean (vgg_runtime.bundle.outputs)."""

    network: Callable[[], Ask]
    file: cache.Artifact
    input: InputSpec
    names: Sequence[str]
    output: str = SOFTMAX
    settled: Settled = NOTHING_SETTLED


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of the check. ``unchecked``: why there was none. ``problem``: a problem that was found and
    accepted. Both are shown with every figure. ``input``: the input that the pictures chose (--normalize
    auto); None: the assumed one."""

    unchecked: str | None = None
    problem: str | None = None
    input: InputSpec | None = None


def check(
    subject: Subject, sets: Sequence[Sequence[Item]], output: Path, progress: Progress, *, accept: bool
) -> Checked:
    """Check a checkpoint on pictures of ``sets``, those of the first set first. ``output``: the JSON file
    where the answers are kept.

    Raises:
        AccuracyError: it does not understand them, or was clearly trained with another input, and ``accept``
            is false.
        DataError: the pictures are to choose the input, and cannot.
    """
    items = labelled(sets)
    unchecked, answers = _unchecked(subject.output, len(items), sum(map(len, sets))), None
    if not unchecked:
        answers = ask(subject, items, output, progress)
        if not answers.telling:
            unchecked = _not_checked(
                f"{100 * answers.chance:.0f} % of {answers.n} labelled pictures are"
                f" {printable(answers.largest)!r}, so that they cannot tell"
            )
    if unchecked or not answers:
        if subject.settled.auto:
            raise DataError(f"--normalize auto needs labelled pictures that tell. {unchecked}")
        log.warning("!! %s", unchecked)
        return Checked(unchecked)
    problem = ensure_understood(answers, accept=accept, settled=subject.settled)
    taken = answers.trial.best if answers.trial and subject.settled.auto else None
    return Checked(problem=problem, input=taken.input if taken else None)


def labelled(sets: Sequence[Sequence[Item]]) -> list[Item]:
    """The labelled pictures to ask about: up to MOST_ASKED, of the first set and then of the next ones."""
    chosen: list[Item] = []
    for items in sets:
        known = [item for item in items if item.label is not None]
        chosen += choose.limit(known, [item.source for item in known], MOST_ASKED - len(chosen), 0)
    return chosen


def _unchecked(output: str, count: int, pictures: int) -> str | None:
    """The reason why nothing can be checked, as a notice that is shown with every figure. None: there are
    enough pictures."""
    if output == MULTI_LABEL:
        return _not_checked(
            "a multi-label network has no top-1, because one folder per class names one label per picture"
        )
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


def ask(subject: Subject, items: Sequence[Item], output: Path, progress: Progress) -> Answers:
    """Ask a checkpoint about labelled pictures, unless the same was done before. ``output``: the JSON file
    where the answers are kept."""
    options = {
        "images": [[i.sha256, i.label] for i in items],
        "names": list(subject.names),
        "input": subject.input.to_json(),
        "output": subject.output,
        "settled": dataclasses.asdict(subject.settled),
    }

    def make(path: Path) -> Answers:
        answers = _ask(subject, items, progress)
        path.write_text(json.dumps(answers.to_json(), indent=1))
        return answers

    return cache.produce(STAGE, options, {"checkpoint": subject.file}, output, make).read(Answers)


def _ask(subject: Subject, items: Sequence[Item], progress: Progress) -> Answers:
    asked, names = Asked(subject.network(), subject.output, items, progress), subject.names
    doing = "asking the checkpoint about labelled pictures"
    (own,) = asked.said([subject.input], range(len(items)), doing)
    answers = judge(own.logits, own.labels, names)
    if answers.order_certain or not answers.telling:
        return answers
    found = try_others(asked, own, subject.settled)
    answers, best = dataclasses.replace(answers, trial=found.trial), found.best
    if not answers.better_than_chance and not found.trial.clear and answers.order is None:
        # with a wrong order of the classes, too, no input is better than another
        reordered = class_order.with_other_input(asked, found, names)
        if reordered and judge(reordered.logits, reordered.labels, names).order_certain:
            best = reordered
            answers = dataclasses.replace(
                answers, trial=dataclasses.replace(found.trial, best=tried(best), clear=True)
            )
    if best is None:
        return answers
    otherwise = judge(best.logits, best.labels, names)
    if answers.beaten_by and answers.order and otherwise.rate > answers.order_right / answers.order_n:
        answers = dataclasses.replace(answers, order=None, missing=())
    return dataclasses.replace(answers, otherwise=otherwise)
