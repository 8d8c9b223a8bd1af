"""The page of a search and the lines of its points: what they show of points made up for it."""

import dataclasses
import html
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from browser import CONTRAST, NARROW_PX, WIDE_PX, Page, overflowing

from vgg_export.core.errors import OutputError
from vgg_export.options import Budget
from vgg_export.search import front, front_page, lines, pareto, plot, points
from vgg_export.search.front_page import Forecast, View
from vgg_runtime.bundle.metrics import wilson_interval
from vgg_runtime.result import Evaluation, Proportion
from vgg_runtime.text import printed_width

N, BASE_TOP1, BASE_BYTES = 492, 0.80, 553_430_000


def figures(lost: float, error: float, n: int = N, *, labelled: bool = True) -> Evaluation:
    """``lost``: points of top-1, or of agreement without labels."""

    def proportion(rate: float) -> Proportion:
        return Proportion(rate, n, wilson_interval(round(rate * n), n))

    top1 = proportion(BASE_TOP1 - lost / 100) if labelled else None
    agreement = proportion(0.9 if labelled else 1 - lost / 100)
    return Evaluation(n=n, top1=top1, agreement=agreement, loss_error_points=error)


def point(
    name: str, px: int, speed: float, smaller: float, lost: float, error: float, **more: Any
) -> points.Point:
    return points.Point(
        more.get("family", "compact"),
        f"{name}, {px} px",
        ("export",),
        model="model.onnx",
        sha256=f"{name} {px}",
        input_px=px,
        precision="int8",
        target="pi5",
        bytes=round(BASE_BYTES / smaller),
        parameters=more.get("parameters", 6_712_345),
        macs=more.get("macs", 1_420_000_000),
        p50_ms=100 / speed,
        baseline_p50_ms=100.0,
        select=figures(lost, error, labelled=more.get("labelled", True)),
        setting=more.get("setting", {}),
    )


BASE = dataclasses.replace(
    point("", 224, 1, 1, 0, 0.4, family="baseline", parameters=138_357_544, macs=15_470_000_000),
    name="fp32",
)
INT8 = point("int8", 224, 3.1, 4, 0.1, 0.5, family="int8 alone")
RUNG = point("conv 18%, fc 50%", 160, 24.4, 81, -0.2, 1.6, setting={"conv_share": 0.18, "fc_share": 0.5})
FAST = point("conv 15%, fc 50%", 128, 33.9, 109, 0.9, 1.7, setting={"conv_share": 0.15, "fc_share": 0.5})
POOR = point("conv 9%, fc 25%", 128, 48.0, 142, 14.2, 2.2, setting={"conv_share": 0.09, "fc_share": 0.25})
POINTS = (INT8, RUNG, FAST, POOR)
FORECAST = (Forecast("conv 25%, 128 px", 28.0, 6_500_000, 0.3), Forecast("conv 12%, 96 px", 40.0, None, 2.1))
RUNNING = View(
    POINTS,
    BASE,
    Budget(max_drop=2.0),
    FAST,
    "the fastest point tried",
    "Running: 4 points tried, about 12 min left.",
    finished=False,
    forecast=FORECAST,
)
FINISHED = dataclasses.replace(RUNNING, finished=True, state="Finished after 21 min.", forecast=())


def rows(page: str) -> list[dict[str, str]]:
    """The table: each row by the names of its columns; that of the first is "point"."""
    found = []
    for row in re.findall(r"<tr[^>]*>(<th scope=\"row\">.*?)</tr>", page):
        name = re.sub(r"<[^>]*>", " ", re.findall(r"<th.*?</th>", row)[0])
        cells = dict(re.findall(r'<td data-of="([^"]*)">([^<]*)</td>', row))
        found.append({"point": " ".join(html.unescape(name).split()), **cells})
    return found


