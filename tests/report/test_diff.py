"""Results side by side: changes by hand, devices always named, and files that are no results."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from launch import compare
from rows import a_result, a_row

from vgg_export.cli import main
from vgg_runtime import text
from vgg_runtime.report import diff
from vgg_runtime.result import Recommendation, Result


@pytest.fixture(scope="module")
def result(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("across") / "a.json"
    done = compare("--budget", "0.3", "--rounds", "1", "--json", path, bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def changed(result: dict[str, Any]) -> dict[str, Any]:
    """The baseline twice as fast, the quantized one gone, on another board."""
    other = copy.deepcopy(result)
    other["device"] |= {"board": "Raspberry Pi 5 Model B", "threads": 4}
    other["variants"][0]["p50_ms"] /= 2
    other["variants"][0]["marks"] = ["held back (throttled) in every round"]
    del other["variants"][1]
    other["variants"][1] |= {"error": "did not fit", "p50_ms": None, "size_bytes": 1}
    return other


def test_a_change_is_in_per_cent_and_small_ones_have_no_arrow() -> None:
    assert [diff.change(10, after) for after in (10, 10.9, 12, 8)] == ["+0 %", "+9 %", "+20 % ▲", "-20 % ▼"]
    assert diff.change(None, 1) == diff.change(1, None) == text.ABSENT


def test_the_difference_of_two_results(
    result: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, content in zip(paths, (result, changed), strict=True):
        path.write_text(json.dumps(content))
    done = compare("--diff", *paths)
    assert done.returncode == 0, done.stderr
    rows = {
        line.split()[0]: line
        for line in done.stdout.splitlines()
        if line and line.split()[0] in ("baseline", "quantized", "scaled")
    }
    assert "-50 % ▼" in rows["baseline"]
    assert rows["quantized"].count("–") == 6
    assert "A  " + diff.device_words(Result.from_json(result)) in done.stdout
    assert "Raspberry Pi 5 Model B" in done.stdout
    assert "These are different boards" in done.stdout
    assert "B ! baseline: held back (throttled) in every round" in done.stdout
    assert "B ✗ scaled: did not fit" in done.stdout
    assert "scaled is another model" in done.stdout
    noted = copy.deepcopy(result)
    noted["bundle"] |= {"unchecked": "NOT CHECKED: no labels", "problem": "right on 5 %"}
    before, after = Result.from_json(result), Result.from_json(noted)
    for shown, letter in ((diff.diff(before, after), "B"), (diff.boards([before, after]), "[2]")):
        assert f"{letter} !! NOT CHECKED: no labels\n{letter} !! right on 5 %" in shown
    same = diff.diff(before, before)
    assert "different" not in same
    assert "▲" not in same


def test_several_boards_in_one_table(result: dict[str, Any], changed: dict[str, Any]) -> None:
    text = diff.boards([Result.from_json(result), Result.from_json(changed)])
    assert "2  Raspberry Pi 5 Model B" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("baseline")]
    assert float(row[1].rstrip("!")) == pytest.approx(result["variants"][0]["p50_ms"], abs=0.051)
    assert float(row[4].rstrip("!")) == pytest.approx(changed["variants"][0]["p50_ms"], abs=0.051)
    assert row[4].endswith("!")


def test_each_board_names_what_it_recommends() -> None:
    rows = (a_row("baseline", p50_ms=9.0), a_row("compact", p50_ms=1.0))
    chosen = a_result(
        *rows, recommended=Recommendation("compact", 1.0, "the search's choice", "0.5 points lost")
    )
    nothing = a_result(*rows, recommended=Recommendation(None, 1.0, "40 test images are too few"))
    older = a_result(*rows)
    text = diff.boards([chosen, older, nothing])
    assert [line for line in text.splitlines() if "ecommended" in line or "points lost" in line] == [
        "[1] ★ compact is recommended: 1.0 ms a picture (9.0x faster), 4.0 MB; 0.5 points lost.",
        "[3] None is recommended: 40 test images are too few.",
    ]
    assert "[1] It is the search's choice." in text.splitlines()


def test_a_result_cannot_steer_the_terminal(result: dict[str, Any]) -> None:
    foreign = copy.deepcopy(result) | {"measured_at": "\x1b[31mnow"}
    foreign["variants"][0] |= {"variant": "\x1b]0;title\x07", "error": "\x1b[2J"}
    read = Result.from_json(foreign)
    for shown in (
        diff.diff(read, read),
        diff.diff(Result.from_json(result), read),
        diff.boards([read, read]),
    ):
        assert all(line.isprintable() for line in shown.split("\n"))
        assert "·[31mnow" in shown


@pytest.mark.parametrize(
    ("content", "said"), [("", "cannot be read"), ("[1]", "is no result"), ('{"schema": 1}', "is no result")]
)
def test_what_is_no_result_is_said(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert main(["report", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_a_newer_schema_is_refused(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(result | {"schema": 99}))
    assert main(["report", str(path)]) == 2
    assert "schema 99" in capsys.readouterr().err
