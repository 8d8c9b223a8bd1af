"""The part of ``deploy`` that the board's own Python runs. Its source is sent there as text, so it imports
only the standard library.

The request is one line of JSON on standard input; for ``receive`` the files' bytes follow it. Lines of the
answer that begin with MARK hold JSON. Other lines are ignored: a login script may print them.
"""

import contextlib
import errno
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MARK = "@vgg-export "
OWN = ".deploy"  # below the bundle's folder: incoming files, results, and the list of placed files
INCOMING, PLACED = f"{OWN}/incoming", f"{OWN}/placed.json"
PID = f"{OWN}/pid"  # the number of the program that was started last
TRY_AGAIN_S = 1.0
SILENT_S = 60.0  # so long a step, or who holds the folder, waits for a byte of its sender
STAMP = ".vgg-export-requirements"  # in the virtual environment: the hash of what was installed
BLOCK_BYTES = 1 << 20

Request = dict[str, Any]


class OutsideError(Exception):
    """A path leads out of the bundle's folder, or somebody else works in it. The message is one sentence for
    the user."""


def below(root: Path, path: str) -> Path:
    """The place of ``path`` below ``root``.

    The paths come from a manifest, which may be a stranger's, and links may lie in the folder: what is
    written, read or removed must be inside, whatever they say.

    Raises:
        OutsideError: ``path`` is absolute or has "..", or a link on its way leads out of ``root``.
    """
    if not is_relative(path):
        raise OutsideError(f"{path!r} is no path inside the bundle's folder; do not use this bundle")
    found, inside = root / path, os.path.realpath(root)
    if os.path.commonpath([inside, os.path.realpath(found)]) != inside:
        raise OutsideError(
            f"a link on the way to {found} leads out of the bundle's folder; remove the link, or name another"
            " folder with --path"
        )
    return found


def is_relative(path: str) -> bool:
    """Whether a path stays below the folder that it is put behind, as far as its words say."""
    return path.isprintable() and {"", ".", ".."}.isdisjoint(path.split("/"))


def say(**answer: Any) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()


def sha256(path: Path, size: int) -> str | None:
    """Hex digest of a file of ``size`` bytes; None when there is no such file."""
    if not path.is_file() or path.stat().st_size != size:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hold(root: Path, request: Request) -> None:
    """Keep other deployments out of the folder, which is made if need be, until standard input ends or is
    silent for ``silent_s`` seconds: a connection that breaks is not always noticed here.

    While another one has it, that is told once, and then tried again. A folder that holds something else than
    a bundle is left as it is; ``look`` refuses it.
    """
    made, held, told, silent_s = False, None, False, 0.0
    while silent_s < request["silent_s"]:
        if held is None:
            if not is_ours(root):
                say(held=False)
                return
            made = not root.exists()
            held, who = locked(root)
            if held is not None:
                say(held=True)
            elif who and not told:
                told = True
                say(waiting=who)
        started_s = time.monotonic()
        if select.select([sys.stdin], [], [], TRY_AGAIN_S)[0]:
            if not os.read(sys.stdin.fileno(), BLOCK_BYTES):
                break
            silent_s = 0.0
        else:
            silent_s += time.monotonic() - started_s
    if made and held is not None:
        try:
            root.rmdir()  # nothing was brought
        except OSError:
            return


def locked(root: Path) -> tuple[int | None, str]:
    """Lock the folder itself (flock(2)): the lock goes with the process, and no file is left.

    Returns:
        The open folder, None while another deployment has it, or while a step or a program that one started
        still runs. And who has it, as the beginning of a sentence; nothing where to try again is all.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = take(root)
        if descriptor is None:
            return None, f"another deployment works in {root}"
        if not os.path.samestat(os.fstat(descriptor), root.stat()):  # who held it before removed it
            os.close(descriptor)
            return None, ""
        if (root / OWN).is_dir():
            own = take(root / OWN)
            if own is None:
                os.close(descriptor)
                return None, f"a program of an earlier deployment still runs in {root}{process(root)}"
            os.close(own)
    except (FileNotFoundError, FileExistsError):  # it was removed meanwhile
        if root.parent.is_dir() and not root.exists():
            return None, ""
        raise
    return descriptor, ""


def take(folder: Path) -> int | None:
    """An open descriptor of the folder with an exclusive lock; None where another process has it.

    A system or a file system without such locks, as NFS has none for folders, grants it to everyone.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except (ImportError, OSError):
        return descriptor
    return descriptor