def drawings(page: str) -> list[str]:
    """The plots: speed wide, speed narrow, size wide, size narrow."""
    return re.findall(r'<svg viewBox="[ \d]*" role="img".*?</svg>', page, re.DOTALL)


def places(drawing: str) -> dict[str, tuple[float, float]]:
    """Where each dot is, in px, by the name in its title."""
    found = re.findall(r"translate\(([\d.]+) ([\d.]+)\) scale\(6\)\"><title>(.*?): ", drawing)
    return {name: (float(x), float(y)) for x, y, name in found}


def test_the_table_holds_the_figures_of_the_points() -> None:
    found = rows(front_page.render(RUNNING))
    assert [row["point"] for row in found] == [
        "fp32",
        "1. int8, 224 px",
        "2. conv 18%, fc 50%, 160 px",
        "3. conv 15%, fc 50%, 128 px ★ recommended",
        "4. conv 9%, fc 25%, 128 px newest",
        "conv 25%, 128 px forecast",
        "conv 12%, 96 px forecast",
    ]
    assert found[2] == {
        "point": "2. conv 18%, fc 50%, 160 px",
        "input px": "160",
        "GMACs": "1.42",
        "parameters": "6.71 M",
        "file MB": "6.8",
        "smaller": "1/81",
        "faster": "24.4x",
        "points lost": "-0.2 ± 1.6",
        "pictures": "492",
    }
    assert (found[0]["parameters"], found[0]["file MB"], found[0]["points lost"]) == (
        "138 M",
        "553",
        "+0.0 ± 0.0",
    )
    assert list(found[5].values())[1:] == ["–", "–", "–", "6.5", "1/85", "28.0x", "+0.3", "–"]
    assert list(found[6].values())[1:] == ["–", "–", "–", "–", "–", "40.0x", "+2.1", "–"]


def test_the_verdict_comes_first() -> None:
    page = front_page.render(RUNNING)
    assert "<title>33.9x, 1/109: search running</title>" in page
    said = [
        page.index(text) for text in ("★ recommended so far", "<h1>conv 15%, fc 50%, 128 px</h1>", "<svg ")
    ]
    assert said == sorted(said)
    tiles = re.findall(r"<li><strong>(.*?)</strong> (.*?)</li>", page)
    assert tiles == [
        ("33.9x", "the baseline&#x27;s speed"),
        ("5.1 MB", "file, 1/109 of the baseline&#x27;s"),
        ("+0.9 ± 1.7", "points lost on 492 selection pictures"),
    ]
    assert '<p id="reason">The fastest point tried.</p>' in page
    assert "Asked for: a loss of at most 2 points." in page
    assert "Running: 4 points tried, about 12 min left." in page


def test_why_nothing_is_recommended_is_said() -> None:
    nothing = dataclasses.replace(FINISHED, recommended=None, reason="the budget cannot be met")
    page = front_page.render(nothing)
    assert "<h1>Nothing is recommended</h1>" in page
    assert '<p id="reason">The budget cannot be met.</p>' in page
    assert "<title>none recommended: search finished</title>" in page
    assert "★" not in page
    assert 'class="ring"' not in page
    early = dataclasses.replace(RUNNING, points=(), recommended=None, reason="", forecast=())
    page = front_page.render(early)
    assert "<h1>Nothing to recommend yet</h1>" in page
    assert 'id="reason"' not in page
    assert [row["point"] for row in rows(page)] == ["fp32"]
    assert drawings(page) == []  # the baseline alone is no front


def test_a_running_page_renews_itself_and_a_finished_one_does_not() -> None:
    running, finished = front_page.render(RUNNING), front_page.render(FINISHED)
    assert 'http-equiv="refresh" content="5"' in running
    assert "location.reload()" in running
    assert "refresh" not in finished
    assert "<script" not in finished
    assert "script-src 'none'" in finished
    assert "renews itself every 5 seconds" in running
    assert "renews itself" not in finished
    assert "newest" not in finished


