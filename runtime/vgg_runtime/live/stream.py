"""Classifies a stream. One thread reads the source and keeps only the newest frame; another decodes it while
the model runs on the frame before (``decoding.py``). The model runs in a process of its own (``worker.py``):
if that dies (no memory, an instruction that the core lacks), an error message says so.

Memory does not grow with time: the latest latencies and a sample of fixed size of all latencies are kept.
"""

import collections
import contextlib
import dataclasses
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from vgg_runtime import text
from vgg_runtime.board import device
from vgg_runtime.bundle import builds, self_check
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.manifest import Variant
from vgg_runtime.bundle.metrics import percentile
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.bundle.outputs import given
from vgg_runtime.bundle.preprocess import open_image, to_tensor
from vgg_runtime.errors import ImageError, ModelError, RuntimeInputError
from vgg_runtime.measure import measure
from vgg_runtime.measure.process import Child, Event, explain_death
from vgg_runtime.measure.running import Options

from .answers import Answer, Stability, Steady, now
from .decoding import POLL_S, Decoded, Decoder, Latest
from .document import (
    SCHEMA,
    Count,
    Frames,
    Live,
    LiveResult,
    Percentiles,
    Recent,
    Running,
    Said,
    Seen,
    Temperatures,
)
from .frames import Frame, Source
from .network import Reconnecting
from .notify import Notifier
from .sinks import Sink, SinkError
from .text import line, title

RECENT = 100  # a line shows the percentiles of so many latest frames
KEPT = 2000  # latencies sampled from the whole run; enough for P99
SPARE_MS = 2.0  # a frame is decoded so long before the model is ready for it
CLOSING_S = 5.0  # a model that has closed its output gets so long to end
PATIENCE_S = 300.0  # a model that neither loads nor answers for so long counts as hung
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STAGES = ("decode", "model", "end_to_end")


class Loaded(NamedTuple):
    """The time in ms to create the session and to run it for the first time, and the deviation of its logits
    from those recorded at build time."""

    load_ms: float | None = None
    first_ms: float | None = None
    self_check_deviation: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a stream is classified. It ends after ``frames`` classified frames or ``seconds``, whichever comes
    first. ``every_s``: seconds between two lines, which have at most ``width`` characters. ``max_fps``:
    frames that are classified per second at most. ``region``: the part of a frame that is classified: left,
    top, width and height as shares of it. ``stability``: when another answer counts."""

    threads: int
    frames: int | None = None
    seconds: float | None = None
    every_s: float = 5.0
    width: int | None = None
    memory: str = builds.AUTO
    max_fps: float | None = None
    region: tuple[float, float, float, float] | None = None
    stability: Stability = dataclasses.field(default_factory=Stability)


@dataclasses.dataclass
class Interrupt:
    """The signal that asked the program to end; None before it comes."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


class Latency:
    """Latencies of one stage in ms: the ``RECENT`` latest, and a uniform sample of at most ``KEPT`` of all
    (Vitter's algorithm R)."""

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

    def percentiles(self) -> Percentiles:
        """The percentiles of the whole run; each is None where there are too few frames for it."""
        p50, p90, p99 = (percentile(self.kept, q) for q in (50, 90, 99))
        return Percentiles(p50, p90, p99, self.most if self.n else None, self.n)


class Responder:
    """Runs ``worker.py`` and asks it. Its methods raise ModelError; they return None when an interrupt came
    first."""

    def __init__(self, bundle: Bundle, variant: Variant, settings: Settings, interrupt: Interrupt) -> None:
        self._variant, self._interrupt = variant, interrupt
        self._child = Child("vgg_runtime.live.worker")
        mode = builds.mode(variant.build, settings.memory, device.available_bytes())
        request = builds.request(bundle, variant, mode) | {
            "classes": len(bundle.labels),
            "px": variant.preprocessing.px,
            "threads": settings.threads,
        }
        self._child.ask(request, last=False)

    def load(self) -> Loaded | None:
        """Wait until the model is loaded and has passed its self-check."""
        loaded = self._event()
        checked = loaded and self._event()
        if not loaded or not checked:
            return None
        if wrong := self_check.refusal(checked["deviation"], self._variant.precision):
            raise ModelError(wrong)
        return Loaded(loaded["load_ms"], loaded["first_ms"], checked["deviation"])

    def ask(self, tensor: bytes) -> Event | None:
        """Classify the bytes of a float32 tensor [channels, px, px]: ``{"model_ms", "best"}``. ``best`` are
        pairs of label and probability: the most probable label, and every other one above 0.5 of a
        multi-label network."""
        self._child.tell(tensor)
        return self._event()

    def close(self) -> None:
        """Kill the process."""
        self._child.close()

    def _event(self) -> Event | None:
        """The next event of the model."""
        event = self._child.event_unless(lambda: bool(self._interrupt), PATIENCE_S)
        if event is None:
            if self._interrupt:  # Ctrl-C may have ended the model before it could ignore the signal
                return None
            raise ModelError(self._death())
        if event["event"] == "error":
            raise ModelError(event["message"])
        return event

    def _death(self) -> str:
        if self._child.late:
            return f"the model has not answered for {PATIENCE_S:g} s; the memory may be too small for it"
        return self._child.death(CLOSING_S) or explain_death(0, "")


