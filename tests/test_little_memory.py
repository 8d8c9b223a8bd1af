"""Memory limits on a small bundle; test_full_size.py tests them at the real size."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, entries_of, made_once, small_torchvision_vgg
from launch import rows_of

from vgg_export.bundle import writer
from vgg_export.core import cache
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.graphs import export
from vgg_export.int8 import quantize
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import specify
from vgg_export.network.provenance import Provenance
from vgg_export.network.readers import state_dicts
from vgg_export.options import InputOptions, QuantizeOptions
from vgg_runtime.board import targets
from vgg_runtime.bundle import manifest

pytestmark = pytest.mark.release
WIDTH = 6000  # of the fully connected layers, which hold 45 million parameters
# Loads and runs a model as compare.py's child does, then says how much address space that took.
TRIED = """
import sys
from pathlib import Path
import numpy
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model
Model(Path(sys.argv[1]), SessionSettings(), 1)(numpy.zeros([1, 3, 224, 224], numpy.float32))
print(next(line for line in open("/proc/self/status") if line.startswith("VmPeak")).split()[1])
"""


def wide() -> checkpoints.Checkpoint:
    network = small_torchvision_vgg("vgg11", False)
    torch.manual_seed(0)
    network.classifier = torch.nn.Sequential(
        torch.nn.Linear(32 * 49, WIDTH),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(WIDTH, len(CLASSES)),
    )
    found = specify.specify(state_dicts.read(network.state_dict()), InputOptions())
    return checkpoints.Checkpoint(found.chain, found.tensors, CLASSES, Provenance("file", "wide"))


@pytest.fixture(scope="module")
def made(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(work: Path) -> None:
        checkpoints.save(wide(), work / "c.safetensors")
        baseline = export.run(cache.of(work / "c.safetensors"), work / "baseline.onnx", Quiet())
        options = QuantizeOptions(targets.here().name, "minmax", float_layers=0)
        integer = quantize.run(baseline, splits, 4, work / "quantized.onnx", options, Quiet())
        entries = entries_of(baseline, integer, baseline, integer)[:2]
        contents = writer.Contents(entries, splits, None, None, "not asked for")
        writer.run(contents, work / "artifacts", Quiet())

    return made_once(tmp_path_factory, "wide", make) / "artifacts"


def compare(
    made: Path, result: Path, *arguments: str, limit_bytes: int | None = None
) -> tuple[int, dict[str, dict[str, Any]]]:
    hastily = ("--budget", "0.1", "--rounds", "1", "--threads", "1")
    return rows_of(made, result, *hastily, *arguments, limit_bytes=limit_bytes)


def address_space(made: Path, name: str) -> int:
    runtime = {"PYTHONPATH": str(made / "runtime"), "ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", TRIED, str(made / f"models/{name}.onnx")]
    done = subprocess.run(command, env=runtime, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.parametrize("memory", ["lean", "fast"])
def test_where_only_int8_fits_the_baseline_is_a_row_that_did_not(
    made: Path, tmp_path: Path, memory: str
) -> None:
    sizes = {v.id: v.build.bytes for v in manifest.read(made).variants}
    spare = (sizes["baseline"] - sizes["quantized"]) // 2
    limit = address_space(made, "quantized") + spare
    code, rows = compare(made, tmp_path / "r.json", "--memory", memory, limit_bytes=limit)
    assert code == 1
    assert rows["baseline"]["error"] == "did not fit: out of memory"
    assert rows["baseline"]["p50_ms"] is None
    assert rows["quantized"]["error"] is None
    assert rows["quantized"]["p50_ms"]


def test_lean_keeps_float_weights_in_pages_that_can_be_dropped(made: Path, tmp_path: Path) -> None:
    """Memory that cannot be dropped is far less than the weights; most of the peak is memory that can. The
    whole peak of int8 is less than the weights, too."""
    code, rows = compare(made, tmp_path / "r.json", "--memory", "lean")
    assert code == 0
    baseline, integer = rows["baseline"], rows["quantized"]
    weights = next(v for v in manifest.read(made).variants if v.id == "baseline").build.bytes
    assert baseline["memory_mode"] == "lean"
    assert baseline["peak_anonymous_bytes"] < 0.4 * weights
    # the kernel keeps the peak of both together; that of either kind is sampled, and may be missed
    assert baseline["peak_rss_bytes"] - baseline["peak_anonymous_bytes"] >= 0.6 * weights
    assert integer["peak_rss_bytes"] < weights
