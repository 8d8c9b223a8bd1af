"""bench/kill_device.py in a small measure: real commands of a board are killed, and their calls fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command_environment
from fuzz import documents

import faults
import kill_device

needs_compiler = pytest.mark.skipif(not faults.compiler(), reason="no C compiler: install gcc")


@needs_compiler
@pytest.mark.release
@pytest.mark.timeout(1500)
def test_what_a_board_writes_is_whole_wherever_it_is_killed(bundle_folder: Path) -> None:
    command = [sys.executable, str(ROOT / "bench/kill_device.py"), "--bundle", str(bundle_folder)]
    done = subprocess.run(
        [*command, "--every", "60", "--kinds", "SIGKILL,ENOSPC"],
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 wrong" in done.stdout
    for name in ("compare", "tune", "live", "ship"):
        assert f"{name}: SIGKILL" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.json", '{"schema": 1', "r.json: "),
        ("r.html", "<!DOCTYPE html><p>half", "r.html is not whole"),
        ("cache/vgg-export/tuned.json", "{", "tuned.json: "),
        ("l.jsonl", '{"a": 1}\n{"b"', "l.jsonl has the line '{\"b\"'"),
        ("l.jsonl.1", "x\n", "l.jsonl.1 has the line 'x'"),
        ("live.json", "", "live.json: "),
    ],
)
def test_what_is_half_there_is_seen(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "cache/vgg-export").mkdir(parents=True)
    whole = {"live.json": "{}", "r.json": json.dumps(documents.measured()), "r.html": "<html></html>\n"}
    for path, text in (whole | {"cache/vgg-export/tuned.json": "{}"}).items():
        (tmp_path / path).write_text(text)
    check = kill_device.stream if name.startswith("l") else kill_device.documents
    check = kill_device.tuned if "tuned" in name else check
    assert check(tmp_path) is None
    (tmp_path / name).write_text(content)
    assert (check(tmp_path) or "").startswith(said)


def test_a_shipped_folder_is_whole_or_missing(bundle_copy: Path, tmp_path: Path) -> None:
    assert kill_device.shipped(tmp_path) is None
    bundle_copy.rename(tmp_path / "app")
    assert kill_device.shipped(tmp_path) is None
    (tmp_path / "app/labels.txt").unlink()
    assert (kill_device.shipped(tmp_path) or "").startswith("app: ")


def test_how_a_command_may_end() -> None:
    ended = kill_device.Ended
    assert kill_device.unfit(ended(-9, "", ""), killed=True) is None
    assert "instead of being killed" in (kill_device.unfit(ended(0, "", ""), killed=True) or "")
    assert kill_device.unfit(ended(2, "", "Error: no"), killed=False) is None
    assert "not one sentence" in (kill_device.unfit(ended(2, "", ""), killed=False) or "")
    assert "not one sentence" in (kill_device.unfit(ended(1, "", ""), killed=False) or "")
    assert kill_device.unfit(ended(1, "✗ scaled: it died", ""), killed=False) is None
    assert "a traceback" in (kill_device.unfit(ended(1, "Traceback (most", ""), killed=False) or "")
    assert "exit code -11" in (kill_device.unfit(ended(-11, "", ""), killed=False) or "")


@pytest.mark.parametrize("option", ["--kinds", "--only"])
def test_what_it_does_not_know_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        kill_device.main([option, "nothing"])
    assert ended.value.code == 2
    assert f"{option} has nothing; expected some of " in capsys.readouterr().err


def test_each_name_is_a_scenario() -> None:
    assert kill_device.SCENARIOS == ("compare", "tune", "live", "ship")
    assert tuple(one.name for one in kill_device.scenarios("quantized")) == kill_device.SCENARIOS
