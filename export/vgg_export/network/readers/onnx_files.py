"""Reads networks from ONNX files, as exporters of PyTorch and of Keras write them."""

import ast
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg_export.core.errors import CheckpointError
from vgg_export.network import modules
from vgg_export.network.assemble import Assembled
from vgg_export.network.provenance import ASSUMED, CONVENTION, FILE, Origins
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.text import printable

from . import class_names, onnx_regions, torch_inputs, tracked
from .class_names import ClassNames
from .found import Found
from .onnx_graph import Graph
from .onnx_nodes import attribute, label
from .tracked import Tracked

if TYPE_CHECKING:
    import torch

FIRST, LAST = "NCHW", "NHWC"  # where the channels stand in an input
_CHANNELS = (1, 3)  # that pictures have
_LONGEST_NAMES = 1_000_000  # characters of class names in the metadata
_FOREIGN = ("HardSwish", "HardSigmoid", "Softplus", "Softsign", "Selu", "Celu", "Mish", "ThresholdedRelu")
_NOTHING = ("Identity", "Dropout")
_FLOATS = (1, 10, 11, 16)  # TensorProto's float, float16, double and bfloat16
_UINT8 = 2
_MOST_BETWEEN = 4  # nodes between a single channel and where it is joined to others
LOWEST = -1e30  # a padding below it never wins in a max-pool


def read(path: Path) -> Found:
    """The network in an ONNX file.

    Raises:
        CheckpointError: the file is damaged, or its graph is no chain of layers that this program knows; the
            message names the first node that is not.
    """
    try:
        return _read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is an ONNX model: {error}") from error
    except Exception as error:  # a damaged file can raise any error, with a message for programmers
        raise CheckpointError(
            f"{path} is an ONNX model that cannot be read ({type(error).__name__}:"
            f" {printable(str(error), 100)}); it may be damaged: export it again"
        ) from error


def _read(path: Path) -> Found:
    graph = Graph(path)
    axes, channels, px = _input(graph)

    def walk(px: int) -> Assembled:
        graph.forget()
        return _Walk(graph, axes, channels, px).to_the_end()

    (network, px), origin = (tracked.sized(walk), ASSUMED) if px is None else ((walk(px), px), FILE)
    keras = axes == LAST
    origins = Origins(
        px=origin, channels=FILE, resize=CONVENTION if keras else ASSUMED, normalize=ASSUMED, activations=FILE
    )
    white = 255.0 if graph.input.type.tensor_type.elem_type == _UINT8 else None
    spec, origins = tracked.prepared(network, _usual(graph, px, channels, keras=keras), origins, white)
    output, origins = tracked.output_of(network, origins)
    names, fault = _names(graph.metadata, path)
    by = f", written by {graph.producer}" if graph.producer else ""
    container = f"an ONNX model (operators of version {graph.version}{by})"
    return Found(container, network, spec, output, origins, names=names, names_fault=fault)


def _usual(graph: Graph, px: int, channels: int, *, keras: bool) -> InputSpec:
    """How pictures most often become the input of such a file."""
    if keras:
        return tracked.from_keras(px, channels, pretrained=any("block1_conv1" in n.name for n in graph.nodes))
    return torch_inputs.usual(px, channels)


def _input(graph: Graph) -> tuple[str, int, int | None]:
    """Where the channels stand, their number, and the size in pixels; None: the file leaves it open."""
    kind = graph.input.type.tensor_type
    if kind.elem_type not in (*_FLOATS, _UINT8):
        raise CheckpointError("its input is neither floating-point numbers nor bytes; expected pictures")
    dims = [one.dim_value if one.HasField("dim_value") else 0 for one in kind.shape.dim]
    if len(dims) != 4:
        raise CheckpointError(
            f"its input has {len(dims)} dimensions; expected 4: pictures, channels, rows and columns"
        )
    if dims[0] > 1:
        # the graph may count on it, in a Reshape for example
        raise CheckpointError(
            f"it takes {dims[0]} pictures at once; expected one, or any number: export it with one"
        )
    axes = _layout(graph, dims)
    rows, columns = dims[axes.index("H")], dims[axes.index("W")]
    channels = dims[axes.index("C")] or _first_channels(graph)
    if rows and columns and rows != columns:
        raise CheckpointError(f"it takes pictures of {rows} x {columns} px; expected square ones")
    return axes, tracked.ensure_channels(channels), (rows or columns) or None


