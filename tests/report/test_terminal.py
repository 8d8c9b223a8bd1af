"""What a person reads on a terminal: it fits, the verdict comes first, colours are for terminals."""

import dataclasses
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import reseal
from launch import QUICK, compare
from PIL import Image
from rows import a_result, a_row

from vgg_runtime import console, text
from vgg_runtime.bundle import outputs
from vgg_runtime.report import diff, tables
from vgg_runtime.result import (
    BuildUsed,
    Evaluation,
    Prediction,
    Proportion,
    Recommendation,
    Result,
    StepLoss,
    ThreadTrial,
)
from vgg_runtime.result import (
    Image as Shown,
)

NAMES = (
    *("baseline", "pruned", "quantized", "pruned-quantized", "scaled", "pruned-quantized-scaled", "compact"),
    *("compact-scaled", "compact-fp32", "compact-scaled-fp32"),
)


def a_proportion(rate: float, n: int = 8) -> Proportion:
    return Proportion(rate, n, (max(0.0, rate - 0.3), min(1.0, rate + 0.1)))


def full(output: str = outputs.SOFTMAX, *, labelled: bool = True) -> Result:
    """A result as wide as they get: all variants, long labels, every figure with many digits."""
    rows = []
    for k, name in enumerate(NAMES):
        built = Evaluation(
            n=600,
            top1=a_proportion(0.984),
            chance=0.05,
            top5=a_proportion(1.0),
            agreement=a_proportion(0.978),
            loss_error_points=0.5,
            kl_mean=1.2345,
            kl_p95=12.34,
        )
        label = "an extraordinarily long label" if k % 3 else "another one"
        rows.append(
            a_row(
                name,
                input_px=224 if k % 2 else 160,
                parameters=143_670_000,
                macs=19_630_000_000,
                size_bytes=574_700_000,
                load_ms=1234.0,
                first_ms=1234.5,
                p50_ms=1234.5,
                p90_ms=1300.1,
                prepare_ms=12.3,
                end_to_end_ms=1300.3,
                speedup=100.4,
                peak_rss_bytes=1_052_000_000,
                peak_anonymous_bytes=1_052_000_000,
                agreement=a_proportion(1.0),
                accuracy=a_proportion(1.0) if labelled else None,
                marks=(
                    "drifting: the rounds' medians lie between 1000.0 and 2000.0 ms; the last ones count",
                ),
                built=built,
                losses=tuple(
                    StepLoss(step, 0.9833, 1.4615, 320 if step == "tuned" else 60, "the checkpoint")
                    for step in tables.LOSS_COLUMNS
                ),
                build=BuildUsed(name, "Winograd's convolutions in 12 of 13 layers", ("pi4", "pi3"), False),
                memory_mode="lean",
                predictions=(Prediction(tuple(range(5)), (0.984, 0.01, 0.003, 0.002, 0.001), (label,) * 5),),
            )
        )
    loss = (
        "1.1 points lost on 365 test images, at most 4.4 with 95 %;"
        " 1,095 more pictures would halve that uncertainty"
    )
    return a_result(
        *rows,
        images=(Shown("a-picture-with-a-very-long-name-indeed.jpg", "an extraordinarily long label"),),
        recommended=Recommendation(
            "compact-scaled", 1.0, "the search's choice for a loss of at most 1 point", loss
        ),
        explanations=("int8 is little faster than the same network in float, " * 4,),
        bundle=dataclasses.replace(a_result().bundle, output=output, assumed=("something " * 30,)),
    )


@pytest.mark.parametrize("output", outputs.OUTPUTS)
@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("top5", [False, True])
def test_no_line_is_longer_than_the_terminal(output: str, width: int, top5: bool) -> None:
    for labelled in (True, False):
        lines = tables.whole(full(output, labelled=labelled), width, top5=top5).split("\n")
        assert [line for line in lines if text.printed_width(line) > width] == []


