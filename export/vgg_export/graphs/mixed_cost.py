"""Predicts what a layer costs in int8 and in float on a board's core, and finds the cheapest path through a
chain whose layers may differ.

Between two layers a tensor has a format: 8-bit integers with the channels last (onnxruntime's int8
convolutions take them so on ARM), floats with the channels first (its float convolutions) or floats with the
channels last (Winograd's, see ``winograd_layers``). A change of format costs something, so the cheapest
layers by themselves are not the cheapest chain. Dynamic programming over layers and formats finds that one.

Instructions were counted on the emulated core (``bench/mixed_counts.py`` writes ``assets/mixed.json``, and
``bench/winograd_counts.py`` the costs of float convolutions). Small linear models interpolate them.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vgg_export.core.errors import NothingToGainError
from vgg_export.network.chain import Part

from . import cook_toom, winograd_cost
from .winograd_cost import FLOAT_BYTES, Array, Cost

SCHEMA = 1
TABLE = "mixed.json"

# Instructions that a board's four cores execute while they move a byte that is in the cache that they share,
# where most maps of a small network are (20e9 to 40e9 bytes/s; not measured here). For a byte of the memory
# ``winograd_cost`` counts a whole one. With 0 a few instructions less would move more than twice the bytes.
PER_BYTE = 0.2

INT8, FP32 = "int8", "fp32"  # how a layer or pool is computed, beside the names of Winograd's forms

# The formats of a tensor. ROUNDED is INT8 that was quantized only for the int8 layer to come: rounding it for
# a pool alone would cost accuracy. UNRECTIFIED is LAST before its ReLU, which quantizing does on its way.
FIRST, LAST, UNRECTIFIED, INTEGER, ROUNDED = "first", "last", "unrectified", "integer", "rounded"

# The cost of a change of format, as the names of what was counted.
CHANGES: dict[tuple[str, str], tuple[str, ...]] = {
    (FIRST, LAST): ("channels last",),
    (LAST, FIRST): ("channels first",),
    (FIRST, ROUNDED): ("quantize channels last",),
    (LAST, ROUNDED): ("quantize",),
    (UNRECTIFIED, ROUNDED): ("quantize",),
    # and the node that keeps a float layer between two int8 ones from being quantized
    (INTEGER, FIRST): ("dequantize channels first", "relu"),
    (INTEGER, LAST): ("dequantize",),
}
# What is counted per element of a tensor.
POOLS = {INT8: "pool int8", FP32: "pool fp32"}
RELU = "relu"
FLATTEN = "flatten int8"
# The bytes that it reads and writes per element. A float is four.
BYTES = {
    "channels last": 8,
    "channels first": 8,
    "quantize channels last": 7,
    "quantize": 5,
    "dequantize channels first": 7,
    "dequantize": 5,
    RELU: 8,
    POOLS[INT8]: 1.25,
    POOLS[FP32]: 5,
    FLATTEN: 2,
}
START = "start"  # an inference of next to nothing
ELEMENTWISE = tuple(BYTES)
FREE = Cost(0, 0, 0)
KERNELS = ((3, 3), (3, 1), (1, 3), (1, 1))
BLOCK = 16  # onnxruntime's int8 product without a dot product fills up each sum to a multiple of this
COUNTED_BY_WINOGRAD = KERNELS[:3]  # their float costs are in the table of ``winograd_cost``

Map = tuple[int, int]  # channels and positions; a list of features has one position


@dataclasses.dataclass(frozen=True)
class Link:
    """A piece of a chain: a layer (``part``), or a node between layers. ``name``: that of the layer or node.
    ``kind``: "layer", "pool" or "flatten". ``reads`` and ``gives``: the channels and the positions of what is
    before and behind it. ``relu``: a ReLU follows. ``float_only``: it must not be int8. ``int8_only``:
    it must."""

    name: str
    kind: str
    reads: Map
    gives: Map
    part: Part | None = None
    relu: bool = False
    float_only: bool = False
    int8_only: bool = False


@dataclasses.dataclass(frozen=True)
class Route:
    """How each link is computed (INT8, FP32 or the name of a form), and the predicted cost of one
    inference."""

    ways: dict[str, str]
    cost: Cost


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to compute a link: what it is called, the formats that it takes and gives, and its cost."""

    name: str
    takes: str
    gives: str
    cost: Cost