def _layout(graph: Graph, dims: list[int]) -> str:
    if (dims[1] in _CHANNELS) != (dims[3] in _CHANNELS):
        return FIRST if dims[1] in _CHANNELS else LAST
    first = next((node for node in graph.nodes if node.op_type in ("Transpose", "Conv")), None)
    keras = first is not None and list(attribute(first, "perm", [])) == [0, 3, 1, 2]
    return LAST if keras else FIRST


def _first_channels(graph: Graph) -> int:
    first = next((node for node in graph.nodes if node.op_type == "Conv"), None)
    weight = None if first is None else graph.constant(first.input[1])
    return 0 if weight is None else int(weight.shape[1])


class _Walk:
    """Follows the one value from the input to the output. ``axes``: what its axes are, letters of NCHW, or NF
    behind the flattening; the number of pictures N is one."""

    def __init__(self, graph: Graph, axes: str, channels: int, px: int) -> None:
        self._graph, self._axes = graph, axes
        self._chain = Tracked(channels, (px, px))
        self._value: str = graph.input.name
        self._half_reduced: str | None = None  # the operator that took the mean or maximum over one side
        self._pool_padding: tracked.Sides | None = None  # with the lowest numbers, for the next max-pool
        self._names: set[str] = set()

    def to_the_end(self) -> Assembled:
        self._remember()
        while self._value != self._graph.output:
            readers = self._graph.readers(self._value)
            if len(readers) == 1 and readers[0].op_type in _STEPS:
                self._step(readers[0])
            elif found := onnx_regions.find(self._graph, self._value):
                self._chain.activation(label(found.nodes[0]), found.activation)
                self._value = found.value
            elif not self._picked_channels(readers):
                raise self._no_step(readers)
            self._remember()
        if readers := self._graph.readers(self._value):
            raise CheckpointError(f"{label(readers[0])} reads its output; expected the output at the end")
        return self._chain.finish()

    def _remember(self) -> None:
        self._graph.shapes[self._value] = self._shape()

    def _shape(self) -> tuple[int, ...]:
        return tuple(self._side(axis) for axis in self._axes)

    def _side(self, axis: str) -> int:
        rows, columns = self._chain.sides or (1, 1)
        return {"N": 1, "C": self._chain.width, "F": self._chain.width, "H": rows, "W": columns}[axis]

    def _step(self, node: Any) -> None:
        if self._half_reduced and node.op_type != self._half_reduced:
            raise CheckpointError(f"{label(node)} follows a mean over one side; expected one over both")
        _STEPS[node.op_type](self, node)
        self._value = node.output[0]

    def _no_step(self, readers: list[Any]) -> CheckpointError:
        if len(readers) > 1:
            maker = self._graph.maker(self._value)
            where = f"behind {label(maker)}" if maker is not None else "at its input"
            found = " and ".join(label(node) for node in readers[:3])
            return CheckpointError(
                f"the network branches {where}: {found} read the same value; expected a chain, where each"
                " layer reads the one before alone"
            )
        if not readers:
            return CheckpointError("its output does not depend on its input; expected a network")
        node = readers[0]
        others = [n for n in node.input if n and n != self._value and self._graph.constant(n) is None]
        if others:
            return CheckpointError(
                f"the network branches: {label(node)} joins {len(others) + 1} values; expected a chain, where"
                " each layer reads the one before alone"
            )
        return CheckpointError(
            f"{label(node)} is no layer that this program knows; expected convolutions, batch norm, pools,"
            " flattening, fully connected layers and plain activations"
        )

    # steps

    def _constant(self, node: Any, k: int) -> "np.ndarray[Any, Any] | None":
        """The k-th input of a node as numbers; None where it has none."""
        if k >= len(node.input) or not node.input[k]:
            return None
        found = self._graph.constant(node.input[k])
        if found is None:
            raise CheckpointError(
                f"{label(node)} takes its {printable(node.input[k], 60)} from the network itself; expected"
                " numbers in the file"
            )
        return found

    def _tensor(self, node: Any, k: int) -> "torch.Tensor | None":
        found = self._constant(node, k)
        return None if found is None else _torch(found)

    def _needed(self, node: Any, k: int) -> "torch.Tensor":
        found = self._tensor(node, k)
        if found is None:
            raise CheckpointError(f"{label(node)} lacks its input {k + 1}; expected its weights")
        return found

    def _name(self, node: Any) -> str:
        name = printable(node.name, 80)
        if not name or name in self._names:
            name = printable(node.output[0], 80)
        self._names.add(name)
        return name

    def _expect(self, node: Any, axes: str) -> None:
        if self._axes != axes:
            raise CheckpointError(
                f"{label(node)} reads its axes in the order {self._axes}; expected {axes} (pictures,"
                " channels, rows, columns; F: features)"
            )

    def _first_reads(self, node: Any) -> None:
        if node.input[0] != self._value:
            raise CheckpointError(f"{label(node)} takes the network as its second input; expected its first")

    def conv(self, node: Any) -> None:
        self._expect(node, FIRST)
        self._first_reads(node)
        stride, padding = self._windows(node, 2)
        dilation = _pair(attribute(node, "dilations", [1, 1]), node)
        weight, bias = self._needed(node, 1), self._tensor(node, 2)
        groups = int(attribute(node, "group", 1))
        self._chain.conv(
            self._name(node),
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )

    def _windows(self, node: Any, rank: int) -> tuple[tracked.Pair, tracked.Sides | str]:
        stride = _pair(attribute(node, "strides", [1] * rank), node)
        automatic = str(attribute(node, "auto_pad", "NOTSET"))
        if automatic in _AUTOMATIC:
            return stride, _AUTOMATIC[automatic]
        pads = [int(n) for n in attribute(node, "pads", [0] * 2 * rank)]
        if len(pads) != 4:
            raise CheckpointError(f"{label(node)} pads {len(pads) // 2} sides; expected rows and columns")
        return stride, (pads[0], pads[1], pads[2], pads[3])

    def pool(self, node: Any) -> None:
        self._expect(node, FIRST)
        kernel = _pair(attribute(node, "kernel_shape", []), node)
        stride, padding = self._windows(node, 2)
        if any(n != 1 for n in attribute(node, "dilations", [1])):
            raise CheckpointError(f"{label(node)} is a pool with gaps (dilation); expected one without")
        if len(node.output) > 1 and node.output[1]:
            raise CheckpointError(f"{label(node)} gives the places of its maxima; expected a plain pool")
        if self._pool_padding:
            if padding != (0, 0, 0, 0):
                raise CheckpointError(f"{label(node)} pads once more; expected one padding before a max-pool")
            padding, self._pool_padding = self._pool_padding, None
        self._chain.pool(
            label(node),
            kernel,
            stride,
            padding,
            mean=node.op_type == "AveragePool",
            ceil=bool(attribute(node, "ceil_mode", 0)),
            counts_padding=bool(attribute(node, "count_include_pad", 0)),
        )

    def global_pool(self, node: Any) -> None:
        self._expect(node, FIRST)
        self._chain.global_pool(label(node), mean=node.op_type == "GlobalAveragePool", keep=True)

    def reduce(self, node: Any) -> None:
        axes = self._constant(node, 1)
        listed = attribute(node, "axes", []) if axes is None else [int(n) for n in axes.ravel()]
        over = "".join(sorted(self._axes[n] for n in listed))
        if self._half_reduced:
            over = "".join(sorted(over + ("W" if over == "H" else "H")))
        keep = bool(attribute(node, "keepdims", 1))
        if over in ("H", "W") and "C" in self._axes:
            self._half_reduced = node.op_type
            self._axes = self._axes if keep else self._axes.replace(over, "")
            return
        if over != "HW":
            raise CheckpointError(
                f"{label(node)} reduces the axes {over or 'all'} of {self._axes}; expected rows and columns,"
                " as global pooling does"
            )
        self._half_reduced = None
        self._chain.global_pool(label(node), mean=node.op_type == "ReduceMean", keep=keep)
        if not keep:
            self._axes = "NF"

    def norm(self, node: Any) -> None:
        if attribute(node, "training_mode", 0) or (self._graph.version < 14 and len(node.output) > 1):
            raise CheckpointError(
                f"{label(node)} is a batch norm in its form for training; expected an export in evaluation"
                " mode (model.eval())"
            )
        if not attribute(node, "spatial", 1) or self._axes[1] not in "CF":
            raise CheckpointError(f"{label(node)} is a batch norm of places; expected one per channel")
        self._first_reads(node)
        gamma, beta, mean, variance = (self._needed(node, k) for k in range(1, 5))
        epsilon = float(attribute(node, "epsilon", 1e-5))
        scale, shift = modules.scale_and_shift(
            gamma=gamma, beta=beta, mean=mean, variance=variance, epsilon=epsilon
        )
        self._chain.norm(self._name(node), scale, shift)

    def arithmetic(self, node: Any) -> None:
        """Add, Sub, Mul or Div of a number per channel."""
        import torch

        forward = node.input[0] == self._value
        numbers = self._per_channel(node, node.input[1 if forward else 0])
        one, zero = torch.ones_like(numbers), torch.zeros_like(numbers)
        scale, shift = {
            "Add": (one, numbers),
            "Sub": (one, -numbers) if forward else (-one, numbers),
            "Mul": (numbers, zero),
            "Div": (1 / numbers, zero),
        }[node.op_type]
        if node.op_type == "Div" and not forward:
            raise CheckpointError(f"{label(node)} divides by the network; expected a layer of a chain")
        self._chain.norm(self._name(node), scale, shift)

    def _per_channel(self, node: Any, name: str) -> "torch.Tensor":
        import torch

        found = self._graph.constant(name)
        if found is None:
            raise self._no_step([node])
        k = self._axes.index("F" if "F" in self._axes else "C")
        shape = (1,) * (len(self._axes) - found.ndim) + found.shape
        if len(shape) != len(self._axes) or math.prod(shape) != shape[k]:
            raise CheckpointError(
                f"{label(node)} has numbers of the shape {list(found.shape)}; expected one, or one per"
                " channel"
            )
        numbers = _torch(found).double().flatten()
        width = self._side(self._axes[k])
        return numbers.expand(width).clone() if numbers.numel() == 1 else torch.as_tensor(numbers)

    def gemm(self, node: Any) -> None:
        self._expect(node, "NF")
        self._first_reads(node)
        if attribute(node, "transA", 0):
            raise CheckpointError(f"{label(node)} transposes what it reads; expected a fully connected layer")
        weight, bias = self._needed(node, 1), self._tensor(node, 2)
        weight = weight * float(attribute(node, "alpha", 1.0))
        weight = weight if attribute(node, "transB", 0) else weight.T
        if bias is not None:
            if bias.numel() not in (1, len(weight)):
                raise CheckpointError(
                    f"{label(node)} has a bias of {list(bias.shape)}; expected one per output"
                )
            bias = (bias * float(attribute(node, "beta", 1.0))).flatten().expand(len(weight))
        self._chain.linear(self._name(node), weight, bias)

    def matmul(self, node: Any) -> None:
        if self._axes[-1] not in "CF":
            raise CheckpointError(f"{label(node)} multiplies rows of the maps; expected features or channels")
        self._first_reads(node)
        self._chain.linear(self._name(node), self._needed(node, 1).T, None)

    def nothing(self, node: Any) -> None:
        if node.op_type == "Dropout":
            training = self._constant(node, 2)
            if training is not None and bool(training):
                raise CheckpointError(
                    f"{label(node)} is a dropout in its form for training; export in evaluation mode"
                    " (model.eval())"
                )

    def cast(self, node: Any) -> None:
        if attribute(node, "to") not in _FLOATS:
            raise CheckpointError(f"{label(node)} rounds to integers; expected floating-point numbers")

    def activation(self, node: Any) -> None:
        text = {"LeakyRelu": "leaky_relu", "Elu": "elu"}.get(node.op_type, node.op_type.lower())
        if node.op_type in ("LeakyRelu", "Elu"):
            text += f"({attribute(node, 'alpha', 0.01 if node.op_type == 'LeakyRelu' else 1.0):.6g})"
        elif node.op_type == "Gelu" and attribute(node, "approximate", "none") == "tanh":
            text = "gelu_tanh"
        elif node.op_type == "Swish":
            text = "silu"
            if attribute(node, "alpha", 1.0) != 1:
                raise self._foreign(node)
        self._chain.activation(label(node), text)

    def prelu(self, node: Any) -> None:
        slopes = self._needed(node, 1)
        if not bool((slopes == slopes.flatten()[0]).all()):
            raise CheckpointError(
                f"{label(node)} has a slope for each channel (PReLU); expected one slope for all, as in"
                " LeakyRelu"
            )
        self._chain.activation(label(node), f"leaky_relu({float(slopes.flatten()[0]):.6g})")

    def clip(self, node: Any) -> None:
        bounds = []
        for k, name in ((1, "min"), (2, "max")):
            given = self._constant(node, k) if self._graph.version >= 11 else attribute(node, name)
            bounds.append(None if given is None or abs(float(given)) > 1e30 else float(given))
        kind = {(0.0, 6.0): "relu6", (0.0, None): "relu", (None, None): "none"}.get((bounds[0], bounds[1]))
        if kind is None:
            raise CheckpointError(f"{label(node)} clips to {bounds}; expected 0 to 6, or 0 and more")
        self._chain.activation(label(node), kind)

    def _foreign(self, node: Any) -> CheckpointError:
        return CheckpointError(
            f"{label(node)} is an activation that this program does not have; expected relu, leaky_relu,"
            " relu6, elu, tanh, sigmoid, silu or gelu"
        )

    def foreign(self, node: Any) -> None:
        raise self._foreign(node)

    def softmax(self, node: Any) -> None:
        default = 1 if self._graph.version < 13 else -1
        axis = self._axes[int(attribute(node, "axis", default))]
        if axis not in "CF":
            raise CheckpointError(f"{label(node)} is over the axis {axis}; expected one over the classes")
        text = "softmax" if node.op_type == "Softmax" else "log_softmax"
        self._chain.activation(label(node), text)

    def pad(self, node: Any) -> None:
        given = attribute(node, "pads") if self._graph.version < 11 else self._constant(node, 1)
        value = attribute(node, "value") if self._graph.version < 11 else self._constant(node, 2)
        number = 0.0 if value is None else float(value)
        chosen, mode = self._constant(node, 3), attribute(node, "mode", "constant")
        # with the edge's own numbers, no maximum changes either: the edge is in the same window
        for_maximum = mode == "edge" or number < LOWEST
        if mode not in ("constant", "edge") or given is None or (number and not for_maximum):
            raise CheckpointError(f"{label(node)} pads with other numbers than zeros; expected zeros")
        numbers = [int(n) for n in np.asarray(given).ravel()]
        axes = self._axes if chosen is None else "".join(self._axes[int(n)] for n in chosen.ravel())
        sides = {axis: (numbers[k], numbers[k + len(axes)]) for k, axis in enumerate(axes)}
        rows, columns = sides.pop("H", (0, 0)), sides.pop("W", (0, 0))
        if any(any(both) for both in sides.values()):
            raise CheckpointError(f"{label(node)} pads channels or features; expected rows and columns")
        padding = (rows[0], columns[0], rows[1], columns[1])
        if not any(padding):
            return
        if not for_maximum:
            self._chain.pad(label(node), padding)
        elif [reader.op_type for reader in self._graph.readers(node.output[0])] != ["MaxPool"]:
            raise CheckpointError(
                f"{label(node)} pads with other numbers than zeros; expected a max-pool behind it"
            )
        else:
            self._pool_padding = padding

    def flatten(self, node: Any) -> None:
        if attribute(node, "axis", 1) % len(self._axes) != 1 or self._axes[0] != "N":
            raise CheckpointError(f"{label(node)} flattens other axes than those of one picture")
        self._reshaped(node, (1, math.prod(self._shape())))

    def transpose(self, node: Any) -> None:
        order = list(attribute(node, "perm", range(len(self._axes))[::-1]))
        self._axes = "".join(self._axes[k] for k in order)

    def reshape(self, node: Any) -> None:
        asked, shape = self._constant(node, 1), self._shape()
        assert asked is not None  # an input that must be there, which onnx.load does not check
        to = [int(n) for n in asked.ravel()]
        if not attribute(node, "allowzero", 0):
            to = [shape[k] if n == 0 else n for k, n in enumerate(to)]
        if -1 in to:
            to[to.index(-1)] = math.prod(shape) // max(1, -math.prod(to))
        self._reshaped(node, tuple(to))

    def squeeze(self, node: Any) -> None:
        axes = self._constant(node, 1)
        listed = attribute(node, "axes", None) if axes is None else [int(n) for n in axes.ravel()]
        shape = self._shape()
        if listed is None:
            listed = [k for k, side in enumerate(shape) if side == 1 and k]
        gone = {k % len(shape) for k in listed}
        if any(shape[k] != 1 or self._axes[k] not in "HW" for k in gone):
            raise CheckpointError(f"{label(node)} takes away other axes than rows and columns of one")
        self._axes = "".join(axis for k, axis in enumerate(self._axes) if k not in gone)
        if self._axes == "NC":
            self._chain.flatten(channels_last=False)
            self._axes = "NF"

    def unsqueeze(self, node: Any) -> None:
        axes = self._constant(node, 1)
        listed = attribute(node, "axes", []) if axes is None else [int(n) for n in axes.ravel()]
        rank, rest = len(self._axes) + len(listed), list(self._shape())
        new = {n % rank for n in listed}
        self._reshaped(node, tuple(1 if k in new else rest.pop(0) for k in range(rank)))

    def _reshaped(self, node: Any, to: tuple[int, ...]) -> None:
        """Another shape with the same numbers in the same order: a flattening, or sides of one that come or
        go."""
        shape = self._shape()
        if to == shape and (len(to) > 2 or self._axes == "NF"):
            return
        real = "".join(
            axis for axis, side in zip(self._axes, shape, strict=True) if side != 1 and axis != "N"
        )
        if math.prod(to) != math.prod(shape) or not to or to[0] != 1:
            raise self._odd_shape(node, to)
        if len(to) == 2:
            first, last = _is_within(real, "CHW"), _is_within(real, "HWC")
            if not (first or last) and real != "F":
                raise self._odd_shape(node, to)
            self._chain.flatten(channels_last=not first)
            self._axes = "NF"
        elif len(to) == 4 and self._chain.sides and [n for n in to if n != 1] == [n for n in shape if n != 1]:
            spare, named = [axis for axis in "CHW" if axis not in real], list(real)
            self._axes = "N" + "".join((spare if side == 1 else named).pop(0) for side in to[1:])
        else:
            raise self._odd_shape(node, to)

    def _odd_shape(self, node: Any, to: tuple[int, ...]) -> CheckpointError:
        return CheckpointError(
            f"{label(node)} makes {list(to)} of {list(self._shape())} ({self._axes}); expected a flattening"
            " of each picture"
        )

    def gather(self, node: Any) -> None:
        self._first_reads(node)
        indices = self._constant(node, 1)
        assert indices is not None  # an input that must be there
        axis = self._axes[int(attribute(node, "axis", 0))]
        order = [int(n) % self._side(axis) for n in indices.ravel()] if indices.ndim == 1 else []
        self._ordered(node, axis, order)

    def slice(self, node: Any) -> None:
        self._first_reads(node)
        if self._graph.version < 10:
            starts, ends, steps = attribute(node, "starts"), attribute(node, "ends"), None
            axes = attribute(node, "axes")
        else:
            starts, ends, axes, steps = (self._constant(node, k) for k in range(1, 5))
        listed = range(len(starts)) if axes is None else [int(n) for n in axes]
        for k, axis in enumerate(listed):
            step = 1 if steps is None else int(steps[k])
            side = self._side(self._axes[axis])
            order = list(range(side))[int(starts[k]) : int(ends[k]) : step]
            self._ordered(node, self._axes[axis], order)

    def _ordered(self, node: Any, axis: str, order: list[int]) -> None:
        """Take the places ``order`` of an axis: all of them, or the channels turned round."""
        everything = list(range(self._side(axis)))
        if axis == "C" and len(order) > 1 and order == everything[::-1]:
            self._chain.reverse_channels()
        elif order != everything:
            raise CheckpointError(
                f"{label(node)} takes a part of {'the channels' if axis == 'C' else 'each picture'}; expected"
                " all of it, or the channels turned round"
            )

    def gather_nd(self, node: Any) -> None:
        self._first_reads(node)
        indices = self._constant(node, 1)
        if indices is None or indices.ndim != 2 or indices.shape[1] != 1 or attribute(node, "batch_dims", 0):
            raise self._no_step([node])
        self._ordered(node, self._axes[0], [int(n) for n in indices.ravel()])

    def _behind(self, value: str, kinds: tuple[str, ...]) -> str:
        """The value behind the nodes of these kinds, a few at most, that follow one another."""
        for _ in range(_MOST_BETWEEN):
            readers = self._graph.readers(value)
            if len(readers) != 1 or readers[0].op_type not in kinds:
                break
            value = readers[0].output[0]
        return value

    def _picked_channels(self, readers: list[Any]) -> bool:
        """Whether the readers each take one channel, and join them again turned round, as Keras'
        ``preprocess_input`` does; if so, go on behind that."""
        picked: dict[str, int] = {}
        for node in readers:
            indices = self._graph.constant(node.input[1]) if node.op_type == "Gather" else None
            if indices is None or indices.size != 1 or self._axes[attribute(node, "axis", 0)] != "C":
                return False
            value = self._behind(node.output[0], ("Cast", "Identity", "Unsqueeze", "Reshape"))
            picked[value] = int(indices.ravel()[0]) % self._chain.width
        joined = [node for value in picked for node in self._graph.readers(value)]
        if not joined or any(node != joined[0] or node.op_type != "Concat" for node in joined):
            return False
        if self._axes[attribute(joined[0], "axis")] != "C" or set(joined[0].input) != set(picked):
            return False
        self._ordered(joined[0], "C", [picked[name] for name in joined[0].input])
        self._value = joined[0].output[0]
        return True


