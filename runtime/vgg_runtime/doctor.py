"""``compare.py --doctor``: what this machine and this bundle have and lack before anything is measured.

The machine's checks need the standard library alone, so that they also answer where the requirements cannot
be installed (a 32-bit system has no onnxruntime). Every file is read below ``root``, so that a test can lay
out another board.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import output
from .board import device
from .board.device import Device
from .errors import RuntimeInputError
from .measure import remedies
from .report import tables

SCHEMA = 1
OK, WARNING, FAILS, UNKNOWN = "ok", "warning", "fails", "unknown"
EXIT_OK, EXIT_FAILS, EXIT_INPUT = 0, 1, 2
OLDEST_PYTHON = (3, 11)
INSTALL = (
    "python3 -m venv venv && venv/bin/pip install -r runtime/requirements.txt, then venv/bin/python"
    " runtime/compare.py"
)
SYSTEM_64 = (
    "install the 64-bit Raspberry Pi OS (onnxruntime has no wheels for 32-bit ARM) and make the"
    " virtual environment anew"
)

# e_machine of the ELF header; onnxruntime has wheels for the first two.
_MACHINES = {183: "aarch64", 62: "x86-64", 40: "32-bit ARM", 3: "32-bit x86", 243: "RISC-V"}
_WITH_WHEELS = ("aarch64", "x86-64")

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the doctor's: ``mark`` is ok, warning, fails or unknown; ``remedy`` what to do."""

    check: str
    mark: str
    found: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        if self.mark in (FAILS, WARNING) and not self.remedy:
            raise ValueError(f"{self.check} {self.mark} without saying what to do")


def examine(folder: Path, threads: int, report: Report, root: Path = Path("/")) -> dict[str, Any]:
    """The doctor's document on the machine below ``root`` and the bundle in ``folder``; ``report`` is told
    what is being done."""
    board = device.describe(threads, root)
    checks = [*machine(board, root), *_bundle(folder, threads, board, report)]
    return {
        "schema": SCHEMA,
        "examined_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": board.to_json(),
        "bundle": str(folder),
        "checks": [dataclasses.asdict(check) for check in checks],
        "fails": sum(check.mark == FAILS for check in checks),
    }


def machine(board: Device, root: Path = Path("/")) -> list[Check]:
    """What can be said of the machine without its bundle."""
    return [
        system(board, root),
        python(sys.version_info[:3]),
        environment(Path(sys.prefix), Path(sys.base_prefix)),
        known_board(board),
        dot_product(board),
        governor(board),
        power(board),
        heat(board),
    ]


def _bundle(folder: Path, threads: int, board: Device, report: Report) -> list[Check]:
    try:
        from . import bundle_checks  # needs numpy and Pillow
    except ImportError as error:
        return [requirements(error)]
    return [
        Check("numpy, Pillow", OK, "can be imported"),
        *bundle_checks.examine(folder, threads, board, report),
    ]


def requirements(error: ImportError) -> Check:
    """A package that is not there, or whose shared libraries are not."""
    if isinstance(error, ModuleNotFoundError):
        found = (
            f"the package {error.name} is missing, so that nothing can be run and the bundle was not"
            " looked at"
        )
    else:
        # numpy puts a page of advice around the cause
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        found = f"{error.name or 'a package'} cannot be imported ({reason})"
    return Check("numpy, Pillow", FAILS, found, INSTALL)


def system(board: Device, root: Path = Path("/")) -> Check:
    """Whether this Python is a 64-bit program; a 64-bit kernel under a 32-bit system is no help."""
    name = "64-bit system"
    try:
        with (root / "proc/self/exe").open("rb") as file:
            # ELF: magic 0-3, class 4 (2: 64 bit), byte order 5 (1: little), e_machine 18-19
            header = file.read(20)
    except OSError:
        header = b""
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return Check(
            name,
            UNKNOWN,
            f"{root / 'proc/self/exe'} is no readable ELF program; uname -m should say aarch64 or x86_64",
        )
    number = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    kind = _MACHINES.get(number, f"ELF machine {number}")
    found = f"Python is a program for {kind}, on {board.os}"
    if header[4] != 2:
        return Check(name, FAILS, found + "; expected a 64-bit one", SYSTEM_64)
    if kind not in _WITH_WHEELS:
        return Check(
            name,
            WARNING,
            found,
            f"onnxruntime has wheels for {' and '.join(_WITH_WHEELS)}; build it from source for this machine",
        )
    return Check(name, OK, found)


