import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vgg_export.core.errors import CheckpointError
from vgg_export.network import chain, modules
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.provenance import Origins, Provenance
from vgg_runtime.bundle.input_spec import InputSpec


def test_vgg19_has_the_published_size() -> None:
    vgg19 = chain.full_width("vgg19")
    assert vgg19.parameters() == 143_667_240  # torchvision's documentation
    assert vgg19.macs() / 1e9 == pytest.approx(19.63, abs=0.01)


@pytest.mark.parametrize(
    ("family", "parameters"), [("vgg11", 132_863_336), ("vgg13", 133_047_848), ("vgg16", 138_357_544)]
)
def test_the_family_has_the_published_sizes(family: str, parameters: int) -> None:
    assert chain.full_width(family).parameters() == parameters


def test_counted_parameters_and_macs_are_those_of_the_network(checkpoint: checkpoints.Checkpoint) -> None:
    network = checkpoint.model()
    assert sum(p.numel() for p in network.parameters()) == checkpoint.chain.parameters()
    counted = 0

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        weight = layer.get_parameter("weight")
        counted += weight[0].numel() * output[0].numel()

    for layer in network:
        if hasattr(layer, "weight"):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 3, 224, 224))
    assert counted == checkpoint.chain.macs()


def test_a_checkpoint_comes_back_as_it_was(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> None:
    checkpoints.save(checkpoint, tmp_path / "c.safetensors")
    again = checkpoints.load(tmp_path / "c.safetensors")
    assert again.chain == checkpoint.chain
    assert (again.labels, again.provenance) == (checkpoint.labels, checkpoint.provenance)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())


