"""Runs one variant in a fresh child process and enters its events into a row of the result."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from vgg_runtime import text
from vgg_runtime.board import device, memory, monitor, targets
from vgg_runtime.bundle import builds, self_check
from vgg_runtime.bundle.manifest import Variant
from vgg_runtime.bundle.metrics import percentile
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.result import BuildUsed, Predictions, Round, Row, Watched

from . import aggregate
from .answers import TIMED_PICTURES
from .kept import Kept
from .process import Child, Event

MAX_RUNS = 1000
TOLD_AT_ONCE = 256  # paths of pictures


Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """How variants are measured. ``threads``: of onnxruntime; None tries 1, 2 and 4 and takes the fastest
    number for each variant. ``budget_s``: seconds of timed runs per variant, divided among ``rounds``, with a
    wait of at most ``cool_down_s`` before each. A variant that sends no event for ``silence_s`` beyond its
    budget is killed. ``memory``: one of builds.MEMORY_MODES. The board's state is read below ``root``."""

    threads: int | None
    budget_s: float = 10.0
    max_runs: int = MAX_RUNS
    rounds: int = 3
    cool_down_s: float = 30.0
    silence_s: float = 300.0
    memory: str = builds.AUTO
    root: Path = Path("/")

    def of_a_round(self, threads: int) -> Self:
        """The options of a single round, with its share of time and runs."""
        budget_s, max_runs = self.budget_s / self.rounds, max(1, self.max_runs // self.rounds)
        return dataclasses.replace(self, threads=threads, rounds=1, budget_s=budget_s, max_runs=max_runs)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures for a variant to classify: files, or raw float32 bytes of one tensor
    [1, channels, px, px] per input size in px. ``kept``: the answers to the first files that an interrupted
    run gave; the others join them there."""

    paths: Sequence[Path] = ()
    tensors: dict[int, bytes] = dataclasses.field(default_factory=dict)
    kept: Kept | None = None


def measure(bundle: Bundle, variant: Variant, pictures: Pictures, options: Options, report: Report) -> Row:
    """The row of one round, not yet compared with other rows."""
    running = Running(bundle, variant, pictures, options)
    count, started_s = len(pictures.paths), 0.0
    step = max(10, count // 100)
    for event in running.events():
        if event["event"] == "predicted":
            done, started_s = event["index"] + 1, started_s or time.monotonic()
            if done % step == 0:
                left_s = (time.monotonic() - started_s) * (count - done) / (done - running.first)
                report(f"  {variant.id}: {done}/{count} pictures, {text.duration(left_s)} left")
    row, state = running.row, running.state
    assert state is not None
    return dataclasses.replace(row, rounds=(Round(row.load_ms, row.first_ms, row.samples_ms, state),))


class Running:
    """A variant in its own process. ``row`` is the row of the result, which grows with each event. ``state``
    is the state of the board during the run; it is None until the end."""

    def __init__(self, bundle: Bundle, variant: Variant, pictures: Pictures, options: Options) -> None:
        self._tensor = pictures.tensors.get(variant.preprocessing.px, b"")
        memory_mode = builds.mode(variant.build, options.memory, device.available_bytes(options.root))
        self._request = builds.request(bundle, variant, memory_mode) | {
            "classes": len(bundle.labels),
            "preprocessing": variant.preprocessing.to_json(),
            "threads": options.threads,
            "budget_s": options.budget_s,
            "max_runs": options.max_runs,
            "tensor_bytes": len(self._tensor),
        }
        self._row = dataclasses.replace(empty_row(variant), memory_mode=memory_mode)
        self._kept, self._paths = pictures.kept, pictures.paths
        known = pictures.kept.known if pictures.kept else Predictions()
        # the last ones are asked again, because the first ones that a process is asked are timed
        self.first = max(0, min(len(known), len(self._paths) - TIMED_PICTURES))
        self._request["first"] = self.first
        self._said = known.first(self.first)  # apart: a row for each of thousands would be copied
        self.state: Watched | None = None
        self._options = options
        self._child = Child("vgg_runtime.measure.worker")

    @property
    def row(self) -> Row:
        """What is known so far."""
        return dataclasses.replace(self._row, predictions=self._said.first(len(self._said)))

    def events(self) -> Iterator[Event]:
        """Each event of the variant, after it was entered into the row. If the process dies, the reason
        becomes the row's error."""
        child, silence_s = self._child, self._options.silence_s + self._options.budget_s
        found, resident = monitor.Watch(self._options.root), memory.Resident(child.pid)
        # a thread, because a pipe holds the paths of some hundred pictures only
        telling = threading.Thread(target=self._tell_pictures, daemon=True)
        try:
            with found, resident:
                child.ask(self._request, self._tensor, last=False)
                telling.start()
                for event in child.events(silence_s):
                    # the peak has passed, and sampling would slow the timed runs
                    if event["event"] == "loaded":
                        resident.stop()
                    if event["event"] == "predicted":
                        self._enter(event)
                    self._row = _with_event(self._row, event)
                    yield event
                death = child.death()
            if death and self._row.error is None:
                self._change(error=self._hung() if child.late else death)
        finally:
            child.reap()
            if telling.ident:  # it was started
                telling.join()
            child.close()
            self.state = found.seen()
            self._change(
                peak_anonymous_bytes=resident.anonymous_bytes, peak_file_backed_bytes=resident.file_bytes
            )

    def _tell_pictures(self) -> None:
        """Tell the process which pictures to classify."""
        asked = self._paths[self.first :]
        for k in range(0, len(asked), TOLD_AT_ONCE):
            lines = (json.dumps(str(path)) + "\n" for path in asked[k : k + TOLD_AT_ONCE])
            self._child.tell("".join(lines).encode())
        self._child.tell(last=True)

    def _enter(self, event: Event) -> None:
        """Enter the answer to a picture."""
        self._said.add(event["classes"], event["probabilities"])
        if self._kept:
            self._kept.add(event["index"], self._said[-1])

    def _change(self, **fields: Any) -> None:
        self._row = dataclasses.replace(self._row, **fields)

    def _hung(self) -> str:
        return (
            f"it hangs: it did not answer for {self._options.silence_s:g} s beyond its time and was ended; a"
            " slow board may need more (--silence)"
        )

    def kill(self) -> None:
        """Kill the process, from any thread; ``events`` then ends."""
        self._child.kill()


def empty_row(variant: Variant) -> Row:
    """The row of a variant before it has been run."""
    build = variant.build
    slower_kernels = targets.saturates(targets.here(), build.targets)
    return Row(
        variant=variant.id,
        title=variant.title,
        description=variant.description,
        steps=variant.steps,
        precision=variant.precision,
        input_px=variant.preprocessing.px,
        parameters=variant.parameters,
        macs=variant.macs,
        build=BuildUsed(build.id, build.form, build.targets, slower_kernels),
        size_bytes=build.bytes,
        built=build.evaluation,
        losses=variant.losses,
    )


def _with_event(row: Row, event: Event) -> Row:
    """The row with an event of the child entered into it."""
    match event["event"]:
        case "loaded":
            return dataclasses.replace(row, load_ms=event["load_ms"], first_ms=event["first_ms"])
        case "checked":
            error = self_check.failure(event["deviation"], row.precision)
            return dataclasses.replace(row, self_check_deviation=event["deviation"], error=error or row.error)
        case "timed":
            timed = aggregate.with_samples(row, event["samples_ms"])
            return dataclasses.replace(timed, peak_rss_bytes=event["peak_rss_bytes"])
        case "answered":
            prepare_ms, end_to_end_ms = (
                percentile(event[key], 50) for key in ("prepare_ms", "end_to_end_ms")
            )
            return dataclasses.replace(row, prepare_ms=prepare_ms, end_to_end_ms=end_to_end_ms)
        case "error":
            return dataclasses.replace(row, error=row.error or event["message"])
    return row
