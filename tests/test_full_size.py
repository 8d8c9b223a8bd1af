"""The real size: 143.67 M parameters, 575 MB. Random weights, so there is nothing to say of accuracy."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from conftest import export_in
from launch import rows_of

from vgg_runtime.board import targets
from vgg_runtime.bundle import manifest

pytestmark = pytest.mark.release

PEAK_BYTES = 6_000_000_000
HERE = targets.here().name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    arguments = [
        "all",
        "--weights",
        "random",
        "--variants",
        "quantized,scaled,compact-scaled",
        "--output",
        "big",
        "--no-compare",
    ]
    arguments += ["--target", HERE, "--target", "pi4"]
    done = export_in(folder, *arguments, timeout_s=580)
    assert done.returncode == 0, done.stderr
    return folder / "big"


def test_the_sizes_are_the_known_ones_and_the_memory_is_bounded(made: Path) -> None:
    bundle = manifest.read(made)
    baseline, quantized, scaled, compact = bundle.variants
    assert baseline.parameters == 143_667_240
    assert baseline.build.bytes == pytest.approx(575e6, rel=0.005)
    assert quantized.build.bytes <= 150e6
    assert scaled.build.bytes == pytest.approx(373e6, rel=0.005)
    assert compact.build.bytes <= 0.04 * baseline.build.bytes
    assert bundle.figures_absent is not None
    assert all(
        v.build.evaluation is None and v.build.evaluation_absent == bundle.figures_absent
        for v in bundle.variants
    )
    # the largest child so far is the export above; ru_maxrss is in KiB on Linux
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= PEAK_BYTES


def test_the_graphs_hold_what_they_should(made: Path) -> None:
    work = made.parent / ".big.work"
    floating = {"Conv": 16, "Gemm": 3, "MaxPool": 5, "Relu": 18, "Reshape": 1}
    for name in ("checkpoint+export", "checkpoint+fold+export"):
        assert json.loads((work / f"{name}.onnx.json").read_text())["measured"]["ops"] == floating
    # graphs; the weights lie beside them, once
    assert sum(path.stat().st_size for path in (made / "models").glob("*.onnx")) < 1e6
    integer = json.loads((work / "checkpoint+export+quantize.onnx.json").read_text())["measured"]["ops"]
    layers = {"QLinearConv": 16, "MaxPool": 5, "Reshape": 1, "QGemm": 4, "QLinearConcat": 1}  # fc1 in halves
    assert integer == {"QuantizeLinear": 1, **layers, "DequantizeLinear": 1}


def test_the_builds_of_a_variant_share_its_weights(made: Path) -> None:
    bundle = manifest.read(made)
    direct, winograd = bundle.variant("scaled").builds
    assert (direct.targets, winograd.targets) == ((), ("pi4",))
    assert winograd.weights == direct.weights
    assert winograd.model.bytes < 300_000
    assert "convolutions as Winograd's" in winograd.form
    assert len(bundle.variant("baseline").builds) == 1  # its transformed weights would fill a Pi 4 of 1 GB
    assert [build.targets for build in bundle.variant("quantized").builds] == [(HERE,), ("pi4",)]
    code, rows = compare(made, "--target", "pi4", "--rounds", "1", "--variants", "quantized,scaled")
    assert code == 0  # they say what was recorded when the bundle was made
    assert {row["build"]["id"] for row in rows.values()} == {"quantized.pi4", "scaled.pi4"}


def compare(
    made: Path, *arguments: str, limit_bytes: int | None = None
) -> tuple[int, dict[str, dict[str, Any]]]:
    hastily = ("--budget", "0.5", "--rounds", "1")
    return rows_of(made, made.parent / "result.json", *hastily, *arguments, limit_bytes=limit_bytes)


def test_it_runs_and_claims_nothing_of_accuracy(made: Path) -> None:
    code, rows = compare(made)
    assert code == 0
    for row in rows.values():
        assert row["error"] is None
        assert (row["accuracy"], row["agreement"]) == (None, None)
    peaks = {name: row["peak_rss_bytes"] for name, row in rows.items()}
    assert peaks["quantized"] < 0.4 * peaks["baseline"]
    assert peaks["scaled"] < 0.8 * peaks["baseline"]


@pytest.mark.parametrize("memory", ["lean", "fast"])
def test_in_512_mb_the_baseline_is_a_row_that_did_not_fit_and_int8_runs(made: Path, memory: str) -> None:
    arguments = (
        "--threads",
        "1",
        "--rounds",
        "1",
        "--memory",
        memory,
        "--variants",
        "baseline,quantized,compact-scaled",
    )
    code, rows = compare(made, *arguments, limit_bytes=512 << 20)
    assert code == 1
    assert rows["baseline"]["error"] == "did not fit: out of memory"
    assert rows["baseline"]["p50_ms"] is None
    for name in ("quantized", "compact-scaled"):
        assert rows[name]["error"] is None
        assert rows[name]["p50_ms"]


def test_lean_keeps_float_weights_in_pages_that_can_be_dropped(made: Path) -> None:
    """The bounds are those of a board with 512 MB: what cannot be dropped of the baseline, all of what int8
    takes."""
    code, rows = compare(
        made, "--rounds", "1", "--memory", "lean", "--variants", "baseline,quantized,compact-scaled"
    )
    assert code == 0
    assert rows["baseline"]["memory_mode"] == "lean"
    assert rows["baseline"]["peak_anonymous_bytes"] <= 250e6
    # looked at now and then, and the kernel drops such pages when it likes; with weights in anonymous memory
    # it would be a tenth of them
    assert rows["baseline"]["peak_file_backed_bytes"] >= 0.6 * 575e6
    assert rows["quantized"]["peak_rss_bytes"] <= 260e6
    assert rows["compact-scaled"]["peak_rss_bytes"] <= 110e6
