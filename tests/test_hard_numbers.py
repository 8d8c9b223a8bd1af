"""Checkpoints and pictures whose numbers are hard: a clear sentence, or a bundle that says what it lost."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import first
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import kill_anywhere
from vgg_runtime.bundle import manifest

Tensors = dict[str, torch.Tensor]
Command = Callable[..., subprocess.CompletedProcess[str]]


def changed(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of the tiny network in ``folder``."""
    path = folder / "tiny.safetensors"
    with safe_open(path, "pt") as file:
        said = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, said)


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / "pictures").rglob("*.png"))


def only_one(folder: Path) -> None:
    for path in pictures(folder)[1:]:
        path.unlink()


def all_black(folder: Path) -> None:
    for path in pictures(folder):
        Image.new("RGB", (64, 64)).save(path)


def all_grey(folder: Path) -> None:
    for path in pictures(folder):
        Image.open(path).convert("L").save(path)


def without_a_class(folder: Path) -> None:
    for part in (folder / "pictures").iterdir():
        shutil.rmtree(part / "stop")


def of_one_class(folder: Path) -> None:
    for part in (folder / "pictures").iterdir():
        shutil.rmtree(part / "stop")
        shutil.rmtree(part / "yield")


def one_in_two_sets(folder: Path) -> None:
    first, *others = sorted((folder / "pictures").iterdir())
    picture = sorted(first.rglob("*.png"))[0]
    for part in others:
        shutil.copy(picture, part / picture.parent.name / "again.png")


def scaled(tensors: Tensors, by: float) -> None:
    for name in tensors:
        if name.endswith("weight"):
            tensors[name] *= by


def dead(tensors: Tensors) -> None:
    tensors["conv2_2.weight"].zero_()
    tensors["conv2_2.bias"].fill_(-1.0)


def all_zero(tensors: Tensors) -> None:
    for tensor in tensors.values():
        tensor.zero_()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one NaN": (
        lambda folder: changed(folder, lambda t: t["conv2_1.weight"].view(-1)[3].fill_(torch.nan)),
        "1 of 4,608 numbers of conv2_1.weight are not finite",
    ),
    "infinities": (
        lambda folder: changed(folder, lambda t: [t[k].fill_(torch.inf) for k in ("fc1.bias", "fc2.bias")]),
        "numbers of fc1.bias are not finite (NaN or infinity), and of 1 more tensors",
    ),
    "overflow": (
        lambda folder: changed(folder, lambda t: scaled(t, 1e12)),
        "the network's answer to noise is not a finite number",
    ),
    "one picture": (only_one, "repair needs at least two pictures of different sources, found 1"),
    "one picture many times": (all_black, "it holds 1 different pictures, of which copies count once"),
}
USED: dict[str, tuple[Callable[[Path], object], str]] = {
    "tiny weights": (lambda folder: changed(folder, lambda t: scaled(t, 1e-20)), ""),
    "a dead layer": (lambda folder: changed(folder, dead), ""),
    "a network of zeros": (lambda folder: changed(folder, all_zero), ""),
    "a zero layer behind": (lambda folder: changed(folder, lambda t: t["fc1.weight"].zero_()), ""),
    "grey pictures": (all_grey, ""),
    "a class without pictures": (without_a_class, ""),
    "one class": (of_one_class, ""),
    "one picture in two sets": (
        one_in_two_sets,
        "1 test pictures are also among the fitted ones and were left out of the test",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_said(name: str, tmp_path: Path, in_this_process: Command) -> None:
    change, sentence = REFUSED[name]
    kill_anywhere.make_inputs(tmp_path)
    change(tmp_path)
    done = in_this_process(*kill_anywhere.ARGUMENTS)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert "unexpected" not in done.stderr
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("name", first(1, USED))
def test_what_can_be_used_is(name: str, tmp_path: Path, in_this_process: Command) -> None:
    change, sentence = USED[name]
    kill_anywhere.make_inputs(tmp_path)
    change(tmp_path)
    done = in_this_process(*kill_anywhere.ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert sentence in done.stderr
    made = manifest.read(tmp_path / "artifacts")
    manifest.verify(tmp_path / "artifacts", made.all_files())
    figures = [v.build.evaluation for v in made.variants]
    for found in filter(None, figures):
        assert 0 <= found.agreement.rate <= 1
        assert found.kl_mean is None or found.kl_mean >= 0  # never NaN