def test_the_same_checkpoint_is_the_same_file(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> None:
    """The library alone writes metadata in one of six orders, another one each time."""
    for k in range(8):
        checkpoints.save(checkpoint, tmp_path / f"{k}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_half_precision_halves_the_file(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> None:
    checkpoints.save(checkpoint, tmp_path / "full.safetensors")
    checkpoints.save(checkpoint, tmp_path / "half.safetensors", half=True)
    full, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half"))
    assert half == pytest.approx(full / 2, rel=0.05)
    assert checkpoints.load(tmp_path / "half.safetensors").tensors["fc1.weight"].dtype == torch.float32


def test_tensors_that_do_not_fit_the_chain_are_refused(checkpoint: checkpoints.Checkpoint) -> None:
    wrong = checkpoint.tensors | {"fc3.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"fc3.bias is \(3,\), but the layers say \(7,\)"):
        dataclasses.replace(checkpoint, tensors=wrong)
    with pytest.raises(CheckpointError, match=r"lacks conv1_1.bias"):
        dataclasses.replace(
            checkpoint, tensors={k: v for k, v in checkpoint.tensors.items() if k != "conv1_1.bias"}
        )
    with pytest.raises(CheckpointError, match="8 labels for 7 classes"):
        dataclasses.replace(checkpoint, labels=("x",) * 8)


def test_a_header_is_read_without_tensors_and_refuses_what_loading_does(
    checkpoint: checkpoints.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    source = Provenance("file", "x", assumed=("a",), history=("b", "c"), fitted_on=("0123",))
    checkpoints.save(dataclasses.replace(checkpoint, provenance=source), path)
    # as an older file has it: without what was added since
    older = tmp_path / "older.safetensors"
    header = {"chain": checkpoint.chain.to_json(), "labels": checkpoint.labels, "source": {"later": 1}}
    metadata = {"format": checkpoints.FORMAT, "version": "1", "checkpoint": json.dumps(header)}
    save_file(checkpoint.tensors, older, metadata)
    missing, damaged = tmp_path / "missing.safetensors", tmp_path / "damaged.safetensors"
    save_file({k: v for k, v in checkpoint.tensors.items() if k != "fc3.bias"}, missing, metadata)
    wrong = json.dumps(header | {"source": {"history": "pruned"}})
    save_file(checkpoint.tensors, damaged, metadata | {"checkpoint": wrong})
    for read in (checkpoints.load, checkpoints.read_header):
        found = read(path)
        assert (found.chain, found.labels, found.provenance) == (checkpoint.chain, checkpoint.labels, source)
        assert read(older).provenance == Provenance("file", checkpoint.chain.family)
        with pytest.raises(CheckpointError, match=r"lacks fc3.bias \(7,\)"):
            read(missing)
        with pytest.raises(CheckpointError, match=r"history: expected a list, found 'pruned'.*make it again"):
            read(damaged)
    monkeypatch.setattr("safetensors.torch.load_file", lambda _: pytest.fail("the tensors were read"))
    assert checkpoints.read_header(path).labels == checkpoint.labels


def test_where_weights_came_from_keeps_its_keys_and_their_order() -> None:
    whole = Provenance("file", "x", "0f", ("a",), "labels", Origins(), True, "why", "notice", ("b",), ("c",))
    assert list(whole.to_json()) == [
        "weights",
        "what",
        "sha256",
        "assumed",
        "names_from",
        "origins",
        "wordnet",
        "figures_absent",
        "notice",
        "history",
        "fitted_on",
    ]
    assert Provenance("demo", "y").to_json() == {"weights": "demo", "what": "y"}
    assert Provenance.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_layers_that_are_no_chain_are_refused(checkpoint: checkpoints.Checkpoint) -> None:
    whole, head = checkpoint.chain, chain.Linear("fc1", 2, activation="none")
    small = InputSpec(8, 8)
    with pytest.raises(
        CheckpointError, match="only 1 x 1 where 2x2 max-pool follows: the input is too small"
    ):
        whole.at(31)
    with pytest.raises(CheckpointError, match="fc1 reads maps"):
        chain.Chain(small, (head,))
    with pytest.raises(CheckpointError, match="two layers of the chain are called fc1"):
        chain.Chain(small, (chain.Flatten(), head, head))
    with pytest.raises(CheckpointError, match="has the activation relu; expected logits"):
        chain.Chain(small, (chain.Flatten(), chain.Linear("fc1", 2)))
    with pytest.raises(CheckpointError, match="1 outputs is said to be 'softmax'; one output is a 'sigmoid'"):
        chain.Chain(small, (chain.Flatten(), dataclasses.replace(head, outputs=1)))
    with pytest.raises(CheckpointError, match="must end in one list of logits"):
        chain.Chain(small, (chain.Conv("conv1_1", 2),))
    with pytest.raises(CheckpointError, match=r"'spatial', rank=2.* is no factorisation of fc1"):
        chain.Chain(small, (chain.Flatten(), dataclasses.replace(head, factor=chain.Factor("spatial", 2))))
    with pytest.raises(CheckpointError, match="'swish' is no activation that this program knows"):
        chain.Chain(small, (chain.Conv("conv1_1", 2, activation="swish"), chain.Flatten(), head))


def test_a_damaged_description_names_the_field(checkpoint: checkpoints.Checkpoint) -> None:
    document = json.loads(json.dumps(checkpoint.chain.to_json()))
    assert chain.Chain.from_json(document) == checkpoint.chain
    document["layers"][0]["kernel"] = [3, "x"]
    with pytest.raises(CheckpointError, match=r"layers\[0\].kernel\[1\]: expected a whole number, found 'x'"):
        chain.Chain.from_json(document)
    document["layers"][0] = {"type": "lstm"}
    with pytest.raises(CheckpointError, match=r"layers\[0\]: expected a layer with a type of conv, linear"):
        chain.Chain.from_json(document)


def test_a_plan_of_format_2_is_read_as_a_chain() -> None:
    """As a checkpoint of a factorised VGG-11 at 160 px has it."""
    plan = {
        "family": "vgg11",
        "blocks": [[8], [16], [32, 32], [64, 64], [64, 64]],
        "hidden": [32, 16],
        "classes": 7,
        "input_px": 160,
        "factors": [
            {"layer": "conv3_2", "kind": "spatial", "rank": 5},
            {"layer": "fc1", "kind": "linear", "rank": 4},
        ],
    }
    found = chain.Chain.from_json(plan)
    assert (found.family, found.input, found.units) == ("vgg11", InputSpec(183, 160), 7)
    assert found.widths() == ((8,), (16,), (32, 32), (64, 64), (64, 64))
    shapes = found.tensor_shapes()
    assert shapes["conv3_2_reduce.weight"] == (5, 32, 3, 1)
    assert shapes["conv3_2_expand.weight"] == (32, 5, 1, 3)
    assert shapes["fc1_reduce.weight"] == (4, 64 * 25)  # the pool is folded: 5 x 5 places
    assert shapes["fc3.bias"] == (7,)
    assert not any(isinstance(layer, chain.AdaptiveAvgPool) for layer in found.layers)
    whole = chain.Chain.from_json(plan | {"input_px": 224, "factors": []})
    assert chain.AdaptiveAvgPool((7, 7)) in whole.layers


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 3), (1, 0))],
)
def test_shapes_are_those_that_torch_gives(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil: bool
) -> None:
    for px in range(13, 22):
        found = chain.Chain(
            InputSpec(px, px),
            (
                chain.Conv("conv1_1", 4, (5, 3), (2, 1), (2, 0, 1, 1)),
                chain.MaxPool(kernel, stride, padding, ceil),
                chain.AvgPool(kernel, stride, ceil),
                chain.Flatten(),
                chain.Linear("fc1", 3, activation="none"),
            ),
        )
        x = torch.zeros(1, 3, px, px)
        modules_of = dict(modules.build(found).named_children())
        assert modules.build(found)(x).shape == (1, 3)
        assert modules_of["fc1"].get_parameter("weight").shape[1] == found.linears[0].channels


