"""The result document: read and written without a loss, and damaged ones, each with the path of its field."""

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import reseal
from fuzz import documents
from launch import compare
from rows import ABOUT, a_result, a_row

from vgg_export.cli import main as vgg_export
from vgg_runtime import result
from vgg_runtime.bundle import manifest
from vgg_runtime.compare import main as compare_py
from vgg_runtime.errors import BundleError
from vgg_runtime.live.document import Frames, Live, Running, Seen
from vgg_runtime.records import FieldError, Record
from vgg_runtime.report import diff
from vgg_runtime.result import Evaluation, Proportion, Result


@pytest.fixture(scope="module")
def document(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real one, with every list filled: threads tried, rounds, predictions, figures of the making."""
    path = tmp_path_factory.mktemp("result") / "r.json"
    done = compare(
        "--budget", "0.2", "--rounds", "1", "--threads", "auto", "--json", path, bundle=bundle_folder
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_real_document_comes_back_as_it_was(document: dict[str, Any]) -> None:
    again = Result.from_json(document).to_json()
    assert json.dumps(again) == json.dumps(document)  # and so do the order of its keys and its numbers
    assert Result.from_json(again) == Result.from_json(document)
    for row in document["variants"]:
        assert all(row[key] for key in ("thread_sweep", "rounds", "predictions", "built", "samples_ms"))


def test_a_document_in_pieces_is_the_one_as_a_whole(document: dict[str, Any]) -> None:
    found = Result.from_json(document)
    pieces = list(found.pieces())
    assert "".join(pieces) == json.dumps(document, indent=1)
    assert max(map(len, pieces)) < 500
    wrong = dataclasses.replace(found.variants[0], speedup=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(dataclasses.replace(found, variants=(wrong,)).pieces())


def test_keys_stand_where_they_stood_before(document: dict[str, Any]) -> None:
    assert [*document] == (
        ["schema", "measured_at", "device", "bundle", "images", "variants", "recommended", "explanations"]
    )
    assert [*document["device"]][-2:] == ["available_bytes", "target"]
    last = ["created_by", "baseline", "output", "top1_absent", "network"]
    assert [*document["bundle"]][-5:] == last
    assert [*document["variants"][0]][:3] == ["variant", "title", "description"]
    assert [*document["variants"][0]][-4:] == ["predictions", "built", "losses", "error"]
    assert [*document["variants"][0]["predictions"][0]] == ["classes", "probabilities", "labels"]


def test_the_keys_of_a_stream_begin_with_what_answers_it() -> None:
    names = [field.name for field in dataclasses.fields(Live)]
    own = [[field.name for field in dataclasses.fields(part)] for part in (Running, Seen)]
    assert names == [*own[0], *own[1], "reconnected", "last_break"]
    assert names[:3] == ["variant", "source", "ended"]
    assert [field.name for field in dataclasses.fields(Frames)][-1] == "left"


def test_what_was_added_later_may_be_missing_and_what_is_newer_is_passed_over(
    document: dict[str, Any],
) -> None:
    older = copy.deepcopy(document) | {"later": 1}
    del older["recommended"], older["explanations"]
    for key in ("governor", "available_bytes", "target"):
        del older["device"][key]
    for key in ("unchecked", "problem", "assumed", "baseline"):
        del older["bundle"][key]
    for row in older["variants"]:
        for key in ("marks", "rounds", "thread_sweep", "build", "losses", "memory_mode", "p99_ms"):
            del row[key]
        del row["built"]["chance"], row["built"]["loss_error_points"]
    found = Result.from_json(older)
    assert (found.recommended, found.explanations, found.device.governor) == (None, (), None)
    assert (found.bundle.notices, found.variants[0].marks, found.variants[0].losses) == ([], (), ())
    assert found.baseline is found.variants[0]


def test_the_baseline_is_the_one_the_bundle_names() -> None:
    rows = (a_row("quantized", speedup=1.0), a_row("mine", speedup=None, error="did not fit"))
    assert a_result(*rows).baseline is None
    assert a_result(*rows, bundle=dataclasses.replace(ABOUT, baseline="mine")).baseline is rows[1]


# Damage.

Document = dict[str, Any]


def at(*path: str | int, value: object) -> Callable[[Document], object]:
    """A document with something else in a place."""

    def damaged(document: Document) -> object:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return document

    return damaged


def without(*path: str | int) -> Callable[[Document], object]:
    def damaged(document: Document) -> object:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        return document

    return damaged


def instead(value: object) -> Callable[[Document], object]:
    return lambda document: value


V = "variants"
DAMAGE = [
    (instead({}), "schema: expected a whole number, found nothing"),
    (instead([]), "expected an object, found a list of 0"),
    (instead("text"), "expected an object, found 'text'"),
    (instead(None), "expected an object, found null"),
    (
        instead({"schema": 1, "device": {}, "bundle": {}, "variants": []}),
        "measured_at: expected a text, found nothing",
    ),
    (at("schema", value="1"), "schema: expected a whole number, found '1'"),
    (at("schema", value=True), "schema: expected a whole number, found true"),
    (at("schema", value=-1), "schema: expected a number from 1 to 1, found -1"),
    (at("measured_at", value=5), "measured_at: expected a text, found 5"),
    (at("device", value={}), "device.board: expected a text, found nothing"),
    (at("device", value=[]), "device: expected an object, found a list of 0"),
    (at("device", "threads", value=1.5), "device.threads: expected a whole number, found 1.5"),
    (
        at("device", "throttled", value="yes"),
        "device.throttled: expected a list or null, found 'yes'",
    ),
    (at("bundle", value=None), "bundle: expected an object, found null"),
    (without("bundle", "family"), "bundle.family: expected a text, found nothing"),
    (at("bundle", "assumed", value=[1]), "bundle.assumed[0]: expected a text, found 1"),
    (at("images", 1, value="a.jpg"), "images[1]: expected an object, found 'a.jpg'"),
    (at("images", 0, "fitted", value=0), "images[0].fitted: expected true or false, found 0"),
    (at(V, value={"a": 1}), "variants: expected a list, found an object"),
    (at(V, 0, value=[]), "variants[0]: expected an object, found a list of 0"),
    (without(V, 1, "variant"), "variants[1].variant: expected a text, found nothing"),
    (at(V, 2, "p50_ms", value="x"), "variants[2].p50_ms: expected a number or null, found 'x'"),
    (
        at(V, 2, "p50_ms", value=-0.5),
        "variants[2].p50_ms: expected a number that is not negative, found -0.5",
    ),
    (at(V, 0, "threads", value=-4), "variants[0].threads: expected a number that is not negative, found -4"),
    (
        at(V, 0, "size_bytes", value=2**63),
        "variants[0].size_bytes: expected a whole number below 2**63, found 9223372036854775808",
    ),
    (at(V, 2, "variant", value="baseline"), "variants: expected each variant once, found 'baseline'"),
    (at(V, 0, "size_bytes", value=False), "variants[0].size_bytes: expected a whole number, found false"),
    (at(V, 0, "marks", value="held"), "variants[0].marks: expected a list, found 'held'"),
    (at(V, 0, "error", value=["x"]), "variants[0].error: expected a text or null, found a list of 1"),
    (
        at(V, 0, "agreement", value={"rate": 1, "n": 8, "interval95": [0.5]}),
        "variants[0].agreement.interval95: expected a list of 2, found a list of 1",
    ),
    (at(V, 0, "agreement", value=0.5), "variants[0].agreement: expected an object or null, found 0.5"),
    (
        at(V, 0, "rounds", 0, "state", "during", value=None),
        "variants[0].rounds[0].state.during: expected an object, found null",
    ),
    (
        at(V, 0, "samples_ms", value=[1.0, None]),
        "variants[0].samples_ms[1]: expected a number, found null",
    ),
    (
        at(V, 0, "predictions", 3, "labels", 0, value=None),
        "variants[0].predictions[3].labels[0]: expected a text, found null",
    ),
    (
        at(V, 0, "predictions", 3, "labels", value=["cat"]),
        "variants[0].predictions[3].labels: expected 5 texts, as many as classes, found a list of 1",
    ),
    (
        at(V, 0, "predictions", 3, "probabilities", value=[]),
        "variants[0].predictions[3].probabilities: expected 5 numbers, as many as classes, found a list of 0",
    ),
    (at(V, 0, "built", "n", value="42"), "variants[0].built.n: expected a whole number, found '42'"),
    (
        at("recommended", "max_loss_points", value=None),
        "recommended.max_loss_points: expected a number, found null",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE, ids=[sentence for _, sentence in DAMAGE])
def test_a_damaged_document_is_one_sentence_with_the_path_of_its_field(
    damage: Callable[[Document], object],
    sentence: str,
    document: Document,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(document))
    bad.write_text(json.dumps(damage(copy.deepcopy(document))))
    assert vgg_export(["report", str(bad)]) == 2
    reported = capsys.readouterr()
    assert compare_py(["--diff", str(good), str(bad)]) == 2
    compared = capsys.readouterr()
    for said in (reported, compared):
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert f"{bad} is no result ({sentence}" in said.err
        assert said.err.endswith("); expected a file that 'compare.py --json' wrote\n")


def test_a_manifest_is_no_result(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle_folder / manifest.FILE_NAME
    assert vgg_export(["report", str(path)]) == 2
    assert (
        "manifest.json is no result (measured_at: expected a text, found nothing)" in capsys.readouterr().err
    )
    assert compare_py(["--diff", str(path), str(path)]) == 2
    assert "is no result (measured_at: " in capsys.readouterr().err
    nested = tmp_path / "deep.json"
    nested.write_text("[" * 100_000)
    assert vgg_export(["report", str(nested)]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evaluation": {"n": 5}}, r"builds\[0\]\.evaluation\.agreement: expected an object, found nothing"),
        ({"evaluation": []}, r"builds\[0\]\.evaluation: expected an object or null, found a list of 0"),
    ],
)
def test_figures_in_a_manifest_are_checked_too(
    changes: dict[str, object], sentence: str, bundle_copy: Path
) -> None:
    variants = json.loads((bundle_copy / manifest.FILE_NAME).read_text())["variants"]
    variants[1]["builds"][0] |= changes
    reseal(bundle_copy, variants=variants)
    with pytest.raises(
        BundleError, match=rf"is damaged \(variants\[1\]\.{sentence}\); copy the bundle again"
    ):
        manifest.read(bundle_copy)


def test_losses_in_a_manifest_are_checked_too(bundle_copy: Path) -> None:
    variants = json.loads((bundle_copy / manifest.FILE_NAME).read_text())["variants"]
    variants[2]["losses"] = [{"step": "removed", "agreement": "all"}]
    reseal(bundle_copy, variants=variants)
    with pytest.raises(BundleError, match=r"variants\[2\]\.losses\[0\]\.agreement: expected a number"):
        manifest.read(bundle_copy)


def test_a_manifest_comes_back_as_it_was(bundle_folder: Path) -> None:
    text = (bundle_folder / manifest.FILE_NAME).read_text(encoding="utf-8")
    assert json.dumps(manifest.read(bundle_folder).to_json()) == json.dumps(json.loads(text))


# Records.


def test_every_record_is_frozen_and_every_kind_of_field_can_be_read() -> None:
    records = [one for one in vars(result).values() if isinstance(one, type) and issubclass(one, Record)]
    assert len(records) > 15
    for record in records:
        with pytest.raises(FieldError, match="expected an object, found a list of 0"):
            record.from_json([])
    built = {"n": 5, "agreement": {"rate": 1, "n": 5, "interval95": [0.5, 1]}}
    found = Evaluation.from_json(built)
    assert found.agreement == Proportion(1, 5, (0.5, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.n = 6  # type: ignore[misc]


def test_a_long_value_is_cut_in_the_sentence() -> None:
    with pytest.raises(FieldError) as caught:
        Proportion.from_json({"rate": "x" * 100, "n": 1, "interval95": [0, 1]}, "a.b")
    assert str(caught.value) == f"a.b.rate: expected a number, found '{'x' * 38}…"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("variants.0.p50_ms", -5.0, "a number that is not negative"),
        ("variants.0.samples_ms", [1.0, -1.0], "a number that is not negative"),
        ("variants.0.size_bytes", -1, "a number that is not negative"),
        ("variants.0.threads", -3, "a number that is not negative"),
        ("device.cores", -1, "a number that is not negative"),
        ("variants.0.accuracy", {"rate": 5, "n": 9, "interval95": [0, 1]}, "a share between 0 and 1"),
        ("variants.0.accuracy", {"rate": 0.5, "n": 0, "interval95": [0, 1]}, "a number of pictures bet"),
        ("variants.0.accuracy", {"rate": 0.5, "n": 10**12, "interval95": [0, 1]}, "a number of pictures bet"),
        ("variants.0.accuracy", {"rate": 0.5, "n": 9, "interval95": [1, 0]}, "two ascending shares"),
        ("variants.0.accuracy", {"rate": 0.5, "n": 9, "interval95": [-1, 2]}, "two ascending shares"),
        ("variants.0.built.chance", 2, "a share between 0 and 1"),
        ("variants.0.built.chance", -1, "a share between 0 and 1"),
        ("schema", -1, "a number from 1 to 1"),
        ("schema", 0, "a number from 1 to 1"),
    ],
)
def test_a_figure_that_cannot_be_is_refused_with_its_path(path: str, value: object, expected: str) -> None:
    document = documents.measured()
    *way, last = path.split(".")
    place: Any = document
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
        if place is None:
            pytest.fail(f"{path}: the document has none")
    place[last] = value
    where = re.sub(r"\.(\d+)", r"[\1]", path)
    with pytest.raises(FieldError, match=rf"^{re.escape(where)}.*expected {expected}"):
        Result.from_json(document)


def test_a_variant_twice_is_refused_however_its_accents_are_written() -> None:
    document = documents.measured()
    for one, other in (("a", "a"), ("\u00e9", "e\u0301")):
        rows = [dict(document["variants"][0], variant=name) for name in (one, other)]
        with pytest.raises(FieldError, match="each variant once"):
            Result.from_json(document | {"variants": rows})


def test_both_sides_of_a_comparison_have_one_line_for_a_variant() -> None:
    sides = []
    for name in ("caf\u00e9", "cafe\u0301"):
        document = documents.measured()
        document["variants"][0]["variant"] = name
        document["variants"][1]["variant"] = "a\nb\x1b[31m"
        sides.append(Result.from_json(document))
    for shown in (diff.diff(sides[0], sides[1]), diff.boards(sides)):
        lines = [line for line in shown.splitlines() if line.startswith(("caf", "a·b"))]
        assert [line.split()[0] for line in lines] == ["caf\u00e9", "a·b·[31m"]
        assert all(line.split().count("10.0") == 4 for line in lines)  # P50 and peak of both
