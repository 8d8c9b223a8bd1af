"""Files of torch.save and safetensors: the network is found wherever it lies."""

import argparse
import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import safetensors
import torch
from conftest import small_torchvision_vgg
from safetensors.torch import save_file, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vgg_export.core.errors import CheckpointError
from vgg_export.network.chain import Chain, Linear
from vgg_export.network.provenance import ASSUMED, FILE
from vgg_export.network.readers import torch_files
from vgg_export.network.readers.found import Found

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_torchvision_vgg("vgg11", False)


@pytest.fixture(scope="module")
def state(network: nn.Module) -> State:
    return dict(network.state_dict())


def written(data: Any, path: Path) -> Path:
    torch.save(data, path)
    return path


def ensure_is(found: Found, state: State) -> None:
    """Make sure that the layers are those of a VGG11 with this state."""
    chain = Chain(found.input, found.network.layers, found.output)
    assert chain.family == "vgg11"
    assert found.network.tensors["conv1_1.weight"].equal(state["features.0.weight"])
    assert found.network.tensors["fc3.bias"].equal(state["classifier.6.bias"])


class Ema:
    """An object of the user's own beside the tensors."""

    def __init__(self, shadow: State) -> None:
        self.decay, self.shadow = 0.99, shadow


WRAPPED: dict[str, Callable[[State, nn.Module], Any]] = {
    "bare": lambda state, _: state,
    "state_dict": lambda state, _: {"state_dict": state},
    "model_state_dict with an optimizer": lambda state, network: {
        "model_state_dict": OrderedDict(state),
        "optimizer_state_dict": torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict(),
        "epoch": 3,
        "loss": torch.tensor(0.3),
    },
    "net with an accuracy": lambda state, _: {"net": state, "acc": 93.1, "epoch": 7},
    "two wrappers": lambda state, _: {"model": {"state_dict": state, "epoch": 3}},
    "params": lambda state, _: {"params": state},
    "weights": lambda state, _: {"weights": state, "config": {"arch": "vgg11", "layers": [1, 2]}},
    "ema only": lambda state, _: {"ema": {"decay": 0.99, "module": state}},
    "deep in dictionaries and lists": lambda state, _: {"a": {"b": {"c": [1, {"d": (2, state)}]}}},
    "a list": lambda state, _: [state, {"epoch": 3}],
    "numbers of numpy": lambda state, _: {"state_dict": state, "best_acc": np.float64(93.1)},
    "arguments": lambda state, _: {"state_dict": state, "args": argparse.Namespace(lr=0.1, classes=7)},
    "random states": lambda state, _: {
        "state_dict": state,
        "rng": torch.get_rng_state(),
        "numpy_rng": np.random.default_rng(0).bit_generator.state,
    },
    "an object with averages": lambda state, _: {"state_dict": state, "ema": Ema(state)},
    "a module beside": lambda state, network: {"classifier": network.classifier, "state_dict": state},
    "in two parts": lambda state, _: {
        part: {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(part)}
        for part in ("features", "classifier")
    },
    "class names among the tensors": lambda state, _: {**state, "classes": list("abcdefg"), "epoch": 3},
    "numbers among the tensors": lambda state, _: {
        **state,
        "epoch": torch.tensor(3),
        "acc": torch.tensor(0.9),
    },
    "loss and metrics": lambda state, _: {
        **state,
        "criterion.weight": torch.ones(7),
        "train_acc.total": torch.tensor(3),
        "val_loss.weight": torch.ones(7),
    },
    "what a profiler counted": lambda state, _: {
        **state,
        "total_ops": torch.zeros(1, dtype=torch.float64),
        "features.0.total_params": torch.zeros(1, dtype=torch.float64),
    },
    "parameters": lambda _, network: dict(network.named_parameters()),
    "half": lambda state, _: {name: t.half() for name, t in state.items()},
    "bfloat16": lambda state, _: {name: t.bfloat16() for name, t in state.items()},
    "float64": lambda state, _: {name: t.double() for name, t in state.items()},
    "averaged by torch": lambda _, network: AveragedModel(
        network,
        multi_avg_fn=get_ema_multi_avg_fn(0.9),  # type: ignore[no-untyped-call]
    ).state_dict(),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_network_is_found_wherever_it_lies(
    name: str, network: nn.Module, state: State, tmp_path: Path
) -> None:
    found = torch_files.read(written(WRAPPED[name](state, network), tmp_path / "weights.pth"))
    kinds = {"half": torch.float16, "bfloat16": torch.bfloat16}
    kind = kinds.get(name, torch.float32)
    ensure_is(found, {key: t.to(kind).float() for key, t in state.items()})
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in found.network.tensors.values())


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "vgg16.", "net.backbone.0."]
)
def test_any_common_prefix_goes(prefix: str, state: State, tmp_path: Path) -> None:
    prefixed = {prefix + name: t for name, t in state.items()}
    ensure_is(torch_files.read(written(prefixed, tmp_path / "weights.pth")), state)
    save_file({name: t.contiguous() for name, t in prefixed.items()}, tmp_path / "weights.safetensors")
    ensure_is(torch_files.read(tmp_path / "weights.safetensors"), state)


