"""Recommends the variant to ship. That is the one that the search chose, unless this bundle's own figures
contradict it or it is not faster here; without a search, the fastest one whose loss is within the
allowance. The rule of what may be lost is ``verdict``'s."""

from collections.abc import Mapping, Sequence

from vgg_runtime.bundle.manifest import Searched
from vgg_runtime.bundle.metrics import better_than_chance
from vgg_runtime.bundle.outputs import ACCURACY, MULTI_LABEL, SOFTMAX
from vgg_runtime.result import Evaluation, Loss, Proportion, Recommendation, Row

from . import verdict

MAX_LOSS_POINTS = 1.0  # where no loss was asked for
LEAST_LABELLED = 20  # on fewer pictures even a good network's top-1 says little
LEAST_IMAGES = 100  # one point is one picture of 100; fewer pictures cannot show such a loss
CLEARLY_FASTER = 1.1  # a variant that the search did not judge takes its choice's place when so much faster


def recommend(
    rows: Sequence[Row],
    baseline: str | None,
    max_loss_points: float | None = None,
    problem: str | None = None,
    output: str = SOFTMAX,
    searched: Searched | None = None,
    *,
    sure: bool = False,
) -> Recommendation:
    """Choose among the rows of a result by the figures on test images from when the bundle was built.

    The loss is the drop of top-1 in points, or 100 * (1 - agreement) where there were no labels and for a
    multi-label network. Pictures shown on the device do not count, because they are too few.

    Args:
        baseline: the id of the variant that the others are compared with; None: there are no others.
        max_loss_points: the allowed loss; None: it was not asked for, and is MAX_LOSS_POINTS.
        problem: why the checkpoint's figures mean nothing, if so; then nothing is recommended.
        output: the network's, one of ``outputs.OUTPUTS``.
        searched: what a search chose, if there was one.
        sure: the standard error of a loss counts, too, and the search's choice does not.

    Returns:
        The variant, or None when none can be recommended, and the reason.
    """
    allowed = MAX_LOSS_POINTS if max_loss_points is None else max_loss_points
    if baseline is None:
        alone = "this bundle holds one variant, so there is nothing to compare it with"
        return Recommendation(None, allowed, alone, sure=sure)
    reference = next((row for row in rows if row.variant == baseline), None)
    searched = None if sure else searched
    few = _too_few(reference, _points(allowed))
    why_not = problem or _why_not(reference) or (None if searched else few)
    if why_not or reference is None:
        return Recommendation(None, allowed, why_not or "", sure=sure)
    ran = [row for row in rows if row.error is None and row.p50_ms]
    own = {} if few else _losses(ran, reference, sure=sure)
    fit = [
        row
        for row in ran
        if row is reference or (row.variant in own and verdict.within(own[row.variant], allowed, sure=sure))
    ]
    passed_over = ""
    if searched:
        found = _of_search(searched, ran, reference, own, max_loss_points)
        if isinstance(found, Row) and not (rivals := _rivals(fit, found, reference, searched)):
            return _searched(found, searched, own.get(found.variant), max_loss_points)
        passed_over = found if isinstance(found, str) else f"{searched.variant} is slower here"
        fit = fit if isinstance(found, str) else rivals
        passed_over = f"; the search chose {searched.variant}, but {passed_over}"
    if few or not fit:
        none = few or f"no variant that ran here stays within {_points(allowed)} of the baseline"
        return Recommendation(None, allowed, none + passed_over, sure=sure)
    best = min(fit, key=lambda row: row.p50_ms or 0.0)
    assert best.built
    assert reference.built
    included = ", error included" if sure else ""
    reason = (
        f"the fastest here of those that lose at most {_points(allowed)}{included}:"
        f" {_words(best.built, reference.built, output)}{passed_over}"
    )
    if best is reference:
        return Recommendation(best.variant, allowed, reason, sure=sure)
    return Recommendation(best.variant, allowed, reason, verdict.in_words(own[best.variant]), sure)


def _points(count: float) -> str:
    return f"{count:g} point{'' if count == 1 else 's'}"


def _why_not(reference: Row | None) -> str | None:
    """Why nothing can be compared with the baseline's row; None where it can."""
    if reference is None:
        return "the baseline was not run beside these, so there is nothing to compare with"
    built = reference.built
    return near_chance(built.top1, built.chance) if built and built.n >= LEAST_IMAGES else None


