"""Rounds: turns, boards that are held back, drift, threads, and a variant that hangs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from launch import compare
from rows import a_row

from vgg_runtime import compare as command_line
from vgg_runtime import text
from vgg_runtime.board import device, monitor
from vgg_runtime.measure import aggregate, measure, process, running
from vgg_runtime.report import tables
from vgg_runtime.result import Round, Row, State, Watched

ZONE, CLOCK, THROTTLED = (
    "sys/class/thermal/thermal_zone0/temp",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
    "sys/devices/platform/soc/soc:firmware/get_throttled",
)


def board(root: Path, temperature_c: float = 50.0, clock_mhz: int = 1500, throttled: str = "0x0") -> Path:
    """The files of a Pi's sensors below ``root``."""
    contents = {
        ZONE: f"{temperature_c * 1000:.0f}\n",
        ZONE.replace("temp", "type"): "cpu-thermal\n",
        CLOCK: f"{clock_mhz * 1000}\n",
        THROTTLED: f"{throttled}\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    }
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def a_round(
    samples_ms: list[float], clock_mhz: float | None = 1500.0, held_back: tuple[str, ...] | None = ()
) -> Round:
    state = State(60.0, clock_mhz, held_back)
    return Round(10.0, 5.0, tuple(samples_ms), Watched(state, state, state))


def settled(*found: Round, highest_mhz: float | None = 1500.0) -> Row:
    return aggregate.settled(a_row(rounds=found), highest_mhz)


def test_every_variant_takes_part_once_and_in_another_place_each_time() -> None:
    for count in (1, 2, 3, 10):
        orders = [aggregate.order(count, turn) for turn in range(4)]
        assert all(sorted(order) == list(range(count)) for order in orders)
    first = [aggregate.order(10, turn).index(0) for turn in range(3)]
    assert first[0] == 0
    assert len(set(first)) == 3


def test_rounds_of_a_steady_board_are_joined() -> None:
    row = settled(a_round([10.0] * 30), a_round([11.0] * 40))
    assert (row.runs, row.p50_ms, row.p90_ms, row.p99_ms, row.marks) == (
        70,
        11.0,
        11.0,
        None,
        (),
    )
    assert row.samples_ms == (10.0,) * 30 + (11.0,) * 40


@pytest.mark.parametrize(
    "bad", [a_round([30.0] * 9, held_back=("under-voltage",)), a_round([30.0] * 9, clock_mhz=600.0)]
)
def test_a_round_in_which_the_board_was_held_back_is_marked_and_left_out(bad: Round) -> None:
    row = settled(a_round([10.0] * 9), bad, a_round([10.2] * 9))
    assert row.p50_ms == pytest.approx(10.1)
    assert "in 1 of 3 rounds, which are left out" in row.marks[0]
    assert "under-voltage" in row.marks[0] or "clock at 600 of 1500 MHz" in row.marks[0]
    assert row.rounds[1].samples_ms == (30.0,) * 9  # nothing is thrown away


def test_a_board_that_was_always_held_back_has_figures_that_say_so() -> None:
    row = settled(
        a_round([30.0] * 9, held_back=("throttled",)), a_round([31.0] * 9, held_back=("throttled",))
    )
    assert row.p50_ms == pytest.approx(30.5)
    assert "in every round: these figures are those of a board that is held back" in row.marks[0]


def test_what_drifts_is_not_averaged() -> None:
    row = settled(a_round([10.0] * 9), a_round([15.0] * 9))
    assert row.p50_ms == 15.0
    assert row.marks == (
        "drifting: the rounds' medians lie between 10.0 and 15.0 ms; the figures are those of the last round",
    )
    within = settled(a_round([10.0] * 10 + [12.0] * 5 + [14.0] * 10))
    assert "drifting: 1.40x within a round" in within.marks[0]
    assert settled(a_round([10.0] * 9), a_round([12.0] * 9)).marks == ()


def test_without_sensors_nothing_is_claimed() -> None:
    row = settled(a_round([10.0] * 9, clock_mhz=None, held_back=None), highest_mhz=None)
    assert row.marks == ()
    assert row.rounds[0].held_back == ()


def test_the_watch_sees_what_happens_between_start_and_end(tmp_path: Path) -> None:
    board(tmp_path)
    with monitor.Watch(tmp_path) as seen:
        time.sleep(2 * monitor.EVERY_S)
        board(tmp_path, 81.0, 600, "0x50005")
        time.sleep(4 * monitor.EVERY_S)
        board(tmp_path, 70.0, 1500, "0x50000")
    found = seen.seen()
    assert found.before == State(50.0, 1500.0, ())
    assert (found.during.temperature_c, found.during.held_back) == (81.0, ("throttled", "under-voltage"))
    assert found.after == State(70.0, 1500.0, ())  # since boot is not now


def test_it_waits_for_a_hot_board_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, cool_from = 0.0, 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now >= cool_from:
            board(tmp_path, 52.0)

    monkeypatch.setattr(monitor, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    start = monitor.state_now(board(tmp_path, 50.0))
    assert monitor.cool_down(start, 5.0, tmp_path) == 0
    board(tmp_path, 80.0)
    assert monitor.cool_down(start, 0.5, tmp_path) == pytest.approx(0.5)
    cool_from = now + 0.5
    assert 0.5 <= monitor.cool_down(start, 20.0, tmp_path) + 1e-9 < 0.51 + monitor.EVERY_S
    assert monitor.cool_down(State(None, None, None), 5.0, tmp_path) == 0


def test_a_throttled_board_is_in_the_table_and_in_the_json(bundle_folder: Path, tmp_path: Path) -> None:
    root = board(tmp_path / "root", 84.5, 600, "0x50005")
    done = compare(
        "--budget",
        "0.6",
        "--cool-down",
        "0.1",
        "--root",
        root,
        "--json",
        tmp_path / "r.json",
        bundle=bundle_folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held back (throttled, under-voltage) in every round") == 3
    assert "Raspberry Pi 4 Model B" in done.stdout
    assert "84 °C, 600 MHz, HELD BACK: under-voltage, throttled" in done.stdout
    for row in json.loads((tmp_path / "r.json").read_text())["variants"]:
        assert len(row["rounds"]) == 3
        assert row["rounds"][0]["state"]["during"] == {
            "temperature_c": 84.5,
            "clock_mhz": 600.0,
            "held_back": ["throttled", "under-voltage"],
        }
        assert row["rounds"][0]["held_back"] == ["throttled", "under-voltage"]


def test_decoding_and_the_model_are_apart(bundle_folder: Path, tmp_path: Path) -> None:
    done = compare("--budget", "0.2", "--rounds", "1", "--json", tmp_path / "r.json", bundle=bundle_folder)
    for row in json.loads((tmp_path / "r.json").read_text())["variants"]:
        assert 0 < row["prepare_ms"] < row["end_to_end_ms"]
        assert row["end_to_end_ms"] > 0.5 * row["p50_ms"]
    assert "total ms" in done.stdout


@pytest.mark.release
def test_a_thread_sweep_takes_what_is_fastest(bundle_folder: Path, tmp_path: Path) -> None:
    arguments = (
        "--threads",
        "auto",
        "--budget",
        "0.6",
        "--variants",
        "baseline,quantized",
        "--json",
        tmp_path / "r.json",
    )
    done = compare(*arguments, bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    assert "by threads" in done.stdout
    for row in json.loads((tmp_path / "r.json").read_text())["variants"]:
        swept = {tried["threads"]: tried["p90_ms"] or tried["p50_ms"] for tried in row["thread_sweep"]}
        assert set(swept) == {n for n in measure.SWEPT_THREADS if n <= len(os.sched_getaffinity(0))}
        assert row["threads"] in swept


# Of one, two and four threads: by its median one thread is the fastest, by its P90 two are.
SAMPLES_MS = {
    1: [5.0 + 0.01 * k for k in range(80)] + [30.0 + k for k in range(20)],
    2: [8.0 + 0.01 * k for k in range(100)],
    4: [9.0 + 0.01 * k for k in range(100)],
}


def a_worker_that_takes(samples_ms: dict[int, list[float]]) -> type[process.Child]:
    """A real process that says what a variant's would, but with known latencies by its number of threads, in
    an order that does not drift."""
    code = f"""
import json, random, sys
asked = json.loads(sys.stdin.buffer.readline())
samples = {samples_ms!r}[asked["threads"]]
random.Random(0).shuffle(samples)
print(json.dumps({{"event": "loaded", "load_ms": 10.0, "first_ms": 5.0}}))
print(json.dumps({{"event": "checked", "deviation": 0.0}}))
print(json.dumps({{"event": "timed", "samples_ms": samples, "peak_rss_bytes": 1}}))
"""
    started = subprocess.Popen

    class Known(process.Child):
        def __init__(self, module: str) -> None:
            with pytest.MonkeyPatch.context() as patch:
                command = [sys.executable, "-c", code]
                patch.setattr(subprocess, "Popen", lambda _, **pipes: started(command, **pipes))
                super().__init__(module)

    return Known


@pytest.mark.parametrize(
    ("enough", "threads", "p50_ms", "p90_ms"),
    [
        (True, 2, 8.495, 8.89),  # the 270th of three rounds' 300
        (False, 1, 5.495, 39.0),  # too few runs of four threads for a P90: the medians decide
    ],
)
def test_the_least_p90_decides_and_is_in_the_json(
    enough: bool,
    threads: int,
    p50_ms: float,
    p90_ms: float,
    bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = SAMPLES_MS if enough else SAMPLES_MS | {4: SAMPLES_MS[4][:63]}
    monkeypatch.setattr(running, "Child", a_worker_that_takes(samples))
    monkeypatch.setattr(device, "usable_cores", lambda: 4)
    asked = ["--bundle", bundle_folder, "--threads", "auto", "--variants", "baseline", "--cool-down", "1"]
    asked += ["--root", board(tmp_path / "root"), "--json", tmp_path / "r.json"]
    assert command_line.main([str(word) for word in asked]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["variants"]
    tried = {found["threads"]: (found["runs"], found["p90_ms"]) for found in row["thread_sweep"]}
    assert tried == {1: (100, 39.0), 2: (100, 8.89), 4: (100, 9.89) if enough else (63, None)}
    assert (row["threads"], row["runs"], row["marks"]) == (threads, 300, [])
    assert (row["p50_ms"], row["p90_ms"]) == (pytest.approx(p50_ms), pytest.approx(p90_ms))


def test_a_variant_that_hangs_is_a_row_and_the_others_run(bundle_folder: Path, tmp_path: Path) -> None:
    """The first variant's process is stopped by a signal; it is killed after the time of --silence."""
    command = [
        sys.executable,
        str(bundle_folder / "runtime/compare.py"),
        "--budget",
        "0.2",
        "--silence",
        "2",
        "--rounds",
        "1",
    ]
    running = subprocess.Popen(
        [*command, "--json", str(tmp_path / "r.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    victim = None
    while victim is None and running.poll() is None:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        victim = int(children[0]) if children else None
        time.sleep(0.02)
    assert victim is not None
    os.kill(victim, signal.SIGSTOP)
    output, errors = running.communicate(timeout=120)
    assert running.returncode == 1, errors
    assert "baseline: it hangs: it did not answer for 2 s beyond its time and was ended" in output
    first, *others = json.loads((tmp_path / "r.json").read_text())["variants"]
    assert first["p50_ms"] is None
    assert all(row["p50_ms"] > 0 for row in others)


def test_marked_figures_carry_their_mark() -> None:
    assert text.number(12.34, tables.MARK) == "12.3!"
