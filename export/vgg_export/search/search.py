"""A budget instead of a ratio: compact variants of several strengths are made, exported, quantized, timed as
int8 on this machine and judged on the selection pictures; the best of those within the budget is recommended.
The standard error is added to a loss before it is compared with the budget. Without that, the fastest of
several points that just hold would be one that chance favoured, and it would lose more on other pictures.

A rung is a share of the convolutions' arithmetic and of the default ranks of fc1 and fc2; the ranks of the
layers follow from the sensitivity table (``factorise``). The search bisects the ladder. It goes down where
the loss is within the budget (or, without an allowed drop, where the targets are not met), and back up where
it is not. Then it tries one point between the last rung that held and the first that did not. It does so at
the smaller input first and then at the larger one; with an allowed drop, it tries the larger input only below
the last rung that held at the smaller one. Every point stays on disk with its files, so that an interrupted
search continues where it stopped. The search does not use the test pictures.
"""

import dataclasses
import itertools
import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_export.bundle import evaluate
from vgg_export.compress import prune
from vgg_export.core import cache
from vgg_export.core.errors import NothingToGainError, OptionsError
from vgg_export.core.progress import Progress
from vgg_export.data.splits import Item
from vgg_export.graphs import external_data
from vgg_export.graphs.model_info import Described
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import Budget, PruneOptions, RecipeOptions, SweepOptions
from vgg_export.recipes import (
    BASELINE,
    COMPACT,
    COMPACT_SCALED,
    EXPORT,
    FACTORISE,
    FOLD,
    PRUNE,
    QUANTIZE,
    SEARCHED,
    Context,
    Recipe,
    Step,
    Steps,
    chosen_recipes,
    names,
)
from vgg_runtime.board import device
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.session import Model
from vgg_runtime.measure.recommend import loss_points, near_chance
from vgg_runtime.records import Record
from vgg_runtime.result import Evaluation

log = logging.getLogger(__name__)

TIMING_ROUNDS = 3
TIMING_S = 0.7  # how long each model runs in a round
FILTER_FAMILIES = (  # name, criterion, repaired
    ("filters by L2, repaired", "l2", True),
    ("filters by L2, not repaired", "l2", False),
    ("filters at random, not repaired", "random", False),
)


@dataclasses.dataclass(frozen=True)
class Rung:
    """A strength: the share ``conv_share`` of the convolutions' arithmetic is left, and the share
    ``fc_share`` of the default ranks of fc1 and fc2."""

    conv_share: float
    fc_share: float

    @property
    def name(self) -> str:
        return f"conv {self.conv_share:.0%}, fc {self.fc_share:.0%}"

    def between(self, other: "Rung") -> "Rung":
        """The rung in the geometric middle of two."""
        return Rung(
            round(math.sqrt(self.conv_share * other.conv_share), 3),
            round(math.sqrt(self.fc_share * other.fc_share), 3),
        )


LADDER = (
    Rung(0.5, 1.0),
    Rung(0.35, 1.0),
    Rung(0.25, 1.0),
    Rung(0.18, 0.5),
    Rung(0.125, 0.5),
    Rung(0.09, 0.25),
)


@dataclasses.dataclass(frozen=True)
class Point(Record):
    """A model that was tried. ``model``: its file, relative to the work folder. ``select`` and ``test``:
    figures on the selection and the test pictures, None where there are none.
    ``speedup``: the baseline's median latency divided by this model's, both timed in turn."""

    family: str
    name: str
    steps: tuple[str, ...]
    model: str
    sha256: str
    input_px: int
    precision: str
    target: str | None  # the core that int8 was made for
    bytes: int
    parameters: int
    macs: int
    p50_ms: float
    baseline_p50_ms: float
    select: Evaluation | None
    test: Evaluation | None = None
    setting: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def speedup(self) -> float:
        return self.baseline_p50_ms / self.p50_ms

    def figures(self, which: str) -> Evaluation:
        """The figures on the "select" or the "test" pictures. They must be there."""
        found = self.test if which == "test" else self.select
        assert found
        return found

    def to_json(self) -> dict[str, Any]:
        """The fields, and the speedup."""
        return super().to_json() | {"speedup": self.speedup}


