"""The device's command line, run as a user runs it, on a real bundle."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, ROOT, interruptible, reseal
from damage import rewrite
from launch import QUICK, compare
from PIL import Image

from vgg_export.data import splits
from vgg_runtime import text
from vgg_runtime.bundle import manifest, self_check
from vgg_runtime.classify.command import main as classify
from vgg_runtime.compare import main
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.measure import process, tuning


@pytest.fixture(scope="module")
def result(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("result") / "result.json"
    done = compare("--budget", "1", "--json", path, bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, object] = json.loads(path.read_text())
    loaded["stdout"] = done.stdout
    return loaded


def test_the_json_is_the_documented_contract(result: dict[str, Any], bundle_folder: Path) -> None:
    assert result["schema"] == 1
    assert {"device", "bundle", "images", "variants", "explanations"} <= result.keys()
    assert [row["variant"] for row in result["variants"]] == ["baseline", "quantized", "scaled"]
    keys = (
        "variant size_bytes load_ms first_ms p50_ms p90_ms runs samples_ms speedup peak_rss_bytes"
        " accuracy agreement predictions error"
    )
    for row in result["variants"]:
        assert set(keys.split()) <= row.keys()
        assert row["error"] is None
        assert row["size_bytes"] == sum(
            (bundle_folder / f"models/{row['variant']}.{end}").stat().st_size for end in ("onnx", "data")
        )
        assert row["runs"] == len(row["samples_ms"]) >= 5
        assert row["p50_ms"] == pytest.approx(float(np.median(row["samples_ms"])))
        assert (row["p90_ms"] is None) == (row["runs"] < 64)
        assert 20e6 < row["peak_rss_bytes"] < 400e6
        assert row["load_ms"] > 0
        assert len(row["predictions"]) == 8
        assert row["self_check_deviation"] < 1e-3
    baseline, _, scaled = result["variants"]
    assert baseline["speedup"] == 1.0
    assert scaled["speedup"] == pytest.approx(baseline["p50_ms"] / scaled["p50_ms"])
    device = result["device"]
    assert device["cores"] >= 1
    assert device["ram_bytes"] > 1e8
    assert device["onnxruntime"]


def test_agreement_and_accuracy_follow_from_the_predictions(result: dict[str, Any]) -> None:
    truths = [image["label"] for image in result["images"]]
    base = [p["labels"][0] for p in result["variants"][0]["predictions"]]
    for row in result["variants"]:
        said = [p["labels"][0] for p in row["predictions"]]
        assert row["accuracy"]["rate"] == sum(a == b for a, b in zip(said, truths, strict=True)) / 8
        assert row["agreement"]["rate"] == sum(a == b for a, b in zip(said, base, strict=True)) / 8
        for p in row["predictions"]:
            assert p["probabilities"] == sorted(p["probabilities"], reverse=True)
            assert len(p["classes"]) == 5


def test_predictions_are_those_of_the_files(result: dict[str, Any], bundle_folder: Path) -> None:
    import onnxruntime as ort

    from vgg_runtime.bundle.input_spec import for_input
    from vgg_runtime.bundle.preprocess import load

    session = ort.InferenceSession(bundle_folder / "models/baseline.onnx")
    for image, prediction in zip(result["images"], result["variants"][0]["predictions"], strict=True):
        logits = session.run(None, {"input": load(Path(image["file"]), for_input(224))[None]})[0][0]
        assert CLASSES[int(logits.argmax())] == prediction["labels"][0]


def test_the_terminal_shows_device_predictions_and_table(result: dict[str, Any]) -> None:
    text = result["stdout"]
    assert result["device"]["cpu"] in text
    for expected in (
        "P50 ms",
        "peak MB",
        "agrees",
        "quantized",
        "Measured at build time on 42 test images",
        "GMACs",
    ):
        assert expected in text
    explained = [f"→ {sentence}." for sentence in result["explanations"]]
    assert [line for line in text.splitlines() if line in explained] == explained
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("variant ") and "P50 ms" in line)
    assert [line.split()[0] for line in lines[first + 2 : first + 5]] == ["baseline", "quantized", "scaled"]
    assert len({len(line) for line in lines[first + 2 : first + 5]}) == 1  # aligned


def test_own_pictures_variants_threads_and_top5(bundle_folder: Path, tmp_path: Path) -> None:
    photo = ROOT / "calibration/images/cat.jpg"
    done = compare(
        "--image",
        photo,
        "--image",
        photo,
        "--variants",
        "scaled",
        "--threads",
        "1",
        "--top5",
        "--json",
        tmp_path / "r.json",
        *QUICK,
        bundle=bundle_folder,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads((tmp_path / "r.json").read_text())
    (row,) = loaded["variants"]
    # the baseline was not measured
    assert (row["speedup"], row["agreement"], row["accuracy"]) == (None, None, None)
    assert loaded["device"]["threads"] == 1
    assert len(row["predictions"]) == 2
    assert re.search(r"1\. +2\. +3\. +4\. +5\.", done.stdout)


def test_class_folders_give_an_accuracy(bundle_folder: Path, signs_folder: Path, tmp_path: Path) -> None:
    done = compare(
        "--images",
        signs_folder / "test",
        "--variants",
        "baseline",
        "--json",
        tmp_path / "r.json",
        *QUICK,
        bundle=bundle_folder,
    )
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((tmp_path / "r.json").read_text())["variants"][0]["accuracy"]
    evaluated = json.loads((bundle_folder / "manifest.json").read_text())["variants"][0]["builds"][0][
        "evaluation"
    ]["top1"]
    assert accuracy == evaluated  # the same pictures as at build time, the same answer


def test_folders_as_people_have_them(bundle_folder: Path, signs_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(signs_folder / "test", tmp_path / "images" / "signs"))
    (root / "stop" / ".DS_Store").write_bytes(b"x")
    (root / "stop" / "._0.jpg").write_bytes(b"x")
    (root / "stop" / "photo.heic").write_bytes(b"x")
    (root / "empty").mkdir()
    done = compare(
        *("--images", tmp_path / "images", "--variants", "baseline", "--json", tmp_path / "r.json", *QUICK),
        bundle=bundle_folder,
    )
    assert done.returncode == 0, done.stderr
    count = len(list((signs_folder / "test").rglob("*.*")))
    words = f"{count} of {count + 3} used: 1 with unknown suffix (.heic), 2 left by the system"
    assert f"{tmp_path / 'images'}: {words}" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["variants"][0]["accuracy"]["n"] == count


def test_in_the_checkout_it_finds_artifacts(bundle_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_folder, tmp_path / "artifacts")
    assert compare("--variants", "scaled", *QUICK, cwd=tmp_path).returncode == 0
    done = compare(*QUICK, cwd=tmp_path / "artifacts")
    assert done.returncode == 2
    assert "there is no bundle in artifacts" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--variants", "nope"), "there is no variant 'nope'; this bundle has baseline, quantized, scaled"),
        (("--variants", ","), "--variants names no variant"),
        (("--image", "nowhere.jpg"), "there is no file nowhere.jpg"),
        (("--images", "nowhere"), "there is no folder nowhere"),
        (("--threads", "0"), "expected 1 to 1024"),
        (("--budget", "-1"), "expected more than 0"),
        (("--json", "/nowhere/at/all.json"), "cannot be written"),
        (("--json", f"/tmp/{'x' * 300}/r.json"), "cannot be written"),
        (("--bundle", f"/tmp/{'x' * 300}"), "cannot be read"),
        (("--json", "/proc/x.json"), "cannot be written"),  # a folder that only looks writable
        (("--bundle", "nowhere"), "there is no bundle in nowhere"),
    ],
)
def test_unusable_input_is_one_sentence_and_code_2(
    arguments: tuple[str, ...], sentence: str, bundle_folder: Path, tmp_path: Path
) -> None:
    done = compare(*arguments, *QUICK, bundle=bundle_folder, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""


def test_bad_pictures_are_found_before_anything_is_measured(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    done = compare("--images", tmp_path, *QUICK, bundle=bundle_folder)
    assert done.returncode == 2
    assert "bad.jpg is not a picture" in done.stderr
    assert "1/3" not in done.stderr
    odd = tmp_path / "folders" / "moose"
    odd.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(odd / "a.png")
    done = compare("--images", tmp_path / "folders", *QUICK, bundle=bundle_folder)
    assert done.returncode == 2
    assert "moose" in done.stderr
    assert "roundabout" in done.stderr


def test_a_flipped_byte_and_a_missing_file_are_found(bundle_copy: Path) -> None:
    model = bundle_copy / "models/quantized.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    done = compare(*QUICK, bundle=bundle_copy)
    assert done.returncode == 2
    assert "quantized.onnx differs from the manifest" in done.stderr
    # what is not loaded is not needed
    assert compare("--variants", "baseline", *QUICK, bundle=bundle_copy).returncode == 0
    model.unlink()
    done = compare(*QUICK, bundle=bundle_copy)
    assert done.returncode == 2
    assert "quantized.onnx cannot be read" in done.stderr


def test_the_self_check_fails_on_other_outputs(bundle_copy: Path, tmp_path: Path) -> None:
    """Twice what is allowed of a precision, and half of it."""
    arrays = dict(np.load(bundle_copy / "expected.npz"))
    for name, kind, times in (("baseline", "fp32", 0.5), ("quantized", "int8", 2), ("scaled", "fp32", 2)):
        logits = arrays[self_check.logits_key(name)]
        off = times * self_check.TOLERANCE[kind] * (logits.max() - logits.min())
        arrays[self_check.logits_key(name)] = logits + off
    np.savez(tmp_path / "expected.npz", **arrays)
    rewrite(bundle_copy, "expected.npz", (tmp_path / "expected.npz").read_bytes())
    done = compare("--json", tmp_path / "r.json", *QUICK, bundle=bundle_copy)
    assert done.returncode == 1
    assert "scaled: self-check failed" in done.stdout
    assert "at most 0.1 allowed" in done.stdout
    assert "at most 0.001 allowed" in done.stdout
    rows = json.loads((tmp_path / "r.json").read_text())["variants"]
    assert [row["error"] is None for row in rows] == [True, False, False]


def test_a_variant_that_cannot_be_loaded_is_a_row_and_the_others_run(
    bundle_copy: Path, tmp_path: Path
) -> None:
    rewrite(bundle_copy, "models/baseline.onnx", b"not an onnx file")
    done = compare("--json", tmp_path / "r.json", *QUICK, bundle=bundle_copy)
    assert done.returncode == 1
    broken, quantized, _ = json.loads((tmp_path / "r.json").read_text())["variants"]
    assert broken["error"]
    assert (broken["p50_ms"], broken["peak_rss_bytes"], broken["runs"]) == (None, None, 0)
    assert quantized["p50_ms"] > 0
    assert (quantized["speedup"], quantized["agreement"]) == (None, None)


@pytest.mark.parametrize(
    ("code", "complaint", "expected"),
    [
        (-signal.SIGKILL, "", "did not fit"),
        (-signal.SIGILL, "", "1.21.0 does on a Pi 4"),
        (-signal.SIGSEGV, "x\nbad thing", "SIGSEGV: bad thing"),
        (3, "", "code 3: no error message"),
    ],
)
def test_how_a_child_died_is_explained(code: int, complaint: str, expected: str) -> None:
    assert expected in process.explain_death(code, complaint)


def test_a_killed_child_is_a_row(bundle_folder: Path, tmp_path: Path) -> None:
    """The first variant's process is killed as the system does when memory runs out; the others go on."""
    command = [sys.executable, str(bundle_folder / "runtime/compare.py"), "--budget", "2", "--rounds", "1"]
    command += ["--json", str(tmp_path / "r.json")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    victim = None
    while victim is None and running.poll() is None:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        victim = int(children[0]) if children else None
        time.sleep(0.02)
    assert victim is not None
    time.sleep(0.3)
    os.kill(victim, signal.SIGKILL)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 1, errors
    rows = json.loads((tmp_path / "r.json").read_text())["variants"]
    assert "did not fit" in rows[0]["error"]
    assert rows[1]["p50_ms"] > 0


def test_a_full_disk_behind_what_is_printed_loses_no_measurement(bundle_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(bundle_folder / "runtime/compare.py"), *QUICK, "--variants", "scaled"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--json", str(tmp_path / "r.json")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "Error: what is printed cannot be written (No space left on device)"
    assert json.loads((tmp_path / "r.json").read_text())["variants"][0]["p50_ms"] > 0


@pytest.mark.parametrize("piped", [True, False])
def test_a_result_can_go_where_the_table_goes(piped: bool, bundle_folder: Path, tmp_path: Path) -> None:
    given = (*QUICK, "--variants", "scaled", "--json", "/dev/stdout")
    command = [sys.executable, str(bundle_folder / "runtime/compare.py"), *given]
    if piped:
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        with (tmp_path / "out.txt").open("w") as file:
            subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, check=True)
        shown = (tmp_path / "out.txt").read_text()
    table, _, document = shown.partition("\n{")
    assert "scaled  " in table
    assert json.loads("{" + document)["variants"][0]["variant"] == "scaled"


def test_ctrl_c_while_it_starts_is_a_word(bundle_folder: Path) -> None:
    """It is sent while _start.py loads the program: an argument's import there waits for it."""
    script = (
        "import sys, os, signal; sys.path.insert(0, sys.argv[1]); import _start, importlib;"
        "importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGINT);"
        "_start.main_of('vgg_runtime.compare')"
    )
    command = [sys.executable, "-c", script, str(bundle_folder / "runtime")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=_heeds_ctrl_c
    )
    assert (done.returncode, done.stderr) == (130, "\nInterrupted.\n")


def _heeds_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_it_at_once(bundle_folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(bundle_folder / "runtime/compare.py"),
        "--budget",
        "60",
        "--json",
        str(tmp_path / "r.json"),
    ]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **interruptible()
    )
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("round 1/3, 1/3"):
            break
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)  # of the minutes that were asked for
    assert running.returncode == 130
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_random_weights_show_no_accuracy_or_agreement(bundle_copy: Path, tmp_path: Path) -> None:
    reseal(bundle_copy, figures_absent="random weights: nothing is known")
    done = compare("--json", tmp_path / "r.json", *QUICK, bundle=bundle_copy)
    assert done.returncode == 0
    assert done.stdout.count("random weights: nothing is known") == 2
    for row in json.loads((tmp_path / "r.json").read_text())["variants"]:
        assert (row["accuracy"], row["agreement"]) == (None, None)
        assert row["speedup"] > 0


