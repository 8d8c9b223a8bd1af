"""The newest frame of a source, and its decoding beside the model."""

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from vgg_runtime.errors import ImageError, RuntimeInputError

from .frames import Frame, Item

POLL_S = 0.1  # seconds until an interrupt is noticed


class Arrived(NamedTuple):
    """A frame, its number among all that arrived, from 1, and when that was, in s of perf_counter."""

    frame: Frame
    number: int
    at: float


class Decoded(NamedTuple):
    """A frame as the bytes of its float32 tensor [channels, px, px]. ``taken``: when it was taken to be
    decoded, in s of monotonic."""

    arrived: Arrived
    tensor: bytes
    decode_ms: float
    taken: float


class Latest:
    """Passes the newest frame from one thread to another. A newer frame replaces one that was not taken
    yet."""

    def __init__(self) -> None:
        self.received = self.dropped = self.broken = 0
        self.fault: str | None = None  # the error of the last broken frame
        self.failure: RuntimeInputError | None = None  # the error that ended the source, if one did
        self._changed = threading.Condition()
        self._frame: Arrived | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        with self._changed:
            return self._ended and self._frame is None

    def put(self, item: Item) -> None:
        with self._changed:
            self.received += 1
            if isinstance(item, ImageError):
                self._spoil(item)
                return
            self.dropped += self._frame is not None
            self._frame = Arrived(item, self.received, time.perf_counter())
            self._changed.notify()

    def take(self, timeout_s: float) -> Arrived | None:
        """The newest frame; None when none comes within ``timeout_s`` or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended, timeout_s)
            taken, self._frame = self._frame, None
            return taken

    def spoil(self, error: ImageError) -> None:
        """Count a frame that was taken but cannot be decoded."""
        with self._changed:
            self._spoil(error)

    def end(self, failure: RuntimeInputError | None = None) -> None:
        with self._changed:
            self._ended, self.failure = True, failure
            self._changed.notify()

    def _spoil(self, error: ImageError) -> None:
        self.broken += 1
        self.fault = str(error)


class Decoder:
    """Decodes one frame at a time in a thread, the newest there is, while the model runs. Frames that cannot
    be decoded are counted and passed over.

    Args:
        decode: gives the bytes of a frame's tensor, or raises ImageError.
    """

    def __init__(self, latest: Latest, decode: Callable[[Frame], bytes]) -> None:
        self._latest, self._decode = latest, decode
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "decode")
        self._stopped = threading.Event()
        self.begin(0.0)

    def begin(self, at: float) -> None:
        """Take and decode a frame, but not before ``at``, in s of monotonic."""
        self.ended = False
        self._made = self._pool.submit(self._next, at)

    def take(self, timeout_s: float) -> Decoded | None:
        """The decoded frame; None when it is not ready within ``timeout_s``, or when there is none any more:
        then ``ended`` is true."""
        if not concurrent.futures.wait([self._made], timeout_s).done:
            return None
        made = self._made.result()
        self.ended = made is None
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown()

    def _next(self, at: float) -> Decoded | None:
        self._stopped.wait(max(0.0, at - time.monotonic()))
        while not self._stopped.is_set():
            arrived = self._latest.take(POLL_S)
            taken = time.monotonic()
            if arrived is None:
                if self._latest.ended:
                    return None
                continue
            start = time.perf_counter()
            try:
                tensor = self._decode(arrived.frame)
            except ImageError as error:
                self._latest.spoil(error)
                continue
            return Decoded(arrived, tensor, (time.perf_counter() - start) * 1e3, taken)
        return None