STAGE = cache.Stage("point", __name__, Point)


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a search: every point tried, the recommended one (None: no point is within the budget),
    the reason, and the rung of the compact variants to make."""

    points: tuple[Point, ...]
    baseline: Point
    recommended: Point | None
    reason: str
    rung: Rung


class Judge:
    """Times models and judges them against the baseline. The pictures' tensors and the baseline's logits are
    computed once."""

    def __init__(
        self, baseline: cache.Artifact, sets: dict[str, Sequence[Item]], work: Path, progress: Progress
    ) -> None:
        self.baseline, self.work, self.progress = baseline, work, progress
        self._sets = {name: list(items) for name, items in sets.items() if items}
        self._tensors: dict[tuple[str, InputSpec], npt.NDArray[np.float32]] = {}
        self._said: dict[str, npt.NDArray[np.float32]] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix=".judge.", dir=work)

    def close(self) -> None:
        """Delete the tensors on disk."""
        self._tensors.clear()
        self._scratch.cleanup()

    def point(
        self, family: str, name: str, steps: tuple[Step, ...], made: cache.Artifact, setting: dict[str, Any]
    ) -> Point:
        """Judge a model, unless that was done before with the same pictures on an equal machine."""
        described = made.read(Described)
        info = described.model
        known: dict[str, Any] = {"family": family, "name": name, "steps": names(steps), "setting": setting}
        options = known | {which: [[i.sha256, i.label] for i in items] for which, items in self._sets.items()}
        options |= {"timed_on": timed_on()}

        def make(path: Path) -> Point:
            p50_ms, baseline_p50_ms = self.time(made, name)
            found = Point(
                **known,
                model=os.path.relpath(made.path, self.work),
                sha256=made.sha256,
                input_px=info.chain.input.px,
                precision=info.precision,
                target=described.target,
                bytes=external_data.size_bytes(made.path, Path(self._scratch.name)),
                parameters=info.parameters,
                macs=info.macs,
                p50_ms=p50_ms,
                baseline_p50_ms=baseline_p50_ms,
                select=self.figures("select", made, name),
                test=self.figures("test", made, name),
            )
            path.write_text(json.dumps(found.to_json(), indent=1))
            return found

        inputs = {"model": made, "baseline": self.baseline}
        recorded = cache.produce(
            STAGE, options, inputs, made.path.with_name(made.path.stem + ".point.json"), make
        )
        return recorded.read(Point)

    def figures(self, which: str, made: cache.Artifact, name: str) -> Evaluation | None:
        """Accuracy and agreement of a model on a set of pictures; None if the set is empty."""
        if which not in self._sets:
            return None
        if which not in self._said:
            self._said[which] = self._ask(which, self.baseline, "baseline")
        logits = self._said[which] if made.sha256 == self.baseline.sha256 else self._ask(which, made, name)
        labels = np.array([-1 if i.label is None else i.label for i in self._sets[which]])
        return evaluate.figures(logits, self._said[which], labels, subject_of(made, name).output)

    def _ask(self, which: str, made: cache.Artifact, name: str) -> npt.NDArray[np.float32]:
        subject = subject_of(made, name)
        key = (which, subject.preprocessing)
        if key not in self._tensors:
            folder = Path(tempfile.mkdtemp(dir=self._scratch.name))
            self._tensors[key] = evaluate.prepared(
                self._sets[which], subject.preprocessing, folder, self.progress
            )
        return evaluate.infer(subject, self._tensors[key], self.progress)

    def time(self, made: cache.Artifact, name: str) -> tuple[float, float]:
        """Median latencies in ms of a model and of the baseline. They are loaded and run in turn, so that
        other work on the machine affects both."""
        own: list[float] = []
        reference: list[float] = []
        with self.progress.task(f"timing {name}", TIMING_ROUNDS) as task:
            for _ in range(TIMING_ROUNDS):
                reference += timed(self.baseline)
                if made.sha256 != self.baseline.sha256:
                    own += timed(made)
                task.advance()
        return statistics.median(own or reference), statistics.median(reference)


def timed_on() -> dict[str, Any]:
    """The properties of this machine that latencies and int8 kernels depend on. A work folder may be moved to
    another machine, where points are timed again."""
    machine = device.describe(device.usable_cores())
    return {"cpu": machine.cpu, "features": machine.features, "cores": machine.threads}


def subject_of(made: cache.Artifact, name: str) -> evaluate.Subject:
    """An exported or quantized model with the session settings to evaluate and time it with."""
    found = made.read(Described)
    chain = found.model.chain
    return evaluate.Subject(name, made, found.model.preprocessing, found.targets, output=chain.output)


def timed(made: cache.Artifact) -> list[float]:
    """Latencies in ms of a model in a new session, after two runs to warm up."""
    spec = made.read(Described).model.chain.input
    x = np.random.default_rng(0).standard_normal((1, *spec.shape), np.float32)
    session, samples = Model(made.path, subject_of(made, "").session, device.usable_cores()), list[float]()
    session(x)
    session(x)
    end = time.perf_counter() + TIMING_S
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        session(x)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


class Search:
    """The points of one checkpoint and one set of options, made on demand."""

    def __init__(self, context: Context, judge: Judge) -> None:
        self.context, self.judge = context, judge

    @property
    def options(self) -> RecipeOptions:
        """The options of every point, apart from its strength."""
        return self.context.options

    def rung(self, rung: Rung, steps: tuple[Step, ...]) -> Point:
        """The int8 point of a rung at the input size of ``steps``.

        Raises:
            NothingToGainError: the network is too narrow to be factorised to this share.
        """
        log.info("rung: %s", rung.name)
        (point,) = self.points("compact", rung.name, (steps,), self.at(rung), dataclasses.asdict(rung))
        return point

    def not_fitted(self, rung: Rung) -> list[Point]:
        """The int8 point of a rung factorised from the weights alone, without pictures, and not distilled."""
        log.info("rung: %s, not fitted", rung.name)
        options = self.at(rung).options
        weights_alone = dataclasses.replace(options.factorise, repair=False)
        context = self._context(
            "compact, not fitted", rung.name, dataclasses.replace(options, factorise=weights_alone)
        )
        chains = ((FACTORISE, EXPORT, QUANTIZE),)
        return self.points("compact, not fitted", rung.name, chains, context, dataclasses.asdict(rung))

    def at(self, rung: Rung) -> Context:
        """The context that makes the compact variants of a rung, and reuses the files of its points."""
        wanted = dataclasses.replace(
            self.options.factorise, conv_share=rung.conv_share, fc_share=rung.fc_share
        )
        return self._context(
            "compact", rung.name, dataclasses.replace(self._judged_in_points(), factorise=wanted)
        )

    def _judged_in_points(self) -> RecipeOptions:
        """The options of a point. Where a drop is allowed, the loss of int8 is judged in points and all
        layers are int8: a single layer that stays float for its agreement can be as large as all others
        together."""
        if self.options.budget.max_drop is None:
            return self.options
        return dataclasses.replace(
            self.options, quantize=dataclasses.replace(self.options.quantize, min_agreement=0.0)
        )

    def filters(self, family: str, options: PruneOptions) -> list[Point]:
        """The int8 point of a pruned network that was not fine-tuned."""
        setting = {"ratio": options.ratio, "first_stage": options.first_stage}
        name = f"{100 * options.ratio:g}% of the filters"
        context = self._context(family, name, dataclasses.replace(self._judged_in_points(), prune=options))
        return self.points(family, name, ((PRUNE, EXPORT, QUANTIZE),), context, setting)

    def alone(self) -> list[Point]:
        """int8 alone, at the full and at the smaller input, to compare any budget with. At the full input
        this is also a variant, so its files are made where those of the variants are."""
        full = (EXPORT, QUANTIZE)
        chains = (full,) if FOLD.hindered(self.context) else (full, (FOLD, *full))
        return self.points("int8 alone", "int8", chains, self.context, {})

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The variants that are searched and that this network can have, the one at the full input first."""
        return tuple(recipe for recipe in SEARCHED if not recipe.hindered(self.context))

    def points(
        self,
        family: str,
        name: str,
        chains: Sequence[tuple[Step, ...]],
        context: Context,
        setting: dict[str, Any],
    ) -> list[Point]:
        """One point per chain of steps. Its files are in the folder of the context."""
        context.folder.mkdir(parents=True, exist_ok=True)
        steps = Steps(context)
        found = []
        for chain in chains:
            made = steps.make(chain)
            px = made.read(Described).model.chain.input.px
            point = self.judge.point(family, f"{name}, {px} px", chain, made, setting)
            log.info("%s, %s: %s", family, point.name, in_words(point, self.baseline()))
            found.append(point)
        return found

    def _context(self, family: str, name: str, options: RecipeOptions) -> Context:
        """The context of a point, whose files stay in a folder of their own."""
        own = "".join(c if c.isalnum() else "-" for c in f"{family} {name}")
        return dataclasses.replace(self.context, options=options, folder=self.context.folder / "points" / own)

    def becomes_a_variant(self, point: Point) -> bool:
        """Whether a point is one of the bundle's variants. int8 alone at the smaller input is none; it is
        made only for comparison."""
        return point.steps in {names(recipe.steps) for recipe in chosen_recipes(self.options)}

    def baseline(self) -> Point:
        """The baseline as a point."""
        return self.judge.point("baseline", "fp32", BASELINE.steps, self.judge.baseline, {})


