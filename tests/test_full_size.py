"""The real size: 143.67 M parameters, 575 MB. Random weights, so there is nothing to say of accuracy."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command_environment

from vgg_runtime import manifest

pytestmark = pytest.mark.slow

PEAK_BYTES = 6_000_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    arguments = ["all", "--weights", "random", "--variants", "quantized,scaled", "--output", "big", "--no-compare"]
    command = [sys.executable, "-m", "vgg_export", *arguments]
    done = subprocess.run(command, cwd=folder, env=command_environment(), capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "big"


def test_the_sizes_are_the_known_ones_and_the_memory_is_bounded(made: Path) -> None:
    bundle = manifest.read(made)
    baseline, quantized, scaled = bundle.variants
    assert baseline.parameters == 143_667_240
    assert baseline.model.bytes == pytest.approx(575e6, rel=0.005)
    assert quantized.model.bytes <= 150e6
    assert scaled.model.bytes == pytest.approx(373e6, rel=0.005)
    assert bundle.figures_absent is not None
    assert all(v.evaluation is None and v.evaluation_absent == bundle.figures_absent for v in bundle.variants)
    # the largest child so far is the export above; ru_maxrss is in KiB on Linux
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= PEAK_BYTES


def test_the_graphs_hold_what_they_should(made: Path) -> None:
    work = made.parent / ".big.work"
    floating = {"Conv": 16, "Gemm": 3, "MaxPool": 5, "Relu": 18, "Reshape": 1}
    for name in ("checkpoint+export", "checkpoint+fold+export"):
        assert json.loads((work / f"{name}.onnx.json").read_text())["measured"]["ops"] == floating
    integer = json.loads((work / "checkpoint+export+quantize.onnx.json").read_text())["measured"]["ops"]
    assert integer == {"QuantizeLinear": 1, "QLinearConv": 16, "MaxPool": 5, "Reshape": 1, "QGemm": 3, "DequantizeLinear": 1}


def compare(made: Path, *arguments: str, limit_bytes: int | None = None) -> tuple[int, dict[str, dict[str, object]]]:
    """Exit code and rows by variant of compare.py, its address space limited for real."""
    result = made.parent / "result.json"
    done = subprocess.run(
        [sys.executable, made / "runtime/compare.py", "--budget", "0.5", "--rounds", "1", "--json", result, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))) if limit_bytes else None,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, {row["variant"]: row for row in json.loads(result.read_text())["variants"]}


def test_it_runs_and_claims_nothing_of_accuracy(made: Path) -> None:
    code, rows = compare(made)
    assert code == 0
    for row in rows.values():
        assert row["error"] is None
        assert (row["accuracy"], row["agreement"]) == (None, None)
    peaks = {name: row["peak_rss_bytes"] for name, row in rows.items()}
    assert peaks["quantized"] < 0.4 * peaks["baseline"]
    assert peaks["scaled"] < 0.8 * peaks["baseline"]


def test_what_does_not_fit_is_a_row_and_the_others_still_run(made: Path) -> None:
    code, rows = compare(made, "--threads", "1", limit_bytes=1_200_000 * 1024)
    assert code == 1
    assert rows["baseline"]["error"] == "did not fit: out of memory"
    assert rows["baseline"]["p50_ms"] is None
    assert rows["quantized"]["error"] is None
    assert rows["quantized"]["p50_ms"]
