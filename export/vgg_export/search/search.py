"""A budget instead of a ratio: compact variants of several input sizes and strengths are made, exported,
quantized, timed as int8 on this machine and judged on the selection pictures; the best of those within the
budget is recommended.

A rung is an input size, a share of the convolutions' arithmetic and a share of the default ranks of fc1 and
fc2; the ranks of the layers follow from the sensitivity table (``factorise``). What every rung loses before
anything is trained is known cheaply (``forecast``), and what distilling makes of that is learnt from the
points that were tried (``prediction``). So only the rungs that may be the best one are fitted, distilled,
quantized and timed, at the size that they ship with. Every point stays on disk with its files, so that an
interrupted search continues where it stopped. The search does not use the test pictures.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgg_export.compress import distil, prune
from vgg_export.compress.solved import Table
from vgg_export.core import cache
from vgg_export.core.errors import NothingToGainError, OptionsError
from vgg_export.data.tensors import seconds_per_picture
from vgg_export.graphs.model_info import Described
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import (
    NORMAL,
    QUICK,
    THOROUGH,
    Budget,
    PruneOptions,
    RecipeOptions,
    SweepOptions,
)
from vgg_export.recipes import (
    BASELINE,
    COMPACT,
    COMPACT_SCALED,
    EXPORT,
    FACTORISE,
    FOLD,
    PRUNE,
    QUANTIZE,
    Context,
    Step,
    Steps,
    chosen_recipes,
    names,
    smaller_px,
)
from vgg_runtime.board.targets import here

from . import duration, lines
from .conclusion import conclude
from .forecast import Forecast, candidates, fc_share, ranks_for, sizes_of
from .news import News
from .points import Found, Judge, Point, Rung
from .prediction import Candidate, Experience, Tried, choose

log = logging.getLogger(__name__)

FILTER_FAMILIES = (  # name, criterion, repaired
    ("filters by L2, repaired", "l2", True),
    ("filters by L2, not repaired", "l2", False),
    ("filters at random, not repaired", "random", False),
)

SHARES = (0.5, 0.35, 0.25, 0.18, 0.125, 0.09)  # of the convolutions' arithmetic, for a sweep


MANY_PICTURES = 100_000


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much a search tries. ``sizes``: the number of input sizes, the smallest that are not hopeless.
    ``walked``: how many of these, the smallest again, the original is walked at beforehand; what the ranks
    cost at a larger one is taken to be what they cost at the next smaller one. ``shares``: those whose cost
    is measured before any is distilled; ``between``: steps that halve the distance between two of them, for
    points to try. ``tries``: the number of points that are distilled and quantized, at most. ``hope``: the
    standard deviations by which what is predicted of a point may be too pessimistic for it to be tried.
    ``select`` and ``crops``: the numbers of selection pictures and of parts of pictures to distil with, at
    most; ``epochs``: with so few, so that as many steps are made. ``every_form``: whether all int8 forms of
    networks that are not compact are tried, too (``QuantizeOptions``)."""

    sizes: int
    walked: int
    shares: tuple[float, ...]
    between: int
    tries: int
    hope: float = 0.5
    select: int = MANY_PICTURES
    crops: int = MANY_PICTURES
    epochs: int | None = None
    every_form: bool = True

    def finer(self) -> list[float]:
        """The shares to try, the largest first."""
        found = list(self.shares)
        for _ in range(self.between):
            middles = [round(math.sqrt(a * b), 3) for a, b in itertools.pairwise(found)]
            found = sorted((*found, *middles), reverse=True)
        return found


MANY = 99
LIKELY_TRIES, MANY_TRIES = 2, 10  # before a search has found the fastest that holds, and where it tries many
BY_EFFORT = {
    QUICK: Effort(1, 1, (0.25, 0.15, 0.09), 0, 2, select=400, crops=600, epochs=8, every_form=False),
    NORMAL: Effort(3, 1, (0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.065, 0.045), 1, 4),
    THOROUGH: Effort(MANY, MANY, (0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.065, 0.045), 2, MANY, 3.0),
}


def effort_of(options: RecipeOptions) -> Effort:
    """How much a search with these options tries."""
    return BY_EFFORT[options.search.effort or NORMAL]


