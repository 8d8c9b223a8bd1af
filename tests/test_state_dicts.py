import pickle
from pathlib import Path

import pytest
import torch
from conftest import small_torchvision_vgg
from safetensors.torch import save_file
from torchvision import models

from vgg_export import model, state_dicts
from vgg_export.errors import CheckpointError


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("family", list(model.CONVS_PER_BLOCK))
def test_every_family_member_keeps_its_function(family: str, batch_norm: bool) -> None:
    original = small_torchvision_vgg(family, batch_norm)
    plan, tensors = state_dicts.to_plan_and_tensors(original.state_dict())
    assert (plan.family, plan.classes, plan.input_px) == (family, 7, 224)
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = original(x)
        found = model.Checkpoint(plan, tensors, ("x",) * 7, {}).model()(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_torchvisions_own_vgg_is_read(tmp_path: Path) -> None:
    original = models.vgg16_bn(weights=None, num_classes=8).eval()
    torch.save(original.state_dict(), tmp_path / "vgg16_bn.pth")
    plan, tensors = state_dicts.to_plan_and_tensors(state_dicts.read_file(tmp_path / "vgg16_bn.pth"))
    assert plan == model.full_width("vgg16", 8)
    assert tensors["fc3.bias"].equal(original.state_dict()["classifier.6.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("suffix", "wrapper"), [(".pth", None), (".pth", "state_dict"), (".pt", "model"), (".safetensors", None)])
def test_wrapped_and_prefixed_files_are_read(wrapper: str | None, prefix: str, suffix: str, tmp_path: Path) -> None:
    state = {prefix + name: t.contiguous() for name, t in small_torchvision_vgg("vgg11", False).state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    plan, tensors = state_dicts.to_plan_and_tensors(state_dicts.read_file(path))
    assert plan.family == "vgg11"
    assert tensors["conv1_1.weight"].equal(state[f"{prefix}features.0.weight"])


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        state_dicts.to_plan_and_tensors(state_dicts.read_file(path))
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
    assert "holds pickled Python objects" in refusal(tmp_path / "evil.pth")
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
    assert "fc3.bias holds values that are not finite" in refusal(tmp_path / "nan.pth")
    torch.save(dict(state) | {"classifier.0.weight": torch.zeros(48, 100)}, tmp_path / "odd.pth")
    assert "takes 100 inputs" in refusal(tmp_path / "odd.pth")


def test_layers_that_a_vgg_does_not_have_are_refused(tmp_path: Path) -> None:
    state = dict(small_torchvision_vgg("vgg11", True).state_dict())
    for name in ("classifier.8.weight", "features.1.se.weight", "attention.weight"):
        torch.save(state | {name: torch.zeros(2, 2)}, tmp_path / "more.pth")
        assert f"holds {name} besides a VGG's layers" in refusal(tmp_path / "more.pth")
