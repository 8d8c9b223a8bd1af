"""Surveys a board: its system, its Pythons, and whether a bundle can run there."""

import dataclasses
import json
import logging
from typing import Any

from vgg_export.core.errors import BoardError

from .ssh import Connection

log = logging.getLogger(__name__)

OLDEST_PYTHON = (3, 11)
MACHINES = ("aarch64", "x86_64")  # onnxruntime has wheels for these
PYTHONS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11")
MARK = "@vgg-export "

_ABOUT_PYTHON = (
    "import json, platform, sys; from importlib.util import find_spec; print(json.dumps({'python':"
    " sys.version_info[:3],"
    " 'bits': 64 if sys.maxsize > 2 ** 32 else 32, 'libc': platform.libc_ver(),"
    " 'venv': bool(find_spec('venv') and find_spec('ensurepip'))}))"
)
_SURVEY = f"""
say() {{ printf '\\n{MARK}%s\\t%s\\n' "$1" "$2"; }}
say system "$(uname -s)"
say machine "$(uname -m)"
say bits "$(getconf LONG_BIT 2> /dev/null)"
say model "$(tr -d '\\000' 2> /dev/null < /proc/device-tree/model)"
say rsync "$(command -v rsync)"
for python in {" ".join(PYTHONS)}; do
    path=$(command -v "$python") && say python "$path	$("$path" -c "{_ABOUT_PYTHON}")"
done
exit 0
"""


@dataclasses.dataclass(frozen=True)
class Board:
    """What ``survey`` found out about a board.

    ``python`` is the path of the interpreter to use, ``version`` its version, and ``venv`` whether it can
    make virtual environments. ``glibc`` is (major, minor), None where the C library is another one.
    """

    machine: str
    model: str
    python: str
    version: tuple[int, int, int]
    glibc: tuple[int, int] | None
    venv: bool
    rsync: bool

    def in_words(self) -> str:
        model = f"{self.model}, " if self.model else ""
        return f"{model}{self.machine}, Python {'.'.join(map(str, self.version))}"


def survey(connection: Connection) -> Board:
    """Ask the board for its system, its Pythons and its programs.

    Raises:
        BoardError: a bundle cannot run there; the message says why.
    """
    found: dict[str, str] = {}
    pythons: list[tuple[str, dict[str, Any]]] = []
    for line in connection.run(_SURVEY).out.splitlines():
        if not line.startswith(MARK):  # the output of a login script
            continue
        key, _, value = line.removeprefix(MARK).partition("\t")
        if key != "python":
            found[key] = value
        elif about := _about(value.partition("\t")[2]):
            pythons.append((value.partition("\t")[0], about))
    name = connection.options.name
    _ensure_64_bit(name, found, pythons)
    path, about = _choose(name, pythons)
    libc, version = about["libc"]
    glibc = tuple(int(part) for part in version.split(".")[:2]) if libc == "glibc" else None
    return Board(
        machine=found["machine"],
        model=found.get("model", ""),
        python=path,
        version=tuple(about["python"]),
        glibc=glibc,  # type: ignore[arg-type]
        venv=about["venv"],
        rsync=bool(found.get("rsync")),
    )


def _about(text: str) -> dict[str, Any] | None:
    try:
        about = json.loads(text)
    except ValueError:  # a Python that does not start
        return None
    return about if isinstance(about, dict) else None


def _ensure_64_bit(name: str, found: dict[str, str], pythons: list[tuple[str, dict[str, Any]]]) -> None:
    """Make sure that the board runs 64-bit Linux on one of ``MACHINES``: onnxruntime has wheels for no other.

    Raises:
        BoardError: it does not.
    """
    machine, system = found.get("machine", "an unknown machine"), found.get("system", "an unknown system")
    if system != "Linux":
        raise BoardError(f"{name} runs {system}; a bundle needs 64-bit Linux there, such as Raspberry Pi OS")
    narrow = found.get("bits") == "32" or any(about["bits"] == 32 for _, about in pythons)
    if machine.startswith(("armv", "i386", "i686")) or narrow:
        raise BoardError(
            f"{name} runs a 32-bit system ({machine}), for which there is no onnxruntime; install the"
            " 64-bit Raspberry Pi OS on it, which needs a Pi Zero 2 W, a Pi 3 or a newer one"
        )
    if machine not in MACHINES:
        raise BoardError(
            f"{name} is {machine}, for which there is no onnxruntime; use a board with"
            f" {' or '.join(MACHINES)}"
        )


def _choose(name: str, pythons: list[tuple[str, dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    """The first Python that is new enough.

    Raises:
        BoardError: there is none.
    """
    if not pythons:
        raise BoardError(
            f"{name} has no python3; install it there (Raspberry Pi OS: sudo apt install python3"
            " python3-venv)"
        )
    for path, about in pythons:
        if tuple(about["python"][:2]) >= OLDEST_PYTHON:
            return path, about
    versions = ", ".join(".".join(map(str, about["python"])) for _, about in pythons)
    raise BoardError(
        f"{name} has Python {versions}; 3.11 or newer is needed: Raspberry Pi OS Bookworm and later have it"
    )
