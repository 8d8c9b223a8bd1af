"""The layers of an exported VGG: a chain of convolutions and fully connected layers with ReLU, pooling and a
flattening between."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Layer:
    """A Conv or Gemm node, with its ReLU where it has one.

    ``name`` is that of its weight without ``.weight`` (conv3_1, fc1_reduce). ``input``, ``sum`` and
    ``output`` name tensors: what the node reads, what it computes, and the same after the ReLU (``sum`` where
    there is none). ``nodes`` names the node and its ReLU.
    """

    name: str
    kind: str
    weight: str
    bias: str | None
    input: str
    sum: str
    output: str
    nodes: tuple[str, ...]

    @property
    def part_of(self) -> str:
        """The name of its layer in the plan. Both parts of a factorised layer give the same."""
        return self.name.removesuffix("_reduce").removesuffix("_expand")


def layers(model: "onnx.ModelProto") -> list[Layer]:
    """The layers from the input to the logits; the weights themselves are not looked at.

    Raises:
        ValueError: the graph is not a chain, has an operator that an exported VGG has not at this place, or
            has a Gemm whose weight is [outputs, inputs].
    """
    found: list[Layer] = []
    before = model.graph.input[0].name
    for node in model.graph.node:
        if node.input[0] != before:
            raise ValueError(
                f"{node.op_type} {node.name} reads {node.input[0]}; expected {before}: a VGG is a chain"
            )
        before = node.output[0]
        if any(a.name == "transB" and a.i for a in node.attribute):
            raise ValueError(
                f"the weight of {node.name} is stored as [outputs, inputs]; expected [inputs, outputs]"
            )
        if node.op_type in ("Conv", "Gemm"):
            weight, bias = node.input[1], node.input[2] if len(node.input) > 2 else None
            name = weight.removesuffix(".weight")
            found.append(Layer(name, node.op_type, weight, bias, node.input[0], before, before, (node.name,)))
        elif node.op_type == "Relu" and found and found[-1].output == node.input[0]:
            found[-1] = dataclasses.replace(found[-1], output=before, nodes=(*found[-1].nodes, node.name))
        elif node.op_type not in ("MaxPool", "Reshape", "Flatten"):
            raise ValueError(f"an exported VGG has no {node.op_type} at the place of {node.name}")
    return found
