"""What an ONNX graph is made of, and whether it is what was meant."""

import collections
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_export.core.errors import CheckFailedError

if TYPE_CHECKING:
    import onnx

EXPORTED_OPS = frozenset({"Conv", "Relu", "MaxPool", "Gemm", "Flatten", "Reshape"})
# What may be left of a quantized VGG after onnxruntime's optimizer; a float Conv, Gemm or Relu means that a
# layer was not fused.
INT8_OPS = frozenset(
    {
        "QuantizeLinear",
        "QLinearConv",
        "MaxPool",
        "QGemm",
        "DequantizeLinear",
        "QLinearConcat",
        "Flatten",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
    }
)
# What a layer that was kept in float may have become.
FLOAT_OPS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm"})


def count_ops(path: Path) -> dict[str, int]:
    """Operators of a model file by type; its weights are not read into memory twice."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return dict(sorted(collections.Counter(node.op_type for node in graph.node).items()))


def check(path: Path) -> None:
    """onnx.checker, with the inference of shapes.

    Raises:
        CheckFailedError: not valid.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailedError(
            f"the exported graph is not valid ONNX: {' '.join(str(error).split())[:200]}"
        ) from error


def audit_exported(path: Path) -> dict[str, int]:
    """Check a float graph with onnx.checker and count its operators.

    Raises:
        CheckFailedError: not valid, or holding anything but convolution, ReLU, max-pool, Gemm and a
            flattening.
    """
    check(path)
    ops = count_ops(path)
    if extra := sorted(ops.keys() - EXPORTED_OPS):
        raise CheckFailedError(
            f"the exported graph holds {', '.join(extra)}; expected only {', '.join(sorted(EXPORTED_OPS))}"
        )
    return ops


def audit_quantized(path: Path, kept: Collection[str] = ()) -> dict[str, int]:
    """Count the operators that onnxruntime executes for an int8 model; ``kept`` names the layers that are to
    be float.

    Raises:
        CheckFailedError: a float Conv, Gemm or anything else that is not an int8 operator is left, or a layer
            that was to stay float is not.
    """
    nodes = optimized(path).graph.node
    weights = {node.input[1].removesuffix(".weight") for node in nodes if node.op_type in FLOAT_OPS}
    ops = dict(sorted(collections.Counter(node.op_type for node in nodes).items()))
    allowed = INT8_OPS | ((FLOAT_OPS | {"Relu"}) if kept else set())
    if extra := sorted(ops.keys() - allowed):
        counted = ", ".join(f"{ops[name]} {name}" for name in extra)
        raise CheckFailedError(
            f"after onnxruntime's optimizer the int8 graph still holds {counted}; expected only"
            f" {', '.join(sorted(allowed))}"
        )
    if weights != set(kept):
        raise CheckFailedError(
            f"after onnxruntime's optimizer the float layers are {', '.join(sorted(weights)) or 'none'};"
            f" expected {', '.join(sorted(kept))}"
        )
    return ops


def optimized(path: Path) -> "onnx.ModelProto":
    """The graph that onnxruntime's own optimizer makes, without its weights."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options: Any = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        # The weights are not what is looked at: beside the graph they need no second copy of half a gigabyte
        # in protobuf.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        options.log_severity_level = 3
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(Path(folder) / "optimized.onnx", load_external_data=False)
