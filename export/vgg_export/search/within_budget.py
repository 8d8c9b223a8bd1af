"""Runs a search: checks its inputs, opens it, and adds the test figures to its result."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from vgg_export.bundle import writer
from vgg_export.core.errors import OptionsError
from vgg_export.data.sanity import Checked
from vgg_export.inputs import source_and_labels
from vgg_export.recipes import BASELINE, Context, Steps
from vgg_runtime.bundle.metrics import loss_error_points
from vgg_runtime.result import Evaluation

from . import conclusion, points, search


def found_for(context: Context) -> tuple[points.Found, Context]:
    """Search under the budget. Returns the result, and the context that makes the compact variants of its
    rung.

    Raises:
        OptionsError: there are too few selection pictures to show the allowed drop.
    """
    allowed, n = context.options.budget.max_drop, len(context.splits.select)
    if allowed is not None and n and (least := loss_error_points(0, 0, n)) > allowed:
        raise OptionsError(
            f"{n} selection pictures cannot show a loss of at most {allowed:g} points: even no loss has a"
            f" standard error of {least:.2g} points on them; allow a larger --max-drop, or give more pictures"
            " (class folders in val/)"
        )
    with opened(context, ("select",)) as tried:
        found = search.run(tried)
        return found, tried.at(found.rung)


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
        yield search.Search(context, judge)
    finally:
        judge.close()


def with_test_figures(
    found: points.Found,
    entries: Sequence[writer.Entry],
    figures: Mapping[str, Evaluation] | None,
    allowed: float | None,
) -> points.Found:
    """Add the figures on the test pictures to the points that became variants, and the loss of the
    recommended one to the reason."""
    if not figures:
        return found
    known = {entry.model.sha256: figures[entry.id] for entry in entries}
    baseline = dataclasses.replace(found.baseline, test=known[found.baseline.sha256])
    tried = tuple(dataclasses.replace(p, test=known.get(p.sha256)) for p in found.points)
    best = next((p for p in tried if found.recommended and p.sha256 == found.recommended.sha256), None)
    reason = found.reason
    if best and best.test:
        name = next(entry.id for entry in entries if entry.model.sha256 == best.sha256)
        reason += (
            f"; as {name} in the bundle, on {best.test.n} test pictures"
            f" {conclusion.lost_in_words(best, baseline, 'test')}"
        )
        if allowed is not None and conclusion.drop(best, baseline, "test") > allowed + 1e-9:
            reason += f", which is more than the {allowed:g} allowed"
    return dataclasses.replace(found, points=tried, baseline=baseline, recommended=best, reason=reason)


def unless_problem(checked: Checked, found: points.Found) -> points.Found:
    """The result without a recommendation if the checkpoint does not understand its pictures."""
    if not checked.problem or found.recommended is None:
        return found
    return dataclasses.replace(found, recommended=None, reason=f"none is recommended: {checked.problem}")
