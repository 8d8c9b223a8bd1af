"""The layers of an exported network: a chain of convolutions and fully connected layers with activations,
pools and flattenings between."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "Gemm")
# An operator that gives some of the values that it reads, or means of a few of them: its output has the range
# of its input.
SAME_RANGE = ("MaxPool", "AveragePool", "Reshape", "Flatten")
# An activation that limits what it reads: rounding to 8 bits in the range of its output does the same.
LIMITS = ("Relu", "Clip")
# A SiLU is a Sigmoid and a Mul.
ACTIVATIONS = (*LIMITS, "LeakyRelu", "Elu", "Tanh", "Sigmoid", "Mul", "Gelu")
# An operator that gives k times as much for k times its input, k > 0, in every channel.
HOMOGENEOUS = ("Relu", "LeakyRelu", "GlobalAveragePool", *SAME_RANGE)
OTHERS = ("GlobalAveragePool", *SAME_RANGE)  # between layers, apart from activations


@dataclasses.dataclass(frozen=True)
class Step:
    """A node that is no layer. ``op``: its operator. ``input`` and ``output`` name tensors."""

    op: str
    node: str
    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class Layer:
    """A Conv or Gemm node, and what follows before the next one.

    ``name`` is that of its weight without ``.weight`` (conv3_1, fc1_reduce). ``input`` and ``sum`` name
    tensors: what the node reads, and what it computes. ``steps``: the nodes behind it, in order, those of its
    activation first. ``strides`` (down, across), ``pads`` (top, left, bottom, right) and ``groups`` are those
    of a convolution; several groups have one channel each.
    """

    name: str
    kind: str
    weight: str
    bias: str | None
    input: str
    sum: str
    node: str
    steps: tuple[Step, ...] = ()
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    @property
    def part_of(self) -> str:
        """The name of its layer in the chain. Both parts of a factorised layer give the same."""
        return self.name.removesuffix("_reduce").removesuffix("_expand")

    @property
    def activation(self) -> tuple[Step, ...]:
        """The nodes of its activation; none where it has none."""
        return tuple(itertools.takewhile(lambda step: step.op in ACTIVATIONS, self.steps))

    @property
    def output(self) -> str:
        """The tensor behind the activation; ``sum`` where there is none."""
        return self.activation[-1].output if self.activation else self.sum

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the node and of those of its activation."""
        return (self.node, *(step.node for step in self.activation))

    @property
    def gives(self) -> str:
        """The tensor that the next layer reads."""
        return self.steps[-1].output if self.steps else self.sum

    @property
    def is_homogeneous(self) -> bool:
        """Whether a positive factor on a channel goes through all that follows the layer."""
        return all(step.op in HOMOGENEOUS for step in self.steps)

    def ranged(self) -> Iterator[str]:
        """The tensors from ``sum`` to ``gives`` that have ranges of their own."""
        made = [(self.kind, self.sum), *((step.op, step.output) for step in self.steps)]
        following = [*(step.op for step in self.steps), ""]
        for (op, tensor), after in zip(made, following, strict=True):
            if op not in SAME_RANGE and after not in LIMITS:
                yield tensor


def layers(model: "onnx.ModelProto") -> list[Layer]:
    """The layers from the input to the logits; the weights themselves are not looked at.

    Raises:
        ValueError: the graph is not a chain that begins with a layer, has an operator that an exported
            network has not at this place, or has a Gemm whose weight is [outputs, inputs].
    """
    found: list[Layer] = []
    before = model.graph.input[0].name
    for node in model.graph.node:
        _ensure_next(node, before, found)
        before = node.output[0]
        if node.op_type in LAYERS:
            found.append(_layer(node))
        else:
            step = Step(node.op_type, node.name, node.input[0], before)
            found[-1] = dataclasses.replace(found[-1], steps=(*found[-1].steps, step))
    return found


def _ensure_next(node: "onnx.NodeProto", before: str, found: list[Layer]) -> None:
    """Make sure that a node may follow the ``found`` layers and reads ``before``."""
    reads = node.input[0]
    if node.op_type == "Mul" and found and found[-1].steps:  # x * sigmoid(x)
        gate = found[-1].steps[-1]
        reads = before if set(node.input) == {gate.input, before} and gate.op == "Sigmoid" else ""
    if reads != before:
        raise ValueError(
            f"{node.op_type} {node.name} reads {', '.join(node.input)}; expected {before}: the network is a"
            " chain"
        )
    if any(a.name == "transB" and a.i for a in node.attribute):
        raise ValueError(
            f"the weight of {node.name} is stored as [outputs, inputs]; expected [inputs, outputs]"
        )
    if node.op_type in LAYERS:
        return
    last = [layer.steps[-1].op if layer.steps else layer.kind for layer in found[-1:]]
    known = node.op_type in (*ACTIVATIONS, *OTHERS)
    if not known or not last or (node.op_type in LIMITS and last[0] in SAME_RANGE):
        raise ValueError(
            f"an exported network has no {node.op_type} at the place of {node.name}, behind"
            f" {last[0] if last else 'the input'}"
        )


def _layer(node: "onnx.NodeProto") -> Layer:
    weight, bias = node.input[1], node.input[2] if len(node.input) > 2 else None
    attributes: dict[str, Any] = {a.name: tuple(a.ints) or a.i for a in node.attribute}
    moves = {
        name: attributes[key]
        for name, key in (("strides", "strides"), ("pads", "pads"), ("groups", "group"))
        if key in attributes
    }
    name = weight.removesuffix(".weight")
    return Layer(name, node.op_type, weight, bias, node.input[0], node.output[0], node.name, **moves)
