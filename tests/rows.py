"""Results made by hand: a row and a document with only what a test is about."""

from typing import Any

from vgg_runtime.result import About, MeasuredDevice, Result, Row

DEVICE = MeasuredDevice("a board", "x86_64", "a cpu", (), 4, 4, None, None, "3.11", "1.24", target="x86-vnni")
ABOUT = About("artifacts", "vgg11", {}, "x86-vnni")


def a_row(variant: str = "baseline", **given: Any) -> Row:
    fixed: dict[str, Any] = {"title": variant, "precision": "fp32", "input_px": 224}
    fixed |= {"parameters": 1_000_000, "macs": 1_000_000_000, "size_bytes": 4_000_000}
    return Row(variant=variant, **fixed | given)


def a_result(*rows: Row, **given: Any) -> Result:
    fixed = {"schema": 1, "measured_at": "2026-01-01T00:00:00Z", "device": DEVICE, "bundle": ABOUT}
    return Result(**{**fixed, "variants": rows, **given})
