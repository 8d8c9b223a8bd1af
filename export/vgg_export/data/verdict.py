"""Says whether a checkpoint understands its pictures, why perhaps not, and what to do."""

import logging

from vgg_export.core.errors import AccuracyError
from vgg_runtime import text
from vgg_runtime.bundle import input_spec, metrics
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.text import printable

from . import class_order
from .answers import Answers
from .trials import NOTHING_SETTLED, Settled, Trial, Tried, rescaled, resized

log = logging.getLogger(__name__)

MOSTLY_ONE_CLASS = 0.5  # share of one class from which a good network is hardly better than naming that class
MOST_SHOWN = 8  # inputs in the table
CAUSES = (
    "the likely causes are another normalisation or range of values, another order of the channels (BGR),"
    " another order of the classes,"
    " or pictures of something else"
)
TRIED_CAUSES = (
    "no usual normalisation, order of the channels or way of resizing is clearly better, so the likely causes"
    " are another order of the classes (give the names in the order of the outputs with --labels), weights of"
    " another network, or pictures of something else. Ask the network about a few of these pictures in the"
    " program that trained it: where it is right, the preparation of the pictures differs; where it is wrong,"
    " it is the weights or the pictures"
)


def ensure_understood(answers: Answers, *, accept: bool, settled: Settled = NOTHING_SETTLED) -> str | None:
    """Log what was found, and warn where something is wrong although the pictures count as understood.

    Returns:
        The accepted problem as a sentence, or None.

    Raises:
        AccuracyError: the checkpoint is not clearly better than chance, or its classes are in another order,
            or it was clearly trained with another input that is not ``settled``; and ``accept`` is false.
    """
    if settled.auto and answers.trial:
        _say_what_is_taken(answers.trial)
        if answers.otherwise:
            return ensure_understood(answers.otherwise, accept=accept)
    beaten = answers.trial if answers.trial and answers.trial.clear else None
    if beaten and not _is_settled(beaten, settled):
        problem = f"{_found(answers)}; {why(answers)}"
    elif answers.understood:
        _say_understood(answers)
        return None
    else:
        problem = _not_understood(answers)
    shown = _shown(answers.trial)
    if not accept:
        raise AccuracyError(
            f"{problem}. With --accept-accuracy the run goes on, and recommends nothing{shown}"
        )
    accepted = f"{problem}. The run goes on because of --accept-accuracy, and recommends nothing{shown}"
    log.warning("!! %s", accepted)
    return problem


def _is_settled(trial: Trial, settled: Settled) -> bool:
    """Whether the better input differs from the assumed one in a part that the user or the file tells."""
    assumed, best = trial.assumed.input, trial.better.input
    return (settled.resize and resized(assumed, best)) or (settled.normalization and rescaled(assumed, best))


def _say_what_is_taken(trial: Trial) -> None:
    taken = trial.best or trial.assumed
    log.warning(
        "--normalize auto takes %s, %s; right on %s%s",
        input_spec.normalization_in_words(taken.input),
        input_spec.resize_in_words(taken.input),
        _rate(taken),
        _shown(trial),
    )


def _say_understood(answers: Answers) -> None:
    found = _found(answers)
    if answers.beaten_by:
        log.warning(
            "!! %s; %s. The input is told, so it stays as it is%s", found, why(answers), _shown(answers.trial)
        )
    elif answers.suspicious:
        log.warning(
            "!! %s, while its mean probability is %.1f %%: %s",
            found,
            100 * answers.mean_probability,
            why(answers),
        )
    elif answers.single_class:
        log.warning(
            "!! %s; all of them are %s, so a network that always answers that would pass too",
            found,
            printable(answers.largest),
        )
    elif answers.trial and answers.trial.best:
        assumed, best = answers.trial.assumed.input, answers.trial.best
        words = f"{_what_differs(best.input, assumed)} it is right on {best.right} of {best.n}, which is not"
        flags = input_spec.changes(best.input, assumed)
        log.warning(
            "!! %s; with %s clearly more. If it was trained with that, give %s%s",
            found,
            words,
            flags,
            _shown(answers.trial),
        )
    else:
        log.info("%s", found)