def cheapest(
    links: Sequence[Link], core: str, allowed: Collection[str] = (), per_byte: float = PER_BYTE
) -> Route:
    """The cheapest path from float inputs to float logits.

    Args:
        allowed: the ways that layers may be computed in; empty: all.
        per_byte: the cost of moving a byte, in instructions; with 0 only instructions count.

    Raises:
        NothingToGainError: a layer is of a kind that was not counted, or has no allowed way.
        OptionsError: there are no counts for this core.
    """
    costs = Costs.of_core(core)
    reached = {FIRST: Route({}, Cost(costs.start, 0, 0))}
    for link in links:
        found: dict[str, Route] = {}
        for way, (format_, path) in itertools.product(costs.ways(link, allowed), reached.items()):
            change = costs.change(format_, way.takes, link.reads)
            if change is not None:
                total = path.cost + change + way.cost
                _keep_cheaper(found, way.gives, Route(path.ways | {link.name: way.name}, total), per_byte)
        if not found:
            raise NothingToGainError(f"{link.name} cannot be computed in {', '.join(allowed)}")
        reached = found
    ends: dict[str, Route] = {}
    for format_, path in reached.items():
        change = costs.change(format_, FIRST, links[-1].gives)
        if change is not None:
            _keep_cheaper(ends, FIRST, Route(path.ways, path.cost + change), per_byte)
    return ends[FIRST]


def _keep_cheaper(found: dict[str, Route], format_: str, path: Route, per_byte: float) -> None:
    if format_ not in found or path.cost.weighed(per_byte) < found[format_].cost.weighed(per_byte):
        found[format_] = path


@dataclasses.dataclass(frozen=True)
class Costs:
    """The coefficients of one core. ``counted``: of this module's table; ``floats``: of Winograd's."""

    counted: dict[str, list[float]]
    floats: dict[str, list[float]]

    @classmethod
    def of_core(cls, core: str) -> "Costs":
        """The costs on a core.

        Raises:
            OptionsError: there are no counts for this core.
        """
        own = winograd_cost.counted_on(core, table(), "counts of int8", "bench/mixed_counts.py")
        return cls(own, winograd_cost.of_core(core))

    @property
    def start(self) -> float:
        """What an inference takes besides its nodes. It is part of every count."""
        return self.counted[START][0]

    def elementwise(self, name: str, size: Map) -> Cost:
        """The cost of what is done to each element of a map."""
        instructions = predicted(self.counted, name, elementwise(*size)) - self.start
        return Cost(instructions, BYTES[name] * math.prod(size), 0)

    def change(self, before: str, after: str, size: Map) -> Cost | None:
        """The cost of changing a tensor's format; None if that is not possible."""
        if before == after:
            return FREE
        names = CHANGES.get((before, after))
        return None if names is None else sum((self.elementwise(name, size) for name in names), FREE)

    def ways(self, link: Link, allowed: Collection[str]) -> Iterator[Way]:
        """The ways to compute a link; of a layer only those in ``allowed``, if it names any."""
        found = {"layer": self._layer, "pool": self._pool, "flatten": self._flatten}[link.kind](link)
        for way in found:
            ruled_out = link.kind == "layer" and allowed and way.name not in allowed
            fixed = link.float_only if way.name == INT8 else link.int8_only
            if not ruled_out and not fixed:
                yield way

    def _pool(self, link: Link) -> Iterator[Way]:
        for takes, name in ((FIRST, FP32), (INTEGER, INT8), (ROUNDED, INT8)):
            yield Way(name, takes, takes, self.elementwise(POOLS[name], link.reads))

    def _flatten(self, link: Link) -> Iterator[Way]:
        for takes in (INTEGER, ROUNDED):
            yield Way(INT8, takes, takes, self.elementwise(FLATTEN, link.reads))
        yield Way(FP32, FIRST, FIRST, FREE)

    def _layer(self, link: Link) -> Iterator[Way]:
        part = link.part
        assert part
        for takes in (INTEGER, ROUNDED):
            yield Way(INT8, takes, INTEGER, self._counted(part, INT8))
        by_winograd = part.kernel in COUNTED_BY_WINOGRAD
        direct = self._float(part, None) if by_winograd else self._counted(part, FP32)
        yield Way(FP32, FIRST, FIRST, direct)
        for form in winograd_cost.forms_of(part):
            # as counted, with a change of the format before and after it, and with a ReLU
            whole = self._float(part, form)
            whole -= self.elementwise("channels last", link.reads)
            whole -= self.elementwise("channels first", link.gives)
            bare = whole - self.elementwise(RELU, link.gives)
            yield Way(str(form), LAST, LAST, whole if link.relu else bare)
            if link.relu:
                yield Way(str(form), LAST, UNRECTIFIED, bare)

    def _float(self, part: Part, form: cook_toom.Form | None) -> Cost:
        return winograd_cost.predicted(self.floats, part, form) - Cost(self.start, 0, 0)

    def _counted(self, part: Part, precision: str) -> Cost:
        instructions = predicted(self.counted, key(part, precision), features(part, precision)) - self.start
        weight, positions = math.prod(part.shape), math.prod(part.sides)
        size = 1 if precision == INT8 else FLOAT_BYTES
        return Cost(instructions, size * (positions * (part.inputs + part.outputs) + weight), size * weight)


