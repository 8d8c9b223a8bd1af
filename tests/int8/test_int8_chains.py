"""int8 of chains that are no VGG: which operators are int8, how close the logits stay, what stays float."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import chains
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from boards import boards
from chains import CHAINS
from conftest import first
from networks import undecided
from onnx import numpy_helper

from vgg_calibration import chain
from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.graphs import audit, export
from vgg_export.int8 import activation_signedness, bias_correction, equalize, qdq, quantize, split_gemm
from vgg_export.int8.candidates import Bench, Trial
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import INT8_FORMS, QuantizeOptions
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.metrics import compare
from vgg_runtime.bundle.outputs import MULTI_LABEL
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model

Floats = npt.NDArray[np.float32]
PLAIN = INT8_FORMS["minmax"]
INT8 = {
    "Conv": "QLinearConv",
    "Gemm": "QGemm",
    "AveragePool": "QLinearAveragePool",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "LeakyRelu": "QLinearLeakyRelu",
    "Sigmoid": "QLinearSigmoid",
    "Mul": "QLinearMul",
}
FLOAT = {"Tanh", "Elu", "Gelu"}
# The root mean square of the error of logits relative to their spread; 0.02 to 0.22 over these chains. A ReLU
# that is lost is more than twice as much.
ERROR = 0.3


@pytest.fixture(scope="module")
def exported(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], cache.Artifact]:
    """Exports a chain whose answers differ, each once."""

    @functools.cache
    def made(name: str) -> cache.Artifact:
        folder = tmp_path_factory.mktemp("chain")
        drawn = chains.checkpoint(CHAINS[name])
        x = torch.from_numpy(np.stack([load(i.path, drawn.chain.input) for i in splits.fit]))
        checkpoints.save(undecided(drawn, x), folder / "c.safetensors")
        return export.run(cache.of(folder / "c.safetensors"), folder / "m.onnx", Quiet())

    return made


@pytest.fixture
def bench(
    exported: Callable[[str], cache.Artifact], splits: Splits, tmp_path: Path
) -> Callable[[str], Bench]:
    """A bench of a chain, calibrated and with held-out pictures."""

    def made(name: str) -> Bench:
        drawn = CHAINS[name]
        spec = chains.checkpoint(drawn).chain.input
        (tmp_path / name).mkdir(exist_ok=True)
        path = exported(name).path
        found = Bench(path, TARGETS["x86-vnni"], spec, tmp_path / name, Quiet(), drawn.output)
        found.calibrate([i.path for i in splits.fit[:16]], [i.path for i in splits.test])
        return found

    return made


def error(bench: Bench, trial: Trial) -> float:
    """The error of a trial's logits relative to their spread, on the held-out pictures."""
    found = np.concatenate([Model(trial.path, bench.session, 1)(x) for x in bench.inputs])
    return float(np.sqrt(((found - bench.expected) ** 2).mean()) / bench.expected.std())


@pytest.mark.parametrize("name", first(3, CHAINS))
def test_every_layer_is_int8_and_the_logits_stay_close(name: str, bench: Callable[[str], Bench]) -> None:
    tried, ops = bench(name), CHAINS[name].ops
    floats = audit.staying_float(tried.layers)
    assert floats == {op: count for op, count in ops.items() if op in FLOAT}
    pairs = 1 + sum(floats.values())  # where numbers become 8 bits, and float again
    expected = {INT8.get(op, op): count for op, count in ops.items() if op not in ("Relu", "Clip")}
    expected |= {"QuantizeLinear": pairs, "DequantizeLinear": pairs}
    for form in ("minmax", "clipped-corrected", "equalized"):
        made = tried.make(INT8_FORMS[form])
        assert audit.audit_quantized(made.path, (), floats) == expected
        assert error(tried, made) < ERROR
        assert 0 < made.compared.kl < 0.1


