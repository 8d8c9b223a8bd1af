"""Makes the text of ``compare.py --live``: a line every few seconds and a summary."""

import time

from vgg_runtime import text
from vgg_runtime.bundle.manifest import Manifest, Variant
from vgg_runtime.bundle.outputs import MULTI_LABEL
from vgg_runtime.report import tables

from .document import LiveResult, Percentiles, Seen

ENDINGS = {
    "frames": "as many frames as were asked for",
    "seconds": "as long as was asked for",
    "source": "the source ended",
    "interrupted": "interrupted",
    "terminated": "asked to end by SIGTERM or SIGHUP",
    "error": "FAILED",
}
# The parts of a line by importance: time, what holds the board back, answer, rate, latencies from the whole
# to its parts, frames, temperature.
LINE_ORDER = (0, 7, 8, 1, 4, 3, 5, 6, 2)
STAGES = ("decode+preprocess", "model", "end to end")


def title(variant: Variant, source: str, threads: int, width: int | None = None) -> str:
    """The first line: source, variant, its form, and how to end; folded at ``width`` characters."""
    plural = "" if threads == 1 else "s"
    form = f"{variant.precision}, {variant.preprocessing.px} px, {threads} thread{plural}"
    words = f"{text.printable(source, 80)} is classified by {variant.id} ({form}); Ctrl-C ends it."
    return text.folded(f"{words} Latencies are P50/P90.", width)


def line(seen: Seen, rate: float, bundle: Manifest, width: int | None = None) -> str:
    """One line on the latest frames; ``rate``: frames per second since the line before. Within ``width``
    characters it says the most important that fits."""
    frames, heat = seen.frames, seen.temperature_c.end
    recent = (seen.recent_ms.decode, seen.recent_ms.model, seen.recent_ms.end_to_end)
    stages = [
        f"{name} {text.number(p50)}/{text.number(p90)} ms"
        for name, (p50, p90) in zip(STAGES, recent, strict=True)
    ]
    parts = [
        *(time.strftime("%H:%M:%S"), f"{rate:.1f} frames/s", *stages),
        f"{frames.received} received, {frames.dropped} dropped, {frames.broken} broken",
        "temperature unknown" if heat is None else f"{heat:.0f} °C",
        f"HELD BACK: {', '.join(seen.throttled)}" if seen.throttled else "",
        _answer(seen, bundle),
    ]
    order = [k for k in LINE_ORDER if parts[k]]
    shown = text.fitting([text.printed_width(part) for part in parts], order, width)
    return text.GAP.join(parts[k] for k in shown)


def _answer(seen: Seen, bundle: Manifest) -> str:
    """What the latest frame shows; empty where there is none, and for random weights, whose predictions mean
    nothing."""
    if not seen.last or bundle.figures_absent:
        return ""
    named = [f"{text.printable(one.label)} {100 * one.probability:.0f} %" for one in seen.last_labels]
    above = "labels above 0.5: " if bundle.output == MULTI_LABEL else ""
    return above + (", ".join(named) or text.NO_LABEL)


def summary(result: LiveResult, width: int | None = None) -> str:
    """The summary of the whole run; folded at ``width`` characters."""
    live, heat = result.live, result.live.temperature_c
    frames = live.frames
    lines = [
        f"Ended    {ENDINGS[live.ended]}, after {live.seconds:.1f} s",
        f"Frames   {frames.received} received: {frames.classified} classified, {frames.dropped}"
        f" dropped for newer ones, {frames.broken} broken, {frames.left} left",
        f"Rate     {text.number(live.frames_per_s)} frames/s",
        f"State    {tables.state(result.device)}; at the start {_degrees(heat.start)}, at most"
        f" {_degrees(heat.max)}",
    ]
    if live.last_fault:
        lines.append(f"Broken   the last one: {text.printable(live.last_fault, 200)}")
    if live.said and not result.bundle.figures_absent:
        most = ", ".join(f"{text.printable(one.label)} {one.n}" for one in live.said[:5])
        lines.append(f"Said     {most}{', …' if len(live.said) > 5 else ''}")
    if live.changes:
        lines.append(f"Changes  {live.changes}")
    if live.reconnected:
        why = f", the last time because {text.printable(live.last_break, 200)}" if live.last_break else ""
        lines.append(f"Source   was asked again {live.reconnected} times{why}")
    if live.last_failed_delivery:
        last = text.printable(live.last_failed_delivery, 200)
        lines.append(f"Failed   {live.failed_deliveries} attempts to hand an answer on, the last: {last}")
    stages = zip(STAGES, (live.decode_ms, live.model_ms, live.end_to_end_ms), strict=True)
    rows = [[name, *_cells(latency)] for name, latency in stages]
    lines += ["", text.table(("ms", "P50", "P90", "P99", "max", "frames"), rows)]
    lines.append(
        "end to end: from a frame's arrival here to its answer, without the time of camera and network."
    )
    if live.error:
        lines.append(f"✗ {live.variant}: {live.error}")
    return text.folded("\n".join(lines), width, " " * 9)


def _degrees(value: float | None) -> str:
    return text.number(value, " °C", 0)


def _cells(latency: Percentiles) -> list[str]:
    figures = (latency.p50, latency.p90, latency.p99, latency.max)
    return [*(text.number(figure) for figure in figures), str(latency.n)]
