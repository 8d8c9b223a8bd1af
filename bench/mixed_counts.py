"""Counts what int8 layers, their float counterparts and the changes between both cost on the emulated core of
a Raspberry Pi, and writes the table by which ``vgg_export.graphs.mixed_cost`` chooses.

    python bench/mixed_counts.py --output export/vgg_export/assets/mixed.json

The aarch64 wheel runs graphs of one piece on the Cortex-A72: an int8 convolution (channels last, as
onnxruntime's own optimizer has them there) or an int8 fully connected layer with its ReLU; a float 1x1
convolution or fully connected layer; quantizing, dequantizing and moving the channels; a ReLU, and a 2x2
max-pool in both. Float convolutions of other kernels are counted by ``winograd_counts.py``. A cost model is
fitted to most of the shapes, and its error on the others is written beside it. A Cortex-A53 has the same
kernels, which a few shapes confirm; a Cortex-A76 has others for int8 and is left out.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import emulated
from emulated import Pi
from vgg_export.graphs import mixed_cost, winograd_cost
from vgg_export.network.chain import Part
from winograd_counts import CORE, SAME, circumstances, count_models, single, square, written

CORES = ("cortex-a72", "cortex-a53")
TOGETHER = 40  # pieces counted by one start of Python on the emulated core

# Inputs, outputs and side in px of convolutions, as factorised VGGs have them at 128 to 224 px. Three inputs
# are those of a picture.
FITTED = (
    (3, 16, 80), (3, 64, 112), (16, 64, 112), (64, 16, 80), (16, 128, 80), (24, 24, 40), (32, 64, 40),
    (64, 32, 56), (128, 32, 40), (48, 256, 40), (256, 48, 28), (64, 64, 56), (128, 128, 28), (80, 512, 20),
    (512, 80, 20), (104, 256, 14), (256, 104, 20), (256, 256, 14), (512, 176, 10), (176, 512, 10),
    (208, 512, 14), (512, 144, 8), (144, 512, 5), (512, 512, 7), (64, 64, 14), (128, 128, 8), (32, 64, 10),
)  # fmt: skip
HELD_OUT = (
    (3, 32, 64), (16, 64, 80), (64, 24, 64), (40, 128, 56), (128, 48, 32), (96, 256, 20), (256, 80, 16),
    (512, 208, 14), (112, 512, 10),
)  # fmt: skip
# Inputs and outputs of fully connected layers.
FITTED_LISTS = ((512, 128), (128, 512), (4096, 128), (128, 4096), (12800, 256), (256, 2048), (4096, 20))
HELD_OUT_LISTS = ((256, 4096), (8192, 128), (1024, 64), (2048, 1000))
# Channels and side in px of maps.
FITTED_MAPS = ((16, 160), (64, 80), (64, 56), (128, 40), (256, 28), (512, 14), (512, 10), (24, 32))
HELD_OUT_MAPS = ((32, 80), (128, 56), (256, 20), (48, 40))
OTHER_CORES = ((64, 64, 28), (48, 256, 20))  # int8 convolutions that are counted on every core

SCALE, LOWEST = np.float32(0.02), np.int8(-128)  # a range that begins at 0, as behind a ReLU


@dataclasses.dataclass(frozen=True)
class Piece:
    """Something to be counted. ``name``: of its coefficients. ``shape``: its sizes, for the table. ``given``:
    the shape of its input. ``graphs``: makes its graph, and where there is a second one, that is subtracted.
    """

    name: str
    shape: dict[str, Any]
    features: winograd_cost.Array
    given: tuple[int, ...]
    graphs: Callable[[], tuple[bytes, ...]]

    def row(self, instructions: int) -> dict[str, Any]:
        return {"what": self.name, **self.shape, "instructions": instructions}


class Graph:
    """A graph of one piece, with random weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, value: npt.NDArray[Any] | np.generic) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), f"constant_{len(self.tensors)}"))
        return str(self.tensors[-1].name)

    def quantized(self, x: str) -> str:
        return self.add("QuantizeLinear", x, self.constant(SCALE), self.constant(LOWEST))

    def dequantized(self, x: str) -> str:
        return self.add("DequantizeLinear", x, self.constant(SCALE), self.constant(LOWEST))

    def weights(self, shape: tuple[int, ...], axis: int) -> tuple[str, str]:
        """A dequantized int8 weight with a step per output, and its int32 bias."""
        outputs = shape[axis]
        steps = self.rng.uniform(1e-3, 2e-3, outputs).astype(np.float32)
        found = []
        for values, scale in (
            (self.rng.integers(-127, 128, shape).astype(np.int8), steps),
            (self.rng.integers(-127, 128, outputs).astype(np.int32), steps * SCALE),
        ):
            zeros = np.zeros(outputs, values.dtype)
            along = axis if values.ndim > 1 else 0
            names = (self.constant(values), self.constant(scale), self.constant(zeros))
            found.append(self.add("DequantizeLinear", *names, axis=along))
        return found[0], found[1]

    def floats(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0])))

    def bytes(self, given: tuple[int, ...], integers: tuple[bool, bool]) -> bytes:
        """The model from "input", whose batch may vary, to the output of the last node. ``integers``: whether
        both are int8."""
        kinds = [TensorProto.INT8 if integer else TensorProto.FLOAT for integer in integers]
        x = helper.make_tensor_value_info("input", kinds[0], ["batch", *given[1:]])
        y = helper.make_tensor_value_info(self.nodes[-1].output[0], kinds[1], None)
        graph = helper.make_graph(self.nodes, "piece", [x], [y], self.tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        data: bytes = made.SerializeToString()
        return data


CHANNELS_FIRST, CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def int8_conv(part: Part, *, pool: bool = False) -> bytes:
    """Channels last at both ends. onnxruntime's optimizer has them so inside, and drops both changes."""
    graph = Graph()
    assert part.kernel
    x = graph.dequantized(graph.add("Transpose", "input", perm=CHANNELS_FIRST))
    x = graph.add("Conv", x, *graph.weights(part.shape, 0), pads=list(part.padding))
    x = graph.quantized(graph.add("Relu", x))
    if pool:
        x = graph.dequantized(x)
        x = graph.quantized(graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    graph.add("Transpose", x, perm=CHANNELS_LAST)
    return graph.bytes((1, *part.sides, part.inputs), (True, True))


def linear(part: Part, precision: str) -> bytes:
    graph, integers = Graph(), precision == mixed_cost.INT8
    if integers:
        weight, bias = graph.weights((part.inputs, part.outputs), 1)
        x = graph.add("Gemm", graph.dequantized("input"), weight, bias)
        graph.quantized(graph.add("Relu", x))
    else:
        x = graph.add("Gemm", "input", graph.floats(part.inputs, part.outputs), graph.floats(part.outputs))
        graph.add("Relu", x)
    return graph.bytes((1, part.inputs), (integers, integers))


def elementwise(name: str, given: tuple[int, ...]) -> bytes:
    """What is done to each element of a map, of the names in ``mixed_cost``."""
    graph, integers = Graph(), (False, False)
    match name:
        case "channels last":
            graph.add("Transpose", "input", perm=CHANNELS_LAST)
        case "channels first":
            graph.add("Transpose", "input", perm=CHANNELS_FIRST)
        case "quantize":
            graph.quantized("input")
            integers = (False, True)
        case "quantize channels last":
            graph.add("Transpose", graph.quantized("input"), perm=CHANNELS_LAST)
            integers = (False, True)
        case "dequantize":
            graph.dequantized("input")
            integers = (True, False)
        case "dequantize channels first":
            graph.dequantized(graph.add("Transpose", "input", perm=CHANNELS_FIRST))
            integers = (True, False)
        case "flatten int8":
            graph.add("Transpose", "input", perm=CHANNELS_FIRST)
            integers = (True, True)
        case "pool fp32":
            graph.add("MaxPool", "input", kernel_shape=[2, 2], strides=[2, 2])
        case mixed_cost.RELU | mixed_cost.START:
            graph.add("Relu", "input")
    return graph.bytes(given, integers)


def main(arguments: Sequence[str] | None = None) -> int:
    description, example = (__doc__ or "").split("\n\n")[:2]
    parser = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the table (.json)")
    wanted = parser.parse_args(arguments)
    return written(lambda: run(emulated.prepare()), wanted.output)


def run(pis: dict[str, Pi]) -> dict[str, Any]:
    """Count everything and fit the cost model; returns the table.

    Raises:
        EmulationError: something failed, or another core does not execute the same.
    """
    ensure_same(pis)
    grids = {
        "fitted": list(pieces(FITTED, FITTED_LISTS, FITTED_MAPS)),
        "held_out": list(pieces(HELD_OUT, HELD_OUT_LISTS, HELD_OUT_MAPS)),
    }
    counts = {name: counted(pis[CORE], grid) for name, grid in grids.items()}
    coefficients = fit(grids["fitted"], counts["fitted"])
    off = {name: errors_of(grids[name], counts[name], coefficients) for name in grids}
    return {
        "schema": mixed_cost.SCHEMA,
        **circumstances(pis[CORE]),
        "cores": dict.fromkeys(CORES, coefficients),
        "errors": {key: {name: round(off[name][key], 4) for name in grids} for key in coefficients},
        **{
            name: [piece.row(count) for piece, count in zip(grids[name], counts[name], strict=True)]
            for name in grids
        },
    }


def pieces(
    convs: Sequence[tuple[int, int, int]], lists: Sequence[tuple[int, int]], maps: Sequence[tuple[int, int]]
) -> Iterator[Piece]:
    """Everything that is counted, at these sizes."""
    for kernel in mixed_cost.KERNELS:
        for inputs, outputs, side in convs:
            yield conv_piece(square("layer", inputs, outputs, kernel, side), mixed_cost.INT8)
            if kernel not in mixed_cost.COUNTED_BY_WINOGRAD:
                yield conv_piece(square("layer", inputs, outputs, kernel, side), mixed_cost.FP32)
    for inputs, outputs in lists:
        for precision in (mixed_cost.INT8, mixed_cost.FP32):
            yield linear_piece(square("layer", inputs, outputs, None, 1), precision)
    yield map_piece(mixed_cost.START, 1, 1)
    for channels, side in maps:
        for name in mixed_cost.ELEMENTWISE:
            yield map_piece(name, channels, side)


def conv_piece(part: Part, precision: str) -> Piece:
    shape = {
        "kernel": part.kernel,
        "inputs": part.inputs,
        "outputs": part.outputs,
        "side_px": part.sides[0],
    }
    name, numbers = mixed_cost.key(part, precision), mixed_cost.features(part, precision)
    if precision == mixed_cost.INT8:
        return Piece(name, shape, numbers, (1, *part.sides, part.inputs), lambda: (int8_conv(part),))
    return Piece(name, shape, numbers, (1, part.inputs, *part.sides), lambda: (single(part, None),))


def linear_piece(part: Part, precision: str) -> Piece:
    shape = {"inputs": part.inputs, "outputs": part.outputs}
    name, numbers = mixed_cost.key(part, precision), mixed_cost.features(part, precision)
    return Piece(name, shape, numbers, (1, part.inputs), lambda: (linear(part, precision),))


def map_piece(name: str, channels: int, side_px: int) -> Piece:
    shape = {"channels": channels, "side_px": side_px}
    numbers = mixed_cost.elementwise(channels, side_px**2)
    if name == mixed_cost.START:
        numbers = np.ones(1)
    if name == mixed_cost.POOLS[mixed_cost.INT8]:
        # it takes its fast kernel only behind an int8 convolution
        part = square("layer", 8, channels, (1, 1), side_px)
        given = (1, side_px, side_px, part.inputs)
        return Piece(name, shape, numbers, given, lambda: (int8_conv(part, pool=True), int8_conv(part)))
    first = name in ("channels last", "quantize channels last", "pool fp32")
    given = (1, channels, side_px, side_px) if first else (1, side_px, side_px, channels)
    return Piece(name, shape, numbers, given, lambda: (elementwise(name, given),))


def piece_of(row: dict[str, Any]) -> Piece:
    """The piece of a row of the table."""
    first, *others = row["what"].split()
    if "kernel" in row:
        part = square("layer", row["inputs"], row["outputs"], tuple(row["kernel"]), row["side_px"])
        return conv_piece(part, first)
    if "inputs" in row:
        return linear_piece(square("layer", row["inputs"], row["outputs"], None, 1), others[0])
    return map_piece(row["what"], row["channels"], row["side_px"])


def counted(pi: Pi, grid: Sequence[Piece]) -> list[int]:
    """Instructions of the second inference of each piece."""
    found: list[int] = []
    for at in range(0, len(grid), TOGETHER):
        found += _counted(pi, grid[at : at + TOGETHER])
    return found


def _counted(pi: Pi, grid: Sequence[Piece]) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        wanted: list[tuple[Path, Sequence[int]]] = []
        signs = []
        for k, piece in enumerate(grid):
            for graph, sign in zip(piece.graphs(), (1, -1), strict=False):
                path = Path(folder) / f"{len(wanted)}.onnx"
                path.write_bytes(graph)
                wanted.append((path, piece.given))
                signs.append((k, sign))
        counts = count_models(pi, wanted)
    found = [0] * len(grid)
    for (k, sign), count in zip(signs, counts, strict=True):
        found[k] += sign * count
    return found


def ensure_same(pis: dict[str, Pi]) -> None:
    """Make sure that all cores execute the same.

    Raises:
        EmulationError: they do not, and each needs its own counts.
    """
    grid = [
        conv_piece(square("layer", inputs, outputs, kernel, side), mixed_cost.INT8)
        for inputs, outputs, side in OTHER_CORES
        for kernel in mixed_cost.KERNELS
    ]
    found = {core: counted(pis[core], grid) for core in CORES}
    for piece, *numbers in zip(grid, *found.values(), strict=True):
        if max(numbers) > (1 + SAME) * min(numbers):
            raise emulated.EmulationError(
                f"{piece.name}, {piece.shape}: {sorted(numbers)} instructions on different cores; expected"
                f" the same within {SAME:.0%}: count on each core"
            )


def fit(grid: Sequence[Piece], counts: Sequence[int]) -> dict[str, list[float]]:
    """Coefficients of the cost model, by name."""
    found = {}
    for name in dict.fromkeys(piece.name for piece in grid):
        chosen = [(p.features, n) for p, n in zip(grid, counts, strict=True) if p.name == name]
        found[name] = winograd_cost.least_squares([f for f, _ in chosen], [n for _, n in chosen])
    return found


def errors_of(
    grid: Sequence[Piece], counts: Sequence[int], coefficients: dict[str, list[float]]
) -> dict[str, float]:
    """The largest relative error by name."""
    off: dict[str, float] = {}
    for piece, count in zip(grid, counts, strict=True):
        said = mixed_cost.predicted(coefficients, piece.name, piece.features)
        off[piece.name] = max(off.get(piece.name, 0.0), abs(said / count - 1))
    return off


if __name__ == "__main__":
    sys.exit(main())
