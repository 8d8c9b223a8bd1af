"""bench/kill_anywhere.py in a small measure: a real run is killed, its calls fail, and another repeats it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, command_environment, reseal

import faults
import kill_anywhere
from vgg_runtime.bundle import manifest

needs_compiler = pytest.mark.skipif(not faults.compiler(), reason="no C compiler: install gcc")


@needs_compiler
@pytest.mark.release
def test_kills_and_faults_leave_a_whole_bundle() -> None:
    command = [sys.executable, str(ROOT / "bench/kill_anywhere.py")]
    command += ["--kills", "3", "--faults", "2", "--evaluations", "3"]
    done = subprocess.run(command, env=command_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 wrong" in done.stdout
    assert "3 kills, 0 wrong" in done.stderr
    assert "2 faults, 0 wrong" in done.stderr
    assert "3 evaluations, 0 wrong" in done.stderr


@needs_compiler
@pytest.mark.parametrize("name", faults.ERRORS)
def test_the_layer_fails_the_call_that_it_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "below").mkdir()
    program = "import sys\nfor k in range(3):\n open(sys.argv[1] + str(k), 'w').close()"
    command = [sys.executable, "-c", program, str(tmp_path / "below/file")]
    layer = faults.environment(faults.build(tmp_path), tmp_path / "below", 2, faults.ERRORS[name])
    done = subprocess.run(
        command, env=command_environment() | layer, capture_output=True, text=True, check=False
    )
    assert f"[Errno {faults.ERRORS[name]}]" in done.stderr
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["file0"]


@pytest.mark.release
def test_like_repeats_a_run_byte_by_byte_in_another_folder(
    vgg_export: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    kill_anywhere.make_inputs(one)
    other.mkdir()
    shutil.copy(one / "tiny.safetensors", other / "renamed.safetensors")
    for path in sorted(one.rglob("*.png"), reverse=True):  # created in another order
        place = other / "others" / path.relative_to(one / "pictures")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    typed = [word.replace("tiny.s", "one/tiny.s") for word in kill_anywhere.ARGUMENTS]
    typed[typed.index("pictures")] = "one/pictures"
    typed += ["--device", "cpu"]
    assert vgg_export(*typed, "--seed", "3", "--output", "one/artifacts").returncode == 0
    again = ("all", "--like", "one/artifacts/manifest.json", "--no-compare", "--output", "other/artifacts")
    given = ("--device", "cpu", "--weights", "other/renamed.safetensors", "--data", "other/others")
    done = vgg_export(*again, *given)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(one / "artifacts"): path for path in (one / "artifacts").rglob("*.*")}
    assert len(files) > 20
    for name, path in files.items():
        assert (other / "artifacts" / name).read_bytes() == path.read_bytes(), name
    made = manifest.read(one / "artifacts").made_with
    assert made
    assert made.device == "cpu"
    for more, sentence in (
        (("--seed", "4"), "--like: that run had --seed 3, found --seed 4"),
        (("--prune-widths", "sensitivity"), "--like: that run had no --prune-widths"),
    ):
        done = vgg_export(*again, *given, *more)
        assert done.returncode == 2
        assert sentence in done.stderr
    done = vgg_export(*again, *given[:2])
    assert done.returncode == 2
    assert "--like: that run was given --data" in done.stderr
    next((other / "others").rglob("*.png")).unlink()
    done = vgg_export(*again, *given)
    assert done.returncode == 2
    assert "--like: the pictures (--data) must be the same as in that run" in done.stderr
    reseal(one / "artifacts", made_with=made.to_json() | {"device": "NVIDIA H100"})
    done = vgg_export(*again, *given)
    assert done.returncode == 2
    where = "--like: the device where torch computes must be the same as in that run"
    assert f"{where}, NVIDIA H100, found cpu" in done.stderr


def test_what_a_stranger_s_manifest_asks_for_is_refused(
    bundle_copy: Path, in_this_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for asked, sentence in (
        ({"output": "/elsewhere"}, "has the option 'output', which this version does not know"),
        ({"weights": "/etc/passwd"}, "has a --weights that no run writes there"),
        ({"seed": "many"}, '--seed must be a whole number, found "many"; this manifest is no run'),
        ({"seed": [1]}, "--seed must be a whole number, found [1]"),
        ({"seed": 1.5}, "--seed must be a whole number, found 1.5"),
        ({"seed": True}, "--seed must be a whole number, found true"),
        ({"seed": 10**30}, "'--seed': 1000000000000000000000000000000 is not in the range"),
        ({"calibration_images": 1e308}, "--calibration-images must be a whole number, found 1e+308"),
        ({"accept_accuracy": [1]}, "--accept-accuracy must be true or false, found [1]"),
        ({"conv_share": None}, "--conv-share must be a number, found null"),
        ({"target": "pi5"}, '--target must be a list of words, found "pi5"'),
        ({"effort": {}}, "--effort must be a text, found {}"),
        ({"effort": "hasty"}, "'--effort': 'hasty' is not one of"),
    ):
        made: dict[str, object] = {"options": asked, "core": "pi5", "checkpoint": "c", "pictures": "p"}
        reseal(bundle_copy, made_with=made)
        done = in_this_process("all", "--like", bundle_copy / "manifest.json")
        assert done.returncode == 2
        assert sentence in done.stderr
    done = in_this_process("all", "--like", bundle_copy / "splits.json")
    assert "--like takes the manifest.json of a bundle" in done.stderr
