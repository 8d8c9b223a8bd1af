"""Predicts the cost of a convolution on a board's core, as it is and in every form with fewer
multiplications, and chooses the cheapest.

Instructions were counted on the emulated core (``bench/winograd_counts.py`` writes ``assets/winograd.json``),
and a small linear model interpolates them for other shapes. Instructions are not the whole cost: a form
multiplies less but moves more, because windows overlap and the transformed weights are larger. So the bytes
that are written and read count too.
"""

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_export.core.errors import OptionsError
from vgg_export.network.chain import Part

from . import cook_toom
from .cook_toom import Form

SCHEMA = 1
TABLE = "winograd.json"
DIRECT = "direct"  # the name of the convolution as it is, among the forms' names
CORES = ("cortex-a53", "cortex-a72", "cortex-a76")

# the share of the cost that a form must save: the model of instructions is off by up to 6 % either way, and
# the cost of a byte is a guess
MARGIN = 0.1
# Instructions that a board's four cores execute while it moves a byte. Of a Pi 4: STREAM 5.5e9 bytes/s
# (sci-pi.org.uk/bench/stream), Linpack 8e9 (feiereisen.net, ?page_id=924) to 13e9 float64 operations/s, four
# of them and as many instructions as these products take (1.3 each, counted) making 2.7e9 to 4.3e9
# instructions/s: 0.5 to 0.8. Rounded up, against the forms; not measured here.
PER_BYTE = 1.0
FLOAT_BYTES = 4

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one inference. ``instructions``: as the model predicts them. ``moved_bytes``: bytes moved
    between operators and read from the weights. ``weight_bytes``: the size of the weights in memory, which is
    part of ``moved_bytes``."""

    instructions: float
    moved_bytes: float
    weight_bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return _sum([self, other])

    def __sub__(self, other: "Cost") -> "Cost":
        return _sum([self, Cost(*(-value for value in dataclasses.astuple(other)))])

    def weighed(self, per_byte: float) -> float:
        return self.instructions + per_byte * self.moved_bytes


@dataclasses.dataclass(frozen=True)
class Choice:
    """``forms``: the form of each layer that gains by one. ``direct`` and ``rewritten``: the predicted costs
    of all convolutions before and after."""

    forms: dict[str, Form]
    direct: Cost
    rewritten: Cost

    def to_json(self) -> dict[str, Any]:
        def both(what: str) -> dict[str, int]:
            return {
                "direct": round(getattr(self.direct, what)),
                "rewritten": round(getattr(self.rewritten, what)),
            }

        return {
            "layers": {name: str(form) for name, form in self.forms.items()},
            "predicted": both("instructions"),
            "moved_bytes": both("moved_bytes"),
            "weight_bytes": both("weight_bytes"),
        }


def choose(layers: Iterable[Part], core: str, per_byte: float = PER_BYTE) -> Choice:
    """The cheapest form for every convolution. A convolution without a clear gain stays as it is.

    Args:
        layers: of a chain. Layers that are no convolution, or that have no form, are left out of the costs.
        core: one of CORES.
        per_byte: the cost of moving a byte, in instructions; with 0 only instructions count.

    Raises:
        OptionsError: there are no counts for this core.
    """
    coefficients = of_core(core)
    forms: dict[str, Form] = {}
    before, after = [], []
    for layer in layers:
        candidates = forms_of(layer)
        if not candidates:
            continue
        costs = {form: predicted(coefficients, layer, form) for form in (None, *candidates)}
        best = min(costs, key=lambda form: costs[form].weighed(per_byte))
        if best and costs[best].weighed(per_byte) <= (1 - MARGIN) * costs[None].weighed(per_byte):
            forms[layer.name] = best
        before.append(costs[None])
        after.append(costs[forms.get(layer.name)])
    return Choice(forms, _sum(before), _sum(after))


def forms_of(layer: Part) -> tuple[Form, ...]:
    """The forms that a layer can have: it moves by one pixel, and its map is as large as what it reads."""
    if layer.kernel is None or layer.stride != (1, 1):
        return ()
    height, width = layer.kernel
    return cook_toom.of_kernel(layer.kernel) if layer.padding == (height // 2, width // 2) * 2 else ()


def _sum(costs: Sequence[Cost]) -> Cost:
    parts = [dataclasses.astuple(cost) for cost in costs]
    return Cost(*map(sum, zip(*parts, strict=True))) if parts else Cost(0, 0, 0)


def predicted(coefficients: dict[str, list[float]], layer: Part, form: Form | None) -> Cost:
    """The predicted cost of a layer in a form; None as the form is the convolution as it is.
    ``coefficients``: by the names of ``name_of``."""
    key = name_of(layer, form)
    instructions = float(np.array(coefficients[key]) @ features(layer, form))
    return Cost(instructions, moved_bytes(layer, form), weight_bytes(layer, form))


def name_of(layer: Part, form: Form | None) -> str:
    """The name of a form's coefficients. A convolution as it is has its own coefficients for every kernel."""
    assert layer.kernel
    return str(form) if form else f"{DIRECT} {layer.kernel[0]}x{layer.kernel[1]}"


