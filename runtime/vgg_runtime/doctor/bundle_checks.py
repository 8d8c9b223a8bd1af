"""The doctor's checks of onnxruntime and of the bundle. onnxruntime may crash, so it runs in a child
process."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_runtime import console
from vgg_runtime.board.targets import of_device
from vgg_runtime.bundle import builds, manifest
from vgg_runtime.bundle.manifest import FileEntry, Variant
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.errors import BundleError
from vgg_runtime.measure import process
from vgg_runtime.records import FieldError, parse, text_of
from vgg_runtime.result import Device, Result
from vgg_runtime.text import in_bytes

from . import probe
from .finding import FAILS, INSTALL, OK, UNKNOWN, WARNING, Check, Report

TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"
IMPORT_SECONDS = 120.0  # a Zero 2 W takes ten seconds from its memory card
RUN_SECONDS = 600.0
# as report/page.py writes it
_RESULT = re.compile(r'<script type="application/json" id="result">(.*?)</script>', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Peak memory by variant in bytes, as measured on the processor ``cpu``."""

    peaks: dict[str, int]
    cpu: str


def examine(folder: Path, threads: int, board: Device, report: Report) -> list[Check]:
    """Check onnxruntime, then the bundle in ``folder``."""
    report("importing onnxruntime")
    checks = [runtime(board), telemetry(os.environ.get(TELEMETRY_OFF))]
    runs = checks[0].mark in (OK, WARNING)
    try:
        bundle = Bundle(folder, builds.for_core(manifest.read(folder), of_device(board)))
    except BundleError as error:
        return [*checks, _as_check("bundle", error)]
    files, variants = bundle.manifest.all_files(), bundle.manifest.variants
    wrong = differing(bundle, files, report)
    checks.append(hashes(files, wrong))
    checks += _labels(bundle, wrong)
    recorded = recorded_peaks(bundle)
    checks.append(memory(variants, recorded, board.available_bytes))
    for variant in variants:
        if variant.precision == "int8":
            report(f"running {variant.id}")
            why_not = _reason_not_to_run(variant, wrong, recorded, board.available_bytes, runs=runs)
            checks.append(fused(bundle, variant, threads) if why_not is None else _untried(variant, why_not))
    return checks


def _as_check(name: str, error: BundleError) -> Check:
    """A failed check from an error. The runtime's errors say what was found, then, after a semicolon, what to
    do."""
    found, _, remedy = str(error).rpartition("; ")
    return Check(name, FAILS, found or remedy, remedy)


def runtime(board: Device) -> Check:
    """Whether onnxruntime can be imported. A child tries it: 1.21.0 dies of an illegal instruction on a Pi
    4."""
    name = "onnxruntime"
    if board.onnxruntime is None:
        return Check(name, FAILS, "the package is not installed", INSTALL)
    try:
        events, death = ask({}, IMPORT_SECONDS)
    except OSError as error:
        return unstarted(name, error)
    if "imported" in events:
        return Check(name, OK, f"{events['imported']['version']} can be imported")
    why = death or events.get("error", {}).get("message", "there was no error message")
    remedy = "venv/bin/pip install --upgrade 'onnxruntime!=1.21.0' in the virtual environment that runs this"
    return Check(name, FAILS, f"{board.onnxruntime} is installed but cannot be imported: {why}", remedy)


def unstarted(name: str, error: OSError) -> Check:
    """What is said where the system starts no process, which tells nothing of onnxruntime or of a model."""
    why = console.refused(error) or f"{error.strerror or error}; close other programs"
    found, _, remedy = why.rpartition("; ")
    return Check(name, FAILS, f"it could not be tried, no process can be started: {found}", remedy)


def telemetry(off: str | None) -> Check:
    """Whether onnxruntime sends nothing to its vendor. ``off``: what its variable says, which is 1 unless the
    person has set it."""
    name = "telemetry"
    if off == "1":
        return Check(name, OK, f"onnxruntime's is off ({TELEMETRY_OFF}=1)")
    found = f"onnxruntime's may be on: {TELEMETRY_OFF} is {off!r} in this environment"
    return Check(name, WARNING, found, f"unset {TELEMETRY_OFF}, or set it to 1; then nothing is sent")


