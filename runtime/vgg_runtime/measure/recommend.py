"""Recommends the variant to ship: the fastest one whose loss, standard error included, is within the
allowance."""

from collections.abc import Sequence

from vgg_runtime.bundle.metrics import better_than_chance
from vgg_runtime.bundle.outputs import ACCURACY, MULTI_LABEL, SOFTMAX
from vgg_runtime.result import Evaluation, Proportion, Recommendation, Row

MAX_LOSS_POINTS = 1.0
LEAST_LABELLED = 20  # on fewer pictures even a good network's top-1 says little
LEAST_IMAGES = 100  # one point is one picture of 100; fewer pictures cannot show such a loss


def recommend(
    rows: Sequence[Row],
    baseline: str,
    max_loss_points: float = MAX_LOSS_POINTS,
    problem: str | None = None,
    output: str = SOFTMAX,
) -> Recommendation:
    """Choose among the rows of a result by the figures on test images from when the bundle was built.

    The loss is the drop of top-1 in points, or 100 * (1 - agreement) where there were no labels and for a
    multi-label network. The loss plus its standard error must stay within ``max_loss_points``, as in the
    search of ``vgg-export all --max-drop``. Pictures shown on the device do not count, because they are too
    few. ``problem``: why the checkpoint's figures mean nothing, if so; then nothing is recommended.
    ``output``: the network's, one of ``outputs.OUTPUTS``.

    Returns:
        The variant, or None when none can be recommended, and the reason.
    """
    allowance = f"{max_loss_points:g} point{'' if max_loss_points == 1 else 's'}"
    reference = next((row for row in rows if row.variant == baseline), None)
    built = reference.built if reference else None
    if why_not := problem or _why_not(reference, allowance):
        return Recommendation(None, max_loss_points, why_not)
    assert built is not None
    fit = [(row, row.built) for row in rows if row.error is None and row.p50_ms and row.built]
    allowed = [
        (row, own) for row, own in fit if row is reference or _at_worst(own, built) <= max_loss_points + 1e-9
    ]
    if not allowed:
        reason = f"no variant that ran here stays within {allowance} of the baseline"
        return Recommendation(None, max_loss_points, reason)
    best, figures = min(allowed, key=lambda one: one[0].p50_ms or 0.0)
    speed = "" if best.speedup is None else f" ({best.speedup:.1f} times the baseline's speed)"
    lost = f"those that lose at most {allowance}, error included: {_words(figures, built, output)}"
    return Recommendation(best.variant, max_loss_points, f"the fastest here{speed} of {lost}")


def _why_not(reference: Row | None, allowance: str) -> str | None:
    """Why nothing can be compared with the baseline's row; None where it can."""
    if reference is None:
        return "the baseline was not run beside these, so there is nothing to compare with"
    built = reference.built
    if built is None:
        return "no figures on test images were recorded when this bundle was made, so none is recommended"
    if built.n < LEAST_IMAGES:
        return f"{built.n} test images are too few to tell a loss of {allowance} (at least {LEAST_IMAGES})"
    return near_chance(built.top1, built.chance)


def near_chance(top1: Proportion | None, chance: float | None, pictures: str = "test images") -> str | None:
    """The reason why nothing is recommended when the baseline's ``top1`` is not clearly better than
    ``chance``. None when it is, and when that is unknown (no labels, or an older bundle that did not record
    it)."""
    if not top1 or chance is None or better_than_chance(round(top1.rate * top1.n), top1.n, chance):
        return None
    found = f"the baseline is right on {100 * top1.rate:.1f} % of {top1.n} {pictures}"
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


def loss_points(built: Evaluation, reference: Evaluation) -> float:
    """The loss of a variant relative to the baseline, in points of top-1, or of disagreement where there is
    no top-1."""
    if built.top1 and reference.top1:
        return 100 * (reference.top1.rate - built.top1.rate)
    return 100 * (1 - built.agreement.rate)


def _at_worst(built: Evaluation, reference: Evaluation) -> float:
    """The loss plus its standard error, in points; older bundles have no standard error."""
    return loss_points(built, reference) + (built.loss_error_points or 0.0)


def _words(built: Evaluation, reference: Evaluation, output: str) -> str:
    if built.top1 and reference.top1:
        return (
            f"{ACCURACY[output]} {100 * built.top1.rate:.1f} % against {100 * reference.top1.rate:.1f} % on"
            f" {built.n} test images"
        )
    decisions = "the decisions per label on " if output == MULTI_LABEL else ""
    return (
        f"it agrees with the baseline on {100 * built.agreement.rate:.1f} % of {decisions}{built.n} test"
        " images"
    )