class Stream:
    """One run: the frames of a source, their classes, and how long each stage took."""

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        settings: Settings,
        interrupt: Interrupt,
        sinks: Sequence[Sink] = (),
        notifier: Notifier | None = None,
    ) -> None:
        self.latest = Latest()
        self.steady = Steady(settings.stability)
        self.changes = self.failed = 0
        self.last_failure: str | None = None
        self.latency = {stage: Latency() for stage in STAGES}
        self.said: collections.Counter[int] = collections.Counter()
        self.last: Event | None = None
        self.temperatures_c = [device.temperature_c()] * 3  # at the start, the highest, now
        self._variant, self._settings, self._interrupt = variant, settings, interrupt
        self._output, self._labels, self._sinks = bundle.manifest.output, bundle.labels, sinks
        self._needed = _needed(variant.preprocessing, settings.region)
        self._notifier = notifier or Notifier()
        self._begun = self._lined = time.monotonic()
        self._first: float | None = None  # when the first classified frame arrived, in s of perf_counter
        self._answered = 0.0
        self._line_classified = 0

    @property
    def classified(self) -> int:
        return self.latency["model"].n

    @property
    def seconds(self) -> float:
        """Seconds from the arrival of the first classified frame to the last answer."""
        return 0.0 if self._first is None else self._answered - self._first

    def follow(self, model: Responder, on_line: Callable[[float], None]) -> str:
        """Classify until the run ends, and return why: frames, seconds, source, interrupted or terminated.
        ``on_line`` is called every ``every_s`` with the frames per second since the last call."""
        self._begun = self._lined = time.monotonic()
        with Decoder(self.latest, self._tensor) as decoder:
            return self._follow(model, decoder, on_line)

    def _follow(self, model: Responder, decoder: Decoder, on_line: Callable[[float], None]) -> str:
        while True:
            if asked := self.asked_to_end():
                return asked
            self._notifier.alive()
            now = time.monotonic()
            if self._settings.seconds is not None and now - self._begun >= self._settings.seconds:
                return "seconds"
            if now - self._lined >= self._settings.every_s:
                self.feel()
                on_line((self.classified - self._line_classified) / (now - self._lined))
                self._lined, self._line_classified = now, self.classified
            if (decoded := decoder.take(POLL_S)) is not None:
                decoder.begin(self._next(decoded, time.monotonic()))
                self._classify(model, decoded)
            elif decoder.ended:
                return "source"
            if self._settings.frames is not None and self.classified >= self._settings.frames:
                return "frames"

    def _next(self, decoded: Decoded, now: float) -> float:
        """When the next frame is to be taken, in s of monotonic, if this one is classified from ``now`` on:
        so that it is decoded when the model is ready for it, and no older then than it must be."""
        p50 = {stage: percentile(self.latency[stage].recent, 50) for stage in ("decode", "model")}
        spare_ms = (p50["model"] or 0.0) - (p50["decode"] or 0.0) - SPARE_MS
        due = decoded.taken + 1 / self._settings.max_fps if self._settings.max_fps else 0.0
        return max(due, now + max(0.0, spare_ms) / 1e3)

    def asked_to_end(self) -> str | None:
        """interrupted or terminated, after the signal that came; None if none has come."""
        if self._interrupt.signal is None:
            return None
        return "interrupted" if self._interrupt.signal == signal.SIGINT else "terminated"

    def feel(self) -> None:
        """Measure the temperature and update the highest one."""
        now = device.temperature_c()
        start, most, _ = self.temperatures_c
        self.temperatures_c = [start, max((t for t in (most, now) if t is not None), default=None), now]

    def _tensor(self, frame: Frame) -> bytes:
        """The bytes of the float32 tensor [channels, px, px] of a frame.

        Raises:
            ImageError: it cannot be decoded.
        """
        try:
            image = frame if isinstance(frame, Image.Image) else open_image(frame, self._needed)
            image = _part(image, self._settings.region)
            return to_tensor(image, self._variant.preprocessing).tobytes()
        except MemoryError:
            raise ImageError(
                "a frame does not fit into this device's memory; make the frames smaller"
            ) from None

    def _classify(self, model: Responder, decoded: Decoded) -> None:
        arrived = decoded.arrived
        answer = model.ask(decoded.tensor)
        if answer is None:  # interrupted
            return
        self._answered = time.perf_counter()
        self._first = arrived.at if self._first is None else self._first
        self.last = answer
        self.said.update(label for label, _ in self._given(answer))
        times_ms = decoded.decode_ms, answer["model_ms"], (self._answered - arrived.at) * 1e3
        for stage, ms in zip(STAGES, times_ms, strict=True):
            self.latency[stage].add(ms)
        self._hand_on(arrived.number, self._given(answer), times_ms)

    def _hand_on(
        self, number: int, given: Sequence[tuple[int, float]], times_ms: tuple[float, float, float]
    ) -> None:
        """Give the answer to all sinks, and collect what went wrong in them."""
        changed = self.steady.take(given, time.monotonic())
        self.changes += changed
        held = self.steady.labels
        holds = ", ".join(self._labels[k] for k in held) or None
        shares = [share for k, share in given if k in held]
        share = min(shares) if held and len(shares) == len(held) else None
        answer = Answer(now(), number, holds, share, changed, _named(given, self._labels), *times_ms)
        for sink in self._sinks:
            try:
                sink.give(answer)
            except SinkError as error:
                self._failed(str(error))
        self.collect_failures()

    def collect_failures(self) -> None:
        """Count what went wrong in the background of the sinks."""
        for sink in self._sinks:
            if failure := sink.failure():
                self._failed(failure)

    def _failed(self, words: str) -> None:
        self.failed += 1
        self.last_failure = words

    def _given(self, answer: Event) -> list[tuple[int, float]]:
        """The labels that an answer gives its frame, with their probabilities."""
        best: list[tuple[int, float]] = answer["best"]
        return best[: given([share for _, share in best], self._output)]

    def seen(self, labels: Sequence[str]) -> Seen:
        """The figures of the run so far."""
        box, last = self.latest, self.last
        left = box.received - self.classified - box.dropped - box.broken
        recent = [tuple(percentile(self.latency[stage].recent, q) for q in (50, 90)) for stage in STAGES]
        decode_ms, model_ms, end_to_end_ms = (self.latency[stage].percentiles() for stage in STAGES)
        return Seen(
            seconds=self.seconds,
            frames=Frames(box.received, self.classified, box.dropped, box.broken, left),
            last_fault=box.fault,
            frames_per_s=self.classified / self.seconds if self.seconds else None,
            decode_ms=decode_ms,
            model_ms=model_ms,
            end_to_end_ms=end_to_end_ms,
            recent_ms=Recent(*recent),
            said=tuple(Count(labels[k], n) for k, n in self.said.most_common()),
            last=None if last is None else _named(last["best"][:1], labels)[0],
            throttled=device.throttled(),
            temperature_c=Temperatures(*self.temperatures_c),
            last_labels=() if last is None else _named(self._given(last), labels),
            changes=self.changes,
            failed_deliveries=self.failed,
            last_failed_delivery=self.last_failure,
        )


