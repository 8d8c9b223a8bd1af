"""The rules of the house, read off the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, command_environment

EXPORT, RUNTIME, CALIBRATION = (
    ROOT / "export/vgg_export",
    ROOT / "runtime/vgg_runtime",
    ROOT / "calibration/vgg_calibration",
)
STAGES = ("prune", "factorise", "finetune", "fold", "to_onnx", "winograd", "quantize", "evaluate", "bundle")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, absolute: ``from . import a`` in vgg_export is
    ``vgg_export.a``."""
    package = path.parent.name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                f"{package}.{node.module}"
                if node.level and node.module
                else package
                if node.level
                else node.module or ""
            )
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def top(names: Iterator[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "path", [*sorted(RUNTIME.glob("*.py")), ROOT / "runtime/compare.py"], ids=lambda p: p.name
)
def test_the_runtime_imports_only_what_a_board_has(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "PIL", "onnxruntime", "vgg_runtime"}
    extra = top(imports(path)) - allowed
    assert extra <= {"patience.py": {"uvicorn"}, "sources.py": {"picamera2"}}.get(path.name, set())


def test_the_optional_packages_are_not_needed_to_import_anything() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = sys.modules['picamera2'] = None;"
        "import vgg_runtime.web.app, vgg_runtime.web.http_server, vgg_runtime.report.page,"
        " vgg_runtime.live.stream,"
        " vgg_runtime.live.sources, vgg_runtime.compare"
    )
    subprocess.run([sys.executable, "-c", code], env=command_environment(), check=True)


@pytest.mark.parametrize("path", sorted(CALIBRATION.glob("*.py")), ids=lambda p: p.name)
def test_calibration_knows_the_runtime_but_not_the_exporter(path: Path) -> None:
    assert not top(imports(path)) & {"torch", "torchvision", "vgg_export", "click"}


@pytest.mark.parametrize(
    "name",
    [
        "quantize",
        "trial",
        "integer",
        "equalize",
        "winograd",
        "winograd_cost",
        "cook_toom",
        "bundle",
        "evaluate",
        "graph",
        "storage",
        "stage",
    ],
)
def test_these_stages_do_not_import_torch(name: str) -> None:
    assert not top(imports(EXPORT / f"{name}.py")) & {"torch", "torchvision"}


@pytest.mark.parametrize("path", sorted(EXPORT.glob("*.py")), ids=lambda p: p.name)
def test_only_the_command_line_uses_click_or_prints(path: Path) -> None:
    if path.name == "cli.py":
        return
    assert "click" not in top(imports(path))
    calls = [
        n.func.id
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    assert "print" not in calls
    assert "exit" not in calls


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_does_not_import_another_stage(name: str) -> None:
    others = {f"vgg_export.{other}" for other in (*STAGES, "pipeline", "cli") if other != name}
    assert not set(imports(EXPORT / f"{name}.py")) & others


def test_what_is_sent_to_a_board_as_text_needs_nothing_there() -> None:
    assert top(imports(EXPORT / "on_board.py")) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", ["deploy", "ssh", "transfer", "board", "wheels"])
def test_deploying_takes_no_torch(name: str) -> None:
    assert not top(imports(EXPORT / f"{name}.py")) & {"torch", "torchvision", "onnx"}
    assert not set(imports(EXPORT / f"{name}.py")) & {
        "vgg_export.pipeline",
        "vgg_export.cli",
        *(f"vgg_export.{s}" for s in STAGES),
    }


def test_preprocessing_exists_once() -> None:
    resizing = []
    for folder in (EXPORT, RUNTIME, CALIBRATION):
        for path in folder.glob("*.py"):
            text = path.read_text()
            if "Resampling.BILINEAR" in text and ".crop(" in text:
                resizing.append(path.name)
    assert resizing == ["preprocess.py"]


def test_these_checks_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "vgg_runtime" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("def f():\n    import torch.nn\n    from . import prune\n    from .fold import x\n")
    assert set(imports(bad)) == {
        "torch.nn",
        "vgg_runtime",
        "vgg_runtime.prune",
        "vgg_runtime.fold",
        "vgg_runtime.fold.x",
    }


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; sys.argv=['vgg-export','--help']; from vgg_export.cli import main; main();"
        " sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "quantize" in done.stdout
