"""Two processes under torchrun share the pictures and come to what one comes to."""

import json
from pathlib import Path

import pytest
import torch
from conftest import small_checkpoint
from divided import alone_and_divided, started
from networks import at_64_px, pictures

from vgg_export.network import checkpoint as checkpoints

FACTORISE = ("--conv-share", "0.7", "--fc-ranks", "16,8", "--repair-images", "30", "--accept-accuracy")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    checkpoints.save(at_64_px(small_checkpoint()), tmp_path / "original.safetensors")
    return tmp_path / "original.safetensors"


@pytest.mark.release
def test_two_processes_factorise_as_one(original: Path, signs_folder: Path, tmp_path: Path) -> None:
    arguments = ["factorise", "--weights", original, "--data", signs_folder, *FACTORISE]
    paths = alone_and_divided(arguments, tmp_path, ".safetensors")
    one, two = (json.loads(Path(f"{path}.json").read_text())["measured"] for path in paths)
    assert (two["chain"], two["images"]) == (one["chain"], one["images"])
    for name, forms in one["table"].items():
        for kind, shares in forms.items():
            assert two["table"][name][kind] == pytest.approx(shares, abs=1e-5)
    for alone, divided in zip(one["layers"], two["layers"], strict=True):
        assert [divided[key] for key in ("layer", "samples", "strength", "rank")] == [
            alone[key] for key in ("layer", "samples", "strength", "rank")
        ]
        for key in ("error_before", "error_after"):
            assert divided[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-6)
    assert two["losses"]["repaired"]["kl"] == pytest.approx(one["losses"]["repaired"]["kl"], rel=1e-2)
    alone, divided = (checkpoints.load(path) for path in paths)
    x = pictures(alone, 8)
    with torch.inference_mode():
        wanted, found = alone.model()(x), divided.model()(x)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
    # both asked the original about all labelled pictures
    checked = (json.loads((tmp_path / f".{path.stem}.work/sanity.json").read_text()) for path in paths)
    own, shared = checked
    assert own["n"] == 56
    for key in ("n", "right", "largest", "order", "trial"):
        assert shared[key] == own[key]
    assert shared["mean_probability"] == pytest.approx(own["mean_probability"], rel=1e-4)


@pytest.mark.release
def test_an_error_of_the_first_process_ends_all_and_is_said_once(original: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["factorise", "--weights", original, "--data", tmp_path / "empty"]
    done = started([*arguments, "--output", tmp_path / "x.safetensors"], processes=2)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1
    assert "empty holds no pictures" in said[0]
    assert not (tmp_path / "x.safetensors").exists()