def ask(request: dict[str, Any], seconds: float) -> tuple[dict[str, process.Event], str | None]:
    """The events with which ``probe.py`` answers a request, by name, and how it died, if it did.

    Raises:
        OSError: the process cannot be started.
    """
    events = {}
    with contextlib.closing(process.Child("vgg_runtime.doctor.probe")) as child:
        with child.within(seconds):
            child.ask(request)
            while event := child.event():
                events[event["event"]] = event
            death = child.death()
        if death and child.late:
            return events, f"it did not end within {seconds:.0f} seconds"
        return events, death


def differing(bundle: Bundle, files: Sequence[FileEntry], report: Report) -> dict[str, BundleError]:
    """The errors of all files that are missing, have changed or are graphs that read others, by path."""
    wrong = {}
    for entry in files:
        report(f"checking {entry.path}")
        try:
            manifest.verify(bundle.folder, [entry])
            bundle.ensure_reads_only(entry, files)
        except BundleError as error:
            wrong[entry.path] = error
    return wrong


def _labels(bundle: Bundle, wrong: Collection[str]) -> list[Check]:
    """A failed check where the class names, whose file is as it was written, are not those of the manifest;
    else nothing."""
    try:
        _ = () if bundle.manifest.labels.path in wrong else bundle.labels
    except BundleError as error:
        return [_as_check("labels", error)]
    return []


def hashes(files: Sequence[FileEntry], wrong: dict[str, BundleError]) -> Check:
    """The check of the hashes of ``files``, of which ``differing`` found ``wrong``."""
    if not wrong:
        return Check(
            "hashes",
            OK,
            f"{len(files)} files, {in_bytes(sum(e.bytes for e in files))}, as they were written",
        )
    first = _as_check("hashes", next(iter(wrong.values())))
    others = list(wrong)[1:]
    return dataclasses.replace(
        first, found=first.found + (f"; {len(others)} more: {', '.join(others[:5])}" if others else "")
    )


def recorded_peaks(bundle: Bundle) -> Recorded:
    """The peaks from the report that ``vgg-export all`` leaves in the bundle; empty without a report.

    The manifest has no hash of the report, so a peak is used only if the report's model has the same size.
    """
    sizes = {variant.id: {build.bytes for build in variant.builds} for variant in bundle.manifest.variants}
    path = bundle.folder / manifest.REPORT_NAME
    try:
        found = _RESULT.search(text_of(path) if path.is_file() else "")  # a pipe would be waited for
        result = Result.from_json(parse(found[1] if found else ""))
    except (OSError, ValueError, FieldError):
        return Recorded({}, "unknown")
    peaks = {
        row.variant: row.peak_rss_bytes
        for row in result.variants
        if row.size_bytes in sizes.get(row.variant, ()) and row.peak_rss_bytes
    }
    return Recorded(peaks, str(result.device.cpu))


def memory(variants: Sequence[Variant], recorded: Recorded, available: int | None) -> Check:
    """Whether the variants fit into the available memory, as far as their needs are known."""
    name = "memory"
    if available is None:
        return Check(
            name,
            UNKNOWN,
            "this system does not say how much memory is available (MemAvailable in /proc/meminfo)",
        )
    free = f"{available / 1e6:.0f} MB available"
    too_large = [v for v in variants if _needed(v, recorded)[0] > available]
    if too_large:
        return _too_little(free, variants, too_large, recorded)
    largest = max(variants, key=lambda v: _needed(v, recorded)[0])
    if len(recorded.peaks) < len(variants):
        found = (
            f"{free}; the bundle does not record what its variants need: at least {_need(largest, recorded)}"
        )
        return Check(
            name, UNKNOWN, found, "run compare.py; its column 'peak MB' shows the need on this board"
        )
    return Check(name, OK, f"{free}; the largest need is {_need(largest, recorded)}")


def _too_little(
    free: str, variants: Sequence[Variant], too_large: Sequence[Variant], recorded: Recorded
) -> Check:
    found = f"{free}; too little for {', '.join(_need(v, recorded) for v in too_large)}"
    rest = [v.id for v in variants if v not in too_large]
    if not rest:
        least = min(variants, key=lambda v: _needed(v, recorded)[0])
        return Check(
            "memory",
            FAILS,
            found,
            f"close other programs, or use a board with more memory than {_need(least, recorded)}",
        )
    return Check(
        "memory", WARNING, found, f"close other programs, or leave these out: --variants {','.join(rest)}"
    )


