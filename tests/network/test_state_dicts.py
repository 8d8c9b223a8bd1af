import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_torchvision_vgg
from safetensors.torch import save_file
from torchvision import models

from vgg_export.core.errors import CheckpointError
from vgg_export.network import chain
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.provenance import Provenance
from vgg_export.network.readers import state_dicts


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("family", list(chain.CONVS_PER_BLOCK))
def test_every_family_member_keeps_its_function(family: str, batch_norm: bool) -> None:
    original = small_torchvision_vgg(family, batch_norm)
    plan, tensors = state_dicts.to_plan_and_tensors(original.state_dict())
    assert (plan.family, plan.classes, plan.input_px) == (family, 7, 224)
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = original(x)
        found = checkpoints.Checkpoint(plan, tensors, ("x",) * 7, Provenance("file", "x")).model()(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_torchvisions_own_vgg_is_read(tmp_path: Path) -> None:
    original = models.vgg16_bn(weights=None, num_classes=8).eval()
    torch.save(original.state_dict(), tmp_path / "vgg16_bn.pth")
    plan, tensors = state_dicts.to_plan_and_tensors(state_dicts.read_file(tmp_path / "vgg16_bn.pth").tensors)
    assert plan == chain.full_width("vgg16", 8)
    assert tensors["fc3.bias"].equal(original.state_dict()["classifier.6.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("suffix", "wrapper"), [(".pth", None), (".pth", "state_dict"), (".pt", "model"), (".safetensors", None)]
)
def test_wrapped_and_prefixed_files_are_read(
    wrapper: str | None, prefix: str, suffix: str, tmp_path: Path
) -> None:
    state = {
        prefix + name: t.contiguous()
        for name, t in small_torchvision_vgg("vgg11", False).state_dict().items()
    }
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    plan, tensors = state_dicts.to_plan_and_tensors(state_dicts.read_file(path).tensors)
    assert plan.family == "vgg11"
    assert tensors["conv1_1.weight"].equal(state[f"{prefix}features.0.weight"])


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        state_dicts.to_plan_and_tensors(state_dicts.read_file(path).tensors)
    return str(error.value)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {name: t.contiguous() for name, t in small_torchvision_vgg("vgg11", False).state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:20_000])
    assert "truncated" in refusal(path)
    path.write_bytes(b"")
    assert "truncated" in refusal(path)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Payload()}, tmp_path / "evil.pth")
    assert "holds Python objects beside tensors (builtins.print) and is not loaded" in refusal(
        tmp_path / "evil.pth"
    )
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload()))
    assert str(tmp_path / "plain.pt") in refusal(tmp_path / "plain.pt")
    assert "code ran" not in capsys.readouterr().out


def test_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    assert "expected a torchvision VGG state dict" in refusal(tmp_path / "resnet.pth")
    torch.save(models.alexnet(weights=None, num_classes=3).state_dict(), tmp_path / "alexnet.pth")
    assert "expected a torchvision VGG state dict" in refusal(tmp_path / "alexnet.pth")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    assert "holds a list" in refusal(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    assert "text.pth" in refusal(tmp_path / "text.pth")


def test_broken_tensors_are_refused(tmp_path: Path) -> None:
    state = small_torchvision_vgg("vgg11", True).state_dict()
    torch.save({k: v for k, v in state.items() if k != "features.1.running_var"}, tmp_path / "gap.pth")
    assert "lacks features.1.running_var" in refusal(tmp_path / "gap.pth")
    bad = dict(state) | {"classifier.6.bias": torch.full((7,), float("nan"))}
    torch.save(bad, tmp_path / "nan.pth")
    assert "classifier.6.bias holds values that are not finite" in refusal(tmp_path / "nan.pth")
    torch.save(
        dict(state) | {"features.1.running_var": -state["features.1.running_var"]}, tmp_path / "negative.pth"
    )
    assert "conv1_1.weight is not finite once its batch norm is folded" in refusal(tmp_path / "negative.pth")
    torch.save(dict(state) | {"classifier.0.weight": torch.zeros(48, 100)}, tmp_path / "odd.pth")
    assert "takes 100 inputs; expected 32 channels x 7 x 7 = 1568" in refusal(tmp_path / "odd.pth")
    torch.save(dict(state) | {"classifier.0.weight": torch.zeros(48, 32 * 9)}, tmp_path / "small.pth")
    assert "takes 288 inputs, that is 3 x 3 positions" in refusal(tmp_path / "small.pth")
    torch.save(dict(state) | {"classifier.6.weight": torch.zeros(7, 100)}, tmp_path / "chain.pth")
    assert "classifier.6.weight is [7, 100], but the layer before asks for [7, 40]" in refusal(
        tmp_path / "chain.pth"
    )
    torch.save(dict(state) | {"features.0.weight": torch.zeros(16, 3, 11, 11)}, tmp_path / "kernel.pth")
    assert "1 of 62 tensors do not fit: features.0.weight [16, 3, 11, 11]" in refusal(tmp_path / "kernel.pth")
    torch.save(dict(state) | {"features.0.weight": torch.zeros(16, 1, 3, 3)}, tmp_path / "grey.pth")
    assert "features.0 takes 1 channels; expected three" in refusal(tmp_path / "grey.pth")


def test_layers_that_a_vgg_does_not_have_are_refused(tmp_path: Path) -> None:
    state = dict(small_torchvision_vgg("vgg11", True).state_dict())
    for name in ("classifier.8.weight", "features.1.se.weight", "attention.weight"):
        torch.save(state | {name: torch.zeros(2, 2)}, tmp_path / "more.pth")
        assert f"1 of {len(state) + 1} tensors do not fit: {name} [2, 2]" in refusal(tmp_path / "more.pth")


def test_what_is_named_is_what_does_not_fit(tmp_path: Path) -> None:
    """The first tensors of the file are not named, because they may be right."""
    state = small_torchvision_vgg("vgg11", False).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("classifier.6")}, tmp_path / "two.pth")
    two = refusal(tmp_path / "two.pth")
    assert "it lacks classifier.6.weight, classifier.6.bias" in two
    assert "features.0" not in two
    moved = {
        k.replace("classifier.3", "classifier.2").replace("classifier.6", "classifier.4"): v
        for k, v in state.items()
    }
    torch.save(moved, tmp_path / "moved.pth")
    assert "4 of 22 tensors do not fit: classifier.2.weight [40, 48], classifier.2.bias [40]" in refusal(
        tmp_path / "moved.pth"
    )
    torch.save({f"backbone.{k}": v for k, v in state.items()}, tmp_path / "prefix.pth")
    assert "(every name begins with 'backbone.': save them without it)" in refusal(tmp_path / "prefix.pth")
    torch.save({"net": state, "acc": 93.1}, tmp_path / "net.pth")
    assert "holds 'net' (OrderedDict), 'acc' (float)" in refusal(tmp_path / "net.pth")
    assert "its tensors lie under ['net']" in refusal(tmp_path / "net.pth")


