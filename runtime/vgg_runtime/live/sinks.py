"""Where answers go besides the terminal: a stream or a file of JSON lines, a command, a broker (``mqtt.py``).

A sink that fails does not end the stream: the failure is counted, and the summary says the last one.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from vgg_runtime import text
from vgg_runtime.errors import RuntimeInputError

from .answers import Answer

COMMAND_S = 10.0  # a command that takes longer is killed
KEPT = 1  # older log files


class SinkError(Exception):
    """An answer could not be handed on; the message says why."""


class Sink(Protocol):
    """``give`` hands an answer on, soon and without waiting for others; it raises SinkError. ``failure`` is
    what went wrong in the background since it was asked for the last time. ``close`` may be called twice."""

    def give(self, answer: Answer) -> None: ...

    def failure(self) -> str | None: ...

    def close(self) -> None: ...


def as_line(answer: Answer) -> str:
    """An answer as one line of JSON, in ASCII: a label may hold what would steer a terminal."""
    return json.dumps(answer.to_json(), allow_nan=False)


class Lines:
    """JSON lines on standard output."""

    def give(self, answer: Answer) -> None:
        """Write the line. BrokenPipeError, where nobody reads any more, ends the program."""
        sys.stdout.write(as_line(answer) + "\n")
        sys.stdout.flush()

    def failure(self) -> None:
        """It fails at once or not at all."""

    def close(self) -> None:
        """Standard output stays open."""


def _ends_within_a_line(path: Path) -> bool:
    """Whether a file is not empty and does not end with a line end."""
    with contextlib.suppress(OSError):  # one may write to it, but not read it
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() != b"\n"
    return False


class Log:
    """JSON lines in a file. When it would grow beyond ``limit_bytes`` it becomes FILE.1, and a new one
    begins."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path, self._limit = path, limit_bytes
        try:
            torn = _ends_within_a_line(path)
            self._file: IO[bytes] = path.open("ab")
            if torn:  # by a full disk or a loss of power; the next line stands alone
                self._file.write(b"\n")
            self._bytes = self._file.tell() if self._file.seekable() else 0
        except OSError as error:
            raise RuntimeInputError(
                f"{text.printable(str(path), 80)} cannot be written ({error.strerror}); name a file for --log"
                " in a folder you may write to"
            ) from error

    def give(self, answer: Answer) -> None:
        """Append the line."""
        line = as_line(answer).encode() + b"\n"
        try:
            if self._bytes and self._bytes + len(line) > self._limit and self._path.is_file():
                self._rotate()
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise SinkError(f"--log: {self._path} cannot be written ({error.strerror})") from error
        self._bytes += len(line)

    def failure(self) -> None:
        """It fails at once or not at all."""

    def close(self) -> None:
        """Close the file. What it could not write has been told."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _rotate(self) -> None:
        self._path.replace(self._path.with_name(f"{self._path.name}.{KEPT}"))
        full, self._file = self._file, self._path.open("ab")
        full.close()
        self._bytes = 0


class Command:
    """Runs a command when the answer changes, with the label and its probability in per cent as last
    arguments. One at a time: if the answer changes meanwhile, it runs again with the newest."""

    def __init__(self, command: Sequence[str], within_s: float = COMMAND_S) -> None:
        self._command, self._within_s = list(command), within_s
        self._newest: Answer | None = None
        self._failure: str | None = None
        self._changed, self._ended = threading.Condition(), False
        self._runner = threading.Thread(target=self._run, daemon=True)
        self._runner.start()

    def give(self, answer: Answer) -> None:
        """Let the command run where the answer changed."""
        if answer.changed:
            with self._changed:
                self._newest = answer
                self._changed.notify()

    def failure(self) -> str | None:
        """What went wrong since the last time."""
        with self._changed:
            found, self._failure = self._failure, None
            return found

    def close(self) -> None:
        """Wait for the command that runs, and for the one that waits behind it."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._runner.join(2 * self._within_s + 1)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended)
                answer, self._newest = self._newest, None
                if answer is None:
                    return
            failed = self._call(answer)
            with self._changed:
                self._failure = failed or self._failure

    def _call(self, answer: Answer) -> str | None:
        """Run the command once; returns what went wrong."""
        said = [answer.label or "", f"{100 * (answer.probability or 0.0):.1f}"]
        name = text.printable(self._command[0], 60)
        try:
            done = subprocess.run(
                [*self._command, *said],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=self._within_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"--on-change: {name} took more than {self._within_s:g} s and was ended"
        except (OSError, ValueError) as error:
            return f"--on-change: {name} cannot be run ({getattr(error, 'strerror', None) or error})"
        return f"--on-change: {name} ended with code {done.returncode}" if done.returncode else None
