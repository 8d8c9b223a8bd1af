"""Writes results into files of the user's choice, as a whole or not at all."""

import os
from pathlib import Path

from . import text
from .errors import RuntimeInputError

LONGEST_NAME = 255  # bytes of a file name on Linux's file systems


def check_writable(*paths: Path) -> None:
    """Fail before the measurement rather than after it.

    Raises:
        RuntimeInputError: a file cannot be written, or two have the same name.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise RuntimeInputError(f"--json and --html both name {paths[0]}; give each its own file")
    for path in paths:
        writable = os.access(path if path.exists() else path.parent, os.W_OK)
        if (
            not path.parent.is_dir()
            or path.is_dir()
            or not writable
            or len(os.fsencode(path.name)) > LONGEST_NAME
        ):
            raise RuntimeInputError(
                f"{text.printable(str(path), 80)} cannot be written; name a file in an existing folder"
                " you may write to"
            )


def write(path: Path, text: str) -> None:
    """Replace a file by ``text``; a pipe or a device is written to."""
    path = path.resolve()  # what a link points to is replaced, not the link
    special = path.exists() and not path.is_file()  # a pipe or a device: written to as it is
    beside = path if special else path.with_name(f".compare-{os.getpid()}.partial")
    try:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
        if not special:
            beside.replace(path)
    except OSError as error:
        raise RuntimeInputError(
            f"{path} cannot be written ({error.strerror}); choose another place"
        ) from error
    finally:
        if not special:
            beside.unlink(missing_ok=True)
