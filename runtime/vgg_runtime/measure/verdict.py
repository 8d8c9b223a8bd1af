"""The one rule by which a variant may be recommended. The search, the comparison on a board, the page and the
reports all use it.

The estimate of the loss decides: a variant is within the allowance if its estimate is. With ``sure`` its
standard error counts, too, and only counted answers do. Pictures contradict a choice that was made on others
if they show, with 95 %, that it loses more than is allowed.
"""

import math

from vgg_runtime.result import Evaluation, Loss

Z = 1.6448536269514722  # one-sided 95 %
SLACK = 1e-9  # a loss that is just the allowed one is allowed


def counted(built: Evaluation, reference: Evaluation) -> Loss:
    """The counted loss of a variant relative to the baseline: of top-1, or disagreement where there is no
    top-1. Where an older bundle has no error of it, that is the largest that the disagreement allows."""
    points, error = 100 * (1 - built.agreement.rate), built.loss_error_points
    if built.top1 and reference.top1:
        points = 100 * (reference.top1.rate - built.top1.rate)
    if error is None:
        error = 100 * math.sqrt(max(1 - built.agreement.rate, 1 / (built.n + 2)) / built.n)
    return Loss(points, error, built.n, 1.0, 3 * built.n)


def lost(built: Evaluation, reference: Evaluation, *, sure: bool = False) -> Loss:
    """The loss that decides: the best estimate, or the counted one with ``sure`` and in older bundles."""
    return counted(built, reference) if sure or built.loss is None else built.loss


def within(loss: Loss, allowed: float, *, sure: bool = False) -> bool:
    """Whether a loss is allowed."""
    return excess(loss, allowed, sure=sure) <= SLACK


def excess(loss: Loss, allowed: float, *, sure: bool = False) -> float:
    """The points above the allowed loss, with ``sure`` including the standard error; 0 where it is
    allowed."""
    return max(0.0, loss.points + (loss.error_points if sure else 0.0) - allowed)


def at_most(loss: Loss) -> float:
    """The points that are lost at most, with 95 %."""
    return loss.points + Z * loss.error_points


def at_least(loss: Loss) -> float:
    """The points that are lost at least, with 95 %."""
    return loss.points - Z * loss.error_points


def contradicts(loss: Loss, allowed: float) -> bool:
    """Whether pictures show, with 95 %, a loss of more than is allowed."""
    return at_least(loss) > allowed + SLACK


def in_words(loss: Loss, pictures: str = "test images") -> str:
    """What is lost and how sure that is: "1.1 points lost on 365 test images, at most 4.4 with 95 %; 1,095
    more pictures would halve that uncertainty"."""
    change = "gained" if loss.points < -0.05 else "lost"
    most = at_most(loss)
    limit = f"at most {most:.1f} lost with 95 %" if change == "gained" else f"at most {most:.1f} with 95 %"
    if most < 0.05:
        limit = "none lost with 95 %"
    return (
        f"{abs(loss.points):.1f} points {change} on {loss.n:,} {pictures}, {limit};"
        f" {loss.halved_by:,} more pictures would halve that uncertainty"
    )
