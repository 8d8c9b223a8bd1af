"""A folder with one variant, written by the exporter and by the device, and run as a stranger would."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from launch import compare

from vgg_runtime import Classifier
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle import manifest
from vgg_runtime.classify import ship
from vgg_runtime.errors import RuntimeInputError

PHOTO = ROOT / "calibration/images/cat.jpg"
Run = Callable[..., subprocess.CompletedProcess[str]]


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, folder / "runtime/classify.py", *arguments],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_folder_says_what_the_bundle_says(
    bundle_folder: Path, in_this_process: Run, tmp_path: Path
) -> None:
    done = in_this_process(
        "ship", "--bundle", bundle_folder, "--variant", "quantized", "--target", "x86-vnni", "--output", "app"
    )
    assert done.returncode == 0, done.stderr
    app = (tmp_path / "app").rename(tmp_path / "somewhere else")
    with Classifier(bundle_folder, "quantized") as whole:
        expected = whole.classify(PHOTO)
    answer = run(app, "--json", PHOTO)
    assert answer.returncode == 0, answer.stderr
    (line,) = answer.stdout.splitlines()
    said = json.loads(line)["predictions"]
    assert [one["label"] for one in said] == [one.label for one in expected]
    assert [one["probability"] for one in said] == pytest.approx(
        [one.probability for one in expected], abs=1e-6
    )
    written = manifest.read(app)
    assert [variant.id for variant in written.variants] == ["quantized"]
    assert [build.id for build in written.variants[0].builds] == ["quantized"]
    listed = {manifest.FILE_NAME, *(entry.path for entry in written.all_files())}
    assert {p.relative_to(app).as_posix() for p in app.rglob("*") if p.is_file()} - listed == {
        p.relative_to(app).as_posix() for p in app.rglob("*.pyc")
    }
    manifest.verify(app, written.all_files())
    with np.load(app / "expected.npz") as archive:
        assert set(archive.files) == {"input_224", "logits_quantized"}
    assert len((app / "README.md").read_text().splitlines()) <= 12
    size = sum(entry.bytes for entry in written.all_files()) + (app / manifest.FILE_NAME).stat().st_size
    assert (
        f"{size / 1e6:.1f} MB, of which the model takes {written.variants[0].build.bytes / 1e6:.1f} MB"
        in (done.stdout)
    )


def test_the_build_is_that_of_the_core(bundle_folder: Path, in_this_process: Run, tmp_path: Path) -> None:
    named = ("--bundle", bundle_folder, "--variant", "quantized", "--target", "pi5")
    assert in_this_process("ship", *named, "--output", "app").returncode == 0
    (build,) = manifest.read(tmp_path / "app").variants[0].builds
    assert build.id == "quantized.pi5"


def test_a_core_that_the_bundle_was_not_made_for_is_said(
    bundle_folder: Path, in_this_process: Run, tmp_path: Path
) -> None:
    known = {
        target
        for build in manifest.read(bundle_folder).variant("quantized").builds
        for target in build.targets
    }
    other = next(name for name in TARGETS if name not in known)
    named = ("--bundle", bundle_folder, "--variant", "quantized", "--output", "app")
    done = in_this_process("ship", *named, "--target", other)
    assert done.returncode == 0
    assert f"the bundle has no quantized for {other}; what is shipped was made for" in done.stderr
    quiet = in_this_process("ship", *named[:-1], "own", "--target", sorted(known)[0])
    assert "has no quantized" not in quiet.stderr


def test_a_zip_file_is_the_same_twice(bundle_folder: Path, in_this_process: Run, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        done = in_this_process("ship", "--bundle", bundle_folder, "--variant", "scaled", "--output", name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert f" MB in a file of {(tmp_path / 'one.zip').stat().st_size / 1e6:.1f} MB, of" in done.stdout
    with zipfile.ZipFile(tmp_path / "one.zip") as packed:
        packed.extractall(tmp_path / "app")
    assert run(tmp_path / "app", PHOTO).returncode == 0


def test_the_device_ships_too(bundle_folder: Path, tmp_path: Path) -> None:
    done = compare("--ship", tmp_path / "app", "--variants", "scaled", bundle=bundle_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert run(tmp_path / "app", PHOTO).returncode == 0
    again = compare("--ship", tmp_path / "app", "--variants", "scaled", bundle=bundle_folder)
    assert again.returncode == 2
    assert "exists already; remove it" in again.stderr
    two = compare("--ship", tmp_path / "b", "--variants", "scaled,baseline", bundle=bundle_folder)
    assert "--ship takes one variant, found 2" in two.stderr
    measured = compare("--ship", tmp_path / "b", "--top5", bundle=bundle_folder)
    assert "--top5 does not go with --ship" in measured.stderr
    assert not (tmp_path / "b").exists()


def test_compare_and_the_doctor_run_in_the_folder(bundle_folder: Path, tmp_path: Path) -> None:
    compare("--ship", tmp_path / "app", "--variants", "scaled", bundle=bundle_folder)
    done = compare("--image", PHOTO, "--budget", "0.2", "--rounds", "1", bundle=tmp_path / "app")
    assert done.returncode == 0, done.stderr
    alone = "None is recommended: this bundle holds one variant, so there is nothing to compare it with.\n"
    assert done.stdout.startswith(alone)
    table = next(line for line in done.stdout.split("\n") if line.startswith("scaled  "))
    assert "1.0x" not in table
    assert "100.0" not in table  # that it agrees with itself
    told = compare("--doctor", "--json", tmp_path / "d.json", bundle=tmp_path / "app")
    assert "Error" not in told.stderr
    checks = {
        check["check"]: check["mark"] for check in json.loads((tmp_path / "d.json").read_text())["checks"]
    }
    assert [name for name, mark in checks.items() if mark == "fails"] == []
    assert checks["hashes"] == "ok"


def test_a_damaged_bundle_is_not_shipped(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "labels.txt").write_text("other\n")
    done = compare("--ship", tmp_path / "app", "--variants", "scaled", "--bundle", bundle_copy)
    assert done.returncode == 2
    assert "labels.txt differs from the manifest" in done.stderr
    assert not (tmp_path / "app").exists()
    assert list(tmp_path.glob(".app*")) == []


def test_an_older_bundle_cannot_be_shipped(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "runtime/classify.py").unlink()
    path = bundle_copy / manifest.FILE_NAME
    document = json.loads(path.read_text())
    document["files"] = [entry for entry in document["files"] if entry["path"] != "runtime/classify.py"]
    path.write_text(json.dumps(manifest.seal(document)))
    done = compare("--ship", tmp_path / "app", "--variants", "scaled", "--bundle", bundle_copy)
    assert "the runtime of this bundle has no runtime/classify.py" in done.stderr


def test_where_nothing_can_be_written(bundle_folder: Path, tmp_path: Path) -> None:
    done = compare("--ship", tmp_path / "no/where", "--variants", "scaled", bundle=bundle_folder)
    assert (done.returncode, "there is no folder" in done.stderr) == (2, True)


def test_python_belongs_to_wheels(in_this_process: Run) -> None:
    assert "--python belongs to --wheels" in in_this_process("ship", "--python", "3.13").stderr
    assert "found '2.7'" in in_this_process("ship", "--wheels", "--python", "2.7").stderr


@pytest.mark.release
def test_the_boards_packages_come_along(bundle_folder: Path, in_this_process: Run, tmp_path: Path) -> None:
    work = tmp_path / "copied"
    shutil.copytree(bundle_folder, work / "artifacts")
    done = in_this_process(
        *("ship", "--bundle", work / "artifacts", "--variant", "scaled", "--target", "pi4"),
        *("--wheels", "--python", "3.13", "--output", "app"),
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "app/wheels").iterdir())
    for package in ("numpy", "onnxruntime", "pillow"):
        assert any(name.startswith(package) and "cp313" in name and "aarch64" in name for name in names)
    told = (tmp_path / "app/README.md").read_text()
    assert "--no-index -f wheels -r runtime/requirements-locked.txt" in told
    assert "Needs Python 3.13 on 64-bit Linux (aarch64); for others leave out" in told


def test_a_folder_that_is_there_and_empty_is_filled(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    assert compare("--ship", tmp_path / "app", "--variants", "scaled", bundle=bundle_folder).returncode == 0
    assert (tmp_path / "app" / manifest.FILE_NAME).is_file()
    with pytest.raises(RuntimeInputError, match="exists already"):
        ship._ensure_free(tmp_path / "app")
