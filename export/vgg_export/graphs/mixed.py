"""Makes one graph of an int8 graph and the float graph that it was made of: every layer is as in one of the
two, or in a form of Winograd's.

For cores without a dot product, where int8 saves no arithmetic and some layers are cheaper in float. Where a
layer is int8, its weights, steps and ranges are those of the int8 graph; else its weights are those of the
float graph. Between two float layers nothing is rounded.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from vgg_calibration import chain
from vgg_calibration.chain import Layer, Step
from vgg_export.core.errors import NothingToGainError, RewriteError
from vgg_export.network.chain import Part

from . import winograd_layers
from .cook_toom import FORMS
from .mixed_cost import FP32, INT8, Link, Map
from .tensors import tensors_of

if TYPE_CHECKING:
    import onnx

    from .tensors import Tensors

PAIR = ("QuantizeLinear", "DequantizeLinear")  # as onnxruntime's quantizer names their nodes and outputs
# A fully connected layer with weights of 4 bits. It reads and gives floats that are rounded to 8 bits.
FOUR_BITS = "MatMulNBits"
INTEGER_OPS = frozenset({"QLinearConv", "QGemm", FOUR_BITS})  # the operators of int8 layers, optimized
GUARD = "_stays_float"
# The nodes between layers that may be int8 or float. A Relu is part of the layer before it.
KINDS = {"MaxPool": "pool", "Reshape": "flatten", "Flatten": "flatten"}


def links(floating: "onnx.ModelProto", integers: "onnx.ModelProto") -> list[Link]:
    """The pieces of the chain, for ``mixed_cost.cheapest``. What ``integers`` has in float stays so.

    Raises:
        NothingToGainError: the chain has other nodes than those that may change.
    """
    shapes = winograd_layers.shapes_of(floating)
    rounded = {node.name: node.op_type for node in integers.graph.node}
    nodes = {node.name: node for node in floating.graph.node}
    found = []
    for layer in chain.layers(floating):
        found.append(_layer_link(layer, shapes, rounded))
        for step in layer.steps:
            if step.op == "Relu":
                continue
            if step.op not in KINDS:
                raise NothingToGainError(
                    f"{step.op} {step.node} was not counted; counted are ReLU, max-pools and flattening"
                )
            if step.op == "MaxPool":
                _ensure_counted(nodes[step.node])
            reads, gives = (_size(shapes[name]) for name in (step.input, step.output))
            float_only = not _has_steps(rounded, step.input, step.output)
            found.append(Link(step.node, KINDS[step.op], reads, gives, float_only=float_only))
    return found


def _layer_link(layer: Layer, shapes: Mapping[str, tuple[int, ...]], rounded: Mapping[str, str]) -> Link:
    if layer.groups > 1:
        raise NothingToGainError(f"{layer.name} has {layer.groups} groups, which was not counted")
    if f"{layer.weight}_{PAIR[1]}_part0" in rounded:
        raise NothingToGainError(f"{layer.name} is in halves, and so large that it cannot be float")
    reads, gives, weight = shapes[layer.input], shapes[layer.sum], shapes[layer.weight]
    kernel: tuple[int, int] | None = None
    sides, (inputs, outputs) = (1, 1), weight[:2]
    if layer.kind == "Conv":
        outputs, inputs, *_ = weight
        kernel, sides = (weight[2], weight[3]), (gives[2], gives[3])
    part = Part(layer.name, inputs, outputs, kernel, layer.strides, layer.pads, sides, bool(layer.bias))
    as_it_is = rounded.get(layer.node, layer.kind) == FOUR_BITS
    has_integers = as_it_is or f"{layer.weight}_{PAIR[1]}" in rounded
    return Link(
        *(layer.name, "layer", _size(reads), _size(gives), part),
        relu=bool(layer.activation),
        float_only=not (has_integers and _has_steps(rounded, layer.input, layer.output)),
        int8_only=as_it_is,
    )


def _ensure_counted(pool: "onnx.NodeProto") -> None:
    """Raise where a pool is none of 2x2 windows side by side, which were counted."""
    found = {a.name: tuple(a.ints) for a in pool.attribute}
    window, strides, pads = (found.get(key, ()) for key in ("kernel_shape", "strides", "pads"))
    if window != (2, 2) or strides != (2, 2) or any(pads):
        raise NothingToGainError(
            f"{pool.name} has windows of {window}, strides of {strides} and pads of {pads}; counted are"
            " windows of (2, 2) side by side"
        )


def _has_steps(rounded: Collection[str], *tensors: str) -> bool:
    """Whether the int8 graph quantizes all of these tensors."""
    return all(f"{tensor}_{PAIR[0]}" in rounded for tensor in tensors)


def _size(shape: tuple[int, ...]) -> Map:
    """The channels and positions of a tensor [batch, channels, ...]."""
    return shape[1], math.prod(shape[2:])


def mix(
    floating: "onnx.ModelProto", integers: "onnx.ModelProto", ways: Mapping[str, str]
) -> "onnx.ModelProto":
    """The graph with every layer and pool computed in its way.

    Args:
        floating: the float graph, as exported.
        integers: the int8 QDQ graph made of it; its tensors have the same names.
        ways: INT8, FP32 or the name of a form by link, as ``mixed_cost.cheapest`` found them.

    Raises:
        RewriteError: a layer that is to be int8 is none in ``integers``.
    """
    mixer = _Mixer(floating, integers, ways)
    layers = chain.layers(floating)
    for layer, after in itertools.zip_longest(layers, layers[1:]):
        mixer.layer(layer, after)
    made = mixer.model()
    winograd_layers.rewrite(made, {name: FORMS[way] for name, way in ways.items() if way in FORMS})
    return made


class _Mixer:
    """The mixed graph while it is built, from the input to the logits."""

    def __init__(
        self, floating: "onnx.ModelProto", integers: "onnx.ModelProto", ways: Mapping[str, str]
    ) -> None:
        self.floating, self.integers, self.ways = floating, integers, ways
        self.given = {node.name: node for node in floating.graph.node}
        self.quantizers = {node.name: node for node in integers.graph.node}
        self.tensors = tensors_of(floating)
        self.quantized = tensors_of(integers)
        self.nodes: list[onnx.NodeProto] = []
        self.used: dict[str, onnx.TensorProto] = {}
        # the name of the tensor as the nodes so far give it, and whether it was dequantized
        self.present, self.rounded = floating.graph.input[0].name, False

    def layer(self, layer: Layer, after: Layer | None) -> None:
        """Add a layer and the nodes behind it. ``after``: the layer that follows."""
        if self.ways[layer.name] == INT8:
            self.round(layer.input)
            if self.known(layer.node).op_type == FOUR_BITS:
                self.as_it_is(self.known(layer.node), layer.output)
            else:
                weights = [self.dequantized(name) for name in (layer.weight, layer.bias) if name]
                self.add(self.given[layer.node], [self.present, *weights], layer.output)
            self.round(layer.output)
        else:
            next_is_integer = after is not None and self.ways[after.name] == INT8
            if self.ways[layer.name] == FP32 and self.rounded and next_is_integer:
                self.guard(layer)
            weights = [self.constant(self.tensors, name) for name in (layer.weight, layer.bias) if name]
            self.add(self.given[layer.node], [self.present, *weights], layer.sum)
            for step in layer.activation:
                self.add(self.given[step.node], [self.present], step.output)
        for step in layer.steps[len(layer.activation) :]:
            self.between(step)

    def as_it_is(self, node: "onnx.NodeProto", output: str) -> None:
        """Add a layer as the int8 graph has it."""
        constants = [self.constant(self.quantized, name) if name else "" for name in node.input[1:]]
        self.add(node, [self.present, *constants], output)

    def between(self, step: Step) -> None:
        """Add a pool or a flattening."""
        integer = self.ways[step.node] == INT8
        if integer:
            self.round(step.input)
        node = self.given[step.node]
        constants = [self.constant(self.tensors, name) for name in node.input[1:]]
        self.add(node, [self.present, *constants], step.output)
        if integer:
            self.round(step.output)

    def add(self, node: "onnx.NodeProto", inputs: Sequence[str], output: str) -> None:
        """Add a copy of a node with other inputs, after which the tensor is float."""
        copy = type(node).FromString(node.SerializeToString())
        copy.input[:], copy.output[:] = inputs, [output]
        self.nodes.append(copy)
        self.present, self.rounded = output, False

    def round(self, tensor: str) -> None:
        """Quantize and dequantize the present tensor, which is called ``tensor`` in both graphs, as in the
        int8 graph; nothing where that was done."""
        if self.rounded:
            return
        steps = self.known(f"{tensor}_{PAIR[0]}").input[1:]
        is_last = tensor == self.floating.graph.output[0].name
        if is_last:  # the logits keep their name
            self.nodes[-1].output[0] = self.present = f"{tensor}_{PAIR[0]}_Input"
        for which in PAIR:
            node = self.known(f"{tensor}_{which}")
            names = [self.present, *(self.constant(self.quantized, name) for name in steps)]
            output = tensor if is_last and which == PAIR[1] else f"{tensor}_{which}_Output"
            self.add(node, names, output)
        self.rounded = True

    def guard(self, layer: Layer) -> None:
        """Put a node that changes nothing before a float layer between two int8 ones, because onnxruntime's
        optimizer would quantize it otherwise."""
        from onnx import helper

        name = f"{layer.name}{GUARD}"
        self.nodes.append(helper.make_node("Clip", [self.present], [name], name))
        self.present, self.rounded = name, False

    def dequantized(self, name: str) -> str:
        """A weight or bias of the int8 graph, behind its DequantizeLinear."""
        node = self.known(f"{name}_{PAIR[1]}")
        copy = type(node).FromString(node.SerializeToString())
        for tensor in copy.input:
            self.constant(self.quantized, tensor)
        self.nodes.append(copy)
        return str(copy.output[0])

    def known(self, name: str) -> "onnx.NodeProto":
        if name not in self.quantizers:
            raise RewriteError(
                f"the int8 graph has no node {name}; expected one that was made of this float graph"
            )
        return self.quantizers[name]

    def constant(self, tensors: "Tensors", name: str) -> str:
        self.used[name] = tensors[name]
        return name

    def model(self) -> "onnx.ModelProto":
        from onnx import helper

        graph = self.floating.graph
        made = helper.make_graph(self.nodes, graph.name, graph.input, graph.output, self.used.values())
        opsets = {one.domain: one for model in (self.integers, self.floating) for one in model.opset_import}
        return helper.make_model(made, opset_imports=opsets.values(), ir_version=self.floating.ir_version)
