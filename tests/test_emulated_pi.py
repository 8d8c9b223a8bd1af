"""The device's own aarch64 wheels on an emulated Raspberry Pi: a copied bundle runs there, and its
instructions are counted."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import REQUIRED, boards
from conftest import ROOT
from damage import rewrite

import emulated
import instructions
from emulated import BOARDS, Count, EmulationError, Pi
from vgg_runtime.bundle import manifest, self_check

PHOTO = ROOT / "calibration/images/cat.jpg"


@pytest.fixture(scope="session")
def pis() -> dict[str, Pi]:
    return boards()


def compare(
    bundle: Path, result: Path, variants: str, pi: Pi | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """compare.py of a bundle on a board or on this machine: what it printed, and its JSON."""
    briefly = ("--budget", "0.01", "--rounds", "1", "--threads", "1")
    arguments = (bundle / "runtime/compare.py", *briefly, "--image", PHOTO, "--variants", variants)
    if pi:
        done = pi.run(*arguments, "--json", result)
    else:
        command = [sys.executable, *map(str, arguments), "--json", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done, json.loads(result.read_text())


@pytest.mark.release
@pytest.mark.parametrize(
    ("core", "board", "name", "features", "variants"),
    [
        (
            "cortex-a72",
            "Raspberry Pi 4 Model B Rev 1.4",
            "Cortex-A72",
            ["asimd"],
            "quantized",
        ),
        (
            "cortex-a72",
            "Raspberry Pi 4 Model B Rev 1.4",
            "Cortex-A72",
            ["asimd"],
            "baseline,scaled",
        ),
        (
            "cortex-a76",
            "Raspberry Pi 5 Model B Rev 1.0",
            "Cortex-A76",
            ["asimd", "asimddp"],
            "quantized,scaled",
        ),
    ],
)
def test_a_copied_bundle_says_on_an_emulated_pi_what_it_says_here(
    pis: dict[str, Pi],
    bundle_copy: Path,
    tmp_path: Path,
    core: str,
    board: str,
    name: str,
    features: list[str],
    variants: str,
) -> None:
    done, there = compare(bundle_copy, tmp_path / "there.json", variants, pis[core])
    assert done.returncode == 0, done.stderr
    device = there["device"]
    assert (device["board"], device["cpu"], device["machine"], device["cores"]) == (board, name, "aarch64", 4)
    assert device["features"] == features
    assert device["ram_bytes"] == BOARDS[core].ram_bytes
    # this machine's are not the board's
    assert (device["temperature_c"], device["clock_mhz"], device["throttled"]) == (None, None, None)
    assert f"{board}, {name}" in done.stdout
    _, here = compare(bundle_copy, tmp_path / "here.json", variants)
    assert [row["variant"] for row in there["variants"]] == variants.split(",")
    for row, mine in zip(there["variants"], here["variants"], strict=True):
        assert row["error"] is None
        assert row["self_check_deviation"] <= self_check.TOLERANCE[row["precision"]]
        assert row["build"]["id"] == ("quantized.pi5" if row["variant"] == "quantized" else row["variant"])
        (said,), (mine_said,) = row["predictions"], mine["predictions"]
        assert said["labels"][0] == mine_said["labels"][0]
        by_class = dict(zip(said["classes"], said["probabilities"], strict=True))
        expected = dict(zip(mine_said["classes"], mine_said["probabilities"], strict=True))
        assert by_class == pytest.approx(expected, abs=1e-5 if row["precision"] == "fp32" else 0.02)


@pytest.mark.release
def test_the_doctor_on_a_pi_4_lists_the_board_and_what_it_lacks(
    pis: dict[str, Pi], bundle_copy: Path, tmp_path: Path
) -> None:
    done = pis["cortex-a72"].run(
        bundle_copy / "runtime/compare.py", "--doctor", "--json", tmp_path / "doctor.json"
    )
    found = {check["check"]: check for check in json.loads((tmp_path / "doctor.json").read_text())["checks"]}
    assert done.returncode == 0, done.stdout
    assert found["64-bit system"]["found"].startswith("Python is a program for aarch64")
    assert "Raspberry Pi 4 Model B Rev 1.4" in found["board"]["found"]
    assert found["int8 instructions"]["mark"] == "warning"
    assert "asimddp" in found["int8 instructions"]["found"]
    assert found["onnxruntime"]["found"].endswith("can be imported")
    assert found["hashes"]["mark"] == "ok"
    assert "11 layers run as int8" in found["int8 of quantized"]["found"]
    assert {name for name in ("governor", "power", "temperature") if found[name]["mark"] == "unknown"} == {
        "governor",
        "power",
        "temperature",
    }


@pytest.mark.release
def test_outputs_that_differ_from_the_recorded_ones_are_noticed_on_the_board(
    pis: dict[str, Pi], bundle_copy: Path, tmp_path: Path
) -> None:
    arrays = dict(np.load(bundle_copy / "expected.npz"))
    logits = arrays[self_check.logits_key("scaled")]
    arrays[self_check.logits_key("scaled")] = logits + 0.01 * (logits.max() - logits.min())
    np.savez(tmp_path / "expected.npz", **arrays)
    rewrite(bundle_copy, "expected.npz", (tmp_path / "expected.npz").read_bytes())
    done, result = compare(bundle_copy, tmp_path / "there.json", "scaled", pis["cortex-a76"])
    assert done.returncode == 1
    assert "scaled: self-check failed" in done.stdout
    assert result["variants"][0]["self_check_deviation"] == pytest.approx(0.01, rel=0.01)
    counted = instructions.counted(task(bundle_copy, "scaled", pis["cortex-a76"]), lambda _: None)
    assert counted["instructions"] is None
    assert counted["error"].startswith("logits differ by 0.01 of their spread from those recorded")


def task(bundle: Path, variant: str, pi: Pi) -> instructions.Task:
    read = manifest.read(bundle)
    return instructions.Task(bundle, read, read.variant(variant), pi)


@pytest.mark.release
def test_a_table_of_one_variant(
    pis: dict[str, Pi], bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small version of the test below: int8 uses dot products where the core has them."""
    files = ("--json", str(tmp_path / "i.json"), "--markdown", str(tmp_path / "i.md"))
    assert instructions.main(["--bundle", str(bundle_folder), "--variants", "quantized", *files]) == 0
    counts = json.loads((tmp_path / "i.json").read_text())["counts"]
    old, new = (row for row in counts if row["build"] == "quantized.pi5")
    assert (old["core"], new["core"]) == ("cortex-a72", "cortex-a76")
    assert new["instructions"] < 0.75 * old["instructions"]
    assert old["dot_products"] == 0
    assert 1 <= 16 * new["dot_products"] / new["macs"] < 1.1
    assert max(old["deviation"], new["deviation"]) < 0.01
    shown = f"| quantized.pi5 | 224 px | 0.11 | {old['instructions'] / 1e9:.3g} |"
    assert shown in (tmp_path / "i.md").read_text()
    assert "Cortex-A72 as in a Raspberry Pi 4 Model B Rev 1.4" in capsys.readouterr().out