def test_what_comes_from_outside_is_text() -> None:
    bad = "<script>alert(1)</script>\"'&<!--policy-->"
    hostile = dataclasses.replace(FAST, name=bad, family=bad)
    view = dataclasses.replace(
        RUNNING,
        points=(hostile,),
        recommended=hostile,
        reason=bad,
        state=bad,
        forecast=(Forecast(bad, 2.0, 1_000_000, 1.0),),
    )
    page = front_page.render(view)
    assert page.count("<script>") == 1  # its own
    assert "alert(1)<" not in page
    assert "<!--policy" not in page
    assert page.count("Content-Security-Policy") == 1
    assert html.unescape(re.findall("<h1>(.*?)</h1>", page)[0]) == bad


def test_figures_on_test_pictures_stand_beside_the_others_where_there_are_some() -> None:
    judged = dataclasses.replace(FAST, test=figures(1.1, 2.0, n=365))
    base = dataclasses.replace(BASE, test=figures(0.0, 0.3, n=365))
    view = dataclasses.replace(FINISHED, points=(INT8, judged), baseline=base, recommended=judged)
    found = rows(front_page.render(view))
    assert [(row["lost on test"], row["test pictures"]) for row in found] == [
        ("+0.0 ± 0.0", "365"),
        ("–", "–"),  # absent, not nought
        ("+1.1 ± 2.0", "365"),
    ]
    assert [row["points lost"] for row in found] == ["+0.0 ± 0.0", "+0.1 ± 0.5", "+0.9 ± 1.7"]


def test_it_judges_on_test_pictures_where_every_point_has_them() -> None:
    judged = dataclasses.replace(FAST, test=figures(1.1, 2.0, n=365))
    base = dataclasses.replace(BASE, test=figures(0.0, 0.3, n=365))
    page = front_page.render(
        dataclasses.replace(FINISHED, points=(judged,), baseline=base, recommended=judged)
    )
    assert [row["points lost"] for row in rows(page)] == ["+0.0 ± 0.0", "+1.1 ± 2.0"]
    assert "points lost on 365 test pictures" in page
    assert "lost on test" not in page


def test_a_point_without_figures_is_in_the_table_and_not_in_the_plots() -> None:
    bare = dataclasses.replace(POOR, select=None)
    page = front_page.render(dataclasses.replace(RUNNING, points=(FAST, bare)))
    assert (rows(page)[2]["points lost"], rows(page)[2]["pictures"]) == ("–", "–")
    assert set(places(drawings(page)[0])) == {"fp32", FAST.name, *(f.name for f in FORECAST)}
    nobody = dataclasses.replace(BASE, select=None)
    page = front_page.render(dataclasses.replace(RUNNING, points=(bare,), baseline=nobody, recommended=None))
    assert "No point was judged on pictures yet." in page
    assert drawings(page) == []


def test_without_labels_the_loss_is_of_agreement() -> None:
    base = dataclasses.replace(BASE, select=figures(0.0, 0.3, labelled=False))
    other = point("int8", 224, 3.0, 4, 3.5, 0.8, labelled=False)
    page = front_page.render(dataclasses.replace(FINISHED, points=(other,), baseline=base, recommended=other))
    assert [row["points lost"] for row in rows(page)] == ["+0.0 ± 0.0", "+3.5 ± 0.8"]
    assert "points of agreement with the baseline on the selection pictures" in page


