"""Makes the int8 QDQ graph of a float graph and the ranges of its tensors, keeps layers float, and changes
the type of activations."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vgg_calibration.chain import Layer
from vgg_calibration.observe import Seen
from vgg_export.core.errors import CheckFailedError
from vgg_export.graphs.tensors import array
from vgg_runtime.board.targets import Target

if TYPE_CHECKING:
    import onnx


OPS = ["Conv", "Gemm", "Relu", "MaxPool", "Reshape", "Flatten"]


INT32 = np.iinfo(np.int32)


def ranges(
    layers: Sequence[Layer], seen: Mapping[str, Seen], *, clipped: bool
) -> dict[str, tuple[float, float]]:
    """The lowest and highest value of every tensor that is quantized. A tensor after a pool has the range of
    the tensor before the pool, and a tensor before a ReLU has the range of the tensor after it."""
    before = layers[0].input
    found = {before: seen[before].range()}  # never clipped: the values of pictures have known limits
    for layer in layers:
        found[layer.input] = found[before]
        found[layer.output] = found[layer.sum] = (
            seen[layer.output].clipped() if clipped else seen[layer.output].range()
        )
        before = layer.output
    return found


def write(
    model: "onnx.ModelProto",
    layers: Sequence[Layer],
    limits: Mapping[str, tuple[float, float]],
    target: Target,
    output: Path,
    *,
    kept: Collection[str] = (),
    only: Collection[str] = (),
) -> None:
    """Write the int8 QDQ graph of the float ``model``, which is used up.

    Activations are asymmetric, because with symmetric ones ReLU does not fold into the convolution. Layers in
    ``kept`` stay float. If ``only`` names layers, all others stay float.
    """
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData

    _keep_float(model, layers, kept)
    # The model has its shapes. Without this mark onnxruntime would infer them again, with two copies of the
    # model.
    model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in limits.items()
    }
    quantizer: Any = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=target.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if target.signed_activations else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[node for layer in layers if layer.name in only for node in layer.nodes],
        nodes_to_exclude=[
            node for layer in layers if layer.name in kept for node in (*layer.nodes, _guard(layer))
        ],
        op_types_to_quantize=OPS,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(output), False)


def share_weights(model: "onnx.ModelProto", folder: Path) -> Path:
    """Write a graph with its weights in a file beside it, so that graphs that differ in one layer can share
    the file."""
    import onnx

    path = folder / "shared.onnx"
    onnx.save(model, path, save_as_external_data=True, location="shared.bin", size_threshold=1024)
    return path


def with_weights_of(shared: Path, layers: Sequence[Layer]) -> "onnx.ModelProto":
    """The graph that ``share_weights`` wrote, with the weights of only these layers in memory."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    model = onnx.load(shared, load_external_data=False)
    wanted = {name for layer in layers for name in (layer.weight, layer.bias)}
    for tensor in model.graph.initializer:
        if tensor.name in wanted and tensor.external_data:
            load_external_data_for_tensor(tensor, str(shared.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
    return model


def _guard(layer: Layer) -> str:
    return f"{layer.name}_stays_float"


def _keep_float(model: "onnx.ModelProto", layers: Sequence[Layer], kept: Collection[str]) -> None:
    """Put a ReLU before layers that are to stay float.

    Leaving a layer out of the quantization is not enough: onnxruntime's optimizer quantizes any Conv or Gemm
    between a DequantizeLinear and a QuantizeLinear. A second ReLU after the first one does not change the
    values, and separates the two.
    """
    import onnx

    rectified = ""
    for layer in layers:
        if layer.name in kept and rectified:
            at = next(k for k, node in enumerate(model.graph.node) if node.name == layer.nodes[0])
            model.graph.node[at].input[0] = guarded = f"{layer.input}_float"
            model.graph.node.insert(
                at, onnx.helper.make_node("Relu", [layer.input], [guarded], name=_guard(layer))
            )
        rectified = layer.output if layer.output != layer.sum else ""


def dequantized(layer: Layer, tensors: "Mapping[str, onnx.TensorProto]") -> npt.NDArray[np.float32]:
    """The dequantized weight of the int8 graph, in float32. Its zero points are zero."""
    values, scale = (array(tensors[f"{layer.weight}_{part}"]) for part in ("quantized", "scale"))
    weight = values.astype(np.float32)
    weight *= scale.reshape((-1, 1, 1, 1) if layer.kind == "Conv" else (1, -1))
    return weight


def retype(model: "onnx.ModelProto", *, signed: bool) -> None:
    """Change the activations from unsigned to signed, or back, in place. The function stays the same, and
    onnxruntime runs other kernels.

    x = scale (q - zero_point) stays the same when 128 is taken from q and from the zero point. Scales,
    weights and int32 biases do not change.

    Raises:
        CheckFailedError: the graph has no QuantizeLinear, or a zero point is not of the other 8-bit type.
    """
    import onnx

    tensors = {t.name: t for t in model.graph.initializer}
    names = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    if not names:
        raise CheckFailedError(
            "the graph has no QuantizeLinear; expected a file that 'vgg-export quantize' wrote"
        )
    before, after, offset = (np.uint8, np.int8, -128) if signed else (np.int8, np.uint8, 128)
    for name in sorted(names):
        value = onnx.numpy_helper.to_array(tensors[name])
        if value.dtype != before:
            raise CheckFailedError(f"the zero point {name} is {value.dtype}; expected {np.dtype(before)}")
        changed = onnx.numpy_helper.from_array((value.astype(np.int32) + offset).astype(after), name)
        tensors[name].CopyFrom(changed)
    del model.graph.value_info[:]  # it holds the old types of the activations