def header_of(result: Result, width: int | None) -> list[str]:
    line = tables.comparison(result, width).split("\n")[0]
    return re.split(r" {2,}", line.strip())


def test_the_most_important_columns_stay() -> None:
    least = ["variant", "px", "file MB", "P50 ms", "speed", "peak MB"]
    assert header_of(full(), 80) == [*least, "top-1 %"]
    assert header_of(full(labelled=False), 80) == [*least, "agrees %"]
    assert header_of(full(), None) == list(tables.COLUMNS)
    wider = header_of(full(), 120)
    assert set(header_of(full(), 80)) < set(wider) < set(tables.COLUMNS)
    assert len({len(line) for line in tables.comparison(full(), 80).split("\n")[2:12]}) == 1  # aligned


def test_the_verdict_is_one_sentence() -> None:
    first, second = tables.verdict(
        a_result(
            a_row("baseline", p50_ms=75.5, size_bytes=537_000_000, peak_rss_bytes=984_000_000),
            a_row("small", p50_ms=0.8, size_bytes=2_000_000, peak_rss_bytes=78_000_000),
            recommended=Recommendation(
                "small", 1.0, "the search's choice", "20.7 points gained on 600 test images"
            ),
        )
    ).split("\n")
    assert first == (
        "★ small is recommended: 0.8 ms a picture (94x faster), 2.0 MB (268x smaller), peak memory 78.0 MB"
        " (13x less); 20.7 points gained on 600 test images."
    )
    assert second == "  It is the search's choice."
    alone = a_result(
        a_row("baseline", p50_ms=75.5), recommended=Recommendation("baseline", 1.0, "the fastest here")
    )
    assert tables.verdict(alone).startswith("★ baseline is recommended: 75.5 ms a picture, 4.0 MB.\n")
    unknown = a_result(a_row("baseline"), recommended=Recommendation("gone", 1.0, "the search's choice"))
    assert tables.verdict(unknown) == "★ gone is recommended.\n  It is the search's choice."
    assert tables.verdict(a_result(a_row("baseline"))) == ""


def test_the_verdict_says_that_times_are_not_reliable() -> None:
    rows = [a_row("baseline", marks=("drifting: …",)), a_row("small"), a_row("other", marks=("held back",))]
    pick = Recommendation("small", 1.0, "the search's choice")
    said = tables.verdict(a_result(*rows, recommended=pick)).split("\n")[-1]
    assert said == "! The times of baseline are not reliable; the lines marked ! below the table say why."
    sound = tables.verdict(a_result(rows[2], a_row("small"), recommended=pick))
    assert "not reliable" not in sound


def test_the_only_variant_of_a_bundle_is_compared_with_nothing() -> None:
    about = dataclasses.replace(a_result().bundle, baseline=None)
    row = a_row("small", p50_ms=0.6, size_bytes=2_000_000, peak_rss_bytes=72_600_000, speedup=None)
    why = "this bundle holds one variant, so there is nothing to compare it with"
    result = a_result(row, bundle=about, recommended=Recommendation(None, 1.0, why))
    assert tables.verdict(result) == (
        f"None is recommended: {why}.\nsmall: 0.6 ms a picture, 2.0 MB, peak memory 72.6 MB."
    )
    assert "baseline" not in tables.whole(result, 80)
    assert "\n\n\n" not in tables.whole(result, 80)  # no empty line where a remark would be


@pytest.mark.parametrize("width", [80, None])
def test_a_baseline_that_died_among_the_pictures_is_shown_as_far_as_it_came(width: int | None) -> None:
    said = Prediction((0, 1), (0.9, 0.1), ("cat", "dog"))
    rows = [a_row("baseline", predictions=(said,), error="killed"), a_row("small", predictions=(said, said))]
    result = a_result(*rows, images=(*(Shown(f"{name}.jpg", None) for name in "abc"),))
    lines = tables.predictions(result, top5=False, width=width).split("\n")
    assert any("b.jpg" in line and text.ABSENT in line for line in lines)
    assert any("cat 90 %" in line for line in lines if "b.jpg" in line)
    assert "c.jpg\n  no variant lived to classify it" in tables.predictions(result, top5=True, width=width)


