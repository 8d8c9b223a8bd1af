"""The result document (``compare.py --json``). The fields of these records are its keys.

It is a contract, described in docs/json.md. Values that were not measured are None. Fields with a
default were added later or are filled in during the measurement, so older documents can be read.
"""

import dataclasses
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Self, overload

from .records import FieldError, Record

SCHEMA = 1
# what the outputs of a network mean, see bundle/outputs.py
SOFTMAX, SIGMOID, MULTI_LABEL = "softmax", "sigmoid", "multi-label"
OUTPUTS = (SOFTMAX, SIGMOID, MULTI_LABEL)

MOST_PICTURES = 10**9  # of a figure; a person has some thousands
ROUNDED = 1e-9  # so far an interval may be beyond 0 or 1


@dataclasses.dataclass(frozen=True)
class Proportion(Record):
    """A share of ``n`` pictures, 0..1, with its 95 % interval."""

    rate: float
    n: int
    interval95: tuple[float, float]

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise FieldError("rate", "a share between 0 and 1", self.rate)
        if not 1 <= self.n <= MOST_PICTURES:
            raise FieldError("n", f"a number of pictures between 1 and {MOST_PICTURES}", self.n)
        if not -ROUNDED <= self.interval95[0] <= self.interval95[1] <= 1 + ROUNDED:
            raise FieldError("interval95", "two ascending shares between 0 and 1", [*self.interval95])


@dataclasses.dataclass(frozen=True)
class Loss(Record):
    """The best estimate of what a variant loses relative to the baseline, in points of top-1, or of
    disagreement without labels, with its standard error, from ``n`` pictures. ``counted_share``: how much of
    the estimate is counted answers, 0..1; the rest is calibrated probability. ``halved_by``: how many more
    pictures would halve the error."""

    points: float
    error_points: float
    n: int
    counted_share: float
    halved_by: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """Figures on ``n`` test images from when the bundle was made. ``chance`` is the top-1 of always giving
    the same class. ``top1``, ``top5`` and ``chance`` are None without labels and for a multi-label network,
    ``top5`` also with five classes or fewer. ``agreement`` is the share of pictures with the baseline's
    class, or of a multi-label network's decisions that are the baseline's. ``loss_error_points`` is the
    standard error of the counted loss, which is the drop of top-1 (or the disagreement) in points; ``loss``
    is the estimate that decides. ``kl_mean`` and ``kl_p95`` are divergences from the baseline in nats, for a
    multi-label network the mean over its labels."""

    n: int
    top1: Proportion | None = None
    chance: float | None = None
    top5: Proportion | None = None
    agreement: Proportion
    loss_error_points: float | None = None
    kl_mean: float | None = None
    kl_p95: float | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if self.chance is not None and not 0 <= self.chance <= 1:
            raise FieldError("chance", "a share between 0 and 1", self.chance)


@dataclasses.dataclass(frozen=True)
class StepLoss(Record):
    """The loss of one step in making a variant, on ``n`` held-out pictures: the share with the same class as
    the network ``against``, 0..1, and the mean KL divergence from it in nats."""

    step: str
    agreement: float
    kl: float
    n: int
    against: str


@dataclasses.dataclass(frozen=True)
class Device(Record):
    """A board or PC; unknown values are None. The fields from ``temperature_c`` on are its state at that
    moment. ``throttled`` is empty when the board says that it is not throttled."""

    board: str
    machine: str
    cpu: str | None
    features: tuple[str, ...]
    cores: int
    threads: int
    ram_bytes: int | None
    os: str | None
    python: str
    onnxruntime: str | None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttled: tuple[str, ...] | None = None
    governor: str | None = None
    available_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class MeasuredDevice(Device):
    """The device of a result, and the target whose builds are made for its cores."""

    target: str = ""


@dataclasses.dataclass(frozen=True)
class About(Record):
    """The bundle that was measured. ``weights`` says where the checkpoint came from. ``notice``,
    ``figures_absent``, ``unchecked`` and ``problem`` must be shown with every table. ``baseline`` is the id
    of the variant that the others are compared with; None where the bundle holds one variant. ``output``:
    softmax, sigmoid (two classes) or multi-label; ``top1_absent`` says why such a network has no accuracy,
    if so. ``network`` is the exporter's description of the network."""

    path: str
    family: str
    weights: dict[str, Any]
    target: str
    notice: str | None = None
    figures_absent: str | None = None
    unchecked: str | None = None
    problem: str | None = None
    assumed: tuple[str, ...] = ()
    created_by: dict[str, Any] = dataclasses.field(default_factory=dict)
    baseline: str | None = "baseline"
    output: str = SOFTMAX
    top1_absent: str | None = None
    network: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise FieldError("output", f"one of {', '.join(OUTPUTS)}", self.output)

    @property
    def notices(self) -> list[str]:
        """The notices that must be shown with every table."""
        return list(filter(None, (self.notice, self.figures_absent, self.unchecked, self.problem)))


@dataclasses.dataclass(frozen=True)
class Image(Record):
    """A picture that was classified, with its class where that is known. If models were ``fitted`` on it, it
    counts for no figure."""

    file: str
    label: str | None
    fitted: bool = False


