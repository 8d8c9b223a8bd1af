"""Frames as they come out of a stream of bytes, of a program, or at a pace."""

import collections
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from vgg_runtime.addresses import HIDDEN, hidden_in
from vgg_runtime.errors import ImageError, RuntimeInputError
from vgg_runtime.text import printable

from .mjpeg import Splitter

Frame = bytes | Path | Image.Image
Item = Frame | ImageError  # an ImageError is a frame that arrived damaged

CHUNK_BYTES = 1 << 16


class Source(Protocol):
    """A source of frames. ``frames`` ends with the stream, or soon after ``stopped`` is set; it raises
    RuntimeInputError when the stream cannot be read (any more). ``close`` ends what the source has started;
    it is called from another thread."""

    name: str

    def frames(self, stopped: threading.Event) -> Iterator[Item]: ...

    def close(self) -> None: ...


class Program:
    """A program that writes JPEGs one after the other to its standard output. ``secrets``: what must not be
    shown of what it says. One that writes nothing for ``silence_s`` counts as gone."""

    def __init__(
        self, name: str, command: Sequence[str], secrets: Sequence[str] = (), silence_s: float | None = None
    ) -> None:
        self.name = name
        self._command, self._secrets, self._silence_s = list(command), secrets, silence_s
        self._process: subprocess.Popen[bytes] | None = None

    def frames(self, stopped: threading.Event) -> Iterator[Item]:
        pipe = subprocess.PIPE
        process = self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,  # Ctrl-C must reach only this program, which then ends that one
        )
        assert process.stdout is not None
        assert process.stderr is not None
        # the last line of its standard error; it is read because a full pipe would stop the program
        last: collections.deque[bytes] = collections.deque(maxlen=1)
        listener = threading.Thread(target=last.extend, args=(process.stderr,), daemon=True)
        listener.start()
        try:
            yield from pictures_in(pieces_of(process.stdout.fileno(), stopped, self._silence_s))
        except TimeoutError as error:
            raise RuntimeInputError(f"{self.name} has sent nothing for {self._silence_s:.0f} s") from error
        finally:
            if stopped.is_set() or sys.exception():
                self.close()
        if stopped.is_set():
            return
        code = process.wait()
        listener.join(1)
        if code:
            said = hidden(last[0].decode(errors="replace").strip(), self._secrets) if last else "nothing"
            raise RuntimeInputError(
                f"{self.name}: {self._command[0]} ended with code {code}, it said: {said}"
            )

    def close(self) -> None:
        if (process := self._process) is None:
            return
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def hidden(words: str, secrets: Sequence[str]) -> str:
    """A message of somebody else without these secrets in it, nor others in the addresses that it names."""
    for secret in secrets:
        words = words.replace(secret, HIDDEN)
    return printable(hidden_in(words), 200)


def pieces_of(descriptor: int, stopped: threading.Event, silence_s: float | None = None) -> Iterator[bytes]:
    """The bytes that arrive at a file descriptor, until its end.

    Raises:
        TimeoutError: nothing came for ``silence_s``.
    """
    heard = time.monotonic()
    while not stopped.is_set():
        ready, _, _ = select.select([descriptor], [], [], 0.2)
        if ready:
            if not (piece := os.read(descriptor, CHUNK_BYTES)):
                return
            heard = time.monotonic()
            yield piece
        elif silence_s is not None and time.monotonic() - heard > silence_s:
            raise TimeoutError


def pictures_in(pieces: Iterator[bytes]) -> Iterator[bytes | ImageError]:
    """The pictures in a stream of bytes, and what its end left of one."""
    splitter = Splitter()
    for piece in pieces:
        yield from splitter.feed(piece)
    yield from splitter.end()


def paced(
    items: Iterator[bytes | ImageError], fps: float, stopped: threading.Event
) -> Iterator[bytes | ImageError]:
    for _, item in zip(ticks(fps, stopped), items, strict=False):
        yield item


def ticks(fps: float, stopped: threading.Event, *, at_once: bool = True) -> Iterator[float]:
    """Yield the time in s, ``fps`` times per second, until ``stopped`` is set. After a late tick the next
    ones keep their distance."""
    due = time.monotonic() + (0.0 if at_once else 1 / fps)
    while not stopped.wait(max(0.0, due - time.monotonic())):
        now = time.monotonic()
        due = max(due, now - 1 / fps) + 1 / fps
        yield now
