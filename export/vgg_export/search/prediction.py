"""Predicts points before they are made, learns from those that were, and chooses the next one.

What a network loses before it is distilled is known cheaply (``forecast``): the KL that the smaller input
costs, and the one that the ranks cost at that input. Distilling brings back a share of each, and of
the labels it may learn something of its own. These three numbers are learnt from the points of the search:
a linear model with a prior, in closed form (Bayesian linear regression; Bishop 2006, section 3.3).
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vgg_export.options import Budget

from .conclusion import FASTER, drop, error, missing, reaches, too_much
from .points import Point, Rung

# Points of top-1 that stay lost for each nat that the size and the ranks cost before distilling, and points
# that distilling wins by itself: means and standard deviations before any point is known.
PRIOR_MEAN, PRIOR_SD = (2.0, 4.0, 0.0), (3.0, 4.0, 4.0)
MODEL_SD = 0.7  # points by which a point differs from the model, besides the error of its own loss
LESS = 0.2  # points: or, where speed is a target only, it is expected to lose this much less


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A rung that may be tried. ``size_kl``: the mean KL in nats of the original at that input size from its
    answers at its own. ``rank_kl``: that of the ranks, before anything is fitted, from the original at that
    input size."""

    rung: Rung
    macs: int
    parameters: int
    size_kl: float
    rank_kl: float


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate, the point that it became, and the seconds that it took."""

    candidate: Candidate
    point: Point
    took_s: float


class Experience:
    """What the points tried so far say of the others. ``alone``: int8 of the whole network, whose speed and
    size the first predictions go by."""

    def __init__(self, baseline: Point, alone: Point) -> None:
        self.baseline, self.alone = baseline, alone
        self.tried: list[Tried] = []

    def drop(self, candidate: Candidate) -> tuple[float, float]:
        """Points lost, as predicted, and the standard deviation of the prediction."""
        precision = np.diag([sd**-2 for sd in PRIOR_SD])
        told = precision @ np.array(PRIOR_MEAN)
        for one in self.tried:
            row = _row(one.candidate)
            weight = 1 / (MODEL_SD**2 + error(one.point, self.baseline) ** 2)
            precision = precision + weight * np.outer(row, row)
            told = told + weight * drop(one.point, self.baseline) * row
        spread, row = np.linalg.inv(precision), _row(candidate)
        return float(row @ spread @ told), math.sqrt(float(row @ spread @ row) + MODEL_SD**2)

    def error(self, *, sure: bool) -> float:
        """The standard error of a point's loss as predicted: as large as those of the points so far.
        ``sure``: of the loss as --sure counts it."""
        points = [one.point for one in self.tried] or [self.alone]
        return statistics.fmean(error(point, self.baseline, sure=sure) for point in points)

    def speedup(self, candidate: Candidate) -> float:
        """The speed as predicted. Between two points the time changes evenly with the arithmetic, and beyond
        the last one as between the last two: a part of the time does not depend on the arithmetic."""
        points = (self.alone, *(one.point for one in self.tried))
        known = sorted({point.macs: 1 / point.speedup for point in points}.items())
        return 1 / _expected_time(candidate.macs, known)

    def bytes(self, candidate: Candidate) -> int:
        """The size of the file as predicted, likewise in proportion to the parameters."""
        near = self._nearest(candidate)
        return round(near.bytes * candidate.parameters / near.parameters)

    def _nearest(self, candidate: Candidate) -> Point:
        points = [one.point for one in self.tried] or [self.alone]
        return min(points, key=lambda p: abs(math.log(p.macs / candidate.macs)))


def _expected_time(macs: int, known: Sequence[tuple[int, float]]) -> float:
    """The time for so much arithmetic. ``known``: arithmetic and time of points, in order of the first."""
    if len(known) > 1 and known[0][0] <= macs <= known[-1][0]:
        return float(np.interp(macs, [one for one, _ in known], [time for _, time in known]))
    (near, time), *beside = known[:2] if macs < known[0][0] else known[:-3:-1]
    slope = time / near  # the most: none of the time is spent on anything else
    for other, its_time in beside:
        slope = min(max((its_time - time) / (other - near), 0.0), slope)
    return time + slope * (macs - near)


def _row(candidate: Candidate) -> npt.NDArray[np.float64]:
    return np.array([candidate.size_kl, candidate.rank_kl, 1.0])


def choose(
    candidates: Sequence[Candidate], experience: Experience, budget: Budget, hope: float
) -> Candidate | None:
    """The next candidate to try; None where none is worth it. ``hope``: the standard deviations by which a
    prediction may be too pessimistic.

    With an allowed drop: the fastest that may keep it and meet the targets, if it is faster than what holds
    already. Without: the one that loses least of those that may meet the targets. As long as nothing holds,
    the one that is nearest to the budget.
    """
    tried = {one.candidate.rung for one in experience.tried}
    left = [c for c in candidates if c.rung not in tried and not _beyond_what_failed(c, experience, budget)]
    held = [one.point for one in experience.tried if _holds(one.point, experience, budget)]
    if budget.max_drop is not None:
        fastest = max((p.speedup for p in held), default=0.0)
        left = [c for c in left if experience.speedup(c) > FASTER * fastest]
        hopeful = [c for c in left if _excess(c, experience, budget, hope) <= 0]
        if hopeful:
            return max(hopeful, key=experience.speedup)
    else:
        least = min((drop(p, experience.baseline) for p in held), default=math.inf)
        hopeful = [
            c
            for c in left
            if _excess(c, experience, budget, hope) <= 0 and experience.drop(c)[0] < least - LESS
        ]
        if hopeful:
            return min(hopeful, key=lambda c: experience.drop(c)[0])
    if held or not left:
        return None
    return min(left, key=lambda c: (_excess(c, experience, budget, hope), experience.drop(c)[0]))


def _holds(point: Point, experience: Experience, budget: Budget) -> bool:
    return reaches(point, budget) and not too_much([point], experience.baseline, budget)


def _beyond_what_failed(candidate: Candidate, experience: Experience, budget: Budget) -> bool:
    """Whether a rung of the same size that is no stronger than this one lost too much already."""
    return any(
        too_much([one.point], experience.baseline, budget)
        and one.candidate.rung.px == candidate.rung.px
        and one.candidate.macs >= candidate.macs
        for one in experience.tried
    )


def _excess(candidate: Candidate, experience: Experience, budget: Budget, hope: float) -> float:
    """How far a candidate is predicted to be above the budget: points above the allowed drop and logarithms
    of missing factors, each at least 0."""
    found = missing(experience.bytes(candidate), experience.speedup(candidate), budget)
    if budget.max_drop is not None:
        lost, sd = experience.drop(candidate)
        unsure = experience.error(sure=True) if budget.sure else 0.0
        found += max(0.0, lost + unsure - hope * sd - budget.max_drop)
    return found
