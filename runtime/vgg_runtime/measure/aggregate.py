"""Makes the row of one variant from its rounds: which samples count, and which marks the row gets.

A board gets hot. The variants therefore take turns in rounds, in another order each time, so that heat does
not decide the winner. A round in which the board was held back is marked, and its samples are left out of the
figures. Where the rounds drift only the last one counts, because it shows the speed that the board keeps up.
Every sample stays in ``rounds``.
"""

import dataclasses
import statistics
from collections.abc import Sequence

from vgg_runtime.board.monitor import LEAST_CLOCK
from vgg_runtime.bundle.metrics import percentile
from vgg_runtime.result import Round, Row, State

# a larger ratio of medians (of two rounds, or of the first and last third of one) is a drift
DRIFT = 1.25
LEAST_FOR_DRIFT = 15  # samples of a round; a third of fewer says nothing


def order(count: int, turn: int) -> list[int]:
    """The order of ``count`` variants in round ``turn``, as indices. Each round starts a third of them later,
    and every second round runs backwards."""
    rotated = [(k + turn * max(1, count // 3)) % count for k in range(count)]
    return rotated[::-1] if turn % 2 else rotated


def held_back(during: State, highest_mhz: float | None) -> tuple[str, ...]:
    """What slowed the board down in a round; ``highest_mhz`` is the highest clock of all rounds."""
    reasons = list(during.held_back or ())
    clock = during.clock_mhz
    if clock and highest_mhz and clock < LEAST_CLOCK * highest_mhz:
        reasons.append(f"clock at {clock:.0f} of {highest_mhz:.0f} MHz")
    return tuple(reasons)


def drift(samples_ms: Sequence[float]) -> float:
    """How much slower the last third of a round was than the first, or the other way round; 1.0 where there
    are too few samples."""
    if len(samples_ms) < LEAST_FOR_DRIFT:
        return 1.0
    third = len(samples_ms) // 3
    return _ratio([statistics.median(samples_ms[:third]), statistics.median(samples_ms[-third:])])


def _ratio(values: Sequence[float]) -> float:
    return max(values) / min(values)


def settled(row: Row, highest_mhz: float | None) -> Row:
    """The row with the figures and ``marks`` that follow from its ``rounds``."""
    rounds = [
        dataclasses.replace(found, held_back=held_back(found.state.during, highest_mhz))
        for found in row.rounds
    ]
    timed = [found for found in rounds if found.samples_ms]
    clean = [found for found in timed if not found.held_back]
    marks, counted = _held_words(timed, clean), clean or timed
    if words := _drift_words(counted):
        marks.append(f"drifting: {words}; the figures are those of the last round")
        counted = counted[-1:]
    samples = tuple(ms for found in counted for ms in found.samples_ms)
    return dataclasses.replace(
        with_samples(row, samples),
        rounds=tuple(rounds),
        marks=tuple(marks),
        load_ms=_median([found.load_ms for found in rounds]),
        first_ms=_median([found.first_ms for found in rounds]),
    )


def with_samples(row: Row, samples_ms: Sequence[float]) -> Row:
    """The row with these latencies, and the percentiles for which there are enough of them."""
    p50, p90, p99 = (percentile(samples_ms, q) for q in (50, 90, 99))
    return dataclasses.replace(
        row, samples_ms=tuple(samples_ms), runs=len(samples_ms), p50_ms=p50, p90_ms=p90, p99_ms=p99
    )


def _median(found: Sequence[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return statistics.median(known) if known else None


def _drift_words(counted: Sequence[Round]) -> str | None:
    """How the latencies drift, between the rounds or within one; None where they do not."""
    medians = [statistics.median(found.samples_ms) for found in counted]
    within = max((drift(found.samples_ms) for found in counted), default=1.0)
    if medians and _ratio(medians) > DRIFT:
        return f"the rounds' medians lie between {min(medians):.1f} and {max(medians):.1f} ms"
    return f"{within:.2f}x within a round" if within > DRIFT else None


def _held_words(timed: Sequence[Round], clean: Sequence[Round]) -> list[str]:
    held = sorted({reason for found in timed for reason in found.held_back})
    if not held:
        return []
    many = "in every round: these figures are those of a board that is held back"
    some = f"in {len(timed) - len(clean)} of {len(timed)} rounds, which are left out"
    return [f"held back ({', '.join(held)}) {some if clean else many}"]
