"""The rule of what may be lost, and what is said of it."""

import pytest

from vgg_runtime.measure import verdict
from vgg_runtime.result import Evaluation, Loss, Proportion


def built(top1: float | None, agreement: float, n: int = 400, **more: object) -> Evaluation:
    share = None if top1 is None else Proportion(top1, n, (0.0, 1.0))
    return Evaluation(n=n, top1=share, agreement=Proportion(agreement, n, (0.0, 1.0)), **more)  # type: ignore[arg-type]


REFERENCE, UNLABELLED = built(0.90, 1.0), built(None, 1.0)


def test_what_was_counted_is_the_drop_of_top1_or_disagreement() -> None:
    found = verdict.counted(built(0.88, 0.95, loss_error_points=0.7), REFERENCE)
    assert found.points == pytest.approx(2.0)
    assert (found.error_points, found.n, found.counted_share, found.halved_by) == (0.7, 400, 1.0, 1200)
    assert verdict.counted(built(None, 0.95, loss_error_points=0.7), UNLABELLED).points == pytest.approx(5.0)


def test_an_older_bundle_without_errors_gets_the_largest_possible() -> None:
    """Each picture that differs is one lost: the error of 5 % of 400."""
    assert verdict.counted(built(0.88, 0.95), REFERENCE).error_points == pytest.approx(
        100 * (0.05 / 400) ** 0.5
    )
    assert verdict.counted(built(0.90, 1.0), REFERENCE).error_points == pytest.approx(
        100 / (402 * 400) ** 0.5
    )


def test_the_estimate_goes_before_what_was_counted_unless_one_wants_to_be_sure() -> None:
    estimate = Loss(1.2, 0.4, 400, 0.5, 900)
    both = built(0.88, 0.95, loss_error_points=0.7, loss=estimate)
    assert verdict.lost(both, REFERENCE) == estimate
    assert verdict.lost(both, REFERENCE, sure=True).points == pytest.approx(2.0)
    assert verdict.lost(built(0.88, 0.95), REFERENCE).points == pytest.approx(2.0)  # older, without


@pytest.mark.parametrize(
    ("points", "error", "sure", "within"),
    [
        (1.0, 5.0, False, True),  # just the allowed point, and the estimate decides
        (1.001, 0.0, False, False),
        (0.6, 0.4, True, True),
        (0.6, 0.41, True, False),
        (-3.0, 1.0, True, True),
    ],
)
def test_what_is_within_the_allowance(points: float, error: float, sure: bool, within: bool) -> None:
    assert verdict.within(Loss(points, error, 400, 1.0, 1200), 1.0, sure=sure) == within


@pytest.mark.parametrize(("points", "contradicted"), [(2.6, False), (2.7, True), (0.0, False)])
def test_pictures_contradict_what_they_exclude_with_95_per_cent(points: float, contradicted: bool) -> None:
    """1.645 standard errors of one point below the estimate."""
    assert verdict.contradicts(Loss(points, 1.0, 400, 1.0, 1200), 1.0) == contradicted


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            Loss(1.1, 2.0, 365, 1.0, 1095),
            "1.1 points lost on 365 test images, at most 4.4 with 95 %; 1,095 more pictures would halve that"
            " uncertainty",
        ),
        (
            Loss(-0.2, 1.6, 492, 0.4, 900),
            "0.2 points gained on 492 test images, at most 2.4 lost with 95 %; 900 more pictures would halve"
            " that uncertainty",
        ),
        (
            Loss(-3.0, 1.0, 1200, 0.4, 3000),
            "3.0 points gained on 1,200 test images, none lost with 95 %; 3,000 more pictures would"
            " halve that uncertainty",
        ),
    ],
)
def test_what_is_not_sure_is_said(loss: Loss, said: str) -> None:
    assert verdict.in_words(loss) == said
