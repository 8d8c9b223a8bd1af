"""Tells how a search goes: a line per point, and a page that renews itself as points come in."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from vgg_export.core.errors import VggExportError
from vgg_export.options import Budget

from . import front_page, lines
from .points import Found, Point
from .prediction import Candidate, Experience

log = logging.getLogger(__name__)


class News:
    """The news of one search. ``page``: the file of the page."""

    def __init__(self, page: Path, baseline: Point, budget: Budget) -> None:
        self._page, self._baseline, self._budget = page, baseline, budget
        self._last: front_page.View | None = None

    def begin(self, alone: Sequence[Point]) -> None:
        """Say where the page is, and show what is there before the first rung."""
        log.info("how the search goes: %s", self._page)
        log.info("%s", lines.header())
        for point in alone:
            log.info("%s", lines.line(point, self._baseline, best=False, sure=self._budget.sure))
        state, points = "Running: no rung is tried yet.", tuple(alone)
        self._write(front_page.View(points, self._baseline, self._budget, None, "", state, finished=False))

    def tell(
        self, point: Point, found: Found, left: Sequence[Candidate], experience: Experience, most_s: float
    ) -> None:
        """Show a new point. ``left``: what may be tried yet, for which ``most_s`` seconds are needed at
        most."""
        best, sure = point == found.recommended, self._budget.sure
        log.info("%s", lines.line(point, self._baseline, best=best, sure=sure))
        count, minutes = len(experience.tried), max(1, round(most_s / 60))
        tried = f"{count} point{'s' * (count != 1)} tried"
        forecast = tuple(_forecast(one, experience) for one in left)
        self._show(found, f"Running: {tried}, at most {minutes} min left.", forecast=forecast, finished=False)

    def end(self, found: Found, minutes: float) -> None:
        """Show the result."""
        self._show(found, f"Finished after {minutes:.0f} min.", forecast=(), finished=True)

    def ended(self, error: BaseException) -> None:
        """Say on the page that nothing comes in any more, and why."""
        if self._last and not self._last.finished:
            words = "Interrupted; run the same command again to go on from here."
            if isinstance(error, VggExportError):
                words = f"Ended with an error: {error}."
            self._write(dataclasses.replace(self._last, state=words, forecast=(), finished=True))

    def _show(
        self, found: Found, state: str, *, forecast: tuple[front_page.Forecast, ...], finished: bool
    ) -> None:
        known = (found.points, self._baseline, self._budget, found.recommended, found.reason)
        self._write(front_page.View(*known, state, finished, forecast))

    def _write(self, view: front_page.View) -> None:
        self._last = view
        front_page.write(self._page, view)


def _forecast(candidate: Candidate, experience: Experience) -> front_page.Forecast:
    return front_page.Forecast(
        f"{candidate.rung.name}, {candidate.rung.px} px",
        experience.speedup(candidate),
        experience.bytes(candidate),
        experience.drop(candidate)[0],
    )
