"""The page of a search, ``front.html``: what is recommended, the front as two plots, and every point in a
table. It is one file that needs no server and no network. While the search runs, it renews itself."""

import dataclasses
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vgg_export.core.files import atomic_file
from vgg_export.options import Budget
from vgg_runtime.report.page import policy
from vgg_runtime.text import ABSENT, megabytes, number

from . import plot
from .front import LOOKS, PICTURES, UNKNOWN_LOOK, WORDS, counted_in, judged_on, lost, pareto
from .lines import faster, loss, smaller
from .points import Point

TEMPLATE = Path(__file__).with_name("front_page.html")
RENEW_S = 5
# Reloading keeps the place on the page, which a meta element does not in every browser. It waits while text
# is marked, because that would be lost.
RENEWAL = f"""<noscript><meta http-equiv="refresh" content="{RENEW_S}"></noscript>
<script>
setInterval(() => {{ if (!String(getSelection())) location.reload(); }}, {1000 * RENEW_S});
addEventListener("DOMContentLoaded", () => {{
  const news = document.getElementById("news"), time = new Date(document.lastModified);
  if (news) news.textContent = "Last news at " + time.toLocaleTimeString() + ".";
}});
</script>"""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A point that was not tried yet, and what is expected of it. ``speedup``: relative to the baseline.
    ``bytes``: None if it is not known."""

    name: str
    speedup: float
    bytes: int | None
    drop_points: float


@dataclasses.dataclass(frozen=True)
class View:
    """A search at one moment. ``points``: in the order in which they were tried, without the baseline.
    ``recommended``: one of them, or the baseline; None: none is. ``reason``: why, may be empty. ``state``:
    how far the search is, as a sentence."""

    points: tuple[Point, ...]
    baseline: Point
    budget: Budget
    recommended: Point | None
    reason: str
    state: str
    finished: bool
    forecast: tuple[Forecast, ...] = ()

    @property
    def all(self) -> tuple[Point, ...]:
        """The baseline and the points."""
        return (self.baseline, *self.points)

    @property
    def which(self) -> str:
        """The pictures that the points are judged on: "select" or "test"."""
        return judged_on(self.all)

    @property
    def judged(self) -> tuple[Point, ...]:
        """The points that have figures on those pictures."""
        return tuple(p for p in self.all if lost(p, self.baseline, self.which))


def write(path: Path, view: View) -> None:
    """Write the page, so that whoever reads it at this moment finds the old one or the new one.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(render(view), encoding="utf-8")


def render(view: View) -> str:
    """The page. Names and reasons in it are text, whatever they contain."""
    body = "\n".join(
        [
            "<header>",
            *_verdict(view),
            "</header>",
            "<main>",
            *_front(view),
            *_table(view),
            "</main>",
            *_footer(view),
        ]
    )
    best = view.recommended
    result = f"{faster(best)}, {smaller(best, view.baseline)}" if best else "none recommended"
    title = f"{result}: search {'finished' if view.finished else 'running'}"
    page = TEMPLATE.read_text(encoding="utf-8")
    for place, content in (
        ("renewal", "" if view.finished else RENEWAL),
        ("title", _safe(title)),
        ("body", body),
    ):
        page = page.replace(f"<!--{place}-->", content)
    allowed = policy(page, live=False)
    return page.replace(
        "<!--policy-->", f'<meta http-equiv="Content-Security-Policy" content="{allowed}">', 1
    )


def _verdict(view: View) -> Iterator[str]:
    """What is recommended, or that nothing is, and how far the search is."""
    best, so_far = view.recommended, "" if view.finished else " so far"
    if best:
        yield f'<p class="tag">★ recommended{so_far}</p>'
        yield f"<h1>{_safe(best.name)}</h1>"
        yield from _tiles(best, view)
    else:
        yield f'<p class="tag {"none" if view.finished else "wait"}">no recommendation{so_far}</p>'
        yield f"<h1>{'Nothing is recommended' if view.finished else 'Nothing to recommend yet'}</h1>"
    if view.reason:
        reason = view.reason[0].upper() + view.reason[1:].rstrip(".")
        yield f'<p id="reason">{_safe(reason)}.</p>'
    if asked := view.budget.in_words():
        yield f'<p class="soft">Asked for: {_safe(asked)}.</p>'
    dot = '<svg viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="5"/></svg>'
    running = "" if view.finished else " running"
    news = "" if view.finished else ' <span class="soft" id="news"></span>'
    yield f'<p class="state{running}" id="state" role="status">{dot}{_safe(view.state)}{news}</p>'