def _not_understood(answers: Answers) -> str:
    against = f"guessing among the classes ({100 * answers.chance:.1f} %)"
    if not answers.single_class:
        against = f"always saying {printable(answers.largest)!r} ({100 * answers.chance:.1f} %)"
    better = answers.better_than_chance
    return (
        f"{_found(answers)}, which is {'' if better else 'not clearly '}better than"
        f" {against}{', but' if better else ':'} {why(answers)}"
    )


def _found(answers: Answers) -> str:
    return f"the checkpoint is right on {_rate(answers)}"


def _rate(said: Answers | Tried) -> str:
    low, high = (100 * bound for bound in metrics.wilson_interval(said.right, said.n))
    return f"{100 * said.rate:.1f} % of {said.n} labelled pictures ({low:.1f} to {high:.1f} %)"


def why(answers: Answers) -> str:
    """What explains the errors, and what to do about it."""
    if answers.order is not None:
        return _order_in_words(answers)
    if answers.trial and answers.beaten_by:
        return _input_in_words(answers.trial, answers.otherwise)
    if answers.chance >= MOSTLY_ONE_CLASS:
        return (
            f"{CAUSES}; or these pictures show too little, since most are of one class: give more"
            " pictures of the other classes"
        )
    return TRIED_CAUSES if answers.trial and len(answers.trial.tried) > 1 else CAUSES


def _order_in_words(answers: Answers) -> str:
    fact = (
        "its classes are in another order"
        if answers.order_certain
        else "another order of its classes would explain a part of its errors"
    )
    return (
        f"{fact}, with which it is right on {answers.order_right} of {answers.order_n} pictures apart:"
        f" {class_order.in_words(answers.order or (), answers.missing)}. Give the names in that order with"
        " --labels, or correct them in the file if it names them"
    )


def _input_in_words(trial: Trial, otherwise: Answers | None) -> str:
    assumed, better = trial.assumed.input, trial.better.input
    now, then = _what_differs(assumed, better), _what_differs(better, assumed)
    fact = f"it seems to have been trained with {then}, not with {now}"
    if otherwise and otherwise.order is not None:
        fact += f", and {_order_in_words(otherwise)}"
    else:
        fact += f": with that it is right on {trial.better.right} of {trial.better.n}"
    keep = f"{input_spec.changes(assumed, better)} keeps what was assumed"
    return f"{fact}. Give {input_spec.changes(better, assumed)}; {keep}"


def _what_differs(spec: InputSpec, other: InputSpec) -> str:
    """The parts of an input that are not those of the other, in plain English."""
    parts = [input_spec.normalization_in_words(spec)] if rescaled(spec, other) else []
    parts += [input_spec.resize_in_words(spec)] if resized(spec, other) else []
    return " and ".join(parts)


def _shown(trial: Trial | None) -> str:
    """The table of what was tried, below a blank line; nothing where there is none."""
    return f"\n\n{trial_table(trial)}" if trial and len(trial.tried) > 1 else ""


def trial_table(trial: Trial) -> str:
    """The inputs that were tried, a line each: the assumed one first, then the best of the others."""
    rows = [_row(said, trial.assumed.input) for said in trial.tried[:MOST_SHOWN]]
    shown = text.table(("prepared as", "right", "95 % interval", "pictures", "flags"), rows)
    left = len(trial.tried) - len(rows)
    return f"{shown}\n… and {left} others that are right less often" if left else shown


def _row(said: Tried, assumed: InputSpec) -> tuple[str, ...]:
    spec = said.input
    words = input_spec.normalization_in_words(spec)
    words += f", {input_spec.resize_in_words(spec)}" if resized(spec, assumed) else ""
    low, high = (100 * bound for bound in metrics.wilson_interval(said.right, said.n))
    flags = input_spec.changes(spec, assumed) or "(assumed)"
    return words, f"{100 * said.rate:.1f} %", f"{low:.1f} to {high:.1f} %", str(said.n), flags
