"""The doctor, on boards laid out as files that it reads, on real and damaged bundles, and as a user runs
it."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from boards import PI5_CPUINFO
from conftest import ROOT, command_environment, reseal
from launch import QUICK, compare
from rows import a_result, a_row

from vgg_export.data import splits
from vgg_runtime.board import device
from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.doctor import bundle_checks, diagnosis, finding, machine, probe
from vgg_runtime.doctor.finding import FAILS, OK, UNKNOWN, WARNING
from vgg_runtime.measure import remedies
from vgg_runtime.report import tables
from vgg_runtime.result import BuildUsed, MeasuredDevice, Row
from vgg_runtime.text import in_bytes

PI4_CPUINFO = PI5_CPUINFO.replace(" asimddp", "").replace("0xd0b", "0xd08")
ZERO2_CPUINFO = PI5_CPUINFO.replace(" asimddp", "").replace("0xd0b", "0xd03")
AARCH64, ARM = 183, 40
BOARD_FILES = {
    "proc/cpuinfo": PI5_CPUINFO,
    "proc/self/cgroup": "0::/\n",
    "proc/meminfo": "MemTotal:  8245760 kB\nMemFree:  100000 kB\nMemAvailable:  7340032 kB\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "cpufreq-dt\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
}
GOVERNOR_FILE = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
DRIVER_FILE = "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"
THROTTLED_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"
TEMPERATURE_FILE = "sys/class/thermal/thermal_zone0/temp"


def lay_out(
    root: Path, changes: dict[str, str | None] | None = None, bits: int = 64, kind: int = AARCH64
) -> Path:
    """A Raspberry Pi 5 with all its sensors below ``root``, with changes; None removes a file."""
    for name, text in (BOARD_FILES | (changes or {})).items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    header = bytearray(Path(sys.executable).read_bytes()[:64])
    header[4], header[5], header[18:20] = bits // 32, 1, kind.to_bytes(2, "little")
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/exe").write_bytes(header)
    return root


def checks(root: Path) -> dict[str, finding.Check]:
    """The machine's checks by name; those of this very Python process are left out."""
    found = {check.check: check for check in machine.machine(device.describe(4, root), root)}
    return {name: check for name, check in found.items() if name not in ("Python", "virtual environment")}


def test_a_pi_5_that_lacks_nothing(tmp_path: Path) -> None:
    found = checks(lay_out(tmp_path))
    assert {name: check.mark for name, check in found.items()} == dict.fromkeys(
        ("64-bit system", "board", "limits", "int8 instructions", "governor", "power", "temperature"), OK
    )
    assert (
        found["64-bit system"].found == "Python is a program for aarch64, on Debian GNU/Linux 12 (bookworm)"
    )
    assert found["board"].found == "Raspberry Pi 5 Model B Rev 1.0, Cortex-A76, 2 cores, 7.9 GiB RAM"
    assert found["int8 instructions"].found == "asimddp"
    assert found["governor"].found == "ondemand, 2400 MHz now"
    assert found["temperature"].found == "51 °C"


@pytest.mark.parametrize(
    ("cpuinfo", "model", "core"),
    [
        (PI4_CPUINFO, "Raspberry Pi 4 Model B Rev 1.4", "Cortex-A72"),
        (ZERO2_CPUINFO, "Raspberry Pi Zero 2 W Rev 1.0", "Cortex-A53"),
    ],
)
def test_a_core_without_dot_product_is_a_warning(cpuinfo: str, model: str, core: str, tmp_path: Path) -> None:
    found = checks(lay_out(tmp_path, {"proc/cpuinfo": cpuinfo, "proc/device-tree/model": model + "\0"}))
    assert found["board"].found.startswith(f"{model}, {core}, ")
    check = found["int8 instructions"]
    assert check.mark == WARNING
    assert (
        check.found
        == "this core has no dot product (asimddp is missing in /proc/cpuinfo): int8 saves memory here, and"
        " little time or none"
    )
    assert "compact-fp32" in (check.remedy or "")
    assert [name for name, other in found.items() if other.mark != OK] == ["int8 instructions"]


def test_an_x86_without_vnni_names_what_is_missing(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Old\nflags\t\t: sse2 avx2 fma\n"}
    )
    assert (
        "(avx512_vnni and avx_vnni are missing in /proc/cpuinfo)" in checks(root)["int8 instructions"].found
    )


def test_a_32_bit_system_fails(tmp_path: Path) -> None:
    check = checks(lay_out(tmp_path, bits=32, kind=ARM))["64-bit system"]
    assert (check.mark, check.found) == (
        FAILS,
        "Python is a program for 32-bit ARM, on Debian GNU/Linux 12 (bookworm); expected a 64-bit one",
    )
    assert "64-bit Raspberry Pi OS" in (check.remedy or "")


