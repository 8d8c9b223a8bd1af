"""Writes files so that they are complete or absent: write beside, fsync, rename. Also hashes files."""

import contextlib
import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_runtime.output import RANDOM, remove_abandoned, temporary_folder

from .errors import OpeningError, OutputError

log = logging.getLogger(__name__)

_SCRATCH = ".scratch."
_BY = ".by-"  # the number of the process that writes a file follows
# there is no such file: what reads it says so in its own words
_NO_FILE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
# what tempfile makes of the names in ``atomic_file``, ``folder_beside`` and ``scratch_folder``
_UNFINISHED = re.compile(
    rf"\.(?P<name>.+?)({re.escape(_BY)}\d{{1,9}})?\.{RANDOM}\.partial|\.scratch\.(\d+\.)?{RANDOM}"
)
_AT_WORKING_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"the disk is full while writing {path}; free some space or choose another folder"
            ) from error
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); choose a folder you may write to"
        ) from error


@contextlib.contextmanager
def opened_by_library(path: Path) -> Iterator[None]:
    """For a block in which a library of another language opens a file: such a library calls every file that
    it cannot open missing, so Python opens it first and tells the system's own reason.

    Raises:
        OSError: the system refuses to open it.
        OpeningError: the library could not open it, although it is there.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
    try:
        yield
    except FileNotFoundError as error:
        if not path.exists():
            raise
        raise OpeningError(
            f"{path} could not be opened, although it is there; run the same command again"
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``. It replaces ``path`` when the block succeeds, else it is deleted.
    What killed processes left there of this file is removed.

    Raises:
        OutputError: the file cannot be written.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name}{_BY}"
        remove_abandoned(path.parent, prefix, rf"{RANDOM}\.partial")
        handle, name = tempfile.mkstemp(prefix=f"{prefix}{os.getpid()}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def reserved_array(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A memory-mapped float32 array whose disk space is allocated at once.

    Without that, writing to it on a full disk would kill the program (SIGBUS) instead of raising.

    Raises:
        OSError: the disk is full.
    """
    array: npt.NDArray[np.float32] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def work_folder(output: Path) -> Path:
    """The folder beside an output for its intermediate files."""
    output = output.resolve()
    return output.parent / f".{output.name}.work"


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder in ``folder`` for what is not to stay. Where the process is killed, the next one that holds
    ``folder`` in ``exclusive`` removes it, or the next one after some minutes that needs such a folder there.
    """
    remove_abandoned(folder, _SCRATCH)
    with temporary_folder(f"{_SCRATCH}{os.getpid()}.", folder) as made:
        yield made


@contextlib.contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """A new folder that takes the place of the folder ``place`` at once, as a whole, when the block succeeds.

    Raises:
        OutputError: it cannot be written.
    """
    place = place.resolve()
    with explain_write_errors(place):
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=place.parent))
        try:
            folder.chmod(0o755)
            yield folder
            for path in (*folder.rglob("*"), folder):
                sync(path)
            _put(folder, place)
            sync(place.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, place: Path) -> None:
    """Rename a folder to ``place``; one that is there gets its name instead. Where the system cannot exchange
    them at once there is a moment without either, for which ``put_back`` is made."""
    if not place.exists():
        folder.rename(place)
    elif not _exchanged(folder, place):
        old = _old(place)
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        try:
            folder.rename(place)
        except BaseException:
            old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths change their names in one step, where the system and the file system can."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, names = _AT_WORKING_FOLDER, (os.fsencode(one), os.fsencode(other))
    if not exchange(here, names[0], here, names[1], ctypes.c_uint(_EXCHANGE)):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def put_back(place: Path) -> None:
    """Finish what a process that was killed had begun at ``place``, which is held in ``exclusive``: the
    folder that was there before comes back where no new one is, and what was unfinished is removed."""
    place = place.resolve()
    old = _old(place)
    with explain_write_errors(place):
        if old.exists() and not place.exists():
            old.rename(place)
        shutil.rmtree(old, ignore_errors=True)
        for path in place.parent.glob(".*.partial"):
            found = _UNFINISHED.fullmatch(path.name)
            if found and found["name"] == place.name:
                _remove(path)


def is_unfinished(name: str) -> bool:
    """Whether a file or folder with this name was left by a process of this program that was killed."""
    return _UNFINISHED.fullmatch(name) is not None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a work folder for one process at a time. The others say so, wait, and then find the work done.
    What a killed process left unfinished in it is removed.

    Raises:
        OutputError: the folder cannot be written, or cannot be locked.
    """
    with contextlib.ExitStack() as held:
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(folder / ".lock", folder))
            for path in sorted(folder.rglob(".*")):
                if is_unfinished(path.name):
                    _remove(path)
        yield


@contextlib.contextmanager
def exclusive_output(place: Path) -> Iterator[None]:
    """Lock the place of an output, which may not exist, for one process at a time, as ``exclusive`` does.

    Raises:
        OutputError: its folder cannot be written, or cannot be locked.
    """
    place = place.resolve()
    lock = place.with_name(f".{place.name}.lock")
    with contextlib.ExitStack() as held:
        with explain_write_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(lock, place))
            held.callback(lock.unlink, missing_ok=True)  # before it is released
        put_back(place)
        yield


@contextlib.contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    """Hold the lock file ``lock``; says that ``what`` is in use where it has to wait."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another vgg-export works in %s; waiting until it has ended", what)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file.fileno(), lock):
                yield  # closing the file releases the lock
                return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at ``path``: who held the lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Any) -> None:
    """``data`` as indented UTF-8 JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
