"""The search for a budget: its decisions on made-up points, and one real search on a small network."""

import csv
import dataclasses
import io
import itertools
import json
import logging
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import small_checkpoint
from made_points import BASE, N, figures, point

from vgg_export import pipeline, recipes
from vgg_export.bundle import evaluate
from vgg_export.core import cache
from vgg_export.core.errors import NothingToGainError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data import splits
from vgg_export.graphs import export, external_data
from vgg_export.graphs.model_info import Described
from vgg_export.int8 import quantize
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import (
    Budget,
    DataOptions,
    DistilOptions,
    FactoriseOptions,
    RecipeOptions,
    RunOptions,
    SearchOptions,
    SweepOptions,
    WeightsOptions,
    default_targets,
)
from vgg_export.search import (
    conclusion,
    front,
    front_page,
    lines,
    pareto,
    points,
    prediction,
    search,
    within_budget,
)
from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.result import Evaluation, Loss

OWN_PX, SMALL_PX = 224, 160


class Scripted:
    """What each rung gives: lost points, speed and how many times smaller, at 160 px; at 224 px it loses and
    gains half as much. ``cost``: its KL before distilling, for each point that it will lose."""

    own_px, judge = OWN_PX, None

    def __init__(
        self,
        rungs: dict[float, tuple[float, float, float]],
        least: float = 0.0,
        error: float = 0.0,
        cost: float = 0.05,
    ) -> None:
        self.error, self.options, self.cost = error, RecipeOptions(), cost
        self.rungs, self.least = rungs, least
        self.asked: list[tuple[int, float]] = []
        self.earlier_s = 0.0

    def baseline(self) -> points.Point:
        return BASE

    def becomes_a_variant(self, _: points.Point) -> bool:
        return True

    def alone(self) -> list[points.Point]:
        return [point("int8", 0.95, 4, 4, "int8 alone", error=self.error)]

    def spent_on_s(self, _: points.Rung) -> float:
        return self.earlier_s

    def candidates(self, _: search.Effort) -> list[prediction.Candidate]:
        return [
            prediction.Candidate(
                points.Rung(share, 1.0, px), round(1e6 / speed), round(1e6 / size), 0.0, self.cost * lost
            )
            for px, part in ((OWN_PX, 0.5), (SMALL_PX, 1.0))
            for share in self.rungs
            for lost, speed, size in [self._at(share, part)]
        ]

    def _at(self, share: float, part: float) -> tuple[float, float, float]:
        lost, speed, size = self.rungs[share]
        return part * lost, part * speed, size

    def rung(self, rung: points.Rung) -> points.Point:
        if rung.conv_share < self.least:
            raise NothingToGainError("too narrow")
        self.asked.append((rung.px, rung.conv_share))
        lost, speed, size = self._at(rung.conv_share, 1.0 if rung.px == SMALL_PX else 0.5)
        made = point(f"{rung.name}, {rung.px} px", 0.95 - lost / 100, speed, size, error=self.error)
        return dataclasses.replace(made, macs=round(1e6 / speed), parameters=round(1e6 / size))


RUNGS = {0.7: (0.0, 8.0, 30.0), 0.5: (0.2, 12.0, 35.0), 0.35: (0.8, 16.0, 40.0), 0.25: (3.0, 20.0, 50.0)}


def with_options(scripted: Scripted, budget: Budget, **how: Any) -> Any:
    scripted.options = RecipeOptions(budget=budget, search=SearchOptions(**how))
    return scripted


def run(scripted: Scripted, budget: Budget, **how: Any) -> points.Found:
    return search.run(with_options(scripted, budget, **how))


def test_it_finds_the_fastest_rung_that_holds_and_learns_from_what_it_tried() -> None:
    scripted = Scripted(RUNGS)
    found = run(scripted, Budget(max_drop=1.0))
    assert found.recommended is not None
    assert found.recommended.speedup == pytest.approx(16.0)
    assert (found.rung.conv_share, found.rung.px) == (0.35, SMALL_PX)
    assert "the fastest point tried with a loss of at most 1 point on 1000 selection pictures" in found.reason
    assert "compact, conv 35%, fc 100%, 160 px: 12.5 MB (1/40), 16.0x, +0.8 ± 0.0 points lost" in found.reason
    # nothing that is slower than what holds is tried, and nothing twice
    assert len(scripted.asked) == len(set(scripted.asked)) == len(found.points) - 1 <= 4
    held = scripted.asked.index((SMALL_PX, 0.35))
    assert not [one for one in scripted.asked[held + 1 :] if one[0] == OWN_PX]


