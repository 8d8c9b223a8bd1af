"""Fully connected layers in blocks of 4 bits: onnxruntime computes what was rounded, the rounding is better
than to the nearest step, and the choice is told."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import small_checkpoint
from networks import undecided
from onnx import TensorProto, helper, numpy_helper

from vgg_calibration import chain
from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.graphs import audit, export
from vgg_export.int8 import activation_signedness, four_bits, quantize
from vgg_export.int8.candidates import Trial
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import input_size
from vgg_export.options import INT8_FORMS, QuantizeOptions
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.metrics import Comparison
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.doctor import probe

PX = 64
LOUD = 12  # times the largest weight
Floats = np.ndarray[Any, np.dtype[np.float32]]
PLAIN = QuantizeOptions("x86-vnni", "minmax", min_agreement=0.0)


@pytest.fixture(scope="module")
def exported(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> cache.Artifact:
    import torch

    work = tmp_path_factory.mktemp("graphs")
    checkpoints.save(small_checkpoint(), work / "c.safetensors")
    folded = input_size.run(cache.of(work / "c.safetensors"), work / "s.safetensors", PX, Quiet())
    x = torch.from_numpy(np.stack([load(i.path, for_input(PX)) for i in splits.fit]))
    checkpoints.save(undecided(checkpoints.load(folded.path), x), work / "u.safetensors")
    return export.run(cache.of(work / "u.safetensors"), work / "m.onnx", Quiet())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the layers of the small network for large."""
    monkeypatch.setattr(four_bits, "SMALLEST", 500)


