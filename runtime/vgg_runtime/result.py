"""The result document (``compare.py --json``). The fields of these records are its keys.

It is a contract, described in docs/json.md. Values that were not measured are None. Fields with a
default were added later or are filled in during the measurement, so older documents can be read.
"""

import dataclasses
from typing import Any

from .records import FieldError, Record

SCHEMA = 1
# what the outputs of a network mean, see bundle/outputs.py
SOFTMAX, SIGMOID, MULTI_LABEL = "softmax", "sigmoid", "multi-label"
OUTPUTS = (SOFTMAX, SIGMOID, MULTI_LABEL)


@dataclasses.dataclass(frozen=True)
class Proportion(Record):
    """A share of ``n`` pictures, 0..1, with its 95 % interval."""

    rate: float
    n: int
    interval95: tuple[float, float]


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
    predictions: tuple[Prediction, ...] = ()
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

    @property
    def baseline(self) -> Row | None:
        """The row that the others are compared with, if it was run."""
        return next((row for row in self.variants if row.variant == self.bundle.baseline), None)
