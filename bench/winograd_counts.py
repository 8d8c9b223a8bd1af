"""Counts what every form of a convolution costs on the emulated core of a Raspberry Pi, and writes the table
by which ``vgg_export.graphs.winograd_cost`` chooses.

    python bench/winograd_counts.py --output export/vgg_export/assets/winograd.json

The aarch64 wheel runs graphs of one layer with its ReLU on the Cortex-A72. A cost model is fitted to most of
the shapes, and its error on the others is written beside it. A Cortex-A53 and an A76 execute just the same
for fp32, which a few shapes confirm.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import emulated
from emulated import Pi
from vgg_export.core.errors import VggExportError
from vgg_export.core.files import write_json
from vgg_export.graphs import cook_toom, winograd_cost, winograd_layers
from vgg_export.graphs.cook_toom import Form
from vgg_export.network.chain import Part

CHILD = Path(__file__).resolve().with_name("winograd_counts_child.py")
CORE = "cortex-a72"  # everything is counted on it
# counts of two cores with at most this relative difference are taken for the same; what was allocated before
# makes a percent
SAME = 0.03
KERNELS = ((3, 3), (3, 1), (1, 3))

# Inputs, outputs and side in px, as VGGs have them at 160 and 224 px, with the ranks of factorised layers.
# Large maps have few channels only, which keeps the run short.
FITTED = (
    (16, 16, 56), (16, 64, 80), (64, 16, 40), (32, 32, 80), (64, 64, 56), (32, 128, 40), (128, 64, 40),
    (64, 208, 28), (128, 128, 28), (256, 128, 20), (208, 256, 20), (128, 512, 20), (512, 128, 14),
    (256, 256, 14), (512, 208, 10), (208, 512, 10), (256, 512, 10), (512, 512, 14), (64, 128, 112),
)  # fmt: skip
HELD_OUT = ((64, 64, 80), (128, 128, 40), (256, 256, 28), (208, 512, 20), (512, 512, 10), (32, 64, 112))
OTHER_CORES = ((64, 64, 28), (256, 256, 14))  # counted on every core


@dataclasses.dataclass(frozen=True)
class Task:
    """A layer on a board, in a ``form`` of Winograd's, or as it is where that is None."""

    layer: Part
    form: Form | None
    pi: Pi

    def row(self, instructions: int) -> dict[str, Any]:
        layer = self.layer
        shape = {
            "kernel": layer.kernel,
            "inputs": layer.inputs,
            "outputs": layer.outputs,
            "side_px": layer.sides[0],
        }
        return {**shape, "form": str(self.form or winograd_cost.DIRECT), "instructions": instructions}


def main(arguments: Sequence[str] | None = None) -> int:
    description, example = (__doc__ or "").split("\n\n")[:2]
    parser = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the table (.json)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="groups of layers counted at a time (default: %(default)s)",
    )
    wanted = parser.parse_args(arguments)
    return written(lambda: run(emulated.prepare(), wanted.jobs), wanted.output)


def written(count: Callable[[], dict[str, Any]], output: Path) -> int:
    """Count, write the table and say how far off its cost model is; returns the exit code."""
    try:
        result = count()
        write_json(output, result)
    except VggExportError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    for counted, off in result["errors"].items():
        fitted, held_out = (f"{100 * off[which]:.1f} %" for which in ("fitted", "held_out"))
        print(
            f"{counted}: off by at most {held_out} on shapes that it was not fitted to, {fitted} on the"
            " others"
        )
    return 0


def circumstances(pi: Pi) -> dict[str, str]:
    """When and with what the counts on CORE are made, for the table."""
    version = pi.run("-c", "import onnxruntime; print(onnxruntime.__version__)").stdout.strip()
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "emulator": emulated.emulator(),
        "onnxruntime": version,
        "core": CORE,
    }


def run(pis: dict[str, Pi], jobs: int) -> dict[str, Any]:
    """Count everything and fit the cost model; returns the table.

    Raises:
        EmulationError: something failed, or another core does not execute the same.
    """
    grids = {"fitted": tasks(FITTED, [pis[CORE]]), "held_out": tasks(HELD_OUT, [pis[CORE]])}
    everywhere = tasks(OTHER_CORES, list(pis.values()))
    with ThreadPoolExecutor(jobs) as pool:
        ensure_same(everywhere, all_counted(pool, everywhere))  # first, for it is quick
        counts = {name: all_counted(pool, grid) for name, grid in grids.items()}
    coefficients = fit(grids["fitted"], counts["fitted"])
    errors: dict[str, dict[str, float]] = {key: {} for key in coefficients}
    for name in ("fitted", "held_out"):
        for key, found in errors_of(grids[name], counts[name], coefficients).items():
            errors[key][name] = round(found, 4)
    return {
        "schema": winograd_cost.SCHEMA,
        **circumstances(pis[CORE]),
        "cores": dict.fromkeys(pis, coefficients),
        "errors": errors,
        **{
            name: [task.row(count) for task, count in zip(grids[name], counts[name], strict=True)]
            for name in ("fitted", "held_out")
        },
    }


