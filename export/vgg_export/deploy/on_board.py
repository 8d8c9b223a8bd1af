"""What the board's own Python does for ``deploy``. Its source is sent there as text, so it imports the
standard library alone.

The request is one line of JSON on standard input, behind it the files' bytes for ``receive``. Lines of the
answer that begin with MARK hold JSON; a login script may print what it likes between them.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "@vgg-export "
OWN = ".deploy"  # below the bundle's folder: what is on its way, results, and the record of what was placed
STAMP = ".vgg-export-requirements"  # in the virtual environment: what was installed
BLOCK_BYTES = 1 << 20

Request = dict[str, Any]


def say(**answer: Any) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()


def sha256(path: Path, size: int) -> str | None:
    """Hex digest of a file of that many bytes; None when there is none."""
    if not path.is_file() or path.stat().st_size != size:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def look(root: Path, request: Request) -> None:
    """Which files are there as they should be ("here"), or have arrived and wait to be placed ("arrived")."""
    incoming = root / OWN / "incoming"
    say(root=str(root), usable=is_ours(root))
    for path, size, digest in request["files"]:
        here, arrived = sha256(root / path, size) == digest, False
        if not here:
            arrived = sha256(incoming / path, size) == digest
        say(path=path, state="here" if here else "arrived" if arrived else "absent")
    wanted = {incoming / path for path, _, _ in request["files"]}
    for left in incoming.rglob("*"):
        if left.is_file() and left not in wanted:  # of another bundle, on its way when the connection broke
            left.unlink()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    say(free_bytes=shutil.disk_usage(existing).free)


def is_ours(root: Path) -> bool:
    """A folder that may be written into: new, empty, or holding a bundle."""
    if not root.exists() or not any(root.iterdir()) or (root / OWN).is_dir():
        return True
    try:
        return bool(
            json.loads((root / "manifest.json").read_text(encoding="utf-8"))["format"] == "vgg-export-bundle"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prepare(root: Path, request: Request) -> None:
    """Make the folder, so that files can come."""
    (root / OWN / "incoming").mkdir(parents=True, exist_ok=True)
    say(done=True)


def receive(root: Path, request: Request) -> None:
    """Files one after the other from standard input."""
    for path, size, _ in request["files"]:
        target = root / OWN / "incoming" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while size:
                block = sys.stdin.buffer.read(min(size, BLOCK_BYTES))
                if not block:  # the sender is gone
                    return
                file.write(block)
                size -= len(block)
    say(done=True)


def place(root: Path, request: Request) -> None:
    """Check what has arrived and put it in its place, all or nothing; remove what was placed earlier and is
    no longer wanted."""
    incoming = root / OWN / "incoming"
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
    """Only what was recorded as placed from here is ever removed; anything else in the folder is its
    owner's."""
    file = root / OWN / "placed.json"
    try:
        placed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        placed = []
    for path in set(placed) - set(keep):
        (root / path).unlink(missing_ok=True)
    file.write_text(json.dumps(sorted(path for path in keep if (root / path).is_file())), encoding="utf-8")


def environment(root: Path, request: Request) -> None:
    """Whether the virtual environment works, and the stamp of what was installed in it while it is still
    there."""
    venv = root / "venv"
    code = "import importlib.metadata as m, sys; [m.version(name) for name in sys.argv[1:]]"
    works = succeeds(venv / "bin/python", "-m", "pip", "--version")
    whole = works and succeeds(venv / "bin/python", "-c", code, *request["packages"])
    stamp = (venv / STAMP).read_text(encoding="utf-8") if whole and (venv / STAMP).is_file() else ""
    say(works=works, stamp=stamp, python=sys.executable)


def succeeds(*command: Path | str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def installed(root: Path, request: Request) -> None:
    """Remember what was installed; the wheels that were brought along are not needed any more."""
    (root / "venv" / STAMP).write_text(request["stamp"], encoding="utf-8")
    shutil.rmtree(root / OWN / "wheels", ignore_errors=True)
    say(done=True)


def fetch(root: Path, request: Request) -> None:
    """A text file, None when there is none."""
    path = root / request["path"]
    say(text=path.read_text(encoding="utf-8") if path.is_file() else None)


def forget(root: Path, request: Request) -> None:
    """Remove earlier results, so that none is taken for the new one."""
    for path in request["paths"]:
        (root / path).unlink(missing_ok=True)
    say(done=True)


TASKS: dict[str, Callable[[Path, Request], None]] = {
    task.__name__: task for task in (look, prepare, receive, place, environment, installed, fetch, forget)
}


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    root = Path.home() / request["root"]  # an absolute one stays as it is
    try:
        TASKS[request["do"]](root, request)
    except OSError as error:
        say(
            error=error.strerror or str(error),
            full=error.errno in (errno.ENOSPC, errno.EDQUOT),
            file=str(error.filename or root),
        )


if __name__ == "__main__":
    main()
