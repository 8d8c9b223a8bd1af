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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import small_checkpoint

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
    SweepOptions,
    WeightsOptions,
    default_targets,
)
from vgg_export.search import conclusion, pareto, points, search, within_budget
from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.metrics import wilson_interval
from vgg_runtime.result import Evaluation, Proportion

BASE_MS, BASE_BYTES, N = 100.0, 500_000_000, 1000


def figures(top1: float | None, agreement: float = 0.99, error: float = 0.0) -> Evaluation:
    def proportion(rate: float) -> Proportion:
        return Proportion(rate, N, wilson_interval(round(rate * N), N))

    return Evaluation(
        n=N,
        top1=None if top1 is None else proportion(top1),
        chance=None,
        top5=None,
        agreement=proportion(agreement),
        loss_error_points=error,
        kl_mean=0.0,
        kl_p95=0.0,
    )


def point(
    name: str, top1: float | None, speed: float, size: float, family: str = "compact", **more: Any
) -> points.Point:
    """``size``: how many times smaller than the baseline."""
    return points.Point(
        family,
        name,
        ("export",),
        model=f"{name}.onnx",
        sha256=name,
        input_px=160,
        precision="int8",
        target="pi5",
        bytes=round(BASE_BYTES / size),
        parameters=1,
        macs=1,
        p50_ms=BASE_MS / speed,
        baseline_p50_ms=BASE_MS,
        select=figures(top1, more.get("agreement", 0.99), more.get("error", 0.0)),
        test=more.get("test"),
    )


BASE = point("fp32", 0.95, 1, 1, "baseline", agreement=1.0)


class Scripted:
    """What each rung would give: lost points, speed and how many times smaller."""

    def __init__(
        self, rungs: dict[float, tuple[float, float, float]], least: float = 0.0, error: float = 0.0
    ) -> None:
        self.error, self.options = error, RecipeOptions()
        self.rungs, self.least, self.recipes = rungs, least, recipes.SEARCHED
        self.asked: dict[str, list[float]] = {"small": [], "large": []}

    def baseline(self) -> points.Point:
        return BASE

    def becomes_a_variant(self, _: points.Point) -> bool:
        return True

    def alone(self) -> list[points.Point]:
        return [point("int8", 0.95, 4, 4, "int8 alone", error=self.error)]

    def rung(self, rung: points.Rung, steps: tuple[recipes.Step, ...]) -> points.Point:
        """At 224 px a rung loses and gains half as much."""
        if rung.conv_share < self.least:
            raise NothingToGainError("too narrow")
        size_px, share = ("small", 1.0) if steps == recipes.COMPACT_SCALED.steps else ("large", 0.5)
        if rung.conv_share not in self.asked[size_px]:
            self.asked[size_px].append(rung.conv_share)
        lost, speed, size = self.rungs.get(rung.conv_share) or (0.9, 17.0, 45.0)  # the one between
        return point(rung.name, 0.95 - share * lost / 100, share * speed, size, error=self.error)


LADDER = tuple(points.Rung(share, 1.0) for share in (0.25, 0.7, 0.5, 0.35))
RUNGS = {0.7: (0.0, 8.0, 30.0), 0.5: (0.2, 12.0, 35.0), 0.35: (0.8, 16.0, 40.0), 0.25: (3.0, 20.0, 50.0)}


def run(scripted: Scripted, budget: Budget, ladder: Sequence[points.Rung] = LADDER) -> points.Found:
    scripted.options = RecipeOptions(budget=budget)
    return search.run(scripted, ladder)  # type: ignore[arg-type]


def test_it_halves_the_ladder_as_far_as_the_loss_allows_and_looks_once_in_between() -> None:
    scripted = Scripted(RUNGS)
    found = run(scripted, Budget(max_drop=1.0))
    # rolled back from 0.25, and the geometric middle tried
    assert scripted.asked["small"] == [0.5, 0.35, 0.25, 0.296]
    # only where it might be faster; the other size of what becomes variants was asked
    assert scripted.asked["large"] == [0.25, 0.296]
    assert found.recommended is not None
    assert found.recommended.speedup == pytest.approx(17.0)
    assert found.rung.conv_share == 0.296
    assert "the fastest point tried with a loss of at most 1 point on 1000 selection pictures" in found.reason
    assert "compact, conv 30%, fc 100%: 11.1 MB (1/45), 17.0x, +0.9 ± 0.0 points lost" in found.reason
    assert len(found.points) == 7


