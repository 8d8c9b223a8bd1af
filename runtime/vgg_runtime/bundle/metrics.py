"""Statistics: intervals, tests against chance, agreement, divergence, and percentiles with enough samples."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vgg_runtime.result import Proportion

Z95 = 1.959963984540054
CHANCE_LEVEL = 0.01  # significance level of the tests against chance
# Runs that a percentile needs before its estimate is bounded at 99 % confidence (MLPerf early stopping).
RUNS_FOR_PERCENTILE = {50: 1, 90: 64, 95: 130, 99: 662}


def wilson_interval(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of ``right`` of ``n`` (Wilson 1927), by default at 95 %: low and high, 0..1.

    Raises:
        ValueError: ``n`` is 0, or ``right`` is not between 0 and ``n``.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"a proportion needs 0 <= right <= n and n > 0, found {right} of {n}")
    p, spread = right / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)


def proportion(right: int, n: int) -> Proportion:
    """``right`` of ``n`` with its interval."""
    return Proportion(right / n, n, wilson_interval(right, n))


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
    # in logarithms: with 1000 pictures some terms are smaller than the smallest float
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(right, n + 1)
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


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Natural logarithm of the probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities along the last axis, in float64."""
    result: npt.NDArray[np.float64] = np.exp(log_softmax(logits))
    return result


def kl_divergence(
    reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """KL(reference || other) of the softmax of two logit arrays [n, classes], in nats: [n]."""
    p, q = log_softmax(reference), log_softmax(other)
    result: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1)
    return result


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The predictions of a model compared with those of a reference, picture by picture.

    ``same`` [n]: the class is the same. ``divergence`` [n]: KL(reference || model) in nats. ``lost`` [m], for
    the m pictures whose class is known: 1 where only the reference is right, -1 where only the model is, else
    0."""

    same: npt.NDArray[np.bool_]
    divergence: npt.NDArray[np.float64]
    lost: npt.NDArray[np.int64]

    @property
    def n(self) -> int:
        return len(self.same)

    @property
    def agreement(self) -> float:
        """The share of pictures with the same class."""
        return float(self.same.mean())

    @property
    def kl(self) -> float:
        """The mean divergence."""
        return float(self.divergence.mean())

    @property
    def counted(self) -> npt.NDArray[np.int64]:
        """The loss of each picture: ``lost`` [m]; without labels 1 where the class differs, else 0 [n]."""
        return self.lost if len(self.lost) else (~self.same).astype(np.int64)

    @property
    def loss_error_points(self) -> float:
        """The standard error of the loss in points; see the function ``loss_error_points``."""
        counted = self.counted
        return loss_error_points(float(counted.sum()), float((counted**2).sum()), len(counted))


def compare(
    logits: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64] | None = None,
) -> Comparison:
    """Compare ``logits`` with ``reference``, both float32 [n, classes]. ``labels`` [n] are -1 where unknown.
    The divergence is computed in float64."""
    said, wanted = logits.argmax(axis=1), reference.argmax(axis=1)
    known = np.zeros(len(said), bool) if labels is None else labels >= 0
    right = np.full(len(said), -1) if labels is None else labels
    lost = (wanted == right).astype(np.int64) - (said == right)
    return Comparison(said == wanted, kl_divergence(reference, logits), lost[known])


def top_k(logits: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Indices of the ``k`` largest logits, largest first: [n, k]. Equal logits keep the order of the
    classes."""
    return np.argsort(-logits, axis=-1, kind="stable")[..., :k]


def percentile(samples: Sequence[float], q: int) -> float | None:
    """The ``q``-th percentile (50, 90, 95 or 99), or None when there are too few samples for it."""
    if len(samples) < RUNS_FOR_PERCENTILE[q]:
        return None
    if q == 50:
        return statistics.median(samples)
    return sorted(samples)[math.ceil(q / 100 * len(samples)) - 1]


def loss_error_points(total: float, squares: float, n: int) -> float:
    """The standard error of the loss relative to the baseline, in points of top-1 (or of disagreement without
    labels). Both models saw the same ``n`` pictures; each picture counts 1 (lost), -1 (won) or 0. ``total``
    is the sum of these, ``squares`` the sum of their squares. The error is at least that of Laplace's
    estimate 1 / (n + 2), because a few pictures without a loss do not prove that there is none."""
    least = 1 / (n + 2)
    return 100 * math.sqrt(max(squares / n - (total / n) ** 2, least * (1 - least)) / n)
