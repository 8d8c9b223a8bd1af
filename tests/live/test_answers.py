"""What a stream says, when that counts as new, and where it goes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import interruptible
from PIL import Image

from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.live import sinks, stream
from vgg_runtime.live.answers import Answer, Stability, Steady
from vgg_runtime.live.document import Said


def an_answer(frame: int = 1, label: str | None = "stop", *, changed: bool = True) -> Answer:
    said = () if label is None else (Said(label, 0.913),)
    share = None if label is None else 0.913
    return Answer("2026-01-01T00:00:00.000Z", frame, label, share, changed, said, 1.0, 2.0, 3.5)


# When another answer counts


def changes(
    stability: Stability, *given: tuple[float, int | None, float]
) -> list[tuple[float, tuple[int, ...]]]:
    """When the answer changes, and to what. ``given``: time in s, label, probability."""
    steady, found = Steady(stability), []
    for now_s, label, probability in given:
        if steady.take([] if label is None else [(label, probability)], now_s):
            found.append((now_s, steady.labels))
    return found


def test_at_once_every_other_label_is_a_change() -> None:
    given = ((0.0, 3, 0.4), (1.0, 3, 0.9), (2.0, 5, 0.6), (3.0, 3, 0.5), (4.0, None, 0.0))
    assert changes(Stability(), *given) == [(0.0, (3,)), (2.0, (5,)), (3.0, (3,)), (4.0, ())]


def test_a_change_must_last_some_frames_in_a_row() -> None:
    labels = (3, 3, 3, 5, 3, 5, 5, 3, 5, 5, 5, 3)
    given = [(float(k), label, 0.9) for k, label in enumerate(labels)]
    assert changes(Stability(frames=3), *given) == [(2.0, (3,)), (10.0, (5,))]


def test_a_change_must_last_some_seconds() -> None:
    given = (
        (0.0, 3, 0.9),
        (1.0, 3, 0.9),
        (2.5, 3, 0.9),
        (3.0, 5, 0.9),
        (4.9, 3, 0.9),
        (5.0, 5, 0.9),
        (7.0, 5, 0.9),
    )
    assert changes(Stability(seconds=2), *given) == [(2.5, (3,)), (7.0, (5,))]


def test_what_is_improbable_is_no_label() -> None:
    given = ((0.0, 3, 0.49), (1.0, 3, 0.5), (2.0, 5, 0.4))
    assert changes(Stability(min_probability=0.5), *given) == [(1.0, (3,)), (2.0, ())]


# Where answers go


def test_a_log_of_lines_is_turned_over_when_it_is_full(tmp_path: Path) -> None:
    size = len(sinks.as_line(an_answer()).encode()) + 1
    log = sinks.Log(tmp_path / "log", 3 * size)
    for frame in range(1, 9):
        log.give(an_answer(frame))
    log.close()

    def frames(name: str) -> list[int]:
        return [json.loads(line)["frame"] for line in (tmp_path / name).read_text().splitlines()]

    assert (frames("log.1"), frames("log")) == ([4, 5, 6], [7, 8])
    again = sinks.Log(tmp_path / "log", 3 * size)  # what is there stays
    again.give(an_answer(9))
    again.give(an_answer(10))
    again.close()
    assert (frames("log.1"), frames("log")) == ([7, 8, 9], [10])


def test_a_line_holds_nothing_that_steers_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = an_answer(label="x\x9b31m\u202e\xfc")
    sinks.Lines().give(answer)
    log = sinks.Log(tmp_path / "log", 10_000)
    log.give(answer)
    log.close()
    line = capsys.readouterr().out
    assert line.isascii()
    assert json.loads(line)["label"] == "x\x9b31m\u202e\xfc"
    assert (tmp_path / "log").read_text() == line


def test_a_log_that_cannot_be_written_is_a_failure_that_is_counted(tmp_path: Path) -> None:
    log = sinks.Log(Path("/dev/full"), 1000)
    with pytest.raises(sinks.SinkError, match=r"/dev/full cannot be written .No space left on device"):
        log.give(an_answer())


def test_a_command_is_run_with_the_label_and_no_shell(tmp_path: Path) -> None:
    script = "import json, sys; open(sys.argv[1], 'a').write(json.dumps(sys.argv[2:]) + '\\n')"
    command = sinks.Command([sys.executable, "-c", script, str(tmp_path / "said")])
    command.give(an_answer(1, "$(touch x); no entry"))
    wait_for(lambda: (tmp_path / "said").exists() and (tmp_path / "said").read_text().endswith("\n"))
    command.give(an_answer(2, "other", changed=False))
    command.give(an_answer(3, None))
    command.close()
    said = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    assert said == [["$(touch x); no entry", "91.3"], ["", "0.0"]]
    assert command.failure() is None


def test_a_command_that_fails_or_hangs_is_told_and_ended(tmp_path: Path) -> None:
    for words, said, within_s in (
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with code 3", 10.0),
        (["/no/such/program"], "cannot be run (No such file or directory)", 10.0),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "took more than 0.5 s and was ended", 0.5),
    ):
        command = sinks.Command(words, within_s)
        command.give(an_answer())
        start = time.monotonic()
        command.close()
        assert time.monotonic() - start < 10
        assert said in (command.failure() or "")
        assert command.failure() is None  # told once


def test_only_the_newest_change_waits_for_a_slow_command(tmp_path: Path) -> None:
    script = "import sys, time; open(sys.argv[1], 'a').write(sys.argv[2]); time.sleep(0.7)"
    command = sinks.Command([sys.executable, "-c", script, str(tmp_path / "said")])
    command.give(an_answer(1, "a"))
    wait_for(lambda: (tmp_path / "said").exists())
    for label in "bcd":
        command.give(an_answer(2, label))
    command.close()
    assert (tmp_path / "said").read_text() == "ad"


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


# The part of a frame


def test_a_part_of_a_frame_is_cut_out() -> None:
    image = Image.new("RGB", (200, 100))
    image.paste((255, 0, 0), (100, 25, 150, 75))
    part = stream._part(image, (0.5, 0.25, 0.25, 0.5))
    assert (part.size, part.getcolors()) == ((50, 50), [(2500, (255, 0, 0))])
    assert stream._part(image, None) is image
    assert stream._part(Image.new("RGB", (3, 3)), (0.99, 0.99, 0.01, 0.01)).size == (1, 1)
    assert stream._part(image, (0.0, 0.0, 1.0, 1.0)).size == (200, 100)


def test_a_frame_is_decoded_large_enough_for_its_part() -> None:
    spec = for_input(160)
    assert stream._needed(spec, None) is spec
    assert stream._needed(spec, (0.0, 0.0, 0.25, 0.5)).px == 640


# A whole run


def run(bundle: Path, *arguments: str | Path, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, bundle / "runtime/compare.py", "--live", "scaled", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture
def two(tmp_path: Path, signs_folder: Path) -> Path:
    """Two frames in a folder; ``scaled`` gives them different labels."""
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (64, 64), (250, 250, 250)).save(folder / "a.png")
    Image.new("RGB", (64, 64), (5, 5, 60)).save(folder / "b.png")
    return folder


def test_one_json_line_per_answer_and_nothing_else_on_standard_output(bundle_folder: Path, two: Path) -> None:
    done = run(bundle_folder, "--source", two, "--fps", "50", "--frames", "6", "--json", "-")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 6
    documented = {
        "at",
        "frame",
        "label",
        "probability",
        "changed",
        "labels",
        "decode_ms",
        "model_ms",
        "end_to_end_ms",
        "schema",
    }
    assert set(found[0]) == documented
    assert [one["frame"] for one in found] == sorted(one["frame"] for one in found)
    assert all(one["label"] == one["labels"][0]["label"] for one in found)
    assert found[0]["changed"]
    assert all(one["end_to_end_ms"] >= one["model_ms"] > 0 for one in found)
    assert "is classified by scaled" in done.stderr
    assert "Frames   " in done.stderr


def test_changes_alone_go_into_the_log(bundle_folder: Path, two: Path, tmp_path: Path) -> None:
    (two / "b.png").unlink()
    log = tmp_path / "log"
    done = run(bundle_folder, "--source", two, "--fps", "50", "--frames", "6", "--change", "--log", log)
    assert done.returncode == 0, done.stderr
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["changed"]
    assert "Changes  1" in done.stdout


def test_a_full_disk_does_not_end_the_stream(bundle_folder: Path, two: Path, tmp_path: Path) -> None:
    done = run(
        *(bundle_folder, "--source", two, "--fps", "50", "--frames", "4", "--log", "/dev/full"),
        *("--json", tmp_path / "r.json"),
    )
    assert done.returncode == 0, done.stderr
    assert "Failed   4 attempts to hand an answer on, the last: --log: /dev/full" in done.stdout
    found = json.loads((tmp_path / "r.json").read_text())["live"]
    assert (found["failed_deliveries"], found["frames"]["classified"]) == (4, 4)


def test_no_more_frames_than_asked_for_are_classified(bundle_folder: Path, two: Path, tmp_path: Path) -> None:
    arguments = ("--source", two, "--fps", "50", "--max-fps", "4", "--seconds", "3")
    done = run(bundle_folder, *arguments, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    frames = json.loads((tmp_path / "r.json").read_text())["live"]["frames"]
    assert 2 <= frames["classified"] <= 13
    assert frames["dropped"] > frames["classified"]


def test_a_terminal_that_is_closed_does_not_end_what_nohup_protects(bundle_folder: Path, two: Path) -> None:
    command: list[str | Path] = [sys.executable, bundle_folder / "runtime/compare.py"]
    command += ["--live", "scaled", "--source", two]
    running = subprocess.Popen(
        ["nohup", *command, "--seconds", "4", "--json", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **interruptible(),
    )
    assert running.stdout is not None
    assert running.stdout.readline()
    os.kill(running.pid, signal.SIGHUP)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "as long as was asked for" in errors


def test_a_log_that_was_torn_within_a_line_goes_on_with_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"frame": 1}\n{"fra')
    log = sinks.Log(path, 10_000)
    log.give(an_answer())
    log.close()
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"frame": 1}', '{"fra']
    assert json.loads(lines[2])["label"]
    sinks.Log(path, 10_000).close()
    assert path.read_text().splitlines() == lines  # no empty line where it is whole