def _too_few(reference: Row | None, allowance: str) -> str | None:
    """Why the figures on test images cannot decide; None where they can."""
    built = reference.built if reference else None
    if built is None:
        return "no figures on test images were recorded when this bundle was made, so none is recommended"
    if built.n < LEAST_IMAGES:
        return f"{built.n} test images are too few to tell a loss of {allowance} (at least {LEAST_IMAGES})"
    return None


def _losses(rows: Sequence[Row], reference: Row, *, sure: bool) -> dict[str, Loss]:
    """What each variant with figures loses."""
    assert reference.built
    return {row.variant: verdict.lost(row.built, reference.built, sure=sure) for row in rows if row.built}


def _of_search(
    searched: Searched,
    ran: Sequence[Row],
    reference: Row,
    own: Mapping[str, Loss],
    max_drop: float | None,
) -> Row | str:
    """The row of what the search chose, or why that is not recommended. Without an allowed drop no loss
    contradicts it."""
    row = next((row for row in ran if row.variant == searched.variant), None)
    if row is None:
        return "that did not run here"
    if reference.p50_ms and row.p50_ms and row.p50_ms >= reference.p50_ms:
        return "that is not faster than the baseline here"
    loss = own.get(row.variant)
    if loss and max_drop is not None and verdict.contradicts(loss, max_drop):
        return (
            f"the test images contradict that: {loss.points:.1f} points lost,"
            f" at least {verdict.at_least(loss):.1f} with 95 %"
        )
    return row


def _rivals(fit: Sequence[Row], chosen: Row, reference: Row, searched: Searched) -> list[Row]:
    """The variants that may be shipped, that the search did not judge, and that are clearly faster here than
    its choice: on cores without a dot product a float variant can be."""
    unjudged = [row for row in fit if row is not reference and row.variant not in searched.judged]
    return [row for row in unjudged if (row.p50_ms or 0.0) * CLEARLY_FASTER <= (chosen.p50_ms or 0.0)]


def _searched(row: Row, searched: Searched, loss: Loss | None, max_drop: float | None) -> Recommendation:
    """The search's choice as a recommendation. What it loses is told from the test images, which had no part
    in choosing it, where there are enough of them."""
    asked = "its targets" if max_drop is None else f"a loss of at most {_points(max_drop)}"
    reason = f"the search's choice for {asked}"
    told = loss or searched.lost
    unsure = verdict.in_words(told, "test images" if loss else "selection pictures, which chose it")
    if loss and max_drop is not None and not verdict.within(loss, max_drop):
        unsure += f"; that is more than the {max_drop:g} allowed, but not surely"
    allowed = MAX_LOSS_POINTS if max_drop is None else max_drop
    return Recommendation(row.variant, allowed, reason, unsure)


def near_chance(top1: Proportion | None, chance: float | None, pictures: str = "test images") -> str | None:
    """The reason why nothing is recommended when the baseline's ``top1`` is not clearly better than
    ``chance``. None when it is, and when that is unknown (no labels, or an older bundle that did not record
    it)."""
    if not top1 or chance is None or better_than_chance(round(top1.rate * top1.n), top1.n, chance):
        return None
    found = f"the baseline is right on {100 * top1.rate:.1f} % of {top1.n:,} {pictures}"
    if not better_than_chance(top1.n, top1.n, chance):
        return (
            f"{found}, of which {100 * chance:.0f} % are of one class: even 100 % would not be clearly better"
            " than chance"
        )
    return (
        f"{found}, which is not clearly better than chance ({100 * chance:.1f} %): it does not understand"
        " these pictures as they are"
        " prepared (normalisation, channel order, range), its classes are in another order, or they are"
        " other pictures; a variant that"
        " agrees with it is no better"
    )


def _words(built: Evaluation, reference: Evaluation, output: str) -> str:
    if built.top1 and reference.top1:
        return (
            f"{ACCURACY[output]} {100 * built.top1.rate:.1f} % against {100 * reference.top1.rate:.1f} % on"
            f" {built.n:,} test images"
        )
    decisions = "the decisions per label on " if output == MULTI_LABEL else ""
    return (
        f"it agrees with the baseline on {100 * built.agreement.rate:.1f} % of {decisions}{built.n:,} test"
        " images"
    )
