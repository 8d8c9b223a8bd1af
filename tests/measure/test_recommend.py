"""On how many pictures, on how much of a loss and on what a search chose a recommendation turns."""

import dataclasses
from typing import Any

import pytest
from rows import a_row

from vgg_runtime.bundle.manifest import Searched
from vgg_runtime.bundle.outputs import MULTI_LABEL, OUTPUTS, SIGMOID, SOFTMAX
from vgg_runtime.measure import recommend, verdict
from vgg_runtime.result import Evaluation, Loss, Proportion, Recommendation, Row


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
    ("right", "error", "allowed", "sure", "variant"),
    [
        (990, 9.0, 1.0, False, "small"),  # just what is allowed
        (989, 0.0, 1.0, False, "baseline"),
        (995, 0.5, 1.0, True, "small"),
        (995, 0.6, 1.0, True, "baseline"),  # its error is a part of it
        (979, 0.0, 2.1, True, "small"),
    ],
)
def test_what_may_be_lost_is_lost_at_most(
    right: int, error: float, allowed: float, sure: bool, variant: str
) -> None:
    rows = [row("baseline", 100, 1000, 1000), row("small", 10, right, 1000, error)]
    found = recommend.recommend(rows, "baseline", allowed, sure=sure)
    assert (found.variant, found.max_loss_points, found.sure) == (variant, allowed, sure)
    assert ("error included" in found.reason) == sure
    if variant == "small":
        lost = (1000 - right) / 10
        most = lost + verdict.Z * error
        assert (found.unsure or "").startswith(
            f"{lost:.1f} points lost on 1,000 test images, at most {most:.1f} with 95 %; 3,000 more"
        )
    else:
        assert found.unsure is None


def test_the_reason_says_which_figure_was_compared() -> None:
    rows = [row("baseline", 100, 990, 1000), row("small", 10, 985, 1000)]
    reasons = {kind: recommend.recommend(rows, "baseline", output=kind).reason for kind in OUTPUTS}
    for kind, figure in ((SOFTMAX, "top-1"), (SIGMOID, "accuracy at 0.5")):
        assert reasons[kind].endswith(f": {figure} 98.5 % against 99.0 % on 1,000 test images")


def test_a_multi_label_variant_is_chosen_by_its_decisions() -> None:
    def decided(variant: str, p50_ms: float, agreement: float) -> Row:
        built = Evaluation(n=400, agreement=Proportion(agreement, 400, (0.0, 1.0)), loss_error_points=0.2)
        return a_row(variant, p50_ms=p50_ms, speedup=100 / p50_ms, built=built)

    rows = [decided("baseline", 100, 1.0), decided("small", 20, 0.992), decided("tiny", 10, 0.991)]
    found = recommend.recommend(rows, "baseline", output=MULTI_LABEL, sure=True)
    assert found.variant == "small"  # 0.8 points and 0.2 of error; tiny loses 0.1 more
    assert found.reason.endswith(
        "agrees with the baseline on 99.2 % of the decisions per label on 400 test images"
    )
    assert recommend.recommend(rows, "baseline", output=MULTI_LABEL).variant == "tiny"


# What a search chose.

CHOSEN = Searched("compact", Loss(-0.2, 1.6, 492, 1.0, 1476), ("quantized", "compact", "compact-scaled"))


def searched(
    compact: Row | None = None, *others: Row, allowed: float | None = 2.0, **more: Any
) -> Recommendation:
    """What is recommended beside a baseline of 100 ms that is right on 288 of 365 pictures."""
    compact = compact or row("compact", 4, 284, 365, 2.0)  # 1.1 ± 2.0 points lost
    rows = [row("baseline", 100, 288, 365), row("quantized", 35, 288, 365), compact, *others]
    return recommend.recommend(rows, "baseline", allowed, searched=CHOSEN, **more)


def test_one_variant_alone_is_compared_with_nothing() -> None:
    found = recommend.recommend([a_row("compact")], None)
    assert found.variant is None
    assert found.reason == "this bundle holds one variant, so there is nothing to compare it with"


