"""TorchScript programs and those of torch.export."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as f
from torch_networks import TOLERANCE, chain_of, difference, initialise, narrow_vgg, small
from torchvision import models

from vgg_export.core.errors import CheckpointError
from vgg_export.network.chain import AdaptiveAvgPool
from vgg_export.network.provenance import ASSUMED, FILE
from vgg_export.network.readers import exported_programs, torch_scripts
from vgg_export.network.readers.found import Found


def refusal(read: Callable[[Path], Found], path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# TorchScript


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["traced", "scripted"])
def test_the_tensors_of_a_program_are_a_network(way: str, tmp_path: Path) -> None:
    network = narrow_vgg(batch_norm=True)
    made = (
        torch.jit.trace(  # type: ignore[no-untyped-call]
            network, torch.randn(1, 3, 224, 224)
        )
        if way == "traced"
        else torch.jit.script(network)
    )
    made.save(str(tmp_path / "p.pt"))
    found = torch_scripts.read(tmp_path / "p.pt")
    assert difference(found, network) < TOLERANCE
    assert found.container.startswith("a TorchScript program, read as a PyTorch state dict")
    assert found.origins.activations == ASSUMED


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_in_the_code_of_a_program_only_is_refused(tmp_path: Path) -> None:
    network = narrow_vgg()
    network.classifier[1] = nn.LeakyReLU(0.2)
    path = tmp_path / "p.pt"
    torch.jit.script(network).save(str(path))
    said = refusal(torch_scripts.read, path)
    assert "is a TorchScript program with LeakyReLU" in said
    assert "torch.save(model, FILE)" in said
    torch.jit.freeze(torch.jit.script(narrow_vgg().eval())).save(str(path))
    assert "without tensors of its own, as torch.jit.freeze makes it" in refusal(torch_scripts.read, path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_code_of_a_program_is_not_looked_at(tmp_path: Path) -> None:
    network = narrow_vgg()
    torch.jit.script(network).save(str(tmp_path / "p.pt"))
    with zipfile.ZipFile(tmp_path / "p.pt") as whole, zipfile.ZipFile(tmp_path / "q.pt", "w") as made:
        for info in whole.infolist():
            made.writestr(info.filename, b"!" if "/code/" in info.filename else whole.read(info))
    assert difference(torch_scripts.read(tmp_path / "q.pt"), network) < TOLERANCE


# torch.export


def exported(network: nn.Module, path: Path, px: int = 224, channels: int = 3) -> Path:
    program = torch.export.export(network.eval(), (torch.randn(1, channels, px, px),))
    torch.export.save(program, path)
    return path


def same(network: nn.Module, folder: Path, px: int) -> Found:
    found = exported_programs.read(exported(network, folder / "p.pt2", px))
    assert difference(found, network) < TOLERANCE
    assert (found.input.px, found.origins.px, found.origins.activations) == (px, FILE, FILE)
    return found


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_vgg_computes_the_same(batch_norm: bool, tmp_path: Path) -> None:
    found = same(narrow_vgg(batch_norm), tmp_path, 224)
    assert AdaptiveAvgPool((7, 7)) in found.network.layers
    assert (found.output, found.assumed) == ("softmax", ())


@pytest.mark.parametrize(
    "layer",
    [
        *(
            nn.LeakyReLU(0.2),
            nn.ELU(0.7),
            nn.ReLU6(),
            nn.Tanh(),
            nn.Sigmoid(),
            nn.SiLU(),
            nn.GELU(),
            nn.GELU("tanh"),
        ),
        *(
            nn.ReLU(True),
            nn.Identity(),
            nn.Dropout(),
            nn.BatchNorm2d(6, eps=0.1),
            nn.BatchNorm2d(6, affine=False),
        ),
        *(nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d((2, 1))),
        *(nn.AvgPool2d(2), nn.AvgPool2d(3, 2, ceil_mode=True)),
    ],
    ids=repr,
)
def test_each_layer_computes_the_same(layer: nn.Module, tmp_path: Path) -> None:
    same(small(layer), tmp_path, 12)


@pytest.mark.parametrize(
    "conv",
    [
        {"stride": 2, "bias": False},
        {"kernel_size": 5, "padding": "same"},
        {"kernel_size": (3, 1), "padding": (1, 0)},
    ],
)
def test_each_convolution_computes_the_same(conv: dict[str, Any], tmp_path: Path) -> None:
    same(small(nn.ReLU(), **conv), tmp_path, 12)


class Written(nn.Module):
    """A forward of the user's own: all of it is in the graph, one pool and one function for all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16, 20), nn.Linear(20, 10), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.pool(f.relu(self.conv1(x)))
        x = self.pool(f.leaky_relu(self.conv2(x), 0.3))
        x = x.mean((2, 3)).view(-1, 16)
        return self.fc3(f.dropout(torch.tanh(self.fc2(torch.relu(self.fc1(x)))), training=self.training))


