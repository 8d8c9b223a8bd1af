"""Runs a search: checks its inputs, opens it, and adds the test figures to its result."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence

from vgg_calibration import choose
from vgg_export.bundle import writer
from vgg_export.core.errors import OptionsError, OtherInputError
from vgg_export.data.sanity import Checked
from vgg_export.inputs import source_and_labels
from vgg_export.options import THOROUGH, Budget, FinetuneOptions
from vgg_export.recipes import BASELINE, FOLD, Context, Recipe, Steps
from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.metrics import loss_error_points
from vgg_runtime.measure import verdict
from vgg_runtime.result import Evaluation

from . import conclusion, points, search

log = logging.getLogger(__name__)

PAGE = "front.html"  # in the work folder, while the search runs


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a search. ``own`` and ``smaller`` make the variants at the network's own and at the
    smaller input; ``plain`` those whose strength was not searched, at the smaller input that was found.
    ``folded``: whether the search found a smaller input. ``alone``: why compact variants at the other input
    are left out; None: they are made."""

    found: points.Found
    own: Steps
    smaller: Steps
    plain: Steps
    folded: bool
    alone: str | None = None

    def maker(self, recipe: Recipe) -> Steps:
        """What makes a variant.

        Raises:
            OtherInputError: it is left out.
        """
        if not recipe.searched:
            return self.plain
        folded = FOLD in recipe.steps
        if self.alone and folded != self.folded:
            raise OtherInputError(self.alone)
        return self.smaller if folded else self.own


def found_for(context: Context) -> Outcome:
    """Search under the budget. What the original computes is kept until the search has ended.

    Raises:
        OptionsError: there are too few selection pictures to show the allowed drop.
    """
    given = len(context.splits.select)
    context = _within(context, search.effort_of(context.options))
    allowed, n = context.options.budget.max_drop, len(context.splits.select)
    if allowed is not None and n and (least := loss_error_points(0, 0, n)) > allowed:
        more = "give more pictures (class folders in val/)"
        if n < given:
            effort = context.options.search.effort
            more = f"choose another --effort than {effort}, which looks at {n} of {given}"
        raise OptionsError(
            f"{n} selection pictures cannot show a loss of at most {allowed:g} points: even no loss has a"
            f" standard error of {least:.2g} points on them; allow a larger --max-drop, or {more}"
        )
    with opened(context, ("select",)) as tried:
        log.info("%s", tried.expected())
        return _outcome(tried, search.run(tried, context.folder / PAGE))


def _within(context: Context, effort: search.Effort) -> Context:
    """A context with as many pictures and int8 forms as the effort allows, at most."""
    options, splits = context.options, context.splits
    if len(splits.select) > effort.select:
        log.info(
            "%d of %d selection pictures are used, as --effort quick asks", effort.select, len(splits.select)
        )
        sources = [item.source for item in splits.select]
        chosen = choose.limit(splits.select, sources, effort.select, options.data.seed)
        splits = dataclasses.replace(splits, select=tuple(chosen))
    distil = options.distil
    if FinetuneOptions(images=distil.images).shown(len(splits.fit)) > effort.crops:
        log.info("%d parts of pictures distil, as --effort quick asks", effort.crops)
        distil = dataclasses.replace(distil, images=effort.crops, epochs=effort.epochs)
    options = dataclasses.replace(
        options,
        distil=distil,
        quantize=dataclasses.replace(
            options.quantize, every_form=options.quantize.every_form and effort.every_form
        ),
    )
    return dataclasses.replace(context, splits=splits, options=options)


def _outcome(tried: search.Search, found: points.Found) -> Outcome:
    """The makers of the variants of the rung that was found. Where that is at the network's own input, the
    variants with a smaller one have the same strength."""
    rung = found.rung
    px = rung.px if rung.px != tried.own_px else tried.smaller_px()
    plain = dataclasses.replace(
        tried.context, options=dataclasses.replace(tried.options, scaled_px=px), records=None
    )

    def steps_at(at: int) -> Steps:
        return tried.steps(dataclasses.replace(tried.at(dataclasses.replace(rung, px=at)), records=None))

    everything = tried.options.search.effort == THOROUGH
    reason = (
        f"a search makes compact variants at the input that it found, {rung.px} px; --effort thorough makes"
        " them at both"
    )
    makers = (steps_at(tried.own_px), steps_at(px or tried.own_px), tried.steps(plain))
    return Outcome(found, *makers, rung.px != tried.own_px, None if everything else reason)