class Search:
    """The points of one checkpoint and one set of options, made on demand."""

    def __init__(self, context: Context, judge: Judge) -> None:
        records = context.shared / "records"  # what the original computes, until the search ends
        records.mkdir(parents=True, exist_ok=True)
        self.context, self.judge = dataclasses.replace(context, records=records), judge
        self.own_px = checkpoints.read_header(context.checkpoint.path).chain.input.px

    @property
    def options(self) -> RecipeOptions:
        """The options of every point, apart from its strength."""
        return self.context.options

    def rung(self, rung: Rung) -> Point:
        """The int8 point of a rung.

        Raises:
            NothingToGainError: the network is too narrow to be factorised to this share.
        """
        log.info("rung: %s, %d px", rung.name, rung.px)
        steps = (COMPACT if rung.px == self.own_px else COMPACT_SCALED).steps
        (point,) = self.points("compact", rung.name, (steps,), self.at(rung), dataclasses.asdict(rung))
        return point

    def spent_on_s(self, rung: Rung) -> float:
        """The seconds that the files of a rung's point took, in this run or an earlier one."""
        return cache.seconds_spent(self.at(rung).folder)

    def folded(self, px: int) -> cache.Artifact:
        """The checkpoint for an input size, made once for all rungs."""
        if px == self.own_px:
            return self.context.checkpoint
        folder = self.context.folder / "sizes" / f"{px}-px"
        folder.mkdir(parents=True, exist_ok=True)
        options = dataclasses.replace(self.options, scaled_px=px)
        return Steps(dataclasses.replace(self.context, options=options, folder=folder)).make((FOLD,))

    def steps(self, context: Context) -> Steps:
        """What makes the artifacts of a context, with the checkpoint for its input size at hand."""
        px = context.options.scaled_px
        return Steps(context, {(FOLD,): self.folded(px)} if px else {})

    def expected(self) -> str:
        """How long all will take, as a sentence."""
        effort, options = effort_of(self.options), self.options
        variants = chosen_recipes(options)
        pruned = [recipe for recipe in variants if PRUNE in recipe.steps]
        chain, splits = checkpoints.read_header(self.context.checkpoint.path).chain, self.context.splits
        sizes = self.sizes()
        level = next(iter(options.distil.levels(options.budget).values()), None)
        work = duration.Work(
            sizes,
            px=min(sizes),
            walked=min(effort.walked, effort.sizes, len(sizes)),
            shares=effort.shares,
            selected=len(splits.select),
            crops=level.shown(len(splits.fit)) if level else 0,
            tested=len(splits.test),
            variants=len(variants),
            pruned=sum(QUANTIZE in recipe.steps for recipe in pruned) if pruned else None,
            tuned=options.finetune.shown(len(splits.fit)),
            again=len(sizes) > 1 and options.search.effort == THOROUGH,
            int8=duration.int8_cost(here(), options.built_for),
            every_form=options.quantize.every_form or not here().dot_product,
        )
        tries = (min(LIKELY_TRIES, effort.tries), effort.tries if effort.tries < MANY else MANY_TRIES)
        pace = duration.Pace(*seconds_per_picture(checkpoints.load(self.context.checkpoint.path)))
        likely_s, most_s = (duration.expected_s(chain, work, pace, count) for count in tries)
        return duration.in_words(likely_s, most_s, None if effort.tries < MANY else tries)

    def forget(self) -> None:
        """Delete what was kept of the original. After an interruption it serves the search that goes on."""
        assert self.context.records
        shutil.rmtree(self.context.records)

    def sizes(self) -> tuple[int, ...]:
        """The input sizes to look at."""
        chain = checkpoints.read_header(self.context.checkpoint.path).chain
        return sizes_of(chain, self.options.scaled_px)

    @functools.cached_property
    def forecast(self) -> Forecast:
        """What is known of the rungs before any is made."""
        return Forecast(self.context, self.context.splits.select, self.judge.reference("select"))

    def candidates(self, effort: Effort) -> list[Candidate]:
        """The rungs that may be tried, of the smallest sizes that are not hopeless."""
        self._give_answers()
        alone = {px: self.forecast.alone(px, self.folded(px)) for px in self.sizes()}
        for px, costs in alone.items():
            said = "hopeless" if costs.hopeless else "may do"
            log.info(
                "%d px: the checkpoint agrees with itself on %.0f %% of %d pictures, untrained: %s",
                px, 100 * costs.agreement, costs.pictures, said,
            )  # fmt: skip
        sizes = [px for px, costs in alone.items() if px == self.own_px or not costs.hopeless]
        sizes, found = sizes[-effort.sizes :], []
        kept = self.forecast.disk_bytes([self.folded(px) for px in sizes]) / 1e9
        log.info("looked at are %s px", ", ".join(map(str, sizes)))
        log.info("up to %.1f GB are kept in %s until the search ends", kept, self.context.records)
        table: Table = {}
        ranks: dict[str, float] = {}
        for place, px in enumerate(reversed(sizes)):
            folded = self.folded(px)
            if place < effort.walked:
                ranks = self.forecast.at(px, folded, effort.shares).ranks
                table = self.forecast.table(folded)
            chain, chains = checkpoints.read_header(folded.path).chain, {}
            for share in effort.finer():
                with contextlib.suppress(NothingToGainError):
                    chains[share] = ranks_for(chain, table, self.options.factorise, share)
            found += candidates(px, dataclasses.replace(alone[px], ranks=ranks), chains)
        return found

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

    def _give_answers(self) -> None:
        """Leave the baseline's answers on the selection pictures to the distillations, whose teacher it is:
        they show it these pictures whole, too."""
        context, levels = self.context, self.options.distil.levels(self.options.budget).values()
        for level in levels:
            logits, items = self.judge.reference("select"), context.splits.select
            distil.give_answers(context.shared, context.checkpoint, items, logits, level)

    def at(self, rung: Rung) -> Context:
        """The context that makes the compact variants of a rung, and reuses the files of its points."""
        wanted = dataclasses.replace(
            self.options.factorise, conv_share=rung.conv_share, fc_share=rung.fc_share
        )
        options = dataclasses.replace(self._judged_in_points(), factorise=wanted)
        if rung.px != self.own_px:
            options = dataclasses.replace(options, scaled_px=rung.px)
        return self._context("compact", f"{rung.name} {rung.px} px", options)

    def smaller_px(self) -> int | None:
        """The smaller input of the variants where the search found none; None: there is no smaller input."""
        return None if FOLD.hindered(self.context) else smaller_px(self.context)

    def rungs(self, share: float) -> list[Rung]:
        """A strength at the network's own input and at the smaller one."""
        sizes = filter(None, (self.own_px, self.smaller_px()))
        return [Rung(share, fc_share(share), px) for px in sizes]

    def _judged_in_points(self) -> RecipeOptions:
        """The options of a point. A point is small, so all int8 forms are tried. Where a drop is allowed, the
        loss of int8 is judged in points and all layers are int8: a single layer that stays float for its
        agreement can be as large as all others together."""
        quantize = dataclasses.replace(self.options.quantize, every_form=True)
        if self.options.budget.max_drop is not None:
            quantize = dataclasses.replace(quantize, min_agreement=0.0)
        return dataclasses.replace(self.options, quantize=quantize)

    def filters(self, family: str, options: PruneOptions) -> list[Point]:
        """The int8 point of a pruned network that was not fine-tuned."""
        setting = {"ratio": options.ratio, "first_stage": options.first_stage}
        name = f"{100 * options.ratio:g}% of the filters"
        context = self._context(family, name, dataclasses.replace(self._judged_in_points(), prune=options))
        return self.points(family, name, ((PRUNE, EXPORT, QUANTIZE),), context, setting)

    def alone(self) -> list[Point]:
        """int8 alone, to compare any budget with. It is also a variant, so its files are made where those of
        the variants are."""
        return self.points("int8 alone", "int8", ((EXPORT, QUANTIZE),), self.context, {})

    def alone_and_smaller(self) -> list[Point]:
        """int8 alone at the network's own and at the smaller input."""
        px = self.smaller_px()
        if px is None:
            return self.alone()
        options = dataclasses.replace(self.options, scaled_px=px)
        context = dataclasses.replace(self.context, options=options)
        return [*self.alone(), *self.points("int8 alone", "int8", ((FOLD, EXPORT, QUANTIZE),), context, {})]

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
        steps, found = self.steps(context), []
        for chain in chains:
            made = steps.make(chain)
            px = made.read(Described).model.chain.input.px
            point = self.judge.point(family, f"{name}, {px} px", chain, made, setting)
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