def _needed(variant: Variant, recorded: Recorded) -> tuple[int, bool]:
    """Bytes of memory, and whether they are a measured peak; else they are the size of the model's files, the
    least that it can need."""
    peak = recorded.peaks.get(variant.id)
    return (variant.build.bytes, False) if peak is None else (peak, True)


def _need(variant: Variant, recorded: Recorded) -> str:
    size, measured = _needed(variant, recorded)
    return (
        f"{variant.id} ({in_bytes(size)},"
        f" {f'its peak on {recorded.cpu}' if measured else 'the size of its file'})"
    )


def _reason_not_to_run(
    variant: Variant, wrong: Collection[str], recorded: Recorded, available: int | None, *, runs: bool
) -> str | None:
    """Why the doctor should not load a variant; None when it may."""
    if not runs:
        return "onnxruntime cannot be imported"
    for entry in variant.build.files:
        if entry.path in wrong:
            return f"{entry.path} is not as it was written"
    if available is not None and _needed(variant, recorded)[0] > available:
        return f"{available / 1e6:.0f} MB are available, too little for {_need(variant, recorded)}"
    return None


def _untried(variant: Variant, why: str) -> Check:
    return Check(f"int8 of {variant.id}", UNKNOWN, f"not tried: {why}")


def unjudged(name: str, events: Mapping[str, Any], death: str | None, model: str) -> Check:
    """What is said of a variant that ``probe.py`` did not run: the model is at fault, or there is no place
    for onnxruntime's profile, which says nothing of the model."""
    if "no folder" in events:
        return Check(
            name,
            UNKNOWN,
            "onnxruntime's profile needs a temporary folder that can be written, and there is none"
            " (a full card, or a system that is read-only)",
            "name one: TMPDIR=FOLDER python compare.py --doctor",
        )
    why = death or events.get("error", {}).get("message", "there was no error message")
    return Check(name, FAILS, f"cannot be run: {why}", f"leave it out with --variants, or copy {model} again")


def fused(bundle: Bundle, variant: Variant, threads: int) -> Check:
    """Whether this board's onnxruntime runs an int8 variant in int8, except for the layers that were kept in
    float on purpose."""
    name = f"int8 of {variant.id}"
    request = {
        **builds.request(bundle, variant, builds.FAST),
        "threads": threads,
        "shape": variant.preprocessing.shape,
    }
    try:
        events, death = ask(request, RUN_SECONDS)
    except OSError as error:
        return unstarted(name, error)
    if "executed" not in events:
        return unjudged(name, events, death, variant.build.model.path)
    ran = events["executed"]
    return judged(
        name,
        ran["ops"],
        ran["float_layers"],
        ran["peak_rss_bytes"],
        bundle.manifest.created_by.get("onnxruntime", "unknown"),
    )


def judged(name: str, ops: dict[str, int], kept: int, peak_bytes: int | None, made_with: str) -> Check:
    """The check of the operators ``ops`` that were executed; ``kept`` layers are float on purpose."""
    integer = sum(ops.get(op, 0) for op in probe.INTEGER_LAYERS)
    left = {op: count for op, count in ops.items() if op in probe.FLOAT_LAYERS}
    # a layer kept in float has a ReLU of its own, and one more before it
    relus = {} if kept else {op: count for op, count in ops.items() if op == "Relu"}
    peak = "" if peak_bytes is None else f"; its process took {peak_bytes / 1e6:.0f} MB"
    intended = f", {kept} in float as intended" if kept else ""
    if sum(left.values()) <= kept and not relus:
        return Check(name, OK, f"{integer} layers run as int8{intended}{peak}")
    named = ", ".join(f"{count} {op}" for op, count in (left | relus).items())
    found = f"{named} run in float, expected {kept or 'none'}; {integer} layers run as int8{peak}"
    return Check(
        name,
        FAILS,
        found,
        f"install the onnxruntime that the bundle was made with ({made_with}), or use a float variant",
    )
