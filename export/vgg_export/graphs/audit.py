"""Counts the operators of an ONNX graph, and checks that they are those of its chain."""

import collections
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_calibration.chain import ACTIVATIONS, Layer
from vgg_export.core.errors import CheckFailedError
from vgg_runtime.output import temporary_folder

if TYPE_CHECKING:
    import onnx

# The operators that an int8 network may have after onnxruntime's optimizer. A float Conv, Gemm or Relu means
# that a layer was not fused.
INT8_OPS = frozenset(
    {
        "QuantizeLinear",
        "QLinearConv",
        "MaxPool",
        "QGemm",
        "DequantizeLinear",
        "QLinearConcat",
        "QLinearLeakyRelu",
        "QLinearSigmoid",
        "QLinearMul",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
        "Flatten",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
    }
)
# The operators that the optimizer may make of a layer that stays float, and of the activation, the guard and
# the pool behind it.
FLOAT_OPS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm"})
# The operator of a fully connected layer with weights of 4 bits.
FOUR_BIT_OP = "MatMulNBits"
BESIDE_FLOAT_OPS = frozenset({*ACTIVATIONS, "QuickGelu", "AveragePool", "GlobalAveragePool"})
# The activations that onnxruntime has no int8 kernel for. They are computed in float between two int8 layers.
WITHOUT_INT8 = ("Elu", "Tanh", "Gelu")


def count_ops(path: Path) -> dict[str, int]:
    """The number of operators of a model file by type. Weights beside the file are not read."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return dict(sorted(collections.Counter(node.op_type for node in graph.node).items()))


def check(path: Path) -> None:
    """Check a graph with onnx.checker and shape inference.

    Raises:
        CheckFailedError: the graph is not valid.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailedError(
            f"the exported graph is not valid ONNX: {' '.join(str(error).split())[:200]}"
        ) from error


def audit_exported(path: Path, expected: Mapping[str, int]) -> dict[str, int]:
    """Check a float graph with onnx.checker and count its operators. ``expected``: those of its chain
    (``lowering.operators``).

    Raises:
        CheckFailedError: the graph is not valid, or holds other operators.
    """
    check(path)
    ops = count_ops(path)
    if ops != expected:
        raise CheckFailedError(
            f"the exported graph holds {_in_words(ops)}; expected {_in_words(expected)}, as its layers say"
        )
    return ops


def _in_words(ops: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {op}" for op, count in ops.items()) or "none"


def staying_float(layers: Sequence[Layer]) -> dict[str, int]:
    """The operators of a float graph's layers that stay float in its int8 graph, and how many of each."""
    found = collections.Counter(step.op for layer in layers for step in layer.steps)
    return {op: found[op] for op in WITHOUT_INT8 if found[op]}


def audit_quantized(
    path: Path,
    kept: Collection[str] = (),
    floats: Mapping[str, int] | None = None,
    four_bits: Collection[str] = (),
) -> dict[str, int]:
    """Count the operators that onnxruntime executes for an int8 model. ``kept`` names the layers that
    stay float; ``floats``: the operators that have no int8 kernel (``staying_float``); ``four_bits`` names
    the layers with weights of 4 bits.

    Raises:
        CheckFailedError: an operator is left that is neither int8 nor expected, a kept layer is not float, or
            the layers of 4 bits are others.
    """
    expected = floats or {}
    nodes = optimized(path).graph.node
    ops = dict(sorted(collections.Counter(node.op_type for node in nodes).items()))
    allowed = INT8_OPS | expected.keys() | (FLOAT_OPS | BESIDE_FLOAT_OPS if kept else set())
    allowed |= {FOUR_BIT_OP} if four_bits else set()
    if extra := sorted(ops.keys() - allowed):
        counted = ", ".join(f"{ops[name]} {name}" for name in extra)
        raise CheckFailedError(
            f"after onnxruntime's optimizer the int8 graph still holds {counted}; expected only"
            f" {', '.join(sorted(allowed))}"
        )
    found = {op: ops.get(op, 0) for op in expected}
    if not kept and found != expected:
        raise CheckFailedError(
            f"after onnxruntime's optimizer the int8 graph holds {_in_words(found)} in float; expected"
            f" {_in_words(expected)}"
        )
    for what, operators, wanted in (("float", FLOAT_OPS, kept), ("4-bit", {FOUR_BIT_OP}, four_bits)):
        weights = {node.input[1].partition(".weight")[0] for node in nodes if node.op_type in operators}
        if weights != set(wanted):
            raise CheckFailedError(
                f"after onnxruntime's optimizer the {what} layers are"
                f" {', '.join(sorted(weights)) or 'none'}; expected {', '.join(sorted(wanted)) or 'none'}"
            )
    return ops


def optimized(path: Path) -> "onnx.ModelProto":
    """The graph after onnxruntime's own optimizer, without its weights."""
    import onnx
    import onnxruntime as ort

    with temporary_folder() as folder:
        options: Any = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        # Only the operators are read. Weights beside the graph need no second copy of half a gigabyte in
        # protobuf.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        options.log_severity_level = 3
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(folder / "optimized.onnx", load_external_data=False)