@dataclasses.dataclass(frozen=True)
class Prediction(Record):
    """The most probable classes of a picture, most probable first: indices, probabilities and names. Those
    of a multi-label network hold every label above 0.5. ``labels``: empty where the names are not known."""

    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.classes)
        if len(self.probabilities) != count:
            raise FieldError("probabilities", f"{count} numbers, as many as classes", [*self.probabilities])
        if self.labels and len(self.labels) != count:
            raise FieldError("labels", f"{count} texts, as many as classes", [*self.labels])

    @property
    def names(self) -> tuple[str, ...]:
        """The labels; the numbers of the classes where the names are not known."""
        return self.labels or tuple(f"class {k}" for k in self.classes)


class Predictions(Sequence[Prediction]):
    """The predictions for many pictures in little memory: some 70 bytes each, where a Prediction takes 600.
    ``labels``: the names of the classes; empty where they are not known."""

    def __init__(self, found: Iterable[Prediction] = (), labels: Sequence[str] = ()) -> None:
        self._classes, self._probabilities, self._ends = array("i"), array("d"), array("q", [0])
        self._labels = labels
        for one in found:
            self.add(one.classes, one.probabilities)

    def add(self, classes: Iterable[int], probabilities: Iterable[float]) -> None:
        """Append the prediction for a picture."""
        self._classes.extend(classes)
        self._probabilities.extend(probabilities)
        self._ends.append(len(self._classes))

    def named(self, labels: Sequence[str]) -> Self:
        """The same ones with the names of their classes."""
        same = type(self)(labels=labels)
        same._ends, same._classes, same._probabilities = self._ends, self._classes, self._probabilities
        return same

    def first(self, count: int) -> Self:
        """A copy of the first ``count``."""
        copy = type(self)(labels=self._labels)
        copy._ends = self._ends[: count + 1]
        copy._classes = self._classes[: copy._ends[-1]]
        copy._probabilities = self._probabilities[: copy._ends[-1]]
        return copy

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, k: int) -> Prediction: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, k: int | slice) -> Prediction | tuple[Prediction, ...]:
        if isinstance(k, slice):
            return tuple(self[one] for one in range(*k.indices(len(self))))
        k = range(len(self))[k]  # IndexError where there is none
        here = slice(self._ends[k], self._ends[k + 1])
        classes = tuple(self._classes[here])
        labels = tuple(self._labels[one] for one in classes) if self._labels else ()
        return Prediction(classes, tuple(self._probabilities[here]), labels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it grows


@dataclasses.dataclass(frozen=True)
class State(Record):
    """The state of a board at one moment; unknown values are None."""

    temperature_c: float | None
    clock_mhz: float | None
    held_back: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Watched(Record):
    """The state of a board before, during and after a timing. ``during`` has the highest temperature, the
    median clock and every reason for which the board was held back."""

    before: State
    during: State
    after: State


@dataclasses.dataclass(frozen=True)
class Round(Record):
    """One round of a variant, and the reasons for which the board was held back in it."""

    load_ms: float | None
    first_ms: float | None
    samples_ms: tuple[float, ...]
    state: Watched
    held_back: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ThreadTrial(Record):
    """The latency of a variant with one number of threads."""

    threads: int
    p50_ms: float | None
    p90_ms: float | None
    runs: int
    error: str | None


@dataclasses.dataclass(frozen=True)
class BuildUsed(Record):
    """The build of a variant that was run. ``slower_kernels``: it ran with slower kernels, because its 8-bit
    weights would overflow in the fast ones of this core."""

    id: str = ""
    form: str = ""
    targets: tuple[str, ...] = ()
    slower_kernels: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Record):
    """One variant: its description, its measurements on this device (ms and bytes), and its comparison with
    the baseline. ``error`` says why it could not be measured, or why its answers cannot be trusted."""

    variant: str
    title: str
    description: str = ""
    steps: tuple[str, ...] = ()
    precision: str
    input_px: int
    parameters: int
    macs: int
    build: BuildUsed = BuildUsed()
    size_bytes: int
    load_ms: float | None = None
    first_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    threads: int | None = None
    thread_sweep: tuple[ThreadTrial, ...] = ()
    runs: int = 0
    samples_ms: tuple[float, ...] = ()
    rounds: tuple[Round, ...] = ()
    marks: tuple[str, ...] = ()
    prepare_ms: float | None = None
    end_to_end_ms: float | None = None
    speedup: float | None = None
    memory_mode: str | None = None
    peak_rss_bytes: int | None = None
    peak_anonymous_bytes: int | None = None
    peak_file_backed_bytes: int | None = None
    self_check_deviation: float | None = None
    accuracy: Proportion | None = None
    agreement: Proportion | None = None
    predictions: Sequence[Prediction] = ()
    built: Evaluation | None = None
    losses: tuple[StepLoss, ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Recommendation(Record):
    """The variant to ship, and why; ``variant`` is None where none can be recommended. ``unsure``: what it
    loses, and what is not sure about that; None for the baseline and where nothing is recommended. ``sure``:
    losses were compared with their error included."""

    variant: str | None
    max_loss_points: float
    reason: str
    unsure: str | None = None
    sure: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Record):
    """The whole document."""

    schema: int
    measured_at: str
    device: MeasuredDevice
    bundle: About
    images: tuple[Image, ...] = ()
    variants: tuple[Row, ...]
    recommended: Recommendation | None = None
    explanations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [unicodedata.normalize("NFC", row.variant) for row in self.variants]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise FieldError("variants", "each variant once", twice)
        if self.schema < 1:
            raise FieldError("schema", f"a number from 1 to {SCHEMA}", self.schema)

    @property
    def baseline(self) -> Row | None:
        """The row that the others are compared with, if it was run."""
        return next((row for row in self.variants if row.variant == self.bundle.baseline), None)