def test_it_says_how_many_rungs_are_left_and_how_long_they_take(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 150)  # each rung takes two and a half minutes
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        run(Scripted(RUNGS), Budget(max_drop=1.0))
    said = [line.split(": ")[1] for line in caplog.messages if "more rungs" in line]
    assert said == [
        "4 more rungs at most",
        "3 more rungs at most, about 8 min",
        "2 more rungs at most, about 5 min",
        "2 more rungs at most, about 5 min",
    ]


def test_where_the_middle_loses_too_much_it_goes_back_up() -> None:
    scripted = Scripted(RUNGS | {0.5: (2.0, 12.0, 35.0), 0.592: (0.7, 9.0, 32.0)})
    found = run(scripted, Budget(max_drop=1.0))
    # each size has its own boundary
    assert scripted.asked == {"small": [0.5, 0.7, 0.592], "large": [0.35, 0.25, 0.296, 0.592]}
    assert found.rung.conv_share == 0.592


def test_what_lies_between_does_not_count_when_it_loses_too_much() -> None:
    scripted = Scripted(RUNGS | {0.296: (1.2, 18.0, 46.0)})
    found = run(scripted, Budget(max_drop=1.0))
    assert found.recommended is not None
    assert found.recommended.speedup == pytest.approx(16.0)  # the last that held
    assert found.rung.conv_share == 0.35


def test_a_loss_counts_with_its_standard_error() -> None:
    scripted = Scripted(RUNGS | {0.418: (0.8, 14.0, 38.0)}, error=0.3)
    found = run(scripted, Budget(max_drop=1.0))
    assert scripted.asked["small"] == [0.5, 0.35, 0.418]  # 0.8 ± 0.3 does not hold
    assert found.rung.conv_share == 0.5
    assert "12.0x, +0.2 ± 0.3 points lost" in found.reason
    unsure = run(Scripted(RUNGS, error=2.0), Budget(max_drop=1.0))
    assert unsure.recommended is None
    assert (
        "8.0x, +0.0 ± 2.0 points lost on 1000 selection pictures; more selection pictures would lower its"
        " standard error" in unsure.reason
    )
    # it is not the loss that stands in the way
    for budget in (Budget(max_drop=0.5, speedup=30), Budget(speedup=30)):
        assert "more of them" not in run(Scripted(RUNGS, error=2.0), budget).reason


def test_targets_alone_are_met_as_high_up_as_possible_and_keep_the_least_loss() -> None:
    scripted = Scripted(RUNGS)
    found = run(scripted, Budget(speedup=10, size_bytes=20_000_000))
    assert scripted.asked["small"] == [0.5, 0.7, 0.592]  # met, not met, met with more loss
    assert scripted.asked["large"] == [0.5, 0.35, 0.25, 0.296]  # met further down
    assert found.recommended is not None
    assert found.recommended.name == "conv 50%, fc 100%"
    assert "the point that loses least" in found.reason


def test_a_budget_that_cannot_be_met_says_so_and_names_the_nearest() -> None:
    found = run(Scripted(RUNGS), Budget(max_drop=0.5, speedup=30))
    assert found.recommended is None
    assert (
        "cannot be met; the nearest is compact, conv 50%, fc 100%: 14.3 MB (1/35), 12.0x, +0.2 ± 0.0"
        " points lost" in found.reason
    )
    nothing = run(Scripted({0.7: (5.0, 8.0, 30.0)}), Budget(max_drop=0.5, size_bytes=1000), LADDER[1:2])
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
    found = run(Scripted(RUNGS), budget)
    assert found.recommended is None
    assert found.rung.conv_share == nearest


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


def test_the_ladder_ends_where_the_network_is_too_narrow() -> None:
    scripted = Scripted(RUNGS, least=0.4)
    found = run(scripted, Budget(max_drop=1.0))
    assert scripted.asked == {"small": [0.5], "large": [0.5]}  # 0.35 cannot be made
    assert found.rung.conv_share == 0.5
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


def test_without_labels_the_loss_is_disagreement() -> None:
    base = dataclasses.replace(BASE, select=figures(None, 1.0))
    assert conclusion.drop(point("a", None, 2, 2, agreement=0.97), base) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        (
            0.4,
            "as compact in the bundle, on 1000 test pictures +0.5 ± 0.2 points lost, which is more than"
            " the 0.4 allowed",
        ),
        # 100 * (0.8 - 0.795) is a little more than 0.5
        (0.5, "as compact in the bundle, on 1000 test pictures +0.5 ± 0.2 points lost"),
        (0.6, "as compact in the bundle, on 1000 test pictures +0.5 ± 0.2 points lost"),
        (None, "as compact in the bundle, on 1000 test pictures +0.5 ± 0.2 points lost"),
    ],
)
def test_the_reason_says_what_the_test_pictures_say_of_the_budget(allowed: float | None, said: str) -> None:
    found = points.Found(POINTS, BASE, POINTS[1], "because", LADDER[0])
    made = {
        "baseline": (BASE.sha256, figures(0.80)),
        "compact": (POINTS[1].sha256, figures(0.795, error=0.2)),
    }
    entries = [
        SimpleNamespace(id=name, model=SimpleNamespace(sha256=sha256)) for name, (sha256, _) in made.items()
    ]
    known = {name: what for name, (_, what) in made.items()}
    told = within_budget.with_test_figures(found, entries, known, allowed)  # type: ignore[arg-type]
    assert told.reason == f"because; {said}"
    assert told.recommended is not None
    assert told.recommended.test == made["compact"][1]


