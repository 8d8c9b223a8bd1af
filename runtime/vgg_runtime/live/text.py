"""What ``compare.py --live`` prints: a line every few seconds and a summary."""

import time
from typing import Any

from vgg_runtime import text
from vgg_runtime.bundle.manifest import Manifest, Variant
from vgg_runtime.report import tables

ENDINGS = {
    "frames": "as many frames as were asked for",
    "seconds": "as long as was asked for",
    "source": "the source ended",
    "interrupted": "interrupted",
    "terminated": "asked to end by SIGTERM",
    "error": "FAILED",
}
STAGES = {"decode": "decode+preprocess", "model": "model", "end_to_end": "end to end"}


def title(variant: Variant, source: str, threads: int) -> str:
    """What begins."""
    plural = "" if threads == 1 else "s"
    form = f"{variant.precision}, {variant.preprocessing.crop_px} px, {threads} thread{plural}"
    return (
        f"{text.printable(source, 80)} is classified by {variant.id} ({form}); Ctrl-C ends it."
        " Latencies are P50/P90."
    )


def line(live: dict[str, Any], rate: float, bundle: Manifest) -> str:
    """What happened lately; ``rate``: frames per second since the line before."""
    frames, heat, last = live["frames"], live["temperature_c"]["end"], live["last"]
    parts = [time.strftime("%H:%M:%S"), f"{rate:.1f} frames/s"]
    for stage, name in STAGES.items():
        p50, p90 = live["recent_ms"][stage]
        parts.append(f"{name} {text.number(p50)}/{text.number(p90)} ms")
    parts.append(f"{frames['received']} received, {frames['dropped']} dropped, {frames['broken']} broken")
    parts.append("temperature unknown" if heat is None else f"{heat:.0f} °C")
    if live["throttled"]:
        parts.append(f"HELD BACK: {', '.join(live['throttled'])}")
    if last and not bundle.figures_absent:  # what random weights say is not worth reading
        parts.append(f"{text.printable(last['label'])} {100 * last['probability']:.0f} %")
    return "  ".join(parts)


def summary(result: dict[str, Any]) -> str:
    """The result document."""
    live, heat = result["live"], result["live"]["temperature_c"]
    frames = live["frames"]
    lines = [
        f"Ended    {ENDINGS[live['ended']]}, after {live['seconds']:.1f} s",
        f"Frames   {frames['received']} received: {frames['classified']} classified, {frames['dropped']}"
        " dropped for newer ones,"
        f" {frames['broken']} broken, {frames['left']} left",
        f"Rate     {text.number(live['frames_per_s'])} frames/s",
        f"State    {tables.state(result['device'])}; at the start {_degrees(heat['start'])}, at most"
        f" {_degrees(heat['max'])}",
    ]
    if live["last_fault"]:
        lines.append(f"Broken   the last: {text.printable(live['last_fault'], 200)}")
    if live["said"] and not result["bundle"]["figures_absent"]:
        most = ", ".join(f"{text.printable(one['label'])} {one['n']}" for one in live["said"][:5])
        lines.append(f"Said     {most}{', …' if len(live['said']) > 5 else ''}")
    rows = [[name, *_cells(live[f"{stage}_ms"])] for stage, name in STAGES.items()]
    lines += ["", text.table(("ms", "P50", "P90", "P99", "max", "frames"), rows)]
    lines.append(
        "end to end: from a frame's arrival here to its answer; what camera and network need comes on top."
    )
    if live["error"]:
        lines.append(f"✗ {live['variant']}: {live['error']}")
    return "\n".join(lines)


def _degrees(value: float | None) -> str:
    return text.number(value, " °C", 0)


def _cells(latency: dict[str, Any]) -> list[str]:
    return [*(text.number(latency[key]) for key in ("p50", "p90", "p99", "max")), str(latency["n"])]