@pytest.mark.parametrize(("k", "frame"), [(0, plot.WIDE), (1, plot.NARROW)])
def test_dots_lie_where_their_figures_say(k: int, frame: plot.Frame) -> None:
    found = places(drawings(front_page.render(RUNNING))[k])
    width, height = frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
    # speeds of 1 to 48 with a margin; the losses from -1.8 (with the error) to 6 (three times the budget)
    margin = max(1.1, 48.0**0.06)
    low, high = math.log(1 / margin), math.log(48 * margin)
    top, bottom = -1.8 - 0.08 * 7.8, 6 + 0.12 * 7.8
    for p, lost in ((RUNG, -0.2), (FAST, 0.9)):
        x = frame.left + (math.log(p.speedup) - low) / (high - low) * width
        y = frame.top + (lost - top) / (bottom - top) * height
        assert found[p.name] == pytest.approx((x, y), abs=0.06)
    assert found[RUNG.name][0] < found[FAST.name][0] < found[POOR.name][0]  # faster is to the right
    assert found[RUNG.name][1] < found[FAST.name][1] < found[POOR.name][1]  # what loses more is lower


def test_sizes_lie_on_a_logarithmic_axis() -> None:
    found = places(drawings(front_page.render(RUNNING))[2])
    per_octave = (found["fp32"][0] - found[INT8.name][0]) / math.log2(4)
    assert found[INT8.name][0] - found[RUNG.name][0] == pytest.approx(per_octave * math.log2(81 / 4), abs=0.5)
    assert FORECAST[0].name in found
    assert FORECAST[1].name not in found  # its size is not known


def test_error_bars_reach_one_standard_error_up_and_down() -> None:
    made = plot.Plot(
        "", "", (plot.Dot(1, 0, 0, "", "", ("#000000", "*")), plot.Dot(10, 2, 1, "", "b", ("red", "o")))
    )
    scales = plot.Scales.of(made, plot.WIDE)
    (bar,) = re.findall(r'class="bar" d="M([\d.]+) ([\d.]+)V([\d.]+)M', plot.svg(made, plot.WIDE))
    assert [float(v) for v in bar] == pytest.approx([scales.x(10), scales.y(1), scales.y(3)], abs=0.06)


def test_a_point_that_loses_far_too_much_is_at_the_edge_and_says_how_much() -> None:
    for drawing, frame in zip(
        drawings(front_page.render(RUNNING))[:2], (plot.WIDE, plot.NARROW), strict=True
    ):
        assert places(drawing)[POOR.name][1] == frame.height - frame.bottom - plot.MARKER_PX - 2
        assert "4 ↓ 14 lost" in drawing
    # without a budget, more is shown
    free = dataclasses.replace(
        RUNNING, budget=Budget(), points=(INT8, dataclasses.replace(POOR, select=figures(9, 1)))
    )
    assert "↓" not in "".join(drawings(front_page.render(free)))


def test_the_budget_is_a_line_in_each_plot() -> None:
    asked = Budget(max_drop=2.0, size_bytes=20_000_000, speedup=10.0)
    drawn = drawings(front_page.render(dataclasses.replace(RUNNING, budget=asked)))
    for drawing, words in zip(
        drawn, ("at least 10x", "at least 10x", "at most 20 MB", "at most 20 MB"), strict=True
    ):
        assert drawing.count('class="budget"') == 2
        assert "budget: 2 lost" in drawing
        assert words in drawing
    (y,) = re.findall(r'class="budget" d="M46 ([\d.]+)H542"', drawn[0])
    found = places(drawn[0])
    nought, per_point = found["fp32"][1], (found[FAST.name][1] - found["fp32"][1]) / 0.9
    assert float(y) == pytest.approx(nought + 2 * per_point, abs=0.2)
    assert 'class="budget"' not in "".join(
        drawings(front_page.render(dataclasses.replace(RUNNING, budget=Budget())))
    )


def test_the_front_is_a_line_through_what_no_other_beats() -> None:
    drawing = drawings(front_page.render(RUNNING))[0]
    (line,) = re.findall(r'<polyline class="front" points="(.*?)"', drawing)
    found = places(drawing)
    # int8 alone loses more than the rung, which is faster; so does the baseline
    on_it = [found[p.name] for p in (RUNG, FAST, POOR)]
    assert [tuple(map(float, pair.split(","))) for pair in line.split()] == on_it