def test_the_search_s_choice_is_the_board_s_and_what_is_not_sure_is_said() -> None:
    found = searched()
    assert found.variant == "compact"
    assert found.reason == ("the search's choice for a loss of at most 2 points")
    assert found.unsure == (
        "1.1 points lost on 365 test images, at most 4.4 with 95 %;"
        " 1,095 more pictures would halve that uncertainty"
    )
    assert searched(sure=True).variant == "quantized"  # it may lose more


def test_a_faster_variant_that_the_search_judged_does_not_take_its_place() -> None:
    """The search saw that it loses too much; that fewer pictures say otherwise is luck."""
    rival = row("compact-scaled", 2, 288, 365)
    assert searched(None, rival).variant == "compact"
    unjudged = dataclasses.replace(rival, variant="compact-scaled-fp32")
    taken = searched(None, unjudged)
    assert taken.variant == "compact-scaled-fp32"
    assert taken.reason.endswith("; the search chose compact, but compact is slower here")
    barely = dataclasses.replace(unjudged, p50_ms=3.7)
    assert searched(None, barely).variant == "compact"
    worse = dataclasses.replace(row("compact-fp32", 2, 280, 365))  # 2.2 points lost
    assert searched(None, worse).variant == "compact"


@pytest.mark.parametrize(
    ("compact", "why"),
    [
        # 288 - 262 are 7.1 points
        (
            row("compact", 4, 262, 365, 2.0),
            "the test images contradict that: 7.1 points lost, at least 3.8 with 95 %",
        ),
        (row("compact", 100, 288, 365), "that is not faster than the baseline here"),
        (dataclasses.replace(row("compact", 4, 288, 365), error="did not fit"), "that did not run here"),
    ],
)
def test_another_takes_the_place_of_a_choice_that_does_not_hold_here(compact: Row, why: str) -> None:
    found = searched(compact)
    assert found.variant == "quantized"
    assert found.reason.endswith(f"; the search chose compact, but {why}")


def test_a_choice_that_is_not_contradicted_but_over_the_allowance_is_said_to_be() -> None:
    found = searched(row("compact", 4, 279, 365, 2.0))  # 2.5 points
    assert found.variant == "compact"
    assert (found.unsure or "").endswith("; that is more than the 2 allowed, but not surely")


def test_without_an_allowed_loss_the_choice_for_targets_is_kept() -> None:
    found = searched(row("compact", 4, 240, 365, 2.0), allowed=None)
    assert (found.variant, found.max_loss_points) == ("compact", recommend.MAX_LOSS_POINTS)
    assert found.reason == "the search's choice for its targets"
    assert (found.unsure or "").startswith("13.2 points lost on 365 test images")


def test_without_enough_test_images_the_choice_is_told_by_the_pictures_that_chose_it() -> None:
    few = [row("baseline", 100, 40, 40), row("compact", 4, 30, 40)]
    bare = [dataclasses.replace(one, built=None) for one in few]
    for rows in (few, bare):
        found = recommend.recommend(rows, "baseline", 2.0, searched=CHOSEN)
        assert found.variant == "compact"
        assert (found.unsure or "").startswith(
            "0.2 points gained on 492 selection pictures, which chose it, at most 2.4 lost with 95 %"
        )
    gone = recommend.recommend(few[:1], "baseline", 2.0, searched=CHOSEN)
    assert gone.variant is None
    assert "40 test images are too few" in gone.reason
    assert gone.reason.endswith("; the search chose compact, but that did not run here")


def test_a_choice_does_not_help_a_baseline_without_knowledge() -> None:
    assert searched(problem="it does not understand").variant is None
    near = [row("baseline", 100, 37, 365), row("compact", 4, 37, 365)]
    found = recommend.recommend(near, "baseline", 2.0, searched=CHOSEN)
    assert (found.variant, "not clearly better than chance" in found.reason) == (None, True)
    alone = recommend.recommend([row("compact", 4, 37, 365)], "baseline", 2.0, searched=CHOSEN)
    assert (alone.variant, "the baseline was not run" in alone.reason) == (None, True)
