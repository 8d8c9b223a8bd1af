"""Weights that are rounded together: what is exact is checked for being exact, what is a gain for being one
on pictures that were not looked at."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import first, small_checkpoint
from onnx import TensorProto, helper, numpy_helper

from vgg_calibration import chain, moments
from vgg_calibration.observe import session_with
from vgg_export.core import cache
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.graphs import export
from vgg_export.graphs.tensors import tensors_of
from vgg_export.int8 import qdq, rounding
from vgg_export.int8.candidates import Bench, Trial
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import input_size
from vgg_export.options import INT8_FORMS
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.preprocess import load

PX = 64
Floats = np.ndarray[Any, np.dtype[np.float32]]


def correlated(rows: int, values: int) -> Floats:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((rows, 6)) @ rng.standard_normal((6, values))
    found: Floats = (mixed + 0.3 * rng.standard_normal((rows, values))).astype(np.float32)
    return found


def covariance(x: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.cov(x.T.astype(np.float64), bias=True)


def loss(weight: Floats, steps: Floats, x: Floats) -> float:
    """The mean squared change of the outputs, the means apart."""
    change = x @ (steps - weight)
    return float(np.square(change - change.mean(0)).mean())


def test_outputs_change_less_than_with_the_nearest_steps_on_what_was_not_looked_at() -> None:
    x = correlated(4000, 300)  # more than two blocks
    weight = 5 * np.random.default_rng(1).standard_normal((300, 16)).astype(np.float32)
    steps = rounding.least_change(weight, covariance(x[:3000]), 127)
    assert np.array_equal(steps, np.rint(steps))
    assert loss(weight, steps, x[3000:]) < 0.3 * loss(weight, np.rint(weight), x[3000:])


def test_of_two_inputs_that_are_alike_one_makes_up_for_the_other() -> None:
    x = correlated(500, 1) + 0.1 * np.random.default_rng(1).standard_normal((500, 2)).astype(np.float32)
    weight = np.array([[0.4], [0.4]], np.float32)
    steps = rounding.least_change(weight, covariance(x), 127)
    assert sorted(steps.ravel()) == [0, 1]
    every = (np.array(some, np.float32).reshape(2, 1) for some in itertools.product((-1, 0, 1, 2), repeat=2))
    assert loss(weight, steps, x) == pytest.approx(min(loss(weight, some, x) for some in every), rel=0.05)


def test_independent_weights_go_to_the_nearest_step_within_the_limit() -> None:
    weight = np.array([[0.4, 7.2], [-0.6, -9.9], [3.2, 0.0]], np.float32)
    steps = rounding.least_change(weight, np.diag([3.0, 1.0, 2.0]), 8)
    assert np.array_equal(steps, np.rint(weight).clip(-8, 8))
    assert np.array_equal(rounding.least_change(weight, np.zeros((3, 3)), 8), np.rint(weight).clip(-8, 8))


@pytest.mark.parametrize(("strides", "pads"), [((1, 1), (1, 1, 1, 1)), ((2, 1), (0, 2, 1, 0))])
def test_a_patch_times_the_weight_is_the_convolution(
    strides: tuple[int, int], pads: tuple[int, int, int, int]
) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.random((3, 9, 8), np.float32), rng.random((5, 3, 3, 2), np.float32)
    node = helper.make_node("Conv", ["x", "c.weight"], ["y"], name="c", strides=strides, pads=pads)
    ends = [
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    ]
    graph = helper.make_graph([node], "g", *ends, [numpy_helper.from_array(weight, "c.weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x[None]})[0][0].reshape(5, -1).T
    (layer,) = chain.layers(model)
    whole = moments.patches(layer, weight.shape, x, wanted=1e9, turn=0)
    assert np.allclose(whole @ weight.reshape(5, -1).T, expected, atol=1e-5)
    part = moments.patches(layer, weight.shape, x, wanted=len(whole) / 3, turn=1)
    assert np.array_equal(part, whole[1::3])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("graphs")
    checkpoints.save(small_checkpoint(), work / "c.safetensors")
    folded = input_size.run(cache.of(work / "c.safetensors"), work / "s.safetensors", PX, Quiet())
    return export.run(folded, work / "m.onnx", Quiet()).path


def test_moments_are_those_of_all_patches_whatever_the_number_of_passes(
    exported: Path, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(exported)
    layers = chain.layers(graph)
    kernels = rounding.kernels(graph, layers)
    assert [one.name for one in kernels] == [one.name for one in layers if one.kind == "Conv"]
    pictures, advanced = [i.path for i in splits.fit[:3]], list[None]()
    monkeypatch.setattr(moments, "LEAST_PATCHES", 10**6)  # all of them

    def gathered() -> dict[str, moments.Moments]:
        found: dict[str, moments.Moments] = {}
        for group in moments.passes(kernels):
            found |= moments.gather(
                exported, group, pictures, for_input(PX), tmp_path, lambda: advanced.append(None)
            )
        return found

    together = gathered()
    assert len(advanced) == 3
    monkeypatch.setattr(moments, "BYTES", 1)
    alone = gathered()
    assert len(advanced) == 3 + 3 * len(kernels)
    layer = next(one for one in kernels if one.name == "conv3_1")
    session = session_with(exported, [layer.input], tmp_path)
    maps = [session.run([layer.input], {"input": load(p, for_input(PX))[None]})[0][0] for p in pictures]
    every = np.concatenate([moments.patches(layer, kernels[layer], x, 1e9, 0) for x in maps])
    for found in (together[layer.name], alone[layer.name]):
        assert found.count == len(every)
        assert np.allclose(found.covariance(), covariance(every), rtol=1e-3, atol=1e-5)
    scale = np.linspace(0.5, 2, kernels[layer][1])
    halved = moments.patches(layer, kernels[layer], maps[0] / scale.astype(np.float32)[:, None, None], 1e9, 0)
    own = moments.Moments(np.zeros(every.shape[1]), np.zeros((every.shape[1],) * 2, np.float32))
    own.add(every[: len(halved)])
    assert np.allclose(own.divided(scale).covariance(), covariance(halved), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("base", first(1, ["minmax", "equalized"]))
@pytest.mark.parametrize("target", first(1, ["pi5", "x86-avx2"]))  # 8 and 7 bits
def test_the_rounded_form_keeps_scales_and_limits_and_each_convolution_loses_less(
    base: str, target: str, exported: Path, splits: Splits, tmp_path: Path
) -> None:
    bench = Bench(exported, TARGETS[target], for_input(PX), tmp_path, Quiet())
    bench.calibrate([i.path for i in splits.fit[:16]], [i.path for i in splits.test])
    plain, rounded = (bench.make(INT8_FORMS[name]) for name in (f"{base}-corrected", f"{base}-rounded"))
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(t.path).graph.initializer}
        for t in (plain, rounded)
    )
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    convs = [one for one in bench.layers if one.kind == "Conv"]
    assert {f"{one.weight}_quantized" for one in convs} <= changed
    assert all(name.endswith(("weight_quantized", "bias_quantized")) for name in changed)
    for one in convs:
        weight = after[f"{one.weight}_quantized"].astype(int)
        assert np.abs(weight).max() <= np.abs(before[f"{one.weight}_quantized"].astype(int)).max()
    floating, _ = bench._floating(rounded.form)
    weights = {t.name: numpy_helper.to_array(t) for t in floating.graph.initializer}
    kernels = rounding.kernels(floating, bench.layers)
    seen = moments.gather(exported, kernels, bench.pictures, for_input(PX), tmp_path, lambda: None)
    reads = dict(zip(bench.layers, [None, *(bench.scales or [])], strict=False))
    for one in convs:
        scale = reads.get(one)
        h = (seen[one.name] if scale is None else seen[one.name].divided(scale)).covariance()
        errors = [
            (_dequantized(one, trial) - weights[one.weight]).reshape(len(weights[one.weight]), -1)
            for trial in (plain, rounded)
        ]
        nearest, together = (float(((e @ h) * e).sum()) for e in errors)
        assert together < nearest
    kept = bench.make(rounded.form, ("conv2_1",))
    without = {t.name: numpy_helper.to_array(t) for t in onnx.load(kept.path).graph.initializer}
    assert "conv2_1.weight_quantized" not in without
    assert np.array_equal(without["conv3_1.weight_quantized"], after["conv3_1.weight_quantized"])


def _dequantized(layer: chain.Layer, trial: Trial) -> Floats:
    return qdq.dequantized(layer, tensors_of(onnx.load(trial.path)))
