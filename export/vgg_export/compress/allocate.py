"""Distributes a reduction over layers. Each layer offers points (size, loss). The steps of all layers along
the lower convex hulls of their points are taken in order of the loss per unit saved, least first."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from vgg_export.network.chain import Chain


class Point(NamedTuple):
    """An option for a layer: its size (arithmetic or width), its loss, and the choice behind it (rank or
    width)."""

    size: int
    loss: float
    choice: int


def hull(points: list[Point]) -> list[Point]:
    """The lower convex hull, from the largest size to the smallest. Each step of it loses more per unit saved
    than the step before."""
    found: list[Point] = []
    for point in sorted(points, reverse=True):
        while len(found) > 1 and _slope(found[-2], found[-1]) >= _slope(found[-2], point):
            found.pop()
        found.append(point)
    return found


def _slope(a: Point, b: Point) -> float:
    return (b.loss - a.loss) / max(1, a.size - b.size)


def widths(chain: Chain, curves: Mapping[str, Mapping[int, float]], bound: int) -> dict[str, int]:
    """Widths of the convolutions for at most ``bound`` MACs of the whole network, with a small sum of losses.

    What a filter costs to compute depends on the widths before and behind it, so a step's saving is that at
    the widths reached so far. The last step may save more than was asked; the surplus goes
    back to the layers where it helps most, and widths are exchanged between layers as long as that helps.

    Args:
        curves: for each convolution that may shrink, the loss at every width that it may have, its full one
            among them.

    Returns:
        The width of every convolution of ``curves``; the narrowest of all when ``bound`` cannot be met.
    """
    steps = {
        name: hull([Point(width, loss, width) for width, loss in curve.items()])
        for name, curve in curves.items()
    }
    chosen = {name: points.pop(0).choice for name, points in steps.items()}
    while any(steps.values()) and (now := chain.with_widths(chosen).macs()) > bound:
        # the price of each layer's next step, at the widths that the others have now
        prices = {}
        for name, points in steps.items():
            if points:
                saved = now - chain.with_widths(chosen | {name: points[0].choice}).macs()
                prices[name] = (points[0].loss - curves[name][chosen[name]]) / saved
        name = min(prices, key=prices.__getitem__)
        chosen[name] = steps[name].pop(0).choice
    return _exchanged(chain, curves, chosen, bound)


def _exchanged(
    chain: Chain, curves: Mapping[str, Mapping[int, float]], chosen: dict[str, int], bound: int
) -> dict[str, int]:
    """Widen one layer by one step and narrow another (or none) by one, as long as that lowers the loss within
    the bound."""
    offered = {name: sorted(curve) for name, curve in curves.items()}

    def moved(name: str, by: int) -> dict[str, int]:
        k = offered[name].index(chosen[name]) + by
        return {name: offered[name][k]} if 0 <= k < len(offered[name]) else {}

    while True:
        moves = [
            moved(wider, 1) | (moved(narrower, -1) if narrower else {})
            for wider, narrower in _pairs(list(curves))
        ]
        gains = [
            (sum(curves[name][chosen[name]] - curves[name][width] for name, width in move.items()), move)
            for move in moves
        ]
        for gain, move in sorted(gains, key=lambda g: -g[0]):
            if gain <= 1e-12:
                return chosen
            if chain.with_widths(chosen | move).macs() <= bound:
                chosen = chosen | move
                break
        else:
            return chosen


def _pairs(names: list[str]) -> list[tuple[str, str | None]]:
    return [(a, b) for a, b in itertools.product(names, [None, *names]) if a != b]