def test_the_audit_expects_exactly_the_activations_without_a_kernel(bench: Callable[[str], Bench]) -> None:
    made = bench("tanh").make(PLAIN)
    assert audit.audit_quantized(made.path, (), {"Tanh": 3})["Tanh"] == 3
    with pytest.raises(CheckFailedError, match="still holds 3 Tanh; expected only"):
        audit.audit_quantized(made.path)
    with pytest.raises(CheckFailedError, match="holds 3 Tanh in float; expected 2 Tanh"):
        audit.audit_quantized(made.path, (), {"Tanh": 2})


def test_a_lost_activation_is_far_off(bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bound of the errors is worth: the limits of a ReLU are those of the range of its output."""
    tried = bench("32 px without adaptive pool")
    ranges = qdq.ranges

    def wide(layers: Sequence[chain.Layer], *arguments: Any, **options: Any) -> dict[str, Any]:
        found = ranges(layers, *arguments, **options)
        return found | {layer.output: (-found[layer.output][1], found[layer.output][1]) for layer in layers}

    monkeypatch.setattr(qdq, "ranges", wide)
    assert error(tried, tried.make(PLAIN)) > 2 * ERROR


def test_the_last_window_of_a_pool_with_ceil_counts_what_it_has(
    bench: Callable[[str], Bench], tmp_path: Path
) -> None:
    """With padding counted, as torch's exporter writes it, the int8 kernel is wrong there."""
    tried = bench("pool and activation first, pool with ceil")
    right = error(tried, tried.make(PLAIN))
    loaded = onnx.load(tried.source)
    for attribute in (a for node in loaded.graph.node for a in node.attribute):
        if attribute.name == "count_include_pad":
            attribute.i = 1
    tried.source = tmp_path / "counted.onnx"
    tried.scratch = tmp_path / "counted"
    tried.scratch.mkdir()
    onnx.save(loaded, tried.source)
    assert error(tried, tried.make(PLAIN)) > 1.5 * right  # 2.1 times


def test_the_record_and_the_log_say_what_stays_float(
    exported: Callable[[str], cache.Artifact],
    splits: Splits,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = QuantizeOptions("x86-vnni", "minmax", float_layers=0)
    with caplog.at_level("INFO"):
        made = quantize.run(exported("tanh"), splits, 8, tmp_path / "q.onnx", options, Quiet())
    assert made.measured["float_ops"] == {"Tanh": 3}
    assert "int8: 3 Tanh stay float: onnxruntime has no int8 kernel for them" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        made = quantize.run(exported("relu6"), splits, 8, tmp_path / "r.onnx", options, Quiet())
    assert "float_ops" not in made.measured
    assert "stay float" not in caplog.text


@pytest.mark.parametrize(
    "name", ["silu", "tanh", "leaky_relu", "scales", "activations behind pools, one channel"]
)
def test_signed_activations_say_the_same(
    name: str, exported: Callable[[str], cache.Artifact], splits: Splits, tmp_path: Path
) -> None:
    options = QuantizeOptions("x86-vnni", "minmax", float_layers=0)
    made = quantize.run(exported(name), splits, 8, tmp_path / "q.onnx", options, Quiet())
    signed = activation_signedness.run(made, "pi5", tmp_path / "s.onnx", Quiet())
    assert signed.measured["deviation"] < activation_signedness.TOLERANCE
    assert signed.measured.get("float_ops") == made.measured.get("float_ops")


@pytest.mark.release
def test_they_fuse_on_an_emulated_pi_5_too(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    tried = bench("silu")
    loaded = onnx.load(tried.make(PLAIN).path)
    qdq.retype(loaded, signed=True)
    onnx.save(loaded, tmp_path / "signed.onnx")
    code = f"""
import onnxruntime as ort
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
options.optimized_model_filepath = {str(tmp_path / "optimized.onnx")!r}
ort.InferenceSession({str(tmp_path / "signed.onnx")!r}, options, providers=["CPUExecutionProvider"])
"""
    boards()["cortex-a76"].run("-c", code)
    there = audit.count_ops(tmp_path / "optimized.onnx")
    assert there == audit.audit_quantized(tried.make(PLAIN).path)


# What the logits mean.


@pytest.mark.parametrize("name", ["one sigmoid", "multi-label"])
def test_a_candidate_is_judged_by_what_its_logits_mean(name: str, bench: Callable[[str], Bench]) -> None:
    tried = bench(name)
    made = tried.make(PLAIN)
    found = np.concatenate([Model(made.path, tried.session, 1)(x) for x in tried.inputs])
    p, q = (1 / (1 + np.exp(-z.astype(np.float64))) for z in (tried.expected, found))
    bernoulli = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert made.compared.divergence == pytest.approx(bernoulli.mean(1), rel=1e-5, abs=1e-9)
    assert made.compared.agreement == ((p > 0.5) == (q > 0.5)).mean()
    assert 0 < (p > 0.5).mean() < 1  # so that agreeing means something
    cost = tried.sensitivity(PLAIN)
    assert set(cost) == {site.name for site in chains.checkpoint(CHAINS[name]).chain.sites}
    assert all(kl > 0 for kl in cost.values())


def test_the_share_of_decisions_is_called_so_and_one_wrong_is_no_evidence() -> None:
    logits = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    other = logits.copy()
    other[0, :2] *= -1
    made = Trial(PLAIN, (), Path(), compare(other, logits, output=MULTI_LABEL))
    assert "97.5 % of the decisions per label on 20 held-out pictures" in quantize.in_words(made)
    assert quantize.meets(made, 0.975)
    assert not quantize.meets(made, 0.98)


# Layers that stay float.


@pytest.mark.parametrize("name", ["relu6", "leaky_relu", "tanh", "silu", "none", "multi-label", "scales"])
def test_any_layer_can_stay_float(
    name: str, bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = bench(name)
    floats = audit.staying_float(tried.layers)
    for layer in tried.layers:
        ops = audit.audit_quantized(tried.make(PLAIN, (layer.name,)).path, [layer.name], floats)
        assert sum(ops.get(op, 0) for op in audit.FLOAT_OPS) == 1
    if name in ("relu6", "none"):  # without a node before it, onnxruntime quantizes it all the same
        monkeypatch.setattr(qdq, "_keep_float", lambda *arguments: None)
        made = tried.make(INT8_FORMS["clipped"], ("fc1",))
        with pytest.raises(CheckFailedError, match="the float layers are none; expected fc1"):
            audit.audit_quantized(made.path, ["fc1"], floats)


# Ranges, equalization, bias correction, halves.


def test_steps_are_not_spent_where_an_activation_is_flat(bench: Callable[[str], Bench]) -> None:
    tried = bench("tanh")
    sums = [layer.sum for layer in tried.layers if layer.activation]
    seen = dict(tried.seen)
    for name in sums:  # the same network with larger sums would be seen so
        seen[name] = seen[name].divided(np.full(len(seen[name].low), 0.01))
    limits = qdq.ranges(tried.layers, seen, clipped=False)
    assert all((limits[name][0], limits[name][1]) == (-4, 4) for name in sums)
    logits = tried.layers[-1].sum
    assert limits[logits] == seen[logits].range()
    silu = bench("silu")
    limits = qdq.ranges(silu.layers, silu.seen, clipped=False)
    assert all(limits[layer.sum] == silu.seen[layer.sum].range() for layer in silu.layers)


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("leaky_relu", set()),
        ("scales", set()),
        ("convolution as classifier", set()),
        ("activations behind pools, one channel", {"conv3_1"}),
        ("factorised", {"fc1_expand"}),
        ("relu6", {"conv1_1", "conv2_1", "fc1"}),
        ("silu", {"conv1_1", "conv2_1", "fc1"}),
    ],
)
def test_equalizing_goes_through_what_lets_a_factor_through(
    name: str, fixed: set[str], exported: Callable[[str], cache.Artifact]
) -> None:
    loaded = onnx.load(exported(name).path)
    layers, scales = chain.layers(loaded), equalize.find_scales(loaded)
    assert {layer.name for layer, scale in zip(layers, scales, strict=False) if (scale == 1).all()} == fixed
    x = np.random.default_rng(0).standard_normal((4, CHAINS[name].channels, CHAINS[name].px, CHAINS[name].px))

    def logits(model: onnx.ModelProto) -> Floats:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found: Floats = session.run(None, {"input": x.astype(np.float32)})[0]
        return found

    expected = logits(loaded)
    equalize.equalize(loaded, scales)
    assert np.abs(logits(loaded) - expected).max() < 1e-5 * np.abs(expected).max()
    if fixed == {"conv1_1", "conv2_1", "fc1"}:  # with factors there the function would be another
        largest = equalize.maxima(layers, {t.name: t for t in loaded.graph.initializer})
        equalize.equalize(loaded, equalize.solve(largest, [True] * len(layers)))
        assert np.abs(logits(loaded) - expected).max() > 1e-3 * np.abs(expected).max()


def test_the_shift_of_a_layer_is_computed_with_its_strides_and_groups() -> None:
    generator = np.random.default_rng(0)
    x = generator.random((6, 4, 9, 8)).astype(np.float32)
    for shape, strides, pads, groups in (
        ((5, 4, 3, 3), (2, 2), (0, 0, 1, 1), 1),
        ((5, 4, 4, 3), (1, 3), (1, 0, 2, 2), 1),
        ((4, 1, 1, 1), (1, 1), (0, 0, 0, 0), 4),
    ):
        weight = generator.normal(size=shape).astype(np.float32)
        top, left, bottom, right = pads
        padded = torch.nn.functional.pad(torch.from_numpy(x), (left, right, top, bottom))
        y = torch.nn.functional.conv2d(padded, torch.from_numpy(weight), stride=strides, groups=groups)
        layer = chain.Layer("conv", "Conv", "w", None, "x", "y", "conv", (), strides, pads, groups)
        found = bias_correction.mean_output(layer, weight, x.mean(0))
        assert np.allclose(found, y.numpy().mean((0, 2, 3)), atol=1e-5)


def test_a_shift_does_not_go_through_an_activation(bench: Callable[[str], Bench]) -> None:
    """A layer without bias hands its shift on to the one right behind it, and to no other."""
    tried = bench("32 px without adaptive pool")
    floating, made = onnx.load(tried.source), tried.make(PLAIN)
    shifts = [
        bias_correction.correct_biases(floating, layers, tried.seen, onnx.load(made.path))
        for layers in (tried.layers, [_without_bias(layer) for layer in tried.layers])
    ]
    assert np.array_equal(shifts[0]["fc2"], shifts[1]["fc2"])
    assert set(shifts[1]) == {"fc2"}


def _without_bias(layer: chain.Layer) -> chain.Layer:
    return layer if layer.name == "fc2" else chain.Layer(**{**vars(layer), "bias": None})


def test_halves_of_a_layer_with_another_activation(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    tried = bench("silu")
    made = tried.make(PLAIN)
    loaded = onnx.load(made.path)
    assert split_gemm.halve(loaded, 1000) == ["fc1.weight_quantized"]
    onnx.save(loaded, tmp_path / "halved.onnx")
    split_gemm.ensure_equal(made.path, tmp_path / "halved.onnx", tried.preprocessing)
    assert audit.audit_quantized(tmp_path / "halved.onnx")["QGemm"] == 3


def test_a_scale_has_steps_of_its_own_for_every_channel(bench: Callable[[str], Bench]) -> None:
    """So its weights, which differ by a factor of up to a hundred, are exact in 8 bits."""
    tried = bench("scales")
    tensors = {t.name: t for t in onnx.load(tried.make(PLAIN).path).graph.initializer}
    wanted = {t.name: numpy_helper.to_array(t) for t in onnx.load(tried.source).graph.initializer}
    for layer in (layer for layer in tried.layers if layer.groups > 1):
        found = qdq.dequantized(layer, tensors)
        assert np.ptp(np.log10(np.abs(wanted[layer.weight]))) > 0.8
        assert np.allclose(found, wanted[layer.weight], rtol=1e-6)


def test_an_int8_graph_runs_on_its_own_input(bench: Callable[[str], Bench]) -> None:
    tried = bench("activations behind pools, one channel")
    x = np.zeros((2, 1, 48, 48), np.float32)
    assert Model(tried.make(PLAIN).path, SessionSettings(), 1)(x).shape == (2, 5)