def _is_within(some: str, whole: str) -> bool:
    """Whether the letters stand in ``whole`` in the same order."""
    rest = iter(whole)
    return all(letter in rest for letter in some)


def _pair(numbers: Any, node: Any) -> tracked.Pair:
    if len(numbers) != 2:
        raise CheckpointError(f"{label(node)} works on {len(numbers)} sides; expected rows and columns")
    return int(numbers[0]), int(numbers[1])


def _torch(array: "np.ndarray[Any, Any]") -> "torch.Tensor":
    import torch

    known = array.dtype in (np.float32, np.float64)
    return torch.from_numpy(np.array(array, array.dtype if known else np.float32))


def _names(metadata: Mapping[str, str], path: Path) -> tuple[ClassNames | None, str | None]:
    """The class names in the metadata, or why those that it has cannot be used."""
    parsed = {key: _parsed(text) for key, text in metadata.items() if key.lower() in class_names.KEYS}
    try:
        return class_names.beside(parsed, path), None
    except CheckpointError as error:  # --labels can still give them
        return None, str(error)


def _parsed(text: str) -> Any:
    """JSON, a Python literal, or names between commas or on lines."""
    if len(text) > _LONGEST_NAMES:
        return None
    for read_as in (json.loads, ast.literal_eval):
        try:
            return read_as(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return [name.strip() for name in text.split("\n" if "\n" in text.strip() else ",") if name.strip()]


_AUTOMATIC = {"SAME_UPPER": tracked.SAME_UPPER, "SAME_LOWER": tracked.SAME_LOWER, "VALID": tracked.VALID}
_STEPS: dict[str, Callable[[_Walk, Any], None]] = {
    "Conv": _Walk.conv,
    "MaxPool": _Walk.pool,
    "AveragePool": _Walk.pool,
    "GlobalAveragePool": _Walk.global_pool,
    "GlobalMaxPool": _Walk.global_pool,
    "ReduceMean": _Walk.reduce,
    "ReduceMax": _Walk.reduce,
    "BatchNormalization": _Walk.norm,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _Walk.arithmetic),
    "Gemm": _Walk.gemm,
    "MatMul": _Walk.matmul,
    **dict.fromkeys(_NOTHING, _Walk.nothing),
    "Cast": _Walk.cast,
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "Elu", "Tanh", "Sigmoid", "Gelu", "Swish"),
        _Walk.activation,
    ),
    "PRelu": _Walk.prelu,
    "Clip": _Walk.clip,
    **dict.fromkeys(_FOREIGN, _Walk.foreign),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _Walk.softmax),
    "Pad": _Walk.pad,
    "Flatten": _Walk.flatten,
    "Transpose": _Walk.transpose,
    "Reshape": _Walk.reshape,
    "Squeeze": _Walk.squeeze,
    "Unsqueeze": _Walk.unsqueeze,
    "Gather": _Walk.gather,
    "GatherND": _Walk.gather_nd,
    "Slice": _Walk.slice,
}
