"""Estimates what a variant loses relative to the baseline, from fewer pictures than counting needs.

A counted answer is right or wrong, and much of the variance of a counted loss is luck with pictures that a
network is unsure about. How sure it is, on average, is its share of right answers, too, if its probabilities
are calibrated: a temperature is fitted to the right classes by maximum likelihood. That figure varies less,
and is off where no temperature calibrates a network; so it is weighed against what was counted.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vgg_runtime.result import Loss

from .metrics import loss_error_points
from .outputs import MULTI_LABEL, class_logits, in_blocks, log_softmax

LEAST = 20  # pictures; fewer cannot calibrate
FOLDS = 5
STEPS = 30  # of Newton's method, at most
RANGE = (1e-3, 1e3)  # of a sharpness, for logits that are scaled to a spread of 1
# How far the difference of two confidences may be off, see docs/verdict.md: at least so many points, and so
# many by the square of the temperature.
LEAST_BIAS_POINTS, BIAS_POINTS = 0.7, 0.2

Logits = npt.NDArray[np.floating]


def sharpness(
    logits: Logits,
    classes: npt.NDArray[np.int64],
    start: float | None = None,
    rows: npt.NDArray[np.int64] | None = None,
) -> float:
    """The factor of ``logits`` [n, classes] under which their softmax makes the ``classes`` [n] most likely:
    the inverse of the temperature. The likelihood has one maximum; Newton's method finds it, in logarithms,
    from ``start``. ``rows``: the pictures that count, None: all."""
    rows = np.arange(len(logits)) if rows is None else rows
    parts = in_blocks(rows, logits.shape[1])
    spread = _spread(logits, parts)
    told = [_told(logits[part].astype(np.float64) / spread, classes[part], len(rows)) for part in parts]
    low, high = RANGE
    factor = 1.0 if start is None else min(max(start * spread, low), high)
    for _ in range(STEPS):
        slopes = curves = 0.0
        for part, own in zip(parts, told, strict=True):
            z = logits[part].astype(np.float64) / spread
            p = np.exp(log_softmax(factor * z))
            mean = (p * z).sum(axis=1)
            slopes += float((mean - own).sum())
            curves += float(((p * z**2).sum(axis=1) - mean**2).sum())
        slope, curve = slopes / len(rows), curves / len(rows)
        low, high = (factor, high) if slope < 0 else (low, factor)
        step = factor * math.exp(np.clip(-slope / max(factor * curve + slope, 1e-12), -2, 2))
        before, factor = factor, step if low < step < high else math.sqrt(low * high)
        if abs(math.log(factor / before)) < 1e-3:
            break
    return factor / spread


def _spread(logits: Logits, parts: Sequence[npt.NDArray[np.int64]]) -> float:
    """The standard deviation of the logits in ``parts``; 1 where they are all the same."""
    count = sum(map(len, parts)) * logits.shape[1]
    mean = sum(float(logits[part].astype(np.float64).sum()) for part in parts) / count
    squares = sum(float(((logits[part].astype(np.float64) - mean) ** 2).sum()) for part in parts)
    return math.sqrt(squares / count) or 1.0


def _told(z: npt.NDArray[np.float64], classes: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.float64]:
    """The logit of each right class; a share of 1 / (n + 2) goes to all classes, so that a network that is
    never wrong on the ``n`` pictures gets a finite sharpness (Platt 1999)."""
    other = 1 / (n + 2)
    own = np.take_along_axis(z, classes[:, None], axis=1)[:, 0]
    found: npt.NDArray[np.float64] = (1 - other) * own + other * z.mean(axis=1)
    return found


def folds(count: int) -> npt.NDArray[np.int64]:
    """The fold of each of ``count`` pictures, by chance but always the same: pictures lie in folders by
    class."""
    found: npt.NDArray[np.int64] = np.random.default_rng(0).permutation(count) % FOLDS
    return found


def confidence(logits: Logits, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """What each picture says of a network's share of right answers [n]: its largest calibrated probability,
    and how much the picture's own class moves the temperature, which is nought in the mean. ``logits`` [n,
    classes], ``classes`` [n].

    The temperature for a picture's probability comes from the other folds. The second part makes the
    variance of the result that of the whole estimate (the influence function of the temperature).
    """
    n, classes_each = logits.shape
    factor = sharpness(logits, classes)
    fold, sure = folds(n), np.empty(n)
    for k in range(FOLDS):
        by_others = sharpness(logits, classes, factor, np.flatnonzero(fold != k))
        for part in in_blocks(np.flatnonzero(fold == k), classes_each):
            z = logits[part].astype(np.float64)
            sure[part] = np.exp(log_softmax(by_others * z)).max(axis=1)
    pull, curve, moved = np.empty((3, n))
    for part in in_blocks(np.arange(n), classes_each):
        z = logits[part].astype(np.float64)
        p = np.exp(log_softmax(factor * z))
        mean = (p * z).sum(axis=1)
        pull[part] = factor * (mean - _told(z, classes[part], n))
        curve[part] = factor**2 * ((p * z**2).sum(axis=1) - mean**2)
        moved[part] = factor * p.max(axis=1) * (z.max(axis=1) - mean)
    shift = float(moved.mean()) / max(float((pull + curve).mean()), 1e-12)
    found: npt.NDArray[np.float64] = sure - shift * (pull - pull.mean())
    return found


def bias_points(temperature: float) -> float:
    """By how many points a confidence may be off, of a network that needed this temperature. The surer of
    itself a network was, the less it is calibrated afterwards."""
    return max(LEAST_BIAS_POINTS, BIAS_POINTS * temperature**2)


def estimate(
    counted: npt.NDArray[np.float64],
    sure: npt.NDArray[np.float64],
    may_be_off_points: float = LEAST_BIAS_POINTS,
) -> Loss:
    """The best estimate of a loss from what each picture lost, ``counted`` [n] and by calibrated confidence
    (``sure`` [n]).

    The weight of what was counted is that which makes the expected square of the error least, if the
    confidence is off by ``may_be_off_points``: on few pictures the confidence decides, on many what was
    counted. Where the two are further apart than that and chance explain, the confidence is trusted less.
    """
    n = len(counted)
    least = 1 / (n + 2)  # Laplace's estimate: a few pictures without a loss do not prove that there is none
    least *= 1 - least
    (of_counted, both), (_, of_sure) = np.cov(counted, sure, bias=True).tolist()
    of_gap, gap = max(of_counted + of_sure - 2 * both, least), float((counted - sure).mean())
    bias = max((may_be_off_points / 100) ** 2, gap**2 - of_gap / n)  # squared

    def weight(pictures: float) -> float:
        return bias / (bias + of_gap / pictures)

    def squared_error(pictures: float) -> float:
        own = weight(pictures)
        mixed = own**2 * of_counted + (1 - own) ** 2 * of_sure + 2 * own * (1 - own) * both
        return max(mixed, own**2 * least) / pictures + (1 - own) ** 2 * bias

    error, times, share = squared_error(n), 1.0, weight(n)
    while squared_error(times * n) > error / 4:
        times *= 1.01
    points = 100 * (float(sure.mean()) + share * gap)
    return Loss(points, 100 * math.sqrt(error), n, share, math.ceil((times - 1) * n))


def estimated(
    counted: npt.NDArray[np.float64],
    logits: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    output: str,
) -> Loss:
    """The estimate of what ``logits`` lose relative to ``reference``, both [n, outputs]. ``labels`` [n] are
    -1 where unknown; ``counted``: what the pictures with a class lost, or all of them where none is known.

    Only what was counted decides where no class is known, for a multi-label network, and on fewer than LEAST
    pictures: the confidence says twice the disagreement of some networks that are too sure of themselves.
    """
    known, n = labels >= 0, len(counted)
    if output == MULTI_LABEL or not known.any() or n < LEAST:
        points, squares = float(counted.sum()), float((counted**2).sum())
        return Loss(100 * points / n, loss_error_points(points, squares, n), n, 1.0, 3 * n)
    right = labels[known]
    told, said = (class_logits(z if known.all() else z[known], output) for z in (reference, logits))
    temperature = 1 / min(sharpness(told, right), sharpness(said, right))
    return estimate(counted, confidence(told, right) - confidence(said, right), bias_points(temperature))