def test_classes_without_names_are_shown_by_their_numbers() -> None:
    result = a_result(
        a_row("baseline", predictions=(Prediction((7, 1), (0.9, 0.1)),)), images=(Shown("a.jpg", None),)
    )
    for top5 in (False, True):
        assert "class 7 90" in tables.predictions(result, top5=top5, width=80)


def test_variants_that_tried_other_numbers_of_threads_stand_in_one_table() -> None:
    one, two, four = (ThreadTrial(n, 40.0 / n, None, 5, None) for n in (1, 2, 4))
    rows = [a_row("baseline", thread_sweep=(one, two)), a_row("small", thread_sweep=(four, one))]
    shown = tables.comparison(a_result(*rows), None)
    lines = [line.split() for line in shown[shown.index("by threads") :].split("\n")[1:5]]
    assert lines[0] == ["variant", "1", "thread", "2", "threads", "4", "threads", "used"]
    assert [line[:4] for line in lines[2:]] == [
        ["baseline", "40.0", "20.0", text.ABSENT],
        ["small", "40.0", text.ABSENT, "10.0"],
    ]


def test_only_columns_that_are_shown_are_explained() -> None:
    narrow, wide = (tables.comparison(few(), width).split("\n\n")[-1] for width in (80, None))
    assert "P90" not in narrow
    assert "agrees: " not in narrow
    assert "top-1: right on 1 of these 1 pictures, whose class is known." in narrow
    assert "1 pictures are too few for this figure" in narrow
    assert "– in P90" in wide
    assert "agrees: same top-1 as the baseline on these 1 pictures; top-1: right on the 1 of them" in wide
    assert "too few for these two figures" in wide
    unknown = dataclasses.replace(few(), images=(Shown("a.jpg", None),))
    told = tables.comparison(unknown, None).split("\n\n")[-1]
    assert "known class" not in told
    assert "1 pictures are too few for this figure" in told


def few() -> Result:
    """A result on one picture, of runs that are too few for a P90."""
    return dataclasses.replace(
        full(), variants=tuple(dataclasses.replace(row, p90_ms=None) for row in full().variants)
    )


