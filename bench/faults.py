"""A layer over the C library that fails, or kills, at the n-th call below a folder (``faults.c``), built with
the machine's C compiler and loaded with ``LD_PRELOAD``."""

import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
KILL = 0  # in place of an error
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES", "EROFS", "EMFILE")}


def compiler() -> str | None:
    """The C compiler of this machine, or None."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """Compile the layer into ``folder``; returns the library.

    Raises:
        RuntimeError: there is no compiler, or it refuses.
    """
    found = compiler()
    if not found:
        raise RuntimeError("no C compiler was found; install gcc")
    library = folder / "libfaults.so"
    command = [found, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} cannot be compiled: {done.stderr[:300]}")
    return library


def environment(library: Path, below: Path, at: int, error: int, *, stays: bool = False) -> dict[str, str]:
    """Variables for a command whose ``at``-th call below a folder is to end with ``error`` (KILL: the command
    is killed there); ``stays``: all later ones, too."""
    names = {"FAULT_BELOW": str(below.resolve()), "FAULT_AT": str(at), "FAULT_ERRNO": str(error)}
    return {"LD_PRELOAD": str(library), **names, "FAULT_STAYS": str(int(stays))}


def arm(below: Path, at: int, error: int, *, stays: bool = False) -> None:
    """``environment`` for this process, which was started with the library."""
    folder = os.fsencode(below.resolve())
    ctypes.CDLL(None).fault_arm(folder, ctypes.c_long(at), error, int(stays))


def count() -> int:
    """How many calls that can end with the error there were since ``arm``."""
    library = ctypes.CDLL(None)
    library.fault_count.restype = ctypes.c_long
    return int(library.fault_count())
