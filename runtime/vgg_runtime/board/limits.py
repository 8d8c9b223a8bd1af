"""What the system lets this process have where that is less than the machine has: control groups of both
versions (a container, a service with a limit), and the limits of the process itself (``ulimit``).

A group's limit holds together with those of the groups that it is in, so all of them are looked at.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS, OWN_GROUPS = "sys/fs/cgroup", "proc/self/cgroup"
OWN_LIMITS, OWN_STATUS = "proc/self/limits", "proc/self/status"
# The limits that the kernel enforces, and what counts against each.
_PROCESS_LIMITS = (("Max address space", "VmSize"), ("Max data size", "VmData"))
_UNLIMITED = 1 << 60  # version 1 writes a number near 2^63 where there is no limit


def memory_bytes(root: Path = Path("/")) -> int | None:
    """The memory that the control groups allow this process, in bytes; None without a limit."""
    limits = [
        found
        for folder, names in _folders(root, "memory", ("memory.max",), ("memory.limit_in_bytes",))
        if (found := _number(folder / names[0])) is not None and found < _UNLIMITED
    ]
    return min(limits, default=None)


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """What is left of that memory. Pages of files that the system can drop count as free, as in MemAvailable.
    None without a limit."""
    second, first = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    left = []
    for folder, (limit_name, used_name) in _folders(root, "memory", second, first):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED:
            left.append(max(0, limit - used + _droppable(folder)))
    return min(left, default=None)


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
        limit = re.search(rf"^{name}\s+([0-9]+)\s", limits, re.MULTILINE)
        used = re.search(rf"^{counted}:\s*([0-9]+) kB", status, re.MULTILINE)
        if limit and int(limit[1]) < _UNLIMITED:
            yield int(limit[1]), int(used[1]) * 1024 if used else 0


def cores(root: Path = Path("/")) -> float | None:
    """The cores' worth of time that the control groups allow, e.g. 0.5; None without a limit."""
    found = []
    for folder, names in _folders(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        words = [word for name in names for word in _text(folder / name).split()]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def threads(available: int, root: Path = Path("/")) -> int:
    """As many threads as there is time for: on half a core two threads take twice as long as one."""
    quota = cores(root)
    return available if quota is None else max(1, min(available, math.floor(quota + 0.05)))


def _folders(
    root: Path, controller: str, second: tuple[str, ...], first: tuple[str, ...]
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The folders of this process's group and of those that it is in, with the names of the files there: of
    version 2 or of version 1."""
    for line in _text(root / OWN_GROUPS).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, names = root / GROUPS, second
        elif controller in controllers.split(","):
            base, names = _mounted(root, controllers, controller), first
        else:
            continue
        for inside in (PurePosixPath(path), *PurePosixPath(path).parents):
            folder = base / str(inside).lstrip("/")
            if ".." not in inside.parts and folder.is_dir():
                yield folder, names


def _mounted(root: Path, controllers: str, controller: str) -> Path:
    """Where version 1 has a controller: under its own name, or under those that share it."""
    own = root / GROUPS / controller
    return own if own.is_dir() else root / GROUPS / controllers


def _droppable(folder: Path) -> int:
    """The bytes of pages of files that nobody has used lately."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    words = _text(path).split()
    return int(words[0]) if words and words[0].isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
