"""Describes the machine that figures are measured on. Every file is read below ``root``, so that a test can
describe another board."""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgg_runtime.result import Device

from . import limits

# onnxruntime picks its int8 kernels by these features.
_FEATURES = (
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
)

# Bits 0 to 3 of the Raspberry Pi's firmware say what happens now, bits 16 to 19 what has happened since boot.
_THROTTLE_BITS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
# From the slowest to the fastest.
_ARM_CORES = {
    "0xd04": "Cortex-A35",
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd46": "Cortex-A510",
    "0xd80": "Cortex-A520",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0e": "Cortex-A76AE",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd4b": "Cortex-A78C",
    "0xd47": "Cortex-A710",
    "0xd4d": "Cortex-A715",
    "0xd81": "Cortex-A720",
    "0xd44": "Cortex-X1",
    "0xd48": "Cortex-X2",
    "0xd4e": "Cortex-X3",
    "0xd82": "Cortex-X4",
}
# Sensors of the processor among those of graphics, disks and radios.
_SENSORS = re.compile(r"cpu|soc|pkg|package|core|cluster|bcm2835|imx_thermal|k10temp|zenpower", re.IGNORECASE)
_OTHER_SENSORS = re.compile(r"gpu|npu|vpu|batt|pmic|charger", re.IGNORECASE)
# A sensor that is switched off says -274 or a number without sense.
_PLAUSIBLE_C = (-40.0, 150.0)
UNKNOWN_BOARD = "unknown board"
_OWN_CHOICE = ("intel_pstate", "amd-pstate-epp")
SINCE_BOOT = " since boot"
# What 64-bit kernels call every ARM processor, as if it were a model.
_ANY_ARM = re.compile(r"(ARMv[0-9]+|AArch64) Processor\b", re.IGNORECASE)
_THROTTLE_FILES = "sys/devices/platform/soc*/soc*:firmware/get_throttled"


