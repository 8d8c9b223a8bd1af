"""The doctor's checks of the machine. They need only the standard library, so that they also work where the
requirements cannot be installed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from vgg_runtime.board import device, limits
from vgg_runtime.measure import remedies
from vgg_runtime.result import Device

from .finding import FAILS, INSTALL, OK, UNKNOWN, WARNING, Check

OLDEST_PYTHON = (3, 11)


SYSTEM_64 = (
    "install the 64-bit Raspberry Pi OS (onnxruntime has no wheels for 32-bit ARM) and make the"
    " virtual environment again"
)


# e_machine of the ELF header; onnxruntime has wheels for the first two.
_MACHINES = {183: "aarch64", 62: "x86-64", 40: "32-bit ARM", 3: "32-bit x86", 243: "RISC-V"}


_WITH_WHEELS = ("aarch64", "x86-64")


def machine(board: Device, root: Path = Path("/")) -> list[Check]:
    """All checks of the machine, which need no bundle."""
    return [
        system(board, root),
        python(sys.version_info[:3]),
        environment(Path(sys.prefix), Path(sys.base_prefix)),
        known_board(board),
        allowed(root),
        dot_product(board),
        governor(board),
        power(board),
        heat(board),
    ]


def system(board: Device, root: Path = Path("/")) -> Check:
    """Whether this Python is a 64-bit program. A 64-bit kernel under a 32-bit system does not suffice."""
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
    """Whether Python is new enough. The launcher refuses an older one, but a caller may ask about another
    Python."""
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
    """Whether Python runs in a virtual environment. On Raspberry Pi OS pip refuses to install into the
    system's Python (PEP 668)."""
    name = "virtual environment"
    if prefix != base:
        return Check(name, OK, str(prefix))
    return Check(
        name,
        WARNING,
        f"none: this is the system's Python in {base}, into which pip may not install (PEP 668)",
        INSTALL,
    )


def known_board(board: Device) -> Check:
    ram = "RAM unknown" if board.ram_bytes is None else f"{board.ram_bytes / 2**30:.1f} GiB RAM"
    found = f"{board.board}, {board.cpu or board.machine}, {board.cores} cores, {ram}"
    return Check("board", UNKNOWN if board.board == device.UNKNOWN_BOARD else OK, found)


def allowed(root: Path) -> Check:
    """Whether this process may have all of the machine: a container or a service may not."""
    name, memory, cores = "limits", limits.memory_bytes(root), limits.cores(root)
    own = limits.process_memory_bytes(root)
    if own is None and not limits.groups_are_told(root):
        return Check(
            name, UNKNOWN, f"{root / limits.OWN_GROUPS} does not say in which control groups this is"
        )
    told = [f"{memory / 1e6:.0f} MB of memory"] if memory is not None else []
    told += [f"{cores:.2g} cores' worth of time"] if cores is not None else []
    sources = [f"a control group allows {' and '.join(told)}"] if told else []
    sources += [f"ulimit allows {own / 1e6:.0f} MB of address space or data"] if own is not None else []
    if not sources:
        return Check(name, OK, "no limit of memory or time is set for this process")
    found = "; ".join(sources)
    if cores is not None and cores < 1:
        remedy = "more than one thread would only be slower; raise the quota (CPUQuota=, --cpus) for speed"
        return Check(name, WARNING, found, remedy)
    return Check(name, OK, found)


def dot_product(board: Device) -> Check:
    """Whether the core has the instructions that make int8 faster than float."""
    name, known = "int8 instructions", device.has_dot_product(board.features)
    if known is None:
        return Check(name, UNKNOWN, "/proc/cpuinfo lists no known features")
    if known:
        return Check(
            name, OK, ", ".join(feature for feature in device.DOT_PRODUCT if feature in board.features)
        )
    remedy = (
        "compare.py says which variant is the fastest here; it can be a float one with less arithmetic"
        " (compact-fp32, compact-scaled-fp32)"
    )
    return Check(name, WARNING, remedies.missing_dot_product(board.features), remedy)


def governor(board: Device) -> Check:
    clock = "" if board.clock_mhz is None else f", {board.clock_mhz:.0f} MHz now"
    if board.governor is None:
        return Check("governor", UNKNOWN, f"this system does not say which governor sets the clock{clock}")
    if whose := remedies.slowed(board.governor):
        found = f"{board.governor}: {whose} stays at its lowest{clock}"
        return Check("governor", WARNING, found, remedies.GOVERNOR)
    return Check("governor", OK, board.governor + clock)


def power(board: Device) -> Check:
    """Whether the firmware holds the board back. If it does so now the check fails, because figures taken now
    are not those of the board."""
    held = board.throttled
    if held is None:
        return Check(
            "power",
            UNKNOWN,
            "this board has no firmware that says whether it is held back (a Raspberry Pi has)",
        )
    if not held:
        return Check("power", OK, "not held back, now or since boot")
    now = [name for name in held if not name.endswith("since boot")]
    return Check("power", FAILS if now else WARNING, ", ".join(held), remedies.power_remedy(held))


def heat(board: Device) -> Check:
    if board.temperature_c is None:
        return Check("temperature", UNKNOWN, "there is no temperature sensor of the processor")
    found = f"{board.temperature_c:.0f} °C"
    if board.temperature_c >= remedies.HOT_C:
        return Check(
            "temperature",
            WARNING,
            f"{found}; boards lower their clock from {remedies.HOT_C:.0f} °C on",
            remedies.COOLING,
        )
    return Check("temperature", OK, found)