def test_a_forward_of_ones_own_is_read_exactly(tmp_path: Path) -> None:
    found = same(initialise(Written()), tmp_path, 32)
    assert [site.layer.activation for site in chain_of(found).sites] == [
        "relu",
        "leaky_relu(0.3)",
        "relu",
        "tanh",
        "none",
    ]


def test_what_follows_the_logits_says_what_they_mean(tmp_path: Path) -> None:
    network = small(nn.ReLU())
    for layer, output in (
        (nn.LogSoftmax(1), "softmax"),
        (nn.Softmax(1), "softmax"),
        (nn.Sigmoid(), "multi-label"),
    ):
        found = exported_programs.read(exported(nn.Sequential(network, layer), tmp_path / "p.pt2", 12))
        assert difference(found, network) < TOLERANCE
        assert (found.output, found.origins.output) == (output, FILE)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return (self.one(x) + self.two(x)).mean((2, 3))


def test_branches_and_unknown_steps_are_named(tmp_path: Path) -> None:
    said = refusal(exported_programs.read, exported(models.resnet18(num_classes=2), tmp_path / "p.pt2", 64))
    assert "the network has branches, first at" in said
    said = refusal(exported_programs.read, exported(Twice(), tmp_path / "p.pt2", 8))
    assert "first at conv2d_1 (conv2d.default), which reads x; expected a chain" in said
    said = refusal(exported_programs.read, exported(small(nn.Softplus()), tmp_path / "p.pt2", 8))
    assert "softplus is softplus.default, which this program does not know" in said
    said = refusal(
        exported_programs.read, exported(small(nn.MaxPool2d(2, dilation=2)), tmp_path / "p.pt2", 8)
    )
    assert "max_pool2d (max_pool2d.default) has the dilation [2, 2], which this program cannot do" in said


def test_damaged_programs_are_refused(tmp_path: Path) -> None:
    path = exported(small(nn.ReLU()), tmp_path / "p.pt2", 8)
    with zipfile.ZipFile(path) as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}

    def changed(name: str, data: bytes | None) -> str:
        with zipfile.ZipFile(tmp_path / "q.pt2", "w") as made:
            for member, content in members.items():
                if not member.endswith(name):
                    made.writestr(member, content)
                elif data is not None:
                    made.writestr(member, data)
        return refusal(exported_programs.read, tmp_path / "q.pt2")

    expected = "cannot be read as a program of torch.export"
    assert expected in changed("models/model.json", None)
    assert expected in changed("models/model.json", b"{")
    assert expected in changed("models/model.json", b"{}")
    assert expected in changed("weights/weight_0", b"")
    assert expected in changed("weights/weight_0", None)
    name = next(name for name in members if name.endswith("model_weights_config.json"))
    config = json.loads(members[name])
    first = next(iter(config["config"].values()))["tensor_meta"]
    first["sizes"] = [{"as_int": 10**6}] * 4
    assert "lies outside its bytes" in changed(name, json.dumps(config).encode())
    (tmp_path / "r.pt2").write_bytes(path.read_bytes()[:-100])
    assert expected in refusal(exported_programs.read, tmp_path / "r.pt2")
