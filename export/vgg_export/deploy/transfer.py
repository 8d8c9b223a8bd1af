"""Brings files to a folder on the board: only those that are not there yet, checked there, then placed all at
once."""

import dataclasses
import logging
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vgg_export.core.errors import BoardError, DeployError
from vgg_export.core.progress import Progress, Task

from . import on_board
from .ssh import Connection, disk_full, last_line

log = logging.getLogger(__name__)

MEGABYTE = 1_000_000
BLOCK_BYTES = 1 << 18
RSYNC = (
    "rsync",
    "--recursive",
    "--copy-links",
    "--ignore-times",
    "--partial",
    "--protect-args",
    "--info=progress2",
    "--no-human-readable",
)


@dataclasses.dataclass(frozen=True)
class Local:
    """A file on this computer that is to be ``path`` below the folder on the board."""

    path: str
    source: Path
    sha256: str
    bytes: int

    def to_json(self) -> tuple[str, int, str]:
        return self.path, self.bytes, self.sha256


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder on the board, by its absolute path there, and how to get at it. ``rsync``: both sides have
    it."""

    connection: Connection
    python: str
    root: str
    rsync: bool

    @property
    def name(self) -> str:
        return self.connection.options.name

    def ask(self, what: str, /, **request: Any) -> list[dict[str, Any]]:
        """What ``on_board`` answers."""
        return self.connection.ask(self.python, {"do": what, "root": self.root, **request})


class Megabytes:
    """Counts bytes into a task whose steps are megabytes."""

    def __init__(self, task: Task) -> None:
        self._task, self._bytes, self._shown = task, 0, 0

    def add(self, count: int) -> None:
        self.reach(self._bytes + count)

    def reach(self, count: int) -> None:
        self._bytes = max(count, self._bytes)
        if steps := self._bytes // MEGABYTE - self._shown:
            self._shown += steps
            self._task.advance(steps)


def megabytes(count: int) -> int:
    """The steps of a task for so many bytes."""
    return count // MEGABYTE


def bring(
    place: Place, files: Sequence[Local], keep: Sequence[str] | None, spare_bytes: int, progress: Progress
) -> tuple[Place, list[Local]]:
    """Make ``files`` be on the board, the last one last.

    Args:
        keep: all paths that may stay there of those that were ever brought; None: nothing is removed, and
            nothing remembered.
        spare_bytes: what else will need room there.

    Returns:
        The place with its absolute path, and the files that were copied.

    Raises:
        BoardError: the folder holds something else, or there is no room.
        DeployError: a file arrived damaged, twice.
    """
    place, states, free = _look(place, files, progress)
    missing = [file for file in files if states[file.path] != "here"]
    needed = sum(file.bytes for file in missing if states[file.path] == "absent")
    if needed + spare_bytes > free:
        raise BoardError(
            f"{place.name} has {free / 1e6:.0f} MB free in {place.root},"
            f" {(needed + spare_bytes) / 1e6:.0f} MB are needed;"
            " free some space there, name another disk with --path, or copy fewer --variants"
        )
    place.ask("prepare")
    absent = [file for file in missing if states[file.path] == "absent"]
    for attempt in (1, 2):
        _copy(place, absent, progress)
        differing = _place(place, missing, keep, progress)
        if not differing:
            return place, missing
        absent = [file for file in missing if file.path in differing]
        log.warning("%s arrived damaged%s", ", ".join(differing), "; copying again" if attempt == 1 else "")
    raise DeployError(
        f"{differing[0]} differs on {place.name} from what was sent, twice (sha256); its disk or the"
        " network damages data: try another"
        " SD card or a cable, then run the same command again"
    )


def _look(place: Place, files: Sequence[Local], progress: Progress) -> tuple[Place, dict[str, str], int]:
    """The absolute path, the state of each file, and the free bytes."""
    sizes = {file.path: file.bytes for file in files}
    with progress.task(f"looking what {place.name} has, MB", megabytes(sum(sizes.values()))) as task:
        counted = Megabytes(task)

        def on_answer(answer: dict[str, Any]) -> None:
            if "path" in answer:
                counted.add(sizes[answer["path"]])

        request = {"do": "look", "root": place.root, "files": [file.to_json() for file in files]}
        first, *states, last = place.connection.ask(place.python, request, on_answer=on_answer)
    if not first["usable"]:
        raise BoardError(
            f"{first['root']} on {place.name} is not empty and holds no bundle; name another folder with"
            " --path"
        )
    place = dataclasses.replace(place, root=first["root"])
    return place, {answer["path"]: answer["state"] for answer in states}, last["free_bytes"]


def _copy(place: Place, files: Sequence[Local], progress: Progress) -> None:
    if not files:
        return
    total = sum(file.bytes for file in files)
    with progress.task(f"copying to {place.name}, MB", megabytes(total)) as task:
        counted = Megabytes(task)
        if not (place.rsync and _rsync(place, files, counted)):
            _stream(place, files, counted)


def _stream(place: Place, files: Sequence[Local], counted: Megabytes) -> None:
    """One file after the other through ssh."""

    def feed() -> Iterator[bytes]:
        for file in files:
            with file.source.open("rb") as source:
                while block := source.read(BLOCK_BYTES):
                    yield block
                    counted.add(len(block))

    request = {"do": "receive", "root": place.root, "files": [file.to_json() for file in files]}
    place.connection.ask(place.python, request, feed())


def _rsync(place: Place, files: Sequence[Local], counted: Megabytes) -> bool:
    """With rsync, which goes on in the middle of a file; False when it did not work and the plain way should
    be tried.

    Raises:
        BoardError: the disk there is full.
        DeployError: the connection broke.
    """
    tree = place.connection.folder / "tree"  # of links, so that one call brings files from several places
    shutil.rmtree(tree, ignore_errors=True)
    for file in files:
        link = tree / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.source.resolve())
    host = place.connection.options.host
    user, at, name = host.rpartition("@")
    host = f"{user}{at}[{name}]" if ":" in name else host
    shell = shlex.join(place.connection.command())
    command = [*RSYNC, "-e", shell, "--", f"{tree}/", f"{host}:{place.root}/{on_board.OWN}/incoming/"]
    complaints = place.connection.folder / "rsync"
    with complaints.open("wb") as file_of_complaints:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file_of_complaints
        )
        try:
            _follow(running, counted.reach)
        except BaseException:
            running.terminate()
            running.wait()
            raise
    if running.wait() == 0:
        return True
    said = complaints.read_text(encoding="utf-8", errors="replace")
    if "No space left" in said or "quota exceeded" in said:
        raise disk_full(place.name)
    if not place.connection.alive():
        raise DeployError(f"the connection to {place.name} broke; the same command goes on from there")
    log.warning("rsync did not work (%s); copying without it", last_line(said))
    return False


def _follow(running: subprocess.Popen[bytes], on_bytes: Callable[[int], None]) -> None:
    """Read the progress that rsync prints: lines that end in a carriage return and begin with the bytes so
    far."""
    assert running.stdout
    rest = b""
    while block := running.stdout.read1(4096):  # type: ignore[attr-defined]
        *lines, rest = re.split(rb"[\r\n]", rest + block)
        for line in lines:
            if found := re.match(rb"\s*(\d+)\s+\d+%", line):
                on_bytes(int(found[1]))


def _place(place: Place, files: Sequence[Local], keep: Sequence[str] | None, progress: Progress) -> list[str]:
    """Check there and put in place; the paths that differ."""
    sizes = {file.path: file.bytes for file in files}
    with progress.task(f"checking on {place.name}, MB", megabytes(sum(sizes.values()))) as task:
        counted = Megabytes(task)

        def on_answer(answer: dict[str, Any]) -> None:
            if "checked" in answer:
                counted.add(sizes[answer["checked"]])

        request = {
            "do": "place",
            "root": place.root,
            "files": [file.to_json() for file in files],
            "keep": keep,
        }
        answers = place.connection.ask(place.python, request, on_answer=on_answer)
    differing: list[str] = answers[-1]["differing"]
    return differing
