"""Reads a program of torch.export (.pt2): its graph is JSON, its tensors are plain bytes.

The graph says what runs when, on which input, so nothing of the layers is assumed. No code of the file is
run, and its pickled example inputs are not opened.
"""

import dataclasses
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_export.core.errors import CheckpointError
from vgg_export.network import modules
from vgg_export.network.activations import Activation
from vgg_export.network.assemble import Assembly
from vgg_export.network.chain import Conv, Linear
from vgg_export.network.provenance import ASSUMED, FILE, Origins
from vgg_runtime.bundle import outputs
from vgg_runtime.text import printable

from . import torch_inputs
from .found import Found

if TYPE_CHECKING:
    import torch

MOST_JSON_BYTES = 50_000_000
SAVE = "save the network itself: torch.save(model, FILE), or export it to ONNX"
_DTYPES = {6: "float16", 7: "float32", 8: "float64", 13: "bfloat16", 5: "int64"}  # torch's own numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One step of the graph. ``op``: its name without the library ("conv2d.default"). ``tensors``: for each
    argument that is a tensor, the name that this has in the graph. ``inputs``: the other arguments."""

    op: str
    tensors: dict[str, str]
    inputs: dict[str, Any]
    gives: str

    def get(self, name: str, default: Any) -> Any:
        return self.inputs.get(name, default)

    def pair(self, name: str, default: int | None = None) -> tuple[int, int]:
        """An argument for rows and columns."""
        match self.inputs.get(name) or default:
            case int() as both:
                return both, both
            case [int() as both]:
                return both, both
            case [int() as rows, int() as columns]:
                return rows, columns
        raise self.fault(name)

    def fault(self, name: str) -> CheckpointError:
        """The error for an argument that a chain has no layer for."""
        return CheckpointError(
            f"{self.gives} ({self.op}) has the {name} {printable(str(self.inputs.get(name)), 60)}, which"
            f" this program cannot do; expected the layers of a chain: {SAVE}"
        )

    def expect(self, **values: Any) -> None:
        """Make sure that arguments are as given."""
        for name, expected in values.items():
            if self.inputs.get(name, expected) not in (expected, [expected], [expected] * 2):
                raise self.fault(name)


def read(path: Path) -> Found:
    """The network of a program of torch.export.

    Raises:
        CheckpointError: the file is damaged or of an older format, or its graph is no chain.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            program = _Program(archive)
            return _found(program)
    except (zipfile.BadZipFile, LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a program of torch.export ({type(error).__name__}:"
            f" {printable(str(error), 200)}); {SAVE}"
        ) from error


class _Program:
    """The graph and the tensors of an archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        names = archive.namelist()
        model = next((name for name in names if name.endswith("models/model.json")), None)
        if model is None:
            raise ValueError("it has no models/model.json")
        self._root = model.removesuffix("models/model.json")
        module = self._json(model)["graph_module"]
        self._config = self._json(f"{self._root}data/weights/model_weights_config.json")["config"]
        self._values = module["graph"]["tensor_values"]
        self._tensors: dict[str, str] = {}  # the names of weights by those that they have in the graph
        self.inputs: list[str] = []
        for one in module["signature"]["input_specs"]:
            (kind, spec), *_ = one.items()
            if kind in ("parameter", "buffer"):
                self._tensors[spec["arg"]["name"]] = spec[f"{kind}_name"]
            else:
                self.inputs.append(spec["arg"]["as_tensor"]["name"])
        self.nodes = [_node(one) for one in module["graph"]["nodes"]]
        self.gives = [one["as_tensor"]["name"] for one in module["graph"]["outputs"]]

    def _json(self, name: str) -> Any:
        with self._archive.open(name) as file:
            text = file.read(MOST_JSON_BYTES + 1)
        if len(text) > MOST_JSON_BYTES:
            raise ValueError(f"{name} has more than {MOST_JSON_BYTES} bytes")
        return json.loads(text)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor for the example that the program was made with."""
        return [int(side["as_int"]) for side in self._values[name]["sizes"]]

    def is_weight(self, name: str) -> bool:
        return name in self._tensors

    def weight(self, node: Node, argument: str) -> "torch.Tensor | None":
        """A weight of a step; None: it has none."""
        import torch

        if argument not in node.tensors:
            return None
        name = self._tensors[node.tensors[argument]]
        spec = self._config[name]
        meta = spec["tensor_meta"]
        dtype = getattr(torch, _DTYPES[meta["dtype"]])
        sizes = [int(side["as_int"]) for side in meta["sizes"]]
        strides = [int(side["as_int"]) for side in meta["strides"]]
        file = f"{self._root}data/weights/{spec['path_name']}"
        if spec.get("use_pickle") or min([*sizes, *strides], default=0) < 0:
            raise ValueError(f"{printable(name)} is no plain dense tensor")
        data = bytearray(self._bytes(file))
        numbers = torch.frombuffer(data, dtype=dtype)
        offset = int(meta["storage_offset"]["as_int"])
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if not 0 <= offset <= last < len(numbers) or math.prod(sizes) > len(numbers):
            raise ValueError(f"{printable(name)} lies outside its bytes")
        return torch.as_strided(numbers, sizes, strides, offset).clone()

    def _bytes(self, name: str) -> bytes:
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{printable(name)} is compressed")
        return self._archive.read(info)


def _node(one: dict[str, Any]) -> Node:
    tensors, inputs = {}, {}
    for argument in one["inputs"]:
        (kind, value), *_ = argument["arg"].items()
        if kind == "as_tensor":
            tensors[argument["name"]] = value["name"]
        elif kind != "as_none":
            inputs[argument["name"]] = value
    gives = one["outputs"][0].get("as_tensor", {}).get("name", one.get("name") or "a step")
    return Node(str(one["target"]).removeprefix("torch.ops.aten."), tensors, inputs, gives)


def _found(program: _Program) -> Found:
    if len(program.inputs) != 1 or len(program.gives) != 1:
        raise CheckpointError(
            f"the program has {len(program.inputs)} inputs and {len(program.gives)} outputs; expected one"
            " picture and its logits"
        )
    shape = program.shape(program.inputs[0])
    if len(shape) != 4 or shape[2] != shape[3]:
        raise CheckpointError(f"the program reads {shape}; expected square pictures [n, channels, px, px]")
    assembly = Assembly(shape[1])
    for node in _in_line(program):
        if node.op not in _OPS:
            raise CheckpointError(
                f"{printable(node.gives)} is {printable(node.op)}, which this program does not know;"
                f" expected the layers of a chain: {SAVE}"
            )
        _OPS[node.op](node, assembly, program.weight)
    network = assembly.finish()
    units = next(one for one in reversed(network.layers) if isinstance(one, Conv | Linear)).outputs
    return Found(
        "a program of torch.export",
        network,
        torch_inputs.as_usual(network, shape[2]),
        network.output or (outputs.SIGMOID if units == 1 else outputs.SOFTMAX),
        Origins(px=FILE, activations=FILE, output=FILE if network.output else ASSUMED),
    )


def _in_line(program: _Program) -> Iterator[Node]:
    """The steps, each of which reads what the one before gives.

    Raises:
        CheckpointError: one reads something else, or two results.
    """
    last = program.inputs[0]
    for node in program.nodes:
        reads = [name for name in node.tensors.values() if not program.is_weight(name)]
        if node.op.startswith(("add_.", "add.")) and all(map(program.is_weight, node.tensors.values())):
            continue  # counts the batches
        if reads != [last]:
            raise CheckpointError(
                f"the network has branches, first at {printable(node.gives)} ({printable(node.op)}), which"
                f" reads {printable(' and '.join(reads) or 'nothing', 100)}; expected a chain, where each"
                " layer reads what the one before gives"
            )
        yield node
        last = node.gives
    if last != program.gives[0]:
        raise CheckpointError(
            f"the program gives {printable(program.gives[0])}; expected what its last step gives"
        )


def _conv(node: Node, to: Assembly, weights: Any) -> None:
    weight = weights(node, "weight")
    padding = node.get("padding", 0)
    if padding == "same":
        total = [side - 1 for side in weight.shape[2:]]
        sides = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        rows, columns = (0, 0) if padding == "valid" else node.pair("padding", 0)
        sides = (rows, columns, rows, columns)
    to.conv(
        node.gives,
        weight,
        weights(node, "bias"),
        stride=node.pair("stride", 1),
        padding=sides,
        groups=node.get("groups", 1),
        dilation=node.pair("dilation", 1),
    )


def _linear(node: Node, to: Assembly, weights: Any) -> None:
    to.linear(node.gives, weights(node, "weight"), weights(node, "bias"))


def _norm(node: Node, to: Assembly, weights: Any) -> None:
    import torch

    mean, variance = weights(node, "running_mean"), weights(node, "running_var")
    if mean is None or variance is None:
        raise CheckpointError(
            f"{printable(node.gives)} normalises by the pictures that it sees together; expected batch norms"
            " in evaluation mode: export after model.eval()"
        )
    gamma, beta = weights(node, "weight"), weights(node, "bias")
    to.norm(
        node.gives,
        *modules.scale_and_shift(
            gamma=torch.ones_like(mean) if gamma is None else gamma,
            beta=torch.zeros_like(mean) if beta is None else beta,
            mean=mean,
            variance=variance,
            epsilon=node.get("eps", 1e-5),
        ),
    )


def _max_pool(node: Node, to: Assembly, _: Any) -> None:
    node.expect(dilation=1)
    kernel = node.pair("kernel_size")
    stride = node.pair("stride") if node.get("stride", None) else kernel
    to.max_pool(kernel, stride, node.pair("padding", 0), ceil=bool(node.get("ceil_mode", False)))


def _avg_pool(node: Node, to: Assembly, _: Any) -> None:
    node.expect(padding=0, divisor_override=None)
    kernel = node.pair("kernel_size")
    stride = node.pair("stride") if node.get("stride", None) else kernel
    to.avg_pool(kernel, stride, ceil=bool(node.get("ceil_mode", False)))


def _mean(node: Node, to: Assembly, _: Any) -> None:
    if sorted(side % 4 for side in node.get("dim", ())) != [2, 3]:
        raise node.fault("dim")
    to.adaptive_avg_pool((1, 1))
    if not node.get("keepdim", False):
        to.flatten()


def _flatten(node: Node, to: Assembly, _: Any) -> None:
    node.expect(start_dim=1, end_dim=-1)
    to.flatten()


def _view(node: Node, to: Assembly, _: Any) -> None:
    if len(node.get("size", node.get("shape", ()))) != 2:
        raise node.fault("size")
    to.flatten()


def _softmax(node: Node, to: Assembly, _: Any) -> None:
    if node.get("dim", 1) not in (1, -1):
        raise node.fault("dim")
    to.activation("softmax")


def _activation(text: Callable[[Node], str]) -> "Callable[[Node, Assembly, Any], None]":
    return lambda node, to, _: to.activation(text(node))


def _hardtanh(node: Node) -> str:
    node.expect(min_val=0, max_val=6)
    return "relu6"


def _elu(node: Node) -> str:
    node.expect(scale=1, input_scale=1)
    return Activation("elu", float(node.get("alpha", 1.0))).text


def _plain(node: Node) -> str:
    return node.op.partition(".")[0].removesuffix("_")


_ACTIVATIONS: dict[str, Callable[[Node], str]] = {
    **dict.fromkeys(("relu", "relu6", "tanh", "sigmoid", "silu"), _plain),
    "leaky_relu": lambda node: Activation("leaky_relu", float(node.get("negative_slope", 0.01))).text,
    "elu": _elu,
    "hardtanh": _hardtanh,
    "gelu": lambda node: "gelu_tanh" if node.get("approximate", "none") == "tanh" else "gelu",
}
_NOTHING = (
    "dropout",
    "dropout_",
    "feature_dropout",
    "alpha_dropout",
    "clone",
    "contiguous",
    "alias",
    "detach",
)
_OPS: dict[str, Callable[[Node, Assembly, Any], None]] = {
    "conv2d.default": _conv,
    "conv2d.padding": _conv,
    "linear.default": _linear,
    "batch_norm.default": _norm,
    "max_pool2d.default": _max_pool,
    "avg_pool2d.default": _avg_pool,
    "adaptive_avg_pool2d.default": lambda node, to, _: to.adaptive_avg_pool(node.pair("output_size")),
    "mean.dim": _mean,
    "flatten.using_ints": _flatten,
    "view.default": _view,
    "reshape.default": _view,
    "softmax.int": _softmax,
    "log_softmax.int": _softmax,
    **{
        name + ending: _activation(text)
        for name, text in _ACTIVATIONS.items()
        for ending in (".default", "_.default")
    },
    **{f"{name}.default": lambda *_: None for name in _NOTHING},
}