def features(layer: Part, form: Form | None) -> Array:
    """The numbers that instructions are proportional to: products, elements that are gathered or transformed
    before and after the products, packed weights, and a 1 for the constant part."""
    assert layer.kernel
    if form is None:
        positions, taps = math.prod(layer.sides), math.prod(layer.kernel)
        return np.array(
            [
                taps * positions * layer.inputs * layer.outputs,
                taps * positions * layer.inputs,
                positions * layer.outputs,
                1.0,
            ]
        )
    window, tiles = math.prod(form.window), math.prod(form.tiles(*layer.sides))
    inputs, outputs = window * layer.inputs, window * layer.outputs
    rows = _steps(tiles)
    return np.array(
        [rows * inputs * layer.outputs, tiles * inputs, tiles * outputs, inputs * layer.outputs, 1.0]
    )


def _steps(rows: int) -> float:
    """The rows of a product in units of four. onnxruntime's kernels compute four rows at a time and the
    remaining rows by two and by one, which takes longer per row."""
    return rows // 4 + (0, 0.45, 0.6, 1.05)[rows % 4]


def moved_bytes(layer: Part, form: Form | None) -> float:
    """The bytes that one operator writes and the next reads, and the weights, read once. Bytes that stay in a
    cache are counted too."""
    assert layer.kernel
    pixels = math.prod(layer.sides)
    inputs, outputs = pixels * layer.inputs, pixels * layer.outputs
    if form is None:
        return FLOAT_BYTES * (inputs + outputs) + weight_bytes(layer, None)
    side = form.covered(*layer.sides)
    window, tiles = math.prod(form.window), math.prod(form.tiles(*layer.sides))
    covered, gathered = math.prod(side) * layer.inputs, window * tiles * layer.inputs
    multiplied, tiled = window * tiles * layer.outputs, form.rows * form.columns * tiles * layer.outputs
    # channels last, padded, gathered, transformed, multiplied
    before = 3 * inputs + 2 * covered + 4 * gathered
    # transformed, placed, with the bias, channels first, and ReLU
    after = 2 * multiplied + 3 * tiled + 6 * outputs
    return FLOAT_BYTES * (before + after) + weight_bytes(layer, form)


def weight_bytes(layer: Part, form: Form | None) -> float:
    """The bytes of the multiplied weights in memory. With F(4x4) they are four times as large as the original
    weights; the transformed weights are never in the file."""
    assert layer.kernel
    return FLOAT_BYTES * math.prod(form.window if form else layer.kernel) * layer.inputs * layer.outputs


def fit(layers: Sequence[Part], form: Form | None, instructions: Sequence[float]) -> list[float]:
    """The coefficients of a form that minimise the squares of the relative errors."""
    return least_squares([features(layer, form) for layer in layers], instructions)


def least_squares(numbers: Sequence[Array], instructions: Sequence[float]) -> list[float]:
    """The coefficients that minimise the squares of the relative errors. ``numbers``: of each count those
    that it is proportional to."""
    rows = np.array(numbers) / np.array(instructions)[:, None]
    scale = np.abs(rows).max(0)
    solved, *_ = np.linalg.lstsq(rows / scale, np.ones(len(rows)), rcond=None)
    return [float(value) for value in solved / scale]


def of_core(core: str) -> dict[str, list[float]]:
    """Coefficients by form.

    Raises:
        OptionsError: there are no counts for this core.
    """
    return counted_on(core, table(), "counts", "bench/winograd_counts.py")


def counted_on(core: str, counts: Mapping[str, Any], what: str, made_by: str) -> dict[str, list[float]]:
    """The coefficients for a core in a table of counts. ``what`` they are and ``made_by`` which script, for
    the error.

    Raises:
        OptionsError: there are none.
    """
    cores: dict[str, dict[str, list[float]]] = counts["cores"]
    if core not in cores:
        raise OptionsError(
            f"there are no {what} for the core {core!r}; expected one of {', '.join(cores)}, or make counts"
            f" with {made_by}"
        )
    return cores[core]


@functools.cache
def table() -> dict[str, Any]:
    """The table that ``bench/winograd_counts.py`` wrote."""
    return counts_of(TABLE, SCHEMA, "bench/winograd_counts.py")


def counts_of(table: str, schema: int, made_with: str) -> dict[str, Any]:
    """A table of counts among this package's files.

    Raises:
        OptionsError: it has another schema; ``made_with`` makes it again.
    """
    path = importlib.resources.files("vgg_export.assets").joinpath(table)
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema") != schema:
        raise OptionsError(
            f"{table} has schema {data.get('schema')}; expected {schema}: make it again with {made_with}"
        )
    return data