def run(search: Search, ladder: Sequence[Rung] = LADDER) -> Found:
    """Bisect the ladder at each input size, as the module's docstring says.

    Raises:
        OptionsError: no rung can be made.
    """
    budget, baseline, points = search.options.budget, search.baseline(), search.alone()
    halving = Halving(search, ladder)
    held = halving.boundary(COMPACT_SCALED.steps, -1) if COMPACT_SCALED in search.recipes else -1
    # the larger input is slower and no smaller, so with an allowed drop it is of use only further down
    halving.boundary(COMPACT.steps, held if budget.max_drop is not None else -1)
    if not (tried := halving.tried):
        raise OptionsError(
            "this network is too narrow to be factorised; use --prune-ratio instead of a budget"
        )
    best = conclude(
        [*points, *itertools.chain(*tried.values())], baseline, budget, tried, search.becomes_a_variant
    ).rung
    # both sizes become variants
    tried[best] = [search.rung(best, recipe.steps) for recipe in search.recipes]
    return conclude(
        [*points, *itertools.chain(*tried.values())], baseline, budget, tried, search.becomes_a_variant
    )


class Halving:
    """Bisects a ladder at one input size, and keeps the points that were tried."""

    def __init__(self, search: Search, ladder: Sequence[Rung]) -> None:
        self.search, self.rungs = search, list(walk(ladder))
        self.tried: dict[Rung, list[Point]] = {}
        self._longest_s = 0.0

    def boundary(self, steps: tuple[Step, ...], upper: int) -> int:
        """Try rungs below index ``upper`` until the last rung that is not far enough and the first that is
        are neighbours, then try one point between them. Returns the index of the last rung that is not far
        enough, or ``upper`` if there is none."""
        baseline, budget, lower = self.search.baseline(), self.search.options.budget, len(self.rungs)
        while lower - upper > 1:
            k = (upper + lower) // 2
            log.info(
                "%s: %s", " -> ".join(names(steps)), self._remaining((lower - upper - 1).bit_length() + 1)
            )
            try:
                point = self._try(self.rungs[k], steps)
            except NothingToGainError as error:
                log.info("not further down: %s", error)
                lower = k
                continue
            if far_enough([point], baseline, budget):
                lower = k
            else:
                upper = k
        if (
            upper >= 0
            and lower < len(self.rungs)
            and all(self.rungs[k] in self.tried for k in (upper, lower))
        ):
            self._try(self.rungs[upper].between(self.rungs[lower]), steps)
        return upper

    def _try(self, rung: Rung, steps: tuple[Step, ...]) -> Point:
        start = time.monotonic()
        point = self.search.rung(rung, steps)
        self._longest_s = max(self._longest_s, time.monotonic() - start)
        self.tried.setdefault(rung, []).append(point)
        return point

    def _remaining(self, rungs: int) -> str:
        """The largest number of rungs still to try, and the time for them if each takes as long as the
        slowest so far."""
        known = f", about {math.ceil(rungs * self._longest_s / 60)} min" if self._longest_s else ""
        return f"{rungs} more rungs at most{known}"