def test_the_recommended_is_ringed_and_families_differ_in_shape_and_colour() -> None:
    drawing = drawings(front_page.render(RUNNING))[0]
    (ring,) = re.findall(r'class="ring" cx="([\d.]+)" cy="([\d.]+)"', drawing)
    assert tuple(map(float, ring)) == places(drawing)[FAST.name]
    looks = [*front.LOOKS.values(), front.UNKNOWN_LOOK]
    assert (
        len({plot.MARKERS[letter] for _, letter in looks})
        == len({colour for colour, _ in looks})
        == len(looks)
    )
    assert drawing.count(plot.marker(front.LOOKS["compact"])) == 3
    assert drawing.count(plot.marker(front.LOOKS["compact"], hollow=True)) == len(FORECAST)
    legend = re.findall(r'<ul class="legend".*?</ul>', front_page.render(RUNNING), re.DOTALL)[0]
    for words in ("baseline", "int8 alone", "compact", "forecast, not tried yet", "recommended", "budget"):
        assert f"{words}</li>" in legend


def crowd() -> tuple[points.Point, ...]:
    """Points of three kinds, as a sweep makes them; half of them lose more than is shown."""
    found = []
    for k in range(8):
        found.append(point(f"conv {50 - 5 * k}%", 160, 5 + 3 * k, 20 + 10 * k, 0.2 * k * k - 0.5, 0.7))
        found.append(point(f"not {50 - 5 * k}%", 224, 5 + 3 * k, 20 + 10 * k, 20 + 7 * k, 2.0))
    return tuple(found)


@pytest.mark.parametrize("tried", [POINTS, crowd()], ids=["few", "many"])
def test_no_label_covers_another_one(tried: tuple[points.Point, ...]) -> None:
    for drawing in drawings(front_page.render(dataclasses.replace(RUNNING, points=tried))):
        found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start".*?>(.*?)</text>', drawing)
        labels = [(float(x), float(y), html.unescape(text)) for x, y, text in found]
        assert len(labels) > len(tried) / 2
        for k, (x, y, text) in enumerate(labels):
            for other_x, other_y, other in labels[k + 1 :]:
                apart = x + 6 * len(text) <= other_x or other_x + 6 * len(other) <= x
                assert apart or abs(y - other_y) >= plot.TEXT_PX, (text, other)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.9, 52, [1, 2, 5, 10, 20, 50]),
        (3.0, 9.0, [3, 4, 5, 6, 7, 8, 9]),
        (4.1, 4.6, [4.1, 4.2, 4.3, 4.4, 4.5, 4.6]),
    ],
)
def test_ticks_of_costs_are_round(low: float, high: float, expected: list[float]) -> None:
    assert plot.cost_ticks(low, high) == expected


