"""What a process holds, read from /proc over a long run: memory, open descriptors and threads."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

FEWEST = 20  # readings in which growth can be seen


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a process holds at one moment: resident memory in bytes, open descriptors, threads."""

    rss_bytes: int
    descriptors: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Growth:
    """What a process held. Of the memory in bytes: the mean over the second tenth of the run (the first warms
    up), the mean over the last tenth, and the maximum. Of descriptors and threads: the median of the second
    and of the last tenth, because both come and go with the work."""

    start_bytes: int
    end_bytes: int
    most_bytes: int
    descriptors: tuple[int, int]
    threads: tuple[int, int]

    @property
    def grown_bytes(self) -> int:
        return self.end_bytes - self.start_bytes

    def __str__(self) -> str:
        mb = [f"{value / 1e6:.1f}" for value in (self.start_bytes, self.end_bytes, self.most_bytes)]
        return (
            f"{mb[0]} MB after the first tenth, {mb[1]} at the end, at most {mb[2]}; grew by"
            f" {self.grown_bytes / 1e6:+.1f} MB; descriptors {self.descriptors[0]} and"
            f" {self.descriptors[1]}, threads {self.threads[0]} and {self.threads[1]}"
        )


def reading(pid: int) -> Reading:
    """What a process holds now.

    Raises:
        ProcessLookupError: it has ended.
    """
    process = Path(f"/proc/{pid}")
    status = (process / "status").read_text()
    found = re.search(r"^VmRSS:\s*(\d+) kB", status, re.MULTILINE)
    threads = re.search(r"^Threads:\s*(\d+)", status, re.MULTILINE)
    if not found or not threads:
        raise ProcessLookupError(f"process {pid} has ended")
    return Reading(int(found[1]) * 1024, len(list((process / "fd").iterdir())), int(threads[1]))


def child_of(pid: int) -> int:
    """The first child process of a process.

    Raises:
        IndexError: it has none now.
    """
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def growth(readings: Sequence[Reading]) -> Growth:
    """How what a process held grew over ``readings``, evenly spaced.

    Raises:
        ValueError: there are fewer than twenty.
    """
    if len(readings) < FEWEST:
        raise ValueError(
            f"{len(readings)} readings are too few to see growth; expected at least {FEWEST}: let it run for"
            " longer"
        )
    tenth = len(readings) // 10
    early, late = readings[tenth : 2 * tenth], readings[-tenth:]
    return Growth(
        int(fmean(one.rss_bytes for one in early)),
        int(fmean(one.rss_bytes for one in late)),
        max(one.rss_bytes for one in readings),
        (int(median(one.descriptors for one in early)), int(median(one.descriptors for one in late))),
        (int(median(one.threads for one in early)), int(median(one.threads for one in late))),
    )


def verdict(code: int, found: Mapping[str, Growth], limit_bytes: float, pool: int = 0) -> str | None:
    """What went wrong, or None. ``code``: the exit code of compare.py; ``found``: how each process grew;
    ``pool``: so many threads are none too many, since a pool starts each one when it is first needed."""
    if code:
        return f"compare.py ended with code {code}"
    grown = []
    for name, one in found.items():
        if one.grown_bytes > limit_bytes:
            grown.append(f"{name} grew by {one.grown_bytes / 1e6:.1f} MB")
        for what, (before, after), known in (
            ("descriptors", one.descriptors, 0),
            ("threads", one.threads, pool),
        ):
            if after > max(before, known):
                grown.append(f"{name} holds {after} {what}, {before} after the first tenth")
    return "; ".join(grown) or None
