"""Classifies a stream: a thread reads the source and keeps only the newest frame, this one decodes it, and
the model answers in a process of its own (``responder.py``), so that what kills it (no memory, an instruction
the core lacks) is a sentence here.

Nothing grows with time: of latencies a ring of the latest and a sample of fixed size of all are kept.
"""

import collections
import contextlib
import dataclasses
import json
import os
import random
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vgg_runtime import text
from vgg_runtime.board import device
from vgg_runtime.bundle import builds, self_check
from vgg_runtime.bundle.manifest import Manifest, Variant
from vgg_runtime.bundle.metrics import percentile
from vgg_runtime.bundle.preprocess import open_image, to_tensor
from vgg_runtime.errors import ImageError, RuntimeInputError
from vgg_runtime.measure import measure, process

from .sources import Frame, Item, Source
from .text import line, title

LIVE_SCHEMA = 1
RECENT = 100  # frames that a line's percentiles are of
KEPT = 2000  # latencies of the whole run: enough for P99
POLL_S = 0.1  # how soon an interrupt is noticed
PATIENCE_S = 300.0  # with a model that loads or answers, before it counts as hung
STAGES = ("decode", "model", "end_to_end")


class ModelError(Exception):
    """The variant's process died, hung or answered wrongly (exit code 1)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """``frames``: classified, and ``seconds``: of the stream, after either of which it ends; ``every_s``:
    between two lines."""

    threads: int
    frames: int | None = None
    seconds: float | None = None
    every_s: float = 5.0
    memory: str = builds.AUTO


@dataclasses.dataclass
class Interrupt:
    """The signal that asks for an end, once one has come."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


