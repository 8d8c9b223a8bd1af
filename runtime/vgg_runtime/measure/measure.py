"""Measures variants, each in a fresh child process, one at a time, and makes the result document.

The document is a contract (schema 1, described in the project's README); what was not measured is None.
"""

import contextlib
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from vgg_runtime.board import device, memory, monitor, targets
from vgg_runtime.bundle import builds, self_check
from vgg_runtime.bundle.manifest import Manifest, Variant
from vgg_runtime.bundle.metrics import chance, percentile, wilson_interval

from . import aggregate, remedies
from .process import explain_death, start
from .recommend import LEAST_LABELLED, MAX_LOSS_POINTS, near_chance, recommend

RESULT_SCHEMA = 1


MAX_RUNS = 1000


SWEPT_THREADS = (1, 2, 4)


Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """``threads``: of onnxruntime; None tries 1, 2 and 4 and takes what is fastest for each variant.
    ``budget_s``: seconds of timed runs per variant, divided into ``rounds``, with at most ``cool_down_s`` of
    waiting before each. A variant that says nothing for ``silence_s`` beyond its budget is ended. ``memory``:
    one of builds.MEMORY_MODES. The board's state is read below ``root``."""

    threads: int | None
    budget_s: float = 10.0
    max_runs: int = MAX_RUNS
    rounds: int = 3
    cool_down_s: float = 30.0
    silence_s: float = 300.0
    memory: str = builds.AUTO
    root: Path = Path("/")

    def of_a_round(self, threads: int) -> Self:
        """One round's share of time and runs."""
        budget_s, max_runs = self.budget_s / self.rounds, max(1, self.max_runs // self.rounds)
        return dataclasses.replace(self, threads=threads, rounds=1, budget_s=budget_s, max_runs=max_runs)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture to be classified: class index where known; ``fitted`` when something in the bundle was fitted
    or calibrated on it, so that it counts for no figure."""

    path: Path
    label: int | None = None
    fitted: bool = False


def compare(
    folder: Path,
    manifest: Manifest,
    labels: Sequence[str],
    variants: Sequence[Variant],
    images: Sequence[Shown],
    options: Options,
    report: Report,
) -> dict[str, Any]:
    """Measure ``variants`` on ``images`` (with class indices where known) in rounds and return the result
    document."""
    result = skeleton(folder, manifest, labels, images, options)
    start = monitor.State.now(options.root)
    rows = result["variants"] = [empty_row(variant) for variant in variants]
    pictures = Pictures([image.path for image in images])
    for turn in range(options.rounds):
        for number, k in enumerate(aggregate.order(len(variants), turn), 1):
            variant, row = variants[k], rows[k]
            if row["error"]:
                continue  # it failed in the first round
            report(f"round {turn + 1}/{options.rounds}, {number}/{len(variants)} {variant.id}")
            if not turn:
                row["threads"] = options.threads or _best_threads(
                    folder, manifest, variant, row, options, report
                )
            monitor.cool_down(start, options.cool_down_s, options.root)
            share = options.of_a_round(row["threads"])
            _add(row, measure(folder, manifest, variant, pictures if not turn else Pictures(), share, report))
    highest = max(
        (mhz for row in rows for found in row["rounds"] if (mhz := found["state"]["during"]["clock_mhz"])),
        default=None,
    )
    for row in rows:
        aggregate.settle(row, highest)
    finish(result, manifest, labels, images, options.root)
    return result


def _add(row: dict[str, Any], found: dict[str, Any]) -> None:
    """Enter one round into the row; what is asked once (the check, the pictures) comes from the first."""
    row["rounds"].append({key: found[key] for key in ("load_ms", "first_ms", "samples_ms", "state")})
    for key in ("peak_rss_bytes", "peak_anonymous_bytes", "peak_file_backed_bytes"):
        row[key] = max((peak for peak in (row[key], found[key]) if peak is not None), default=None)
    row |= {"memory_mode": found["memory_mode"], "error": row["error"] or found["error"]}
    if found["self_check_deviation"] is not None:
        row["self_check_deviation"] = max(found["self_check_deviation"], row["self_check_deviation"] or 0.0)
    for key in ("predictions", "prepare_ms", "end_to_end_ms"):
        row[key] = row[key] or found[key]


def _best_threads(
    folder: Path, manifest: Manifest, variant: Variant, row: dict[str, Any], options: Options, report: Report
) -> int:
    """How many threads suit a variant: the least P90, or P50 where too few runs were made; what was seen goes
    into the row."""
    usable = device.usable_cores()
    for threads in [n for n in SWEPT_THREADS if n <= usable]:
        report(f"  {variant.id}: trying {threads} thread{'s' if threads > 1 else ''}")
        found = measure(folder, manifest, variant, Pictures(), options.of_a_round(threads), report)
        row["thread_sweep"].append(
            {"threads": threads, **{key: found[key] for key in ("p50_ms", "p90_ms", "runs", "error")}}
        )
    worked = [tried for tried in row["thread_sweep"] if tried["p50_ms"]]
    key = "p90_ms" if worked and all(tried["p90_ms"] for tried in worked) else "p50_ms"
    return min(worked, key=lambda tried: tried[key])["threads"] if worked else usable


def skeleton(
    folder: Path, manifest: Manifest, labels: Sequence[str], images: Sequence[Shown], options: Options
) -> dict[str, Any]:
    """The result document before any variant has been measured."""
    board = device.describe(options.threads or device.usable_cores(), options.root)
    return {
        "schema": RESULT_SCHEMA,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": board.to_json() | {"target": targets.of_device(board).name},
        "bundle": _bundle(folder, manifest),
        "images": [_named(image, labels) for image in images],
        "variants": [],
        "recommended": None,
        "explanations": [],
    }


def _named(image: Shown, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "file": str(image.path),
        "label": None if image.label is None else labels[image.label],
        "fitted": image.fitted,
    }


def finish(
    result: dict[str, Any],
    manifest: Manifest,
    labels: Sequence[str],
    images: Sequence[Shown],
    root: Path = Path("/"),
) -> None:
    """Relate the rows so far to the baseline, name their classes, and recommend one of them."""
    rows, first = result["variants"], manifest.variants[0].id
    baseline = next((row for row in rows if row["variant"] == first and row["error"] is None), None)
    for row in rows:
        _relate(row, baseline, images, manifest.figures_absent)
        _name(row["predictions"], labels)
    allowed = MAX_LOSS_POINTS if manifest.max_drop is None else manifest.max_drop
    # long, shown above
    problem = (
        manifest.problem and "the checkpoint does not understand its pictures; the notice says what was found"
    )
    result["recommended"] = recommend(rows, first, allowed, problem or _near_chance(baseline, images, labels))
    result["device"] |= device.state(root)  # the work may have made it hot
    result["explanations"] = remedies.explanations(result)


def _near_chance(
    baseline: dict[str, Any] | None, images: Sequence[Shown], labels: Sequence[str]
) -> str | None:
    """Why the pictures that were shown here speak against the baseline itself; None where they do not, or are
    too few."""
    known = [image.label for image in images if image.label is not None and not image.fitted]
    if baseline is None or baseline["accuracy"] is None or len(known) < LEAST_LABELLED:
        return None
    return near_chance(
        {"top1": baseline["accuracy"], "chance": chance(np.array(known), len(labels))}, "pictures shown here"
    )


def _bundle(folder: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "path": str(folder),
        "family": manifest.family,
        "weights": manifest.weights,
        "target": manifest.target,
        "notice": manifest.notice,
        "figures_absent": manifest.figures_absent,
        "unchecked": manifest.unchecked,
        "problem": manifest.problem,
        "assumed": list(manifest.assumed),
        "created_by": manifest.created_by,
    }


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a variant is asked about: files, or one tensor per input size in px as raw float32 bytes."""

    paths: Sequence[Path] = ()
    tensors: dict[int, bytes] = dataclasses.field(default_factory=dict)


def measure(
    folder: Path, manifest: Manifest, variant: Variant, pictures: Pictures, options: Options, report: Report
) -> dict[str, Any]:
    """One row of the result document, not yet related to the others."""
    running = Running(folder, manifest, variant, pictures, options)
    for event in running.events():
        if event["event"] == "predicted" and (event["index"] + 1) % 10 == 0:
            report(f"  {variant.id}: {event['index'] + 1}/{len(pictures.paths)} pictures")
    return running.row | {"state": running.state}


class Running:
    """A variant in its own process. ``row`` of the result document grows with what it says; ``state``, at its
    end, is how the board was meanwhile."""

    def __init__(
        self, folder: Path, manifest: Manifest, variant: Variant, pictures: Pictures, options: Options
    ) -> None:
        tensor = pictures.tensors.get(variant.preprocessing.crop_px, b"")
        memory_mode = builds.mode(variant.build, options.memory, device.available_bytes(options.root))
        request = builds.request(folder, manifest, variant, memory_mode) | {
            "preprocessing": variant.preprocessing.to_json(),
            "threads": options.threads,
            "budget_s": options.budget_s,
            "max_runs": options.max_runs,
            "images": [str(path) for path in pictures.paths],
            "tensor_bytes": len(tensor),
        }
        self.row, self.state = empty_row(variant) | {"memory_mode": memory_mode}, dict[str, Any]()
        self._variant, self._options, self._hung = variant, options, False
        self._question = json.dumps(request).encode() + b"\n" + tensor
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed by events()
        self._child = start("vgg_runtime.measure.worker", self._complaints)

    def events(self) -> Iterator[dict[str, Any]]:
        """Each thing the variant says, after it was entered into the row; how it died, if it did, becomes the
        row's error."""
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        found, resident = monitor.Watch(self._options.root), memory.Resident(child.pid)
        try:
            with found, resident:
                with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status says how
                    child.stdin.write(self._question)
                    child.stdin.close()
                for line in self._lines(child.stdout):
                    event = json.loads(line)
                    # the peak is behind it, and sampling would cost what is timed
                    if event["event"] == "loaded":
                        resident.stop()
                    _take(self.row, event, self._variant)
                    yield event
                code = child.wait()
            if code:
                self._complaints.seek(0)
                self.row["error"] = self.row["error"] or self._how_it_ended(code)
        finally:
            self.kill()
            child.wait()
            child.stdout.close()
            self._complaints.close()
            self.state = found.to_json()
            self.row |= {
                "peak_anonymous_bytes": resident.anonymous_bytes,
                "peak_file_backed_bytes": resident.file_bytes,
            }

    def _lines(self, stream: IO[bytes]) -> Iterator[bytes]:
        """What the child writes; one that is silent for too long is ended."""
        patience_s = self._options.silence_s + self._options.budget_s
        while True:
            timer = threading.Timer(patience_s, self._give_up)
            timer.start()
            try:
                line = stream.readline()
            finally:
                timer.cancel()
            if not line:
                return
            yield line

    def _give_up(self) -> None:
        self._hung = True
        self.kill()

    def _how_it_ended(self, code: int) -> str:
        if self._hung:
            limit = self._options.silence_s
            return (
                f"it hangs: it said nothing for {limit:g} s beyond its time and was ended; a slow board"
                " may need more (--silence)"
            )
        return explain_death(code, self._complaints.read())

    def kill(self) -> None:
        """End the process, from whatever thread; ``events`` then comes to its end."""
        self._child.kill()


def empty_row(variant: Variant) -> dict[str, Any]:
    return {
        "variant": variant.id,
        "title": variant.title,
        "description": variant.description,
        "steps": list(variant.steps),
        "precision": variant.precision,
        "input_px": variant.preprocessing.crop_px,
        "parameters": variant.parameters,
        "macs": variant.macs,
        "build": {
            "id": variant.build.id,
            "form": variant.build.form,
            "targets": list(variant.build.targets),
            "slower_kernels": targets.saturates(targets.here(), variant.build.targets),
        },
        "size_bytes": variant.build.bytes,
        "load_ms": None,
        "first_ms": None,
        "p50_ms": None,
        "p90_ms": None,
        "p99_ms": None,
        "threads": None,
        "thread_sweep": [],
        "runs": 0,
        "samples_ms": [],
        "rounds": [],
        "marks": [],
        "prepare_ms": None,
        "end_to_end_ms": None,
        "speedup": None,
        "memory_mode": None,
        "peak_rss_bytes": None,
        "peak_anonymous_bytes": None,
        "peak_file_backed_bytes": None,
        "self_check_deviation": None,
        "accuracy": None,
        "agreement": None,
        "predictions": [],
        "built": variant.build.evaluation,
        "losses": list(variant.losses),
        "error": None,
    }


def _take(row: dict[str, Any], event: dict[str, Any], variant: Variant) -> None:
    """Enter one event of the child into the row."""
    match event["event"]:
        case "loaded":
            row |= {"load_ms": event["load_ms"], "first_ms": event["first_ms"]}
        case "checked":
            row["self_check_deviation"] = event["deviation"]
            limit = self_check.TOLERANCE[variant.precision]
            if event["deviation"] > limit:
                row["error"] = (
                    f"self-check failed: logits differ by {event['deviation']:.2g} of their spread"
                    f" from those recorded at build time, at most {limit:g} allowed"
                )
        case "timed":
            samples = event["samples_ms"]
            row |= {"samples_ms": samples, "runs": len(samples), "peak_rss_bytes": event["peak_rss_bytes"]}
            row |= {f"p{q}_ms": percentile(samples, q) for q in (50, 90, 99)}
        case "predicted":
            row["predictions"].append({"classes": event["classes"], "probabilities": event["probabilities"]})
        case "answered":
            row |= {key: percentile(event[key], 50) for key in ("prepare_ms", "end_to_end_ms")}
        case "error":
            row["error"] = row["error"] or event["message"]


def _relate(
    row: dict[str, Any], baseline: dict[str, Any] | None, images: Sequence[Shown], absent: str | None
) -> None:
    """Speed against the baseline, agreement with it and accuracy, where each can be had honestly."""
    if baseline and row["p50_ms"]:
        row["speedup"] = baseline["p50_ms"] / row["p50_ms"]
    found = [p["classes"][0] for p in row["predictions"]]
    counted = [k for k, image in enumerate(images) if not image.fitted]
    if absent or len(found) != len(images) or not counted:
        return
    if baseline and len(baseline["predictions"]) == len(images):
        row["agreement"] = _proportion(
            sum(found[k] == baseline["predictions"][k]["classes"][0] for k in counted), len(counted)
        )
    known = [k for k in counted if images[k].label is not None]
    if known:
        row["accuracy"] = _proportion(sum(found[k] == images[k].label for k in known), len(known))


def _proportion(right: int, n: int) -> dict[str, Any]:
    return {"rate": right / n, "n": n, "interval95": list(wilson_interval(right, n))}


def _name(predictions: list[dict[str, Any]], labels: Sequence[str]) -> None:
    for prediction in predictions:
        prediction["labels"] = [labels[i] for i in prediction["classes"]]