@pytest.mark.release
def test_the_table_of_instructions(
    pis: dict[str, Pi], bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the Cortex-A76 int8 is done by dot products, on the Cortex-A72 there are none; fp32 is the same work
    on both."""
    files = ("--json", str(tmp_path / "i.json"), "--markdown", str(tmp_path / "i.md"))
    assert (
        instructions.main(
            [
                "--bundle",
                str(bundle_folder),
                "--variants",
                "baseline,quantized",
                "--every-build",
                "--inferences",
                "2",
                *files,
            ]
        )
        == 0
    )
    document = json.loads((tmp_path / "i.json").read_text())
    counts = {(row["core"], row["build"]): row for row in document["counts"]}
    old, new = counts["cortex-a72", "quantized"], counts["cortex-a76", "quantized"]
    assert new["instructions"] < 0.75 * old["instructions"]
    assert old["dot_products"] == 0
    # sixteen products each, and the edges of the blocks
    assert 1 <= 16 * new["dot_products"] / new["macs"] < 1.1
    for core in ("cortex-a72", "cortex-a76"):
        baseline, quantized = counts[core, "baseline"], counts[core, "quantized"]
        # four products in one instruction at best
        assert 1 / 4 < baseline["instructions"] / baseline["macs"] < 1
        assert baseline["dot_products"] == 0
        assert baseline["fewer"] == 1
        assert quantized["fewer"] == pytest.approx(baseline["instructions"] / quantized["instructions"])
        # the same products, signed
        assert counts[core, "quantized.pi5"]["dot_products"] == quantized["dot_products"]
        assert counts[core, "quantized.pi5"]["deviation"] < 0.01
    fp32 = [counts[core, "baseline"]["instructions"] for core in ("cortex-a72", "cortex-a76")]
    assert fp32[0] == pytest.approx(fp32[1], rel=1e-3)
    for row in document["counts"]:
        first, second = (sample["instructions"] for sample in row["samples"])
        assert first == pytest.approx(second, rel=1e-3)
    cells = [
        f"{old['instructions'] / 1e9:.3g}",
        f"{old['fewer']:.1f}x",
        f"{new['instructions'] / 1e9:.3g}",
        f"{new['fewer']:.1f}x",
    ]
    assert f"| quantized | 224 px | 0.11 | {' | '.join(cells)} |" in (tmp_path / "i.md").read_text()
    assert "Cortex-A72 as in a Raspberry Pi 4 Model B Rev 1.4" in capsys.readouterr().out
    # in another process
    again = instructions.counted(task(bundle_folder, "quantized", pis["cortex-a76"]), lambda _: None)
    assert again["instructions"] == pytest.approx(new["instructions"], rel=1e-3)
    assert again["dot_products"] == new["dot_products"]


ADDITIONS = """
import os
def mark(k):
    try:
        os.getpriority(0x7667, k)
    except OSError:
        pass
def work(n):
    for _ in range(n):
        pass
for turns in (0, 1000, 2000, 0):
    mark(turns)
    work(turns)
mark(9)
"""


@pytest.mark.release
def test_the_plugin_counts_between_marks(pis: dict[str, Pi]) -> None:
    said, counts = pis["cortex-a72"].count("-c", ADDITIONS + "print('done')")
    assert said == "done\n"
    nothing, once, twice, again = (count.instructions for count in counts)
    assert nothing == pytest.approx(again, rel=0.2)
    assert twice - nothing == pytest.approx(2 * (once - nothing), rel=0.1)
    assert 10_000 < once - nothing < 200_000  # tens of instructions a turn of an interpreter
    assert counts[0] == Count(nothing, 0)


@pytest.mark.release
def test_other_threads_are_not_counted(pis: dict[str, Pi]) -> None:
    beside = (
        "import threading\nthread = threading.Thread(target=work,"
        " args=(50_000,))\nthread.start()\nmark(10)\nthread.join()\nmark(11)"
    )
    _, counts = pis["cortex-a72"].count("-c", ADDITIONS + beside)
    once = counts[1].instructions - counts[0].instructions
    assert counts[-1].instructions < 5 * once  # fifty times as much was done meanwhile


@pytest.mark.release
def test_what_goes_wrong_on_the_board_is_one_sentence(
    pis: dict[str, Pi],
    bundle_copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pi = pis["cortex-a72"]
    with pytest.raises(EmulationError, match="Cortex-A72: the program ended with code 3: broken here"):
        pi.count("-c", "import sys; print('broken here', file=sys.stderr); sys.exit(3)")
    with pytest.raises(EmulationError, match="the program set 0 marks, expected at least 2"):
        pi.count("-c", "pass")
    rewrite(bundle_copy, "models/scaled.onnx", b"not an onnx file")
    table = tmp_path / "missing" / "table.md"
    wanted = ("--bundle", str(bundle_copy), "--variants", "scaled", "--cores", "cortex-a72")
    assert instructions.main([*wanted, "--json", str(tmp_path / "i.json")]) == 1
    assert (
        "✗ scaled on cortex-a72: Cortex-A72: the program ended with code 1: onnxruntime"
        in capsys.readouterr().out
    )
    monkeypatch.setattr(instructions, "run", lambda *_: json.loads((tmp_path / "i.json").read_text()))
    assert instructions.main([*wanted, "--markdown", str(table)]) == 2
    assert f"{table} cannot be written" in capsys.readouterr().err
    with pytest.raises(EmulationError, match="Cortex-A72: the program took longer than 1 s and was ended"):
        dataclasses.replace(pi, patience_s=1).run("-c", "import time; time.sleep(60)")


@pytest.mark.release
def test_children_are_started_on_the_board_too(pis: dict[str, Pi]) -> None:
    code = (
        "import platform, subprocess, sys; print(platform.machine(), sys.executable, sys.argv[1:],"
        " flush=True)"
    )
    program = f"{code}; subprocess.run([sys.executable, '-P', '-c', {code!r}, 'a b', '*'], check=True)"
    pi = pis["cortex-a76"]
    done = pi.run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"aarch64 {pi.python} []\naarch64 {pi.python} ['a b', '*']\n"


@pytest.mark.release
def test_nothing_of_this_machine_is_on_the_board(pis: dict[str, Pi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "export"))
    for name in ("torch", "vgg_export", "pytest"):
        assert f"No module named '{name}'" in pis["cortex-a72"].run("-c", f"import {name}").stderr
    listed = "[os.listdir('/sys/class/thermal'), os.listdir('/proc/device-tree')]"
    assert pis["cortex-a72"].run("-c", f"import os; print({listed})").stdout == "[[], ['model']]\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--cores", "cortex-a1"),
            "there is no core 'cortex-a1'; known are cortex-a53, cortex-a72, cortex-a76",
        ),
        (("--cores", ","), "there is no core ','"),
        (("--variants", "nope"), "there is no variant 'nope'"),
        (("--bundle", "nowhere"), "there is no bundle in"),
    ],
)
def test_unusable_input_is_one_sentence(
    arguments: tuple[str, str], sentence: str, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert instructions.main(["--bundle", str(bundle_folder), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def only(tmp_path: Path, *programs: str, **scripts: str) -> str:
    """A PATH with these programs of this machine, and others that are the given shell scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in programs:
        (folder / name).symlink_to(shutil.which(name) or "/nowhere")
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return str(folder)


def test_a_machine_that_cannot_emulate_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", only(tmp_path, apt_get=":", dpkg=":"))
    with pytest.raises(
        EmulationError,
        match=r"qemu-aarch64, gcc not found; on Debian: apt-get install qemu-user gcc libc6-dev$",
    ):
        emulated.prepare(tmp_path)
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="cannot be emulated here"):
        boards()
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="cannot be emulated here"):
        boards()