class Latest:
    """One frame between two threads, with the time of its arrival in s: a newer one takes its place."""

    def __init__(self) -> None:
        self.received = self.dropped = self.broken = 0
        self.fault: str | None = None  # of the last broken frame
        self.failure: RuntimeInputError | None = None  # what ended the source, if it did not just end
        self._changed = threading.Condition()
        self._frame: tuple[Frame, float] | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        with self._changed:
            return self._ended and self._frame is None

    def put(self, item: Item) -> None:
        with self._changed:
            self.received += 1
            if isinstance(item, ImageError):
                self._spoil(item)
                return
            self.dropped += self._frame is not None
            self._frame = item, time.perf_counter()
            self._changed.notify()

    def take(self, timeout_s: float) -> tuple[Frame, float] | None:
        """The newest frame; None when none has come in time or will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended, timeout_s)
            taken, self._frame = self._frame, None
            return taken

    def spoil(self, error: ImageError) -> None:
        """Count a frame that was taken and cannot be decoded."""
        with self._changed:
            self._spoil(error)

    def end(self, failure: RuntimeInputError | None = None) -> None:
        with self._changed:
            self._ended, self.failure = True, failure
            self._changed.notify()

    def _spoil(self, error: ImageError) -> None:
        self.broken += 1
        self.fault = str(error)


class Latency:
    """Of one stage in ms: the ``RECENT`` latest, and a uniform sample of at most ``KEPT`` of all (Vitter's
    algorithm R)."""

    def __init__(self) -> None:
        self.recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self.kept: list[float] = []
        self.n, self.most = 0, 0.0
        self._random = random.Random(0)

    def add(self, ms: float) -> None:
        self.recent.append(ms)
        self.n, self.most = self.n + 1, max(self.most, ms)
        if len(self.kept) < KEPT:
            self.kept.append(ms)
        elif (place := self._random.randrange(self.n)) < KEPT:
            self.kept[place] = ms

    def to_json(self) -> dict[str, Any]:
        """Percentiles of the whole run where there are frames enough for them."""
        return {f"p{q}": percentile(self.kept, q) for q in (50, 90, 99)} | {
            "max": self.most if self.n else None,
            "n": self.n,
        }


class Responder:
    """The other end of ``responder.py``. Its methods raise ModelError; they return None when an interrupt
    came first."""

    def __init__(
        self, folder: Path, bundle: Manifest, variant: Variant, settings: Settings, interrupt: Interrupt
    ) -> None:
        self._variant, self._interrupt = variant, interrupt
        self._heard = b""
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed by close()
        self._child = process.start("vgg_runtime.live.worker", self._complaints)
        mode = builds.mode(variant.build, settings.memory, device.available_bytes())
        request = builds.request(folder, bundle, variant, mode) | {
            "crop_px": variant.preprocessing.crop_px,
            "threads": settings.threads,
        }
        self._tell(json.dumps(request).encode() + b"\n")

    def load(self) -> dict[str, Any] | None:
        """``{"load_ms", "first_ms", "self_check_deviation"}`` of a model that has passed its self-check."""
        loaded = self._event()
        checked = loaded and self._event()
        if not loaded or not checked:
            return None
        deviation, limit = checked["deviation"], self_check.TOLERANCE[self._variant.precision]
        if deviation > limit:
            raise ModelError(
                f"self-check failed: logits differ by {deviation:.2g} of their spread from those recorded"
                " at build time,"
                f" at most {limit:g} allowed; copy the bundle again, or make it for this board with --target"
            )
        return {
            "load_ms": loaded["load_ms"],
            "first_ms": loaded["first_ms"],
            "self_check_deviation": deviation,
        }

    def ask(self, tensor: bytes) -> dict[str, Any] | None:
        """``{"top1", "probability", "model_ms"}`` of a float32 tensor [3, px, px]."""
        self._tell(tensor)
        return self._event()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._complaints):
            with contextlib.suppress(OSError):  # what was not written yet has no reader
                if stream:
                    stream.close()

    def _tell(self, content: bytes) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; its exit status says how
            self._child.stdin.write(content)
            self._child.stdin.flush()

    def _event(self) -> dict[str, Any] | None:
        """What it says next."""
        assert self._child.stdout is not None
        late = time.monotonic() + PATIENCE_S
        # read past Python's buffer: what select waits for must not be in there
        while b"\n" not in self._heard:
            if not select.select([self._child.stdout], [], [], POLL_S)[0]:
                if self._interrupt:
                    return None
                if time.monotonic() > late:
                    raise ModelError(
                        f"the model has not answered for {PATIENCE_S:g} s; the memory may be too small for it"
                    )
                continue
            piece = os.read(self._child.stdout.fileno(), 1 << 16)
            if not piece and self._interrupt:  # Ctrl-C reached it before it could ignore that
                return None
            if not piece:
                raise ModelError(self._death())
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "error":
            raise ModelError(event["message"])
        return event

    def _death(self) -> str:
        try:
            code = self._child.wait(5)
        except subprocess.TimeoutExpired:
            return "the model's process closed its output"
        self._complaints.seek(0)
        return process.explain_death(code, self._complaints.read())


class Stream:
    """One run: the frames of a source, what was said of them, and how long that took."""

    def __init__(self, variant: Variant, settings: Settings, interrupt: Interrupt) -> None:
        self.latest = Latest()
        self.latency = {stage: Latency() for stage in STAGES}
        self.said: collections.Counter[int] = collections.Counter()
        self.last: dict[str, Any] | None = None
        self.temperatures_c = [device.temperature_c()] * 3  # at the start, the highest, now
        self._variant, self._settings, self._interrupt = variant, settings, interrupt
        self._begun = self._lined = time.monotonic()
        self._first: float | None = None  # when the first classified frame arrived, in s of perf_counter
        self._answered = 0.0
        self._line_classified = 0

    @property
    def classified(self) -> int:
        return self.latency["model"].n

    @property
    def seconds(self) -> float:
        """From the arrival of the first frame that was classified to the last answer."""
        return 0.0 if self._first is None else self._answered - self._first

    def follow(self, model: Responder, on_line: Callable[[float], None]) -> str:
        """Classify until something ends it, and say what: frames, seconds, source, interrupted or terminated.
        ``on_line`` is called every ``every_s`` with the frames per second since the last time."""
        self._begun = self._lined = time.monotonic()
        while True:
            if asked := self.asked_to_end():
                return asked
            now = time.monotonic()
            if self._settings.seconds is not None and now - self._begun >= self._settings.seconds:
                return "seconds"
            if now - self._lined >= self._settings.every_s:
                self.feel()
                on_line((self.classified - self._line_classified) / (now - self._lined))
                self._lined, self._line_classified = now, self.classified
            if taken := self.latest.take(POLL_S):
                self._classify(model, *taken)
            elif self.latest.ended:
                return "source"
            if self._settings.frames is not None and self.classified >= self._settings.frames:
                return "frames"

    def asked_to_end(self) -> str | None:
        """The word for the signal that came, if one has."""
        return {signal.SIGINT.value: "interrupted", signal.SIGTERM.value: "terminated"}.get(
            self._interrupt.signal or 0
        )

    def feel(self) -> None:
        """Take the temperature."""
        now = device.temperature_c()
        start, most, _ = self.temperatures_c
        self.temperatures_c = [start, max((t for t in (most, now) if t is not None), default=None), now]

    def _classify(self, model: Responder, frame: Frame, arrived: float) -> None:
        start = time.perf_counter()
        try:
            image = frame if isinstance(frame, Image.Image) else open_image(frame)
            tensor = to_tensor(image, self._variant.preprocessing).tobytes()
        except ImageError as error:
            self.latest.spoil(error)
            return
        except MemoryError:
            self.latest.spoil(ImageError("a frame does not fit into this device's memory; make them smaller"))
            return
        decoded = time.perf_counter()
        answer = model.ask(tensor)
        if answer is None:  # interrupted
            return
        self._answered = time.perf_counter()
        self._first = arrived if self._first is None else self._first
        self.last = answer
        self.said[answer["top1"]] += 1
        for stage, ms in zip(
            STAGES,
            ((decoded - start) * 1e3, answer["model_ms"], (self._answered - arrived) * 1e3),
            strict=True,
        ):
            self.latency[stage].add(ms)

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """What there is to say about the run so far."""
        box = self.latest
        counted = {
            "received": box.received,
            "classified": self.classified,
            "dropped": box.dropped,
            "broken": box.broken,
        }
        last = self.last and {"label": labels[self.last["top1"]], "probability": self.last["probability"]}
        return {
            "seconds": self.seconds,
            "frames": counted | {"left": box.received - self.classified - box.dropped - box.broken},
            "last_fault": box.fault,
            "frames_per_s": self.classified / self.seconds if self.seconds else None,
            **{f"{stage}_ms": latency.to_json() for stage, latency in self.latency.items()},
            "recent_ms": {
                stage: [percentile(latency.recent, q) for q in (50, 90)]
                for stage, latency in self.latency.items()
            },
            "said": [{"label": labels[k], "n": n} for k, n in self.said.most_common()],
            "last": last,
            "throttled": device.throttled(),
            "temperature_c": dict(zip(("start", "max", "end"), self.temperatures_c, strict=True)),
        }


def run(
    folder: Path,
    bundle: Manifest,
    labels: Sequence[str],
    variant: Variant,
    source: Source,
    settings: Settings,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Classify a source's frames with one variant until it ends, is asked to end, or has done what
    ``settings`` ask for.

    Returns:
        The result document (schema 1, described in the project's README): ``live.ended`` says why,
        ``live.error`` what failed.

    Raises:
        RuntimeInputError: not one frame could be used.
    """
    about = measure.skeleton(folder, bundle, labels, [], measure.Options(settings.threads))
    live: dict[str, Any] = {"variant": variant.id, "source": source.name, "ended": "error", "error": None}
    live |= dict.fromkeys(("load_ms", "first_ms", "self_check_deviation"))
    with _noticing() as interrupt:
        stream = Stream(variant, settings, interrupt)
        try:
            with contextlib.closing(Responder(folder, bundle, variant, settings, interrupt)) as model:
                if loaded := model.load():
                    live |= loaded
                    report(title(variant, source.name, settings.threads))
                    with _reading(source, stream.latest):
                        live["ended"] = stream.follow(
                            model, lambda rate: report(line(stream.to_json(labels), rate, bundle))
                        )
                else:
                    live["ended"] = stream.asked_to_end()
        except ModelError as error:
            live["error"] = str(error)
    if live["ended"] == "source" and stream.latest.failure:
        live |= {"ended": "error", "error": str(stream.latest.failure)}
    if not stream.classified and (live["ended"] in ("source", "seconds") or stream.latest.failure):
        raise stream.latest.failure or _nothing(source, stream.latest)
    stream.feel()
    return {
        "schema": LIVE_SCHEMA,
        "measured_at": about["measured_at"],
        "device": about["device"] | device.state(),  # the work may have made it hot
        "bundle": about["bundle"],
        "live": live | stream.to_json(labels),
    }


