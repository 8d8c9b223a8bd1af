"""Figures and tables as text for a terminal."""

import unicodedata
from collections.abc import Sequence

from .result import Proportion

ABSENT = "–"
NO_LABEL = "(none)"  # of a picture to which a multi-label network gives no label


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell; the first ``left`` flush left, the others flush right."""
    lines = [list(header), ["" for _ in header], *[list(row) for row in rows]]
    widths = [max(printed_width(line[k]) for line in lines) for k in range(len(header))]
    lines[1] = ["─" * w for w in widths]
    return "\n".join(
        "  ".join(padded(cell, widths[k], flush_left=k < left) for k, cell in enumerate(line)).rstrip()
        for line in lines
    )


def printed_width(text: str) -> int:
    return sum(
        2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text
    )


def padded(text: str, width: int, *, flush_left: bool) -> str:
    blanks = " " * (width - printed_width(text))
    return text + blanks if flush_left else blanks + text


def printable(text: str, limit: int = 40) -> str:
    """A label or file name without control characters, cut to ``limit``."""
    clean = "".join(c if c.isprintable() else "·" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def number(value: float | None, unit: str = "", digits: int = 1) -> str:
    """A figure with its unit, or a dash when it was not measured."""
    return ABSENT if value is None else f"{value:.{digits}f}{unit}"


def megabytes(value: float | None) -> str:
    return ABSENT if value is None else f"{value / 1e6:.1f}" if value < 1e8 else f"{value / 1e6:.0f}"


def percent(proportion: Proportion | None, *, interval: bool = False) -> str:
    """A proportion in percent; with ``interval`` also its 95 % interval, in whole percent."""
    if proportion is None:
        return ABSENT
    text = f"{100 * proportion.rate:.1f} %"
    low, high = (100 * bound for bound in proportion.interval95)
    return f"{text} ({low:.0f} to {high:.0f})" if interval else text