def test_a_machine_without_wheels_is_a_warning(tmp_path: Path) -> None:
    check = checks(lay_out(tmp_path, kind=243))["64-bit system"]
    assert (check.mark, "RISC-V" in check.found) == (WARNING, True)


def test_what_cannot_be_read_is_unknown_and_nothing_fails(tmp_path: Path) -> None:
    assert {check.mark for check in checks(tmp_path).values()} == {UNKNOWN}
    lay_out(tmp_path / "rubbish")
    (tmp_path / "rubbish/proc/self/exe").write_text("#!/bin/sh and more than twenty bytes\n")
    assert checks(tmp_path / "rubbish")["64-bit system"].mark == UNKNOWN


@pytest.mark.parametrize(
    ("bits", "mark", "words", "remedies"),
    [
        ("0x50005", FAILS, "under-voltage, throttled", [remedies.SUPPLY]),
        ("0x50000", WARNING, "under-voltage since boot, throttled since boot", [remedies.SUPPLY]),
        (
            "0xe0008",
            FAILS,
            "soft temperature limit, clock capped since boot, throttled since boot",
            [remedies.COOLING],
        ),
        ("0x40004", FAILS, "throttled", [remedies.COOLING]),
        ("0x80009", FAILS, "under-voltage, soft temperature limit", [remedies.SUPPLY, remedies.COOLING]),
    ],
)
def test_what_the_firmware_holds_back(
    bits: str, mark: str, words: str, remedies: list[str], tmp_path: Path
) -> None:
    check = checks(lay_out(tmp_path, {THROTTLED_FILE: bits}))["power"]
    assert (check.mark, check.found, check.remedy) == (mark, words, "; ".join(remedies))


@pytest.mark.parametrize(("celsius", "mark"), [("79900", OK), ("80000", WARNING)])
def test_a_hot_board_is_a_warning(celsius: str, mark: str, tmp_path: Path) -> None:
    check = checks(lay_out(tmp_path, {TEMPERATURE_FILE: celsius}))["temperature"]
    assert (check.mark, check.remedy) == (mark, None if mark == OK else remedies.COOLING)


def test_a_governor_that_stays_at_the_lowest_clock_is_a_warning(tmp_path: Path) -> None:
    check = checks(lay_out(tmp_path / "pi", {GOVERNOR_FILE: "powersave\n"}))["governor"]
    assert (check.mark, check.found, check.remedy) == (
        WARNING,
        "powersave: the clock stays at its lowest, 2400 MHz now",
        remedies.GOVERNOR,
    )
    own = checks(lay_out(tmp_path / "pc", {GOVERNOR_FILE: "powersave\n", DRIVER_FILE: "intel_pstate\n"}))[
        "governor"
    ]
    assert (own.mark, own.found) == (OK, "powersave (intel_pstate), 2400 MHz now")


def test_a_governor_that_slows_only_some_cores_is_a_warning_too(tmp_path: Path) -> None:
    other = GOVERNOR_FILE.replace("cpu0", "cpu4")
    check = checks(lay_out(tmp_path, {GOVERNOR_FILE: "performance\n", other: "powersave\n"}))["governor"]
    assert (check.mark, check.found, check.remedy) == (
        WARNING,
        "performance, powersave: the clock of some cores stays at its lowest, 2400 MHz now",
        remedies.GOVERNOR,
    )


def test_python_and_its_environment(tmp_path: Path) -> None:
    assert machine.python((3, 11, 0)).mark == machine.python((3, 14, 1)).mark == OK
    old = machine.python((3, 9, 2))
    assert (old.mark, old.found) == (FAILS, "3.9.2; expected 3.11 or newer")
    assert machine.environment(tmp_path / "venv", tmp_path).mark == OK
    none = machine.environment(tmp_path, tmp_path)
    assert (none.mark, none.remedy) == (WARNING, finding.INSTALL)


def test_a_failing_check_must_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="and no remedy"):
        finding.Check("power", FAILS, "bad")


# The bundle.


def examined(folder: Path, root: Path | None = None) -> dict[str, dict[str, Any]]:
    document = diagnosis.examine(folder, 1, lambda line: None, root or Path("/")).to_json()
    assert document["fails"] == sum(check["mark"] == FAILS for check in document["checks"])
    return {check["check"]: check for check in document["checks"]}


def with_memory(root: Path, available_kb: int) -> Path:
    return lay_out(root, {"proc/meminfo": f"MemTotal:  524288 kB\nMemAvailable:  {available_kb} kB\n"})


