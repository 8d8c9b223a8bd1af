"""Writes convolutions of a float graph in Winograd's forms, in standard operators.

Inside a layer the channels come last, so that gathering tiles moves whole rows of channels, and the
transforms of a window are small matrices that multiply from the left. Both cost little compared with the
multiplications (counted on the emulated core, ``bench/winograd_counts.py``).

Nodes of the graph transform the weights, and onnxruntime folds these nodes while it loads the model. So the
file does not grow, and weights may be in another file.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vgg_export.core.errors import CheckFailedError, RewriteError

from . import audit, cook_toom
from .cook_toom import Form

if TYPE_CHECKING:
    import onnx

MARK = ".winograd."  # in the names of the nodes that replace a layer


def rewrite(model: "onnx.ModelProto", forms: Mapping[str, Form]) -> None:
    """Replace convolutions of a float graph, in place and without reading any weight.

    Args:
        model: a graph with float32 convolutions of [N, C, H, W]; only N may vary. External data need not be
            loaded.
        forms: by layer (the name of its weight without ".weight"), the form that fits its kernel.

    Raises:
        RewriteError: a layer is missing, or is not a plain convolution whose output is as large as its input.
    """
    shapes = shapes_of(model)
    sides = {name: require(model, shapes, name, form) for name, form in forms.items()}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, npt.NDArray[Any]] = {}
    for node in model.graph.node:
        layer = _layer(node)
        if layer in forms:
            built = _Layer(node, layer, forms[layer], *sides[layer])
            nodes += built.nodes()
            constants |= built.constants
        else:
            nodes.append(node)
    _replace(model, nodes, constants)


def _replace(
    model: "onnx.ModelProto", nodes: "list[onnx.NodeProto]", constants: Mapping[str, npt.NDArray[Any]]
) -> None:
    from onnx import numpy_helper

    # copies, because deleting the list of nodes empties the nodes in it
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())


def _layer(node: "onnx.NodeProto") -> str:
    """The name of a convolution's weight without ".weight"; "" for other nodes."""
    return node.input[1].removesuffix(".weight") if node.op_type == "Conv" else ""