def test_of_points_as_fast_the_one_with_the_least_arithmetic_is_recommended() -> None:
    made = {
        name: dataclasses.replace(point(name, 0.95, speed, 100), macs=macs)
        for name, speed, macs in (("large", 91.4, 420), ("small", 89.9, 210), ("slow", 80.0, 100))
    }
    budget = Budget(max_drop=1.0)
    tried = {points.Rung(0.1, 1.0, 96): list(made.values())}
    found = conclusion.conclude(list(made.values()), BASE, budget, tried)
    assert found.recommended is made["small"]
    assert found.reason.startswith(
        "the least arithmetic of the fastest points tried with a loss of at most 1"
    )
    alone = conclusion.conclude([made["large"], made["slow"]], BASE, budget, tried)
    assert alone.recommended is made["large"]
    assert alone.reason.startswith("the fastest point tried")


def test_a_rung_that_loses_too_much_rules_out_all_that_are_no_stronger() -> None:
    scripted = Scripted(RUNGS | {0.5: (2.0, 12.0, 35.0), 0.35: (4.0, 16.0, 40.0)}, cost=0.0)
    found = run(scripted, Budget(max_drop=0.5), effort="thorough")
    assert (found.rung.conv_share, found.rung.px) == (0.7, SMALL_PX)
    # without any forecast the fastest is tried first, then what is stronger
    small = [share for px, share in scripted.asked if px == SMALL_PX]
    assert small == [0.25, 0.35, 0.5, 0.7]


def test_the_estimate_decides_however_large_its_error_is() -> None:
    found = run(Scripted(RUNGS, error=2.0), Budget(max_drop=1.0))
    assert found.rung.conv_share == 0.35
    assert "16.0x, +0.8 ± 2.0 points lost" in found.reason
    beyond = point("beyond", 0.95 - 0.011, 20, 50)
    assert conclusion.too_much([beyond], BASE, Budget(max_drop=1.0))
    assert not conclusion.too_much([beyond], BASE, Budget(max_drop=1.1))


def test_the_estimate_of_the_loss_goes_before_what_was_counted() -> None:
    """A point that lost 3 counted points, of which the estimate says that 0.4 are no chance."""
    counted = figures(0.92, error=1.5)
    estimated = dataclasses.replace(counted, loss=Loss(0.4, 0.5, N, 0.3, 900))
    lucky = dataclasses.replace(point("lucky", 0.92, 30, 60), select=estimated)
    assert (conclusion.drop(lucky, BASE), conclusion.error(lucky, BASE)) == (0.4, 0.5)
    assert not conclusion.too_much([lucky], BASE, Budget(max_drop=0.5))
    assert conclusion.too_much([lucky], BASE, Budget(max_drop=0.5, sure=True))
    assert conclusion.lost_in_words(lucky, BASE) == "+0.4 ± 0.5 points lost"
    assert conclusion.lost_in_words(lucky, BASE, sure=True) == "+3.0 ± 1.5 points lost"


def test_with_sure_what_is_shown_is_what_decides(tmp_path: Path) -> None:
    estimated = dataclasses.replace(figures(0.92, error=1.5), loss=Loss(0.4, 0.5, N, 0.3, 900))
    lucky = dataclasses.replace(point("lucky", 0.92, 30, 60), select=estimated)
    found = points.Found((lucky,), BASE, None, "none", points.Rung(0.5, 1.0, 160))
    for budget, shown, cells in (
        (Budget(1.0), "+0.4 ± 0.5", "0.4,0.5"),
        (Budget(1.0, sure=True), "+3.0 ± 1.5", "3.0,1.5"),
    ):
        assert shown in lines.line(lucky, BASE, best=False, sure=budget.sure)
        view = front_page.View((lucky,), BASE, budget, None, "", "Finished.", finished=True)
        assert f">{shown}<" in front_page.render(view)
        pareto.write(tmp_path, found, budget)
        assert f",{cells}," in (tmp_path / "front.csv").read_text()
    # of two points as fast, the estimate and the count may find another one better
    steady = dataclasses.replace(point("steady", 0.94, 30, 60), select=figures(0.94, error=0.5))
    pair = [lucky, steady]
    assert [p.name for p in front.pareto(pair, BASE, lambda p: -p.speedup)] == ["lucky"]
    assert [p.name for p in front.pareto(pair, BASE, lambda p: -p.speedup, sure=True)] == ["steady"]
    experience = prediction.Experience(BASE, lucky)
    assert (experience.error(sure=False), experience.error(sure=True)) == (0.5, 1.5)


def test_to_be_sure_a_loss_counts_with_its_standard_error() -> None:
    scripted = Scripted(RUNGS, error=0.3)
    found = run(scripted, Budget(max_drop=1.0, sure=True), effort="thorough")
    assert found.rung.conv_share == 0.5  # 0.8 ± 0.3 does not hold
    assert "12.0x, +0.2 ± 0.3 points lost" in found.reason
    unsure = run(Scripted(RUNGS, error=2.0), Budget(max_drop=1.0, sure=True))
    assert unsure.recommended is None
    assert "more selection pictures would lower its standard error" in unsure.reason
    # it is not the loss that stands in the way
    for budget in (Budget(max_drop=0.5, speedup=30, sure=True), Budget(speedup=30)):
        assert "more selection pictures" not in run(Scripted(RUNGS, error=2.0), budget).reason


