"""The document of ``compare.py --live --json``. The fields of these records are its keys.

It is a contract (schema 1, described in the project's docs/json.md). Values that were not measured are None.
"""

import dataclasses

from vgg_runtime.records import Record
from vgg_runtime.result import About, MeasuredDevice

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Percentiles(Record):
    """Latencies of a stage over the whole run of ``n`` frames, in ms; a percentile is None where there are
    too few frames for it."""

    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Recent(Record):
    """P50 and P90 of each stage over the latest frames, in ms."""

    decode: tuple[float | None, ...]
    model: tuple[float | None, ...]
    end_to_end: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Frames(Record):
    """Counts of frames; ``left`` were still waiting when the run ended."""

    received: int
    classified: int
    dropped: int
    broken: int
    left: int


@dataclasses.dataclass(frozen=True)
class Count(Record):
    """The number of frames that were given a label."""

    label: str
    n: int


@dataclasses.dataclass(frozen=True)
class Said(Record):
    """A label, and its probability."""

    label: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Temperatures(Record):
    """Temperatures of the board in degrees Celsius."""

    start: float | None
    max: float | None
    end: float | None


@dataclasses.dataclass(frozen=True)
class Running(Record):
    """The variant, the source, and how the run ended. ``ended`` is frames, seconds, source, interrupted,
    terminated or error; ``error`` says what failed."""

    variant: str
    source: str
    ended: str
    error: str | None
    load_ms: float | None
    first_ms: float | None
    self_check_deviation: float | None


@dataclasses.dataclass(frozen=True)
class Seen(Record):
    """The figures of a stream so far. ``said`` counts the labels that the frames were given. ``last`` is the
    most probable label of the last frame; ``last_labels`` are those that it was given: one class, or every
    label above 0.5 of a multi-label network. ``changes`` counts how often the answer changed;
    ``failed_deliveries``, how many attempts to hand one on failed (what goes to a broker waits for the next
    one), and why the last time."""

    seconds: float
    frames: Frames
    last_fault: str | None
    frames_per_s: float | None
    decode_ms: Percentiles
    model_ms: Percentiles
    end_to_end_ms: Percentiles
    recent_ms: Recent
    said: tuple[Count, ...]
    last: Said | None
    throttled: tuple[str, ...] | None
    temperature_c: Temperatures
    last_labels: tuple[Said, ...] = ()
    changes: int = 0
    failed_deliveries: int = 0
    last_failed_delivery: str | None = None


@dataclasses.dataclass(frozen=True)
class Live(Seen, Running):
    """A whole run. ``reconnected``: how often a network source was asked again, and ``last_break`` why the
    last time."""

    reconnected: int = 0
    last_break: str | None = None


@dataclasses.dataclass(frozen=True)
class LiveResult(Record):
    """The whole document."""

    schema: int
    measured_at: str
    device: MeasuredDevice
    bundle: About
    live: Live
