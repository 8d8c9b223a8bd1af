"""Copies files to a folder on the board. Only those that are not there yet are sent; the board checks them,
then puts all of them in place at once."""

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
    """A file on this computer, and the ``path`` that it gets below the folder on the board."""

    path: str
    source: Path
    sha256: str
    bytes: int

    def to_json(self) -> tuple[str, int, str]:
        return self.path, self.bytes, self.sha256


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder on the board and the connection to it.

    ``root`` is its path, as it was given or absolute, ``python`` the board's interpreter, and ``rsync``
    whether the board has rsync.
    """

    connection: Connection
    python: str
    root: str
    rsync: bool

    @property
    def name(self) -> str:
        return self.connection.options.name

    def ask(self, what: str, /, **request: Any) -> list[dict[str, Any]]:
        """Send a request about this folder to ``on_board``; returns its answers."""
        return self.connection.ask(self.python, {"do": what, "root": self.root, **request})


class Megabytes:
    """Counts bytes for a task whose steps are megabytes."""

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
    """How many steps a task of ``count`` bytes has."""
    return count // MEGABYTE


def bring(
    place: Place, files: Sequence[Local], keep: Sequence[str] | None, spare_bytes: int, progress: Progress
) -> tuple[Place, list[Local]]:
    """Copy ``files`` to the board and put them in place in their order, so that the last one is placed last.

    Args:
        keep: paths that may stay; other files that were placed there earlier are removed. None: no file is
            removed, and none is recorded as placed.
        spare_bytes: free bytes that the board needs besides the files.

    Returns:
        The place with its absolute path, and the files that were copied.

    Raises:
        BoardError: the folder holds something else than a bundle, or the disk has too little room.
        DeployError: a file arrived damaged twice.
    """
    place, states, free = _look(place, files, progress)
    missing = [file for file in files if states[file.path] != "here"]
    needed = sum(file.bytes for file in missing if states[file.path] == "absent")
    if needed + spare_bytes > free:
        raise BoardError(
            f"{place.name} has {free / 1e6:.0f} MB free in {place.root}, but"
            f" {(needed + spare_bytes) / 1e6:.0f} MB are needed;"
            " free some space there, name a folder on another disk with --path, or copy fewer --variants"
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
        f"{differing[0]} arrived damaged on {place.name} twice (its sha256 differs from the one sent); the"
        " board's disk or the network damages data: try another SD card or a cable, then run the same"
        " command again"
    )


def _look(place: Place, files: Sequence[Local], progress: Progress) -> tuple[Place, dict[str, str], int]:
    """The absolute path, the state of each file, and the free bytes."""
    sizes = {file.path: file.bytes for file in files}
    with progress.task(f"looking for the files on {place.name}, MB", megabytes(sum(sizes.values()))) as task:
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
    """Send the files through ssh, one after the other."""

    def feed() -> Iterator[bytes]:
        for file in files:
            with file.source.open("rb") as source:
                while block := source.read(BLOCK_BYTES):
                    yield block
                    counted.add(len(block))

    request = {"do": "receive", "root": place.root, "files": [file.to_json() for file in files]}
    place.connection.ask(place.python, request, feed())


def _rsync(place: Place, files: Sequence[Local], counted: Megabytes) -> bool:
    """Send the files with rsync, which can resume in the middle of a file.

    Returns:
        False when rsync did not work, so that ``_stream`` should be tried.

    Raises:
        BoardError: the disk there is full.
        DeployError: the connection broke.
    """
    tree = place.connection.folder / "tree"  # holds links, so that one call sends files of several folders
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
        raise DeployError(f"the connection to {place.name} broke; run the same command again to resume")
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
    """Have the board check the files and put them in place; returns the paths of damaged ones."""
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