@pytest.mark.parametrize(("folder", "part"), [("train", "fit"), ("val", "select")])
def test_pictures_that_were_fitted_or_selected_on_count_for_nothing(
    folder: str, part: str, bundle_folder: Path, splits: splits.Splits, signs_folder: Path, tmp_path: Path
) -> None:
    arguments = (
        "--images",
        signs_folder / folder,
        "--variants",
        "baseline,scaled",
        "--json",
        tmp_path / "r.json",
        *QUICK,
    )
    done = compare(*arguments, bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["images"]) == len(getattr(splits, part)) > 10
    assert all(image["fitted"] for image in result["images"])
    assert all((row["accuracy"], row["agreement"]) == (None, None) for row in result["variants"])
    assert f"{len(result['images'])} of the pictures were used to calibrate or fit" in done.stdout


def test_a_terminal_without_utf8_gets_no_traceback(bundle_folder: Path) -> None:
    done = compare("--variants", "scaled", *QUICK, bundle=bundle_folder, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "scaled" in done.stdout


def test_labels_with_control_characters_are_shown_harmlessly() -> None:
    assert text.printable("a\x1b[31mb\nc") == "a·[31mb·c"
    assert text.printable("x" * 50) == "x" * 39 + "…"


def test_missing_requirements_are_one_sentence(bundle_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(bundle_folder / "runtime/compare.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is missing; run: " in done.stderr
    assert f"pip install -r {bundle_folder}/runtime/requirements.txt" in done.stderr
    assert "Traceback" not in done.stderr


# Pictures that cannot be read, places that cannot be written


@pytest.mark.parametrize(
    ("bad", "options", "code"), [(1, (), 0), (1, ("--strict",), 2), (2, (), 2), (0, ("--strict",), 0)]
)
def test_a_few_unreadable_pictures_are_left_out_and_told(
    bad: int, options: tuple[str, ...], code: int, bundle_folder: Path, tmp_path: Path
) -> None:
    """One of 30 is 3 %, two are more than the 5 % at which it is an error."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(30):
        path = folder / f"{k:02d}.png"
        Image.new("RGB", (32, 32), (8 * k, 9, 90)).save(path)
        if k < bad:
            path.write_bytes(path.read_bytes()[:60])
    named = ("--images", folder, "--variants", "scaled", "--json", tmp_path / "r.json")
    done = compare(*named, *options, *QUICK, bundle=bundle_folder)
    assert done.returncode == code, done.stderr
    if code:
        assert "00.png" in done.stderr
        assert ("1 more pictures cannot be read either" in done.stderr) == (bad == 2)
        return
    assert ("1 of 30 pictures cannot be read and are left out; the first: " in done.stderr) == bool(bad)
    shown = json.loads((tmp_path / "r.json").read_text())
    assert len(shown["images"]) == len(shown["variants"][0]["predictions"]) == 30 - bad


def test_it_works_without_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    child = process.Child("vgg_runtime.no_such_module")
    try:
        child.ask({})
        assert list(child.events(20)) == []
        assert "No module named" in (child.death() or "")
    finally:
        child.close()


def test_it_works_without_a_home_folder(monkeypatch: pytest.MonkeyPatch, bundle_folder: Path) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    assert tuning.for_here(manifest.read(bundle_folder), None).variants
    with pytest.raises(RuntimeInputError, match="this user has no home folder"):
        tuning.cache_file()


def test_names_from_a_bundle_cannot_steer_the_terminal(bundle_copy: Path) -> None:
    data = json.loads((bundle_copy / "manifest.json").read_text())
    data["notice"] = "\x1b[2Jgone"
    reseal(bundle_copy, **data)
    done = compare("--variants", "scaled", *QUICK, bundle=bundle_copy)
    assert done.returncode == 0, done.stderr
    assert "·[2Jgone" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "option", ["image", "images", "json", "html", "ship", "bundle", "source", "log", "mqtt-login"]
)
def test_an_empty_name_is_not_the_current_folder(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"--{option}", ""])
    assert ended.value.code == 2
    assert f"argument --{option}: expected a name, found an empty text" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["--\x1b[31m", "\x1b]0;x\x07", "--budget=\x1b[2J", "--memory=\x9b1m"])
def test_nothing_raw_of_what_was_typed_is_printed(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (main, classify):
        with pytest.raises(SystemExit):
            command(["--threads", "x" if command is classify else "0", typed])
        said = capsys.readouterr().err
        assert said.startswith("Error: ")
        assert said.endswith(f"; {command.__module__.split('.')[1]}.py --help lists the options\n")
        assert said.count("\n") == 1
        assert all(line.isprintable() for line in said.split("\n"))
