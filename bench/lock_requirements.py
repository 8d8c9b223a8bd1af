"""Writes ``runtime/requirements-locked.txt``: the device's packages with their versions and the hashes of
their wheels, for the Pythons and machines of a board and of a PC. Run it to renew the versions.

    python bench/lock_requirements.py

The versions are those that pip finds for the oldest Python; every other Python must have them, too.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vgg_export.deploy.board import Board
from vgg_export.deploy.wheels import pip_options

RUNTIME = Path(__file__).resolve().parent.parent / "runtime"
SOURCE, LOCKED = RUNTIME / "requirements.txt", RUNTIME / "requirements-locked.txt"
PYTHONS = ((3, 11), (3, 12), (3, 13))
MACHINES = ("aarch64", "x86_64")
GLIBC = (2, 36)  # of Debian 12, which Raspberry Pi OS Bookworm is


def wheels(requirements: list[str], python: tuple[int, int], machine: str, folder: Path) -> Iterator[Path]:
    """Fetch the wheels for one kind of board."""
    board = Board(machine, "", "", (*python, 0), GLIBC, venv=True, rsync=False)
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder)]
    command.append("--disable-pip-version-check")
    subprocess.run([*command, *pip_options(board), *requirements], check=True)
    yield from sorted(folder.glob("*.whl"))


def main() -> int:
    asked = [line.split("#")[0].strip() for line in SOURCE.read_text(encoding="utf-8").splitlines()]
    requirements = list(filter(None, asked))
    versions: dict[str, str] = {}
    hashes: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for python in PYTHONS:
            for machine in MACHINES:
                folder = Path(scratch) / f"{machine}-{python[1]}"
                pinned = [f"{name}=={version}" for name, version in versions.items()]
                for wheel in wheels(pinned or requirements, python, machine, folder):
                    name, version = re.match(r"([^-]+)-([^-]+)-", wheel.name).groups()  # type: ignore[union-attr]
                    name = name.lower().replace("_", "-")
                    versions[name] = version
                    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                    hashes.setdefault(name, set()).add(digest)
                print(f"Python {'.'.join(map(str, python))}, {machine}: {len(versions)} packages", flush=True)
    LOCKED.write_text(text(versions, hashes), encoding="utf-8")
    print(f"wrote {LOCKED}")
    return 0


def text(versions: dict[str, str], hashes: dict[str, set[str]]) -> str:
    """The file as pip reads it; a file with hashes is checked against them."""
    pythons = ", ".join(".".join(map(str, python)) for python in PYTHONS)
    lines = [f"# {SOURCE.name} with versions and hashes, for Python {pythons} on {' and '.join(MACHINES)}."]
    lines += ["# python bench/lock_requirements.py writes it."]
    for name in sorted(versions):
        found = " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(hashes[name]))
        lines.append(f"{name}=={versions[name]} \\\n{found}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
