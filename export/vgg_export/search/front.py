"""The front of a search: what its points lose, which of them no other beats, and how families look in
pictures of it."""

from collections.abc import Callable, Sequence

from . import conclusion
from .points import Point

# The colour and marker of each family of points, by its legend. The colours are Okabe and Ito's, which
# colour-blind readers can tell apart.
LOOKS = {
    "baseline": ("#000000", "*"),
    "int8 alone": ("#E69F00", "D"),
    "compact": ("#009E73", "o"),
    "compact, not fitted": ("#D55E00", "X"),
    "filters by L2, repaired": ("#0072B2", "s"),
    "filters by L2, not repaired": ("#56B4E9", "v"),
    "filters at random, not repaired": ("#CC79A7", "P"),
}
UNKNOWN_LOOK = ("#777777", "h")
# what a loss is a loss of, by whether there are labels
WORDS = {"top1": "top-1", "agreement": "agreement with the baseline"}
PICTURES = {"select": "selection pictures", "test": "test pictures"}


def pareto(
    points: Sequence[Point], baseline: Point, cost: Callable[[Point], float], *, sure: bool = False
) -> list[Point]:
    """The points that no other beats both in ``cost`` (less is better) and in points lost, ordered by cost.
    The loss is that on the test pictures if all points have one, else that on the selection pictures; as
    --sure counts it where ``sure`` is set."""
    which = judged_on(points)

    def loses(point: Point) -> float:
        return conclusion.drop(point, baseline, which, sure=sure)

    found: list[Point] = []
    for point in sorted(points, key=lambda p: (cost(p), loses(p))):
        if not found or loses(point) < loses(found[-1]) - 1e-9:
            found.append(point)
    return found


def judged_on(points: Sequence[Point]) -> str:
    """ "test" when every point was judged on test pictures, else "select"."""
    return "test" if all(p.test for p in points) else "select"


def counted_in(baseline: Point, which: str) -> str:
    """What a loss is a loss of: a key of WORDS."""
    return "top1" if baseline.figures(which).top1 else "agreement"


def lost(point: Point, baseline: Point, which: str, *, sure: bool = False) -> tuple[float, float] | None:
    """The points lost on the "select" or the "test" pictures and their standard error; None if the point was
    not judged on them. The baseline loses nothing against itself. ``sure``: as --sure counts them."""
    figures = [p.test if which == "test" else p.select for p in (point, baseline)]
    if not all(figures):
        return None
    if point.sha256 == baseline.sha256:
        return 0.0, 0.0
    loss = conclusion.lost(point, baseline, which, sure=sure)
    return loss.points, loss.error_points
