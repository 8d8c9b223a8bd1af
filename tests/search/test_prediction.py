"""What is predicted of points that are not made yet, and which one is tried next."""

import dataclasses
import math

import numpy as np
import pytest
from made_points import BASE, point

from vgg_export.options import Budget
from vgg_export.search import points, prediction
from vgg_export.search.prediction import Candidate, Experience, Tried


def candidate(share: float, px: int = 160, size_kl: float = 0.3, rank_kl: float = 0.1) -> Candidate:
    return Candidate(points.Rung(share, 1.0, px), round(1e6 * share), round(2e6 * share), size_kl, rank_kl)


def tried(of: Candidate, lost: float, speed: float = 10.0, size: float = 40.0, error: float = 0.1) -> Tried:
    made = point(of.rung.name, 0.95 - lost / 100, speed, size, error=error)
    return Tried(of, dataclasses.replace(made, macs=of.macs, parameters=of.parameters), 60.0)


def experienced(*those: Tried) -> Experience:
    alone = dataclasses.replace(point("int8", 0.95, 4, 4, "int8 alone"), macs=1_000_000, parameters=2_000_000)
    found = Experience(BASE, alone)
    found.tried += those
    return found


def test_without_any_point_the_prior_is_predicted() -> None:
    lost, sd = experienced().drop(candidate(0.5, size_kl=0.5, rank_kl=0.2))
    mean, spread = prediction.PRIOR_MEAN, prediction.PRIOR_SD
    assert lost == pytest.approx(0.5 * mean[0] + 0.2 * mean[1] + mean[2])
    variance = (0.5 * spread[0]) ** 2 + (0.2 * spread[1]) ** 2 + spread[2] ** 2
    assert sd == pytest.approx(math.sqrt(variance + prediction.MODEL_SD**2))


def test_points_teach_what_sizes_and_ranks_cost() -> None:
    truth = np.array([2.0, 30.0, -1.5])
    rows = [(0.0, 0.02), (0.0, 0.3), (0.4, 0.02), (0.4, 0.3), (0.9, 0.1), (0.9, 0.5)]
    learnt = experienced(
        *(
            tried(one, float(truth @ np.array([*costs, 1.0])))
            for k, costs in enumerate(rows)
            for one in [candidate(0.5 - 0.01 * k, 100 + k, *costs)]
        )
    )
    lost, sd = learnt.drop(candidate(0.3, 128, 0.6, 0.2))
    assert lost == pytest.approx(0.6 * 2.0 + 0.2 * 30.0 - 1.5, abs=0.7)
    assert sd < experienced().drop(candidate(0.3, 128, 0.6, 0.2))[1] / 2


def test_speed_and_size_go_by_the_points_and_the_arithmetic() -> None:
    first = experienced()
    assert first.speedup(candidate(0.25)) == pytest.approx(16.0)  # int8 alone is 4 times as fast
    assert first.bytes(candidate(0.25)) == pytest.approx(BASE.bytes / 16, rel=1e-6)
    learnt = experienced(
        tried(candidate(0.5), 0.0, speed=6.0, size=10.0), tried(candidate(0.2), 0.0, speed=12.0)
    )
    assert learnt.bytes(candidate(0.6)) == pytest.approx(BASE.bytes / 10 * 1.2, rel=1e-6)
    # times of 1/12, 1/6 and 1/4 for 0.2, 0.5 and 1
    assert 1 / learnt.speedup(candidate(0.35)) == pytest.approx((1 / 12 + 1 / 6) / 2)
    assert 1 / learnt.speedup(candidate(0.6)) == pytest.approx(1 / 6 + 0.2 * (1 / 4 - 1 / 6))
    assert 1 / learnt.speedup(candidate(0.1)) == pytest.approx(1 / 12 - 0.1 * (1 / 12) / 0.3)
    assert 1 / learnt.speedup(candidate(1.5)) == pytest.approx(1 / 4 + 0.5 * (1 / 12) / 0.5)


def test_a_part_of_the_time_does_not_depend_on_the_arithmetic() -> None:
    """Two points of the search on real filters: half the arithmetic took as long."""
    found = experienced(tried(candidate(0.04), 0.0, speed=91.4), tried(candidate(0.02), 0.0, speed=89.9))
    assert 89.9 < found.speedup(candidate(0.03)) < 91.4
    assert found.speedup(candidate(0.01)) == pytest.approx(89.9)
    budget = Budget(max_drop=1.0)
    assert prediction.choose([candidate(0.03), candidate(0.01)], found, budget, 9.0) is None
    # proportionally to what is known, and no faster
    steep = experienced(tried(candidate(0.5), 0.0, speed=40.0))
    assert steep.speedup(candidate(0.25)) == pytest.approx(80.0)


def test_the_fastest_that_may_hold_is_next_and_hope_lets_it_lose_more() -> None:
    offers = [candidate(share, rank_kl=cost) for share, cost in ((0.5, 0.01), (0.25, 0.2), (0.1, 1.2))]
    known = experienced(tried(candidate(0.6, rank_kl=0.005), 0.0))
    budget = Budget(max_drop=1.5)
    sure = prediction.choose(offers, known, budget, -1.0)
    usual = prediction.choose(offers, known, budget, 0.5)
    brave = prediction.choose(offers, known, budget, 3.0)
    assert [c and c.rung.conv_share for c in (sure, usual, brave)] == [0.5, 0.25, 0.1]


def test_what_lost_too_much_rules_out_the_weaker_rungs_of_its_size_alone() -> None:
    offers = [candidate(0.3), candidate(0.15), candidate(0.15, px=224, size_kl=0.0)]
    known = experienced(tried(candidate(0.2), 5.0))
    # 0.3 keeps more arithmetic than what failed and is still not ruled out; 0.15 is
    left = prediction.choose(offers, known, Budget(max_drop=1.0), 9.0)
    assert left is not None
    assert (left.rung.conv_share, left.rung.px) == (0.15, 224)
    assert prediction.choose(offers[1:2], known, Budget(max_drop=1.0), 9.0) is None
    assert prediction.choose(offers[:1], known, Budget(max_drop=1.0), 9.0) == offers[0]


def test_nothing_that_is_slower_than_what_holds_is_tried() -> None:
    known = experienced(tried(candidate(0.2, 128), 0.0, speed=20.0))
    assert prediction.choose([candidate(0.3), candidate(0.2, 160)], known, Budget(max_drop=1.0), 9.0) is None
    assert prediction.choose([candidate(0.19)], known, Budget(max_drop=1.0), 9.0) is not None


def test_to_be_sure_the_error_of_a_loss_is_counted_before_a_rung_is_tried() -> None:
    offers = [candidate(0.25, rank_kl=0.01)]
    known = experienced(tried(candidate(0.6, rank_kl=0.0), 0.0, error=2.0))
    assert known.error(sure=False) == pytest.approx(2.0)
    held = experienced(tried(candidate(0.6, rank_kl=0.0), -2.0, error=1.9))
    budget = Budget(max_drop=0.1)
    assert prediction.choose(offers, held, budget, 0.0) == offers[0]
    assert prediction.choose(offers, held, dataclasses.replace(budget, sure=True), 0.0) is None
