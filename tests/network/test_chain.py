import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import small_checkpoint
from safetensors.torch import save_file

from vgg_export.core.errors import CheckpointError
from vgg_export.network import chain, modules
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.provenance import Provenance


def test_vgg19_has_the_published_size() -> None:
    plan = chain.full_width("vgg19")
    assert plan.parameters() == 143_667_240  # torchvision's documentation
    assert plan.macs() / 1e9 == pytest.approx(19.63, abs=0.01)


@pytest.mark.parametrize(
    ("family", "parameters"), [("vgg11", 132_863_336), ("vgg13", 133_047_848), ("vgg16", 138_357_544)]
)
def test_the_family_has_the_published_sizes(family: str, parameters: int) -> None:
    assert chain.full_width(family).parameters() == parameters


def test_counted_parameters_and_macs_are_those_of_the_network(checkpoint: checkpoints.Checkpoint) -> None:
    network = checkpoint.model()
    assert sum(p.numel() for p in network.parameters()) == checkpoint.plan.parameters()
    counted = 0

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        weight = layer.get_parameter("weight")
        counted += weight[0].numel() * output[0].numel()

    for layer in network:
        if hasattr(layer, "weight"):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 3, 224, 224))
    assert counted == checkpoint.plan.macs()


def test_a_checkpoint_comes_back_as_it_was(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> None:
    checkpoints.save(checkpoint, tmp_path / "c.safetensors")
    again = checkpoints.load(tmp_path / "c.safetensors")
    assert again.plan == checkpoint.plan
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


def test_tensors_that_do_not_fit_the_plan_are_refused(checkpoint: checkpoints.Checkpoint) -> None:
    wrong = checkpoint.tensors | {"fc3.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"fc3.bias is \(3,\), but the plan says \(7,\)"):
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
    header = {"plan": checkpoint.plan.to_json(), "labels": checkpoint.labels, "source": {"later": 1}}
    metadata = {"format": checkpoints.FORMAT, "version": "1", "checkpoint": json.dumps(header)}
    save_file(checkpoint.tensors, older, metadata)
    missing, damaged = tmp_path / "missing.safetensors", tmp_path / "damaged.safetensors"
    save_file({k: v for k, v in checkpoint.tensors.items() if k != "fc3.bias"}, missing, metadata)
    wrong = json.dumps(header | {"source": {"history": "pruned"}})
    save_file(checkpoint.tensors, damaged, metadata | {"checkpoint": wrong})
    for read in (checkpoints.load, checkpoints.read_header):
        found = read(path)
        assert (found.plan, found.labels, found.provenance) == (checkpoint.plan, checkpoint.labels, source)
        assert read(older).provenance == Provenance("file", checkpoint.plan.family)
        with pytest.raises(CheckpointError, match=r"lacks fc3.bias \(7,\)"):
            read(missing)
        with pytest.raises(CheckpointError, match=r"history: expected a list, found 'pruned'.*make it again"):
            read(damaged)
    monkeypatch.setattr("safetensors.torch.load_file", lambda _: pytest.fail("the tensors were read"))
    assert checkpoints.read_header(path).labels == checkpoint.labels


def test_where_weights_came_from_keeps_its_keys_and_their_order() -> None:
    whole = Provenance("file", "x", "0f", ("a",), "labels", True, "why", "notice", ("b",), ("c",))
    assert list(whole.to_json()) == [
        "weights",
        "what",
        "sha256",
        "assumed",
        "names_from",
        "wordnet",
        "figures_absent",
        "notice",
        "history",
        "fitted_on",
    ]
    assert Provenance("demo", "y").to_json() == {"weights": "demo", "what": "y"}
    assert Provenance.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_a_plan_that_is_no_vgg_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is not a VGG; expected one of"):
        chain.Plan("vgg19", ((16,),) * 5, (8, 8), 2)
    with pytest.raises(CheckpointError, match="at least 32 px, because a VGG halves it five times; found 31"):
        dataclasses.replace(small_checkpoint().plan, input_px=31)
    with pytest.raises(CheckpointError, match=r"plan is damaged \(blocks: expected a list, found nothing\)"):
        chain.Plan.from_json({"family": "vgg19"})


def test_a_truncated_or_newer_checkpoint_is_refused(
    checkpoint: checkpoints.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    checkpoints.save(checkpoint, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="may be truncated"):
        checkpoints.load(path)
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 2)
    checkpoints.save(checkpoint, path)
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 1)
    with pytest.raises(CheckpointError, match="reads up to 1: update vgg-export"):
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
    weight, bias = modules.fold_batch_norm(
        conv.weight.data,
        conv.bias.data,
        gamma=norm.weight.data,
        beta=norm.bias.data,
        mean=mean,
        variance=variance,
    )
    torch.testing.assert_close(
        torch.nn.functional.conv2d(x, weight, bias), norm(conv(x)), rtol=1e-5, atol=1e-5
    )
