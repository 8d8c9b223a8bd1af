import copy
import itertools
import json
import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from boards import boards
from conftest import small_checkpoint
from onnx import numpy_helper

import emulated
import winograd_counts
from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, DataError, NothingToGainError, OptionsError, RewriteError
from vgg_export.core.progress import Quiet
from vgg_export.graphs import audit, cook_toom, winograd, winograd_cost, winograd_layers
from vgg_export.graphs import export as onnx_export
from vgg_export.graphs.cook_toom import FORMS, Form
from vgg_export.network import chain, modules
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain, Factor, vgg_layers
from vgg_export.network.provenance import Provenance
from vgg_runtime.bundle.input_spec import for_input

LAYER = winograd_counts.square("layer", 6, 10, (3, 3), 10)


def one(
    kernel: tuple[int, int] = (3, 3), side: int = 10, inputs: int = 6, outputs: int = 10
) -> onnx.ModelProto:
    """A graph of one convolution named "layer" and a ReLU."""
    return onnx.load_from_string(
        winograd_counts.single(winograd_counts.square("layer", inputs, outputs, kernel, side), None)
    )


def answer(made: onnx.ModelProto, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = ort.InferenceSession(made.SerializeToString()).run(None, {"input": x})[0]
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole small VGG at 64 px, and of itself rewritten."""
    exported = export(small_checkpoint("vgg11"), tmp_path_factory.mktemp("small"))
    winograd.rewrite_file(exported, exported.with_name("w.onnx"), mixed(exported))
    return exported.parent


@pytest.fixture
def exported(small: Path, tmp_path: Path) -> Path:
    """A copy of the small VGG."""
    return Path(shutil.copy(small / "direct.onnx", tmp_path))


def export(checkpoint: checkpoints.Checkpoint, folder: Path) -> Path:
    onnx_export.export(checkpoint, folder / "direct.onnx")
    return folder / "direct.onnx"


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_transforms_are_exact(m: int) -> None:
    """Fractions are exact. Filters and inputs of one element suffice, because all others are sums of
    these."""
    g, b, a = cook_toom.weight_transform(m), cook_toom.input_transform(m), cook_toom.output_transform(m)
    for tap, place in itertools.product(range(3), range(m + 2)):
        said = [sum((a[k][i] * g[i][tap] * b[i][place] for i in range(m + 2)), Fraction(0)) for k in range(m)]
        assert said == [k + tap == place for k in range(m)]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (0, 2), (2, 5)])
def test_there_is_no_such_form(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"tiles of {rows}x{columns} outputs; expected 1 to 4"):
        Form(rows, columns)


@pytest.mark.parametrize("side", [5, 7, 10, 14, 20])
@pytest.mark.parametrize("form", FORMS.values(), ids=str)
def test_a_rewritten_layer_says_the_same(form: Form, side: int) -> None:
    direct = one(form.kernel, side)
    rewritten = copy.deepcopy(direct)
    winograd_layers.rewrite(rewritten, {"layer": form})
    onnx.checker.check_model(rewritten, full_check=True)
    assert "Conv" not in {node.op_type for node in rewritten.graph.node}
    for batch in (1, 3):
        x = np.random.default_rng(side).standard_normal((batch, 6, side, side), np.float32)
        expected, found = answer(direct, x), answer(rewritten, x)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < winograd.TOLERANCE / 10 * expected.max()


def test_a_layer_without_bias_and_a_map_that_is_not_square() -> None:
    direct = one()
    del direct.graph.node[0].input[2]
    for value in (*direct.graph.input, *direct.graph.output):
        value.type.tensor_type.shape.dim[3].dim_value = 13
    rewritten = copy.deepcopy(direct)
    winograd_layers.rewrite(rewritten, {"layer": FORMS["F(4x4)"]})
    x = np.random.default_rng(0).standard_normal((2, 6, 10, 13), np.float32)
    expected, found = answer(direct, x), answer(rewritten, x)
    assert np.abs(found - expected).max() < winograd.TOLERANCE / 10 * expected.max()


def mixed(exported: Path) -> dict[str, Form]:
    """F(2x2) and F(4x4) in turns, the first convolution as it is."""
    convs = [
        node.input[1].removesuffix(".weight")
        for node in onnx.load(exported).graph.node
        if node.op_type == "Conv"
    ]
    return {name: FORMS[("F(2x2)", "F(4x4)")[k % 2]] for k, name in enumerate(convs[1:])}


def test_a_whole_network_with_mixed_forms(exported: Path) -> None:
    result, forms = exported.with_name("w.onnx"), mixed(exported)
    winograd.rewrite_file(exported, result, forms)
    assert winograd.ensure(exported, result, forms) < winograd.TOLERANCE
    assert audit.count_ops(result)["Conv"] == 1
    assert result.stat().st_size - exported.stat().st_size < winograd.allowed_growth_bytes(len(forms))
    products = [node for node in audit.optimized(result).graph.node if node.name.endswith(".multiplied")]
    assert len(products) == len(forms)


def factorised() -> checkpoints.Checkpoint:
    """A VGG11 with factorised layers of every kind, random weights."""
    import torch

    original = small_checkpoint("vgg11")
    factors = {
        "conv2_1": Factor("spatial", 16),
        "conv3_1": Factor("channel", 16),
        "conv3_2": Factor("spatial", 24),
        "fc1": Factor("linear", 8),
    }
    network = original.chain.with_factors(factors)
    torch.manual_seed(0)
    tensors = {name: t.detach() for name, t in modules.build(network).state_dict().items()}
    return checkpoints.Checkpoint(network, tensors, original.labels, original.provenance)


def test_a_factorised_network(tmp_path: Path) -> None:
    source, result = export(factorised(), tmp_path), tmp_path / "w.onnx"
    names = {
        "conv2_1_reduce": "F(4x1)",
        "conv2_1_expand": "F(1x4)",
        "conv3_1_reduce": "F(4x4)",
        "conv3_2_reduce": "F(2x1)",
    }
    forms = {name: FORMS[form] for name, form in (names | {"conv3_2_expand": "F(1x2)"}).items()}
    winograd.rewrite_file(source, result, forms)
    assert winograd.ensure(source, result, forms) < winograd.TOLERANCE


def test_weights_in_another_file_stay_there(exported: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    onnx.save(
        onnx.load(exported), outside, save_as_external_data=True, location="weights.bin", size_threshold=64
    )
    before = (tmp_path / "weights.bin").stat()
    result, forms = tmp_path / "w.onnx", mixed(outside)
    winograd.rewrite_file(outside, result, forms)
    winograd.ensure(outside, result, forms)
    after = (tmp_path / "weights.bin").stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    assert (
        result.stat().st_size
        < outside.stat().st_size + winograd.allowed_growth_bytes(len(forms))
        < 200_000
        < after.st_size
    )
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(
        RewriteError, match=r"has weights in weights\.bin; write the output into the same folder"
    ):
        winograd.rewrite_file(outside, tmp_path / "elsewhere/w.onnx", forms)
    moved = onnx.load(result, load_external_data=False)
    moved.graph.initializer[0].external_data[0].value = "other.bin"
    result.write_bytes(moved.SerializeToString())
    with pytest.raises(
        CheckFailedError, match=r"references to weights in other files differ from those of outside\.onnx"
    ):
        winograd_layers.ensure_same_interface(outside, result)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strides": [2, 2]}, r"layer has strides \(2, 2\); F\(4x4\) is for \(1, 1\)"),
        ({"dilations": [2, 2]}, r"layer has dilations \(2, 2\); F\(4x4\) is for \(1, 1\)"),
        ({"pads": [0, 0, 0, 0]}, r"layer has pads \(0, 0, 0, 0\); F\(4x4\) is for \(1, 1, 1, 1\)"),
        ({"group": 2}, r"layer has group \(2,\); F\(4x4\) is for \(1,\)"),
        ({"auto_pad": "SAME_LOWER"}, r"layer has pads auto_pad; F\(4x4\) is for \(1, 1, 1, 1\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_convolution_of_another_kind_is_refused(changes: Mapping[str, Any], sentence: str) -> None:
    made = one()
    node = made.graph.node[0]
    kept = [a for a in node.attribute if a.name not in changes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(onnx.helper.make_attribute(k, v) for k, v in changes.items())])
    before = made.SerializeToString()
    with pytest.raises(RewriteError, match=sentence):
        winograd_layers.rewrite(made, {"layer": FORMS["F(4x4)"]})
    assert made.SerializeToString() == before


def test_what_does_not_fit_is_refused() -> None:
    made = one((3, 1))
    with pytest.raises(RewriteError, match=r"layer has kernel \(3, 1\); F\(4x4\) is for \(3, 3\)"):
        winograd_layers.rewrite(made, {"layer": FORMS["F(4x4)"]})
    with pytest.raises(RewriteError, match="0 convolutions are named 'conv9_9'; expected one of: layer"):
        winograd_layers.rewrite(made, {"conv9_9": FORMS["F(4x1)"]})
    twice = one()
    twice.graph.node.append(twice.graph.node[0])
    twice.graph.node[-1].output[0] = "again"
    with pytest.raises(RewriteError, match="2 convolutions are named 'layer'"):
        winograd_layers.rewrite(twice, {"layer": FORMS["F(4x4)"]})
    unknown = one()
    unknown.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(
        RewriteError,
        match=r"shapes \(10, 6, 3, 3\) of the weight and \(0, 6, 0, 10\) of the input; expected four known",
    ):
        winograd_layers.rewrite(unknown, {"layer": FORMS["F(4x4)"]})


@pytest.fixture
def rewritten(small: Path, tmp_path: Path) -> Path:
    """A copy of the rewritten one."""
    return Path(shutil.copy(small / "w.onnx", tmp_path))


def test_the_checks_notice_a_file_that_grew(exported: Path, rewritten: Path) -> None:
    made = onnx.load(rewritten)
    made.graph.initializer.append(numpy_helper.from_array(np.zeros(100_000, np.float32), "transformed"))
    onnx.save(made, rewritten)
    with pytest.raises(
        CheckFailedError, match=r"the rewritten file grew by \d+ bytes for 7 layers; expected at most 55000"
    ):
        winograd.ensure(exported, rewritten, mixed(exported))


def test_the_checks_notice_another_interface(exported: Path, rewritten: Path) -> None:
    made = onnx.load(rewritten)
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(made, rewritten)
    with pytest.raises(
        CheckFailedError, match=r"the rewritten graph's inputs or outputs differ from those of direct\.onnx"
    ):
        winograd.ensure(exported, rewritten, mixed(exported))


def test_the_checks_notice_an_invalid_graph(exported: Path, rewritten: Path) -> None:
    made = onnx.load(rewritten)
    made.graph.node[3].input[0] = "nowhere"
    onnx.save(made, rewritten)
    with pytest.raises(CheckFailedError, match="not valid ONNX"):
        winograd.ensure(exported, rewritten, mixed(exported))


def test_the_checks_notice_weights_that_are_transformed_in_every_inference(
    exported: Path, rewritten: Path
) -> None:
    """onnxruntime cannot fold an initializer that the caller may replace, which is one that is among the
    inputs."""
    made = onnx.load(rewritten)
    weight = next(t for t in made.graph.initializer if t.name == "conv2_1.weight")
    made.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    onnx.save(made, rewritten)
    with pytest.raises(CheckFailedError, match=r"onnxruntime does not fold conv2_1\.winograd\.\d+\.weight"):
        winograd_layers.ensure_folded(rewritten, mixed(exported))


def test_the_checks_notice_other_numbers(exported: Path, rewritten: Path) -> None:
    made = onnx.load(rewritten)
    matrix = next(t for t in made.graph.initializer if t.name == "winograd.F(4x4).output")
    matrix.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(matrix) * np.float32(1.001), matrix.name))
    onnx.save(made, rewritten)
    with pytest.raises(
        CheckFailedError, match=r"logits differ by [\d.e-]+ of the largest, at most 0\.0001 allowed"
    ):
        winograd.ensure(exported, rewritten, mixed(exported))


def wide(tmp_path: Path, side: int = 64) -> cache.Artifact:
    """A VGG11 with random weights at 64 px whose deeper convolutions gain."""
    import torch

    stages = ((16,), (32,), (128, 128), (128, 128), (128, 128))
    network = Chain(for_input(side), vgg_layers(stages, (16, 16, 7)))
    torch.manual_seed(0)
    checkpoint = checkpoints.Checkpoint(
        network,
        dict(modules.build(network).state_dict()),
        tuple("abcdefg"),
        Provenance("random", "for tests"),
    )
    checkpoints.save(checkpoint, tmp_path / "c.safetensors")
    return onnx_export.run(cache.of(tmp_path / "c.safetensors"), tmp_path / "direct.onnx", Quiet())


def test_the_stage_rewrites_what_pays_and_says_so(tmp_path: Path) -> None:
    direct = wide(tmp_path)
    made = winograd.run(direct, "cortex-a72", tmp_path / "w.onnx", Quiet())
    told = made.measured["winograd"]
    assert told["core"] == "cortex-a72"
    assert 1 <= len(told["layers"]) == 8 - made.measured["ops"].get("Conv", 0)
    assert told["predicted"]["rewritten"] < told["predicted"]["direct"]
    assert told["parity"] == made.measured["parity"] < made.measured["tolerance"] == winograd.TOLERANCE
    assert made.measured["model"] == direct.measured["model"]
    again = winograd.run(direct, "cortex-a72", tmp_path / "w.onnx", Quiet())
    assert json.dumps(again.sidecar) == json.dumps(made.sidecar)  # up to date


def test_the_stage_refuses_what_it_cannot_use(saved: cache.Artifact, tmp_path: Path) -> None:
    direct = onnx_export.run(saved, tmp_path / "narrow.onnx", Quiet())
    with pytest.raises(
        OptionsError,
        match="there are no counts for the core 'cortex-m4'; expected one of cortex-a53, cortex-a72, cortex",
    ):
        winograd.run(direct, "cortex-m4", tmp_path / "w.onnx", Quiet())
    with pytest.raises(
        NothingToGainError, match="no form makes a convolution clearly cheaper on a cortex-a72"
    ):
        winograd.run(direct, "cortex-a72", tmp_path / "w.onnx", Quiet())
    integers = cache.Artifact(
        direct.path, direct.sha256, {"measured": {"model": direct.measured["model"] | {"precision": "int8"}}}
    )
    with pytest.raises(DataError, match="a model in int8; expected an fp32 model"):
        winograd.run(integers, "cortex-a72", tmp_path / "w.onnx", Quiet())
    with pytest.raises(
        DataError, match="; expected a model that 'vgg-export export' wrote, with its sidecar"
    ):
        winograd.run(
            cache.Artifact(direct.path, direct.sha256, {"measured": {}}),
            "cortex-a72",
            tmp_path / "w.onnx",
            Quiet(),
        )
    assert not (tmp_path / "w.onnx").exists()


def test_a_layer_that_does_not_pay_stays_as_it_is() -> None:
    layers = [
        winograd_counts.square("first", 3, 64, (3, 3), 160),
        winograd_counts.square("deep", 256, 256, (3, 3), 40),
        winograd_counts.square("mixing", 64, 64, (1, 1), 40),
        winograd_counts.square("fc", 64, 64, None, 1),
    ]
    for core in winograd_cost.CORES:
        choice = winograd_cost.choose(layers, core)
        assert choice.forms == {"deep": FORMS["F(4x4)"]}
        assert choice.rewritten.instructions < choice.direct.instructions
        assert choice.rewritten.moved_bytes > choice.direct.moved_bytes
        deep = 256 * 256 * 4  # bytes of one tap, 36 of which there are then and not 9
        assert choice.rewritten.weight_bytes - choice.direct.weight_bytes == 27 * deep
    free, dear = (
        set(winograd_cost.choose(chain.full_width("vgg19").parts(), "cortex-a72", cost).forms)
        for cost in (0.0, 100.0)
    )
    assert dear == set()
    assert free == {site.name for site in chain.full_width("vgg19").convs} - {"conv1_1"}


def test_the_model_of_costs_holds_on_shapes_that_it_was_not_fitted_to() -> None:
    """The rows of the table that nothing was fitted on, and what is said of them beside it."""
    table = winograd_cost.table()
    off: dict[str, float] = {}
    for row in table["held_out"]:
        size = (row["inputs"], row["outputs"], tuple(row["kernel"]), row["side_px"])
        layer = winograd_counts.square("layer", *size)
        form = FORMS.get(row["form"])
        said = winograd_cost.predicted(table["cores"]["cortex-a72"], layer, form).instructions
        key = winograd_cost.name_of(layer, form)
        off[key] = max(off.get(key, 0), abs(said / row["instructions"] - 1))
    assert {key: round(error, 4) for key, error in off.items()} == {
        key: error["held_out"] for key, error in table["errors"].items()
    }
    assert max(off.values()) < 0.1


def test_a_table_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winograd_cost.table.cache_clear()
    (tmp_path / "winograd.json").write_text(json.dumps({"schema": 99}))
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(OptionsError, match=r"winograd\.json has schema 99; expected 1: make it again"):
        winograd_cost.table()
    winograd_cost.table.cache_clear()


@pytest.mark.release
def test_fewer_instructions_on_an_emulated_pi_4(tmp_path: Path) -> None:
    pi = boards()["cortex-a72"]
    layer = winograd_counts.square("layer", 256, 256, (3, 3), 20)
    form = winograd_cost.choose([layer], "cortex-a72").forms["layer"]
    paths, outputs = (
        [tmp_path / f"{name}.{end}" for name in ("direct", "rewritten")] for end in ("onnx", "npy")
    )
    for path, which in zip(paths, (None, form), strict=True):
        path.write_bytes(winograd_counts.single(layer, which))
    before, after = winograd_counts.count_models(pi, [(path, (1, 256, 20, 20)) for path in paths], outputs)
    assert before > 1.8 * after
    expected, found = map(np.load, outputs)
    assert np.abs(found - expected).max() < winograd.TOLERANCE * expected.max()
    coefficients = winograd_cost.of_core("cortex-a72")
    for count, which in ((before, None), (after, form)):
        assert winograd_cost.predicted(coefficients, layer, which).instructions == pytest.approx(
            count, rel=0.1
        )


@pytest.mark.release
def test_cores_that_do_not_do_the_same_are_noticed() -> None:
    pi = boards()["cortex-a72"]
    grid = [winograd_counts.Task(LAYER, None, pi)] * 2
    winograd_counts.ensure_same(grid, [10_000, 10_001])
    with pytest.raises(
        emulated.EmulationError,
        match=r"\[1000, 1100\] instructions on different cores; expected the same within 3%",
    ):
        winograd_counts.ensure_same(grid, [1000, 1100])
