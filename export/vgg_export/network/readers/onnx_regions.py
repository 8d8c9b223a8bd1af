"""Recognises activations that an ONNX file spells out in elementwise operators, by what they compute."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vgg_export.core.errors import CheckpointError

from .onnx_graph import Graph
from .onnx_nodes import label

# fmt: off
_ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Tanh",
    "Sigmoid", "HardSigmoid", "Softplus", "Relu", "LeakyRelu", "Elu", "Selu", "Clip", "Max", "Min",
    "Identity", "Cast", "Sign", "Mish", "HardSwish", "Softsign", "Celu", "ThresholdedRelu", "Gelu", "Swish",
    "PRelu", "Where", "Less", "Greater", "LessOrEqual", "GreaterOrEqual",
}
# fmt: on
_MOST_NODES = 16
_TOLERANCE = 1e-5
_PLACES = np.linspace(-9, 9, 361, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Region:
    """Elementwise ``nodes``, the ``value`` behind them, and the ``activation`` that they compute."""

    nodes: tuple[Any, ...]
    value: str
    activation: str


def find(graph: Graph, value: str) -> Region | None:
    """The nodes behind a value that compute an activation; None where other nodes read the value.

    Raises:
        CheckpointError: they are elementwise, but compute none that this program knows.
    """
    longest: tuple[Any, ...] = ()
    for nodes in _regions(graph, value):
        longest = nodes
        if text := _activation(graph, nodes, value):
            return Region(nodes, nodes[-1].output[0], text)
    if not longest:
        return None
    raise CheckpointError(
        f"{label(longest[0])} to {label(longest[-1])} compute an activation that this program does not have;"
        " expected relu, leaky_relu, relu6, elu, tanh, sigmoid, silu or gelu"
    )


def _regions(graph: Graph, value: str) -> Iterator[tuple[Any, ...]]:
    """The elementwise nodes from a value to each later one that everything behind depends on."""
    inside: list[Any] = []
    known = {value}
    for node in graph.nodes:
        if not known.intersection(node.input):
            continue
        others = [name for name in node.input if name and name not in known]
        scalars = all(_is_scalar(graph, name) for name in others)
        if node.op_type not in _ELEMENTWISE or not scalars or len(inside) == _MOST_NODES:
            return
        inside.append(node)
        known.add(node.output[0])
        if _is_only_open(graph, known, inside):
            yield tuple(inside)


def _is_scalar(graph: Graph, name: str) -> bool:
    constant = graph.constant(name)
    return constant is not None and constant.size == 1


def _is_only_open(graph: Graph, known: set[str], inside: list[Any]) -> bool:
    """Whether nodes outside read the last value alone, or the file gives it alone."""
    done = {id(node) for node in inside}
    still_read = {
        name
        for name in known
        if name == graph.output or any(id(reader) not in done for reader in graph.readers(name))
    }
    return still_read == {inside[-1].output[0]}


def _activation(graph: Graph, nodes: Sequence[Any], value: str) -> str | None:
    """The activation that elementwise nodes compute; None: none that this program knows."""
    with np.errstate(all="ignore"):
        given = _computed(graph, nodes, value)
    for text, function in _known(given):
        expected = function(_PLACES.astype(np.float64))
        if np.abs(given - expected).max() <= _TOLERANCE * np.abs(expected).max():
            return text
    return None


def _computed(graph: Graph, nodes: Sequence[Any], value: str) -> "np.ndarray[Any, Any]":
    from onnx.reference import ReferenceEvaluator

    values: dict[str, np.ndarray[Any, Any]] = {value: _PLACES}
    for node in nodes:
        inputs = {}
        for name in filter(None, node.input):
            constant = values.get(name)
            if constant is None:
                constant = graph.constant(name)
            assert constant is not None  # as ``region`` made sure of
            inputs[name] = constant if name in values else constant.reshape(())
        evaluator = ReferenceEvaluator(node, opsets={"": graph.version})
        values[node.output[0]] = np.asarray(evaluator.run(None, inputs)[0])
    return values[nodes[-1].output[0]].astype(np.float64)


def _known(given: "np.ndarray[Any, Any]") -> list[tuple[str, Callable[[Any], Any]]]:
    """Every activation, with the slope that the values themselves have where there is one."""
    import torch
    from torch.nn import functional as f

    def of(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
        return lambda x: function(torch.from_numpy(x)).numpy()

    slope, alpha = float(given[0]) / -9, -float(given[0]) / (1 - float(np.exp(-9)))
    return [
        ("none", lambda x: x),
        ("relu", of(torch.relu)),
        ("relu6", of(f.relu6)),
        ("tanh", of(torch.tanh)),
        ("sigmoid", of(torch.sigmoid)),
        ("silu", of(f.silu)),
        ("gelu", of(f.gelu)),
        ("gelu_tanh", of(lambda x: f.gelu(x, approximate="tanh"))),
        (f"leaky_relu({slope:.6g})", lambda x: np.where(x > 0, x, slope * x)),
        (f"elu({alpha:.6g})", lambda x: np.where(x > 0, x, alpha * np.expm1(x))),
    ]
