"""A large fully connected layer of an int8 graph in halves: the same numbers, less memory while it is
loaded."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import small_checkpoint

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError
from vgg_export.core.progress import Quiet
from vgg_export.data import splits
from vgg_export.graphs import audit, export
from vgg_export.int8 import quantize, split_gemm
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import QuantizeOptions
from vgg_runtime.bundle.input_spec import for_input

# a drawn network can be undecided enough to need one
INT8 = QuantizeOptions("x86-vnni", "minmax", float_layers=0)
LARGE = 50_000  # bytes; of the small network's layers only fc1 has more


@pytest.fixture(scope="module")
def quantized(splits: splits.Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halve")
    checkpoints.save(small_checkpoint(), folder / "c.safetensors")
    exported = export.run(cache.of(folder / "c.safetensors"), folder / "float.onnx", Quiet())
    return quantize.run(exported, splits, 8, folder / "int8.onnx", INT8, Quiet()).path


def test_the_halves_say_what_the_whole_said(quantized: Path, tmp_path: Path) -> None:
    whole = onnx.load(quantized)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in whole.graph.initializer}
    assert split_gemm.halve(whole, LARGE) == ["fc1.weight_quantized"]
    onnx.save(whole, tmp_path / "halved.onnx")
    onnx.checker.check_model(str(tmp_path / "halved.onnx"), full_check=True)
    split_gemm.ensure_equal(quantized, tmp_path / "halved.onnx", for_input(224))
    after = {t.name: onnx.numpy_helper.to_array(t) for t in whole.graph.initializer}
    for name in ("weight_quantized", "weight_scale", "bias_quantized"):
        parts = [after[f"fc1.{name}_part{k}"] for k in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=-1), before[f"fc1.{name}"])
        assert f"fc1.{name}" not in after
    assert (tmp_path / "halved.onnx").stat().st_size < quantized.stat().st_size + 3000
    ops = audit.audit_quantized(tmp_path / "halved.onnx")
    assert (ops["QGemm"], ops["QLinearConcat"]) == (4, 1)


def test_what_is_small_or_float_stays_as_it_is(quantized: Path) -> None:
    whole = onnx.load(quantized)
    assert split_gemm.halve(whole) == []
    assert whole == onnx.load(quantized)
    floating = onnx.load(quantized.with_name("float.onnx"))
    assert split_gemm.halve(floating, LARGE) == []


def test_other_numbers_and_half_quantized_layers_are_noticed(quantized: Path, tmp_path: Path) -> None:
    whole = onnx.load(quantized)
    split_gemm.halve(whole, LARGE)
    scale = next(t for t in whole.graph.initializer if t.name == "fc1.weight_scale_part1")
    scale.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(whole, tmp_path / "wrong.onnx")
    with pytest.raises(CheckFailedError, match="changed the int8 model's logits by up to"):
        split_gemm.ensure_equal(quantized, tmp_path / "wrong.onnx", for_input(224))
    partly = onnx.load(quantized)
    gemm = next(node for node in partly.graph.node if node.op_type == "Gemm")
    quantizer = next(node for node in partly.graph.node if gemm.output[0] in node.input)
    quantizer.op_type = "Identity"
    with pytest.raises(CheckFailedError, match="its result is not quantized"):
        split_gemm.halve(partly, LARGE)
