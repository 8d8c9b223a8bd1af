"""On how many pictures, and on how much of a loss, a recommendation turns."""

import pytest
from rows import a_row

from vgg_runtime.bundle.outputs import MULTI_LABEL, OUTPUTS, SIGMOID, SOFTMAX
from vgg_runtime.measure import recommend
from vgg_runtime.result import Evaluation, Proportion, Row


def row(name: str, p50_ms: float, right: int, n: int, error: float = 0.0) -> Row:
    share = Proportion(right / n, n, (0.0, 1.0))
    built = Evaluation(n=n, top1=share, agreement=share, chance=0.1, loss_error_points=error)
    return a_row(name, p50_ms=p50_ms, speedup=100 / p50_ms, built=built)


@pytest.mark.parametrize(("n", "variant"), [(recommend.LEAST_IMAGES - 1, None), (100, "small")])
def test_a_hundred_pictures_are_enough_and_one_fewer_are_not(n: int, variant: str | None) -> None:
    found = recommend.recommend([row("baseline", 100, n, n), row("small", 10, n, n)], "baseline")
    assert found.variant == variant
    assert ("99 test images are too few" in found.reason) == (variant is None)


@pytest.mark.parametrize(
    ("right", "error", "allowed", "variant"),
    [
        (990, 0.0, 1.0, "small"),  # just what is allowed
        (989, 0.0, 1.0, "baseline"),
        (995, 0.5, 1.0, "small"),
        (995, 0.6, 1.0, "baseline"),  # its error is a part of it
        (979, 0.0, 2.1, "small"),
    ],
)
def test_what_may_be_lost_is_lost_at_most(right: int, error: float, allowed: float, variant: str) -> None:
    rows = [row("baseline", 100, 1000, 1000), row("small", 10, right, 1000, error)]
    found = recommend.recommend(rows, "baseline", allowed)
    assert (found.variant, found.max_loss_points) == (variant, allowed)


def test_the_reason_says_which_figure_was_compared() -> None:
    rows = [row("baseline", 100, 990, 1000), row("small", 10, 985, 1000)]
    reasons = {kind: recommend.recommend(rows, "baseline", output=kind).reason for kind in OUTPUTS}
    for kind, figure in ((SOFTMAX, "top-1"), (SIGMOID, "accuracy at 0.5")):
        assert reasons[kind].endswith(f": {figure} 98.5 % against 99.0 % on 1000 test images")


def test_a_multi_label_variant_is_chosen_by_its_decisions() -> None:
    def decided(variant: str, p50_ms: float, agreement: float) -> Row:
        built = Evaluation(n=400, agreement=Proportion(agreement, 400, (0.0, 1.0)), loss_error_points=0.2)
        return a_row(variant, p50_ms=p50_ms, speedup=100 / p50_ms, built=built)

    rows = [decided("baseline", 100, 1.0), decided("small", 20, 0.992), decided("tiny", 10, 0.991)]
    found = recommend.recommend(rows, "baseline", output=MULTI_LABEL)
    assert found.variant == "small"  # 0.8 points and 0.2 of error; tiny loses 0.1 more
    assert found.reason.endswith(
        "agrees with the baseline on 99.2 % of the decisions per label on 400 test images"
    )
