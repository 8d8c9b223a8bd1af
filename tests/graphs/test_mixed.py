"""Which layers are int8 and which float on a core without a dot product, and the graph of that mixture."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from boards import boards
from networks_to_mix import factorised
from onnx import helper

import emulated
import mixed_counts
import winograd_counts
from vgg_calibration import chain as graph_chain
from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, NothingToGainError, OptionsError, RewriteError
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.graphs import audit, export, mixed, mixed_cost, mixed_parity
from vgg_export.graphs.cook_toom import FORMS
from vgg_export.graphs.mixed_cost import FIRST, FP32, INT8, LAST, Link
from vgg_export.int8 import activation_signedness, mixed_precision, quantize
from vgg_export.int8.candidates import Bench
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Part
from vgg_export.options import QuantizeOptions
from vgg_runtime.board.targets import TARGETS, here
from vgg_runtime.bundle import self_check
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model, exact
from winograd_counts import square

CORE = "cortex-a72"
SETTINGS = exact(SessionSettings(), here(), ("pi4",))
PLAIN = QuantizeOptions("pi4", "minmax", float_layers=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> cache.Artifact:
    folder = tmp_path_factory.mktemp("mixed")
    checkpoints.save(factorised(), folder / "c.safetensors")
    return export.run(cache.of(folder / "c.safetensors"), folder / "float.onnx", Quiet())


@pytest.fixture(scope="module")
def quantized(exported: cache.Artifact, splits: Splits) -> cache.Artifact:
    return quantize.run(exported, splits, 8, exported.path.with_name("int8.onnx"), PLAIN, Quiet())


def graphs(*artifacts: cache.Artifact) -> list[onnx.ModelProto]:
    return [onnx.load(artifact.path) for artifact in artifacts]


def logits(path: Path) -> npt.NDArray[np.float32]:
    x = np.random.default_rng(1).standard_normal((3, 3, 64, 64), np.float32)
    return Model(path, SessionSettings(), 1)(x)


def every_layer(floating: onnx.ModelProto, way: str) -> dict[str, str]:
    """All layers and pools in one way."""
    names = {layer.name for layer in graph_chain.layers(floating)}
    return dict.fromkeys([*names, *(node.name for node in floating.graph.node)], way)


def test_all_in_int8_is_the_int8_model_and_all_in_float_the_float_model(
    exported: cache.Artifact, quantized: cache.Artifact, tmp_path: Path
) -> None:
    floating, integers = graphs(exported, quantized)
    for way, before, tolerance in (
        (INT8, quantized, activation_signedness.TOLERANCE),
        (FP32, exported, 1e-5),
    ):
        made = mixed.mix(floating, integers, every_layer(floating, way))
        onnx.save(made, tmp_path / "made.onnx")
        assert self_check.deviation(logits(tmp_path / "made.onnx"), logits(before.path)) < tolerance
        kept = {t.name: t for t in onnx.load(before.path).graph.initializer}
        assert {t.name for t in made.graph.initializer} == kept.keys()
        assert all(t == kept[t.name] for t in made.graph.initializer)


def test_each_layer_alone_in_float_is_float_and_rounds_less(
    exported: cache.Artifact, quantized: cache.Artifact, tmp_path: Path
) -> None:
    """A float layer between two int8 ones must stay so: onnxruntime's optimizer would quantize it."""
    floating, integers = graphs(exported, quantized)
    names = [layer.name for layer in graph_chain.layers(floating)]
    for name in names:
        ways = every_layer(floating, INT8) | {name: FP32}
        onnx.save(mixed.mix(floating, integers, ways), tmp_path / "made.onnx")
        mixed_precision.ensure_graph(exported.path, tmp_path / "made.onnx", {n: ways[n] for n in names})
    unguarded = onnx.load(tmp_path / "made.onnx")
    inner = every_layer(floating, INT8) | {"conv3_2": FP32}
    unguarded = mixed.mix(floating, integers, inner)
    (guard,) = [node for node in unguarded.graph.node if node.name.endswith(mixed.GUARD)]
    (reader,) = [node for node in unguarded.graph.node if guard.output[0] in node.input]
    reader.input[0] = guard.input[0]
    unguarded.graph.node.remove(guard)
    onnx.save(unguarded, tmp_path / "made.onnx")
    with pytest.raises(CheckFailedError, match=r"the layers in float are none; expected conv3_2"):
        mixed_precision.ensure_graph(exported.path, tmp_path / "made.onnx", {n: inner[n] for n in names})


