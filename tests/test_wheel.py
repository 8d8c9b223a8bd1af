"""The built wheel, installed where the checkout is not."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import CLASSES, ROOT, small_checkpoint

from vgg_export.network import checkpoint as checkpoints
from vgg_runtime import __version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools writes beside what it builds, and two processes may build at once
    source.mkdir()
    for name in ("export", "runtime", "calibration", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--wheel-dir",
        folder,
        source,
    ]
    subprocess.run(command, check=True, timeout=500)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.release
def test_it_holds_the_three_packages_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"vgg_export-{__version__}-py3-none-any.whl"
    assert {n.split("/")[0] for n in names} == {
        "vgg_export",
        "vgg_runtime",
        "vgg_calibration",
        f"vgg_export-{__version__}.dist-info",
    }
    for needed in (
        "vgg_export/assets/demo_vgg19.safetensors",
        "vgg_export/assets/demo_vgg19.json",
        "vgg_export/assets/imagenet_wnids.txt",
        "vgg_export/py.typed",
        "vgg_runtime/py.typed",
        "vgg_calibration/py.typed",
        "vgg_runtime/launcher/compare.py",
        "vgg_runtime/launcher/requirements.txt",
        "vgg_calibration/images/cat.jpg",
        "vgg_calibration/images/SOURCES.md",
    ):
        assert needed in names


@pytest.mark.release
def test_the_installed_wheel_makes_a_bundle_that_runs(
    wheel: Path, signs_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel],
        check=True,
        timeout=500,
    )
    checkpoints.save(small_checkpoint(), tmp_path / "own.safetensors")
    # -P and the path below keep the checkout and an editable install out
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import vgg_export; assert"
        f" vgg_export.__file__.startswith({str(target)!r})\n"
    )
    code += "from vgg_export.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [
        "all",
        "--weights",
        "own.safetensors",
        "--data",
        str(signs_folder),
        "--variants",
        "quantized",
        "--output",
        "out",
        "--accept-accuracy",
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/runtime/compare.py").read_bytes() == (ROOT / "runtime/compare.py").read_bytes()
    assert set((tmp_path / "out/labels.txt").read_text().splitlines()) == set(CLASSES)
    weights = json.loads((tmp_path / "out/manifest.json").read_text())["weights"]
    assert weights["what"] == "small vgg11 for tests"
    calibrated = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            code,
            "quantize",
            "--model",
            ".out.work/checkpoint+export.onnx",
            "--data",
            "none",
            "--output",
            "q.onnx",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert calibrated.returncode == 0, calibrated.stderr  # with the sample photographs inside the wheel
    assert (tmp_path / "q.onnx").stat().st_size > 10_000