def test_a_whole_bundle_on_this_machine(bundle_folder: Path) -> None:
    found = examined(bundle_folder)
    listed = manifest.read(bundle_folder).all_files()
    assert found["hashes"]["found"].startswith(f"{len(listed)} files, ")
    assert found["onnxruntime"]["mark"] == found["hashes"]["mark"] == found["int8 of quantized"]["mark"] == OK
    assert found["int8 of quantized"]["found"].startswith("11 layers run as int8; its process took ")
    assert "int8 of baseline" not in found
    assert found["memory"]["mark"] == UNKNOWN  # nobody has measured this bundle
    assert "the bundle does not record what its variants need" in found["memory"]["found"]


def test_recorded_peaks_are_compared_with_what_is_available(bundle_copy: Path, tmp_path: Path) -> None:
    """The report is a real one, written by the bundle's own runtime as ``vgg-export all`` does."""
    report = bundle_copy / manifest.REPORT_NAME
    assert (
        compare("--html", report, "--json", tmp_path / "r.json", *QUICK, bundle=bundle_copy).returncode == 0
    )
    result = json.loads((tmp_path / "r.json").read_text())
    peaks = {row["variant"]: row["peak_rss_bytes"] for row in result["variants"]}
    assert bundle_checks.recorded_peaks(Bundle.read(bundle_copy)) == bundle_checks.Recorded(
        peaks, result["device"]["cpu"]
    )

    most = max(peaks, key=lambda name: peaks[name])
    roomy = examined(bundle_copy, with_memory(tmp_path / "roomy", 500_000))
    assert roomy["memory"]["mark"] == OK
    assert roomy["memory"]["found"].startswith(
        f"512 MB available; the largest need is {most} ({in_bytes(peaks[most])}, its peak on "
    )

    between = (max(peaks.values()) + sorted(peaks.values())[-2]) // 2 // 1024
    tight = examined(bundle_copy, with_memory(tmp_path / "tight", between))
    assert tight["memory"]["mark"] == WARNING
    assert f"too little for {most} (" in tight["memory"]["found"]
    assert tight["memory"]["remedy"].endswith(
        "--variants " + ",".join(name for name in peaks if name != most)
    )

    full = examined(bundle_copy, with_memory(tmp_path / "full", 1000))
    assert (full["memory"]["mark"], full["int8 of quantized"]["mark"]) == (FAILS, UNKNOWN)
    assert full["int8 of quantized"]["found"].startswith(
        "not tried: 1 MB are available, too little for quantized ("
    )


def test_a_report_of_another_bundle_records_nothing(bundle_copy: Path) -> None:
    rows = [{"variant": "baseline", "size_bytes": 1, "peak_rss_bytes": 5}]
    page = '<script type="application/json" id="result">%s</script>'
    for text in (
        page % json.dumps({"variants": rows, "device": {"cpu": "x"}}),
        page % "{",
        "nothing",
        page % "[]",
    ):
        (bundle_copy / manifest.REPORT_NAME).write_text(text)
        assert bundle_checks.recorded_peaks(Bundle.read(bundle_copy)).peaks == {}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_a_report_that_has_no_end_records_nothing(kind: str, bundle_copy: Path) -> None:
    report = bundle_copy / manifest.REPORT_NAME
    if kind == "pipe":
        os.mkfifo(report)
    elif kind == "device":
        report.symlink_to("/dev/zero")
    elif kind == "folder":
        report.mkdir()
    else:
        with report.open("wb") as file:
            file.truncate(1 << 40)  # sparse
    assert bundle_checks.recorded_peaks(Bundle.read(bundle_copy)) == bundle_checks.Recorded({}, "unknown")


