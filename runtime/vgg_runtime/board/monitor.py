"""The state of the board while something is timed on it: temperature, clock and what the firmware holds back,
before, during and after."""

import dataclasses
import statistics
import threading
import time
from pathlib import Path
from typing import Any, Self

from . import device

EVERY_S = 0.25
LEAST_CLOCK = 0.9  # of the highest clock seen under load; below it the clock was lowered
COOL_WITHIN_C = 3.0  # of the temperature that the board had at the start


@dataclasses.dataclass(frozen=True)
class State:
    """At one moment; what nobody says is None."""

    temperature_c: float | None
    clock_mhz: float | None
    held_back: tuple[str, ...] | None

    @classmethod
    def now(cls, root: Path = Path("/")) -> Self:
        found = device.state(root)
        held = found["throttled"]
        current = (
            None if held is None else tuple(name for name in held if not name.endswith(device.SINCE_BOOT))
        )
        return cls(found["temperature_c"], found["clock_mhz"], current)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Watch:
    """Looks at the board until it is stopped; ``with Watch(root) as watch: ...``, then
    ``watch.to_json()``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root, self._during, self._stop = root, list[State](), threading.Event()
        self._before = self._after = State.now(root)
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._after = State.now(self._root)

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._during.append(State.now(self._root))

    def to_json(self) -> dict[str, Any]:
        """``before``, ``after``, and of what was seen between them the highest temperature, the median clock
        and everything held back."""
        seen = self._during or [self._after]
        heat = [s.temperature_c for s in seen if s.temperature_c is not None]
        clock = [s.clock_mhz for s in seen if s.clock_mhz is not None]
        known = [s.held_back for s in seen if s.held_back is not None]
        during = State(
            max(heat, default=None),
            statistics.median(clock) if clock else None,
            tuple(sorted({n for h in known for n in h})) if known else None,
        )
        return {"before": self._before.to_json(), "during": during.to_json(), "after": self._after.to_json()}


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