def sweep(search: Search, options: SweepOptions, ladder: Sequence[Rung] = LADDER) -> Found:
    """Make every rung, and simpler methods to compare it with: int8 alone, the same rung not fitted, and, at
    each ratio, filters by L2 with and without repair and filters at random. The selection pictures decide the
    recommendation, as in ``run``."""
    base = dataclasses.replace(search.options.prune, first_stage=1)
    chain = checkpoints.read_header(search.context.checkpoint.path).chain
    for ratio in options.ratios:  # a ratio that removes nothing fails before anything takes time
        prune.uniform_widths(chain, dataclasses.replace(base, ratio=ratio))
    points, tried = search.alone(), dict[Rung, list[Point]]()
    for rung in walk(ladder):
        try:
            tried[rung] = [search.rung(rung, recipe.steps) for recipe in search.recipes]
        except NothingToGainError as error:
            log.info("the ladder ends here: %s", error)
            break
        points += [*tried[rung], *search.not_fitted(rung)]
    if not tried:
        raise OptionsError("this network is too narrow to be factorised, so there is no front to draw")
    for ratio in options.ratios:
        for family, criterion, repaired in FILTER_FAMILIES:
            points += search.filters(
                family, dataclasses.replace(base, ratio=ratio, criterion=criterion, repair=repaired)
            )
    return conclude(points, search.baseline(), Budget(options.max_drop), tried)