def run(search: Search, page: Path | None = None) -> Found:
    """Try rungs as long as one may be better, as the module's docstring says. ``page``: the file of a page
    that shows how it goes.

    Raises:
        OptionsError: no rung can be made.
    """
    trials = Trials(search)
    news = News(page, trials.baseline, search.options.budget) if page else None
    try:
        if news:
            news.begin(trials.alone)
        while (candidate := trials.next()) is not None:
            if (point := trials.make(candidate)) and news:
                news.tell(point, trials.found(), trials.offered, trials.experience, trials.most_s())
        found = trials.found()
    except BaseException as error:
        if news:
            news.ended(error)
        raise
    if news:
        news.end(found, trials.spent_s() / 60)
    return found


class Trials:
    """The rungs of one search, tried one after the other."""

    def __init__(self, search: Search) -> None:
        self._search, self._started = search, time.monotonic()
        self._effort = effort_of(search.options)
        self.baseline, self.alone = search.baseline(), search.alone()
        self.experience = Experience(self.baseline, self.alone[0])
        self.offered: list[Candidate] = []
        self._begun = False
        self._stopped = ""

    def next(self) -> Candidate | None:
        """The next rung to try; None: the search has ended."""
        options, count = self._search.options, len(self.experience.tried)
        if not self._begun:
            self._begun, self.offered = True, self._search.candidates(self._effort)
        if count == self._effort.tries:
            return None
        candidate = choose(self.offered, self.experience, options.budget, self._effort.hope)
        if candidate and count and self._longest_s() > self._left_s():
            words = "it ended after {:.0f} min, as --max-minutes asks, before all was tried"
            self._stopped = f"; {words.format(self.spent_s() / 60)}"
            return None
        if candidate:
            most = count + self._left()
            log.info("point %d of at most %d%s", count + 1, most, self._expected(candidate))
        return candidate

    def make(self, candidate: Candidate) -> Point | None:
        """The point of a rung; None: it cannot be made."""
        self.offered.remove(candidate)
        began = time.monotonic()
        try:
            point = self._search.rung(candidate.rung)
        except NothingToGainError as error:
            log.info("it cannot be made: %s", error)
            return None
        # an interrupted search may have made it
        took_s = max(time.monotonic() - began, self._search.spent_on_s(candidate.rung))
        self.experience.tried.append(Tried(candidate, point, took_s))
        return point

    def found(self) -> Found:
        """The conclusion from the points so far.

        Raises:
            OptionsError: there is none.
        """
        if not self.experience.tried:
            raise OptionsError(
                "this network is too narrow to be factorised; use --prune-ratio instead of a budget"
            )
        tried = {one.candidate.rung: [one.point] for one in self.experience.tried}
        points = [*self.alone, *(one.point for one in self.experience.tried)]
        budget, eligible = self._search.options.budget, self._search.becomes_a_variant
        found = conclude(points, self.baseline, budget, tried, eligible)
        return dataclasses.replace(found, reason=found.reason + self._stopped)

    def spent_s(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self._started

    def most_s(self) -> float:
        """Seconds for the points that may be tried yet, at most."""
        return max(0.0, min(self._left() * self._longest_s(), self._left_s()))

    def _left(self) -> int:
        """The number of points that may be tried yet."""
        return min(self._effort.tries - len(self.experience.tried), len(self.offered))

    def _left_s(self) -> float:
        """Seconds until ``--max-minutes`` is over."""
        return 60 * (self._search.options.search.max_minutes or math.inf) - self.spent_s()

    def _longest_s(self) -> float:
        return max((one.took_s for one in self.experience.tried), default=0.0)

    def _expected(self, candidate: Candidate) -> str:
        """What is predicted of a point, as the end of a sentence."""
        rung, (lost, sd) = candidate.rung, self.experience.drop(candidate)
        minutes = math.ceil(self._longest_s() / 60)
        known = f", about {minutes} min" if minutes else ""
        speed = f"{self.experience.speedup(candidate):.1f}x"
        return (
            f"{known}: {rung.name} at {rung.px} px, expected {speed} and {lost:+.1f} ± {sd:.1f} points lost"
        )


def sweep(search: Search, options: SweepOptions, shares: Sequence[float] = SHARES) -> Found:
    """Make every rung, and simpler methods to compare it with: int8 alone, the same rung not fitted, and, at
    each ratio, filters by L2 with and without repair and filters at random. The selection pictures decide the
    recommendation, as in ``run``."""
    base = dataclasses.replace(search.options.prune, first_stage=1)
    chain = checkpoints.read_header(search.context.checkpoint.path).chain
    for ratio in options.ratios:  # a ratio that removes nothing fails before anything takes time
        prune.uniform_widths(chain, dataclasses.replace(base, ratio=ratio))
    points, tried = search.alone_and_smaller(), dict[Rung, list[Point]]()
    for share in shares:
        rungs = search.rungs(share)
        try:
            made = {rung: [search.rung(rung)] for rung in rungs}
        except NothingToGainError as error:
            log.info("the ladder ends here: %s", error)
            break
        tried |= made
        for point in itertools.chain(*made.values()):
            log.info("%s", lines.line(point, search.baseline(), best=False))
        points += [*itertools.chain(*made.values()), *search.not_fitted(rungs[0])]
    if not tried:
        raise OptionsError("this network is too narrow to be factorised, so there is no front to draw")
    for ratio in options.ratios:
        for family, criterion, repaired in FILTER_FAMILIES:
            points += search.filters(
                family, dataclasses.replace(base, ratio=ratio, criterion=criterion, repair=repaired)
            )
    return conclude(points, search.baseline(), Budget(options.max_drop), tried)
