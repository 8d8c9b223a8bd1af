"""What the system lets this process have where that is less than the machine has: control groups of both
versions (a container, a service with a limit), and the limits of the process itself (``ulimit``).

A group's limit holds together with those of the groups that it is in, so all of them are looked at. What
cannot be read says nothing.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS, OWN_GROUPS, OWN_MOUNTS = "sys/fs/cgroup", "proc/self/cgroup", "proc/self/mountinfo"
OWN_LIMITS, OWN_STATUS = "proc/self/limits", "proc/self/status"
# The limits that the kernel enforces, and what counts against each.
_PROCESS_LIMITS = (("Max address space", "VmSize"), ("Max data size", "VmData"))
_UNLIMITED = 1 << 60  # version 1 writes a number near 2^63 where there is no limit
# The files of a group, by the version. Above memory.high a process is slowed down until it hardly moves.
_MEMORY_LIMITS = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_MEMORY_USED = {1: "memory.usage_in_bytes", 2: "memory.current"}
_QUOTA = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}


def memory_bytes(root: Path = Path("/")) -> int | None:
    """The memory that the control groups allow this process, in bytes; None without a limit."""
    return min((limit for _, _, limit in _limited(root)), default=None)


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """What is left of that memory. Pages of files that the system can drop count as free, as in MemAvailable.
    None without a limit."""
    left = []
    for folder, version, limit in _limited(root):
        used = _number(folder / _MEMORY_USED[version])
        if used is not None:
            left.append(max(0, limit - used + _droppable(folder)))
    return min(left, default=None)


def _limited(root: Path) -> Iterator[tuple[Path, int, int]]:
    """The groups that limit memory: folder, version, and bytes."""
    for folder, version in _folders(root, "memory"):
        found = (_number(folder / name) for name in _MEMORY_LIMITS[version])
        limits = [limit for limit in found if limit is not None and limit < _UNLIMITED]
        if limits:
            yield folder, version, min(limits)


def process_memory_bytes(root: Path = Path("/")) -> int | None:
    """The memory that this process may ask for (``ulimit -v`` and ``-d``), in bytes; None without a limit."""
    return min((limit for limit, _ in _process_limits(root)), default=None)


def free_process_memory_bytes(root: Path = Path("/")) -> int | None:
    """What is left of that memory to this process, and about so much to one that it starts; None without a
    limit."""
    return min((max(0, limit - used) for limit, used in _process_limits(root)), default=None)


def _process_limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limits that are set, each with the bytes that count against it now."""
    limits, status = _text(root / OWN_LIMITS), _text(root / OWN_STATUS)
    for name, counted in _PROCESS_LIMITS:
        limit = re.search(rf"^{name}\s+([0-9]{{1,20}})\s", limits, re.MULTILINE)
        used = re.search(rf"^{counted}:\s*([0-9]{{1,15}}) kB", status, re.MULTILINE)
        if limit and int(limit[1]) < _UNLIMITED:
            yield int(limit[1]), int(used[1]) * 1024 if used else 0


def groups_are_told(root: Path = Path("/")) -> bool:
    """Whether the system says in which control groups this process is."""
    return bool(_text(root / OWN_GROUPS))


def cores(root: Path = Path("/")) -> float | None:
    """The cores' worth of time that the control groups allow, e.g. 0.5; None without a limit."""
    found = []
    for folder, version in _folders(root, "cpu"):
        words = [word for name in _QUOTA[version] for word in _text(folder / name).split()]
        quota, period = (whole(word) for word in words) if len(words) == 2 else (None, None)
        if quota is not None and period:
            found.append(quota / period)
    return min(found, default=None)


def threads(available: int, root: Path = Path("/")) -> int:
    """As many threads as there is time for: on half a core two threads take twice as long as one."""
    quota = cores(root)
    return available if quota is None else max(1, min(available, math.floor(quota + 0.05)))


def whole(text: str) -> int | None:
    """The number that a file of the system says; None for anything else. ``isdigit`` also takes "²", and
    ``int`` refuses thousands of digits."""
    return int(text) if re.fullmatch("[0-9]{1,20}", text.strip()) else None


def _folders(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of this process's group and of those that it is in, with the version of each."""
    for line in _text(root / OWN_GROUPS).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, places = 2, [root / GROUPS]
        elif controller in controllers.split(","):
            version, places = 1, _usual(root, controllers, controller)
        else:
            continue
        inside = PurePosixPath(path)
        above = [part for part in (inside, *inside.parents) if ".." not in part.parts]
        for base in dict.fromkeys((*places, *_mounted(root, version, controller))):
            for part in above:
                folder = base / str(part).lstrip("/")
                if _is_folder(folder):
                    yield folder, version


def _usual(root: Path, controllers: str, controller: str) -> list[Path]:
    """Where version 1 has a controller: under its own name, or under those that share it, in any order."""
    try:
        listed = os.listdir(root / GROUPS)  # noqa: PTH208
    except OSError:
        listed = []
    sharing = sorted(name for name in listed if controller in name.split(","))
    return [root / GROUPS / name for name in (controller, controllers, *sharing)]


def _mounted(root: Path, version: int, controller: str) -> Iterator[Path]:
    """Where else the groups are mounted: ``unified`` beside version 1, or a place that somebody chose."""
    for line in _text(root / OWN_MOUNTS).splitlines():
        mount, _, kind = (words.split() for words in line.partition(" - "))
        if len(mount) < 5 or len(kind) < 3:
            continue
        second = kind[0] == "cgroup2"
        first = kind[0] == "cgroup" and controller in kind[2].split(",")
        if (second and version == 2) or (first and version == 1):
            yield root / mount[4].lstrip("/")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # it lies in one that may not be searched
        return False


def _droppable(folder: Path) -> int:
    """The bytes of pages of files that nobody has used lately. Version 1 counts those of the groups inside
    apart, under ``total_``, as part of the usage; version 2 always counts them."""
    found = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    return whole(found.get("total_inactive_file", found.get("inactive_file", ""))) or 0


def _number(path: Path) -> int | None:
    words = _text(path).split()
    return whole(words[0]) if words else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
