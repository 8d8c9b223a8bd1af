"""The prediction of a search's minutes: what it counts, and how it is said."""

import dataclasses

import pytest
from conftest import small_checkpoint

from vgg_export.data.tensors import seconds_per_picture
from vgg_export.network import chain as chains
from vgg_export.search import duration
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle.input_spec import for_input

VGG16 = chains.full_width("vgg16")
WORK = duration.Work((224, 160, 96), 96, 1, (0.25, 0.1), 900, 1000, 600, 7, again=True)


def expected(work: duration.Work = WORK, picture_s: float = 0.09, points: int = 2) -> float:
    return duration.expected_s(VGG16, work, duration.Pace(picture_s, picture_s), points)


def test_more_work_takes_longer_and_a_slower_machine_as_well() -> None:
    usual = expected()
    for more in (
        {"selected": 1800},
        {"tested": 1200},
        {"crops": 2000},
        {"walked": 2},
        {"px": 160},
        {"variants": 9},
        {"sizes": (224, 192, 160, 96)},
        {"pruned": 0},
        {"int8": (0.5,)},
        {"int8": (0.25, 0.25)},
    ):
        assert expected(dataclasses.replace(WORK, **more)) > usual, more
    assert expected(dataclasses.replace(WORK, again=False)) < usual
    assert expected(dataclasses.replace(WORK, every_form=False)) < usual
    pruned = dataclasses.replace(WORK, pruned=0, tuned=1000)
    assert expected(pruned) < expected(dataclasses.replace(pruned, pruned=2))
    assert expected(pruned) < expected(dataclasses.replace(pruned, tuned=1500))
    assert expected(points=3) - expected(points=2) == pytest.approx(expected(points=4) - expected(points=3))
    fixed = expected(picture_s=0.0)
    assert expected(picture_s=0.18) - fixed == pytest.approx(2 * (usual - fixed))


def test_it_is_what_was_measured_on_a_vgg16() -> None:
    """From the end of the check to the end of the bundle; within the factor of 1.5 that is promised. All but
    the last were measured before torch kept freed memory, when a picture took a sixth longer."""
    shares = (0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.065, 0.045)
    sizes = (224, 192, 160, 128, 96)
    # two cores of a Zen 5 with AVX512-VNNI
    earlier = duration.Work(sizes, 96, 3, shares, 900, 1000, 600, 7, again=True)
    assert 1 / 1.5 < expected(earlier) / 1445 < 1.5
    normal = duration.Work(sizes, 96, 1, shares, 900, 1000, 600, 5, again=False)
    assert 1 / 1.5 < expected(normal) / 800 < 1.5
    # one core of a Zen 3 with AVX2, a quick search that makes builds for itself and a Pi 5
    quick = (0.25, 0.15, 0.09)
    slow = duration.Work(
        sizes, 96, 1, quick, 400, 600, 600, 4, again=False,
        int8=(duration.IN_INT8_SLOW, duration.IN_INT8_EXACT),
    )  # fmt: skip
    assert 1 / 1.5 < expected(slow, picture_s=0.49) / 4508 < 1.5
    # two cores of a Zen 4 with AVX512-VNNI
    fast = duration.Work(sizes, 96, 1, quick, 400, 600, 600, 5, again=False, every_form=False)
    assert 1 / 1.5 < expected(fast, picture_s=0.147) / 841 < 1.5


def test_each_kind_of_int8_weights_costs_its_own() -> None:
    vnni, avx2 = TARGETS["x86-vnni"], TARGETS["x86-avx2"]
    assert duration.int8_cost(vnni, ("x86-vnni", "pi5")) == (0.3,)  # the same weights
    assert duration.int8_cost(avx2, ("x86-avx2", "pi5", "pi4")) == (0.6, 1.2)
    assert duration.int8_cost(avx2, ("pi5", "x86-avx2")) == (1.2, 0.6)
    assert duration.int8_cost(TARGETS["pi4"], ("pi4",)) == (0.6,)


def test_a_network_is_timed() -> None:
    assert all(0 < seconds < 10 for seconds in seconds_per_picture(small_checkpoint()))


def test_a_fast_device_leaves_what_the_cpu_computes() -> None:
    both = expected(picture_s=0.09)
    on_device, nowhere = (
        duration.expected_s(VGG16, WORK, duration.Pace(in_torch_s, 0.09), 2) for in_torch_s in (0.001, 0.0)
    )
    on_cpu_s = (650 + 600 * 0.3 + 900 * (1.0 + 0.3) + 600 * (1.0 + 0.3)) * 0.09
    assert nowhere == pytest.approx(expected(picture_s=0.0) + on_cpu_s)
    assert nowhere < on_device < both


def test_minutes_are_said_with_a_bound_where_that_is_more() -> None:
    words = "the search and its bundle take about 20 min on this machine"
    assert duration.in_words(1200, 1790) == f"{words}, 30 at most"
    assert duration.in_words(1200, 1205) == words
    assert duration.in_words(1200, 4790, (2, 10)) == f"{words} if 2 points are tried, and 80 min if 10 are"
    assert duration.in_words(3, 4) == "the search and its bundle take about 1 min on this machine"


def test_the_second_moments_of_all_layers_but_the_last_count() -> None:
    network = chains.Chain(for_input(64), chains.vgg_layers([[4], [8]], (16, 3)))
    assert duration._solved(network) == 27**3 + 36**3 + 16**3