def _needed(spec: InputSpec, region: tuple[float, float, float, float] | None) -> InputSpec:
    """What a frame is decoded for, so that its part is large enough."""
    return spec if region is None else spec.at(math.ceil(spec.px / min(region[2:])))


def _part(image: Image.Image, region: tuple[float, float, float, float] | None) -> Image.Image:
    """The part of a picture that is classified, at least one pixel of it."""
    if region is None:
        return image
    left, right = _span(region[0], region[2], image.width)
    top, bottom = _span(region[1], region[3], image.height)
    return image.crop((left, top, right, bottom))


def _span(start: float, size: float, whole: int) -> tuple[int, int]:
    """The first pixel and the one behind the last of a part of so many."""
    first = int(start * whole)
    return first, max(first + 1, min(whole, round((start + size) * whole)))


def _named(found: Sequence[tuple[int, float]], labels: Sequence[str]) -> tuple[Said, ...]:
    return tuple(Said(labels[label], share) for label, share in found)


def run(
    bundle: Bundle,
    variant: Variant,
    source: Source,
    settings: Settings,
    report: Callable[[str], None],
    sinks: Sequence[Sink] = (),
) -> LiveResult:
    """Classify the frames of a source with one variant until the source ends, a signal comes, or the limits
    of ``settings`` are reached. ``sinks`` are given every answer and closed at the end.

    Returns:
        The document (schema 1, described in docs/json.md). ``live.ended`` says why the run ended, and
        ``live.error`` what failed.

    Raises:
        RuntimeInputError: not one frame could be used.
    """
    begun = measure.skeleton(bundle, [], Options(settings.threads))
    loaded, ended, error = None, "error", None
    with _noticing() as interrupt:
        notifier = Notifier()
        stream = Stream(bundle, variant, settings, interrupt, sinks, notifier)

        def on_line(rate: float) -> None:
            report(line(stream.seen(bundle.labels), rate, bundle.manifest, settings.width))

        try:
            with contextlib.closing(Responder(bundle, variant, settings, interrupt)) as model:
                if loaded := model.load():
                    report(title(variant, source.name, settings.threads, settings.width))
                    notifier.ready()
                    with _reading(source, stream.latest):
                        ended = stream.follow(model, on_line)
                else:
                    ended = stream.asked_to_end() or ended
        except ModelError as failed:
            error = str(failed)
    if ended == "source" and stream.latest.failure:
        ended, error = "error", str(stream.latest.failure)
    if not stream.classified and (ended in ("source", "seconds") or stream.latest.failure):
        raise stream.latest.failure or _nothing(source, stream.latest)
    for sink in sinks:
        sink.close()
    stream.collect_failures()
    stream.feel()
    running = Running(variant.id, source.name, ended, error, *(loaded or Loaded()))
    return LiveResult(
        schema=SCHEMA,
        measured_at=begun.measured_at,
        # read again: the run may have made the board hot
        device=dataclasses.replace(begun.device, **device.state()),
        bundle=begun.bundle,
        live=Live(
            **vars(running) | vars(stream.seen(bundle.labels)),
            reconnected=source.reconnected if isinstance(source, Reconnecting) else 0,
            last_break=source.last_failure if isinstance(source, Reconnecting) else None,
        ),
    )


