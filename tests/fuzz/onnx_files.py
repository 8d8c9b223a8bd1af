"""ONNX files of strangers."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from fuzz.fuzzing import Target
from onnx import helper, numpy_helper

from vgg_export.core.errors import CheckpointError
from vgg_export.network import weights
from vgg_export.options import WeightsOptions


def seeds() -> list[bytes]:
    plain = model()
    outside = model()
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    return [one.SerializeToString() for one in (plain, outside)]


def model() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    shapes = {"c.w": (4, 3, 3, 3), "c.b": (4,), "l.w": (3, 64), "l.b": (3,)}
    tensors = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "c.w", "c.b"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "l.w", "l.b"], ["y"], transB=1),
    ]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 8, 8]), ("y", [1, 3]))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def feed(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        path.write_bytes(data)
        weights.find(WeightsOptions(str(path)))


TARGET = Target(seeds, feed, (CheckpointError,))
