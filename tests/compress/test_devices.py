"""A CUDA device gives what the CPU gives. Where there is none, that is skipped and said."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, small_checkpoint

from vgg_export import cli
from vgg_export.core import devices
from vgg_export.core.errors import OptionsError
from vgg_export.network import checkpoint as checkpoints

HAS_CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="torch finds no CUDA device on this machine")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    devices.use(devices.AUTO)


def test_the_cpu_is_used_where_it_is_asked_for_or_alone() -> None:
    devices.use(devices.CPU)
    assert devices.device() == torch.device("cpu")
    tensor = torch.ones(3)
    assert devices.here(tensor) is tensor
    assert devices.name() == "cpu"
    devices.use(devices.AUTO)
    assert devices.device().type == ("cuda" if HAS_CUDA else "cpu")
    assert devices.name() == (torch.cuda.get_device_name(devices.device()) if HAS_CUDA else "cpu")


@pytest.mark.skipif(HAS_CUDA, reason="torch finds a CUDA device on this machine")
def test_a_cuda_device_that_is_not_there_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionsError, match="finds no CUDA device; use --device cpu"):
        devices.use(devices.CUDA)
    missing, output = str(tmp_path / "missing.pth"), str(tmp_path / "made.safetensors")
    assert cli.main(["factorise", "--device", "cuda", "--weights", missing, "--output", output]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


@needs_cuda
@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("factorise", ["--conv-share", "0.7"]),
        ("prune", ["--prune-ratio", "0.3", "--criterion", "obs"]),
        ("prune", ["--prune-ratio", "0.3", "--no-pictures"]),
        ("finetune", ["--teacher", "teacher", "--finetune-epochs", "2", "--learning-rate", "1e-3"]),
    ],
)
def test_cuda_gives_what_the_cpu_gives(
    command: str, settings: list[str], signs_folder: Path, tmp_path: Path
) -> None:
    for name in ("network", "teacher"):
        checkpoints.save(small_checkpoint(seed=len(name)), tmp_path / f"{name}.safetensors")
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES))
    told = [str(tmp_path / f"{word}.safetensors") if word == "teacher" else word for word in settings]
    given = ["--weights", str(tmp_path / "network.safetensors"), "--accept-accuracy"]
    given += [] if "--no-pictures" in settings else ["--data", str(signs_folder)]
    measured, tensors = [], []
    for device in (devices.CPU, devices.CUDA):
        output = tmp_path / device / "made.safetensors"
        output.parent.mkdir()
        assert cli.main([command, *given, *told, "--device", device, "--output", str(output)]) == 0
        measured.append(json.loads(Path(f"{output}.json").read_text())["measured"])
        tensors.append(checkpoints.load(output))
    assert devices.device().type == "cuda"
    one, other = (sorted(numbers(found).items()) for found in measured)
    assert [name for name, _ in one] == [name for name, _ in other]
    for (name, expected), (_, found) in zip(one, other, strict=True):
        assert found == pytest.approx(expected, rel=0.02, abs=0.02), name
    assert tensors[0].chain == tensors[1].chain
    assert all(tensor.device.type == "cpu" for tensor in tensors[1].tensors.values())


def numbers(found: Any, name: str = "") -> dict[str, float]:
    """All finite numbers of a document, by their place."""
    if isinstance(found, dict | list | tuple):
        items = found.items() if isinstance(found, dict) else enumerate(found)
        return {key: n for k, item in items for key, n in numbers(item, f"{name}.{k}").items()}
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return {name: float(found)} if is_number and math.isfinite(found) else {}