def _tiles(best: Point, view: View) -> Iterator[str]:
    base = view.baseline
    figures = best.test if view.which == "test" else best.select
    lost_of = f"points lost on {figures.n:,} {PICTURES[view.which]}" if figures else "points lost"
    yield '<ul class="tiles">'
    for value, words in (
        (faster(best), "the baseline's speed"),
        (f"{megabytes(best.bytes)} MB", f"file, {smaller(best, base)} of the baseline's"),
        (loss(best, base, view.which, sure=view.budget.sure), lost_of),
    ):
        yield f"<li><strong>{_safe(value)}</strong> {_safe(words)}</li>"
    yield "</ul>"


def _front(view: View) -> Iterator[str]:
    """The legend and the two plots, each drawn for a wide and for a narrow page."""
    if not view.judged or len(view.judged) + len(view.forecast) < 2:
        return  # the baseline alone is no front
    yield from _legend(view)
    yield '<div class="plots">'
    for made in (_by_speed(view), _by_size(view)):
        yield f'<figure class="card"><h2>{_safe(made.title)}</h2>'
        for frame, kind in ((plot.WIDE, "wide"), (plot.NARROW, "narrow")):
            yield f'<div class="{kind}">{plot.svg(made, frame)}</div>'
        yield "</figure>"
    yield "</div>"


def _legend(view: View) -> Iterator[str]:
    yield '<ul class="legend" aria-label="Marks in the plots">'
    for family in dict.fromkeys(p.family for p in view.judged):
        yield f"<li>{_icon(_look(family))}{_safe(family)}</li>"
    if view.forecast:
        yield f"<li>{_icon(LOOKS['compact'], hollow=True)}forecast, not tried yet</li>"
    signs = []
    if view.recommended:
        signs.append(('<circle class="ring" cx="0" cy="0" r="1"/>', "recommended"))
    signs.append(('<path class="front" d="M-1.3 0H1.3"/>', "no other beats these"))
    signs.append(('<path class="bar" d="M0 -1.2V1.2M-.5 -1.2H.5M-.5 1.2H.5"/>', "± one standard error"))
    if view.budget.asked:
        signs.append(('<path class="budget" d="M-1.3 0H1.3"/>', "budget"))
    for sign, words in signs:
        yield f"<li>{_drawn(sign)}{words}</li>"
    yield "</ul>"


def _icon(look: tuple[str, str], *, hollow: bool = False) -> str:
    return _drawn(plot.marker(look, hollow=hollow))


def _drawn(sign: str) -> str:
    return f'<svg class="icon" viewBox="-1.4 -1.4 2.8 2.8" aria-hidden="true">{sign}</svg>'


def _look(family: str) -> tuple[str, str]:
    return LOOKS.get(family, UNKNOWN_LOOK)


def _by_speed(view: View) -> plot.Plot:
    limit = view.budget.speedup
    return plot.Plot(
        "Speed against points lost",
        "times the baseline's speed (right is faster)",
        _dots(view, lambda p: p.speedup, [(f, f.speedup) for f in view.forecast]),
        _beaten_by_none(view, lambda p: -p.speedup),
        view.budget.max_drop,
        limit,
        f"at least {limit:g}x" if limit else "",
    )


def _by_size(view: View) -> plot.Plot:
    limit = view.budget.size_bytes
    return plot.Plot(
        "File size against points lost",
        "file, MB (left is smaller)",
        _dots(view, lambda p: p.bytes / 1e6, [(f, f.bytes / 1e6) for f in view.forecast if f.bytes]),
        _beaten_by_none(view, lambda p: p.bytes),
        view.budget.max_drop,
        limit / 1e6 if limit else None,
        f"at most {limit / 1e6:g} MB" if limit else "",
    )


def _dots(
    view: View, cost: Callable[[Point], float], expected: Sequence[tuple[Forecast, float]]
) -> tuple[plot.Dot, ...]:
    """The judged points and the forecasts."""
    found = []
    for k, p in enumerate(view.all):
        if figures := lost(p, view.baseline, view.which, sure=view.budget.sure):
            tag, ringed = str(k) if k else "", p == view.recommended
            found.append(plot.Dot(cost(p), *figures, tag, p.name, _look(p.family), ringed=ringed))
    found += [
        plot.Dot(at, f.drop_points, 0.0, "", f.name, LOOKS["compact"], hollow=True) for f, at in expected
    ]
    return tuple(found)