def require(
    model: "onnx.ModelProto", shapes: Mapping[str, tuple[int, ...]], layer: str, form: Form
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a layer's weight and of its input without the batch.

    Raises:
        RewriteError: the layer cannot be written in this form.
    """
    found = [node for node in model.graph.node if _layer(node) == layer]
    if len(found) != 1:
        known = ", ".join(name for node in model.graph.node if (name := _layer(node))) or "none"
        raise RewriteError(f"{len(found)} convolutions are named {layer!r}; expected one of: {known}")
    weight, image = shapes.get(found[0].input[1], ()), shapes.get(found[0].input[0], ())
    if len(weight) != 4 or len(image) != 4 or not all((*weight, *image[1:])):
        raise RewriteError(
            f"{layer}: shapes {weight} of the weight and {image} of the input; expected four known"
            " numbers, apart from the batch"
        )
    kernel = weight[2:]
    expected = {
        "kernel": form.kernel,
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (kernel[0] // 2, kernel[1] // 2) * 2,
        "group": (1,),
    }
    actual = {
        "kernel": kernel,
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "group": (1,),
    } | _attributes(found[0])
    for key, value in expected.items():
        if actual[key] != value:
            raise RewriteError(f"{layer} has {key} {actual[key]}; {form} is for {value}")
    return weight, image[1:]


def _attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    """The attributes that say how a convolution moves: strides, pads, dilations and group, as tuples."""
    found = {a.name: tuple(a.ints) or (a.s.decode() if a.s else (a.i,)) for a in node.attribute}
    if found.pop("auto_pad", "NOTSET") != "NOTSET":
        found["pads"] = "auto_pad"
    return {key: value for key, value in found.items() if key != "kernel_shape"}


def shapes_of(model: "onnx.ModelProto") -> dict[str, tuple[int, ...]]:
    """The shapes of tensors by name, with 0 for a number that can vary. The weights are not read: shapes are
    inferred on a graph that has them as inputs."""
    import onnx

    def declared(tensor: "onnx.TensorProto") -> "onnx.ValueInfoProto":
        return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))

    # such tensors hold the shapes of Reshape nodes
    small = [t for t in model.graph.initializer if math.prod(t.dims) <= 8 and not t.external_data]
    names = {tensor.name for tensor in small}
    inputs = [*model.graph.input, *(declared(t) for t in model.graph.initializer if t.name not in names)]
    skeleton = onnx.helper.make_graph(model.graph.node, "skeleton", inputs, model.graph.output, small)
    inferred = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(skeleton, opset_imports=model.opset_import)
    )
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in values}


class _Layer:
    """The nodes that replace one convolution."""

    def __init__(
        self, conv: "onnx.NodeProto", name: str, form: Form, weight: tuple[int, ...], image: tuple[int, ...]
    ) -> None:
        self.conv, self.name, self.form = conv, name, form
        self.outputs, self.inputs = weight[:2]
        self.height, self.width = image[1:]
        self.window, self.tiles = math.prod(form.window), math.prod(form.tiles(self.height, self.width))
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self._nodes: list[onnx.NodeProto] = []

    def nodes(self) -> "list[onnx.NodeProto]":
        """The nodes from the convolution's input to its output, in order."""
        products = self.add(
            "MatMul", "multiplied", self.windows(self.conv.input[0]), self.weights(self.conv.input[1])
        )
        image = self.image(products)
        if len(self.conv.input) > 2 and self.conv.input[2]:
            image = self.add("Add", "biased", image, self.bias(self.conv.input[2]))
        self.add("Transpose", "", image, perm=[0, 3, 1, 2])
        self._nodes[-1].output[0] = self.conv.output[0]
        return self._nodes

    def windows(self, x: str) -> str:
        """[N, C, H, W] -> B^T d B of the window of every tile, [N, window, tiles, C]."""
        side = self.form.covered(self.height, self.width)
        before = [k // 2 for k in self.form.kernel]
        after = [
            full - b - size for full, b, size in zip(side, before, (self.height, self.width), strict=True)
        ]
        x = self.add("Transpose", "channels_last", x, perm=[0, 2, 3, 1])
        x = self.add("Pad", "padded", x, self.numbers(0, *before, 0, 0, *after, 0))
        x = self.reshaped(x, -1, math.prod(side), self.inputs)
        x = self.add("Gather", "windows", x, self.positions(side[1]), axis=1)
        x = self.transformed("input", cook_toom.input_matrix(self.form), x, self.inputs)
        return self.reshaped(x, -1, self.window, self.tiles, self.inputs)

    def image(self, products: str) -> str:
        """The products M [N, window, tiles, K] -> the tiles A^T M A joined to a map [N, H, W, K]."""
        (rows, columns), (down, across) = (
            (self.form.rows, self.form.columns),
            self.form.tiles(self.height, self.width),
        )
        x = self.transformed("output", cook_toom.output_matrix(self.form), products, self.outputs)
        x = self.reshaped(x, -1, rows, columns, down, across, self.outputs)
        x = self.add("Transpose", "placed", x, perm=[0, 3, 1, 4, 2, 5])
        x = self.reshaped(x, -1, down * rows, across * columns, self.outputs)
        if (down * rows, across * columns) == (self.height, self.width):
            return x
        return self.add(
            "Slice",
            "cropped",
            x,
            self.numbers(0, 0),
            self.numbers(self.height, self.width),
            self.numbers(1, 2),
        )

    def weights(self, weight: str) -> str:
        """[K, C, height, width] -> G g G^T, [window, C, K]. Depends only on the weights, so onnxruntime folds
        it."""
        x = self.add("Transpose", "weight.taps_first", weight, perm=[2, 3, 1, 0])
        x = self.reshaped(x, math.prod(self.form.kernel), self.inputs * self.outputs)
        x = self.add(
            "MatMul", "weight", self.constant(f"{self.form}.weight", cook_toom.weight_matrix(self.form)), x
        )
        return self.reshaped(x, self.window, self.inputs, self.outputs)

    def bias(self, bias: str) -> str:
        """[K] -> [W, K], so that onnxruntime adds a whole row at once, which takes less than half the
        instructions."""
        return self.add("Expand", "bias", bias, self.numbers(self.width, self.outputs))

    def transformed(self, which: str, matrix: npt.NDArray[np.float32], x: str, channels: int) -> str:
        """[N, window, tiles, channels] -> [N, n, tiles * channels], by a matrix [n, window].

        The matrix transforms both directions at once. One after the other would take a few instructions less,
        but would write and read everything once more.
        """
        return self.add(
            "MatMul",
            which,
            self.constant(f"{self.form}.{which}", matrix),
            self.reshaped(x, -1, self.window, self.tiles * channels),
        )

    def positions(self, width: int) -> str:
        """[window, tiles]: the places of the elements of every window in a map of this width. onnxruntime
        adds them up when it loads the model."""
        (high, wide), (down, across) = self.form.window, self.form.tiles(self.height, self.width)
        rows = np.arange(high)[:, None, None, None] + self.form.rows * np.arange(down)[:, None]
        columns = np.arange(wide)[:, None, None] + self.form.columns * np.arange(across)
        starts = self.constant(f"{self.form}.{down}x{width}.rows", width * rows)
        total = self.add("Add", "positions", starts, self.constant(f"{self.form}.{across}.columns", columns))
        return self.reshaped(total, self.window, self.tiles)

    def reshaped(self, x: str, *shape: int) -> str:
        return self.add("Reshape", "shaped", x, self.numbers(*shape))

    def numbers(self, *values: int) -> str:
        return self.constant("x".join(map(str, values)), np.array(values, np.int64))

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Add a constant; layers share equal ones."""
        self.constants[f"winograd.{name}"] = value
        return f"winograd.{name}"

    def add(self, operator: str, what: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{self.name}{MARK}{len(self._nodes)}.{what}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name


def ensure_same_interface(source: Path, result: Path) -> None:
    """Check that the names, types and shapes of inputs and outputs did not change, nor the references to
    weights in other files."""
    import onnx

    def interface(path: Path) -> tuple[list[bytes], set[tuple[str, bytes]]]:
        graph = onnx.load(path, load_external_data=False).graph
        outside = {
            (t.name, entry.SerializeToString()) for t in graph.initializer for entry in t.external_data
        }
        return [value.SerializeToString() for value in (*graph.input, *graph.output)], outside

    before, after = interface(source), interface(result)
    if before != after:
        what = "inputs or outputs" if before[0] != after[0] else "references to weights in other files"
        raise CheckFailedError(
            f"the rewritten graph's {what} differ from those of {source.name}; expected the same"
        )


def ensure_folded(result: Path, forms: Collection[str]) -> None:
    """Check that onnxruntime transforms the weights once, when it loads the model.

    Raises:
        CheckFailedError: a node with only constant inputs is left, which would run in every inference.
    """
    optimized = audit.optimized(result).graph
    constant = {tensor.name for tensor in optimized.initializer}
    left = [
        node.name or node.op_type
        for node in optimized.node
        if node.input and constant.issuperset(filter(None, node.input))
    ]
    if left:
        raise CheckFailedError(
            f"onnxruntime does not fold {', '.join(left[:3])} of {len(forms)} rewritten layers; expected"
            " constants"
        )
