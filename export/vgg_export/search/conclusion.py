"""The conclusion of a search: which of its points is recommended, and why. What may be lost is decided by the
rule of ``vgg_runtime.measure.verdict``, as on the board."""

import math
from collections.abc import Callable, Iterable, Sequence

from vgg_export.options import Budget
from vgg_runtime.measure import verdict
from vgg_runtime.measure.recommend import near_chance
from vgg_runtime.result import Loss

from .points import Found, Point, Rung

FASTER = 1.03  # a difference of speed that counts


def too_much(points: Iterable[Point], baseline: Point, budget: Budget) -> bool:
    """Whether every point loses more than the budget allows."""
    return all(_excess(p, baseline, budget) > verdict.SLACK for p in points)


def reaches(point: Point, budget: Budget) -> bool:
    """Whether a point meets the targets of size and speed."""
    small = budget.size_bytes is None or point.bytes <= budget.size_bytes
    return small and (budget.speedup is None or point.speedup >= budget.speedup)


def lost(point: Point, baseline: Point, which: str = "select", *, sure: bool = False) -> Loss:
    """What a point loses against the baseline on the selection (or test) pictures: of top-1, or of agreement
    where there are no labels."""
    return verdict.lost(point.figures(which), baseline.figures(which), sure=sure)


def drop(point: Point, baseline: Point, which: str = "select", *, sure: bool = False) -> float:
    """``lost`` in points. ``sure``: as it is counted, not as it is estimated."""
    return lost(point, baseline, which, sure=sure).points


def error(point: Point, baseline: Point, which: str = "select", *, sure: bool = False) -> float:
    """The standard error of ``drop``. On other pictures, about one network in six loses more than the drop
    and its error together."""
    return lost(point, baseline, which, sure=sure).error_points


def shortfall(point: Point, budget: Budget) -> float:
    """How far a point is from the targets of size and speed; see ``missing``."""
    return missing(point.bytes, point.speedup, budget)


def missing(size_bytes: int, speedup: float, budget: Budget) -> float:
    """The sum of the logarithms of the factors that are missing to the targets of size and speed."""
    size = 0.0 if budget.size_bytes is None else max(0.0, math.log(size_bytes / budget.size_bytes))
    return size + (0.0 if budget.speedup is None else max(0.0, math.log(budget.speedup / speedup)))


def anything(_: Point) -> bool:
    """Every point may be recommended."""
    return True


def conclude(
    points: list[Point],
    baseline: Point,
    budget: Budget,
    tried: dict[Rung, list[Point]],
    eligible: Callable[[Point], bool] = anything,
) -> Found:
    """Choose the recommendation among the eligible points. Within the budget it is the fastest point, or,
    when only targets are set, the point that loses least. If no point is within the budget, none is
    recommended and the nearest is named: of those that exceed the allowed drop least, the one closest to the
    targets."""
    candidates = [p for p in points if eligible(p)]
    fit = [p for p in candidates if reaches(p, budget) and not too_much([p], baseline, budget)]
    n = baseline.select.n if baseline.select else 0
    if fit and budget.max_drop is not None:
        best, why = fastest(fit), "the fastest point tried"
        if best is not max(fit, key=lambda p: p.speedup):
            why = "the least arithmetic of the fastest points tried"
    elif fit:
        best, why = min(fit, key=lambda p: (drop(p, baseline), -p.speedup)), "the point that loses least"
    else:
        nearest = min(
            candidates,
            key=lambda p: (_excess(p, baseline, budget), shortfall(p, budget), drop(p, baseline), -p.speedup),
        )
        told = in_words(nearest, baseline, sure=budget.sure)
        words = f"{nearest.family}, {nearest.name}: {told} on {n} selection pictures"
        reason = f"the budget ({budget.in_words()}) cannot be met; the nearest is {words}"
        counted = lost(nearest, baseline, sure=True).points
        if budget.sure and reaches(nearest, budget) and counted <= (budget.max_drop or 0.0):
            reason += "; more selection pictures would lower its standard error"
        return Found(tuple(points), baseline, None, reason, _rung_of(nearest, tried))
    asked = f"{why} with {budget.in_words()} on {n} selection pictures"
    reason = f"{asked}: {best.family}, {best.name}: {in_words(best, baseline, sure=budget.sure)}"
    figures = baseline.select
    if figures and (why_not := near_chance(figures.top1, figures.chance, "selection pictures")):
        return Found(tuple(points), baseline, None, f"none is recommended: {why_not}", _rung_of(best, tried))
    return Found(tuple(points), baseline, best, reason, _rung_of(best, tried))


def fastest(points: Sequence[Point]) -> Point:
    """The fastest point. Of those that are as fast, the one with the least arithmetic: on a slower core less
    of the time is spent on what does not depend on it."""
    most = max(point.speedup for point in points)
    return min((p for p in points if p.speedup * FASTER >= most), key=lambda p: (p.macs, -p.speedup))


def _excess(point: Point, baseline: Point, budget: Budget) -> float:
    """The points lost above the allowed drop."""
    if budget.max_drop is None:
        return 0.0
    found = lost(point, baseline, sure=budget.sure)
    return verdict.excess(found, budget.max_drop, sure=budget.sure)


def _rung_of(point: Point, tried: dict[Rung, list[Point]]) -> Rung:
    """The rung of a point. For a point without one (int8 alone) the least compressed rung, so that compact
    variants are made."""
    least = max(tried, key=lambda rung: rung.conv_share)
    return next((rung for rung, found in tried.items() if point in found), least)


def in_words(point: Point, baseline: Point, *, sure: bool = False) -> str:
    """Size, speed and loss as a phrase."""
    known = point.select is not None and baseline.select is not None
    lost_ = f", {lost_in_words(point, baseline, sure=sure)}" if known else ""
    return f"{point.bytes / 1e6:.1f} MB (1/{baseline.bytes / point.bytes:.0f}), {point.speedup:.1f}x{lost_}"


def lost_in_words(point: Point, baseline: Point, which: str = "select", *, sure: bool = False) -> str:
    """The loss and its standard error as a phrase."""
    found = lost(point, baseline, which, sure=sure)
    return f"{found.points:+.1f} ± {found.error_points:.1f} points lost"