def test_a_part_with_a_prefix_of_its_own(state: State, tmp_path: Path) -> None:
    renamed = {
        name.replace("features.", "backbone.features.").replace("classifier.", "head."): t.contiguous()
        for name, t in state.items()
    }
    ensure_is(torch_files.read(written(renamed, tmp_path / "weights.pth")), state)
    save_file(renamed, tmp_path / "weights.safetensors")
    ensure_is(torch_files.read(tmp_path / "weights.safetensors"), state)


def test_safetensors_keep_no_order(state: State, network: nn.Module, tmp_path: Path) -> None:
    save_model(network, str(tmp_path / "weights.safetensors"))
    ensure_is(torch_files.read(tmp_path / "weights.safetensors"), state)
    normed = small_torchvision_vgg("vgg16", True)
    save_model(normed, str(tmp_path / "normed.safetensors"))
    found = torch_files.read(tmp_path / "normed.safetensors")
    assert Chain(found.input, found.network.layers, found.output).family == "vgg16"


class Lit(lightning.LightningModule):
    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 7)
        )
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(7))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        loss: torch.Tensor = self.criterion(self.model(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def test_a_checkpoint_of_lightning_is_read(tmp_path: Path) -> None:
    pictures = torch.utils.data.TensorDataset(torch.randn(4, 3, 8, 8), torch.arange(4))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    module = Lit()
    trainer.fit(module, torch.utils.data.DataLoader(pictures, 2))
    trainer.save_checkpoint(tmp_path / "lit.ckpt")
    found = torch_files.read(tmp_path / "lit.ckpt")
    assert found.network.tensors["conv1_1.weight"].equal(module.model[0].weight.detach())  # type: ignore[operator]
    assert (found.input.px, found.network.layers[0].in_words()) == (8, "conv1_1 (3x3 convolution)")


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        ({"class_to_idx": {"b": 1, "c": 0, "a": 2, "d": 3, "e": 4, "f": 5, "g": 6}}, tuple("cbadefg")),
        ({"idx_to_class": dict(enumerate("gfedcba"))}, tuple("gfedcba")),
        ({"classes": list("gabcdef")}, tuple("gabcdef")),
        ({"hyper_parameters": {"class_names": list("gabcdef")}}, tuple("gabcdef")),
        ({"args": argparse.Namespace(classes=list("gabcdef"))}, tuple("gabcdef")),
        ({"classes": ["Ale\u0301", *"bcdefg"]}, ("Al\u00e9", *"bcdefg")),
        ({"classes": 7}, None),
    ],
)
def test_class_names_beside_the_tensors(
    beside: dict[str, Any], names: tuple[str, ...] | None, state: State, tmp_path: Path
) -> None:
    found = torch_files.read(written({"state_dict": state, **beside}, tmp_path / "weights.pth"))
    assert (found.names.names if found.names else None) == names
    assert found.names_fault is None


def test_class_names_that_contradict_each_other_are_a_fault(state: State, tmp_path: Path) -> None:
    data = {"state_dict": state, "classes": list("abcdefg"), "class_names": list("gfedcba")}
    found = torch_files.read(written(data, tmp_path / "weights.pth"))
    assert found.names is None
    assert "contradicts itself" in str(found.names_fault)


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, ()),
        ({"state_dict_ema": "same"}, ("['state_dict_ema']",)),
        ({"ema": {"decay": 0.99, "module": "prefixed"}}, ("['ema']['module']",)),
        ({"best": "same", "swa": "same"}, ("['best']", "['swa']")),
        ({"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 3}, ()),
    ],
)
def test_other_weights_of_the_network_are_left_aside_and_said(
    beside: dict[str, Any], expected: tuple[str, ...], state: State, tmp_path: Path
) -> None:
    forms = {
        "same": {name: torch.zeros_like(t) for name, t in state.items()},
        "prefixed": {f"module.{name}": torch.zeros_like(t) for name, t in state.items()},
    }

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: filled(v) for k, v in value.items()}
        return forms[value] if isinstance(value, str) else value

    path = written({**filled(beside), "state_dict": state}, tmp_path / "ema.pth")
    found = torch_files.read(path)
    ensure_is(found, state)
    assert len(found.remarks) == len(expected)
    for remark, entry in zip(found.remarks, expected, strict=True):
        assert f"weights of the same network under {entry}, which are left aside" in remark
        assert f"torch.load({str(path)!r}, map_location='cpu'){entry}, 'other.pth')" in remark


def test_containers_that_lie_in_themselves_and_in_many_places_are_searched_once(state: State) -> None:
    """Otherwise this would take years."""
    inner: list[Any] = [1]
    for _ in range(7):
        inner = [inner] * 1000
    inner.append(inner)
    (found,) = torch_files._candidates({"many": inner, "state_dict": state})
    assert found.keys == ("state_dict",)