def test_without_a_record_the_file_is_the_least(bundle_folder: Path, tmp_path: Path) -> None:
    baseline = manifest.read(bundle_folder).variant("baseline")
    found = examined(bundle_folder, with_memory(tmp_path, baseline.build.bytes // 1024 - 1))["memory"]
    assert found["mark"] == WARNING
    assert "the size of its file" in found["found"]
    assert found["remedy"].endswith("--variants quantized,scaled")
    assert (
        examined(bundle_folder, lay_out(tmp_path / "unknown", {"proc/meminfo": None}))["memory"]["mark"]
        == UNKNOWN
    )


def test_every_file_that_differs_is_named_and_a_damaged_model_is_not_run(bundle_copy: Path) -> None:
    model = bundle_copy / "models/quantized.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    (bundle_copy / "expected.npz").unlink()
    found = examined(bundle_copy)
    assert found["hashes"]["mark"] == FAILS
    assert (
        "expected.npz cannot be read (No such file or directory); 1 more: models/quantized.onnx"
        in found["hashes"]["found"]
    )
    assert found["hashes"]["remedy"] == "copy the bundle again"
    assert found["int8 of quantized"]["found"] == "not tried: models/quantized.onnx is not as it was written"


def test_no_bundle_is_a_failing_line_and_the_board_is_still_looked_at(tmp_path: Path) -> None:
    found = examined(tmp_path, lay_out(tmp_path / "root"))
    assert found["bundle"]["mark"] == FAILS
    assert found["bundle"]["found"] == f"there is no bundle in {tmp_path} (no manifest.json)"
    assert found["bundle"]["remedy"] == "make one with 'vgg-export all', or name its folder with --bundle"
    assert found["board"]["mark"] == found["onnxruntime"]["mark"] == OK


def test_int8_that_onnxruntime_does_not_fuse_fails(bundle_copy: Path) -> None:
    """A setting of onnxruntime leaves the QDQ pairs of the same file as they are."""
    variants = json.loads((bundle_copy / "manifest.json").read_text())["variants"]
    variants[1]["builds"][0]["sessions"]["fast"]["config"] = {"session.disable_quant_qdq": "1"}
    reseal(bundle_copy, variants=variants)
    found = examined(bundle_copy)["int8 of quantized"]
    assert found["mark"] == FAILS
    assert found["found"].startswith("8 Conv, 3 Gemm run in float, expected none; 0 layers run as int8")
    assert "install the onnxruntime that the bundle was made with" in found["remedy"]


def test_an_int8_model_that_cannot_be_loaded_fails(bundle_copy: Path) -> None:
    from damage import rewrite

    rewrite(bundle_copy, "models/quantized.onnx", b"not an onnx file")
    found = examined(bundle_copy)["int8 of quantized"]
    assert (found["mark"], found["found"].startswith("cannot be run: ")) == (FAILS, True)


@pytest.mark.parametrize(("quantized", "floats"), [(["Conv", "MaxPool"], 3), (["Gemm"], 8)])
def test_layers_that_were_kept_in_float_are_meant_to_be(
    quantized: list[str], floats: int, bundle_folder: Path, splits: splits.Splits, tmp_path: Path
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from vgg_calibration.reader import ImageReader
    from vgg_runtime.bundle.input_spec import for_input

    path = tmp_path / "partly.onnx"
    reader = ImageReader([i.path for i in splits.fit[:2]], for_input(224), "input", lambda: None)
    quantize_static(
        bundle_folder / "models/baseline.onnx",
        path,
        reader,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=quantized,
        calibrate_method=CalibrationMethod.MinMax,
    )
    assert probe.float_layers(path) == floats
    executed = probe.executed_ops(path, manifest.SessionSettings(), 1, (3, 224, 224))
    kept = bundle_checks.judged("int8", executed, floats, None, "1")
    assert (kept.mark, kept.found) == (OK, f"{11 - floats} layers run as int8, {floats} in float as intended")
    assert bundle_checks.judged("int8", executed, floats - 1, None, "1").mark == FAILS


def test_a_relu_that_was_not_folded_fails() -> None:
    assert bundle_checks.judged("int8", {"QLinearConv": 8, "Relu": 1}, 0, None, "1").found.startswith(
        "1 Relu run in float, expected none"
    )


@pytest.mark.parametrize("name", ["baseline", "quantized", "scaled"])
def test_the_nodes_of_a_file_are_those_that_onnx_reads(name: str, bundle_folder: Path) -> None:
    path = bundle_folder / f"models/{name}.onnx"
    expected = [(node.op_type, list(node.input), list(node.output)) for node in onnx.load(path).graph.node]
    assert list(probe.nodes(path)) == expected
    assert probe.float_layers(path) == (0 if name == "quantized" else 11)


@pytest.mark.parametrize("rubbish", [b"\xff" * 30, b"\x3f", b"\x3a\xff"])
def test_what_is_no_onnx_file_is_said_to_be_none(rubbish: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(rubbish)
    with pytest.raises(ValueError, match="not an ONNX file"):
        list(probe.nodes(tmp_path / "bad.onnx"))


# onnxruntime in a process of its own.

# A real illegal instruction, as a wheel built for another core has it: ud2 on x86-64, udf on ARM.
ILLEGAL = """
import ctypes, mmap, platform
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\\x0f\\x0b" if platform.machine() == "x86_64" else b"\\0\\0\\0\\0")
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""


def test_an_onnxruntime_that_dies_at_import_is_a_failing_line(bundle_copy: Path) -> None:
    (bundle_copy / "runtime/onnxruntime.py").write_text(ILLEGAL)
    done = compare("--doctor", bundle=bundle_copy)
    assert done.returncode == 1
    assert (
        "cannot be imported: onnxruntime uses an instruction this CPU lacks (1.21.0 does on a Pi 4)"
        in done.stdout
    )
    assert "→ venv/bin/pip install --upgrade 'onnxruntime!=1.21.0'" in done.stdout
    assert "not tried: onnxruntime cannot be imported" in done.stdout


def test_an_onnxruntime_that_is_broken_or_missing_is_a_failing_line(bundle_copy: Path) -> None:
    (bundle_copy / "runtime/onnxruntime.py").write_text(
        "raise ImportError('libgomp.so.1: cannot open shared object file')"
    )
    done = compare("--doctor", bundle=bundle_copy)
    assert done.returncode == 1
    assert "cannot be imported: libgomp.so.1: cannot open shared object file" in done.stdout
    missing = bundle_checks.runtime(dataclasses.replace(device.describe(1), onnxruntime=None))
    assert (missing.mark, missing.found, missing.remedy) == (
        FAILS,
        "the package is not installed",
        finding.INSTALL,
    )


def test_a_child_that_does_not_end_is_ended() -> None:
    assert bundle_checks.ask({}, 0.01) == ({}, "it did not end within 0 seconds")


# As a user runs it.


def test_on_this_machine_the_table_and_the_json_say_the_same(bundle_folder: Path, tmp_path: Path) -> None:
    done = compare("--doctor", "--json", tmp_path / "d.json", bundle=bundle_folder)
    assert done.returncode == 0, done.stdout
    document = json.loads((tmp_path / "d.json").read_text())
    assert set(document) == {"schema", "examined_at", "device", "bundle", "checks", "fails"}
    assert (document["schema"], document["fails"]) == (1, 0)
    assert document["device"]["cpu"] == device.describe(1).cpu
    lines = done.stdout.splitlines()
    for check in document["checks"]:
        assert set(check) == {"check", "mark", "found", "remedy"}
        assert any(line.startswith(f"{check['mark']:<8} {check['check']}") for line in lines)
    assert f"None of {len(document['checks'])} checks fails" in lines[-1]
    marks = {check["check"]: check["mark"] for check in document["checks"]}
    names = (
        "64-bit system",
        "Python",
        "virtual environment",
        "board",
        "limits",
        "int8 instructions",
        "governor",
        "power",
        "temperature",
    )
    ran = {"numpy, Pillow", "onnxruntime", "telemetry", "hashes", "memory", "int8 of quantized"}
    assert set(marks) == {*names, *ran}
    assert (marks["64-bit system"], marks["Python"], marks["onnxruntime"], marks["int8 of quantized"]) == (
        OK,
    ) * 4


def test_a_damaged_bundle_and_none_at_all_are_code_1(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "labels.txt").write_text("others\n")
    done = compare("--doctor", bundle=bundle_copy)
    assert done.returncode == 1
    assert "labels.txt differs from the manifest" in done.stdout
    assert "→ copy the bundle again" in done.stdout
    assert "1 of 15 checks fail" in done.stdout
    assert done.stderr == ""  # no progress where no terminal overwrites it
    done = compare("--doctor", "--bundle", tmp_path / "nowhere", bundle=bundle_copy)
    assert done.returncode == 1
    assert "there is no bundle in" in done.stdout


def test_telemetry_is_looked_at() -> None:
    assert bundle_checks.telemetry("1").mark == OK
    set_by_hand = bundle_checks.telemetry("0")
    assert set_by_hand.mark == WARNING
    assert set_by_hand.found == "onnxruntime's may be on: ORT_DISABLE_TELEMETRY is '0' in this environment"
    assert bundle_checks.telemetry(None).mark == WARNING


def test_without_the_requirements_it_still_looks_at_the_board(bundle_folder: Path, tmp_path: Path) -> None:
    """As on a 32-bit system, where none of them can be installed; -S hides this environment's packages."""
    command = [
        sys.executable,
        "-S",
        "-E",
        str(bundle_folder / "runtime/compare.py"),
        "--doctor",
        "--json",
        str(tmp_path / "d.json"),
    ]
    environment = os.environ | {"COLUMNS": "1000"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "the package numpy is missing, so nothing can be run" in done.stdout
    assert "Traceback" not in done.stderr
    marks = {
        check["check"]: check["mark"] for check in json.loads((tmp_path / "d.json").read_text())["checks"]
    }
    assert (marks["64-bit system"], marks["virtual environment"], marks["numpy, Pillow"]) == (
        OK,
        WARNING,
        FAILS,
    )


def test_a_package_whose_libraries_are_missing_is_a_failing_line(bundle_copy: Path) -> None:
    """The error is like numpy's: instructions around the cause."""
    cause = "libopenblas.so.0: cannot open shared object file"
    broken = (
        f"try:\n    raise OSError({cause!r})\n"
        "except OSError as error:\n    raise ImportError('PLEASE READ\\nTHIS', name='numpy') from error\n"
    )
    (bundle_copy / "runtime/numpy.py").write_text(broken)
    done = compare("--doctor", bundle=bundle_copy)
    assert done.returncode == 1
    assert f"numpy cannot be imported ({cause})" in done.stdout
    done = compare(*QUICK, bundle=bundle_copy)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: a package cannot be imported; compare.py --doctor says which and why\n",
    )


WAYS = {
    "full": ('"$@" >/dev/full', 1, "Error: what is printed cannot be written (No space left on device)\n"),
    "closed": ('"$@" >&-', 1, "Error: what is printed cannot be written (Bad file descriptor)\n"),
    "nobody reads": ('("$@"; echo $? >&3) 3>&2 | true; exit 2', 2, "2\n"),
    "few characters": ('PYTHONIOENCODING=ascii "$@"', 1, ""),
}


@pytest.mark.parametrize("packages", ["there", "missing"])
@pytest.mark.parametrize("way", WAYS)
def test_wherever_it_prints_to_there_is_no_traceback_and_the_document_is_written(
    way: str, packages: str, tmp_path: Path
) -> None:
    script, code, said = WAYS[way]
    launcher = str(ROOT / "runtime/compare.py")
    python = [sys.executable, *(["-S"] if packages == "missing" else [])]
    document = tmp_path / "d.json"
    asked = [launcher, "--doctor", "--bundle", str(tmp_path), "--json", str(document)]
    done = subprocess.run(
        ["bash", "-c", script, "bash", *python, *asked],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert (done.returncode, done.stderr) == (code, said)
    assert json.loads(document.read_text())["fails"] == 1
    if way == "few characters":
        assert "\n                              \\u2192 " in done.stdout
        assert done.stdout.isascii()


def test_without_the_requirements_an_unusable_option_is_a_sentence() -> None:
    command = [sys.executable, "-S", "-E", str(ROOT / "runtime/compare.py"), "--doctor", "--json", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: argument --json: expected a name, found an empty text; ")


@pytest.mark.parametrize(
    "arguments",
    [("--image", "a.jpg"), ("--serve",), ("--sure",), ("--variants", "baseline"), ("--html", "r.html")],
)
def test_what_does_not_go_with_it_is_code_2(
    arguments: tuple[str, ...], bundle_folder: Path, tmp_path: Path
) -> None:
    done = compare("--doctor", *arguments, bundle=bundle_folder, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{arguments[0]} does not go with --doctor" in done.stderr
    done = compare("--doctor", "--json", "/nowhere/at/all.json", bundle=bundle_folder)
    assert (done.returncode, done.stdout) == (2, "")


# Why a row disappoints.


def row(
    variant: str, precision: str, p50_ms: float | None, macs: float = 19.6e9, input_px: int = 224, **more: Any
) -> Row:
    size = round(macs / 100) * (1 if precision == "int8" else 4)
    given = {"precision": precision, "p50_ms": p50_ms, "macs": round(macs), "input_px": input_px}
    given |= {"parameters": round(macs / 100), "size_bytes": size, "peak_rss_bytes": 10**8}
    return a_row(variant, **given | more)


def explained(root: Path, rows: list[Row]) -> list[str]:
    board = MeasuredDevice(**vars(device.describe(4, root)), target="")
    return remedies.explanations(a_result(*rows, device=board))


SLOW_INT8 = [
    row("baseline", "fp32", 2000.0),
    row("quantized", "int8", 1800.0),
    row("compact", "int8", 600.0, 7.3e9),
    row("compact-fp32", "fp32", 660.0, 7.3e9),
    row("pruned-quantized", "int8", 1700.0, 18.2e9),  # its float form is not in the table
]


def test_int8_without_dot_product_is_explained(tmp_path: Path) -> None:
    (found,) = explained(lay_out(tmp_path, {"proc/cpuinfo": PI4_CPUINFO}), SLOW_INT8)
    assert found == (
        "int8 is little faster than the same network in float (quantized 1.1x, compact 1.1x): this core"
        " has no dot product"
        " (asimddp is missing in /proc/cpuinfo): int8 saves memory here, and little time"
        " or none; the fastest here is compact (224 px, 600.0 ms)"
    )
    slower = [
        dataclasses.replace(row, p50_ms=700.0) if row.variant == "compact" else row for row in SLOW_INT8
    ]
    (found,) = explained(tmp_path, slower)  # never to one that was measured as slower
    assert found.endswith("; for time use compact-fp32 (224 px, 660.0 ms, 2.7x less arithmetic)")
    for px, fewer in ((224, 160), (32, 23)):  # of the network's own size
        slow = [dataclasses.replace(row, input_px=px, p50_ms=2000.0) for row in SLOW_INT8[:2]]
        (found,) = explained(tmp_path, slow)
        assert found.endswith(f"for time use fewer pixels ({fewer} px) or factorised layers (compact-fp32)")


def test_where_int8_pays_nothing_is_explained(tmp_path: Path) -> None:
    lay_out(tmp_path)
    assert explained(tmp_path, [row("baseline", "fp32", 150.0), row("quantized", "int8", 100.0)]) == []
    assert len(explained(tmp_path, [row("baseline", "fp32", 149.0), row("quantized", "int8", 100.0)])) == 1
    of_other_cores = row("quantized", "int8", 149.0, build=BuildUsed(slower_kernels=True))
    # it says nothing of this core
    assert explained(tmp_path, [row("baseline", "fp32", 149.0), of_other_cores]) == []


def test_slow_int8_with_dot_product_or_unknown_features(tmp_path: Path) -> None:
    (found,) = explained(lay_out(tmp_path / "pi5"), SLOW_INT8)
    assert "though this core has instructions for it; compare.py --doctor shows" in found
    (found,) = explained(lay_out(tmp_path / "bare", {"proc/cpuinfo": None}), SLOW_INT8)
    assert found.endswith("it is not known whether this core has instructions for it")


# As measured for the built-in road signs on two cores with VNNI, other work beside: the smallest two are too
# small for int8 to pay.
TINY_INT8 = [
    row("baseline", "fp32", 33.8, 1.24e9),
    row("quantized", "int8", 12.7, 1.24e9),
    row("compact-scaled", "int8", 1.7, 0.17e9, 160, size_bytes=500_000),
    row("compact-scaled-fp32", "fp32", 1.8, 0.17e9, 160, size_bytes=1_400_000),
]
SMALL_INT8 = [
    row("compact", "int8", 6.9, 0.34e9, size_bytes=600_000),
    row("compact-fp32", "fp32", 9.9, 0.34e9, size_bytes=1_800_000),
]


def test_int8_of_a_tiny_network_is_no_reason_for_suspicion(tmp_path: Path) -> None:
    assert explained(lay_out(tmp_path), TINY_INT8) == [
        "int8 saves little or no time here (compact-scaled 1.1x): the network takes only 1.8 ms in float,"
        " so there is little to gain;"
        " its file takes 0.5 MB instead of 1.4 MB"
    ]
    assert explained(tmp_path, [*TINY_INT8, *SMALL_INT8]) == [
        "int8 saves little or no time here (compact-scaled 1.1x, compact 1.4x): the networks take at most"
        " 9.9 ms in float, so there is"
        " little to gain; their files take 1.1 MB instead of 3.2 MB"
    ]
    # it pays all the same
    assert explained(tmp_path, [row("baseline", "fp32", 9.0), row("quantized", "int8", 6.0)]) == []
    slower = [row("baseline", "fp32", 2.0), row("quantized", "int8", 4.0)]
    assert explained(tmp_path, slower)[0].startswith("int8 saves little or no time here (quantized 0.5x)")


@pytest.mark.parametrize(("float_ms", "tiny"), [(remedies.TINY_MS - 0.1, True), (remedies.TINY_MS, False)])
def test_where_tiny_ends(float_ms: float, tiny: bool, tmp_path: Path) -> None:
    (found,) = explained(
        lay_out(tmp_path), [row("baseline", "fp32", float_ms), row("quantized", "int8", float_ms / 1.2)]
    )
    assert ("there is little to gain" in found, "compare.py --doctor" in found) == (tiny, not tiny)


def test_the_tiny_and_the_others_are_told_apart(tmp_path: Path) -> None:
    rows = [*SLOW_INT8[:2], *TINY_INT8[2:]]
    suspicion, tiny = explained(lay_out(tmp_path / "pi5"), rows)
    assert suspicion == (
        "int8 is little faster than the same network in float (quantized 1.1x), though this core has"
        " instructions for it;"
        " compare.py --doctor shows whether its layers run as int8"
    )
    assert tiny.startswith(
        "int8 saves little or no time here (compact-scaled 1.1x): the network takes only 1.8 ms"
    )
    # without the instructions, or where they are not known, as ever
    for name, cpuinfo in (("pi4", PI4_CPUINFO), ("bare", None)):
        (found,) = explained(lay_out(tmp_path / name, {"proc/cpuinfo": cpuinfo}), rows)
        assert found.startswith(
            "int8 is little faster than the same network in float (quantized 1.1x, compact-scaled 1.1x)"
        )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {THROTTLED_FILE: "0x50005"},
            "the board was held back (under-voltage, throttled), so these times are not its own: use the"
            " board's own",
        ),
        ({THROTTLED_FILE: "0x50000"}, "since boot, perhaps not in this measurement), so these times"),
        (
            {TEMPERATURE_FILE: "84000"},
            "the processor is at 84 °C, where boards lower their clock: give it a heat sink",
        ),
        ({GOVERNOR_FILE: "powersave"}, "the governor powersave keeps the clock at its lowest (2400 MHz)"),
        (
            {"proc/meminfo": "MemAvailable:  100000 kB\n"},
            "memory was nearly full (baseline 100 MB, of 102 MB available), which costs time",
        ),
    ],
)
def test_a_board_that_slows_every_row_is_explained(
    changes: dict[str, str | None], expected: str, tmp_path: Path
) -> None:
    (found,) = explained(lay_out(tmp_path, changes), [row("baseline", "fp32", 150.0)])
    assert expected in found


def test_what_did_not_fit_is_explained_with_what_did(tmp_path: Path) -> None:
    rows = [
        row("baseline", "fp32", None, error="did not fit: out of memory"),
        row("scaled", "fp32", 9.0, input_px=160),
    ]
    assert explained(lay_out(tmp_path), rows) == [
        "baseline needs more memory than there is: close other programs, or use a smaller one (scaled took"
        " 100 MB)"
    ]
    assert explained(tmp_path, [row("baseline", "fp32", None, error="self-check failed")]) == []


def test_explanations_are_printed_below_the_table() -> None:
    assert tables.explanations(a_result(explanations=("one", "two"))) == "→ one.\n→ two."
    assert tables.explanations(a_result()) == ""


def test_the_launcher_and_its_doctor_need_no_requirements_at_import() -> None:
    """The launcher falls back to the doctor, which must not import the missing packages."""
    code = "import sys; sys.modules['numpy'] = sys.modules['PIL'] = None; import vgg_runtime.doctor.diagnosis"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "runtime")}, check=True)


def test_where_no_process_can_be_started_the_rest_is_still_looked_at(bundle_folder: Path) -> None:
    """Only so many files may be open as Python itself needs to start."""
    launcher = str(bundle_folder / "runtime/compare.py")
    script = 'ulimit -n 6; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, launcher, "--doctor"],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COLUMNS": "1000"},
    )
    assert (done.returncode, done.stderr) == (1, "")
    found = "it could not be tried, no process can be started: this program may not open so many files\n"
    assert f"fails    onnxruntime          {found}" in done.stdout
    assert "→ allow more, e.g. with ulimit -n 1024\n" in done.stdout
    assert "ok       hashes " in done.stdout
    assert "1 of 15 checks fail" in done.stdout


