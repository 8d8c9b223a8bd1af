"""Statistics: intervals, tests against chance, agreement, divergence, and percentiles with enough samples."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vgg_runtime.result import Proportion

from .outputs import MULTI_LABEL, SOFTMAX, against_zero, by_blocks, class_logits, decisions, log_softmax

Z95 = 1.959963984540054
CHANCE_LEVEL = 0.01  # significance level of the tests against chance
# Runs that a percentile needs before its estimate is bounded at 99 % confidence (MLPerf early stopping).
RUNS_FOR_PERCENTILE = {50: 1, 90: 64, 95: 130, 99: 662}


def wilson_interval(right: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of ``right`` of ``n`` (Wilson 1927), by default at 95 %: low and high, 0..1.

    ``right`` may be the sum of a share per picture. The interval is then at least as wide as it has to be,
    because such a share varies less than a right or wrong with the same mean.

    Raises:
        ValueError: ``n`` is 0, or ``right`` is not between 0 and ``n``.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"a proportion needs 0 <= right <= n and n > 0, found {right} of {n}")
    p, spread = right / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)


def proportion(right: float, n: int) -> Proportion:
    """``right`` of ``n`` with its interval; see ``wilson_interval``."""
    return Proportion(right / n, n, wilson_interval(right, n))


def share(hits: npt.NDArray[np.bool_]) -> Proportion:
    """The share of true among ``hits`` [n] or [n, labels], of ``n`` pictures. The labels of a picture are not
    independent of each other, so all of them count as one observation."""
    return proportion(float(hits.sum()) * len(hits) / hits.size, len(hits))


def binomial_tail(right: int, n: int, p: float) -> float:
    """The probability of at least ``right`` of ``n`` when each is right with probability ``p``: the p-value
    of the exact one-sided binomial test.

    Raises:
        ValueError: ``n`` is 0, ``right`` is not between 0 and ``n``, or ``p`` is no probability.
    """
    if not 0 <= right <= n or n == 0 or not 0 <= p <= 1:
        raise ValueError(
            f"a binomial test needs 0 <= right <= n, n > 0 and a probability, found {right} of {n} and {p}"
        )
    if right == 0 or p == 1:
        return 1.0
    if p == 0:
        return 0.0
    # Far from the most probable number terms add nothing, and a document may claim a billion pictures.
    likely, reach = int((n + 1) * p), 100 + int(12 * math.sqrt(n * p * (1 - p)))
    first, last = max(right, likely - reach), min(n, max(right, likely) + reach)
    # in logarithms: with 1000 pictures some terms are smaller than the smallest float
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(first, last + 1)
    ]
    largest = max(logs)
    return min(1.0, math.exp(largest) * math.fsum(math.exp(value - largest) for value in logs))


def chance(labels: npt.NDArray[np.int64], classes: int) -> float | None:
    """The top-1 that needs no knowledge: the share of the largest class among ``labels`` [n], which always
    giving that class would reach. If all pictures are of one class it is ``1 / classes``, which guessing
    would reach. None without labels."""
    if not len(labels):
        return None
    share = float(np.bincount(labels).max() / len(labels))
    return share if share < 1 else 1 / classes


def better_than_chance(right: int, n: int, chance: float) -> bool:
    """Whether a top-1 is clearly better than ``chance`` (exact binomial test at 1 %)."""
    return binomial_tail(right, n, chance) < CHANCE_LEVEL


def kl_divergence(
    reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """KL(reference || other) of the softmax of two logit arrays [..., classes], in nats: [...]."""
    return (
        by_blocks(_kl_divergence, reference, other)
        if reference.ndim > 1
        else _kl_divergence(reference, other)
    )


def _kl_divergence(
    reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    p, q = log_softmax(reference), log_softmax(other)
    result: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1)
    return result


def _kl_of_labels(
    reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """The mean over the labels of a multi-label network, logits [n, labels]: [n]."""
    found: npt.NDArray[np.float64] = kl_divergence(against_zero(reference), against_zero(other)).mean(axis=1)
    return found


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The predictions of a model compared with those of a reference, picture by picture.

    ``same`` [n]: the class is the same; of a multi-label network [n, labels]: the decision is. ``divergence``
    [n]: KL(reference || model) in nats; of a multi-label network the mean over its labels. ``lost`` [m], for
    the m pictures whose class is known: 1 where only the reference is right, -1 where only the model is, else
    0."""

    same: npt.NDArray[np.bool_]
    divergence: npt.NDArray[np.float64]
    lost: npt.NDArray[np.int64]

    @property
    def n(self) -> int:
        """The number of pictures."""
        return len(self.same)

    @property
    def agreement(self) -> float:
        """The share of pictures with the same class, or of decisions that are the same."""
        return float(self.same.mean())

    @property
    def differing(self) -> npt.NDArray[np.float64]:
        """The share of each picture's decisions that differ [n]: 0 or 1 where it has one class."""
        result: npt.NDArray[np.float64] = (~self.same).reshape(self.n, -1).mean(axis=1)
        return result

    @property
    def kl(self) -> float:
        """The mean divergence."""
        return float(self.divergence.mean())

    @property
    def counted(self) -> npt.NDArray[np.float64]:
        """The loss of each picture: ``lost`` [m], or ``differing`` [n] where no class is known."""
        return self.lost.astype(np.float64) if len(self.lost) else self.differing

    @property
    def loss_error_points(self) -> float:
        """The standard error of the loss in points; see the function ``loss_error_points``."""
        counted = self.counted
        return loss_error_points(float(counted.sum()), float((counted**2).sum()), len(counted))


def compare(
    logits: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64] | None = None,
    output: str = SOFTMAX,
) -> Comparison:
    """Compare ``logits`` with ``reference``, both float32 [n, outputs] as the network gives them. ``labels``
    [n] are -1 where unknown. A multi-label network is never right or wrong, because a picture has one of
    them. The divergence is computed in float64."""
    if output == MULTI_LABEL:
        divergence = by_blocks(_kl_of_labels, reference, logits)
        same = by_blocks(decisions, logits) == by_blocks(decisions, reference)
        return Comparison(same, divergence, np.zeros(0, np.int64))
    logits, reference = class_logits(logits, output), class_logits(reference, output)
    said, wanted = logits.argmax(axis=1), reference.argmax(axis=1)
    known = np.zeros(len(said), bool) if labels is None else labels >= 0
    right = np.full(len(said), -1) if labels is None else labels
    lost = (wanted == right).astype(np.int64) - (said == right)
    return Comparison(said == wanted, kl_divergence(reference, logits), lost[known])


def percentile(samples: Sequence[float], q: int) -> float | None:
    """The ``q``-th percentile (50, 90, 95 or 99), or None when there are too few samples for it."""
    if len(samples) < RUNS_FOR_PERCENTILE[q]:
        return None
    if q == 50:
        return statistics.median(samples)
    return sorted(samples)[math.ceil(q / 100 * len(samples)) - 1]


def loss_error_points(total: float, squares: float, n: int) -> float:
    """The standard error of the loss relative to the baseline, in points of top-1 (or of disagreement without
    labels). Both models saw the same ``n`` pictures; each picture counts 1 (lost), -1 (won) or 0, or the
    share of its labels whose decision differs. ``total`` is the sum of these, ``squares`` the sum of their
    squares. The error is at least that of Laplace's estimate 1 / (n + 2), because a few pictures without a
    loss do not prove that there is none."""
    least = 1 / (n + 2)
    return 100 * math.sqrt(max(squares / n - (total / n) ** 2, least * (1 - least)) / n)