def _nothing(source: Source, latest: Latest) -> RuntimeInputError:
    if isinstance(source, Reconnecting) and source.last_failure:
        return RuntimeInputError(source.last_failure)
    found = (
        f"{latest.broken} broken frames, the last: {text.printable(latest.fault, 200)}"
        if latest.fault
        else "no frames"
    )
    return RuntimeInputError(
        f"no frame of {text.printable(source.name, 80)} could be classified, found {found};"
        " expected JPEG pictures"
    )


@contextlib.contextmanager
def _noticing() -> Iterator[Interrupt]:
    """Record SIGINT, SIGTERM and SIGHUP instead of ending at once. A signal that this process already ignores
    stays ignored, as SIGHUP under nohup."""
    interrupt = Interrupt()
    before = {number: signal.getsignal(number) for number in SIGNALS}

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
    """Read the source in another thread during the ``with`` block."""
    stopped = threading.Event()
    reader = threading.Thread(target=_read, args=(source, latest, stopped), daemon=True)
    reader.start()
    try:
        yield
    finally:
        stopped.set()
        source.close()
        reader.join(1)  # a reader that waits for a silent server ends with this program


def _read(source: Source, latest: Latest, stopped: threading.Event) -> None:
    try:
        for item in source.frames(stopped):
            if stopped.is_set():
                break
            latest.put(item)
        latest.end()
    except RuntimeInputError as error:
        latest.end(error)
    except Exception as error:  # every error of a camera's driver, with its message
        words = text.printable(f"{type(error).__name__}: {error}", 200)
        latest.end(
            RuntimeInputError(
                f"{source.name} cannot be read ({words}); is it connected, and used by no other program?"
            )
        )