def test_stages_are_counted_between_pools() -> None:
    layers, names = chain.named(
        (
            chain.Conv("a", 4, activation="none"),
            chain.Scale("n"),
            chain.Conv("b", 4),
            chain.MaxPool((3, 3), (1, 1), (1, 1)),
            chain.Conv("c", 4),
            chain.AvgPool(),
            chain.MaxPool(),
            chain.Conv("d", 4),
            chain.AdaptiveAvgPool((1, 1)),
            chain.Flatten(),
            chain.Linear("e", 5),
            chain.Linear("f", 2, activation="none"),
        )
    )
    found = chain.Chain(InputSpec(32, 32), layers)
    assert names == {
        "a": "conv1_1", "n": "scale1", "b": "conv1_2", "c": "conv1_3", "d": "conv2_1", "e": "fc1", "f": "fc2"
    }  # fmt: skip
    assert found.stages == (("conv1_1", "conv1_2", "conv1_3"), ("conv2_1",))
    assert (found.family, found.stride_px) == ("network of 4 convolutions", 4)
    assert [site.gives for site in found.sites] == [
        (4, 32, 32), (4, 32, 32), (4, 8, 8), (4,), (5,), (2,)
    ]  # fmt: skip
    assert found.sites[0].behind[0].layer == chain.Scale("scale1")


def test_a_truncated_or_newer_checkpoint_is_refused(
    checkpoint: checkpoints.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    checkpoints.save(checkpoint, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="may be truncated"):
        checkpoints.load(path)
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 9)
    checkpoints.save(checkpoint, path)
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 8)
    with pytest.raises(CheckpointError, match="reads up to 8: update vgg-export"):
        checkpoints.load(path)


def test_folded_batch_norm_is_the_same_function() -> None:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(5, 6, 3), torch.nn.BatchNorm2d(6)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    assert conv.bias is not None
    mean.normal_()
    variance.uniform_(0.1, 3)
    norm.weight.data.normal_()
    norm.eval()
    x = torch.randn(2, 5, 9, 9)
    scale, shift = modules.scale_and_shift(
        gamma=norm.weight.data, beta=norm.bias.data, mean=mean, variance=variance
    )
    weight, bias = modules.scaled_outputs(conv.weight.data, conv.bias.data, scale, shift)
    torch.testing.assert_close(
        torch.nn.functional.conv2d(x, weight, bias), norm(conv(x)), rtol=1e-5, atol=1e-5
    )