def describe(threads: int, root: Path = Path("/")) -> Device:
    """The machine this runs on."""
    cpuinfo = _text(root / "proc/cpuinfo")
    flags = set((_first(r"^(?:flags|Features)\s*:[ \t]*(.*)$", cpuinfo) or "").split())
    board = (
        _text(root / "proc/device-tree/model").strip("\0 \n")
        or _first(r"^Model\s*:[ \t]*(.*)$", cpuinfo)
        or _text(root / "sys/devices/virtual/dmi/id/product_name").strip()
        or UNKNOWN_BOARD
    )
    memory = _first(r"^MemTotal:\s*([0-9]{1,15}) kB", _text(root / "proc/meminfo"))
    return Device(
        board=board,
        machine=platform.machine(),
        cpu=_processor(cpuinfo),
        features=tuple(f for f in _FEATURES if f in flags),
        cores=len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or os.cpu_count() or 1,
        threads=threads,
        ram_bytes=_least(
            int(memory) * 1024 if memory else None,
            limits.memory_bytes(root),
            limits.process_memory_bytes(root),
        ),
        os=_first(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release")) or platform.platform(),
        python=platform.python_version(),
        onnxruntime=_installed("onnxruntime"),
        **state(root),
    )


def state(root: Path = Path("/")) -> dict[str, Any]:
    """The fields of a ``Device`` that change while it works."""
    return {
        "temperature_c": temperature_c(root),
        "clock_mhz": clock_mhz(root),
        "throttled": throttled(root),
        "governor": governor(root),
        "available_bytes": available_bytes(root),
    }


def temperature_c(root: Path = Path("/")) -> float | None:
    """Temperature of the hottest processor sensor, in degrees Celsius; None without a sensor. Boards with
    several kinds of core have a sensor for each."""
    zones = ((zone / "type", zone / "temp") for zone in _found(root, "sys/class/thermal/thermal_zone*"))
    chips = (
        (chip / "name", value)
        for chip in _found(root, "sys/class/hwmon/hwmon*")
        for value in _found(chip, "temp*_input")
    )
    found = [
        int(degrees) / 1000
        for kind, value in (*zones, *chips)
        if _of_processor(_text(kind)) and re.fullmatch(r"-?[0-9]{1,15}", degrees := _text(value).strip())
    ]
    low, high = _PLAUSIBLE_C
    return max((degrees for degrees in found if low <= degrees <= high), default=None)


def _of_processor(kind: str) -> bool:
    """Whether a sensor of this name measures the processor."""
    return bool(_SENSORS.search(kind)) and not _OTHER_SENSORS.search(kind)


def clock_mhz(root: Path = Path("/")) -> float | None:
    """Clock of the fastest core now, in MHz; None where it is unknown."""
    paths = _found(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [limits.whole(_text(path)) for path in paths]
    return max((kilohertz / 1000 for kilohertz in values if kilohertz is not None), default=None)


def throttled(root: Path = Path("/")) -> tuple[str, ...] | None:
    """The limits that a Raspberry Pi's firmware sets now or has set since boot; None where it cannot be
    asked."""
    values = [_text(path).strip() for path in _found(root, _THROTTLE_FILES)]
    bits = next((int(v, 16) for v in values if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,16}", v)), None)
    if bits is None:
        return None
    now = [name for k, name in enumerate(_THROTTLE_BITS) if bits >> k & 1]
    before = [
        f"{name}{SINCE_BOOT}"
        for k, name in enumerate(_THROTTLE_BITS)
        if bits >> (16 + k) & 1 and name not in now
    ]
    return (*now, *before)


def governor(root: Path = Path("/")) -> str | None:
    """The governors that choose the clock, each once, e.g. "performance, powersave" where some cores have
    another one; None where they are unknown.

    Where the driver chooses the clock itself, its name follows: "powersave" of intel_pstate and of
    amd-pstate-epp goes up to the highest clock, while that of a Raspberry Pi stays at the lowest.
    """
    found = []
    for folder in _found(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        name, driver = (_text(folder / f"scaling_{kind}").strip() for kind in ("governor", "driver"))
        if name:
            found.append(f"{name} ({driver})" if driver in _OWN_CHOICE else name)
    return ", ".join(dict.fromkeys(found)) or None


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes of memory that programs can still get without swapping; None where they are unknown."""
    kilobytes = _first(r"^MemAvailable:\s*([0-9]{1,15}) kB", _text(root / "proc/meminfo"))
    return _least(
        int(kilobytes) * 1024 if kilobytes else None,
        limits.free_memory_bytes(root),
        limits.free_process_memory_bytes(root),
    )


def _least(*values: int | None) -> int | None:
    """The least of the known values; None where none is known."""
    return min((value for value in values if value is not None), default=None)


def usable_cores() -> int:
    """Cores this process may run on, no more than a quota of time is worth."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        cores = os.cpu_count() or 1
    return limits.threads(cores)


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Peak resident memory of this process (VmHWM), in bytes; None where /proc is missing.

    ``ru_maxrss`` would not do: it inherits the parent's peak.
    """
    kilobytes = _first(r"^VmHWM:\s*([0-9]{1,15}) kB", _text(status))
    return int(kilobytes) * 1024 if kilobytes else None


def _processor(cpuinfo: str) -> str | None:
    """The name of the processor: the model's, unless that says no more than that it is an ARM."""
    named, core = _first(r"^model name\s*:[ \t]*(.*)$", cpuinfo), _arm_core(cpuinfo)
    return core if core and (not named or _ANY_ARM.match(named)) else named


def _arm_core(cpuinfo: str) -> str | None:
    """The name of the fastest kind of core: where there are several, work goes there."""
    parts = set(re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE))
    known = [name for part, name in _ARM_CORES.items() if part in parts]
    unknown = [f"ARM part {part}" for part in sorted(parts - _ARM_CORES.keys())]
    # which of them is faster cannot be told
    return " and ".join([*known[-1:], *unknown]) or None


def _installed(package: str) -> str | None:
    import importlib.metadata  # 3 MB that a variant's own process can do without

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _found(root: Path, pattern: str) -> list[Path]:
    """The files of a pattern below ``root``, by name; none where the folders may not be listed."""
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1).strip() if match else None


# Instructions that multiply and add four 8-bit integers at a time; without them int8 is hardly faster than
# float.
DOT_PRODUCT = ("asimddp", "i8mm", "avx512_vnni", "avx_vnni", "amx_int8")


def has_dot_product(features: Sequence[str]) -> bool | None:
    """Whether the processor has instructions for int8; None when its features are unknown."""
    return any(name in features for name in DOT_PRODUCT) if features else None
