"""Compares the results of several runs or boards, and names the device of every figure."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.records import FieldError, parse, text_of
from vgg_runtime.result import SCHEMA, Result, Row
from vgg_runtime.text import ABSENT, folded, megabytes, number, percent, printable, table

from .tables import MARK, headings, notice, verdict

SIGNIFICANT = 0.10  # two runs on the same board differ in latency by up to this share
EXPECTED = "expected a file that 'compare.py --json' wrote"
LONGEST_LINE = 1000  # characters


def read(path: Path) -> Result:
    """Read a result that ``compare.py --json`` wrote.

    Raises:
        RuntimeInputError: the file cannot be read, is no result (the error names the first wrong field), or
            has a newer schema.
    """
    try:
        found = parse(text_of(path))
    except (OSError, ValueError) as error:
        reason = (
            error.strerror
            if isinstance(error, OSError)
            else f"it holds no JSON text that is read here: {error}"
        )
        raise RuntimeInputError(f"{path} cannot be read ({reason}); {EXPECTED}") from error
    if (newer := _schema(found)) > SCHEMA:
        raise RuntimeInputError(
            f"{path} has schema {newer}; this runtime reads up to {SCHEMA}: use a newer vgg-export"
        )
    try:
        return Result.from_json(found)
    except FieldError as error:
        raise RuntimeInputError(f"{path} is no result ({error}); {EXPECTED}") from error


def _schema(found: object) -> int:
    """The schema of a document that looks like a result; 0 if it does not, or has no schema."""
    if not isinstance(found, dict) or not {"device", "bundle", "variants"} <= found.keys():
        return 0
    schema = found.get("schema")
    return schema if isinstance(schema, int) else 0


def device_words(result: Result) -> str:
    """The device, system and time of a result in one line."""
    device = result.device
    engine = f"onnxruntime {device.onnxruntime or 'missing'}"
    cpu = printable(device.cpu or device.machine)
    return f"{printable(device.board)}, {cpu}, {device.threads} threads, {engine}, {result.measured_at}"


COLUMNS = (
    "variant",
    "P50 ms A",
    "B",
    "change",
    "peak MB A",
    "B",
    "change",
    "file MB A",
    "B",
    "agrees A",
    "B",
)
ORDER = (0, 1, 2, 3, 4, 5, 6, 9, 10, 7, 8)  # by importance


def diff(before: Result, after: Result, width: int | None = None) -> str:
    """Two results, variant by variant: latency, memory, size, and what else changed."""
    lines = [f"A  {device_words(before)}", f"B  {device_words(after)}", ""]
    first, second = _by_variant(before), _by_variant(after)
    names = [*first, *(name for name in second if name not in first)]
    rows = [_cells(name, first.get(name), second.get(name)) for name in names]
    # a heading is one of these, followed by a letter
    columns = [" ".join(headings(name.split(" "), after.bundle.output)) for name in COLUMNS]
    shown = table(columns, rows, width=width, order=ORDER)
    return _shown([*lines, *shown.split("\n"), *_remarks(before, after)], width)


def _shown(lines: Sequence[str], width: int | None) -> str:
    """The lines without control characters, because a result may come from anybody, and folded."""
    return "\n".join(folded(printable(line, LONGEST_LINE), width) for line in lines)


def _cells(name: str, a: Row | None, b: Row | None) -> list[str]:
    """The cells of one variant; ``a`` or ``b`` is None where that result lacks it."""
    latencies = [row.p50_ms if row else None for row in (a, b)]
    peaks = [row.peak_rss_bytes if row else None for row in (a, b)]
    sizes = [row.size_bytes if row else None for row in (a, b)]
    return [
        printable(name, LONGEST_LINE),
        _latency(a),
        _latency(b),
        change(*latencies),
        *(megabytes(peak) for peak in peaks),
        change(*peaks),
        *(megabytes(size) for size in sizes),
        *(percent(row.agreement if row else None) for row in (a, b)),
    ]


def _remarks(before: Result, after: Result) -> list[str]:
    found = [
        f"{letter} {line}"
        for letter, result in (("A", before), ("B", after))
        for line in notice(result.bundle).splitlines()
    ]
    a, b = before.device, after.device
    for name, one, other in (
        ("boards", a.board, b.board),
        ("versions of onnxruntime", a.onnxruntime, b.onnxruntime),
        ("numbers of threads", a.threads, b.threads),
    ):
        if one != other:
            found.append(f"These are different {name}: {one} and {other}.")
    first, second = _by_variant(before), _by_variant(after)
    both = [name for name in first if name in second]
    changed = [name for name in both if first[name].size_bytes != second[name].size_bytes]
    found += [f"{name} is another model: the file has another size." for name in changed]
    for letter, rows in (("A", first), ("B", second)):
        found += [f"{letter} {MARK} {name}: {mark}" for name, row in rows.items() for mark in row.marks]
        found += [f"{letter} ✗ {name}: {row.error}" for name, row in rows.items() if row.error]
    return found


def change(before: float | None, after: float | None) -> str:
    """The change in per cent, with an arrow where it is larger than SIGNIFICANT; a dash where a value is
    missing."""
    if not before or after is None:
        return ABSENT
    ratio = after / before - 1
    arrow = " ▲" if ratio > SIGNIFICANT else " ▼" if ratio < -SIGNIFICANT else ""
    return f"{100 * ratio:+.0f} %{arrow}"


def boards(results: Sequence[Result], width: int | None = None) -> str:
    """Several results in one table; each device has a number."""
    heads = [f"{k}  {device_words(result)}" for k, result in enumerate(results, 1)]
    found = [_by_variant(result) for result in results]
    rows = []
    for name in dict.fromkeys(name for rows_of_one in found for name in rows_of_one):
        cells = [printable(name, LONGEST_LINE)]
        for row in (rows_of_one.get(name) for rows_of_one in found):
            speedup, peak = (row.speedup, row.peak_rss_bytes) if row else (None, None)
            cells += [_latency(row), number(speedup, "x"), megabytes(peak)]
        rows.append(cells)
    columns = [
        f"{title} [{k}]" for k in range(1, len(results) + 1) for title in ("P50 ms", "speed", "peak MB")
    ]
    numbered = [(k, row) for k, of_one in enumerate(found, 1) for row in of_one.values()]
    marks = [f"[{k}] {MARK} {row.variant}: {mark}" for k, row in numbered for mark in row.marks]
    failed = [f"[{k}] ✗ {row.variant}: {row.error}" for k, row in numbered if row.error]
    stars = [
        f"[{k}] {line.strip()}"
        for k, result in enumerate(results, 1)
        for line in verdict(result).splitlines()
    ]
    notices = [
        f"[{k}] {line}" for k, result in enumerate(results, 1) for line in notice(result.bundle).splitlines()
    ]
    # every board's latency first, then every board's speed, then the memory
    order = [0, *(1 + 3 * k + figure for figure in range(3) for k in range(len(results)))]
    shown = table(("variant", *columns), rows, width=width, order=order)
    return _shown([*stars, *heads, "", *shown.split("\n"), *marks, *failed, *notices], width)


def _by_variant(result: Result) -> Mapping[str, Row]:
    """The rows by the name of the variant, in Unicode NFC: both sides may have written it otherwise."""
    return {unicodedata.normalize("NFC", row.variant): row for row in result.variants}


def _latency(row: Row | None) -> str:
    return ABSENT if row is None else number(row.p50_ms, MARK if row.marks else "")
