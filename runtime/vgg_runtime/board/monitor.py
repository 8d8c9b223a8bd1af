"""Records the state of the board while something is timed on it: temperature, clock and the limits that the
firmware sets, before, during and after."""

import statistics
import threading
import time
from pathlib import Path
from typing import Self

from vgg_runtime.result import State, Watched

from . import device

EVERY_S = 0.25
LEAST_CLOCK = 0.9  # of the highest clock seen under load; below it the clock was lowered
COOL_WITHIN_C = 3.0  # above the temperature at the start; from there on the board is cool


def state_now(root: Path = Path("/")) -> State:
    """The state at this moment."""
    held = device.throttled(root)
    current = None if held is None else tuple(name for name in held if not name.endswith(device.SINCE_BOOT))
    return State(device.temperature_c(root), device.clock_mhz(root), current)


class Watch:
    """Samples the board's state while the block runs: ``with Watch(root) as watch: ...``, then
    ``watch.seen()``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root, self._during, self._stop = root, list[State](), threading.Event()
        self._before = self._after = state_now(root)
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._after = state_now(self._root)

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._during.append(state_now(self._root))

    def seen(self) -> Watched:
        """The states before and after, and during: the highest temperature, the median clock and every limit
        that was seen between them."""
        seen = self._during or [self._after]
        heat = [s.temperature_c for s in seen if s.temperature_c is not None]
        clock = [s.clock_mhz for s in seen if s.clock_mhz is not None]
        known = [s.held_back for s in seen if s.held_back is not None]
        during = State(
            max(heat, default=None),
            statistics.median(clock) if clock else None,
            tuple(sorted({n for h in known for n in h})) if known else None,
        )
        return Watched(self._before, during, self._after)


def cool_down(start: State, longest_s: float, root: Path = Path("/")) -> float:
    """Wait until the board is about as cool as at the start, at most ``longest_s``; returns the seconds
    waited. Without a sensor there is nothing to wait for."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < longest_s:
        now = device.temperature_c(root)
        if now is None or start.temperature_c is None or now <= start.temperature_c + COOL_WITHIN_C:
            return waited
        time.sleep(min(EVERY_S, longest_s - waited))
    return waited
