"""What a search tries and how it judges it: rungs, points, and the judge, which times models and judges them
against the baseline."""

import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_export.bundle import evaluate
from vgg_export.core import cache
from vgg_export.core.files import scratch_folder
from vgg_export.core.progress import Progress
from vgg_export.data.splits import Item
from vgg_export.graphs import external_data
from vgg_export.graphs.model_info import Described
from vgg_export.recipes import (
    Step,
    names,
)
from vgg_runtime.board import device
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.session import Model
from vgg_runtime.records import Record
from vgg_runtime.result import Evaluation

TIMING_ROUNDS = 3
TIMING_S = 0.7  # how long each model runs in a round


@dataclasses.dataclass(frozen=True)
class Rung:
    """A strength: the share ``conv_share`` of the convolutions' arithmetic is left, and the share
    ``fc_share`` of the default ranks of fc1 and fc2, at an input of ``px``."""

    conv_share: float
    fc_share: float
    px: int

    @property
    def name(self) -> str:
        return f"conv {100 * self.conv_share:.3g}%, fc {self.fc_share:.0%}"


@dataclasses.dataclass(frozen=True)
class Point(Record):
    """A model that was tried. ``model``: its file, relative to the work folder. ``select`` and ``test``:
    figures on the selection and the test pictures, None where there are none.
    ``speedup``: the baseline's median latency divided by this model's, both timed in turn."""

    family: str
    name: str
    steps: tuple[str, ...]
    model: str
    sha256: str
    input_px: int
    precision: str
    target: str | None  # the core that int8 was made for
    bytes: int
    parameters: int
    macs: int
    p50_ms: float
    baseline_p50_ms: float
    select: Evaluation | None
    test: Evaluation | None = None
    setting: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def speedup(self) -> float:
        return self.baseline_p50_ms / self.p50_ms

    def figures(self, which: str) -> Evaluation:
        """The figures on the "select" or the "test" pictures. They must be there."""
        found = self.test if which == "test" else self.select
        assert found
        return found

    def to_json(self) -> dict[str, Any]:
        """The fields, and the speedup."""
        return super().to_json() | {"speedup": self.speedup}


STAGE = cache.Stage("point", __name__, Point)


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a search: every point tried, the recommended one (None: no point is within the budget),
    the reason, and the rung of the compact variants to make."""

    points: tuple[Point, ...]
    baseline: Point
    recommended: Point | None
    reason: str
    rung: Rung


class Judge:
    """Times models and judges them against the baseline. The pictures' tensors and the baseline's logits are
    computed once."""

    def __init__(
        self, baseline: cache.Artifact, sets: dict[str, Sequence[Item]], work: Path, progress: Progress
    ) -> None:
        self.baseline, self.work, self.progress = baseline, work, progress
        self._sets = {name: list(items) for name, items in sets.items() if items}
        self._prepared: dict[tuple[str, InputSpec], evaluate.Prepared] = {}
        self._said: dict[str, npt.NDArray[np.float32]] = {}
        self._held = contextlib.ExitStack()
        self._scratch = self._held.enter_context(scratch_folder(work))

    def close(self) -> None:
        """Delete the tensors on disk."""
        self._prepared.clear()
        self._held.close()

    def point(
        self, family: str, name: str, steps: tuple[Step, ...], made: cache.Artifact, setting: dict[str, Any]
    ) -> Point:
        """Judge a model, unless that was done before with the same pictures on an equal machine."""
        described = made.read(Described)
        info = described.model
        known: dict[str, Any] = {"family": family, "name": name, "steps": names(steps), "setting": setting}
        options = known | {which: [[i.sha256, i.label] for i in items] for which, items in self._sets.items()}
        options |= {"timed_on": timed_on()}

        def make(path: Path) -> Point:
            p50_ms, baseline_p50_ms = self.time(made, name)
            found = Point(
                **known,
                model=os.path.relpath(made.path, self.work),
                sha256=made.sha256,
                input_px=info.chain.input.px,
                precision=info.precision,
                target=described.target,
                bytes=external_data.size_bytes(made.path, self._scratch),
                parameters=info.parameters,
                macs=info.macs,
                p50_ms=p50_ms,
                baseline_p50_ms=baseline_p50_ms,
                select=self.figures("select", made, name),
                test=self.figures("test", made, name),
            )
            path.write_text(json.dumps(found.to_json(), indent=1))
            return found

        inputs = {"model": made, "baseline": self.baseline}
        recorded = cache.produce(
            STAGE, options, inputs, made.path.with_name(made.path.stem + ".point.json"), make
        )
        return recorded.read(Point)

    def reference(self, which: str) -> npt.NDArray[np.float32]:
        """The baseline's logits [n, units] on a set of pictures, which must be there."""
        if which not in self._said:
            self._said[which] = self._ask(which, self.baseline, "baseline")
        return self._said[which]

    def figures(self, which: str, made: cache.Artifact, name: str) -> Evaluation | None:
        """Accuracy and agreement of a model on a set of pictures; None if the set is empty."""
        if which not in self._sets:
            return None
        reference = self.reference(which)
        logits = reference if made.sha256 == self.baseline.sha256 else self._ask(which, made, name)
        labels = np.array([-1 if i.label is None else i.label for i in self._sets[which]])
        return evaluate.figures(logits, reference, labels, subject_of(made, name).output)

    def _ask(self, which: str, made: cache.Artifact, name: str) -> npt.NDArray[np.float32]:
        subject = subject_of(made, name)
        key = (which, subject.preprocessing)
        if key not in self._prepared:
            folder = Path(tempfile.mkdtemp(dir=self._scratch))
            self._prepared[key] = evaluate.prepared(
                self._sets[which], subject.preprocessing, folder, self.progress
            )
        return evaluate.infer(subject, self._prepared[key], self.progress)

    def time(self, made: cache.Artifact, name: str) -> tuple[float, float]:
        """Median latencies in ms of a model and of the baseline. They are loaded and run in turn, so that
        other work on the machine affects both."""
        own: list[float] = []
        reference: list[float] = []
        with self.progress.task(f"timing {name}", TIMING_ROUNDS) as task:
            for _ in range(TIMING_ROUNDS):
                reference += timed(self.baseline)
                if made.sha256 != self.baseline.sha256:
                    own += timed(made)
                task.advance()
        return statistics.median(own or reference), statistics.median(reference)


def timed_on() -> dict[str, Any]:
    """The properties of this machine that latencies and int8 kernels depend on. A work folder may be moved to
    another machine, where points are timed again."""
    machine = device.describe(device.usable_cores())
    return {"cpu": machine.cpu, "features": machine.features, "cores": machine.threads}


def subject_of(made: cache.Artifact, name: str) -> evaluate.Subject:
    """An exported or quantized model with the session settings to evaluate and time it with."""
    found = made.read(Described)
    chain = found.model.chain
    return evaluate.Subject(name, made, found.model.preprocessing, found.targets, output=chain.output)


def timed(made: cache.Artifact) -> list[float]:
    """Latencies in ms of a model in a new session, after two runs to warm up."""
    spec = made.read(Described).model.chain.input
    x = np.random.default_rng(0).standard_normal((1, *spec.shape), np.float32)
    session, samples = Model(made.path, subject_of(made, "").session, device.usable_cores()), list[float]()
    session(x)
    session(x)
    end = time.perf_counter() + TIMING_S
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        session(x)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples
