"""The int8 model of a core without a dot product, in which the layers that are cheaper in float there are
float.

Such a core multiplies floats about as fast as bytes, and Winograd's convolutions multiply less. Which layer
is better in which way depends on its shape and on what is beside it (``graphs.mixed_cost``). The model is
another function than the int8 model: it rounds less.
"""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vgg_calibration import chain
from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, NothingToGainError
from vgg_export.core.progress import Progress
from vgg_export.graphs import audit, mixed, mixed_cost, mixed_parity, winograd_layers
from vgg_export.graphs.cook_toom import FORMS
from vgg_export.graphs.mixed_cost import FP32, INT8
from vgg_export.graphs.model_info import ModelInfo
from vgg_export.graphs.tensors import array, tensors_of
from vgg_export.options import INT8_FORMS
from vgg_runtime.board.targets import TARGETS, here
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import exact
from vgg_runtime.records import Record

from . import equalize, qdq
from .measured import Quantized

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

LEAST_GAIN = 0.03  # the share of the int8 model's predicted cost that must be saved
# The largest allowed root mean square of a layer's rounding errors, in steps of its weights. Rounding to the
# nearest makes 0.3, and errors that make up for each other more; channels that were rescaled in only one of
# both graphs are many steps off.
TWIN = 2.0


@dataclasses.dataclass(frozen=True)
class Compared(Record):
    """A number of the model with all layers in int8, and of the mixed one."""

    int8: int
    mixed: int


@dataclasses.dataclass(frozen=True)
class Told(Record):
    """How each layer is computed on a ``core`` ("int8", "fp32", or the name of a form of Winograd's); the
    predicted instructions of an inference, the bytes that it moves, and those of the weights in memory; and
    the largest difference of what a layer gives from the graph that it is of, as a fraction of its spread
    (``parity``)."""

    core: str
    layers: dict[str, str]
    predicted: Compared
    moved_bytes: Compared
    weight_bytes: Compared
    parity: float

    @property
    def form(self) -> str:
        """How many layers are computed in which way."""
        return mixed_cost.in_words(self.layers.values())


@dataclasses.dataclass(frozen=True)
class MixedPrecision(Record):
    """The record of a mixed model: its operators, the target that it is for, and what is told of it."""

    ops: dict[str, int]
    target: str
    mixed: Told
    model: ModelInfo


STAGE = cache.Stage("mixed", __name__, MixedPrecision)


def run(
    exported: cache.Artifact, quantized: cache.Artifact, target: str, output: Path, progress: Progress
) -> cache.Artifact:
    """Make the mixed model of a float model and the int8 model that ``quantize`` made of it.

    Args:
        target: a key of TARGETS whose core has no dot product. ``quantized`` must have the form for it.

    Raises:
        NothingToGainError: no mixture is clearly cheaper than int8, or the network has layers that were not
            counted.
    """
    import onnx

    core = TARGETS[target].winograd_core
    assert core, target
    before = quantized.read(Quantized)

    def make(path: Path) -> MixedPrecision:
        with progress.task(f"mixing int8 and float for {target}", None):
            floating, integers = float_twin(exported.path, before), onnx.load(quantized.path)
            ensure_twin(floating, integers)
            every, best = choose(floating, integers, core)
            made, layers = mixed.mix(floating, integers, best.ways), ways_of_layers(floating, best)
            onnx.save(made, path)
            ensure_graph(exported.path, path, layers)
            settings = exact(SessionSettings(), here(), (target,))
            parity = mixed_parity.ensure_same(floating, integers, made, layers, settings)
        told = Told(core, layers, *compared(every, best), parity)
        log.info("mixed for %s: %s", target, told.form)
        return MixedPrecision(audit.count_ops(path), target, told, before.model)

    options = {"target": target, "core": core}
    return cache.produce(STAGE, options, {"float": exported, "int8": quantized}, output, make)


def compared(every: mixed_cost.Route, best: mixed_cost.Route) -> tuple[Compared, Compared, Compared]:
    """The predicted instructions, moved bytes and bytes of weights of the int8 and of the mixed model."""
    before, after = every.cost, best.cost
    return (
        Compared(round(before.instructions), round(after.instructions)),
        Compared(round(before.moved_bytes), round(after.moved_bytes)),
        Compared(round(before.weight_bytes), round(after.weight_bytes)),
    )


