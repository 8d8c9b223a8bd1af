"""Compares a fully connected layer with weights of 8 bits with the same layer in blocks of 4 bits: the bytes,
the latency on this machine, and the instructions on emulated cores of a Raspberry Pi.

    python bench/low_bits.py --cores cortex-a72,cortex-a76

Each layer is a graph of its own, with random weights, which neither latency nor instructions depend on. The
latencies are medians of runs in turns.
"""

import vgg_runtime  # noqa: F401  it sets what onnxruntime reads when it is imported

# isort: split

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import emulated
from vgg_export.core.errors import VggExportError
from vgg_export.graphs.audit import FOUR_BIT_OP
from vgg_export.int8.four_bits import ACCURACY, DOMAIN
from vgg_runtime.board import device

CHILD = Path(__file__).resolve().with_name("winograd_counts_child.py")
# fc1 of a VGG at 224 and 160 px, fc2, and a part of a factorised layer
SHAPES = ((25088, 4096), (12800, 4096), (4096, 4096), (4096, 512))
BLOCKS = (32, 64, 128)
ROUNDS, RUNS = 20, 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cores", help="emulated cores to count on, e.g. cortex-a72,cortex-a76")
    parser.add_argument("--threads", type=int, default=device.usable_cores())
    asked = parser.parse_args(arguments)
    try:
        report(asked.threads, asked.cores)
    except VggExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def report(threads: int, cores: str | None) -> None:
    """Print a row per layer and form."""
    boards = emulated.chosen(cores) if cores else []
    pis = emulated.prepare(report=lambda text: print(text, file=sys.stderr)) if boards else {}
    print(f"onnxruntime {onnxruntime.__version__}, {threads} threads; instructions in 10^6")
    print("inputs  outputs  weights   MB      P50 ms " + "".join(f" {b.core:>11}" for b in boards))
    for inputs, outputs in SHAPES:
        with tempfile.TemporaryDirectory() as name:
            paths = models(inputs, outputs, Path(name))
            times = timed(paths, inputs, threads)
            for form, path in paths.items():
                counts = [
                    pis[b.core].count(CHILD, json.dumps([[str(path), [1, inputs], None]]))[1][0].instructions
                    for b in boards
                ]
                counted = "".join(f" {count / 1e6:11.2f}" for count in counts)
                size = path.stat().st_size / 1e6
                print(
                    f"{inputs:6}  {outputs:7}  {form:8} {size:6.1f} {times[form]:8.2f} {counted}", flush=True
                )


def models(inputs: int, outputs: int, folder: Path) -> dict[str, Path]:
    """The layer in every form, by the form's name."""
    made = {"8 bits": eight_bits(inputs, outputs)} | {
        f"4 in {block}": four_bits(inputs, outputs, block) for block in BLOCKS
    }
    paths = {form: folder / f"{form}.onnx" for form in made}
    for form, model in made.items():
        onnx.save(model, paths[form])
    return paths


def eight_bits(inputs: int, outputs: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.integers(-127, 128, (inputs, outputs), np.int8),
        "w_scale": rng.random(outputs, np.float32),
        "w_zero": np.zeros(outputs, np.int8),
        "scale": np.float32(0.01),
        "zero": np.uint8(0),
        "y_scale": np.float32(1),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wide"], axis=1),
        helper.make_node("Gemm", ["x", "wide"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "y_scale", "zero"], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", "y_scale", "zero"], ["y"]),
    ]
    return _model(nodes, constants, inputs, outputs)


def four_bits(inputs: int, outputs: int, block: int) -> onnx.ModelProto:
    rng, count = np.random.default_rng(0), -(-inputs // block)
    constants = {
        "w": rng.integers(0, 256, (outputs, count, block // 2), np.uint8),
        "w_scale": rng.random((outputs, count), np.float32),
    }
    attributes = {"K": inputs, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": ACCURACY}
    node = helper.make_node(FOUR_BIT_OP, ["input", "w", "w_scale"], ["y"], domain=DOMAIN, **attributes)
    return _model([node], constants, inputs, outputs)


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], inputs: int, outputs: int
) -> onnx.ModelProto:
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])]
        for name, size in (("input", inputs), ("y", outputs))
    ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        helper.make_graph(nodes, "layer", *ends, stored), opset_imports=opsets, ir_version=8
    )


def timed(paths: dict[str, Path], inputs: int, threads: int) -> dict[str, float]:
    """The median latency in ms of each form; the first run of a turn is not counted."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        form: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for form, path in paths.items()
    }
    x = {"input": np.random.default_rng(1).standard_normal((1, inputs), np.float32)}
    samples = {form: list[float]() for form in sessions}
    for _ in range(ROUNDS):
        for form, session in sessions.items():
            session.run(None, x)
            for _ in range(RUNS):
                start = time.perf_counter()
                session.run(None, x)
                samples[form].append((time.perf_counter() - start) * 1e3)
    return {form: statistics.median(ms) for form, ms in samples.items()}


if __name__ == "__main__":
    sys.exit(main())
