"""A copied bundle in a bare environment: only the device's requirements, no checkout, no torch."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT, ask, served, status_field

pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def device_python(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh virtual environment with the requirements of the bundle installed, checked
    by their hashes."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    locked = sys.version_info[:2] <= (3, 13)  # newer ones have no hashes yet
    requirements = bundle_folder / f"runtime/requirements{'-locked' if locked else ''}.txt"
    hashed = ["--require-hashes"] if locked else []
    command: list[str | Path] = [python, "-m", "pip", "install", "-q", *hashed, "-r", requirements]
    subprocess.run(command, check=True, timeout=500)
    return python


def test_there_is_no_torch(device_python: Path) -> None:
    for package in ("torch", "onnx", "vgg_runtime", "vgg_export"):
        done = subprocess.run(
            [device_python, "-c", f"import {package}"], capture_output=True, text=True, check=False, cwd="/"
        )
        assert done.returncode == 1
        assert f"No module named '{package}'" in done.stderr


def test_the_copy_runs_its_own_runtime(device_python: Path, bundle_copy: Path, tmp_path: Path) -> None:
    elsewhere = bundle_copy.rename(tmp_path / "somewhere else")
    launcher = elsewhere / "runtime/compare.py"
    command: list[str | Path] = [
        device_python,
        launcher,
        "--budget",
        "0.2",
        "--rounds",
        "1",
        "--json",
        tmp_path / "result.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=300)
    assert done.returncode == 0, done.stderr
    assert [row["error"] for row in json.loads((tmp_path / "result.json").read_text())["variants"]] == [
        None
    ] * 3
    code = (
        f"import sys; sys.path.insert(0, {str(launcher.parent)!r}); import vgg_runtime;"
        " print(vgg_runtime.__file__)"
    )
    found = subprocess.run(
        [device_python, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()
    assert Path(found).is_relative_to(elsewhere)


def test_the_copy_opens_the_page_with_the_web_requirements_alone(
    device_python: Path, bundle_copy: Path, tmp_path: Path
) -> None:
    elsewhere = bundle_copy.rename(tmp_path / "copied")
    web: list[str | Path] = [
        device_python,
        "-m",
        "pip",
        "install",
        "-q",
        "-r",
        elsewhere / "runtime/requirements-web.txt",
    ]
    subprocess.run(web, check=True, timeout=300)
    with served(elsewhere, python=device_python) as (port, running):
        assert ask(port, "GET", "/")[0] == 200
        status, content, _ = ask(
            port, "POST", "/api/compare", (ROOT / "calibration/images/cat.jpg").read_bytes()
        )
        assert status == 200
        rows = json.loads(content.splitlines()[-1])["result"]["variants"]
        assert [(row["variant"], row["error"]) for row in rows] == [
            ("baseline", None),
            ("quantized", None),
            ("scaled", None),
        ]
        assert status_field(running.pid, "VmHWM") <= 60_000_000  # the server itself, after an upload


def test_even_with_the_project_installed_the_copy_is_what_runs(bundle_copy: Path) -> None:
    """An editable install must not hide a broken copy."""
    (bundle_copy / "runtime/vgg_runtime/report/tables.py").write_text(
        "raise SystemExit('this is the copy')\n"
    )
    done = subprocess.run(
        [sys.executable, bundle_copy / "runtime/compare.py"], capture_output=True, text=True, check=False
    )
    assert "this is the copy" in done.stderr


def test_the_child_is_the_copys_too(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "runtime/vgg_runtime/measure/worker.py").write_text(
        "raise SystemExit('the child is the copy')\n"
    )
    command: list[str | Path] = [
        sys.executable,
        bundle_copy / "runtime/compare.py",
        "--json",
        tmp_path / "r.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the child is the copy" in json.loads((tmp_path / "r.json").read_text())["variants"][0]["error"]


def test_importing_torch_on_the_device_would_be_noticed(bundle_copy: Path, tmp_path: Path) -> None:
    """In a process in which importing torch fails, everything works; and the trap itself works."""
    trap = tmp_path / "trap"
    for package in ("torch", "torchvision", "onnx", "click", "safetensors"):
        (trap / package).mkdir(parents=True)
        (trap / package / "__init__.py").write_text(
            "raise SystemExit('imported what a board does not have')\n"
        )
    code = (
        f"import sys; sys.path.insert(0, {str(trap)!r}); sys.path.insert(0,"
        f" {str(bundle_copy / 'runtime')!r})\n"
    )
    run = (
        "import vgg_runtime.measure.worker, vgg_runtime.bundle.self_check\nfrom vgg_runtime.compare"
        " import main\n"
    )
    run += "sys.exit(main(['--budget', '0.1', '--rounds', '1']))"
    done = subprocess.run(
        [sys.executable, "-c", code + run], capture_output=True, text=True, check=False, cwd=bundle_copy
    )
    assert done.returncode == 0, done.stderr
    caught = subprocess.run(
        [sys.executable, "-c", code + "import torch"], capture_output=True, text=True, check=False
    )
    assert "imported what a board does not have" in caught.stderr