def key(part: Part, precision: str) -> str:
    """The name of the coefficients of a layer.

    Raises:
        NothingToGainError: such a layer was not counted.
    """
    if part.kernel is None:
        return f"linear {precision}"
    if part.kernel not in KERNELS or part.stride != (1, 1):
        raise NothingToGainError(
            f"{part.name} is a convolution of {part.kernel[0]}x{part.kernel[1]} with a stride of"
            f" {part.stride[0]}x{part.stride[1]}, which was not counted; counted are"
            f" {', '.join(f'{height}x{width}' for height, width in KERNELS)} with a stride of 1"
        )
    return f"{precision} {part.kernel[0]}x{part.kernel[1]}"


def features(part: Part, precision: str) -> Array:
    """The numbers that the instructions of a layer are proportional to: products, elements that are gathered
    for them, positions, outputs, and a 1 for the constant part."""
    if part.kernel is None:
        return np.array([part.inputs * part.outputs, part.inputs, part.outputs, 1.0])
    positions, taps = math.prod(part.sides), math.prod(part.kernel)
    gathered = taps * part.inputs
    summed = math.ceil(gathered / BLOCK) * BLOCK if precision == INT8 else gathered
    numbers = [summed * part.outputs, gathered, taps, part.outputs]
    return np.array([*(positions * number for number in numbers), 1.0])


def elementwise(channels: int, positions: int) -> Array:
    """The numbers that the instructions of what is done to each element of a map are proportional to."""
    return np.array([channels * positions, positions, channels, 1.0])


def predicted(coefficients: dict[str, list[float]], name: str, numbers: Array) -> float:
    return float(np.array(coefficients[name]) @ numbers)


@functools.cache
def table() -> dict[str, Any]:
    """The table that ``bench/mixed_counts.py`` wrote."""
    return winograd_cost.counts_of(TABLE, SCHEMA, "bench/mixed_counts.py")


def in_words(ways: Iterable[str]) -> str:
    """How many layers are computed in which way: "9 layers in int8, 6 in fp32, 4 of them Winograd's"."""
    names = list(ways)
    integers, floats = names.count(INT8), len(names) - names.count(INT8)
    rewritten = floats - names.count(FP32)
    words = f"{integers} layer{'s' if integers != 1 else ''} in int8, {floats} in fp32"
    return f"{words}, {rewritten} of them Winograd's" if rewritten else words
