"""Forms of int8: what is exact is checked for being exact, what is a gain for being one, on graphs made to need it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import small_checkpoint
from onnx import numpy_helper

from vgg_calibration import chain, observe
from vgg_export import data, equalize, factorise, fold, model, prune, stage, to_onnx
from vgg_export.errors import CheckFailedError
from vgg_export.options import INT8_FORMS, TARGETS, FactoriseOptions, PruneOptions
from vgg_export.progress import Quiet
from vgg_export.trial import Bench
from vgg_runtime.manifest import SessionSettings
from vgg_runtime.preprocess import for_input, load
from vgg_runtime.session import Model

PX = 64
Floats = np.ndarray[Any, np.dtype[np.float32]]
FACTORISE = FactoriseOptions(conv_share=0.7, fc_ranks=(16, 8), multiple=4, images=8, held_images=4)


@pytest.fixture(scope="module")
def exported(splits: data.Splits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, stage.Artifact]:
    """Small float graphs at 64 px: as it is, and with fewer filters and factorised layers."""
    work = tmp_path_factory.mktemp("graphs")
    model.save(small_checkpoint(), work / "c.safetensors")
    plain = stage.of(work / "c.safetensors")
    pruned = prune.run(plain, None, work / "p.safetensors", PruneOptions(0.5, "conv2", multiple=4, repair=False), Quiet())
    made = {"plain": plain, "compact": factorise.run(pruned, splits, work / "f.safetensors", FACTORISE, Quiet())}
    folded = {name: fold.run(a, work / f"{name}-{PX}.safetensors", PX, Quiet()) for name, a in made.items()}
    return {name: to_onnx.run(a, work / f"{name}.onnx", Quiet()) for name, a in folded.items()}


def changed(source: Path, output: Path, change: Callable[[dict[str, Floats]], None]) -> Path:
    """A copy of a graph with other weights: ``change`` gets arrays that it may write to."""
    loaded = onnx.load(source)
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in loaded.graph.initializer}
    change(arrays)
    for tensor in loaded.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    onnx.save(loaded, output)
    return output


def pictures(items: tuple[data.Item, ...]) -> Floats:
    return np.stack([load(i.path, for_input(PX)) for i in items])


def logits(path: Path, x: Floats) -> Floats:
    return Model(path, SessionSettings(), 1)(x)


def tensors_of(path: Path) -> dict[str, Floats]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def bench(source: Path, splits: data.Splits, scratch: Path, target: str = "pi5") -> Bench:
    scratch.mkdir()
    made = Bench(source, TARGETS[target], for_input(PX), scratch, Quiet())
    made.calibrate([i.path for i in splits.fit[:16]], [i.path for i in splits.test])
    return made


# What breaks int8 in known ways, and changes the float function little or not at all.


def uneven(arrays: dict[str, Floats]) -> None:
    """Channels of very different size between layers: the function is the same."""
    factors = np.float32(2.0) ** np.random.default_rng(0).integers(-6, 7, 32).astype(np.float32)
    arrays["conv4_2.weight"] *= factors[:, None, None, None]
    arrays["conv4_2.bias"] *= factors
    arrays["conv5_1.weight"] /= factors[:, None, None]


def one_sided(arrays: dict[str, Floats]) -> None:
    """Many small positive weights beside one large: all of them are rounded down, and the layer's mean shifts."""
    for name in ("conv4_1", "conv4_2", "conv5_1"):
        weight = arrays[f"{name}.weight"]
        weight[:] = np.abs(weight) * 0.02
        large = np.abs(weight).max((1, 2, 3)) * 4
        weight[np.arange(len(weight)), 0, 1, 1] = large
        weight += 0.4 * large[:, None, None, None] / 127 - weight * (weight < large[:, None, None, None])


def drowned(arrays: dict[str, Floats]) -> None:
    """A large weight for an input that is always zero takes all the steps of 8 bits: only in float is anything left."""
    arrays["conv3_1.weight"][3], arrays["conv3_1.bias"][3] = 0, -1
    arrays["conv3_2.weight"][:, 3] = 1000


# The pass over the pictures.