@pytest.mark.parametrize("prefix", ["ema.", "ema.module."])
def test_an_average_beside_names_without_a_prefix_is_left_aside(
    prefix: str, state: State, tmp_path: Path
) -> None:
    both = {**state, **{f"{prefix}{name}": torch.zeros_like(t) for name, t in state.items()}}
    found = torch_files.read(written(both, tmp_path / "both.pth"))
    ensure_is(found, state)
    (remark,) = found.remarks
    assert "under names that begin with 'ema.', which are left aside" in remark


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_average_among_the_tensors_is_left_aside(suffix: str, state: State, tmp_path: Path) -> None:
    """As a module keeps it that trains a network and its average."""
    both = {f"ema_model.module.{name}": torch.zeros_like(t) for name, t in state.items()}
    both |= {f"model.{name}": t.contiguous() for name, t in state.items()}
    path = tmp_path / f"both{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(both, path)
    found = torch_files.read(path)
    ensure_is(found, state)
    assert len(found.remarks) == 1
    assert "under names that begin with 'ema_model.'" in found.remarks[0]
    code = found.remarks[0].partition("to take them: ")[2].replace("other.pth", str(tmp_path / "other.pth"))
    exec(code, {"torch": torch, "safetensors": safetensors})
    average = torch_files.read(tmp_path / "other.pth")
    assert not average.network.tensors["conv1_1.weight"].any()


def test_a_whole_module_is_read_before_its_tensors(network: nn.Module, state: State, tmp_path: Path) -> None:
    leaky = copy.deepcopy(network)
    assert isinstance(leaky.classifier, nn.Sequential)
    leaky.classifier[1] = leaky.classifier[4] = nn.LeakyReLU(0.2)
    for data in (leaky, {"state_dict": state, "model": leaky, "epoch": 3}):
        found = torch_files.read(written(data, tmp_path / "whole.pth"))
        ensure_is(found, state)
        linears = [layer for layer in found.network.layers if isinstance(layer, Linear)]
        assert [layer.activation for layer in linears] == ["leaky_relu(0.2)", "leaky_relu(0.2)", "none"]


def test_a_head_as_a_module_beside_tells_its_activations(
    network: nn.Module, state: State, tmp_path: Path
) -> None:
    head = copy.deepcopy(network.classifier)
    assert isinstance(head, nn.Sequential)
    head[1], head[4] = nn.Tanh(), nn.GELU()
    path = written({"classifier": head, "state_dict": network.state_dict()}, tmp_path / "beside.pth")
    found = torch_files.read(path)
    ensure_is(found, state)
    linears = [layer for layer in found.network.layers if isinstance(layer, Linear)]
    assert [layer.activation for layer in linears] == ["tanh", "gelu", "none"]
    assert found.origins.activations == FILE
    other = {"classifier": nn.Sequential(nn.Linear(32 * 49, 48), nn.Tanh()), "state_dict": state}
    assert torch_files.read(written(other, tmp_path / "other.pth")).origins.activations == ASSUMED


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        torch_files.read(path)
    return str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused(suffix: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:20_000])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([1, 2, 3], "holds a list; expected a PyTorch state dict"),
        ({}, "holds an empty dict"),
        ({"epoch": 3, "name": "x"}, "holds 'epoch' (int), 'name' (str); expected"),
        (torch.zeros(3, 3), "holds a Tensor"),
        (argparse.Namespace(a=1), "holds a argparse.Namespace"),
        (
            {"state": {0: {"exp_avg": torch.zeros(3, 3)}}, "param_groups": []},
            "holds 'state' (dict), 'param_groups'",
        ),
    ],
)
def test_files_without_a_network_are_refused(data: Any, words: str, tmp_path: Path) -> None:
    assert words in refusal(written(data, tmp_path / "weights.pth"))


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to("meta"), "a shape without numbers (device meta)"),
        (lambda t: t.to_sparse(), "a sparse tensor"),
        (lambda t: t.to(torch.complex64), "complex64 numbers"),
        (lambda t: (100 * t).to(torch.int8), "int8 numbers"),
        (lambda t: (100 * t).to(torch.uint8), "uint8 numbers"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantized numbers"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], words: str, state: State, tmp_path: Path
) -> None:
    odd = {**state, "classifier.3.weight": change(state["classifier.3.weight"])}
    assert f"it holds classifier.3.weight as {words}" in refusal(written(odd, tmp_path / "odd.pth"))


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_code_beside_the_tensors_does_not_run(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_is(
        torch_files.read(written({"state_dict": state, "more": Payload()}, tmp_path / "more.pth")), state
    )
    assert "holds" in refusal(written({"state_dict": Payload()}, tmp_path / "only.pth"))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload()))
    assert str(tmp_path / "plain.pt") in refusal(tmp_path / "plain.pt")
    assert "code ran" not in capsys.readouterr().out


def test_a_file_is_read_by_its_content_whatever_it_is_called(state: State, tmp_path: Path) -> None:
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("weights.pth", "weights.safetensors", "old.bin"):
        ensure_is(torch_files.read(tmp_path / name), state)


def test_tensors_stay_when_the_file_goes(state: State, tmp_path: Path) -> None:
    path = written(state, tmp_path / "weights.pth")
    found = torch_files.read(path)
    path.write_bytes(bytes(path.stat().st_size))
    ensure_is(found, state)
