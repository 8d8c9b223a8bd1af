"""The part of ``deploy`` that the board's own Python runs. Its source is sent there as text, so it imports
only the standard library.

The request is one line of JSON on standard input; for ``receive`` the files' bytes follow it. Lines of the
answer that begin with MARK hold JSON. Other lines are ignored: a login script may print them.
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
OWN = ".deploy"  # below the bundle's folder: incoming files, results, and the list of placed files
STAMP = ".vgg-export-requirements"  # in the virtual environment: the hash of what was installed
BLOCK_BYTES = 1 << 20

Request = dict[str, Any]


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


def look(root: Path, request: Request) -> None:
    """Report the state of each file, and the free bytes.

    A file is "here" when it is in its place, "arrived" when it is complete but not in its place yet, else
    "absent".
    """
    incoming = root / OWN / "incoming"
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
    (root / OWN / "incoming").mkdir(parents=True, exist_ok=True)
    say(done=True)


def receive(root: Path, request: Request) -> None:
    """Read the files from standard input, one after the other."""
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
    """Check the files that arrived, and move all of them to their places or none.

    Afterwards files are removed that were placed earlier and are no longer wanted.
    """
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
    """Remove the placed files that are not in ``keep``, and record the others as placed.

    No other file is ever removed: it belongs to the owner of the folder.
    """
    file = root / OWN / "placed.json"
    try:
        placed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        placed = []
    for path in set(placed) - set(keep):
        (root / path).unlink(missing_ok=True)
    file.write_text(json.dumps(sorted(path for path in keep if (root / path).is_file())), encoding="utf-8")


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