def test_a_classifier_that_was_never_trained_is_no_training_gone_wrong(tmp_path: Path) -> None:
    state = dict(small_torchvision_vgg("vgg11", False).state_dict())
    nan = {
        name: torch.full_like(t, float("nan")) for name, t in state.items() if name.startswith("classifier")
    }
    torch.save(state | nan, tmp_path / "features.pth")
    assert "every weight of the classifier is NaN: the file holds the features only" in refusal(
        tmp_path / "features.pth"
    )


def test_one_output_is_refused_with_the_way_to_two(tmp_path: Path) -> None:
    """One output would give class 0 at 100 % for every picture. The two outputs that the error advises equal
    the sigmoid."""
    network = small_torchvision_vgg("vgg11", False, classes=1)
    state = dict(network.state_dict())
    torch.save(state, tmp_path / "one.pth")
    assert "the last layer has one output" in refusal(tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match="at least two classes"):
        chain.full_width("vgg11", classes=1)
    state |= {
        name: torch.cat([torch.zeros_like(state[name]), state[name]])
        for name in ("classifier.6.weight", "classifier.6.bias")
    }
    plan, tensors = state_dicts.to_plan_and_tensors(state)
    x = torch.randn(3, 3, 224, 224)
    with torch.inference_mode():
        found = (
            checkpoints.Checkpoint(plan, tensors, ("no", "yes"), Provenance("file", "x"))
            .model()(x)
            .softmax(1)[:, 1]
        )
        torch.testing.assert_close(found, network(x).sigmoid()[:, 0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to("meta"), "a shape without numbers (device meta)"),
        (lambda t: t.to_sparse(), "a sparse tensor"),
        (lambda t: t.to(torch.complex64), "complex64 numbers"),
        (lambda t: (100 * t).to(torch.int8), "int8 numbers"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], words: str, tmp_path: Path
) -> None:
    state = dict(small_torchvision_vgg("vgg11", False).state_dict())
    torch.save(state | {"classifier.3.weight": change(state["classifier.3.weight"])}, tmp_path / "odd.pth")
    assert f"odd.pth holds classifier.3.weight as {words}" in refusal(tmp_path / "odd.pth")


def test_parameters_that_require_grad_are_read(tmp_path: Path) -> None:
    network = small_torchvision_vgg("vgg11", False)
    torch.save(dict(network.named_parameters()), tmp_path / "parameters.pth")
    content = state_dicts.read_file(tmp_path / "parameters.pth")
    assert not any(t.requires_grad for t in content.tensors.values())
    assert content.tensors["features.0.weight"].equal(network.state_dict()["features.0.weight"])


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, ()),
        ({"state_dict_ema": "same"}, (("state_dict_ema",),)),
        ({"ema": {"decay": 0.99, "module": "prefixed"}}, (("ema", "module"),)),
        ({"optimizer": {"state": {"0": {"exp_avg": torch.zeros(3)}}}, "epoch": 3}, ()),
    ],
)
def test_other_weights_of_the_network_are_named(
    beside: dict[str, Any], expected: tuple[tuple[str, ...], ...], tmp_path: Path
) -> None:
    state = small_torchvision_vgg("vgg11", False).state_dict()
    forms = {"same": dict(state), "prefixed": {f"module.{k}": v for k, v in state.items()}}

    def filled(value: Any) -> Any:
        return (
            {k: filled(v) for k, v in value.items()}
            if isinstance(value, dict)
            else forms[value]
            if isinstance(value, str)
            else value
        )

    torch.save({"state_dict": state, **filled(beside)}, tmp_path / "ema.pth")
    assert state_dicts.read_file(tmp_path / "ema.pth").left_aside == expected


def test_a_file_is_read_by_its_content_whatever_it_is_called(tmp_path: Path) -> None:
    state = {k: v.contiguous() for k, v in small_torchvision_vgg("vgg11", False).state_dict().items()}
    save_file(state, tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("weights.pth", "weights.safetensors", "old.bin"):
        assert (
            state_dicts.read_file(tmp_path / name)
            .tensors["features.0.weight"]
            .equal(state["features.0.weight"])
        )
