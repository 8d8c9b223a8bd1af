"""Makes the int8 QDQ graph of a float graph and the ranges of its tensors, keeps layers float, and changes
the type of activations."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vgg_calibration.chain import ACTIVATIONS, LAYERS, LIMITS, OTHERS, SAME_RANGE, Layer, Step
from vgg_calibration.observe import Seen
from vgg_export.core.errors import CheckFailedError
from vgg_export.graphs import audit
from vgg_export.graphs.tensors import array
from vgg_runtime.board.targets import Target

if TYPE_CHECKING:
    import onnx


# The operators with int8 kernels, or that vanish into one.
OPS = [*LAYERS, *(op for op in (*ACTIVATIONS, *OTHERS) if op not in audit.WITHOUT_INT8)]
# Beyond these limits an activation is constant to within half a step of its own 8 bits, so the steps of what
# it reads need not reach further.
FLAT = {"Tanh": (-4.0, 4.0), "Sigmoid": (-6.5, 6.5), "Elu": (-6.5, np.inf), "Gelu": (-4.0, np.inf)}

INT32 = np.iinfo(np.int32)


def ranges(
    layers: Sequence[Layer], seen: Mapping[str, Seen], *, clipped: bool
) -> dict[str, tuple[float, float]]:
    """The lowest and highest value of every tensor that is quantized. A tensor after a pool has the range of
    the tensor before the pool, and a tensor before a ReLU has the range of the tensor after it."""
    source = layers[0].input
    found = {source: seen[source].range()}  # never clipped: the values of pictures have known limits
    for layer in layers:
        made = [(layer.kind, layer.input, layer.sum), *((s.op, s.input, s.output) for s in layer.steps)]
        own = set(layer.ranged())
        for (op, reads, gives), after in zip(made, [*layer.steps, None], strict=True):
            if gives in own:
                low, high = seen[gives].clipped() if clipped else seen[gives].range()
                found[gives] = _where_it_matters(low, high, after, layer)
            if op in SAME_RANGE:
                found[gives] = found[reads]
            elif op in LIMITS:
                found[reads] = found[gives]
    return found


def _where_it_matters(low: float, high: float, after: Step | None, layer: Layer) -> tuple[float, float]:
    """The part of a range that the activation ``after`` it tells apart; all of it where other nodes read the
    tensor, too."""
    if after is None or after.op not in FLAT or "Mul" in (step.op for step in layer.steps):
        return low, high
    flat = FLAT[after.op]
    return max(low, flat[0]), min(high, flat[1])


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
    # Without this option a pool behind a float activation would be float, too.
    forced = bool(audit.staying_float(layers))
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
        extra_options={
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
            "ForceQuantizeNoInputCheck": forced,
        },
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
    """Put a node that changes nothing before layers that are to stay float.

    Leaving a layer out of the quantization is not enough: onnxruntime's optimizer quantizes any Conv or Gemm
    between a DequantizeLinear and a QuantizeLinear. A second ReLU after the first one does not change the
    values, and separates the two. Elsewhere a Clip without limits does, which the optimizer leaves in place,
    as it does not an Identity.
    """
    import onnx

    for before, layer in itertools.pairwise(layers):
        rectified = [step.op for step in before.activation] == ["Relu"]
        if layer.name not in kept or (before.name in kept and not rectified):
            continue
        at = next(k for k, node in enumerate(model.graph.node) if node.name == layer.node)
        model.graph.node[at].input[0] = guarded = f"{layer.input}_float"
        guard = onnx.helper.make_node(
            "Relu" if rectified else "Clip", [layer.input], [guarded], name=_guard(layer)
        )
        model.graph.node.insert(at, guard)


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
