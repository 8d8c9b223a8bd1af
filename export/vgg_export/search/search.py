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
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from vgg_export.compress import prune
from vgg_export.core.errors import NothingToGainError, OptionsError
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

from .conclusion import conclude, far_enough, in_words
from .points import Found, Judge, Point, Rung

log = logging.getLogger(__name__)

FILTER_FAMILIES = (  # name, criterion, repaired
    ("filters by L2, repaired", "l2", True),
    ("filters by L2, not repaired", "l2", False),
    ("filters at random, not repaired", "random", False),
)

LADDER = (
    Rung(0.5, 1.0),
    Rung(0.35, 1.0),
    Rung(0.25, 1.0),
    Rung(0.18, 0.5),
    Rung(0.125, 0.5),
    Rung(0.09, 0.25),
)


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