def test_the_stage_mixes_what_is_cheapest_and_says_so(
    exported: cache.Artifact, quantized: cache.Artifact, tmp_path: Path
) -> None:
    made = mixed_precision.run(exported, quantized, "pi4", tmp_path / "mixed.onnx", Quiet())
    record = made.read(mixed_precision.MixedPrecision)
    told = record.mixed
    assert (record.target, told.core, record.model.precision) == ("pi4", CORE, "int8")
    assert list(told.layers) == [layer.name for layer in graph_chain.layers(onnx.load(exported.path))]
    assert {INT8, "F(4x4)"} <= set(told.layers.values())
    assert told.predicted.mixed < (1 - mixed_precision.LEAST_GAIN) * told.predicted.int8
    assert told.moved_bytes.int8 < told.moved_bytes.mixed
    assert told.weight_bytes.int8 < told.weight_bytes.mixed
    integers = list(told.layers.values()).count(INT8)
    assert told.form.startswith(f"{integers} layers in int8, {len(told.layers) - integers} in fp32, ")
    ops = audit.optimized(made.path).graph.node
    assert sum(node.op_type in ("QLinearConv", "QGemm") for node in ops) == integers
    found, rounded, floats = (logits(path) for path in (made.path, quantized.path, exported.path))
    assert self_check.deviation(found, floats) < 1.5 * self_check.deviation(rounded, floats) + 0.02
    again = mixed_precision.run(exported, quantized, "pi4", tmp_path / "mixed.onnx", Quiet())
    assert json.dumps(again.sidecar) == json.dumps(made.sidecar)  # up to date


def test_float_layers_of_the_int8_model_stay_float(
    exported: cache.Artifact, splits: Splits, tmp_path: Path
) -> None:
    """As where the agreement asked for needs them."""
    bench = Bench(exported.path, TARGETS["pi4"], for_input(64), tmp_path, Quiet())
    bench.calibrate([item.path for item in splits.fit[:8]], [])
    kept = ("conv3_2", "conv4_1", "fc2")
    trial = bench.make(quantize.PLAIN, kept)
    floating, integers = onnx.load(exported.path), onnx.load(trial.path)
    links = mixed.links(floating, integers)
    assert {link.name for link in links if link.kind == "layer" and link.float_only} == set(kept)
    best = mixed_cost.cheapest(links, CORE)
    assert all(best.ways[name] != INT8 for name in kept)
    every, same = mixed_precision.choose(floating, integers, CORE)
    assert same == best
    assert {link.name for link in links if link.kind == "layer" and every.ways[link.name] == FP32} == set(
        kept
    )
    onnx.save(mixed.mix(floating, integers, best.ways), tmp_path / "mixed.onnx")
    layers = mixed_precision.ways_of_layers(floating, best)
    mixed_precision.ensure_graph(exported.path, tmp_path / "mixed.onnx", layers)
    forced = [dataclasses.replace(link, float_only=True) for link in links]
    assert INT8 not in mixed_cost.cheapest(forced, CORE).ways.values()