@pytest.mark.parametrize(
    ("number", "found", "remedy"),
    [
        ("EMFILE", "this program may not open so many files", "allow more, e.g. with ulimit -n 1024"),
        ("ENOMEM", "the system has too little memory left", "close other programs"),
        ("EAGAIN", "Resource temporarily unavailable", "close other programs"),
    ],
)
def test_a_process_that_cannot_be_started_says_nothing_of_a_model(
    number: str, found: str, remedy: str
) -> None:
    error = OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
    check = bundle_checks.unstarted("int8 of x", error)
    assert check.found == f"it could not be tried, no process can be started: {found}"
    assert (check.mark, check.remedy) == (FAILS, remedy)


NOWHERE_TO_WRITE = """
import resource
from vgg_runtime.doctor import bundle_checks
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
request = {"model": "none.onnx", "session": {}, "threads": 1, "shape": [3, 8, 8]}
events, death = bundle_checks.ask(request, 60)
check = bundle_checks.unjudged("int8 of x", events, death, "models/x.onnx")
print(check.mark, check.found, check.remedy, sep="\\n")
"""


def test_without_a_folder_to_write_the_model_is_not_blamed() -> None:
    """No file may be written anywhere, as with a full card."""
    done = subprocess.run(
        [sys.executable, "-c", NOWHERE_TO_WRITE], env=command_environment(), capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        UNKNOWN,
        "onnxruntime's profile needs a temporary folder that can be written, and there is none"
        " (a full card, or a system that is read-only)",
        "name one: TMPDIR=FOLDER python compare.py --doctor",
    ], done.stderr


def test_a_model_that_cannot_be_run_is_blamed() -> None:
    check = bundle_checks.unjudged("int8 of x", {"error": {"message": "odd"}}, None, "models/x.onnx")
    assert (check.mark, check.found) == (FAILS, "cannot be run: odd")
    assert check.remedy == "leave it out with --variants, or copy models/x.onnx again"