def test_to_be_sure_of_a_loss_one_must_be_allowed() -> None:
    with pytest.raises(
        OptionsError, match="--sure is about the loss that --max-drop allows; give --max-drop"
    ):
        Budget(speedup=3.0, sure=True)
    assert Budget(1.0, sure=True).in_words() == "a loss of at most 1 point, its standard error included"


def test_targets_alone_are_met_with_the_least_loss() -> None:
    scripted = Scripted(RUNGS)
    found = run(scripted, Budget(speedup=10, size_bytes=20_000_000))
    assert found.recommended is not None
    assert found.recommended.name == "conv 50%, fc 100%, 160 px"
    assert "the point that loses least" in found.reason


def test_a_budget_that_cannot_be_met_says_so_and_names_the_nearest() -> None:
    found = run(Scripted(RUNGS), Budget(max_drop=0.5, speedup=30), effort="thorough")
    assert found.recommended is None
    assert "cannot be met; the nearest is compact, conv 50%, fc 100%, 160 px: 14.3 MB (1/35), 12.0x" in (
        found.reason
    )
    nothing = run(Scripted({0.7: (5.0, 8.0, 30.0)}), Budget(max_drop=0.5, size_bytes=1000))
    assert "the nearest is int8 alone, int8: 125.0 MB" in nothing.reason
    assert nothing.rung.conv_share == 0.7


@pytest.mark.parametrize(
    ("budget", "nearest"),
    [
        (Budget(speedup=30), 0.25),
        (Budget(size_bytes=5_000_000), 0.25),
        (Budget(speedup=30, max_drop=0.5), 0.5),
    ],
)
def test_targets_that_cannot_be_reached_name_the_point_that_is_closest_to_them(
    budget: Budget, nearest: float
) -> None:
    found = run(Scripted(RUNGS), budget, effort="thorough")
    assert found.recommended is None
    assert found.rung.conv_share == nearest