def process(root: Path) -> str:
    """The number of the program that was started last, in brackets, if it still runs in the folder."""
    try:
        number = int((root / PID).read_text(encoding="utf-8"))
        runs = Path(f"/proc/{number}/cwd").samefile(root)
    except (OSError, ValueError):
        return ""
    return f" (process {number})" if runs else ""


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep the steps and programs of other deployments out meanwhile: one whose connection broke goes on.

    Raises:
        OutsideError: one is at work.
    """
    own = root / OWN
    descriptor = take(own) if own.is_dir() else -1
    if descriptor is None:
        raise OutsideError(f"another deployment is at work in {root}; run the same command again")
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def look(root: Path, request: Request) -> None:
    """Report the state of each file, and the free bytes.

    A file is "here" when it is in its place, "arrived" when it is complete but not in its place yet, else
    "absent".
    """
    ensure_inside(root, request)
    incoming = root / INCOMING
    say(root=str(root), usable=is_ours(root))
    for path, size, digest in request["files"]:
        here, arrived = sha256(root / path, size) == digest, False
        if not here:
            arrived = sha256(incoming / path, size) == digest
        say(path=path, state="here" if here else "arrived" if arrived else "absent")
    wanted = {incoming / path for path, _, _ in request["files"]}
    for left in incoming.rglob("*"):
        if left.is_file() and left not in wanted:  # a broken connection left it, of another bundle
            left.unlink()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    say(free_bytes=shutil.disk_usage(existing).free)


def ensure_inside(root: Path, request: Request) -> None:
    """Check every path that a step will write or remove, before it does anything.

    Raises:
        OutsideError: one leads out of ``root``.
    """
    below(root, INCOMING)
    for path in (*(path for path, _, _ in request["files"]), *(request.get("keep") or ())):
        below(root, path)
        below(root, f"{INCOMING}/{path}")
    for path in recorded(root):
        below(root, path)


def is_ours(root: Path) -> bool:
    """Whether the folder may be written into: it is new or empty, or holds a bundle."""
    if not root.exists() or not any(root.iterdir()) or (root / OWN).is_dir():
        return True
    try:
        return bool(
            json.loads((root / "manifest.json").read_text(encoding="utf-8"))["format"] == "vgg-export-bundle"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prepare(root: Path, request: Request) -> None:
    """Make the folder for incoming files."""
    below(root, INCOMING).mkdir(parents=True, exist_ok=True)
    say(done=True)


def receive(root: Path, request: Request) -> None:
    """Read the files from standard input, one after the other."""
    ensure_inside(root, request)
    for path, size, _ in request["files"]:
        target = root / INCOMING / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(
            missing_ok=True
        )  # a new file: one that another deployment left is written by nobody else
        with target.open("wb") as file:
            while size:
                signal.alarm(
                    int(SILENT_S)
                )  # ends this process: a broken connection is not always noticed here
                block = sys.stdin.buffer.read1(min(size, BLOCK_BYTES))  # type: ignore[union-attr]
                signal.alarm(0)
                if not block:  # the sender is gone
                    return
                file.write(block)
                size -= len(block)
    say(done=True)


def place(root: Path, request: Request) -> None:
    """Check the files that arrived, and move all of them to their places or none.

    Afterwards files are removed that were placed earlier and are no longer wanted.

    Raises:
        OutsideError: a path leads out of ``root``; nothing is moved or removed then.
    """
    ensure_inside(root, request)
    incoming = root / INCOMING
    differing = []
    for path, size, digest in request["files"]:
        if sha256(incoming / path, size) == digest:
            say(checked=path)
        else:
            differing.append(path)
            (incoming / path).unlink(missing_ok=True)
    if differing:
        say(differing=differing)
        return
    os.sync()  # a board is switched off by pulling the plug
    for path, _, _ in request["files"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (incoming / path).replace(root / path)
    shutil.rmtree(incoming, ignore_errors=True)
    if request["keep"] is not None:
        record(root, request["keep"])
    os.sync()
    say(differing=[])


def record(root: Path, keep: list[str]) -> None:
    """Remove the placed files that are not in ``keep``, and record the others as placed.

    No other file is ever removed: it belongs to the owner of the folder.
    """
    for path in set(recorded(root)) - set(keep):
        below(root, path).unlink(missing_ok=True)
    there = sorted(path for path in keep if below(root, path).is_file())
    below(root, PLACED).write_text(json.dumps(there), encoding="utf-8")


def recorded(root: Path) -> list[str]:
    """The paths that an earlier deployment recorded as placed; none where the record is damaged.

    Raises:
        OutsideError: it names one that leads out of ``root``.
    """
    try:
        found = json.loads(below(root, PLACED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        return []
    outside = [path for path in found if not is_relative(path)]
    if outside:
        raise OutsideError(
            f"{root / PLACED} names {outside[0]!r}, which is not inside the bundle's folder; remove that list"
        )
    return found


def environment(root: Path, request: Request) -> None:
    """Report whether the virtual environment works, and its stamp if the packages are still installed."""
    venv = root / "venv"
    code = "import importlib.metadata as m, sys; [m.version(name) for name in sys.argv[1:]]"
    works = succeeds(venv / "bin/python", "-m", "pip", "--version")
    complete = works and succeeds(venv / "bin/python", "-c", code, *request["packages"])
    stamp = (venv / STAMP).read_text(encoding="utf-8") if complete and (venv / STAMP).is_file() else ""
    say(works=works, stamp=stamp, python=sys.executable)


def succeeds(*command: Path | str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def installed(root: Path, request: Request) -> None:
    """Record what was installed, and remove the wheels."""
    (root / "venv" / STAMP).write_text(request["stamp"], encoding="utf-8")
    shutil.rmtree(root / OWN / "wheels", ignore_errors=True)
    say(done=True)


def fetch(root: Path, request: Request) -> None:
    """Send the content of a text file, None when there is no such file."""
    path = below(root, request["path"])
    say(text=path.read_text(encoding="utf-8") if path.is_file() else None)


def forget(root: Path, request: Request) -> None:
    """Remove earlier results, so that none is taken for the new one."""
    for path in request["paths"]:
        below(root, path).unlink(missing_ok=True)
    say(done=True)


TASKS: dict[str, Callable[[Path, Request], None]] = {
    task.__name__: task
    for task in (hold, look, prepare, receive, place, environment, installed, fetch, forget)
}
# what changes the folder
ALONE = {task.__name__ for task in (look, prepare, receive, place, installed, forget)}


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    root = Path.home() / request["root"]  # an absolute one stays as it is
    try:
        with alone(root) if request["do"] in ALONE else contextlib.nullcontext():
            TASKS[request["do"]](root, request)
    except OutsideError as error:
        say(refused=str(error))
    except OSError as error:
        say(
            error=error.strerror or str(error),
            full=error.errno in (errno.ENOSPC, errno.EDQUOT),
            file=str(error.filename or root),
        )


if __name__ == "__main__":
    main()