def test_those_who_say_something_else_are_named() -> None:
    said = tables.predictions(full(), top5=False, width=80).split("\n")
    assert "others agree" in said[0]
    result = full()
    changed = [
        dataclasses.replace(row, predictions=(Prediction((k // 8,), (0.9,), ("ab"[k // 8],)),))
        for k, row in enumerate(result.variants)
    ]
    lines = tables.predictions(
        dataclasses.replace(result, variants=tuple(changed)), top5=False, width=80
    ).split("\n")
    assert lines[2].endswith("7 of 9")
    assert "compact-fp32 b 90 %; compact-scaled-fp32 b 90 %" in " ".join(line.strip() for line in lines[3:])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_table_of_several_boards_fits(count: int) -> None:
    results = [full() for _ in range(count)]
    assert max(map(text.printed_width, diff.boards(results, 80).split("\n"))) <= 80
    assert max(map(text.printed_width, diff.diff(results[0], results[0], 80).split("\n"))) <= 80


def test_columns_are_chosen_by_importance_and_shown_in_order() -> None:
    shown_ = text.table(("a", "b", "c"), [("1", "22", "333")], width=7, order=(0, 2, 1))
    assert shown_.split("\n")[0].split() == ["a", "c"]
    assert text.fitting([3, 3, 3], (2, 0, 1), 8) == [0, 2]
    assert text.fitting([30], (0,), 8) == [0]  # one is always shown
    assert text.fitting([3, 3, 3], (2, 0, 1), None) == [0, 1, 2]


def test_a_number_stays_with_its_unit() -> None:
    assert text.folded("it takes 12 ms, or 98 % of it", 11) == "it takes\n  12 ms, or\n  98 % of\n  it"
    assert text.folded("12 milliseconds", 10) == "12\n  milliseconds"


def test_sizes_have_the_unit_that_shows_them() -> None:
    assert [text.in_bytes(size) for size in (14_600, 2_000_000, 537_000_000, None)] == [
        *("14.6 kB", "2.0 MB", "537 MB", text.ABSENT)
    ]


def test_text_is_folded_at_blanks() -> None:
    assert text.folded("→ one two three", 9) == "→ one two\n  three"
    assert text.folded("a-b-c-d e", 5) == "a-b-c-d\n  e"  # never within a name
    assert text.folded("long enough", None) == "long enough"


# The terminal itself


def on_a_terminal(bundle: Path, *arguments: str, **environment: str) -> str:
    """What compare.py prints on a terminal."""
    master, slave = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    command: list[str | Path] = [sys.executable, bundle / "runtime/compare.py", *arguments]
    running = subprocess.Popen(
        command, stdout=slave, stderr=subprocess.DEVNULL, env=kept | {"TERM": "xterm"} | environment
    )
    os.close(slave)
    found = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        found += piece
    os.close(master)
    assert running.wait(60) == 0
    return found.decode()


@pytest.mark.release
def test_colours_are_for_terminals_and_not_for_those_who_do_not_want_them(bundle_copy: Path) -> None:
    reseal(bundle_copy, notice="look here")
    named = ("--variants", "baseline,scaled")
    notice = f"\x1b[{console.YELLOW}m!! look here\x1b[0m"
    assert "\x1b[" not in compare(*QUICK, *named, bundle=bundle_copy).stdout
    assert notice in on_a_terminal(bundle_copy, *QUICK, *named)
    assert "\x1b[" not in on_a_terminal(bundle_copy, *QUICK, *named, NO_COLOR="1")
    coloured = console.in_colours("★ a is recommended\na   1\nab  2\n!! b\n✗ c: d", "a")
    green, yellow, red = (f"\x1b[{code}m" for code in (console.GREEN, console.YELLOW, console.RED))
    assert coloured.split("\n") == [
        f"{green}★ a is recommended\x1b[0m",
        f"{green}a   1\x1b[0m",
        "ab  2",
        f"{yellow}!! b\x1b[0m",
        f"{red}✗ c: d\x1b[0m",
    ]


@pytest.mark.release
@pytest.mark.parametrize("columns", [80, 120])
def test_a_whole_run_fits(columns: int, bundle_folder: Path, tmp_path: Path) -> None:
    done = compare(*QUICK, bundle=bundle_folder, COLUMNS=str(columns))
    assert done.returncode == 0
    assert [line for line in done.stdout.split("\n") if text.printed_width(line) > columns] == []
    wide: Any = compare(*QUICK, "--wide", bundle=bundle_folder, COLUMNS=str(columns))
    assert max(map(len, wide.stdout.split("\n"))) > columns
    assert "anon MB" in wide.stdout


def test_a_live_run_fits(bundle_copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a-folder-with-a-name-that-makes-a-line-very-long"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    reseal(bundle_copy, notice="a notice that is longer than one line of a terminal is folded, too " * 2)
    given = ("--live", "baseline", "--source", str(folder), "--fps", "20", "--frames", "30", "--every", "0.5")
    shown = on_a_terminal(bundle_copy, *given, COLUMNS="80").replace("\r", "").split("\n")
    assert [line for line in shown if text.printed_width(line) > 80] == []
    status = [line for line in shown if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert status
    assert all(re.search(r" frames/s ", line) and re.search(r" \d+ %", line) for line in status)
    assert any(line.startswith("Rate ") for line in shown)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((0.2, "0 s"), (89, "89 s"), (90, "2 min"), (719, "12 min"), (3569, "59 min"), (3571, "1 h 00 min")),
        (11_100, "3 h 05 min"),
    ],
)
def test_a_time_is_said_as_one_says_it(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said