def test_ticks_of_losses_are_round() -> None:
    assert plot.loss_ticks(-2.4, 6.9) == [-2, 0, 2, 4, 6]
    assert plot.loss_ticks(-0.1, 1.2) == [0, 0.5, 1]


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    front_page.write(tmp_path / "new/front.html", FINISHED)
    assert (tmp_path / "new/front.html").read_text(encoding="utf-8") == front_page.render(FINISHED)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["front.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        front_page.write(tmp_path / "file/front.html", FINISHED)


def test_the_page_stands_beside_the_other_files_of_the_front(tmp_path: Path) -> None:
    found = points.Found(POINTS, BASE, FAST, "because", points.Rung(0.15, 0.5, 160))
    paths = pareto.write(tmp_path, found, Budget(max_drop=2.0), "Finished after 21 min.")
    page = next(path for path in paths if path.name == "front.html").read_text(encoding="utf-8")
    shown = dataclasses.replace(FINISHED, reason="because")
    assert page == front_page.render(shown)


def test_a_line_tells_a_point_in_80_columns() -> None:
    assert lines.header() == " input  point                   file  smaller  faster  points lost"
    assert (
        lines.line(INT8, BASE, best=False)
        == "224 px  int8                  138 MB      1/4    3.1x   +0.1 ± 0.5"
    )
    assert (
        lines.line(FAST, BASE, best=True)
        == "128 px  conv 15 %  fc 50 %    5.1 MB    1/109   33.9x   +0.9 ± 1.7  best so far"
    )
    no_figures = dataclasses.replace(FAST, select=None)
    assert lines.line(no_figures, BASE, best=False).endswith("33.9x            –")


@pytest.mark.parametrize("family", front.LOOKS)
def test_every_line_fits_whatever_is_in_it(family: str) -> None:
    wide = point("a very long name, 日本語 and more", 1024, 123.4, 1234, 45.67, 12.34, family=family)
    for p in (wide, dataclasses.replace(wide, setting={"conv_share": 1.0, "fc_share": 1.0})):
        for best in (False, True):
            assert len(lines.line(p, BASE, best=best)) <= 80
    two_columns_each = dataclasses.replace(wide, name="日本語" * 9)
    assert printed_width(lines.line(two_columns_each, BASE, best=True)) <= 80
    told = lines.line(wide, BASE, best=False)
    assert told.startswith("1024 px  a very long name…  ")
    assert "+45.7 ± 12.3" in told  # figures are not cut
    assert "\n" not in lines.line(dataclasses.replace(wide, name="a\nb"), BASE, best=False)
    assert told.endswith(lines.SHORT.get(family, "± 12.3"))


# In a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser.opened(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@browser.needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW_PX, WIDE_PX])
def test_it_opens_from_disk_and_fits(width: int, scheme: str, page: Page, tmp_path: Path) -> None:
    long = dataclasses.replace(POOR, name="x" * 200, test=figures(11.1, 12.0, n=36500))
    base = dataclasses.replace(BASE, test=figures(0.0, 0.3, n=36500))
    view = dataclasses.replace(RUNNING, points=(*POINTS, long), baseline=base)
    front_page.write(tmp_path / "front.html", view)
    page.open((tmp_path / "front.html").as_uri(), width, prefers_color_scheme=scheme)
    assert page.one("h1").text == FAST.name
    assert page.js("return document.documentElement.scrollWidth") <= width
    assert overflowing(page) == []
    cells = "[...document.querySelectorAll('td, tbody th')]"
    assert page.js(f"return {cells}.filter(n => n.scrollWidth > n.clientWidth + 1).length") == 0
    shown = [svg for svg in page.all(".card svg") if svg.is_displayed()]
    assert len(shown) == 2
    for svg in shown:  # text keeps its size
        drawn_px = float(str(svg.get_dom_attribute("viewBox")).split()[2])
        assert svg.rect["width"] == pytest.approx(drawn_px, rel=0.05)
    seen, bad = page.js(CONTRAST)
    assert seen > 80
    assert bad == []
    page.picture(f"front-{width}-{scheme}")
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith("file://")] == []


@browser.needed
@pytest.mark.release
def test_a_running_page_shows_what_is_new_and_keeps_its_place(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "front.html"
    front_page.write(path, dataclasses.replace(RUNNING, points=POINTS[:3], recommended=RUNG))
    page.open(path.as_uri(), NARROW_PX)
    assert page.one("#news").text.startswith("Last news at ")
    page.js("window.scrollTo(0, 400)")
    page.js("getSelection().selectAllChildren(document.querySelector('h1'))")
    front_page.write(path, RUNNING)
    time.sleep(front_page.RENEW_S + 1)
    assert page.one("h1").text == RUNG.name  # marked text is not lost
    page.js("getSelection().removeAllRanges()")
    page.wait(lambda: page.one("h1").text == FAST.name)
    page.wait(lambda: page.js("return Math.round(scrollY)") == 400, 5)
    front_page.write(path, FINISHED)
    page.wait(lambda: page.one("#state").text == "Finished after 21 min.")
    assert page.all("script") == []
    assert page.complaints() == []
