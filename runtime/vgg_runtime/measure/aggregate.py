"""Several rounds of one variant -> its row: which samples count, and what has to be said of them.

A board gets hot: the variants take turns in rounds, in another order each time, so that heat does not decide
the winner. A round in which the board was held back is marked and its samples are left out, not averaged with
the others; so are all but the last round where the rounds differ, because the last is what lasts. Every
sample stays in ``rounds``.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from vgg_runtime.board.monitor import LEAST_CLOCK
from vgg_runtime.bundle.metrics import percentile

# largest ratio of medians, of two rounds or of the first and last third of one, that is no drift
DRIFT = 1.25
LEAST_FOR_DRIFT = 15  # samples of a round; below that a third of them says nothing


def order(count: int, turn: int) -> list[int]:
    """In which order ``count`` variants take part in a round: rotated by a third of them each time, every
    other one backwards."""
    rotated = [(k + turn * max(1, count // 3)) % count for k in range(count)]
    return rotated[::-1] if turn % 2 else rotated


def held_back(found: dict[str, Any], highest_mhz: float | None) -> list[str]:
    """What slowed the board down in a round: ``found`` is what ``watch.Watch`` saw, ``highest_mhz`` the
    highest clock of all rounds."""
    during = found["during"]
    reasons = list(during["held_back"] or ())
    clock = during["clock_mhz"]
    if clock and highest_mhz and clock < LEAST_CLOCK * highest_mhz:
        reasons.append(f"clock at {clock:.0f} of {highest_mhz:.0f} MHz")
    return reasons


def drift(samples_ms: Sequence[float]) -> float:
    """How much slower the last third of a round was than the first, or the other way round; 1.0 where there
    are too few samples."""
    if len(samples_ms) < LEAST_FOR_DRIFT:
        return 1.0
    third = len(samples_ms) // 3
    return _ratio([statistics.median(samples_ms[:third]), statistics.median(samples_ms[-third:])])


def _ratio(values: Sequence[float]) -> float:
    return max(values) / min(values)


def settle(row: dict[str, Any], highest_mhz: float | None) -> None:
    """Fill in the figures of a row from its ``rounds``, and its ``marks``."""
    rounds: list[dict[str, Any]] = row["rounds"]
    for found in rounds:
        found["held_back"] = held_back(found["state"], highest_mhz)
    timed = [found for found in rounds if found["samples_ms"]]
    clean = [found for found in timed if not found["held_back"]]
    row["marks"] = _held_words(timed, clean)
    counted = clean or timed
    medians = [statistics.median(found["samples_ms"]) for found in counted]
    within = max((drift(found["samples_ms"]) for found in counted), default=1.0)
    if medians and (_ratio(medians) > DRIFT or within > DRIFT):
        low, high = min(medians), max(medians)
        where = (
            f"the rounds' medians go from {low:.1f} to {high:.1f} ms"
            if _ratio(medians) > DRIFT
            else f"{within:.2f}x within a round"
        )
        row["marks"].append(f"drifting: {where}; the figures are those of the last round")
        counted = counted[-1:]
    samples = [ms for found in counted for ms in found["samples_ms"]]
    row |= {"samples_ms": samples, "runs": len(samples)}
    row |= {f"p{q}_ms": percentile(samples, q) if samples else None for q in (50, 90, 99)}
    for key in ("load_ms", "first_ms"):
        values = [found[key] for found in rounds if found[key] is not None]
        row[key] = statistics.median(values) if values else None


def _held_words(timed: Sequence[dict[str, Any]], clean: Sequence[dict[str, Any]]) -> list[str]:
    held = sorted({reason for found in timed for reason in found["held_back"]})
    if not held:
        return []
    many = "in every round: these figures are those of a board that is held back"
    some = f"in {len(timed) - len(clean)} of {len(timed)} rounds, which are left out"
    return [f"held back ({', '.join(held)}) {some if clean else many}"]