def walk(ladder: Sequence[Rung]) -> Iterator[Rung]:
    """The rungs, the least compressed first."""
    yield from sorted(ladder, key=lambda rung: -rung.conv_share)


def too_much(points: Iterable[Point], baseline: Point, budget: Budget) -> bool:
    """Whether the loss plus its standard error is above the budget for every point."""
    return all(_excess(p, baseline, budget) > 1e-9 for p in points)


def far_enough(points: Sequence[Point], baseline: Point, budget: Budget) -> bool:
    """Whether the search need not go further down: too much is lost, or, without an allowed drop, the targets
    are reached."""
    if budget.max_drop is None:
        return any(reaches(p, budget) for p in points)
    return too_much(points, baseline, budget)


def reaches(point: Point, budget: Budget) -> bool:
    """Whether a point meets the targets of size and speed."""
    small = budget.size_bytes is None or point.bytes <= budget.size_bytes
    return small and (budget.speedup is None or point.speedup >= budget.speedup)


def drop(point: Point, baseline: Point, which: str = "select") -> float:
    """Points lost against the baseline on the selection (or test) pictures: of top-1, or of agreement where
    there are no labels."""
    return loss_points(point.figures(which), baseline.figures(which))


def error(point: Point, which: str = "select") -> float:
    """The standard error of ``drop``. On other pictures, about one network in six loses more than the drop
    and its error together."""
    found = point.figures(which).loss_error_points
    assert found is not None  # what is evaluated here always has it
    return found