def in_four_bits(integers: onnx.ModelProto, layer: str) -> None:
    """Store a layer of an int8 graph in blocks of 4 bits, with a step of its own for each block."""
    gemms = [node for node in integers.graph.node if node.op_type == "Gemm"]
    (gemm,) = [node for node in gemms if node.input[1].startswith(f"{layer}.weight_")]
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in integers.graph.initializer}
    weight = tensors[f"{layer}.weight_quantized"] * tensors[f"{layer}.weight_scale"]
    inputs, outputs = weight.shape
    blocks = weight.T.reshape(outputs, -1, 32)
    scales = (np.abs(blocks).max(2) / 7).astype(np.float32)
    steps = (np.rint(blocks / scales[..., None]) + 8).astype(np.uint8)
    stored = {"4bit": steps[..., 0::2] | steps[..., 1::2] << 4, "4bit_scale": scales}
    names = [f"{layer}.{name}" for name in stored]
    integers.graph.initializer.extend(map(onnx.numpy_helper.from_array, stored.values(), names))
    sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": 32, "accuracy_level": 4}
    made = helper.make_node(
        mixed.FOUR_BITS,
        *([gemm.input[0], *names], list(gemm.output), gemm.name),
        domain="com.microsoft",
        **sizes,
    )
    gemm.CopyFrom(made)
    if "com.microsoft" not in {one.domain for one in integers.opset_import}:
        integers.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def test_layers_of_4_bits_stay_as_they_are(
    exported: cache.Artifact, quantized: cache.Artifact, tmp_path: Path
) -> None:
    floating, integers = graphs(exported, quantized)
    in_four_bits(integers, "fc1_reduce")
    for node in [n for n in integers.graph.node if n.output[0].startswith("fc1_reduce.weight_")]:
        integers.graph.node.remove(node)
    links = mixed.links(floating, integers)
    assert [link.name for link in links if link.int8_only] == ["fc1_reduce"]
    assert not any(link.float_only for link in links)
    best = mixed_cost.cheapest(links, CORE)
    assert best.ways["fc1_reduce"] == INT8
    made = mixed.mix(floating, integers, best.ways)
    onnx.save(made, tmp_path / "mixed.onnx")
    layers = mixed_precision.ways_of_layers(floating, best)
    mixed_precision.ensure_graph(exported.path, tmp_path / "mixed.onnx", layers)
    assert mixed_parity.ensure_same(floating, integers, made, layers, SETTINGS) < mixed_parity.TOLERANCE[INT8]
    assert not any(t.name == "fc1_reduce.weight" for t in made.graph.initializer)


def test_rescaled_channels_are_rescaled_in_float_layers_too(
    exported: cache.Artifact, splits: Splits, tmp_path: Path
) -> None:
    wanted = QuantizeOptions("pi4", "equalized-corrected", float_layers=0)
    quantized = quantize.run(exported, splits, 8, tmp_path / "int8.onnx", wanted, Quiet())
    integers = onnx.load(quantized.path)
    with pytest.raises(
        CheckFailedError, match=r"weights of conv\d_\d are [\d.]+ steps off its float weights"
    ):
        mixed_precision.ensure_twin(onnx.load(exported.path), integers)
    made = mixed_precision.run(exported, quantized, "pi4", tmp_path / "mixed.onnx", Quiet())
    found, rounded, floats = (logits(path) for path in (made.path, quantized.path, exported.path))
    assert self_check.deviation(found, floats) < 1.5 * self_check.deviation(rounded, floats) + 0.02


@pytest.mark.parametrize(
    ("tensor", "layer", "source"),
    [
        ("conv2_1_expand.weight_scale", "conv2_1_expand", "int8"),
        ("conv4_1.bias", "conv4_1", "fp32"),
        ("relu_1_scale", "conv2_1_expand", "int8"),
    ],
)
def test_a_layer_that_is_not_of_its_graph_is_noticed(
    exported: cache.Artifact, quantized: cache.Artifact, tensor: str, layer: str, source: str
) -> None:
    floating, integers = graphs(exported, quantized)
    best = mixed_cost.cheapest(mixed.links(floating, integers), CORE)
    made = mixed.mix(floating, integers, best.ways)
    before = (floating, integers)
    assert mixed_parity.ensure_same(*before, made, best.ways, SETTINGS) < mixed_parity.TOLERANCE[INT8]
    wrong = next(t for t in made.graph.initializer if t.name == tensor)
    values = onnx.numpy_helper.to_array(wrong)
    wrong.CopyFrom(onnx.numpy_helper.from_array(np.asarray(values * values.dtype.type(1.5)), tensor))
    with pytest.raises(
        CheckFailedError, match=rf"{layer} of the mixed graph gives .* from those of the {source} graph"
    ):
        mixed_parity.ensure_same(*before, made, best.ways, SETTINGS)


