"""bench/peers.py: turns, rows and tables, with real child processes; of the engines only onnxruntime, which
is always there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, command_environment

import peers
import peers_contenders
import peers_measure
from peers_contenders import Contender
from peers_measure import Child, ContenderError, Options, Pictures
from vgg_runtime.bundle.input_spec import for_input

TRIVIAL = """
import os, time
from pathlib import Path
import numpy as np
print("said while it was imported")  # must not be taken for an answer

class Sum:
    modules, bfloat16, remark = ("math",), False, "sums"
    def __init__(self, files, threads, settings):
        self.settings = settings
    def __call__(self, batch):
        print("noise")
        return np.array([[batch.sum(), 0.0]])

class Dying(Sum):
    def __call__(self, batch):
        os.abort()

class DyingLater(Sum):
    calls = 0
    def __call__(self, batch):
        self.calls += 1
        if self.calls > 3:
            os._exit(7)
        return super().__call__(batch)

class Raising(Sum):
    def __init__(self, files, threads, settings):
        raise ValueError("no such operator")

class Missing(Sum):
    modules = ("an_engine_that_nobody_has",)

class Other(Sum):
    def __call__(self, batch):
        return -super().__call__(batch)

class Hungry(Sum):
    def __init__(self, files, threads, settings):
        self.held = np.ones(settings["bytes"] // 8)

class Slow(Sum):
    def __init__(self, files, threads, settings):
        time.sleep(60)

def smaller(sources, folder):
    from peers_engines import Made
    (folder / "smaller.bin").write_bytes(bytes(sources.compression.macs))
    return Made([folder / "smaller.bin"], 12, sources.compression.macs, "halved")

def as_long_as_onnx(sources, folder):
    (folder / "copy.bin").write_bytes(sources.onnx.read_bytes() * 2)
    return [folder / "copy.bin"]

def prepare(sources, folder):
    (folder / "made.bin").write_bytes(bytes(sources.px))
    return [folder / "made.bin"]

def forgets(sources, folder):
    return [folder / "never.bin"]
"""
SOURCES = {"onnx": "", "checkpoint": "", "calibration": "", "px": 32, "threads": 1}
PREPROCESSING = for_input(32)


@pytest.fixture
def trivial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of contenders that child processes can import."""
    (tmp_path / "trivial_engines.py").write_text(TRIVIAL)
    monkeypatch.syspath_prepend(tmp_path)
    return "trivial_engines"


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    for name, count in (("timed", 2), ("test", 5)):
        signs = np.where(np.arange(count) % 2, -1, 1).reshape(-1, 1, 1, 1)
        np.save(tmp_path / f"{name}.npy", np.broadcast_to(signs, (count, 3, 32, 32)).astype(np.float32))
    return Pictures({PREPROCESSING: tmp_path / "timed.npy"}, {PREPROCESSING: tmp_path / "test.npy"})


def contender(name: str, **changed: object) -> Contender:
    fields: dict[str, object] = {
        "name": name,
        "engine": f"trivial_engines:{name}",
        "packages": (),
        "preprocessing": PREPROCESSING,
    }
    return Contender(**(fields | changed))  # type: ignore[arg-type]


def measured(names: list[str], pictures: Pictures, work: Path, **options: float) -> dict[str, dict[str, Any]]:
    chosen = Options(**{"threads": 1, "rounds": 2, "runs": 3, **options})  # type: ignore[arg-type]
    reports: list[str] = []
    contenders = [contender(name) for name in names]
    rows = peers_measure.measure(contenders, SOURCES, pictures, work, chosen, reports.append)
    assert [row["contender"] for row in rows] == names
    return {row["contender"]: row for row in rows}


def test_each_round_begins_with_the_next_contender() -> None:
    rounds = [peers_measure.rotated("abc", number) for number in range(4)]
    assert ["".join(order) for order in rounds] == ["abc", "bca", "cab", "abc"]
    assert peers_measure.rotated([], 3) == []


@pytest.mark.usefixtures("trivial")
def test_those_that_run_are_measured_and_related_to_the_first(pictures: Pictures, tmp_path: Path) -> None:
    rows = measured(["Sum", "Other"], pictures, tmp_path / "work")
    for row in rows.values():
        assert row["error"] is None
        assert len(row["samples_ms"]) == 6
        assert row["p50_ms"] == np.median(row["samples_ms"])
        assert row["load_ms"] >= 0
        assert row["remark"] == "sums"
        assert 10e6 < row["peak_rss_bytes"] < 200e6
    assert rows["Sum"]["classes"] == [0, 1, 0, 1, 0]
    assert rows["Sum"]["agreement"]["rate"] == 1
    assert rows["Sum"]["speedup"] == 1
    assert (rows["Other"]["agreement"]["rate"], rows["Other"]["agreement"]["n"]) == (0, 5)


@pytest.mark.usefixtures("trivial")
def test_whoever_fails_is_a_row_with_the_reason_and_the_others_go_on(
    pictures: Pictures, tmp_path: Path
) -> None:
    rows = measured(["Sum", "Dying", "DyingLater", "Raising", "Missing"], pictures, tmp_path / "work")
    assert "during 'load': the process died of SIGABRT" in rows["Dying"]["error"]
    assert "during 'run': the process ended with code 7" in rows["DyingLater"]["error"]
    assert rows["Raising"]["error"] == "ValueError: no such operator"
    assert rows["Missing"]["error"] == "not installed: No module named 'an_engine_that_nobody_has'"
    for name in ("Dying", "DyingLater", "Raising", "Missing"):
        assert (
            rows[name]["p50_ms"]
            is rows[name]["load_ms"]
            is rows[name]["agreement"]
            is rows[name]["bfloat16"]
            is None
        )
        assert rows[name]["samples_ms"] == []
    assert len(rows["Sum"]["samples_ms"]) == 6


@pytest.mark.usefixtures("trivial")
def test_a_first_contender_that_fails_leaves_the_others_without_comparison(
    pictures: Pictures, tmp_path: Path
) -> None:
    rows = measured(["Raising", "Sum"], pictures, tmp_path / "work")
    assert rows["Sum"]["p50_ms"]
    assert rows["Sum"]["speedup"] is rows["Sum"]["agreement"] is None


@pytest.mark.usefixtures("trivial")
def test_preparing_is_done_once_and_its_failure_is_shared(pictures: Pictures, tmp_path: Path) -> None:
    made = {"engine": "trivial_engines:Sum", "prepare": "trivial_engines:prepare"}
    never = made | {"prepare": "trivial_engines:forgets"}
    contenders = [
        contender("a", **made),
        contender("b", **made, preprocessing=None),
        contender("c", **never),
        contender("d", **never),
    ]
    reports: list[str] = []
    rows = peers_measure.measure(
        contenders, SOURCES, pictures, tmp_path / "work", Options(1, 1, 1), reports.append
    )
    assert [report for report in reports if report.startswith("preparing")] == ["preparing a", "preparing c"]
    assert [row["size_bytes"] for row in rows] == [32, 32, None, None]
    assert (
        rows[2]["error"]
        == rows[3]["error"]
        == "the conversion ended without an error, but wrote no never.bin"
    )


@pytest.mark.usefixtures("trivial")
def test_a_file_that_is_made_from_anothers_shares_its_network_and_its_failure(
    pictures: Pictures, tmp_path: Path
) -> None:
    engine = "trivial_engines:Sum"
    sources = {"compression": {"macs": 7, "minutes": 1.0, "pictures": "nowhere"}}
    first = contender("a", engine=engine, prepare="trivial_engines:smaller", sources=sources)
    second = contender(
        "b", engine=engine, prepare="trivial_engines:as_long_as_onnx", after=first.prepare, sources=sources
    )
    third = contender(
        "c", engine=engine, prepare="trivial_engines:as_long_as_onnx", after="trivial_engines:forgets"
    )
    absent = contender("d", engine=engine, prepare="trivial_engines:smaller", absent="it may not")
    reports: list[str] = []
    rows = peers_measure.measure(
        [first, second, third, absent], SOURCES, pictures, tmp_path / "w", Options(1, 1, 1), reports.append
    )
    assert [row["size_bytes"] for row in rows] == [7, 14, None, None]
    assert [(row["parameters"], row["macs"], row["made"]) for row in rows[:2]] == [(12, 7, "halved")] * 2
    assert rows[2]["error"] == "the conversion ended without an error, but wrote no never.bin"
    assert rows[3]["error"] == "it may not"
    assert [r for r in reports if r.startswith("preparing")] == ["preparing a", "preparing b", "preparing c"]


def test_top1_counts_the_labelled_pictures() -> None:
    rows = [row("a", classes=[0, 1, 0, 1]), row("b", classes=[1, 1, 1, 1]), row("c")]
    peers_measure.relate(rows, [0, 1, None, 0])
    assert [r["top1"] and (round(r["top1"]["rate"], 3), r["top1"]["n"]) for r in rows] == [
        (0.667, 3),
        (0.333, 3),
        None,
    ]
    assert rows[1]["agreement"]["rate"] == 0.5
    peers_measure.relate(rows := [row("a", classes=[0, 1])], [None, None])
    assert rows[0]["top1"] is None


@pytest.mark.usefixtures("trivial")
def test_memory_is_the_contenders_own(pictures: Pictures, tmp_path: Path) -> None:
    held = np.ones(300_000_000 // 8)  # the parent's peak, which ru_maxrss would hand down
    hungry = contender("Hungry", settings={"bytes": 150_000_000})
    rows = peers_measure.measure(
        [contender("Sum"), hungry], SOURCES, pictures, tmp_path / "work", Options(1, 1, 1), lambda _: None
    )
    assert held.nbytes == 300_000_000
    small, large = (row["peak_rss_bytes"] for row in rows)
    assert small < 150e6
    assert 140e6 < large - small < 165e6


@pytest.mark.usefixtures("trivial")
def test_a_contender_is_stopped_when_it_is_not_its_turn_and_ended_when_it_takes_too_long(
    pictures: Pictures, tmp_path: Path
) -> None:
    request = {"files": [], "threads": 1, "settings": {}, "pictures": str(pictures.timed[PREPROCESSING])}
    with Child(tmp_path, 1, 5) as child:
        child.ask("load", engine="trivial_engines:Sum", **request)
        assert state_of(child, "T")
        assert len(child.ask("run", runs=2, warm_up=1)["samples_ms"]) == 2
    with Child(tmp_path, 1, 1.5) as child, pytest.raises(ContenderError, match="no answer within 2 s"):
        child.ask("load", engine="trivial_engines:Slow", **request)


def state_of(child: Child, wanted: str) -> bool:
    status = Path(f"/proc/{child._process.pid}/status")
    for _ in range(100):
        if f"State:\t{wanted}" in status.read_text():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.usefixtures("trivial")
def test_a_stopped_contender_ends_with_the_program(pictures: Pictures, tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib, peers_measure\n"
        "child = peers_measure.Child(pathlib.Path(sys.argv[1]), 1, 5)\n"
        "child.ask('load', engine='trivial_engines:Sum', files=[], threads=1, settings={},"
        " pictures=sys.argv[2])\n"
        "print(child._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(tmp_path), str(pictures.timed[PREPROCESSING])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.02)
    raise AssertionError("it outlived the program that had stopped it")


def row(name: str, **changed: object) -> dict[str, Any]:
    return peers_measure.empty_row(contender(name)) | changed


def result_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    device = {"cpu": "A CPU", "features": ["avx2"], "cores": 2, "os": "an OS", "python": "3.11"}
    return {
        "measured_at": "2026-01-02T03:04:05Z",
        "device": device,
        "versions": {"onnxruntime": "1.2.3", "ncnn": None},
        "options": {"threads": 2, "rounds": 3, "runs": 4},
        "bundle": {
            "family": "vgg19",
            "weights": {"what": "some weights"},
            "target": "x86 (a reason)",
            "notice": "A NOTICE",
        },
        "figures_absent": None,
        "calibration_images": 5,
        "test_images": 6,
        "contenders": rows,
    }


def test_the_tables_show_a_failed_contender_with_its_reason() -> None:
    good = row(
        "good",
        p50_ms=12.34,
        speedup=1.0,
        size_bytes=5_000_000,
        bfloat16=True,
        remark="a remark",
        made="made so",
        parameters=1_500_000,
        macs=250_000_000,
        top1={"rate": 0.75, "n": 4, "interval95": [0.301, 0.954]},
        load_ms=3.0,
        first_ms=4.0,
    )
    result = result_of([good, row("bad", error="not installed: no | such engine")])
    text, page = peers.terminal(result), peers.markdown(result)
    for shown in (text, page):
        for fact in (
            "A CPU",
            "2026-01-02",
            "onnxruntime 1.2.3",
            "ncnn not installed",
            "2 threads",
            "3 rounds of 4 runs",
            "A NOTICE",
            "made for x86",
        ):
            assert fact in shown
    assert "✗ bad: not installed: no | such engine" in text
    assert "· good: made so; a remark" in text
    assert f"| bad | 32 px |{' – |' * 11} not installed: no \\| such engine |" in page
    top1 = "75.0 % (30 to 95)"
    cells = f"| good | 32 px | 1.50 | 0.25 | 5.0 | 3 | 4 | 12.3 | 1.00x | – | – | {top1} | yes |"
    assert f"{cells} made so; a remark |" in page
    assert (
        len({line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("|")}) == 1
    )


def test_only_chooses_by_name_and_keeps_the_baseline() -> None:
    contenders = [
        contender(name)
        for name in ("vgg-export baseline", "vgg-export scaled", *(c.name for c in peers_contenders.PEERS))
    ]
    assert [c.name for c in peers_contenders.chosen(contenders, "SCALED, torch.")] == [
        "vgg-export baseline",
        "vgg-export scaled",
        "torch.compile",
    ]
    assert len(peers_contenders.chosen(contenders, None)) == len(contenders)


def test_every_named_function_is_there_and_no_engine_is_imported_for_it() -> None:
    code = (
        "import sys, peers, peers_child, peers_engines\n"
        "from peers_contenders import COMPRESSED, PEERS\n"
        "for c in (*PEERS, *COMPRESSED):\n"
        "    assert all(callable(peers_child.named(name)) for name in (c.prepare, c.after or c.prepare))\n"
        "    assert issubclass(peers_child.named(c.engine), peers_engines.Engine)\n"
        "sys.exit(bool({'torch', 'onnxruntime', 'openvino', 'nncf', 'ncnn', 'litert_torch',"
        " 'ai_edge_litert', 'torch_pruning', 'fasterai'} & set(sys.modules)))\n"
    )
    environment = command_environment()
    environment["PYTHONPATH"] += os.pathsep + str(ROOT / "bench")
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench/peers.py"), *map(str, arguments)]
    return subprocess.run(
        command, env=command_environment(), capture_output=True, text=True, timeout=100, check=False
    )


def test_a_bundle_beside_onnxruntimes_defaults(bundle_copy: Path, signs_folder: Path, tmp_path: Path) -> None:
    options = [
        "--calibration-images",
        4,
        "--test-images",
        6,
        "--rounds",
        2,
        "--runs",
        2,
        "--only",
        "vgg-export,quantize_static,eager,torch-pruning",
    ]
    files: list[str | Path] = ["--json", tmp_path / "p.json", "--markdown", tmp_path / "p.md"]
    done = bench("--bundle", bundle_copy, "--data", signs_folder, *map(str, options), *files)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "p.json").read_text())
    rows = {row["contender"]: row for row in result["contenders"]}
    assert list(rows) == [
        "vgg-export baseline = onnxruntime fp32",
        "vgg-export quantized",
        "vgg-export scaled",
        "torch eager",
        "onnxruntime quantize_static, defaults",
        "Torch-Pruning, fp32",
        "Torch-Pruning, int8",
    ]
    for name in ("Torch-Pruning, fp32", "Torch-Pruning, int8"):
        assert "it is not known how long the variant scaled took" in rows.pop(name)["error"]
    eager = rows.pop("torch eager")  # the bundle was copied without its work folder
    assert "there is no checkpoint" in eager["error"]
    assert "--checkpoint" in eager["error"]
    for row in rows.values():
        assert row["error"] is None
        assert len(row["samples_ms"]) == 4
        assert row["agreement"]["n"] == row["top1"]["n"] == 6
        assert row["parameters"] > 10_000
        assert row["macs"] > 1e6
    assert (
        rows["onnxruntime quantize_static, defaults"]["size_bytes"]
        < rows["vgg-export baseline = onnxruntime fp32"]["size_bytes"] / 2
    )
    assert rows["vgg-export scaled"]["input_px"] == 160
    assert "| vgg-export scaled | 160 px |" in (tmp_path / "p.md").read_text()
    assert done.stdout.count("✗") == 3
    assert result["versions"]["onnxruntime"]


def test_what_cannot_be_used_is_a_sentence(bundle_copy: Path, tmp_path: Path) -> None:
    assert "there is no bundle" in bench("--bundle", tmp_path / "nowhere").stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    done = bench("--bundle", bundle_copy, "--work", tmp_path / "mine")
    assert done.returncode == 2
    assert "was not made by this program" in done.stderr
    assert (tmp_path / "mine" / "photo.jpg").exists()
    done = bench("--bundle", bundle_copy, "--compress-to", "tiny", "--only", "none")
    assert done.returncode == 2
    assert "there is no variant 'tiny'" in done.stderr
    assert "expected a number of minutes above 0" in bench("--finetune-minutes", "-1").stderr
    others = ROOT / "calibration/images"
    done = bench("--bundle", bundle_copy, "--data", others)
    assert "give the --data that 'vgg-export all' was given" in done.stderr


def test_help_has_an_example() -> None:
    assert "python bench/peers.py --bundle artifacts" in bench("--help").stdout
