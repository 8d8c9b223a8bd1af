"""A whole search by two processes under torchrun."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import small_checkpoint
from divided import alone_and_divided

from vgg_export.network import checkpoint as checkpoints
from vgg_runtime.bundle import manifest

SCRIPT = Path(__file__).with_name("divided_search.py")
# what a point is, apart from what was timed
KEPT = ("family", "name", "input_px", "macs", "parameters", "setting")


@pytest.mark.release
def test_two_processes_come_to_the_points_of_one(signs_folder: Path, tmp_path: Path) -> None:
    checkpoints.save(small_checkpoint(), tmp_path / "mine.safetensors")
    for path in signs_folder.rglob("*.png"):  # without their classes, of which this network knows nothing
        unlabelled = tmp_path / "photos" / path.parent.parent.name / path.name
        unlabelled.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, unlabelled)
    arguments = [tmp_path / "mine.safetensors", tmp_path / "photos"]
    folders = alone_and_divided(arguments, tmp_path, "", [SCRIPT])
    one, two = (json.loads((folder / "front.json").read_text())["points"] for folder in folders)
    assert [[point[key] for key in KEPT] for point in two] == [[point[key] for key in KEPT] for point in one]
    assert {point["family"] for point in one} == {"baseline", "int8 alone", "compact"}
    for alone, divided in zip(one, two, strict=True):
        assert divided["select"]["n"] == alone["select"]["n"]
        assert divided["select"]["kl_mean"] == pytest.approx(alone["select"]["kl_mean"], rel=0.05, abs=1e-4)
    # the closed-form repair of the pruned network, which is no point of the search
    losses = [manifest.read(folder).variant("pruned").losses for folder in folders]
    for alone_step, divided_step in zip(*losses, strict=True):
        assert divided_step.step == alone_step.step
        assert divided_step.kl == pytest.approx(alone_step.kl, rel=0.01)
    assert {step.step for step in losses[0]} == {"removed", "repaired"}