def test_an_emulator_without_plugins_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", only(tmp_path, apt_get=":", dpkg=":", gcc=":", qemu_aarch64="echo usage"))
    with pytest.raises(EmulationError, match="built without plugins"):
        emulated.prepare(tmp_path)


def test_what_cannot_be_fetched_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = "echo 'E: no such network' >&2; exit 100"
    emulator = f"echo {shlex.quote('version 7.2.22 -plugin')}"
    monkeypatch.setenv("PATH", only(tmp_path, apt_get=refusing, dpkg=":", gcc=":", qemu_aarch64=emulator))
    with pytest.raises(
        EmulationError,
        match=r"preparing the emulated board failed \(apt-get: E: no such network\); check the network",
    ):
        emulated.prepare(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.release
def test_what_was_fetched_is_fetched_once(pis: dict[str, Pi], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("fetched again")

    monkeypatch.setattr(emulated, "_do", refuse)
    assert emulated.prepare() == pis


@pytest.mark.release
def test_a_cache_folder_with_odd_characters(pis: dict[str, Pi], tmp_path: Path) -> None:
    """Spaces and commas reach a shell script and QEMU's options."""
    odd = tmp_path / "a, b"
    odd.mkdir()
    plugin = Path(shutil.copy(pis["cortex-a72"].plugin, odd / "count,1.so"))
    _, counts = Pi(BOARDS["cortex-a72"], pis["cortex-a72"].python, plugin).count("-c", ADDITIONS)
    assert len(counts) == 4
