"""``classify.py`` as a person runs it, on a copied bundle."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CLASSES, ROOT, reseal

PHOTO = ROOT / "calibration/images/cat.jpg"


def classify(
    bundle: Path, *arguments: str | Path, given: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the bundle's own ``classify.py``; never a traceback."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, bundle / "runtime/classify.py", *map(str, arguments)],
        cwd="/",
        env=environment,
        input=given or b"",
        capture_output=True,
        timeout=120,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in out + err
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_line_per_picture(bundle_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos/deep"
    folder.mkdir(parents=True)
    shutil.copy(PHOTO, folder / "a.JPG")
    shutil.copy(PHOTO, folder / "b.heic")
    done = classify(bundle_folder, "--variant", "quantized", tmp_path / "photos", PHOTO)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{folder / 'a.JPG'}: ")
    name, _, share = second.removeprefix(f"{PHOTO}: ").removesuffix(" %").rpartition(" ")
    assert name in CLASSES
    assert 0 < float(share) <= 100
    assert "1 of 2 used: 1 with unknown suffix (.heic)" in done.stderr


def test_the_notices_of_a_bundle_are_said(bundle_copy: Path) -> None:
    reseal(bundle_copy, notice="DEMO WEIGHTS", problem="does not understand its pictures")
    done = classify(bundle_copy, "--variant", "baseline", PHOTO, "--json")
    said = [line for line in done.stderr.splitlines() if line.startswith("!! ")]
    assert said[:1] == ["!! DEMO WEIGHTS"]
    assert "!! does not understand its pictures" in said
    assert len(lines(done)) == 1


def test_a_closed_standard_error_loses_no_answer(bundle_folder: Path) -> None:
    script = f"{sys.executable} {bundle_folder}/runtime/classify.py --variant baseline {PHOTO} 2>&-"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{PHOTO}: ")


def test_empty_input_is_called_so(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "e.jpg").touch()
    done = classify(bundle_folder, "--variant", "baseline", "-", tmp_path / "e.jpg")
    assert done.returncode == 2
    first, second, _ = done.stderr.splitlines()
    words = "is empty, expected a picture; copy it again"
    assert first == f"Error: standard input: the file {words}"
    assert second == f"Error: {tmp_path / 'e.jpg'} {words}"


def test_json_lines_are_the_documented_contract(bundle_folder: Path) -> None:
    done = classify(bundle_folder, "--json", "--variant", "baseline", PHOTO, "-", given=PHOTO.read_bytes())
    assert done.returncode == 0
    first, second = lines(done)
    assert list(first) == ["schema", "file", "variant", "predictions", "prepare_ms", "model_ms", "error"]
    assert (first["schema"], first["file"], first["variant"], first["error"]) == (
        1,
        str(PHOTO),
        "baseline",
        None,
    )
    assert second["file"] == "-"
    said = first["predictions"]
    assert said == second["predictions"]
    assert isinstance(said, list)
    assert len(said) == 5
    assert all(list(one) == ["label", "probability", "index"] for one in said)
    assert [CLASSES[one["index"]] for one in said] == [one["label"] for one in said]


def test_what_cannot_be_read_is_a_line_and_an_exit_code(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    named = ("--variant", "baseline", "--top", "2", tmp_path / "bad.jpg", PHOTO)
    plain = classify(bundle_folder, *named)
    assert plain.returncode == 2
    assert len(plain.stdout.splitlines()) == 1
    assert "bad.jpg" in plain.stderr
    assert "1 of 2 pictures could not be read" in plain.stderr
    done = classify(bundle_folder, "--json", *named)
    assert done.returncode == 2
    bad, good = lines(done)
    assert (bad["predictions"], bad["model_ms"]) == ([], None)
    assert "bad.jpg" in str(bad["error"])
    assert len(good["predictions"]) == 2  # type: ignore[arg-type]


def test_without_pictures_it_takes_the_samples(bundle_folder: Path) -> None:
    done = classify(bundle_folder, "--json", "--variant", "scaled")
    assert done.returncode == 0
    assert len(lines(done)) == 8


def test_samples_that_are_not_the_manifests_are_refused(bundle_copy: Path) -> None:
    sample = next(iter(sorted((bundle_copy / "samples").iterdir())))
    size = sample.stat().st_size
    damages: list[tuple[Callable[[], object], str]] = [
        (
            lambda: sample.write_bytes(bytes(size)),
            f"differs from the manifest ({size} bytes, expected {size};",
        ),
        (lambda: os.mkfifo(sample), "is a folder, a pipe or a device, not a file; copy the bundle again"),
    ]
    for damage, said in damages:
        sample.unlink()
        damage()
        done = classify(bundle_copy, "--variant", "scaled")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{sample} {said}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "recommends no variant"),
        (("--variant", "none"), "there is no variant 'none'"),
        (("--variant", "baseline", "-", "-"), "name it once"),
        (("--variant", "baseline", "/nowhere.jpg"), "there is no file /nowhere.jpg"),
        (("--variant", "baseline", "--top", "0"), "expected at least 1, found 0"),
        (("--variant", "baseline", "--bundle", "/nowhere"), "there is no bundle in /nowhere"),
    ],
)
def test_unusable_input(bundle_folder: Path, arguments: tuple[str, ...], said: str) -> None:
    done = classify(bundle_folder, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_a_reader_that_ends_early_is_no_error_of_ours(bundle_folder: Path) -> None:
    command = f"{sys.executable} {bundle_folder / 'runtime/classify.py'} --json --variant scaled | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