def correlated(rows: int, inputs: int) -> Floats:
    """Inputs that depend on a few causes, as those of a fully connected layer do."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((rows, 12)) @ rng.standard_normal((12, inputs))
    found: Floats = np.maximum(mixed + 0.3 * rng.standard_normal((rows, inputs)), 0).astype(np.float32)
    return found


def unpacked(blocks: np.ndarray[Any, np.dtype[np.uint8]], scales: Floats, inputs: int) -> Floats:
    """The weight [inputs, outputs] that blocks and scales stand for."""
    steps = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, four_bits.BLOCK) - 8.0
    weight: Floats = (steps * scales[..., None]).reshape(len(scales), -1)[:, :inputs].T.astype(np.float32)
    return weight


def nearest(weight: Floats) -> Floats:
    """The weight [inputs, outputs] rounded to the nearest step of its blocks."""
    parts = [weight[a : a + four_bits.BLOCK] for a in range(0, len(weight), four_bits.BLOCK)]
    scales = [four_bits._scale(part) for part in parts]
    return np.concatenate([np.rint(p / s).clip(-8, 7) * s for p, s in zip(parts, scales, strict=True)])


@pytest.mark.parametrize("inputs", [256, 300])  # whole blocks, and a short one at the end
def test_onnxruntime_multiplies_by_what_was_rounded(inputs: int) -> None:
    x = correlated(40, inputs)
    weight = np.random.default_rng(1).standard_normal((inputs, 24)).astype(np.float32)
    blocks, scales, shift = four_bits.rounded(weight, x)
    node = helper.make_node(
        audit.FOUR_BIT_OP, ["x", "w", "s"], ["y"], domain=four_bits.DOMAIN, K=inputs, N=24, bits=4,
        block_size=four_bits.BLOCK, accuracy_level=0,
    )  # fmt: skip
    ends = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [40, k])] for n, k in (("x", inputs), ("y", 24))
    ]
    stored = [numpy_helper.from_array(blocks, "w"), numpy_helper.from_array(scales, "s")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(four_bits.DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", *ends, stored), opset_imports=opsets, ir_version=8
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    meant = unpacked(blocks, scales, inputs)
    assert np.allclose(session.run(None, {"x": x})[0], x @ meant, atol=1e-3)
    assert np.allclose(shift, x.mean(0) @ (meant - weight), atol=1e-3)


def test_it_is_better_than_the_nearest_step_on_pictures_it_has_not_seen() -> None:
    x = correlated(200, 400)
    weight = np.random.default_rng(1).standard_normal((400, 32)).astype(np.float32)
    seen, unseen = x[:100], x[100:]
    blocks, scales, shift = four_bits.rounded(weight, seen)
    ours = unseen @ (unpacked(blocks, scales, 400) - weight) - shift
    error = nearest(weight) - weight
    theirs = unseen @ error - seen.mean(0) @ error  # with the mean corrected, too
    assert np.square(ours).mean() < 0.5 * np.square(theirs).mean()
    again, *_ = four_bits.rounded(weight, seen)
    assert np.array_equal(again, blocks)


def test_inputs_that_are_always_zero_and_weights_of_zero_are_no_trouble() -> None:
    blocks, scales, shift = four_bits.rounded(np.zeros((130, 4), np.float32), np.zeros((5, 130), np.float32))
    assert not unpacked(blocks, scales, 130).any()
    assert not shift.any()


@pytest.mark.release
@pytest.mark.usefixtures("small")
def test_large_layers_in_four_bits_make_the_file_smaller_at_little_loss(
    exported: cache.Artifact, splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eight = quantize.run(exported, splits, 16, tmp_path / "8.onnx", PLAIN, Quiet())
    with caplog.at_level("INFO"):
        wanted = dataclasses.replace(PLAIN, fc_bits="4")
        four = quantize.run(exported, splits, 16, tmp_path / "4.onnx", wanted, Quiet())
    assert eight.measured["ops"]["QGemm"] == 3
    assert "four_bits" not in eight.measured
    told = four.measured["four_bits"]
    assert told["layers"] == ["fc1", "fc2"]  # never the last one
    assert (told["block"], told["before"]) == (128, eight.measured["losses"]["quantized"])
    assert told["saved_bytes"] == eight.path.stat().st_size - four.path.stat().st_size > 0
    assert (four.measured["ops"]["QGemm"], four.measured["ops"]["MatMulNBits"]) == (1, 2)
    assert four.measured["losses"]["quantized"]["kl"] < 0.05
    assert "fc1, fc2 in 4 bits: the file is" in caplog.text
    assert "no fast kernel" not in caplog.text
    with pytest.raises(CheckFailedError, match="still holds 2 MatMulNBits"):
        audit.audit_quantized(four.path)
    with pytest.raises(CheckFailedError, match=r"the 4-bit layers are fc1, fc2; expected fc1$"):
        audit.audit_quantized(four.path, four_bits=["fc1"])
    with pytest.raises(CheckFailedError, match="the 4-bit layers are none; expected fc1"):
        audit.audit_quantized(eight.path, four_bits=["fc1"])
    assert probe.float_layers(four.path) == 0
    signed = activation_signedness.run(four, "pi5", tmp_path / "signed.onnx", Quiet())
    assert signed.measured["four_bits"] == told


@pytest.mark.usefixtures("small")
def test_a_layer_that_stays_float_is_not_stored_in_four_bits(
    exported: cache.Artifact,
) -> None:
    graph = onnx.load(exported.path)
    layers = chain.layers(graph)
    assert [one.name for one in four_bits.suited(layers, graph)] == ["fc1", "fc2"]
    assert [one.name for one in four_bits.suited(layers, graph, ["fc1"])] == ["fc2"]


def test_small_layers_stay_in_eight_bits(exported: cache.Artifact, splits: Splits, tmp_path: Path) -> None:
    wanted = dataclasses.replace(PLAIN, fc_bits="4")
    made = quantize.run(exported, splits, 8, tmp_path / "q.onnx", wanted, Quiet())
    assert made.measured["ops"]["QGemm"] == 3
    assert "four_bits" not in made.measured


@pytest.mark.usefixtures("small")
def test_auto_asks_the_core_and_the_held_out_pictures(
    exported: cache.Artifact, splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    auto = dataclasses.replace(PLAIN, fc_bits="auto")
    slow = dataclasses.replace(auto, target="pi4")
    assert "four_bits" not in quantize.run(exported, splits, 8, tmp_path / "a.onnx", slow, Quiet()).measured
    blind = dataclasses.replace(splits, select=())
    unjudged = quantize.run(exported, blind, 8, tmp_path / "b.onnx", auto, Quiet())
    assert "four_bits" not in unjudged.measured
    ruined = cache.Artifact(tmp_path / "r.onnx", "0", exported.sidecar)
    onnx.save(_with_loud_weights(onnx.load(exported.path)), ruined.path)
    with caplog.at_level("INFO"):
        made = quantize.run(ruined, splits, 16, tmp_path / "c.onnx", auto, Quiet())
        asked = dataclasses.replace(auto, fc_bits="4", min_agreement=0.98, float_layers=0)
        forced = quantize.run(ruined, splits, 16, tmp_path / "d.onnx", asked, Quiet())
    assert "four_bits" not in made.measured
    assert "stay in 8 bits: in 4 bits the model minmax agrees" in caplog.text
    assert forced.measured["four_bits"]["before"]["agreement"] > 0.9
    assert forced.measured["losses"]["quantized"]["agreement"] < 0.9
    assert "98 % asked for" in caplog.text


def _with_loud_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with large weights in fc1 behind a channel that is always zero: the function is the same, and
    a block's few steps are spent on them."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name in ("conv5_2.weight", "conv5_2.bias"):
            values[0] = 0
        elif tensor.name == "fc1.weight":
            values[: (PX // 32) ** 2] = LOUD * np.abs(values).max(0)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.usefixtures("small")
def test_a_core_that_is_slow_with_four_bits_is_warned_of(
    exported: cache.Artifact, splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = dataclasses.replace(PLAIN, target="pi4", fc_bits="4")
    made = quantize.run(exported, splits, 8, tmp_path / "q.onnx", asked, Quiet())
    assert made.measured["ops"]["MatMulNBits"] == 2
    assert "pi4 has no fast kernel for weights of 4 bits: fc1, fc2 take several times" in caplog.text


@pytest.mark.parametrize("wrong", ["2", "16", ""])
def test_other_numbers_of_bits_are_refused(wrong: str) -> None:
    with pytest.raises(OptionsError, match="--fc-bits must be one of 8, 4, auto"):
        QuantizeOptions(fc_bits=wrong)


@pytest.mark.parametrize(
    ("eight", "four", "asked", "little"),
    [
        ((60, 0.001), (59, 0.002), 0.98, True),
        ((60, 0.001), (58, 0.002), 0.98, False),  # fewer agree than was asked for
        ((57, 0.001), (57, 0.002), 0.98, True),  # 8 bits did not reach it either
        ((57, 0.001), (56, 0.002), 0.98, False),
        ((60, 0.001), (60, 0.004), 0.98, False),  # the answers stay, but are less sure
    ],
)
def test_what_auto_takes_for_little(
    eight: tuple[int, float], four: tuple[int, float], asked: float, little: bool
) -> None:
    before, after = (
        Trial(
            INT8_FORMS["minmax"],
            (),
            Path(),
            Comparison(np.arange(60) < same, np.full(60, kl), np.zeros(0, np.int64)),
        )
        for same, kl in (eight, four)
    )
    assert quantize.costs_little(after, before, QuantizeOptions(min_agreement=asked)) == little