def test_an_int8_model_of_another_network_is_refused(
    exported: cache.Artifact, quantized: cache.Artifact
) -> None:
    floating, integers = graphs(exported, quantized)
    for node in integers.graph.node:
        node.name = node.name.replace("conv3_2", "conv9_9")
    with pytest.raises(RewriteError, match=r"the int8 graph has no node conv3_2\.weight_Dequant"):
        mixed.mix(floating, integers, every_layer(floating, INT8))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"MaxPool": "AveragePool"}, r"AveragePool node_max_pool2d was not counted; counted are ReLU, max-"),
        ({"Relu": "LeakyRelu"}, r"LeakyRelu node_relu was not counted"),
    ],
)
def test_a_network_with_other_nodes_is_left_as_it_is(
    exported: cache.Artifact, quantized: cache.Artifact, change: Mapping[str, str], sentence: str
) -> None:
    floating, integers = graphs(exported, quantized)
    for node in floating.graph.node:
        node.op_type = change.get(node.op_type, node.op_type)
        if node.op_type == "AveragePool":
            del node.attribute[:]
            node.attribute.extend([helper.make_attribute(k, [2, 2]) for k in ("kernel_shape", "strides")])
    with pytest.raises(NothingToGainError, match=sentence):
        mixed.links(floating, integers)


def test_another_pool_or_convolution_is_left_as_it_is(
    exported: cache.Artifact, quantized: cache.Artifact
) -> None:
    floating, integers = graphs(exported, quantized)
    pool = next(node for node in floating.graph.node if node.op_type == "MaxPool")
    (window,) = [a for a in pool.attribute if a.name == "kernel_shape"]
    window.ints[:] = [3, 3]
    with pytest.raises(NothingToGainError, match=r"has windows of \(3, 3\), strides of \(2, 2\)"):
        mixed.links(floating, integers)
    with pytest.raises(NothingToGainError, match=r"layer is a convolution of 5x5 with a stride of 1x1"):
        mixed_cost.cheapest([link_of(square("layer", 8, 8, (5, 5), 8))], CORE)


def link_of(part: Part, *, relu: bool = True) -> Link:
    positions = part.sides[0] * part.sides[1]
    return Link(part.name, "layer", (part.inputs, positions), (part.outputs, positions), part, relu=relu)


