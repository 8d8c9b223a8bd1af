"""Results side by side: changes by hand, devices always named, and files that are no results."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import compare
from rows import a_result, a_row

from vgg_export.cli import main
from vgg_runtime import text
from vgg_runtime.errors import RuntimeInputError
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


def fields(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every field and of the first two items of every list."""
    yield path
    if isinstance(document, dict | list):
        pairs = document.items() if isinstance(document, dict) else enumerate(document[:2])
        for key, value in pairs:
            yield from fields(value, (*path, key))


WRONG: tuple[Any, ...] = (None, True, -1, 1e300, "", "x\x1b[31m", [], [[]], {}, {"a": None})


def test_every_field_of_a_result_is_checked_where_it_is_read(result: dict[str, Any], tmp_path: Path) -> None:
    """A wrong value anywhere is a sentence with the path of the field, or a table."""
    path, refused = tmp_path / "x.json", 0
    document = copy.deepcopy(result) | {"variants": [copy.deepcopy(result["variants"][0])], "images": []}
    row = document["variants"][0]
    row |= {"samples_ms": [1.0], "rounds": row["rounds"][:1], "predictions": row["predictions"][:1]}
    row["rounds"][0]["samples_ms"] = [1.0]
    whole = Result.from_json(document)
    for where in list(filter(None, fields(document))):
        *above, last = where
        inside: Any = document
        for key in above:
            inside = inside[key]
        right = inside[last]
        for wrong in WRONG:
            inside[last] = wrong
            path.write_text(json.dumps(document))
            inside[last] = right
            try:
                found = diff.read(path)
            except RuntimeInputError as caught:
                said = str(caught)
                found = None
            if found is None:
                refused += 1
                name = next(key for key in reversed(where) if isinstance(key, str))
                assert name in said, (where, wrong)
                assert "\x1b" not in said
                continue
            for shown in (diff.diff(found, whole), diff.boards([whole, found])):
                assert all(line.isprintable() for line in shown.split("\n"))
    assert refused > 1000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"schema":1,"device":{},"bundle":{},"variants":[]}',
            "is no result (measured_at: expected a text, found nothing)",
        ),
        ("[" * 100_000, "it holds no JSON text"),
        ('{"schema": ' + "9" * 5000 + "}", "it holds no JSON text"),
        ("\ufeff{}", "it holds no JSON text"),
        ("\0", "it holds no JSON text"),
        ("null", "is no result (expected an object, found null)"),
        (
            '{"schema": 1, "schema": [], "device":{},"bundle":{},"variants":[]}',
            "it holds no JSON text",
        ),
        ('{"schema": 1, "p50_ms": NaN}', "NaN is no number of JSON"),
        ('{"schema": 1, "p50_ms": 1e999}', "it holds no JSON text"),
        ('{"schema": 1, "p90_ms": 1' + 400 * "0" + "}", "a number has 401 digits"),
    ],
)
def test_a_damaged_document_is_a_sentence(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(RuntimeInputError) as error:
        diff.read(tmp_path / "x.json")
    assert said in str(error.value)


def test_what_the_outputs_mean_is_one_of_three(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(result | {"bundle": result["bundle"] | {"output": "logits"}}))
    done = compare("--diff", tmp_path / "x.json", tmp_path / "x.json")
    assert done.returncode == 2
    expected = "bundle.output: expected one of softmax, sigmoid, multi-label, found 'logits'"
    assert expected in done.stderr


def test_a_newer_schema_is_refused(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(result | {"schema": 99}))
    assert main(["report", str(path)]) == 2
    assert "schema 99" in capsys.readouterr().err