def float_twin(exported: Path, quantized: Quantized) -> "onnx.ModelProto":
    """The float graph whose weights were rounded to those of the int8 graph: with its channels rescaled where
    they were for that."""
    import onnx

    floating = onnx.load(exported)
    if INT8_FORMS[quantized.int8.chosen].equalized:
        equalize.equalize(floating, equalize.find_scales(floating))
    return floating


def ensure_twin(floating: "onnx.ModelProto", integers: "onnx.ModelProto") -> None:
    """Check that the int8 weights are those of the float graph, rounded.

    Raises:
        CheckFailedError: a layer's are not.
    """
    known, rounded = tensors_of(floating), tensors_of(integers)
    for layer in chain.layers(floating):
        if f"{layer.weight}_quantized" not in rounded:
            continue
        scale = array(rounded[f"{layer.weight}_scale"])
        steps = scale.reshape((-1, 1, 1, 1) if layer.kind == "Conv" else (1, -1))
        errors = (qdq.dequantized(layer, rounded) - array(known[layer.weight])) / steps
        apart = float(np.sqrt(np.square(errors).mean()))
        if not apart <= TWIN:
            raise CheckFailedError(
                f"the int8 weights of {layer.name} are {apart:.2g} steps off its float weights, at most"
                f" {TWIN:g} allowed: the int8 model was not made of this float model"
            )


def choose(
    floating: "onnx.ModelProto", integers: "onnx.ModelProto", core: str
) -> tuple[mixed_cost.Route, mixed_cost.Route]:
    """How every layer is computed where all that can are int8, and in the cheapest way.

    Raises:
        NothingToGainError: the cheapest way saves less than LEAST_GAIN.
    """
    links = mixed.links(floating, integers)
    as_it_is = [
        dataclasses.replace(link, int8_only=link.kind == "layer" and not link.float_only) for link in links
    ]
    every = mixed_cost.cheapest(as_it_is, core, (INT8, FP32))
    best = mixed_cost.cheapest(links, core)
    gain = 1 - best.cost.weighed(mixed_cost.PER_BYTE) / every.cost.weighed(mixed_cost.PER_BYTE)
    if gain < LEAST_GAIN:
        raise NothingToGainError(
            f"the cheapest mixture of int8 and float saves {max(gain, 0):.1%} on a {core}, and less than"
            f" {LEAST_GAIN:.0%} is not worth a build"
        )
    return every, best


def ways_of_layers(floating: "onnx.ModelProto", chosen: mixed_cost.Route) -> dict[str, str]:
    return {layer.name: chosen.ways[layer.name] for layer in chain.layers(floating)}


def ensure_graph(exported: Path, result: Path, layers: dict[str, str]) -> None:
    """Check a mixed graph's inputs and outputs, that it is valid, and that onnxruntime computes every layer
    in its way.

    Raises:
        CheckFailedError: it does not.
    """
    winograd_layers.ensure_same_interface(exported, result)
    audit.check(result)
    winograd_layers.ensure_folded(result, [name for name, way in layers.items() if way in FORMS])
    nodes = audit.optimized(result).graph.node
    integers = sum(node.op_type in mixed.INTEGER_OPS for node in nodes)
    floats = {node.input[1].removesuffix(".weight") for node in nodes if node.op_type in audit.FLOAT_OPS}
    products = {
        node.name.partition(winograd_layers.MARK)[0]
        for node in nodes
        if node.op_type == "MatMul" and winograd_layers.MARK in node.name
    }
    for what, found, way in (("float", floats, (FP32,)), ("Winograd's", products, tuple(FORMS))):
        expected = {name for name, known in layers.items() if known in way}
        if found != expected:
            raise CheckFailedError(
                f"after onnxruntime's optimizer the layers in {what} are {_shown(found)}; expected"
                f" {_shown(expected)}"
            )
    if integers != list(layers.values()).count(INT8):
        raise CheckFailedError(
            f"after onnxruntime's optimizer {integers} layers are in int8; expected"
            f" {list(layers.values()).count(INT8)}"
        )


def _shown(layers: set[str]) -> str:
    return ", ".join(sorted(layers)) or "none"