def python(version: Sequence[int]) -> Check:
    """The launcher says the same in a sentence; a board's second Python may be looked at from outside."""
    found, least = (".".join(map(str, numbers)) for numbers in (version, OLDEST_PYTHON))
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return Check("Python", OK, found)
    return Check(
        "Python",
        FAILS,
        f"{found}; expected {least} or newer",
        "Raspberry Pi OS Bookworm has Python 3.11, Trixie 3.13",
    )


def environment(prefix: Path, base: Path) -> Check:
    """Whether Python runs in a virtual environment; the system's own refuses pip on Raspberry Pi OS (PEP
    668)."""
    name = "virtual environment"
    if prefix != base:
        return Check(name, OK, str(prefix))
    return Check(
        name,
        WARNING,
        f"none: this is the Python of the system in {base}, into which pip may not install (PEP 668)",
        INSTALL,
    )


def known_board(board: Device) -> Check:
    ram = "RAM unknown" if board.ram_bytes is None else f"{board.ram_bytes / 2**30:.1f} GiB RAM"
    found = f"{board.board}, {board.cpu or board.machine}, {board.cores} cores, {ram}"
    return Check("board", UNKNOWN if board.board == device.UNKNOWN_BOARD else OK, found)


def dot_product(board: Device) -> Check:
    """What decides whether int8 is faster than float."""
    name, known = "int8 instructions", device.has_dot_product(board.features)
    if known is None:
        return Check(name, UNKNOWN, "/proc/cpuinfo lists no features that are known here")
    if known:
        return Check(
            name, OK, ", ".join(feature for feature in device.DOT_PRODUCT if feature in board.features)
        )
    remedy = "for time take float variants with less arithmetic: compact-fp32, compact-scaled-fp32, 160 px"
    return Check(name, WARNING, remedies.missing_dot_product(board.features), remedy)


def governor(board: Device) -> Check:
    clock = "" if board.clock_mhz is None else f", {board.clock_mhz:.0f} MHz now"
    if board.governor is None:
        return Check("governor", UNKNOWN, f"this system does not say what chooses the clock{clock}")
    if remedies.is_slow(board.governor):
        return Check(
            "governor", WARNING, f"{board.governor}: the clock stays at its lowest{clock}", remedies.GOVERNOR
        )
    return Check("governor", OK, board.governor + clock)


def power(board: Device) -> Check:
    """What the firmware holds back: now is a failure, because no figure taken now is the board's."""
    held = board.throttled
    if held is None:
        return Check(
            "power", UNKNOWN, "no firmware says whether the board is held back; a Raspberry Pi's does"
        )
    if not held:
        return Check("power", OK, "not held back, now or since boot")
    now = [name for name in held if not name.endswith("since boot")]
    return Check("power", FAILS if now else WARNING, ", ".join(held), remedies.power_remedy(held))


def heat(board: Device) -> Check:
    if board.temperature_c is None:
        return Check("temperature", UNKNOWN, "no processor sensor")
    found = f"{board.temperature_c:.0f} °C"
    if board.temperature_c >= remedies.HOT_C:
        return Check(
            "temperature",
            WARNING,
            f"{found}; boards lower their clock from {remedies.HOT_C:.0f} °C on",
            remedies.COOLING,
        )
    return Check("temperature", OK, found)


def command(folder: Path, threads: int, json_path: Path | None, report: Report) -> int:
    """Examine, show it on standard output and write it. Exit codes: 0 nothing fails, 1 something does."""
    if json_path:
        output.check_writable(json_path)
    document = examine(folder, threads, report)
    report("")
    sys.stdout.write(tables.checks(document) + "\n")
    if json_path:
        output.write(json_path, json.dumps(document, indent=1, allow_nan=False))
    return EXIT_FAILS if document["fails"] else EXIT_OK


def main(arguments: Sequence[str] | None = None) -> int:
    """The doctor where ``compare.py`` cannot be imported because numpy or Pillow is missing."""
    parser = argparse.ArgumentParser(prog="compare.py", allow_abbrev=False)
    parser.add_argument("--doctor", action="store_true")
    parser.add_argument("--bundle", type=Path, default=Path())
    parser.add_argument("--json", type=Path)
    options, _ = parser.parse_known_args(arguments)
    try:
        return command(options.bundle, os.cpu_count() or 1, options.json, lambda line: None)
    except RuntimeInputError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_INPUT
