"""Results of several runs or boards side by side; every figure with the device that it was measured on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.measure.measure import RESULT_SCHEMA
from vgg_runtime.text import ABSENT, megabytes, number, percent, printable, table

from .tables import MARK, notice

SIGNIFICANT = 0.10  # a smaller change of a latency is no news: two runs on the same board differ by that much


def read(path: Path) -> dict[str, Any]:
    """A result document that ``compare.py --json`` wrote.

    Raises:
        RuntimeInputError: not readable, not such a document, or of a newer schema.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RuntimeInputError(
            f"{path} cannot be read ({error}); expected a file that 'compare.py --json' wrote"
        ) from error
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("schema"), int)
        or not {"device", "bundle", "variants"} <= found.keys()
    ):
        raise RuntimeInputError(f"{path} is no result; expected a file that 'compare.py --json' wrote")
    if found["schema"] > RESULT_SCHEMA:
        raise RuntimeInputError(
            f"{path} has schema {found['schema']}; this runtime reads up to {RESULT_SCHEMA}: use a newer"
            " vgg-export"
        )
    return found


def device_words(result: dict[str, Any]) -> str:
    """A result's device, system and time in a line."""
    device = result["device"]
    engine = f"onnxruntime {device['onnxruntime'] or 'missing'}"
    cpu = printable(device["cpu"] or device["machine"])
    return (
        f"{printable(device['board'])}, {cpu}, {device['threads']} threads, {engine}, {result['measured_at']}"
    )


def diff(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Two results, variant by variant: latency, memory, size, and what else changed."""
    lines = [f"A  {device_words(before)}", f"B  {device_words(after)}", ""]
    columns = (
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
    first, second = _by_variant(before), _by_variant(after)
    rows = []
    for name in [*first, *(name for name in second if name not in first)]:
        a, b = first.get(name, {}), second.get(name, {})
        rows.append(
            [
                name,
                *_pair(a, b, "p50_ms", _latency),
                change(a.get("p50_ms"), b.get("p50_ms")),
                *_pair(a, b, "peak_rss_bytes", _memory),
                change(a.get("peak_rss_bytes"), b.get("peak_rss_bytes")),
                *_pair(a, b, "size_bytes", _memory),
                *(percent(row.get("agreement")) for row in (a, b)),
            ]
        )
    return "\n".join(lines) + table(columns, rows) + "".join(_remarks(before, after, first, second))


def _remarks(
    before: dict[str, Any], after: dict[str, Any], first: dict[str, Any], second: dict[str, Any]
) -> list[str]:
    found = [
        f"\n{letter} {line}"
        for letter, result in (("A", before), ("B", after))
        for line in notice(result).splitlines()
    ]
    for key, name in (
        ("board", "boards"),
        ("onnxruntime", "versions of onnxruntime"),
        ("threads", "numbers of threads"),
    ):
        if before["device"][key] != after["device"][key]:
            found.append(f"\nThese are different {name}: {before['device'][key]} and {after['device'][key]}.")
    other = [
        name for name in first if name in second and first[name]["size_bytes"] != second[name]["size_bytes"]
    ]
    found += [f"\n{name} is another model: the file has another size." for name in other]
    for letter, rows in (("A", first), ("B", second)):
        found += [
            f"\n{letter} {MARK} {name}: {mark}" for name, row in rows.items() for mark in row.get("marks", ())
        ]
        found += [f"\n{letter} ✗ {name}: {row['error']}" for name, row in rows.items() if row["error"]]
    return found


def change(before: float | None, after: float | None) -> str:
    """In per cent, with an arrow where it is more than runs on one board differ by; a dash where there is
    nothing to compare."""
    if not before or after is None:
        return ABSENT
    ratio = after / before - 1
    arrow = " ▲" if ratio > SIGNIFICANT else " ▼" if ratio < -SIGNIFICANT else ""
    return f"{100 * ratio:+.0f} %{arrow}"


def boards(results: Sequence[dict[str, Any]]) -> str:
    """Several results in one table, each device under its own number."""
    heads = [f"{k}  {device_words(result)}" for k, result in enumerate(results, 1)]
    names = list(dict.fromkeys(row["variant"] for result in results for row in result["variants"]))
    found = [_by_variant(result) for result in results]
    rows = []
    for name in names:
        cells = [name]
        for rows_of_one in found:
            row = rows_of_one.get(name, {})
            cells += [
                _latency(row, "p50_ms"),
                number(row.get("speedup"), "x"),
                _memory(row, "peak_rss_bytes"),
            ]
        rows.append(cells)
    columns = [
        f"{title} [{k}]" for k in range(1, len(results) + 1) for title in ("P50 ms", "speed", "peak MB")
    ]
    marks = [
        f"[{k}] {MARK} {n}: {m}"
        for k, of in enumerate(found, 1)
        for n, row in of.items()
        for m in row.get("marks", ())
    ]
    failed = [
        f"[{k}] ✗ {n}: {row['error']}"
        for k, of in enumerate(found, 1)
        for n, row in of.items()
        if row["error"]
    ]
    notices = [f"[{k}] {line}" for k, result in enumerate(results, 1) for line in notice(result).splitlines()]
    return "\n".join([*heads, "", table(("variant", *columns), rows), *marks, *failed, *notices])


def _by_variant(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in result["variants"]}


def _pair(a: dict[str, Any], b: dict[str, Any], key: str, words: Any) -> tuple[str, str]:
    return words(a, key), words(b, key)


def _latency(row: dict[str, Any], key: str) -> str:
    return number(row.get(key), MARK if row.get("marks") else "")


def _memory(row: dict[str, Any], key: str) -> str:
    return megabytes(row.get(key))
