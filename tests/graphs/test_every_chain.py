"""Export and rewriting of chains that are no VGG."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import chains
import numpy as np
import onnx
import pytest
import torch
from chains import CHAINS
from conftest import first

from vgg_calibration import chain as graph_layers
from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, CheckpointError
from vgg_export.core.progress import Quiet
from vgg_export.graphs import audit, export, lowering, winograd, winograd_cost
from vgg_export.graphs.cook_toom import FORMS
from vgg_export.graphs.model_info import Described, ModelInfo
from vgg_export.network import adaptive_pool, modules
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Activate, AdaptiveAvgPool, AdaptiveMaxPool, AvgPool, Conv, MaxPool, Scale
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model
from vgg_runtime.records import FieldError


def drawn(name: str) -> checkpoints.Checkpoint:
    return chains.checkpoint(CHAINS[name])


def noise(checkpoint: checkpoints.Checkpoint, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *checkpoint.chain.input.shape, generator=generator)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], cache.Artifact]:
    """Exports a chain, each once."""

    @functools.cache
    def made(name: str) -> cache.Artifact:
        folder = tmp_path_factory.mktemp("chain")
        checkpoints.save(drawn(name), folder / "c.safetensors")
        return export.run(cache.of(folder / "c.safetensors"), folder / "m.onnx", Quiet())

    return made


@pytest.mark.parametrize("name", first(4, CHAINS))
def test_the_exported_graph_is_the_chain(name: str, exported: Callable[[str], cache.Artifact]) -> None:
    checkpoint = drawn(name)
    made = exported(name)
    assert made.measured["ops"] == dict(sorted(CHAINS[name].ops.items()))
    assert made.measured["parity"] < 1e-5
    shape = onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", *checkpoint.chain.input.shape]
    x = noise(checkpoint)
    with torch.inference_mode():
        expected = checkpoint.model()(x).numpy()
    found = Model(made.path, SessionSettings(), 1)(x.numpy())
    assert found.shape == (4, checkpoint.chain.units)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    layers = graph_layers.layers(onnx.load(made.path))
    own = {layer.weight for layer in layers if not layer.name.startswith("unit")}
    assert own == {tensor for tensor in checkpoint.tensors if tensor.endswith("weight")}
    assert (layers[0].input, layers[-1].gives) == ("input", "logits")
    ops = [op for layer in layers for op in (layer.kind, *(step.op for step in layer.steps))]
    assert {op: ops.count(op) for op in ops} == CHAINS[name].ops
    info = made.read(Described).model
    assert (info.chain, info.preprocessing) == (checkpoint.chain, checkpoint.chain.input)
    assert (info.parameters, info.macs) == (checkpoint.chain.parameters(), checkpoint.chain.macs())


def test_a_stray_operator_is_noticed_and_a_missing_one(
    exported: Callable[[str], cache.Artifact], tmp_path: Path
) -> None:
    path, expected = exported("silu").path, lowering.operators(drawn("silu").chain)
    loaded = onnx.load(path)
    loaded.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["probabilities"]))
    loaded.graph.output[0].name = "probabilities"
    onnx.save(loaded, tmp_path / "stray.onnx")
    with pytest.raises(CheckFailedError, match=r"holds .*1 Softmax; expected 1 AveragePool, 2 Conv, 2 Gemm,"):
        audit.audit_exported(tmp_path / "stray.onnx", expected)
    with pytest.raises(CheckFailedError, match=r"holds .*3 Sigmoid; expected .*4 Sigmoid, as its layers say"):
        audit.audit_exported(path, expected | {"Sigmoid": 4})


def test_average_pools_are_as_the_int8_kernels_compute_them(
    exported: Callable[[str], cache.Artifact],
) -> None:
    """Nothing lies beside the map that could count, and the mean of a map is one operator."""
    for name in ("pool and activation first, pool with ceil", "multi-label"):
        loaded = onnx.load(exported(name).path)
        pools = [node for node in loaded.graph.node if node.op_type == "AveragePool"]
        assert [a.i for node in pools for a in node.attribute if a.name == "count_include_pad"] == [0] * len(
            pools
        )
        (reshape,) = [node for node in loaded.graph.node if node.op_type == "Reshape"]
        small = {tensor.name for tensor in loaded.graph.initializer if "." not in tensor.name}
        assert small == {reshape.input[1]}  # the axes of the mean are gone


# Lowering.


@pytest.mark.parametrize("name", CHAINS)
def test_lowering_keeps_the_function(name: str) -> None:
    checkpoint = adaptive_pool.without_pool(drawn(name))
    lowered = lowering.lowered(checkpoint.chain)
    units = lowering.unit_scales(checkpoint.chain)
    tensors = checkpoint.tensors | {
        f"{name}.{part}": torch.full((channels,), value)
        for name, channels in units.items()
        for part, value in (("weight", 1.0), ("bias", 0.0))
    }
    network = modules.build(lowered).eval()
    network.load_state_dict(tensors)
    with torch.inference_mode():
        assert torch.allclose(network(noise(checkpoint)), checkpoint.model()(noise(checkpoint)), atol=1e-5)


def test_an_activation_moves_to_what_computes_its_input() -> None:
    lowered = lowering.lowered(drawn("activations behind pools, one channel").chain)
    kinds = [layer.activation if isinstance(layer, Activate) else type(layer) for layer in lowered.layers]
    # a SiLU and a max-pool cannot change places; a ReLU behind means gets a layer to be part of
    assert kinds[:5] == [Conv, "relu", MaxPool, Conv, AvgPool]
    assert kinds[5:10] == [Scale, "relu", Conv, MaxPool, "silu"]
    assert lowering.unit_scales(drawn("no convolution").chain) == {"unit0": 3}
    assert lowering.unit_scales(drawn("scales").chain) == {}
    both = lowering.lowered(drawn("limits in a row").chain)
    assert both.sites[0].layer.activation == "relu6"
    assert len(both.layers) == 4


@pytest.mark.parametrize(
    ("pool", "words"), [(AdaptiveAvgPool, "average pool"), (AdaptiveMaxPool, "max-pool")]
)
def test_a_pool_that_no_operator_computes_is_refused(
    pool: type[AdaptiveAvgPool] | type[AdaptiveMaxPool], words: str, tmp_path: Path
) -> None:
    convs = (Conv("conv1_1", 8), pool((7, 7)), Conv("conv1_2", 8))
    checkpoint = chains.checkpoint(chains.Drawn((*convs, *CHAINS["global max-pool"].layers[1:]), {}))
    with pytest.raises(
        CheckpointError, match=f"adaptive {words} to 7x7 gets a map of 32 x 32, and no operator"
    ):
        export.export(checkpoint, tmp_path / "m.onnx")


# What a graph may not be.


def test_what_is_no_chain_of_layers_is_refused(exported: Callable[[str], cache.Artifact]) -> None:
    whole = onnx.load(exported("silu").path)

    def changed(at: int, **fields: object) -> onnx.ModelProto:
        made = copy.deepcopy(whole)
        for field, value in fields.items():
            if field == "input":
                made.graph.node[at].input[:] = value
            else:
                setattr(made.graph.node[at], field, value)
        return made

    ops = [node.op_type for node in whole.graph.node]
    product = whole.graph.node[ops.index("Mul")]
    with pytest.raises(ValueError, match=r"Mul .* reads .*; expected .*: the network is a chain"):
        graph_layers.layers(changed(ops.index("Mul"), input=[product.input[0], "input"]))
    with pytest.raises(ValueError, match=r"no Softmax at the place of .*, behind Conv"):
        graph_layers.layers(changed(ops.index("Sigmoid"), op_type="Softmax"))
    with pytest.raises(ValueError, match=r"no Relu at the place of .*, behind AveragePool"):
        graph_layers.layers(changed(ops.index("Reshape"), op_type="Relu"))
    with pytest.raises(ValueError, match=r"no MaxPool at the place of .*, behind the input"):
        graph_layers.layers(changed(0, op_type="MaxPool"))


def test_a_description_that_does_not_fit_its_chain_is_refused() -> None:
    info = export.describe(drawn("one sigmoid"))
    assert (info.chain.units, len(info.labels)) == (1, 2)
    assert ModelInfo.from_json(info.to_json()) == info
    with pytest.raises(FieldError, match="labels: expected 2 names, one per class"):
        dataclasses.replace(info, labels=("yes",))
    with pytest.raises(FieldError, match="preprocessing: expected the input of the chain"):
        dataclasses.replace(info, preprocessing=info.preprocessing.at(16))


# Winograd.


def test_only_convolutions_of_stride_one_that_keep_the_size_have_a_form() -> None:
    with_form = {
        name: [part.name for part in drawn(name).chain.parts() if winograd_cost.forms_of(part)]
        for name in ("factorised", "large kernels, strides", "asymmetric padding")
    }
    assert with_form.pop("factorised") == ["conv1_1", "conv1_4_reduce"]
    assert list(with_form.values()) == [[], []]
    moved = dataclasses.replace(next(drawn("silu").chain.parts()), stride=(2, 2))
    assert not winograd_cost.forms_of(moved)


@pytest.mark.parametrize(
    "name", ["activations behind pools, one channel", "leaky_relu", "tanh", "silu", "scales"]
)
def test_convolutions_between_other_layers_are_rewritten(
    name: str, exported: Callable[[str], cache.Artifact], tmp_path: Path
) -> None:
    path, result = exported(name).path, tmp_path / "w.onnx"
    forms = {site.name: FORMS["F(4x4)"] for site in drawn(name).chain.convs}
    winograd.rewrite_file(path, result, forms)
    assert winograd.ensure(path, result, forms) < winograd.TOLERANCE / 10
    assert audit.count_ops(result).get("Conv", 0) == CHAINS[name].ops["Conv"] - len(forms)
