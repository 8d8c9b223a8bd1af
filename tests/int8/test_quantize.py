import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import first
from onnx import TensorProto

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, DataError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data import splits
from vgg_export.graphs import audit, export
from vgg_export.int8 import quantize
from vgg_export.network import weights
from vgg_export.options import QuantizeOptions
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.metrics import kl_divergence
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> cache.Artifact:
    """The built-in demo: a trained network, because what int8 costs a random one says nothing."""
    return export.run(cache.of(weights.demo_path()), tmp_path_factory.mktemp("exported") / "m.onnx", Quiet())


@pytest.mark.parametrize("target", first(1, TARGETS))
def test_every_target_gives_a_fully_int8_graph_close_to_float(
    target: str, exported: cache.Artifact, splits: splits.Splits, tmp_path: Path
) -> None:
    made = quantize.run(exported, splits, 16, tmp_path / "q.onnx", QuantizeOptions(target), Quiet())
    assert made.measured["ops"]["QLinearConv"] == 16
    assert made.measured["ops"]["QGemm"] == 3
    assert made.path.stat().st_size < 0.3 * exported.path.stat().st_size
    x = np.stack([load(i.path, for_input(224)) for i in splits.test])
    expected, found = (Model(p, SessionSettings(), 2)(x) for p in (exported.path, made.path))
    assert kl_divergence(expected, found).mean() < 0.01
    assert (expected.argmax(1) == found.argmax(1)).mean() > 0.95


def test_the_target_decides_type_and_range(
    exported: cache.Artifact, splits: splits.Splits, tmp_path: Path
) -> None:
    kinds, largest = {}, {}
    for target in ("pi5", "x86-vnni", "x86-avx2"):
        made = quantize.run(
            exported, splits, 4, tmp_path / f"{target}.onnx", QuantizeOptions(target), Quiet()
        )
        loaded = onnx.load(made.path)
        tensors = {t.name: t for t in loaded.graph.initializer}
        entry = next(n for n in loaded.graph.node if n.op_type == "QuantizeLinear")
        kinds[target] = tensors[entry.input[2]].data_type
        kernel = onnx.numpy_helper.to_array(tensors["conv3_1.weight_quantized"])
        largest[target] = int(np.abs(kernel.astype(int)).max())
        scales = onnx.numpy_helper.to_array(tensors["conv3_1.weight_scale"])
        assert scales.shape == (64,)  # one per output channel
        zero_points = onnx.numpy_helper.to_array(tensors["conv3_1.weight_zero_point"])
        assert not zero_points.any()
    assert kinds == {"pi5": TensorProto.INT8, "x86-vnni": TensorProto.UINT8, "x86-avx2": TensorProto.UINT8}
    assert largest["x86-vnni"] == 127
    assert largest["x86-avx2"] <= 64


def test_it_reads_each_calibration_picture_once(
    exported: cache.Artifact, splits: splits.Splits, tmp_path: Path
) -> None:
    made = quantize.run(exported, splits, 5, tmp_path / "q.onnx", QuantizeOptions(), Quiet())
    used = made.measured["calibration_images"]
    assert len(used) == len(set(used)) == 5
    assert set(used) <= {i.sha256 for i in splits.fit}


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_the_audit_notices_a_float_layer(
    kind: str, exported: cache.Artifact, splits: splits.Splits, tmp_path: Path
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from vgg_calibration.reader import ImageReader

    reader = ImageReader([i.path for i in splits.fit[:2]], for_input(224), "input", lambda: None)
    quantize_static(
        exported.path,
        tmp_path / "partly.onnx",
        reader,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Gemm" if kind == "Conv" else "Conv", "MaxPool"],
        calibrate_method=CalibrationMethod.MinMax,
    )
    with pytest.raises(CheckFailedError, match=f"still holds.*{kind}"):
        audit.audit_quantized(tmp_path / "partly.onnx")
    with pytest.raises(CheckFailedError, match="still holds"):
        audit.audit_quantized(exported.path)


def test_a_model_without_sidecar_is_refused(
    exported: cache.Artifact, splits: splits.Splits, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.onnx"
    stranger.write_bytes(exported.path.read_bytes())
    with pytest.raises(DataError, match=r"has no sidecar stranger\.onnx\.json"):
        quantize.run(cache.of(stranger), splits, 4, tmp_path / "q.onnx", QuantizeOptions(), Quiet())
    written = json.loads(cache.sidecar_path(exported.path).read_text())
    written["measured"]["model"]["labels"] = ["x"]
    wrong = ("{", "stranger.onnx.json is damaged"), (json.dumps(written), "names, one per class")
    for text, found in wrong:
        cache.sidecar_path(stranger).write_text(text)
        with pytest.raises(DataError, match=found):
            quantize.run(cache.of(stranger), splits, 4, tmp_path / "q.onnx", QuantizeOptions(), Quiet())
    with pytest.raises(OptionsError, match="--target must be one of"):
        QuantizeOptions("toaster")
