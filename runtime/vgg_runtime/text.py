"""Figures and tables as text for a terminal."""

import re
import shutil
import textwrap
import unicodedata
from collections.abc import Sequence

from .result import Proportion

ABSENT = "–"
NO_LABEL = "(none)"  # of a picture to which a multi-label network gives no label


GAP = "  "  # between two columns
_TOGETHER = "\N{NO-BREAK SPACE}"
_UNIT = re.compile(r"(?<=\d) (?=(?:ms|s|[kMG]i?B|MHz|px|points?|times)\b|%|°C)")


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    width: int | None = None,
    order: Sequence[int] | None = None,
) -> str:
    """Columns as wide as their widest cell; the first ``left`` flush left, the others flush right.

    With a ``width`` in characters only as many columns as fit into it. ``order`` are their numbers by
    importance, None: from left to right; they are shown from left to right in any case.
    """
    wide = widths(header, rows)
    lines = [list(header), ["─" * w for w in wide], *[list(row) for row in rows]]
    shown = fitting(wide, range(len(header)) if order is None else order, width)
    return "\n".join(
        GAP.join(padded(line[k], wide[k], flush_left=k < left) for k in shown).rstrip() for line in lines
    )


def widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The characters of each column's widest cell."""
    return [max(printed_width(line[k]) for line in (header, *rows)) for k in range(len(header))]


def fitting(widths: Sequence[int], order: Sequence[int], width: int | None) -> list[int]:
    """The first columns of ``order`` that fit side by side into ``width`` characters, from left to right."""
    shown: list[int] = []
    room = -len(GAP)
    for k in order:
        room += len(GAP) + widths[k]
        if width is not None and room > width and shown:
            break
        shown.append(k)
    return sorted(shown)


def folded(words: str, width: int | None, indent: str = "  ") -> str:
    """Text whose lines have at most ``width`` characters; what a line continues in begins with ``indent``. A
    number stays with its unit."""
    if width is None:
        return words
    kept = _UNIT.sub(_TOGETHER, words)
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        if len(line) > width
        else line
        for line in kept.split("\n")
    ).replace(_TOGETHER, " ")


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


def in_bytes(value: float | None) -> str:
    """A size with its unit, or a dash when it was not measured: "14.6 kB", "2.0 MB"."""
    if value is None:
        return ABSENT
    return f"{value / 1e3:.1f} kB" if value < 1e5 else f"{megabytes(value)} MB"


def duration(seconds: float) -> str:
    """A time as one says it: "40 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


NARROWEST = 80  # characters of a line, for which every table has a form


def terminal_width() -> int:
    """The characters of a line, at least NARROWEST, as COLUMNS or the terminal says."""
    return max(NARROWEST, shutil.get_terminal_size((NARROWEST, 24)).columns)


def in_percent(proportion: Proportion | None, digits: int = 0) -> str:
    """A proportion and its 95 % interval in few characters, under a heading that says per cent:
    "98.6 (98–99)"."""
    if proportion is None:
        return ABSENT
    low, high = (f"{100 * bound:.{digits}f}" for bound in proportion.interval95)
    return f"{100 * proportion.rate:.1f} ({low}–{high})"


def percent(proportion: Proportion | None, *, interval: bool = False) -> str:
    """A proportion in percent; with ``interval`` also its 95 % interval, in whole percent."""
    if proportion is None:
        return ABSENT
    text = f"{100 * proportion.rate:.1f} %"
    low, high = (100 * bound for bound in proportion.interval95)
    return f"{text} ({low:.0f} to {high:.0f})" if interval else text
