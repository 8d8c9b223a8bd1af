"""Keeps the answers to many pictures while they come, so that an interrupted comparison goes on from there.

They lie in the user's cache, a file for each model, pictures and machine, until the comparison has ended.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Self

from vgg_runtime import __version__, output
from vgg_runtime.board.device import describe
from vgg_runtime.bundle.builds import session_here
from vgg_runtime.bundle.manifest import Variant
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.records import parse
from vgg_runtime.result import Prediction, Predictions

LEAST_PICTURES = 200  # fewer are asked again within minutes
ABANDONED_S = 14 * 24 * 3600.0

Say = Callable[[str], None]


class Kept:
    """The answers of one model: those that an interrupted run gave, and the file that takes the others.
    Answers are not worth an error: where they cannot be written, ``complain`` is told so once."""

    def __init__(self, file: IO[bytes], classes: int, complain: Say) -> None:
        """Read the answers, as far as they are whole; what follows is cut off.

        Raises:
            OSError: that is not possible.
        """
        self.known, self.fails = Predictions(), False
        self._file, self._complain = file, complain
        end = 0
        for line in file:
            found = _answer(line, classes)
            if found is None:  # the last one, of a run that was killed
                break
            self.known.add(found.classes, found.probabilities)
            end += len(line)
        file.seek(end)
        file.truncate()
        self._count = len(self.known)

    def add(self, index: int, answer: Prediction) -> None:
        """Keep the answer to the picture ``index``, unless it is known."""
        if index != self._count or self.fails:
            return
        self._count += 1
        document = {"classes": answer.classes, "probabilities": answer.probabilities}
        try:
            self._file.write(json.dumps(document).encode() + b"\n")
            self._file.flush()  # of a run that is killed, too; the system writes it when it likes
        except OSError as error:
            self.fails = True
            self._complain(_not_kept(error))


class Store:
    """The answers of one comparison to the pictures with these hashes. Nothing is kept of fewer than
    LEAST_PICTURES. Where no folder can be written nothing is kept either, and ``say`` is told so. The files
    are locked until the ``with`` block ends: two equal comparisons do not share them."""

    def __init__(self, pictures: Sequence[str | None], root: Path, say: Say) -> None:
        self._pictures, self._root, self._say = pictures, root, say
        self._files: list[IO[bytes]] = []
        self._all: list[Kept] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()

    def of(self, variant: Variant, mode: str, meaning: str, classes: int) -> Kept | None:
        """The answers of a variant in a memory mode, whose outputs have a ``meaning`` (one of
        ``outputs.OUTPUTS``) and stand for so many classes. None where nothing is kept, or where another
        comparison keeps the same ones."""
        if len(self._pictures) < LEAST_PICTURES or None in self._pictures:
            return None
        session = dataclasses.asdict(session_here(variant.build, mode))
        models = [entry.sha256 for entry in variant.build.files]
        try:
            parts = [models, session, variant.preprocessing.to_json(), meaning, classes, self._fingerprint]
            name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
            file = _opened(folder() / f"{name}.jsonl")
            if file is None:
                return None
            self._files.append(file)
            kept = Kept(file, classes, self._say)
        except (OSError, RuntimeInputError, ImportError) as error:  # no locks, no versions
            self._say(_not_kept(error))
            return None
        self._all.append(kept)
        if kept.known:
            count = f"{len(kept.known)} of {len(self._pictures)}"
            self._say(f"{variant.id}: {count} answers are there, from a comparison that was interrupted")
        return kept

    @property
    def keeps(self) -> bool:
        """Whether answers are kept, of every model that was asked so far."""
        return bool(self._all) and not any(kept.fails for kept in self._all)

    def clear(self) -> None:
        """Remove what was kept: the comparison has ended."""
        for file in self._files:
            with contextlib.suppress(OSError):
                Path(file.name).unlink()

    @functools.cached_property
    def _fingerprint(self) -> str:
        """A hash of the pictures, and of what prepares them and computes the answers."""
        board = describe(1, self._root)
        programs = [version(name) for name in ("numpy", "pillow")]
        machine = [board.cpu, board.machine, board.features, board.onnxruntime, __version__, *programs]
        return hashlib.sha256(json.dumps([machine, self._pictures]).encode()).hexdigest()


def folder() -> Path:
    """Where answers are kept.

    Raises:
        RuntimeInputError: this user has no home folder.
    """
    return output.cache_folder() / "answers"


def _opened(path: Path) -> IO[bytes] | None:
    """The file of answers, locked; None where another process has it. Old ones beside it are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > ABANDONED_S:
                other.unlink()
    file = path.open("a+b")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else who had it removed it
            file.seek(0)
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _answer(line: bytes, classes: int) -> Prediction | None:
    """What a line holds; None where it is torn or damaged."""
    try:
        found = Prediction.from_json(parse(line.decode()))
    except ValueError:
        return None
    whole = line.endswith(b"\n") and all(0 <= one < classes for one in found.classes)
    return found if whole and found.classes else None


def _not_kept(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"answers are not kept ({reason}): a comparison that is interrupted will begin again"