def shortfall(point: Point, budget: Budget) -> float:
    """How far a point is from the targets of size and speed: the sum of the logarithms of the missing
    factors."""
    size = 0.0 if budget.size_bytes is None else max(0.0, math.log(point.bytes / budget.size_bytes))
    return size + (0.0 if budget.speedup is None else max(0.0, math.log(budget.speedup / point.speedup)))


def anything(_: Point) -> bool:
    """Every point may be recommended."""
    return True


def conclude(
    points: list[Point],
    baseline: Point,
    budget: Budget,
    tried: dict[Rung, list[Point]],
    eligible: Callable[[Point], bool] = anything,
) -> Found:
    """Choose the recommendation among the eligible points. Within the budget it is the fastest point, or,
    when only targets are set, the point that loses least. If no point is within the budget, none is
    recommended and the nearest is named: of those that exceed the allowed drop least, the one closest to the
    targets."""
    candidates = [p for p in points if eligible(p)]
    fit = [p for p in candidates if reaches(p, budget) and not too_much([p], baseline, budget)]
    n = baseline.select.n if baseline.select else 0
    if fit and budget.max_drop is not None:
        best, why = max(fit, key=lambda p: p.speedup), "the fastest point tried"
    elif fit:
        best, why = min(fit, key=lambda p: (drop(p, baseline), -p.speedup)), "the point that loses least"
    else:
        nearest = min(
            candidates,
            key=lambda p: (_excess(p, baseline, budget), shortfall(p, budget), drop(p, baseline), -p.speedup),
        )
        words = f"{nearest.family}, {nearest.name}: {in_words(nearest, baseline)} on {n} selection pictures"
        reason = f"the budget ({budget.in_words()}) cannot be met; the nearest is {words}"
        if reaches(nearest, budget) and drop(nearest, baseline) <= (budget.max_drop or 0.0):
            reason += "; more selection pictures would lower its standard error"
        return Found(tuple(points), baseline, None, reason, _rung_of(nearest, tried))
    asked = f"{why} with {budget.in_words()} on {n} selection pictures"
    reason = f"{asked}: {best.family}, {best.name}: {in_words(best, baseline)}"
    figures = baseline.select
    if figures and (why_not := near_chance(figures.top1, figures.chance, "selection pictures")):
        return Found(tuple(points), baseline, None, f"none is recommended: {why_not}", _rung_of(best, tried))
    return Found(tuple(points), baseline, best, reason, _rung_of(best, tried))


def _excess(point: Point, baseline: Point, budget: Budget) -> float:
    """The points lost plus their standard error, above the allowed drop."""
    return (
        0.0 if budget.max_drop is None else max(0.0, drop(point, baseline) + error(point) - budget.max_drop)
    )


def _rung_of(point: Point, tried: dict[Rung, list[Point]]) -> Rung:
    """The rung of a point. For a point without one (int8 alone) the least compressed rung, so that compact
    variants are made."""
    least = max(tried, key=lambda rung: rung.conv_share)
    return next((rung for rung, found in tried.items() if point in found), least)


def in_words(point: Point, baseline: Point) -> str:
    """Size, speed and loss as a phrase."""
    lost = "" if point.select is None or baseline.select is None else f", {lost_in_words(point, baseline)}"
    return f"{point.bytes / 1e6:.1f} MB (1/{baseline.bytes / point.bytes:.0f}), {point.speedup:.1f}x{lost}"


def lost_in_words(point: Point, baseline: Point, which: str = "select") -> str:
    """The loss and its standard error as a phrase."""
    return f"{drop(point, baseline, which):+.1f} ± {error(point, which):.1f} points lost"