def test_it_sees_what_onnxruntimes_own_calibration_sees(exported: dict[str, stage.Artifact], splits: data.Splits, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    from vgg_calibration.reader import ImageReader

    path, paths = exported["plain"].path, [i.path for i in splits.fit[:6]]
    layers = chain.layers(onnx.load(path))
    counted: list[int] = []
    seen = observe.observe(path, layers, paths, for_input(PX), tmp_path, lambda: counted.append(1))
    assert len(counted) == 6
    assert not list(tmp_path.iterdir())
    theirs = create_calibrator(path, augmented_model_path=str(tmp_path / "a.onnx"), calibrate_method=CalibrationMethod.MinMax)
    theirs.collect_data(ImageReader(paths, for_input(PX), "input", lambda: None))
    for name, wanted in theirs.compute_data().items():
        if name in seen:
            assert (seen[name].low.min(), seen[name].high.max()) == pytest.approx([float(v) for v in wanted.range_value], rel=1e-5)
    x = pictures(splits.fit[:6])
    assert np.allclose(seen["input"].mean, x.mean(0), atol=1e-5)
    assert np.allclose(seen["logits"].mean, logits(path, x).mean(0), rtol=1e-3, atol=1e-4)
    assert np.allclose(seen["input"].high, x.max((0, 2, 3)))


def test_a_histogram_grows_and_forgets_nothing() -> None:
    values = np.random.default_rng(0).normal(size=90_000).astype(np.float32)
    small, grown = observe.Histogram(), observe.Histogram()
    small.add(np.concatenate([values, values * 8]))
    grown.add(values)
    grown.add(values * 8)
    assert small.counts.sum() < grown.counts.sum() == 180_000  # of more than a hundred thousand at once a part is counted
    low, high = float(values.min() * 8), float(values.max() * 8)
    assert np.abs(values * 8).max() <= grown.width * observe.BINS < 2.01 * np.abs(values * 8).max()
    assert grown.least_error(low, high) == pytest.approx(small.least_error(low, high), rel=0.1)


@pytest.mark.parametrize("outlier", [0.0, 20.0])
def test_the_clipped_range_is_the_one_with_the_least_error(outlier: float) -> None:
    """Against all shares, computed from the values themselves."""
    values = np.append(np.random.default_rng(0).normal(size=90_000), outlier).astype(np.float32)
    histogram = observe.Histogram()
    histogram.add(values)
    low, high = float(values.min()), float(values.max())

    def error(share: float) -> float:
        scale = share * (high - low) / 255
        return float(((values - np.round(values.clip(share * low, share * high) / scale) * scale) ** 2).sum())

    best = min(observe.SHARES, key=error)
    found = histogram.least_error(low, high)[1] / high
    assert error(best) < 0.97 * error(1.0)
    assert error(found) < 1.02 * error(best)


def test_the_chain_refuses_what_is_none(exported: dict[str, stage.Artifact]) -> None:
    loaded = onnx.load(exported["plain"].path)
    assert [layer.name for layer in chain.layers(loaded)][:2] == ["conv1_1", "conv2_1"]
    branch = onnx.ModelProto()
    branch.CopyFrom(loaded)
    branch.graph.node[3].input[0] = "input"
    with pytest.raises(ValueError, match="a VGG is a chain"):
        chain.layers(branch)
    gemm = next(n for n in loaded.graph.node if n.op_type == "Gemm")
    next(a for a in gemm.attribute if a.name == "transB").i = 1
    with pytest.raises(ValueError, match=r"expected \[inputs, outputs\]"):
        chain.layers(loaded)


# Equalization.


@pytest.mark.parametrize("kind", ["plain", "compact"])
def test_equalizing_keeps_the_function_and_makes_both_sides_equal(
    kind: str, exported: dict[str, stage.Artifact], splits: data.Splits, tmp_path: Path
) -> None:
    path = exported[kind].path
    loaded = onnx.load(path)
    layers = chain.layers(loaded)
    tensors = {t.name: t for t in loaded.graph.initializer}

    def unevenness() -> float:
        largest = equalize.maxima(layers, tensors)
        pairs = itertools.pairwise(largest)
        ratios = [np.log(a.max(1)[a.max(1) > 0] / b.max(0)[a.max(1) > 0]) for a, b in pairs]
        return float(np.abs(np.concatenate(ratios)).max())

    before = unevenness()
    scales = equalize.equalize(loaded)
    assert before > 0.3
    assert unevenness() < 0.005
    assert set(scales) == {layer.output for layer in layers[:-1]}
    onnx.save(loaded, tmp_path / "e.onnx")
    x = pictures(splits.test[:8])
    expected, found = logits(path, x), logits(tmp_path / "e.onnx", x)
    assert np.abs(expected - found).max() < 1e-5 * np.abs(expected).max()
    assert (tensors_of(tmp_path / "e.onnx")["fc3.bias"] == tensors_of(path)["fc3.bias"]).all()


def test_what_was_seen_is_known_after_equalizing(exported: dict[str, stage.Artifact], splits: data.Splits, tmp_path: Path) -> None:
    path = exported["compact"].path
    loaded = onnx.load(path)
    layers, paths = chain.layers(loaded), [i.path for i in splits.fit[:4]]
    seen = observe.observe(path, layers, paths, for_input(PX), tmp_path, lambda: None)
    computed = equalize.rescaled(seen, layers, equalize.equalize(loaded))
    onnx.save(loaded, tmp_path / "e.onnx")
    measured = observe.observe(tmp_path / "e.onnx", layers, paths, for_input(PX), tmp_path, lambda: None)
    assert computed.keys() == measured.keys()
    for name, wanted in measured.items():
        assert np.allclose(computed[name].high, wanted.high, rtol=1e-3, atol=1e-4 * wanted.high.max()), name
        assert np.allclose(computed[name].low, wanted.low, rtol=1e-3, atol=1e-4 * np.abs(wanted.low).max()), name
        assert np.allclose(computed[name].mean, wanted.mean, rtol=1e-3, atol=1e-4 * np.abs(wanted.mean).max()), name


def test_a_wrong_scaling_is_noticed(exported: dict[str, stage.Artifact]) -> None:
    """fc1 reads a channel's positions side by side; taken for interleaved, or forgotten, the function is another."""
    layers = chain.layers(onnx.load(exported["plain"].path))
    last_conv = next(k for k, layer in enumerate(layers) if layer.kind == "Gemm") - 1
    scale = np.linspace(0.5, 2, 32)
    for wrong in (np.tile(scale, 4), None):
        loaded = onnx.load(exported["plain"].path)
        tensors = {t.name: t for t in loaded.graph.initializer}
        norm = equalize.path_norm(equalize.maxima(layers, tensors), equalize.biases(layers, tensors))
        equalize.rescale(layers[last_conv], tensors, None, scale)
        equalize.rescale(layers[last_conv + 1], tensors, wrong, None)
        with pytest.raises(CheckFailedError, match="equalizing changed the function"):
            equalize.ensure_unchanged(norm, equalize.path_norm(equalize.maxima(layers, tensors), equalize.biases(layers, tensors)))


# Bias correction.


def means_of_layers(path: Path, layers: list[chain.Layer], x: Floats) -> dict[str, Floats]:
    """Mean of every layer's output per channel, from a float graph or an int8 one, whose dequantized tensors are read."""
    import onnxruntime as ort

    loaded = onnx.load(path)
    there = {name for node in loaded.graph.node for name in node.output}
    names = {layer.name: layer.output for layer in layers}
    names = {k: f"{n}_DequantizeLinear_Output" if f"{n}_DequantizeLinear_Output" in there else n for k, n in names.items()}
    added = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names.values() if n != "logits"]
    loaded.graph.output.extend(added)
    found = ort.InferenceSession(loaded.SerializeToString(), providers=["CPUExecutionProvider"]).run(list(names.values()), {"input": x})
    return {k: v.mean((0, *range(2, v.ndim))) for k, v in zip(names, found, strict=True)}


@pytest.mark.parametrize("kind", ["plain", "compact"])
def test_corrected_means_are_those_of_the_float_graph(
    kind: str, exported: dict[str, stage.Artifact], splits: data.Splits, tmp_path: Path
) -> None:
    change = one_sided if kind == "plain" else (lambda arrays: None)
    path = changed(exported[kind].path, tmp_path / "m.onnx", change)
    tried = bench(path, splits, tmp_path / "scratch")
    plain, corrected = (tried.make(INT8_FORMS[name]) for name in ("minmax", "minmax-corrected"))
    x = pictures(splits.fit[:16])
    wanted, before, after = (means_of_layers(p, tried.layers, x) for p in (path, plain.path, corrected.path))
    errors = {k: [float(np.abs(found[k] - wanted[k]).mean()) for found in (before, after)] for k in wanted}
    print(kind, errors, plain.loss(), corrected.loss())
