"""Writes the trade-off as files: front.json, front.csv, a picture (SVG and PNG) and a page. They show the
size, speed and accuracy of every point that was tried, and mark the points that no other beats and the
recommended one."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_export.core.files import atomic_file
from vgg_export.options import Budget
from vgg_runtime.bundle.manifest import FRONT_NAMES

from . import front_page
from .front import LOOKS, PICTURES, UNKNOWN_LOOK, WORDS, counted_in, judged_on, lost, pareto
from .points import Found, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    "family",
    "name",
    "input_px",
    "precision",
    "target",
    "bytes",
    "parameters",
    "macs",
    "p50_ms",
    "baseline_p50_ms",
    "speedup",
    "select_n",
    "select_drop_points",
    "select_loss_error_points",
    "test_n",
    "test_top1",
    "test_top1_low95",
    "test_top1_high95",
    "test_agreement",
    "test_drop_points",
    "test_loss_error_points",
    "on_front",
    "recommended",
)


def write(folder: Path, found: Found, budget: Budget | None = None, state: str = "Finished.") -> list[Path]:
    """The files of FRONT_NAMES in a folder. ``budget``: what was asked for, None: nothing; ``state``: how the
    search ended, as a sentence for the page."""
    points, sure = [found.baseline, *found.points], bool(budget and budget.sure)
    fastest = pareto(points, found.baseline, lambda p: -p.speedup, sure=sure)
    smallest = pareto(points, found.baseline, lambda p: p.bytes, sure=sure)
    content = {
        "judged_on": judged_on(points),
        "reason": found.reason,
        "recommended": found.recommended.to_json() if found.recommended else None,
        "front_by_speed": [[p.family, p.name] for p in fastest],
        "front_by_size": [[p.family, p.name] for p in smallest],
        "points": [p.to_json() for p in points],
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name.rpartition(".")[2]: folder / name for name in FRONT_NAMES}
    _write(paths["json"], (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    _write(paths["csv"], table(found, {id(p) for p in (*fastest, *smallest)}, sure=sure).encode())
    for kind in ("svg", "png"):
        _write(paths[kind], picture(found, fastest, smallest, kind))
    front_page.write(paths["html"], _finished(found, budget or Budget(), state))
    return list(paths.values())


def _finished(found: Found, budget: Budget, state: str) -> front_page.View:
    """The result as the page shows it."""
    return front_page.View(
        found.points, found.baseline, budget, found.recommended, found.reason, state, finished=True
    )


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def table(found: Found, front: set[int], *, sure: bool = False) -> str:
    """All points as CSV. An absent figure is an empty cell. ``sure``: losses are as --sure counts them."""
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for p in (found.baseline, *found.points):
        own: dict[str, Any] = {name: getattr(p, name) for name in COLUMNS[: COLUMNS.index("select_n")]}
        for which, figures in (("select", p.select), ("test", p.test)):
            if figures and (loss := lost(p, found.baseline, which, sure=sure)):
                own[f"{which}_n"] = figures.n
                own[f"{which}_drop_points"], own[f"{which}_loss_error_points"] = (round(x, 4) for x in loss)
        if p.test:
            own["test_agreement"] = p.test.agreement.rate
            if top1 := p.test.top1:
                low, high = top1.interval95
                own |= {"test_top1": top1.rate, "test_top1_low95": low, "test_top1_high95": high}
        own |= {"on_front": int(id(p) in front), "recommended": int(p == found.recommended)}
        rows.writerow(own)
    return text.getvalue()


def picture(found: Found, fastest: Sequence[Point], smallest: Sequence[Point], kind: str) -> bytes:
    """Two panels, speed and size, each against accuracy (or agreement without labels) with its 95 %
    interval."""
    from matplotlib.figure import Figure

    points = [found.baseline, *found.points]
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    which = judged_on(points)
    n, proportion = points[0].figures(which).n, counted_in(found.baseline, which)
    sides: tuple[tuple[Callable[[Point], float], Sequence[Point], str], ...] = (
        (lambda p: p.speedup, fastest, "times the baseline's speed (right is faster)"),
        (lambda p: p.bytes / 1e6, smallest, "file, MB (left is smaller)"),
    )
    numbers = {
        id(p): k
        for k, p in enumerate(
            sorted((p for p in points if p in (*fastest, *smallest)), key=lambda p: p.speedup), 1
        )
    }
    for axes, (where, front, label) in zip(panels, sides, strict=True):
        _panel(axes, points, front, found.recommended, where, lambda p: _accuracy(p, which, proportion))
        for p in front:
            place = (0, 10 if numbers[id(p)] % 2 else -16)  # neighbours above and below in turn
            axes.annotate(
                str(numbers[id(p)]),
                (where(p), _accuracy(p, which, proportion)[0]),
                place,
                textcoords="offset points",
                ha="center",
            )
        axes.set_xlabel(label)
    panels[0].set_ylabel(f"{WORDS[proportion]} on {n} {PICTURES[which]}, %")
    panels[0].legend(fontsize=8, loc="best")
    names = [
        f"{numbers[id(p)]}: {p.family}, {p.name}"
        for p in sorted(points, key=lambda p: numbers.get(id(p), 0))
        if id(p) in numbers
    ]
    figure.supxlabel(
        "\n".join("     ".join(names[k : k + 3]) for k in range(0, len(names), 3)),
        fontsize=8,
        x=0.02,
        ha="left",
    )
    figure.suptitle(
        "Speed and size against accuracy; bars: 95 % interval; line: points that no other beats", fontsize=11
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {})
    return buffer.getvalue()


def _panel(
    axes: "Axes",
    points: Sequence[Point],
    front: Sequence[Point],
    recommended: Point | None,
    where: Callable[[Point], float],
    height: Callable[[Point], tuple[float, float, float]],
) -> None:
    axes.set_xscale("log")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.plot(
        [where(p) for p in front], [height(p)[0] for p in front], color="#999999", linewidth=1, zorder=1
    )
    for family in dict.fromkeys(p.family for p in points):
        colour, marker = LOOKS.get(family, UNKNOWN_LOOK)
        own = [p for p in points if p.family == family]
        ys = [height(p) for p in own]
        bars = [[y - low for y, low, _ in ys], [high - y for y, _, high in ys]]
        axes.errorbar(
            [where(p) for p in own],
            [y for y, *_ in ys],
            yerr=bars,
            fmt=marker,
            color=colour,
            label=family,
            capsize=2,
            markersize=7,
        )
    if recommended:
        axes.plot(
            where(recommended),
            height(recommended)[0],
            "o",
            markersize=17,
            fillstyle="none",
            color="#C00000",
            label="recommended",
        )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if str(value).lstrip("0.")[:1] in "25" else ""
    )


def _accuracy(point: Point, which: str, proportion_of: str) -> tuple[float, float, float]:
    """The rate and the two ends of its 95 % interval, in per cent."""
    figures = point.figures(which)
    proportion = figures.top1 if proportion_of == "top1" else figures.agreement
    assert proportion  # labels are the same for all points
    low, high = proportion.interval95
    return 100 * proportion.rate, 100 * low, 100 * high