@pytest.mark.parametrize("variants", [("compact",), ("quantized", "compact-scaled")])
def test_a_budget_wants_both_that_may_be_recommended_in_the_bundle(variants: tuple[str, ...]) -> None:
    with pytest.raises(OptionsError, match="name both in --variants"):
        recipes.chosen_recipes(RecipeOptions(budget=Budget(1.0), variants=variants))
    recipes.chosen_recipes(RecipeOptions(variants=variants))
    recipes.chosen_recipes(RecipeOptions(budget=Budget(1.0), variants=("compact-scaled", "compact")))


@pytest.mark.parametrize(
    ("field", "value"), [("max_drop", -1.0), ("size_bytes", 0), ("speedup", 0.5), ("max_drop", float("nan"))]
)
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
    assert [p.name for p in pareto.pareto(POINTS, BASE, lambda p: -p.speedup)] == ["b", "a", "int8"]
    # as good and smaller
    assert [p.name for p in pareto.pareto([*POINTS, BASE], BASE, lambda p: p.bytes)] == ["b", "a", "int8"]
    assert [p.name for p in pareto.pareto(POINTS[2:], BASE, lambda p: p.bytes)] == ["b", "worse than a"]


def test_the_front_is_written_as_json_csv_and_pictures(tmp_path: Path) -> None:
    found = points.Found(POINTS, BASE, POINTS[1], "because", LADDER[0])
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
    assert pareto.judged_on([*tried, base]) == "test"
    assert "a" not in [p.name for p in pareto.pareto([*tried, base], base, lambda p: p.bytes)]


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
    ladder = (points.Rung(0.5, 0.5),)
    found = search.sweep(searching(), SweepOptions(ratios=(0.5,)), ladder)
    by_family = {p.family: p for p in found.points if p.input_px == 224}
    assert set(by_family) == set(pareto.LOOKS) - {"baseline"}
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
    assert pareto.judged_on(found.points) == "test"
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
    again = search.run(searching(), ladder)
    assert list(again.points) == [p for p in found.points if p.family in ("int8 alone", "compact")]
    assert not timed  # what was tried is not tried again
    monkeypatch.setattr(points, "timed_on", lambda: {"cpu": "another"})
    search.run(searching(), ladder)
    assert len(timed) == 1 + len(again.points)  # but latencies of another machine are no use


def test_a_ratio_that_removes_nothing_is_refused_before_a_sweep_begins(
    searching: Callable[[], search.Search],
) -> None:
    made = searching()
    made.alone = lambda: pytest.fail("it began")  # type: ignore[method-assign]
    with pytest.raises(OptionsError, match=r"a ratio of 0\.001 from conv1 on removes nothing"):
        search.sweep(made, SweepOptions(ratios=(0.5, 0.001)))


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
            (made.at(points.Rung(0.5, 0.5)), (recipes.FACTORISE, recipes.EXPORT)),
        ):
            recipes.Steps(context).make((*chain, recipes.QUANTIZE))
    assert asked == [(False, 0.98), (True, 0.98), (False, 0.98), (True, 0.0)]


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
    assert [loss.step for loss in made.variant("compact").losses] == ["removed", "repaired", "quantized"]
    quantized = sum(record.getMessage().startswith("int8: ") for record in caplog.records)
    assert quantized == len(content["points"]) - 1  # all but the baseline, and none for a variant again
    (name,) = re.findall(r"as (compact|compact-scaled) in the bundle", content["reason"])
    evaluation = made.variant(name).build.evaluation
    assert evaluation is not None
    assert content["recommended"]["test"] == evaluation.to_json()
    assert re.search(r", on 42 test pictures [+-]\d+\.\d ± \d+\.\d points lost", content["reason"])
    assert {point["family"] for point in content["points"]} == {"baseline", "int8 alone", "compact"}
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
    assert not (tmp_path / "out/front.json").exists()
    assert manifest.read(tmp_path / "out").max_drop is None