def _nothing(source: Source, latest: Latest) -> RuntimeInputError:
    found = (
        f"{latest.broken} broken ones, the last: {text.printable(latest.fault, 200)}"
        if latest.fault
        else "none"
    )
    return RuntimeInputError(
        f"not one frame of {text.printable(source.name, 80)} could be classified, found {found};"
        " expected JPEG pictures"
    )


@contextlib.contextmanager
def _noticing() -> Iterator[Interrupt]:
    """Note SIGINT and SIGTERM instead of dying of them; what the caller had told this process to ignore stays
    ignored."""
    interrupt = Interrupt()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        interrupt.signal = number

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reading(source: Source, latest: Latest) -> Iterator[None]:
    """A thread that reads the source meanwhile."""
    stopped = threading.Event()
    reader = threading.Thread(target=_read, args=(source, latest, stopped), daemon=True)
    reader.start()
    try:
        yield
    finally:
        stopped.set()
        source.close()
        reader.join(1)  # one that waits for a silent server ends with this program


def _read(source: Source, latest: Latest, stopped: threading.Event) -> None:
    try:
        for item in source.frames(stopped):
            if stopped.is_set():
                break
            latest.put(item)
        latest.end()
    except RuntimeInputError as error:
        latest.end(error)
    except Exception as error:  # whatever a camera's driver raises, with its own words
        words = text.printable(f"{type(error).__name__}: {error}", 200)
        latest.end(
            RuntimeInputError(
                f"{source.name} cannot be read ({words}); is it connected, and used by no other program?"
            )
        )
