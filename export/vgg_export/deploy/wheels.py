"""Fetches the packages that a board needs with this computer's pip, so that the board needs no internet."""

import hashlib
import importlib.util
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vgg_export.core.errors import BoardError, DeployError, HubError
from vgg_export.core.files import explain_write_errors
from vgg_export.core.progress import Progress
from vgg_runtime.output import temporary_folder

from .board import Board
from .ssh import last_line

log = logging.getLogger(__name__)

OLDEST_GLIBC_MINOR = 17  # manylinux2014; none of these packages has wheels for an older one
_NO_NETWORK = (
    "name resolution",
    "NewConnectionError",
    "unreachable",
    "Max retries",
    "timed out",
    "Could not fetch",
    "not known",
    "Proxy",
)
_NO_ROOM = ("No space left", "Disk quota")


def platforms(board: Board) -> list[str]:
    """pip's names of the platforms that run on the board, the newest first: pip does not infer older ones.

    Raises:
        BoardError: the board's C library is not glibc.
    """
    if not board.glibc:
        raise BoardError(
            "the board has another C library than glibc, for which there are no wheels; use Raspberry Pi"
            " OS or Debian"
        )
    newest = board.glibc[1]
    return [f"manylinux_2_{minor}_{board.machine}" for minor in range(newest, OLDEST_GLIBC_MINOR - 1, -1)] + [
        f"manylinux2014_{board.machine}"
    ]


def pip_options(board: Board) -> list[str]:
    """The options with which pip looks for the wheels of a board in place of this computer's.

    Raises:
        BoardError: there are no wheels for such a board.
    """
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", _python(board)]
    return options + [option for name in platforms(board) for option in ("--platform", name)]


def _python(board: Board) -> str:
    return ".".join(map(str, board.version[:2]))


def fetch(board: Board, requirements: Sequence[Path], cache: Path, progress: Progress) -> list[Path]:
    """Fetch the wheels of all requirements and their dependencies; returns their paths.

    Wheels that an earlier run fetched for the same kind of board are used again.

    Raises:
        BoardError: there are no wheels for such a board.
        DeployError: pip is missing, or finds no fitting wheel.
        HubError: this computer has no internet either.
    """
    arguments = pip_options(board)
    key = hashlib.sha256(
        "\n".join([*arguments, *(path.read_text(encoding="utf-8") for path in requirements)]).encode()
    ).hexdigest()
    folder = cache / f"{board.machine}-{_python(board)}-{key[:12]}"
    if not folder.is_dir():
        if not importlib.util.find_spec("pip"):
            raise DeployError(
                "--wheels needs pip on this computer; run 'python -m ensurepip' in its environment, or"
                " leave --wheels out"
            )
        with (
            progress.task(f"fetching wheels for {board.machine}, Python {_python(board)}", None),
            explain_write_errors(folder),
        ):
            _download(arguments, requirements, folder)
    return sorted(folder.glob("*.whl"))


def _download(arguments: Sequence[str], requirements: Sequence[Path], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(".fetching.", folder.parent) as new:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--disable-pip-version-check",
            "--no-input",
            "--retries",
            "2",
            *arguments,
        ]
        command += ["-d", str(new), *(argument for path in requirements for argument in ("-r", str(path)))]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            if any(sign in done.stderr for sign in _NO_ROOM):
                raise OSError(28, "No space left on device")
            if any(sign in done.stderr for sign in _NO_NETWORK):
                raise HubError(
                    "this computer cannot reach the package index either; connect it to the internet for"
                    " --wheels"
                )
            raise DeployError(
                f"there are no wheels for the board's system and Python ({last_line(done.stderr)}); use a"
                " Python there that onnxruntime"
                " has wheels for, such as Raspberry Pi OS's own"
            )
        shutil.copytree(new, folder.with_suffix(".partial"), dirs_exist_ok=True)
    folder.with_suffix(".partial").rename(folder)
    log.info("fetched %d wheels", len(list(folder.glob("*.whl"))))


def explain_install(name: str, error: str, *, wheels: bool) -> Exception:
    """One sentence for what pip printed on the board."""
    if any(sign in error for sign in _NO_ROOM):
        return BoardError(f"the disk of {name} is full; free some space there (df -h shows how much is left)")
    if "certificate verify failed" in error or "CERTIFICATE_VERIFY_FAILED" in error:
        return BoardError(
            f"{name} does not trust the package index, most often because its clock is wrong (see 'date'"
            " there); set it, or use --wheels"
        )
    if any(sign in error for sign in _NO_NETWORK) and not wheels:
        return BoardError(
            f"{name} cannot reach the package index: it has no internet; use --wheels to bring the"
            " packages along"
        )
    if found := re.search(r"No matching distribution found for (\S+)", error):
        return DeployError(
            f"pip found no {found[1]} for the Python of {name}; use one there that it has wheels for, such"
            " as Raspberry Pi OS's own"
        )
    return DeployError(
        f"pip failed on {name}: {last_line(error) or 'it gave no reason'}; run the same command again"
    )