def _beaten_by_none(view: View, cost: Callable[[Point], float]) -> tuple[int, ...]:
    front = pareto(view.judged, view.baseline, cost, sure=view.budget.sure)
    return tuple(k for k, p in enumerate(view.judged) if p in front)


def _table(view: View) -> Iterator[str]:
    """Every point and its figures; those on test pictures where any point has them beside others."""
    both = view.which == "select" and any(p.test for p in view.points)
    columns = _columns(view, both=both)
    yield '<section class="points"><h2>Every point</h2><table>'
    yield f"<caption>{_safe(_caption(view, both=both))}</caption>"
    heads = "".join(f'<th scope="col">{_safe(name)}</th>' for name in columns[1:])
    yield f'<thead><tr><th scope="col" class="name">{_safe(columns[0])}</th>{heads}</tr></thead><tbody>'
    for k, p in enumerate(view.all):
        marks = ["★ recommended"] if p == view.recommended else []
        marks += ["newest"] if not view.finished and k and k == len(view.points) else []
        name = f"{k}. {p.name}" if k else p.name
        kind = "pick" if p == view.recommended else ""
        yield _row(columns, [name, *_cells(p, view, both=both)], _icon(_look(p.family)), marks, kind)
    for f in view.forecast:
        size = [megabytes(f.bytes), f"1/{view.baseline.bytes / f.bytes:.0f}" if f.bytes else ABSENT]
        cells = [f.name, *[ABSENT] * 3, *size, f"{f.speedup:.1f}x", f"{f.drop_points:+.1f}"]
        cells += [ABSENT] * (len(columns) - len(cells))
        yield _row(columns, cells, _icon(LOOKS["compact"], hollow=True), ["forecast"], "expected")
    yield "</tbody></table></section>"


def _columns(view: View, *, both: bool) -> list[str]:
    names = ["point", "input px", "GMACs", "parameters", "file MB", "smaller", "faster"]
    names += ["points lost", "pictures"]
    return [*names, "lost on test", "test pictures"] if both else names


def _caption(view: View, *, both: bool) -> str:
    if not view.judged:
        return "No point was judged on pictures yet."
    counted = WORDS[counted_in(view.baseline, view.which)]
    text = f"Points lost are points of {counted} on the {PICTURES[view.which]}, ± one standard error"
    return (
        f"{text}; those that became variants were also judged on the test pictures." if both else f"{text}."
    )


def _cells(p: Point, view: View, *, both: bool) -> list[str]:
    base = view.baseline
    cells = [str(p.input_px), f"{p.macs / 1e9:.2f}", f"{p.parameters / 1e6:.3g} M", megabytes(p.bytes)]
    cells += [smaller(p, base), faster(p)]
    for which in (view.which, "test") if both else (view.which,):
        figures = p.test if which == "test" else p.select
        cells += [
            loss(p, base, which, sure=view.budget.sure),
            number(figures.n if figures else None, digits=0),
        ]
    return cells


def _row(columns: Sequence[str], cells: Sequence[str], icon: str, marks: Sequence[str], kind: str) -> str:
    chips = "".join(f'<span class="chip">{mark}</span>' for mark in marks)
    figures = "".join(
        f'<td data-of="{_safe(of)}">{_safe(cell)}</td>'
        for of, cell in zip(columns[1:], cells[1:], strict=True)
    )
    kind = f' class="{kind}"' if kind else ""
    return f'<tr{kind}><th scope="row">{icon}{_safe(cells[0])}{chips}</th>{figures}</tr>'


def _footer(view: View) -> Iterator[str]:
    renews = "" if view.finished else f" This page renews itself every {RENEW_S} seconds."
    yield '<footer class="soft"><p>Faster: the median latency of the baseline divided by that of the point,'
    yield "both timed in turn on the machine that searched; a board has other ratios. The numbers in the"
    yield f"plots are those of the table. A dash marks a figure that is not there.{renews}</p></footer>"


def _safe(text: str) -> str:
    return html.escape(text)
