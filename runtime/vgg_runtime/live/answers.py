"""What a stream says: one answer per classified frame, and when it counts as a new one."""

import dataclasses
import datetime
from collections.abc import Sequence

from vgg_runtime.records import Record

from .document import Said

ANSWER_SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Answer(Record):
    """A classified frame (one JSON line, described in docs/live.md).

    ``frame``: its number among all that arrived, from 1. ``label``: what holds now, after --min-probability
    and --stable; None while nothing does. ``probability``: what this frame gives it, of several labels
    the least; None where it gives none. ``changed``: it is another one than before this frame. ``labels``:
    what this frame alone was given. ``end_to_end_ms``: from its arrival to its answer.
    """

    at: str
    frame: int
    label: str | None
    probability: float | None
    changed: bool
    labels: tuple[Said, ...]
    decode_ms: float
    model_ms: float
    end_to_end_ms: float
    schema: int = ANSWER_SCHEMA


def now() -> str:
    """The time in UTC, to the millisecond, as ISO 8601 writes it."""
    found = datetime.datetime.now(datetime.UTC)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclasses.dataclass(frozen=True)
class Stability:
    """When another answer counts: after it was given in ``frames`` frames in a row, and for ``seconds``. A
    label with less than ``min_probability`` is none."""

    frames: int = 1
    seconds: float = 0.0
    min_probability: float = 0.0


class Steady:
    """The answer that holds. ``labels``: its labels' numbers, empty where there is none."""

    def __init__(self, stability: Stability) -> None:
        self.labels: tuple[int, ...] = ()
        self._stability = stability
        self._next: tuple[int, ...] | None = None
        self._count, self._since = 0, 0.0

    def take(self, given: Sequence[tuple[int, float]], now_s: float) -> bool:
        """Take the labels of a frame with their probabilities; returns whether the answer changed."""
        least = self._stability.min_probability
        said = tuple(sorted(label for label, probability in given if probability >= least))
        if said == self.labels:
            self._next = None
            return False
        if said != self._next:
            self._next, self._count, self._since = said, 0, now_s
        self._count += 1
        if self._count < self._stability.frames or now_s - self._since < self._stability.seconds:
            return False
        self.labels, self._next = said, None
        return True