def chain_of(*sizes: tuple[int, int, int], pools: tuple[int, ...] = ()) -> list[Link]:
    """Convolutions of these inputs, outputs and sides, with pools behind some of them."""
    links = []
    for k, (inputs, outputs, side) in enumerate(sizes):
        links.append(link_of(square(f"conv{k}", inputs, outputs, (3, 3), side)))
        if k in pools:
            links.append(Link(f"pool{k}", "pool", (outputs, side**2), (outputs, side**2 // 4)))
    return links


@pytest.mark.parametrize("per_byte", [0.0, mixed_cost.PER_BYTE, 1.0])
def test_no_other_path_is_cheaper(per_byte: float) -> None:
    """All paths of a short chain, one by one."""
    links = chain_of((3, 16, 32), (16, 64, 32), (64, 128, 16), (128, 16, 16), pools=(1,))
    costs = mixed_cost.Costs.of_core(CORE)
    found = {}
    for ways in itertools.product(*(list(costs.ways(link, ())) for link in links)):
        format_, total = FIRST, 0.0
        for link, way in zip(links, ways, strict=True):
            change = costs.change(format_, way.takes, link.reads)
            if change is None:
                break
            total += (change + way.cost).weighed(per_byte)
            format_ = way.gives
        else:
            end = costs.change(format_, FIRST, links[-1].gives)
            if end is not None:
                found[tuple(way.name for way in ways)] = total + end.weighed(per_byte) + costs.start
    best = mixed_cost.cheapest(links, CORE, per_byte=per_byte)
    assert len(found) > 50
    assert best.cost.weighed(per_byte) == pytest.approx(min(found.values()))
    assert found[tuple(best.ways.values())] == pytest.approx(min(found.values()))


def test_nothing_is_rounded_for_a_pool_alone() -> None:
    """It would be cheaper: an int8 pool with its changes takes fewer instructions than a float one."""
    links = chain_of((256, 256, 40), (256, 256, 20), pools=(0,))
    best = mixed_cost.cheapest(links, CORE, per_byte=0)
    assert best.ways == {"conv0": "F(4x4)", "pool0": FP32, "conv1": "F(4x4)"}
    costs = mixed_cost.Costs.of_core(CORE)
    size, smaller = links[1].reads, links[1].gives
    rounded = [costs.change(LAST, mixed_cost.ROUNDED, size), costs.elementwise("pool int8", size)]
    back = costs.change(mixed_cost.INTEGER, LAST, smaller)
    direct = [costs.change(LAST, FIRST, size), costs.elementwise("pool fp32", size)]
    direct.append(costs.change(FIRST, LAST, smaller))
    assert sum(c.instructions for c in (*rounded, back) if c) < sum(c.instructions for c in direct if c)
    assert costs.change(mixed_cost.ROUNDED, LAST, smaller) is None


def test_what_no_layer_may_be_is_said() -> None:
    with pytest.raises(NothingToGainError, match=r"conv0 cannot be computed in F\(1x4\)"):
        mixed_cost.cheapest(chain_of((8, 8, 8)), CORE, ["F(1x4)"])
    with pytest.raises(OptionsError, match="no counts of int8 for the core 'cortex-a76'; expected"):
        mixed_cost.cheapest(chain_of((8, 8, 8)), "cortex-a76")
    assert mixed_cost.in_words([INT8, INT8, FP32]) == "2 layers in int8, 1 in fp32"
    assert mixed_cost.in_words([INT8, "F(1x4)", FP32]) == "1 layer in int8, 2 in fp32, 1 of them Winograd's"


def test_a_mixture_that_saves_little_is_not_made(
    exported: cache.Artifact, quantized: cache.Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mixed_precision, "LEAST_GAIN", 0.9)
    with pytest.raises(NothingToGainError, match=r"saves [\d.]+% on a cortex-a72, and less than 90% is not"):
        mixed_precision.run(exported, quantized, "pi4", tmp_path / "mixed.onnx", Quiet())
    assert not (tmp_path / "mixed.onnx").exists()


def test_the_model_of_costs_holds_on_shapes_that_it_was_not_fitted_to() -> None:
    """The rows of the table that nothing was fitted on, and what is said of them beside it."""
    table = mixed_cost.table()
    off: dict[str, float] = {}
    for row in table["held_out"]:
        piece = mixed_counts.piece_of(row)
        said = mixed_cost.predicted(table["cores"][CORE], piece.name, piece.features)
        off[piece.name] = max(off.get(piece.name, 0), abs(said / row["instructions"] - 1))
    assert {key: round(error, 4) for key, error in off.items()} == {
        key: error["held_out"] for key, error in table["errors"].items()
    }
    assert max(off.values()) < 0.1


def test_a_table_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed_cost.table.cache_clear()
    (tmp_path / "mixed.json").write_text(json.dumps({"schema": 99}))
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(OptionsError, match=r"mixed\.json has schema 99; expected 1: make it again"):
        mixed_cost.table()
    mixed_cost.table.cache_clear()


@pytest.mark.release
def test_the_predicted_instructions_are_executed_on_an_emulated_pi_4(
    exported: cache.Artifact, quantized: cache.Artifact, tmp_path: Path
) -> None:
    pi = boards()[CORE]
    made = mixed_precision.run(exported, quantized, "pi4", tmp_path / "mixed.onnx", Quiet())
    told = made.read(mixed_precision.MixedPrecision).mixed
    before, after = winograd_counts.count_models(
        pi, [(path, (1, 3, 64, 64)) for path in (quantized.path, made.path)]
    )
    assert told.predicted.int8 == pytest.approx(before, rel=0.05)
    assert told.predicted.mixed == pytest.approx(after, rel=0.05)
    assert after < (1 - mixed_precision.LEAST_GAIN) * before


@pytest.mark.release
def test_counts_are_those_of_the_kernels_that_the_table_names() -> None:
    pi = boards()[CORE]
    piece = mixed_counts.conv_piece(square("layer", 64, 64, (3, 3), 14), INT8)
    (count,) = mixed_counts.counted(pi, [piece])
    table = mixed_cost.table()["cores"][CORE]
    assert mixed_cost.predicted(table, piece.name, piece.features) == pytest.approx(count, rel=0.08)
    pool = mixed_counts.map_piece("pool int8", 64, 40)
    (count,) = mixed_counts.counted(pi, [pool])
    # as the difference of two counts it is less exact
    assert mixed_cost.predicted(table, pool.name, pool.features) == pytest.approx(count, rel=0.25)


@pytest.mark.release
def test_cores_that_do_not_do_the_same_are_noticed() -> None:
    pis = boards()
    others = {**pis, "cortex-a53": pis["cortex-a76"]}
    with pytest.raises(emulated.EmulationError, match=r"instructions on different cores; expected the same"):
        mixed_counts.ensure_same(others)


def test_every_form_has_a_name_of_its_own() -> None:
    assert not {INT8, FP32} & FORMS.keys()