@contextlib.contextmanager
def opened(context: Context, sets: Sequence[str]) -> Iterator[search.Search]:
    """A search with its judge, which is closed at the end of the block.

    Raises:
        OptionsError: these weights have no accuracy to lose, or there are no pictures to choose with.
    """
    if absent := source_and_labels(context.checkpoint)[0].figures_absent:
        raise OptionsError(f"points of accuracy cannot be counted: {absent}")
    if not context.splits.select:
        raise OptionsError(
            "a search needs selection pictures, which nothing is fitted on; give more than a dozen pictures"
            " with --data"
        )
    baseline = Steps(context).make(BASELINE.steps)
    pictures = {name: getattr(context.splits, name) for name in sets}
    judge = points.Judge(baseline, pictures, context.folder, context.progress)
    try:
        opened_search = search.Search(context, judge)
        yield opened_search
        opened_search.forget()
    finally:
        judge.close()


def with_test_figures(
    found: points.Found,
    entries: Sequence[writer.Entry],
    figures: Mapping[str, Evaluation] | None,
    budget: Budget,
) -> points.Found:
    """Add the figures on the test pictures to the points that became variants, and the loss of the
    recommended one to the reason. A point that they contradict is not recommended."""
    if not figures:
        return found
    known = {entry.model.sha256: figures[entry.id] for entry in entries}
    baseline = dataclasses.replace(found.baseline, test=known[found.baseline.sha256])
    tried = tuple(dataclasses.replace(p, test=known.get(p.sha256)) for p in found.points)
    told = dataclasses.replace(found, points=tried, baseline=baseline)
    best = next((p for p in tried if found.recommended and p.sha256 == found.recommended.sha256), None)
    if best is None or best.test is None:
        return dataclasses.replace(told, recommended=best)
    name = next(entry.id for entry in entries if entry.model.sha256 == best.sha256)
    loss, allowed = conclusion.lost(best, baseline, "test", sure=budget.sure), budget.max_drop
    reason = f"{found.reason}; as {name} in the bundle, {verdict.in_words(loss, 'test pictures')}"
    if allowed is not None and not budget.sure and verdict.contradicts(loss, allowed):
        reason += f"; that contradicts the {allowed:g} allowed"
        best = _fastest_on_test(tried, baseline, allowed)
        reason += f", and instead {best.family}, {best.name} is recommended" if best else ""
    elif allowed is not None and loss.points > allowed + verdict.SLACK:
        reason += f"; that is more than the {allowed:g} allowed{'' if budget.sure else ', but not surely'}"
    return dataclasses.replace(told, recommended=best, reason=reason)


def _fastest_on_test(
    tried: Sequence[points.Point], baseline: points.Point, allowed: float
) -> points.Point | None:
    """The fastest of the variants that lose no more than is allowed on the test pictures; None: there is
    none."""
    fit = [p for p in tried if p.test and verdict.within(conclusion.lost(p, baseline, "test"), allowed)]
    return conclusion.fastest(fit) if fit else None


def for_the_board(found: points.Found, entries: Sequence[writer.Entry]) -> manifest.Searched | None:
    """What the search chose, for the manifest; None: nothing."""
    names, best = {entry.model.sha256: entry.id for entry in entries}, found.recommended
    if best is None or best.sha256 not in names:
        return None
    judged = dict.fromkeys(names[p.sha256] for p in found.points if p.sha256 in names)
    return manifest.Searched(names[best.sha256], conclusion.lost(best, found.baseline), tuple(judged))


def unless_problem(checked: Checked, found: points.Found) -> points.Found:
    """The result without a recommendation if the checkpoint does not understand its pictures."""
    if not checked.problem or found.recommended is None:
        return found
    return dataclasses.replace(found, recommended=None, reason=f"none is recommended: {checked.problem}")