def square(name: str, inputs: int, outputs: int, kernel: tuple[int, int] | None, side_px: int) -> Part:
    """A layer of stride 1 with a map as large as its input's. ``kernel``: None if fully connected."""
    rows, columns = kernel or (1, 1)
    padding = (rows // 2, columns // 2) * 2
    return Part(name, inputs, outputs, kernel, (1, 1), padding, (side_px, side_px), bias=True)


def tasks(shapes: Sequence[tuple[int, int, int]], pis: Sequence[Pi]) -> list[Task]:
    found = []
    for pi, kernel, (inputs, outputs, side) in itertools.product(pis, KERNELS, shapes):
        layer = square("layer", inputs, outputs, kernel, side)
        found += [Task(layer, form, pi) for form in (None, *cook_toom.of_kernel(kernel))]
    return found


def all_counted(pool: ThreadPoolExecutor, grid: Sequence[Task]) -> list[int]:
    return [count for part in pool.map(counted, parts(grid)) for count in part]


def parts(grid: Sequence[Task]) -> list[list[Task]]:
    """The tasks in their order, in groups of one board and one kernel."""
    return [
        list(part)
        for _, part in itertools.groupby(grid, lambda task: (task.pi.board.core, task.layer.kernel))
    ]


def counted(tasks: Sequence[Task]) -> list[int]:
    """Instructions of the second inference of each layer's graph. Starting Python on the emulated core takes
    longer than most inferences, so that many share one start.

    Args:
        tasks: all of the same board.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = []
        for k, task in enumerate(tasks):
            path = Path(folder) / f"{k}.onnx"
            path.write_bytes(single(task.layer, task.form))
            wanted.append((path, [1, task.layer.inputs, *task.layer.sides]))
        return count_models(tasks[0].pi, wanted)


def count_models(
    pi: Pi, wanted: Sequence[tuple[Path, Sequence[int]]], outputs: Sequence[Path] = ()
) -> list[int]:
    """Instructions of the second inference of each model, on noise of its shape.

    Args:
        outputs: where to write what came out (.npy), for every model or none.
    """
    rows = [
        [str(path), shape, str(output) if output else None]
        for (path, shape), output in itertools.zip_longest(wanted, outputs)
    ]
    _, counts = pi.count(CHILD, json.dumps(rows))
    return [count.instructions for count in counts[::2]]


def single(layer: Part, form: Form | None) -> bytes:
    """A graph of one convolution with random weights, and a ReLU."""
    from onnx import TensorProto, helper, numpy_helper

    assert layer.kernel
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(layer.shape, np.float32) / np.float32(
        np.sqrt(layer.inputs * np.prod(layer.kernel))
    )
    tensors = {"layer.weight": weight, "layer.bias": rng.standard_normal(layer.outputs, np.float32)}
    pads = [k // 2 for k in layer.kernel] * 2
    nodes = [
        helper.make_node("Conv", ["input", "layer.weight", "layer.bias"], ["summed"], "conv", pads=pads),
        helper.make_node("Relu", ["summed"], ["logits"], "relu"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, *layer.sides])
        for name, channels in (("input", layer.inputs), ("logits", layer.outputs))
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "layer", values[:1], values[1:], initializers),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    if form:
        winograd_layers.rewrite(made, {"layer": form})
    data: bytes = made.SerializeToString()
    return data


def ensure_same(grid: Sequence[Task], counts: Sequence[int]) -> None:
    """Make sure that all cores execute the same.

    Raises:
        EmulationError: they do not, and each needs its own counts.
    """
    by_layer: dict[Any, set[int]] = {}
    for task, count in zip(grid, counts, strict=True):
        by_layer.setdefault((task.layer, task.form), set()).add(count)
    for (layer, form), found in by_layer.items():
        if max(found) > (1 + SAME) * min(found):
            raise emulated.EmulationError(
                f"{layer} as {form or 'it is'}: {sorted(found)} instructions on different cores; expected"
                f" the same within {SAME:.0%}: count on each core"
            )


def _by_form(
    grid: Sequence[Task], counts: Sequence[int]
) -> dict[str, tuple[Form | None, list[Part], list[int]]]:
    found: dict[str, tuple[Form | None, list[Part], list[int]]] = {}
    for task, count in zip(grid, counts, strict=True):
        _, layers, numbers = found.setdefault(
            winograd_cost.name_of(task.layer, task.form), (task.form, [], [])
        )
        layers.append(task.layer)
        numbers.append(count)
    return found


def fit(grid: Sequence[Task], counts: Sequence[int]) -> dict[str, list[float]]:
    """Coefficients of the cost model, by form."""
    return {
        key: winograd_cost.fit(layers, form, numbers)
        for key, (form, layers, numbers) in _by_form(grid, counts).items()
    }


def errors_of(
    grid: Sequence[Task], counts: Sequence[int], coefficients: dict[str, list[float]]
) -> dict[str, float]:
    """The largest relative error by form."""
    found = {}
    for key, (form, layers, numbers) in _by_form(grid, counts).items():
        predictions = [winograd_cost.predicted(coefficients, layer, form).instructions for layer in layers]
        found[key] = max(abs(a / b - 1) for a, b in zip(predictions, numbers, strict=True))
    return found


if __name__ == "__main__":
    sys.exit(main())
