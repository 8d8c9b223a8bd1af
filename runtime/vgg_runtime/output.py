"""Writes results into files of the user's choice, as a whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import text
from .errors import RuntimeInputError

_OPEN = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")
_PREFIX = ".compare-"
LONGEST_NAME = 255  # bytes of a file name on Linux's file systems
# Age of a file that a killed process left. A number of another container's process seems to be free here.
ABANDONED_S = 600.0
RANDOM = "[a-z0-9_]{8}"  # what tempfile adds to a name


def check_writable(*paths: Path) -> None:
    """Fail before the measurement rather than after it.

    Raises:
        RuntimeInputError: a file cannot be written, or two have the same name.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise RuntimeInputError(f"--json and --html both name {paths[0]}; give each its own file")
    for path in paths:
        if not _is_writable(path):
            raise RuntimeInputError(
                f"{text.printable(str(path), 80)} cannot be written; name a file in an existing folder"
                " you may write to"
            )


def _is_writable(path: Path) -> bool:
    """Whether ``write`` can work: a file is made beside the named one and taken away again, because some
    folders, as /proc, only look writable."""
    try:
        if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
            return False
        if _is_special(path):
            return True
        path = path.resolve()
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            return False
        _beside(path).touch()
        _beside(path).unlink()
    except OSError:
        return False
    return True


def _is_special(path: Path) -> bool:
    """Whether it is written to as it is: a pipe, a device, or what a program already has open."""
    return (path.exists() and not path.is_file()) or str(path).startswith(_OPEN)


def _beside(path: Path) -> Path:
    return path.with_name(f"{_PREFIX}{os.getpid()}.partial")


@contextlib.contextmanager
def temporary_folder(prefix: str = "vgg-", place: Path | str | None = None) -> Iterator[Path]:
    """A folder for what is not to stay: in ``place``, or where temporary files go. What cannot be removed
    stays there; ``tempfile.TemporaryDirectory`` ends with its error, or goes round in circles until the stack
    is full (github.com/python/cpython/issues/135812 and 79325, the latter in Python 3.11 up to 3.11.7).

    Raises:
        OSError: none can be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cache_folder() -> Path:
    """The user's folder for what can be made again.

    Raises:
        RuntimeInputError: this user has no home folder.
    """
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(folder or Path.home() / ".cache") / "vgg-export"
    except RuntimeError as error:
        raise RuntimeInputError("this user has no home folder") from error


def remove_abandoned(folder: Path, prefix: str, rest: str = RANDOM) -> None:
    """Remove what killed processes left in ``folder``, as far as that is possible: files and folders whose
    name is ``prefix``, the number of a process that has ended, a dot, and what fits ``rest``. A prefix that
    nobody else uses keeps the files of others."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            found = re.fullmatch(rf"{re.escape(prefix)}(\d{{1,9}})\.{rest}", path.name)
            if found and not _lives(int(found[1])):
                _remove_old(path)


def _remove_old(path: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _to_disk(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do it
            raise


def _lives(pid: int) -> bool:
    if os.name != "posix":
        return True  # there os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is somebody else's
    return True


def write(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file by ``text``, which may come in pieces; a pipe or a device is written to."""
    special = _is_special(path)
    path = path if special else path.resolve()  # what a link points to is replaced, not the link
    beside = path if special else _beside(path)
    if not special:
        remove_abandoned(path.parent, _PREFIX, "partial")
    try:
        with beside.open("a" if special else "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines((text,) if isinstance(text, str) else text)
            if not special:  # a board that loses power keeps the old file or the new one
                file.flush()
                _to_disk(file.fileno())
        if not special:
            beside.replace(path)
    except OSError as error:
        raise RuntimeInputError(
            f"{path} cannot be written ({error.strerror}); choose another place"
        ) from error
    finally:
        if not special:
            beside.unlink(missing_ok=True)