def test_effort_bounds_the_points_and_time_ends_the_search_with_the_best_so_far(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rungs = {share: (10.0 - share, 10 / share, 10 / share) for share in (0.5, 0.4, 0.3, 0.2)}
    scripted = Scripted(rungs)  # nothing holds
    run(scripted, Budget(max_drop=1.0), effort="quick")
    assert len(scripted.asked) == 2
    clock = itertools.count(0, 150)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    scripted = Scripted(rungs)
    with caplog.at_level(logging.INFO):
        found = run(scripted, Budget(max_drop=1.0), max_minutes=9)
    assert len(scripted.asked) == 1  # a second one might be done only after the ninth minute
    assert re.search(r"; it ended after \d+ min, as --max-minutes asks, before all was tried", found.reason)
    scripted = Scripted(rungs)
    run(scripted, Budget(max_drop=1.0), max_minutes=0.001)
    assert len(scripted.asked) == 1  # a bundle needs one point


def test_a_point_of_an_interrupted_search_tells_how_long_the_next_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is taken over took no time in this run."""
    rungs = {share: (10.0 - share, 10 / share, 10 / share) for share in (0.5, 0.4, 0.3, 0.2)}
    scripted = Scripted(rungs)
    scripted.earlier_s = 200.0
    with caplog.at_level(logging.INFO):
        found = run(scripted, Budget(max_drop=1.0), max_minutes=3)
    assert len(scripted.asked) == 1
    assert "as --max-minutes asks" in found.reason
    scripted = Scripted(rungs)
    scripted.earlier_s = 200.0
    trials = search.Trials(with_options(scripted, Budget(max_drop=1.0), effort="thorough"))
    for most in (7, 6):  # of the rungs of both sizes one is left out once it is made
        with caplog.at_level(logging.INFO):
            candidate = trials.next()
        assert candidate
        trials.make(candidate)
        assert trials.most_s() == pytest.approx(most * 200, abs=1)
    assert "point 2 of at most 8, about 4 min" in caplog.text
    bounded = search.Trials(with_options(scripted, Budget(max_drop=1.0), max_minutes=5))
    candidate = bounded.next()
    assert candidate
    bounded.make(candidate)
    assert bounded.most_s() == pytest.approx(300, abs=2)


@dataclasses.dataclass(frozen=True)
class Given:
    """What an effort changes of a context."""

    options: RecipeOptions
    splits: splits.Splits


def test_a_quick_search_takes_fewer_pictures_and_forms_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    fit, select = (
        tuple(splits.Item(Path(f"{k}.jpg"), 0, f"{k:064d}", f"{name} {k}") for k in range(count))
        for name, count in (("fit", 800), ("select", 500))
    )
    given: Any = Given(RecipeOptions(), splits.Splits("photos", fit, select, ()))
    with caplog.at_level(logging.INFO):
        quick = within_budget._within(given, search.BY_EFFORT["quick"])
    assert (len(quick.splits.select), len(quick.splits.fit)) == (400, 800)
    assert (quick.options.distil.images, quick.options.distil.epochs) == (600, 8)
    assert not quick.options.quantize.every_form
    assert [record.message for record in caplog.records] == [
        "400 of 500 selection pictures are used, as --effort quick asks",
        "600 parts of pictures distil, as --effort quick asks",
    ]
    caplog.clear()
    assert within_budget._within(given, search.BY_EFFORT["normal"]) == given
    few = dataclasses.replace(given, options=RecipeOptions(distil=DistilOptions(images=50)))
    assert within_budget._within(few, search.BY_EFFORT["quick"]).options.distil.images == 50
    # 150 pictures are shown in four parts each, which are no more than 600
    small = dataclasses.replace(given, splits=splits.Splits("photos", fit[:150], select[:400], ()))
    assert within_budget._within(small, search.BY_EFFORT["quick"]).options.distil == given.options.distil
    assert "distil" not in caplog.text
    some = dataclasses.replace(given, splits=splits.Splits("photos", fit[:151], select[:400], ()))
    distil = within_budget._within(some, search.BY_EFFORT["quick"]).options.distil
    assert (distil.images, distil.epochs) == (600, 8)


def test_every_finer_share_lies_between_two_others() -> None:
    assert search.Effort(1, 1, (0.5, 0.25), 0, 1).finer() == [0.5, 0.25]
    assert search.Effort(1, 1, (0.5, 0.25), 1, 1).finer() == [0.5, 0.354, 0.25]
    assert search.Effort(1, 1, (0.5, 0.25, 0.125), 2, 1).finer() == [
        0.5, 0.421, 0.354, 0.297, 0.25, 0.21, 0.177, 0.149, 0.125,
    ]  # fmt: skip


def test_the_page_shows_every_point_and_says_when_the_search_was_interrupted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted, page = Scripted(RUNGS), tmp_path / "front.html"
    scripted.options = RecipeOptions(budget=Budget(max_drop=1.0))
    with caplog.at_level(logging.INFO):
        found = search.run(scripted, page)  # type: ignore[arg-type]
    text = page.read_text()
    assert "Finished after 0 min." in text
    assert found.recommended
    assert all(f"{p.speedup:.1f}x" in text for p in found.points)
    assert sum("best so far" in line for line in caplog.messages) >= 1

    def is_stopped(_: points.Rung) -> points.Point:
        raise KeyboardInterrupt

    scripted.rung = is_stopped  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        search.run(scripted, page)  # type: ignore[arg-type]
    assert "Interrupted; run the same command again" in page.read_text()


def test_how_far_a_point_is_from_the_targets() -> None:
    reached = point("reached", 0.9, 20, 50)
    assert conclusion.shortfall(reached, Budget(speedup=20, size_bytes=10_000_000)) == 0.0
    assert conclusion.shortfall(reached, Budget(max_drop=1.0)) == 0.0
    assert conclusion.shortfall(reached, Budget(speedup=40, size_bytes=5_000_000)) == pytest.approx(
        2 * math.log(2)
    )


def test_what_becomes_no_variant_is_not_recommended(searching: Callable[[], search.Search]) -> None:
    made = searching()
    alone, folded = (
        dataclasses.replace(POINTS[0], steps=steps)
        for steps in (("export", "quantize"), ("fold", "export", "quantize"))
    )
    assert made.becomes_a_variant(alone)
    assert not made.becomes_a_variant(folded)
    wanted = dataclasses.replace(made.options, variants=("compact", "compact-scaled"))
    made.context = dataclasses.replace(made.context, options=wanted)
    assert not made.becomes_a_variant(alone)
    faster = Scripted(RUNGS)
    faster.alone = lambda: [point("int8", 0.95, 40, 4, "int8 alone")]  # type: ignore[method-assign]
    assert run(faster, Budget(max_drop=1.0)).recommended.family == "int8 alone"  # type: ignore[union-attr]
    faster.becomes_a_variant = lambda p: p.family == "compact"  # type: ignore[assignment,method-assign]
    assert run(faster, Budget(max_drop=1.0)).recommended.family == "compact"  # type: ignore[union-attr]


def test_a_network_that_is_too_narrow_ends_the_search() -> None:
    scripted = Scripted(RUNGS, least=0.4)
    found = run(scripted, Budget(max_drop=1.0), effort="thorough")
    assert found.rung.conv_share == 0.5  # 0.35 cannot be made
    with pytest.raises(OptionsError, match="too narrow to be factorised"):
        run(Scripted(RUNGS, least=0.9), Budget(max_drop=1.0))


def test_a_loss_that_so_few_pictures_cannot_show_is_refused_before_anything_takes_time(
    splits: splits.Splits,
) -> None:
    asked = RecipeOptions(budget=Budget(max_drop=0.5))
    n = len(splits.select)
    context = recipes.Context(None, splits, asked, Quiet(), Path(), Path())  # type: ignore[arg-type]
    with pytest.raises(
        OptionsError, match=rf"{n} selection pictures cannot show a loss of at most 0\.5 points: .* \d"
    ):
        within_budget.found_for(context)


def test_where_the_effort_leaves_too_few_pictures_the_refusal_says_so() -> None:
    some = tuple(splits.Item(Path(f"{k}.jpg"), 0, f"{k:064d}", f"select {k}") for k in range(500))
    fit = (splits.Item(Path("fit.jpg"), 0, "f" * 64, "fit"),)
    asked = RecipeOptions(budget=Budget(max_drop=0.2), search=SearchOptions("quick"))
    given = splits.Splits("photos", fit, some, ())
    context = recipes.Context(None, given, asked, Quiet(), Path(), Path())  # type: ignore[arg-type]
    with pytest.raises(
        OptionsError, match=r"400 selection .* or choose another --effort than quick, .* 400 of 500$"
    ):
        within_budget.found_for(context)


def test_the_page_of_a_search_that_ended_with_an_error_says_which(tmp_path: Path) -> None:
    page = tmp_path / "front.html"
    too_narrow = Scripted(RUNGS, least=0.9)
    with pytest.raises(OptionsError, match="too narrow"):
        search.run(with_options(too_narrow, Budget(max_drop=1.0)), page)
    assert "Ended with an error: this network is too narrow to be factorised" in page.read_text()


def test_the_baseline_loses_nothing_against_itself_in_the_table_either() -> None:
    found = points.Found((), BASE, None, "none", points.Rung(0.5, 1.0, 160))
    (row,) = csv.DictReader(io.StringIO(pareto.table(found, set(), sure=True)))
    assert (row["select_drop_points"], row["select_loss_error_points"]) == ("0.0", "0.0")


def test_to_lose_nothing_cannot_be_asked_for() -> None:
    for points_ in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(OptionsError, match=rf"--max-drop must be above 0, found {points_:g}; no number"):
            Budget(max_drop=points_)


def test_without_labels_the_loss_is_disagreement() -> None:
    base = dataclasses.replace(BASE, select=figures(None, 1.0))
    assert conclusion.drop(point("a", None, 2, 2, agreement=0.97), base) == pytest.approx(3.0)


def with_test(figures_of: dict[str, Evaluation], budget: Budget) -> tuple[points.Found, Any]:
    """A search's result with test figures of the baseline and of points, by name, which became variants. It
    chose the point a."""
    found = points.Found(POINTS, BASE, POINTS[1], "because", points.Rung(0.25, 1.0, 160))
    made = {"baseline": BASE, **{f"variant-{p.name}": p for p in POINTS if p.name in figures_of}}
    entries: Any = [
        SimpleNamespace(id=name, model=SimpleNamespace(sha256=p.sha256)) for name, p in made.items()
    ]
    known = {name: figures_of.get(p.name, figures(0.80)) for name, p in made.items()}
    return within_budget.with_test_figures(found, entries, known, budget), entries


LOST_HALF = (
    "0.5 points lost on 1,000 test pictures, at most 0.8 with 95 %;"
    " 3,000 more pictures would halve that uncertainty"
)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(0.4), "; that is more than the 0.4 allowed, but not surely"),
        # 100 * (0.8 - 0.795) is a little more than 0.5
        (Budget(0.5), ""),
        (Budget(0.6), ""),
        (Budget(speedup=2.0), ""),
        (Budget(0.4, sure=True), "; that is more than the 0.4 allowed"),
    ],
)
def test_the_reason_says_what_the_test_pictures_say_of_the_budget(budget: Budget, said: str) -> None:
    told, _ = with_test({"a": figures(0.795, error=0.2)}, budget)
    assert told.reason == f"because; as variant-a in the bundle, {LOST_HALF}{said}"
    assert told.recommended is not None
    assert told.recommended.test == figures(0.795, error=0.2)


def test_what_the_test_pictures_contradict_is_not_recommended() -> None:
    """At least 2.7 - 1.645 * 0.4 = 2.04 points are lost with 95 %."""
    tested = {"a": figures(0.773, error=0.4), "int8": figures(0.81), "worse than a": figures(0.75)}
    told, _ = with_test(tested, Budget(2.0))
    assert told.reason.endswith(
        "; that contradicts the 2 allowed, and instead int8 alone, int8 is recommended"
    )
    assert told.recommended is not None
    assert told.recommended.sha256 == "int8"
    nothing, _ = with_test({"a": figures(0.773, error=0.4)}, Budget(2.0))
    assert nothing.reason.endswith("; that contradicts the 2 allowed")
    assert nothing.recommended is None
    kept, _ = with_test({"a": figures(0.773, error=0.43)}, Budget(2.0))
    assert kept.recommended is not None


def test_the_board_is_told_what_the_search_chose_and_what_it_judged() -> None:
    found, entries = with_test({"a": figures(0.8), "worse than a": figures(0.8)}, Budget(2.0))
    told = within_budget.for_the_board(found, entries)
    judged = ("variant-a", "variant-worse than a")
    assert told is not None
    assert (told.variant, told.judged) == ("variant-a", judged)
    assert told.lost.points == pytest.approx(0.5)
    assert (told.lost.error_points, told.lost.n) == (0.7, N)
    none = dataclasses.replace(found, recommended=None)
    assert within_budget.for_the_board(none, entries) is None
    assert within_budget.for_the_board(found, entries[:1]) is None  # it became no variant


@pytest.mark.parametrize("variants", [("compact",), ("quantized", "compact-scaled")])
def test_a_budget_wants_both_that_may_be_recommended_in_the_bundle(variants: tuple[str, ...]) -> None:
    with pytest.raises(OptionsError, match="name both in --variants"):
        recipes.chosen_recipes(RecipeOptions(budget=Budget(1.0), variants=variants))
    recipes.chosen_recipes(RecipeOptions(variants=variants))
    recipes.chosen_recipes(RecipeOptions(budget=Budget(1.0), variants=("compact-scaled", "compact")))


@pytest.mark.parametrize(("field", "value"), [("size_bytes", 0), ("speedup", 0.5), ("speedup", float("nan"))])
def test_impossible_budgets_are_refused(field: str, value: float) -> None:
    with pytest.raises(OptionsError, match="must be at least"):
        Budget(**{field: value})  # type: ignore[arg-type]


POINTS = (
    point("int8", 0.950, 4, 4, "int8 alone"),
    point("a", 0.945, 10, 35, error=0.7),
    point("worse than a", 0.940, 9, 30),
    point("b", 0.900, 20, 60),
    point("random", 0.500, 10, 35, "filters at random, not repaired"),
)


def test_the_front_is_what_nothing_beats() -> None:
    assert [p.name for p in front.pareto(POINTS, BASE, lambda p: -p.speedup)] == ["b", "a", "int8"]
    # as good and smaller
    assert [p.name for p in front.pareto([*POINTS, BASE], BASE, lambda p: p.bytes)] == ["b", "a", "int8"]
    assert [p.name for p in front.pareto(POINTS[2:], BASE, lambda p: p.bytes)] == ["b", "worse than a"]


def test_the_front_is_written_as_json_csv_and_pictures(tmp_path: Path) -> None:
    found = points.Found(POINTS, BASE, POINTS[1], "because", points.Rung(0.25, 1.0, 160))
    paths = pareto.write(tmp_path, found)
    assert [p.name for p in paths] == list(manifest.FRONT_NAMES)
    content = json.loads(paths[0].read_text())
    assert content["front_by_speed"] == [["compact", "b"], ["compact", "a"], ["int8 alone", "int8"]]
    assert content["judged_on"] == "select"  # the test pictures were not asked
    assert points.Point.from_json(content["recommended"]) == POINTS[1]
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert [row["name"] for row in rows] == ["fp32", *(p.name for p in POINTS)]
    assert [row["select_drop_points"] for row in rows] == ["0.0", "0.0", "0.5", "1.0", "5.0", "45.0"]
    assert [row["select_loss_error_points"] for row in rows] == ["0.0", "0.0", "0.7", "0.0", "0.0", "0.0"]
    assert [row["on_front"] for row in rows] == ["0", "1", "1", "0", "1", "0"]
    assert [row["recommended"] for row in rows] == ["0", "0", "1", "0", "0", "0"]
    assert rows[0]["test_top1"] == ""  # absent, not nought
    drawn = paths[2].read_text()
    assert drawn.startswith("<?xml")
    for text in (
        "1: int8 alone, int8",
        "2: compact, a",
        "3: compact, b",
        "filters at random, not repaired",
        "recommended",
    ):
        assert text in drawn
    assert paths[3].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_front_is_judged_on_test_pictures_where_all_points_have_them(tmp_path: Path) -> None:
    tried = tuple(dataclasses.replace(p, test=figures(0.7 if p.name == "a" else 0.8)) for p in POINTS)
    base = dataclasses.replace(BASE, test=figures(0.8))
    assert front.judged_on([*tried, base]) == "test"
    assert "a" not in [p.name for p in front.pareto([*tried, base], base, lambda p: p.bytes)]


@pytest.fixture
def searching(splits: splits.Splits, tmp_path: Path) -> Callable[[], search.Search]:
    """A search on a small network, as ``all`` sets it up."""
    checkpoints.save(small_checkpoint(), tmp_path / "checkpoint.safetensors")
    checkpoint = cache.of(tmp_path / "checkpoint.safetensors")
    options = RecipeOptions(
        data=DataOptions(calibration_images=8),
        factorise=FactoriseOptions(images=16, multiple=4),
        distil=DistilOptions("none"),
        budget=Budget(max_drop=100.0),
        scaled_px=96,
    )
    baseline = export.run(checkpoint, tmp_path / "baseline.onnx", Quiet())

    def make() -> search.Search:
        judge = points.Judge(baseline, {"select": splits.select, "test": splits.test[:7]}, tmp_path, Quiet())
        work = tmp_path / "work"
        return search.Search(recipes.Context(checkpoint, splits, options, Quiet(), work, work), judge)

    return make


@pytest.mark.release
def test_a_sweep_brings_what_keeps_it_honest_and_a_search_goes_on_from_its_points(
    searching: Callable[[], search.Search],
    splits: splits.Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(points, "TIMING_S", 0.02)
    found = search.sweep(searching(), SweepOptions(ratios=(0.5,)), (0.5,))
    by_family = {p.family: p for p in found.points if p.input_px == 224}
    assert set(by_family) == set(front.LOOKS) - {"baseline"}
    assert [p.input_px for p in found.points if p.family in ("int8 alone", "compact")] == [224, 96, 224, 96]
    sizes = [p.bytes for family, p in by_family.items() if family.startswith("filters")]
    # the same size, chosen otherwise: no layer is kept float for its agreement
    assert sizes == pytest.approx([sizes[0]] * 3, abs=20)
    compact, not_fitted = by_family["compact"], by_family["compact, not fitted"]
    assert compact.bytes == pytest.approx(not_fitted.bytes, abs=20)
    assert compact.macs == not_fitted.macs < by_family["int8 alone"].macs
    assert compact.bytes < by_family["int8 alone"].bytes < found.baseline.bytes
    assert compact.select is not None
    assert not_fitted.select is not None
    assert (compact.select.kl_mean or 0) < (not_fitted.select.kl_mean or 0)
    for p in found.points:
        assert p.target == default_targets()[0]
        shipped = tmp_path / "shipped" / p.sha256
        shipped.mkdir(parents=True)
        external_data.write(tmp_path / p.model, shipped / "model.onnx")
        assert p.bytes == sum(path.stat().st_size for path in shipped.iterdir())
        assert p.p50_ms > 0
        assert p.test is not None
        assert p.test.n == 7
    assert front.judged_on(found.points) == "test"
    pareto.write(tmp_path / "front", found)
    # what a model says does not depend on who asks
    subjects = [
        evaluate.Subject(name, cache.of(tmp_path / name), for_input(224))
        for name in ("baseline.onnx", compact.model)
    ]
    assert compact.select == evaluate.evaluate(subjects, splits.select, tmp_path, Quiet())[compact.model]
    timed: list[str] = []

    def time_again(*_: object) -> tuple[float, float]:
        timed.append("again")
        return 1.0, 1.0

    monkeypatch.setattr(points.Judge, "time", time_again)
    monkeypatch.setitem(search.BY_EFFORT, "normal", search.Effort(2, 2, (0.5,), 0, 2))
    again = search.run(searching())
    assert [(p.family, p.input_px) for p in again.points] == [("int8 alone", 224), ("compact", 96)]
    assert all(p in found.points for p in again.points)
    assert not timed  # what was tried is not tried again
    monkeypatch.setattr(points, "timed_on", lambda: {"cpu": "another"})
    search.run(searching())
    assert len(timed) == 1 + len(again.points)  # but latencies of another machine are no use


def test_a_ratio_that_removes_nothing_is_refused_before_a_sweep_begins(
    searching: Callable[[], search.Search],
) -> None:
    made = searching()
    made.alone = lambda: pytest.fail("it began")  # type: ignore[method-assign]
    with pytest.raises(OptionsError, match=r"a ratio of 0\.001 from conv1 on removes nothing"):
        search.sweep(made, SweepOptions(ratios=(0.5, 0.001)))


@pytest.mark.release
def test_with_an_allowed_drop_all_layers_of_a_compact_model_are_int8(
    searching: Callable[[], search.Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, float]] = []

    def quantized(before: cache.Artifact, *arguments: Any) -> cache.Artifact:
        factorised = before.read(Described).model.chain.factorised
        asked.append((factorised, arguments[3].min_agreement))
        return before

    monkeypatch.setattr(quantize, "run", quantized)
    made = searching()
    for max_drop in (None, 1.0):
        wanted = dataclasses.replace(made.options, budget=Budget(max_drop))
        made.context = dataclasses.replace(made.context, options=wanted)
        for context, chain in (
            (made.context, (recipes.EXPORT,)),
            (made.at(points.Rung(0.5, 0.5, 224)), (recipes.FACTORISE, recipes.EXPORT)),
        ):
            recipes.Steps(context).make((*chain, recipes.QUANTIZE))
    assert asked == [(False, 0.98), (True, 0.98), (False, 0.98), (True, 0.0)]


@pytest.mark.release
def test_all_with_a_budget_brings_the_recommended_variant_and_can_be_run_again(
    signs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(points, "TIMING_S", 0.02)
    caplog.set_level("INFO", "vgg_export")
    checkpoints.save(small_checkpoint(), tmp_path / "mine.safetensors")
    for path in signs_folder.rglob("*.png"):  # without their classes, of which this network knows nothing
        unlabelled = tmp_path / "photos" / path.parent.parent.name / path.name
        unlabelled.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, unlabelled)
    how = RunOptions(tmp_path / "out")
    options = RecipeOptions(
        weights=WeightsOptions(str(tmp_path / "mine.safetensors")),
        data=DataOptions(str(tmp_path / "photos"), calibration_images=8),
        factorise=FactoriseOptions(images=16, multiple=4),
        distil=DistilOptions("none"),
        budget=Budget(max_drop=100.0),
        scaled_px=96,
        variants=("quantized", "compact", "compact-scaled"),
        targets=default_targets()[:1],
    )
    made = pipeline.run(options, how)
    content = json.loads((tmp_path / "out/front.json").read_text())
    assert content["recommended"]["family"] == "compact"
    assert content["recommended"]["test"]["n"] == 42
    # nothing was tuned
    assert [loss.step for loss in made.variant("compact-scaled").losses] == [
        "removed",
        "repaired",
        "quantized",
    ]
    assert (
        "compact is left out: a search makes compact variants at the input that it found, 96 px"
        in caplog.text
    )
    assert [v.id for v in made.variants] == ["baseline", "quantized", "compact-scaled"]
    quantized = sum(record.getMessage().startswith("int8: ") for record in caplog.records)
    # all points but the baseline, and none for a variant again
    assert quantized == len(content["points"]) - 1
    (name,) = re.findall(r"as (compact|compact-scaled) in the bundle", content["reason"])
    evaluation = made.variant(name).build.evaluation
    assert evaluation is not None
    assert content["recommended"]["test"] == evaluation.to_json()
    said = r", \d+\.\d points (lost|gained) on 42 test pictures, at most \d+\.\d"
    assert re.search(said, content["reason"])
    assert made.searched is not None
    assert made.searched.variant == name
    assert set(made.searched.judged) == {"quantized", "compact-scaled"}
    assert {point["family"] for point in content["points"]} == {"baseline", "int8 alone", "compact"}
    page = (tmp_path / "out/front.html").read_text(encoding="utf-8")
    assert "Asked for: a loss of at most 100 points." in page
    assert page.count('<th scope="row">') == len(content["points"])
    # the device judges by the same rule
    told = tmp_path / "told.json"
    command: list[str | Path] = [
        sys.executable,
        tmp_path / "out/runtime/compare.py",
        "--budget",
        "0.1",
        "--rounds",
        "1",
        "--json",
        told,
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(told.read_text())["recommended"]["max_loss_points"] == 100.0
    caplog.clear()
    assert pipeline.run(options, how) == made  # the front beside the bundle does not stand in the way
    assert "bundle: up to date" in caplog.text
    assert "quantize: up to date" in caplog.text
    pipeline.run(dataclasses.replace(options, budget=Budget(), variants=("compact-scaled",)), how)
    assert not any((tmp_path / "out" / name).exists() for name in manifest.FRONT_NAMES)
    assert manifest.read(tmp_path / "out").max_drop is None


def test_a_search_makes_compact_variants_at_one_size() -> None:
    steps: list[Any] = [object(), object(), object()]
    found: Any = SimpleNamespace()
    known = {recipe.id: recipe for recipe in recipes.RECIPES}
    own, smaller, plain = steps
    outcome = within_budget.Outcome(found, own, smaller, plain, folded=True, alone="at 96 px alone")
    assert outcome.maker(known["compact-scaled"]) is steps[1]
    assert outcome.maker(known["quantized"]) is steps[2]
    with pytest.raises(NothingToGainError, match="at 96 px alone"):
        outcome.maker(known["compact"])
    assert dataclasses.replace(outcome, alone=None).maker(known["compact"]) is steps[0]
