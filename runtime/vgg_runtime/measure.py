"""Measures variants, each in a fresh child process, one at a time, and makes the result document.

The document is a contract (schema 1, described in the project's README); what was not measured is None.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from . import advice, check, device
from .manifest import Manifest, Variant
from .metrics import percentile, wilson_interval
from .recommend import recommend

RESULT_SCHEMA = 1
MAX_RUNS = 200

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """``budget_s``: seconds of timed runs per variant. ``threads``: of onnxruntime."""

    threads: int
    budget_s: float = 10.0
    max_runs: int = MAX_RUNS


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture to be classified: class index where known; ``fitted`` when something in the bundle was fitted or calibrated on
    it, so that it counts for no figure."""

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
    """Measure ``variants`` on ``images`` (with class indices where known) and return the result document."""
    result = skeleton(folder, manifest, labels, images, options)
    rows = result["variants"]
    for number, variant in enumerate(variants, 1):
        report(f"{number}/{len(variants)} {variant.id}")
        pictures = Pictures([image.path for image in images])
        rows.append(measure(folder, manifest, variant, pictures, options, report))
        finish(result, manifest, labels, images)
    return result


def skeleton(folder: Path, manifest: Manifest, labels: Sequence[str], images: Sequence[Shown], options: Options) -> dict[str, Any]:
    """The result document before any variant has been measured."""
    return {
        "schema": RESULT_SCHEMA,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": device.describe(options.threads).to_json(),
        "bundle": _bundle(folder, manifest),
        "images": [_named(image, labels) for image in images],
        "variants": [],
        "recommended": None,
        "explanations": [],
    }


def _named(image: Shown, labels: Sequence[str]) -> dict[str, Any]:
    return {"file": str(image.path), "label": None if image.label is None else labels[image.label], "fitted": image.fitted}


def finish(result: dict[str, Any], manifest: Manifest, labels: Sequence[str], images: Sequence[Shown]) -> None:
    """Relate the rows so far to the baseline, name their classes, and recommend one of them."""
    rows, first = result["variants"], manifest.variants[0].id
    baseline = next((row for row in rows if row["variant"] == first and row["error"] is None), None)
    for row in rows:
        _relate(row, baseline, images, manifest.figures_absent)
        _name(row["predictions"], labels)
    result["recommended"] = recommend(rows, first)
    result["device"] |= device.state()  # the work may have made it hot
    result["explanations"] = advice.explanations(result)


def _bundle(folder: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "path": str(folder),
        "family": manifest.family,
        "weights": manifest.weights,
        "target": manifest.target,
        "notice": manifest.notice,
        "figures_absent": manifest.figures_absent,
        "created_by": manifest.created_by,
    }


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a variant is asked about: files, or one tensor per input size in px as raw float32 bytes."""

    paths: Sequence[Path] = ()
    tensors: dict[int, bytes] = dataclasses.field(default_factory=dict)


def measure(folder: Path, manifest: Manifest, variant: Variant, pictures: Pictures, options: Options, report: Report) -> dict[str, Any]:
    """One row of the result document, not yet related to the others."""
    running = Running(folder, manifest, variant, pictures, options)
    for event in running.events():
        if event["event"] == "predicted" and (event["index"] + 1) % 10 == 0:
            report(f"  {variant.id}: {event['index'] + 1}/{len(pictures.paths)} pictures")
    return running.row


class Running:
    """A variant in its own process. ``row`` of the result document grows with what it says."""

    def __init__(self, folder: Path, manifest: Manifest, variant: Variant, pictures: Pictures, options: Options) -> None:
        tensor = pictures.tensors.get(variant.preprocessing.crop_px, b"")
        request = {
            "variant": variant.id,
            "model": str(folder / variant.model.path),
            "expected": str(folder / manifest.expected.path),
            "session": dataclasses.asdict(variant.session),
            "preprocessing": variant.preprocessing.to_json(),
            "threads": options.threads,
            "budget_s": options.budget_s,
            "max_runs": options.max_runs,
            "images": [str(path) for path in pictures.paths],
            "tensor_bytes": len(tensor),
        }
        self.row = empty_row(variant)
        self._variant = variant
        self._question = json.dumps(request).encode() + b"\n" + tensor
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed by events()
        self._child = start("vgg_runtime.child", self._complaints)

    def events(self) -> Iterator[dict[str, Any]]:
        """Each thing the variant says, after it was entered into the row; how it died, if it did, becomes the row's error."""
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status says how
                child.stdin.write(self._question)
                child.stdin.close()
            for line in child.stdout:
                event = json.loads(line)
                _take(self.row, event, self._variant)
                yield event
            if code := child.wait():
                self._complaints.seek(0)
                self.row["error"] = self.row["error"] or explain_death(code, self._complaints.read())
        finally:
            self.kill()
            child.wait()
            child.stdout.close()
            self._complaints.close()

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
        "size_bytes": variant.model.bytes,
        "load_ms": None,
        "first_ms": None,
        "p50_ms": None,
        "p90_ms": None,
        "runs": 0,
        "samples_ms": [],
        "speedup": None,
        "peak_rss_bytes": None,
        "self_check_deviation": None,
        "accuracy": None,
        "agreement": None,
        "predictions": [],
        "built": variant.evaluation,
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
            limit = check.TOLERANCE[variant.precision]
            if event["deviation"] > limit:
                row["error"] = (
                    f"self-check failed: logits differ by {event['deviation']:.2g} of their spread"
                    f" from those recorded at build time, at most {limit:g} allowed"
                )
        case "timed":
            samples = event["samples_ms"]
            row |= {"samples_ms": samples, "runs": len(samples), "peak_rss_bytes": event["peak_rss_bytes"]}
            row |= {"p50_ms": percentile(samples, 50), "p90_ms": percentile(samples, 90)}
        case "predicted":
            row["predictions"].append({"classes": event["classes"], "probabilities": event["probabilities"]})
        case "error":
            row["error"] = row["error"] or event["message"]


def start(module: str, complaints: IO[str] | int) -> "subprocess.Popen[bytes]":
    """A child process of this very copy of the runtime, whatever else is installed; spoken to through its standard streams."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, "-P", "-m", module]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, env=environment)


def explain_death(code: int, complaint: str) -> str:
    """One sentence for a child's non-zero return code (negative: the signal) and what it wrote to standard error."""
    if code == -signal.SIGKILL:
        return "did not fit: the process was killed, as the system does when memory runs out"
    if code == -signal.SIGILL:
        return "onnxruntime uses an instruction this CPU lacks (1.21.0 does on a Pi 4): install another version, see requirements.txt"
    last = complaint.strip().splitlines()[-1][:200] if complaint.strip() else "it said nothing"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}: {last}"
    return f"the process ended with code {code}: {last}"


def _relate(row: dict[str, Any], baseline: dict[str, Any] | None, images: Sequence[Shown], absent: str | None) -> None:
    """Speed against the baseline, agreement with it and accuracy, where each can be had honestly."""
    if baseline and row["p50_ms"]:
        row["speedup"] = baseline["p50_ms"] / row["p50_ms"]
    found = [p["classes"][0] for p in row["predictions"]]
    counted = [k for k, image in enumerate(images) if not image.fitted]
    if absent or len(found) != len(images) or not counted:
        return
    if baseline and len(baseline["predictions"]) == len(images):
        row["agreement"] = _proportion(sum(found[k] == baseline["predictions"][k]["classes"][0] for k in counted), len(counted))
    known = [k for k in counted if images[k].label is not None]
    if known:
        row["accuracy"] = _proportion(sum(found[k] == images[k].label for k in known), len(known))


def _proportion(right: int, n: int) -> dict[str, Any]:
    return {"rate": right / n, "n": n, "interval95": list(wilson_interval(right, n))}


def _name(predictions: list[dict[str, Any]], labels: Sequence[str]) -> None:
    for prediction in predictions:
        prediction["labels"] = [labels[i] for i in prediction["classes"]]
