"""Measures accuracy and agreement of exported files on the test images, with onnxruntime and the device's
preprocessing."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vgg_export.core import cache, processes
from vgg_export.core.errors import DataError
from vgg_export.core.files import reserved_array, scratch_folder, write_json
from vgg_export.core.progress import Progress
from vgg_export.data.splits import Item
from vgg_runtime.board import device
from vgg_runtime.board.targets import here
from vgg_runtime.bundle import losses, metrics
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.outputs import MULTI_LABEL, SOFTMAX, class_logits, top_k
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model, exact
from vgg_runtime.output import temporary_folder
from vgg_runtime.records import Record, read
from vgg_runtime.result import Evaluation

log = logging.getLogger(__name__)

CHUNK = 2000  # pictures that are prepared at once: 1.2 GB of disk at 224 px
DONE = "done.json"  # the number of pictures that all subjects were asked about


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model file to evaluate. ``targets``: the cores that it is for (empty: any core). ``output``: what its
    logits mean, one of ``outputs.OUTPUTS``."""

    id: str
    model: cache.Artifact
    preprocessing: InputSpec
    targets: Sequence[str] = ()
    settings: SessionSettings = dataclasses.field(default_factory=SessionSettings)
    output: str = SOFTMAX

    @property
    def session(self) -> SessionSettings:
        """The settings with which the model computes on this machine what it computes on its own cores."""
        return exact(self.settings, here(), self.targets)


@dataclasses.dataclass(frozen=True)
class Evaluated(Record):
    """Figures by subject. The JSON holds only this dictionary."""

    figures: dict[str, Evaluation]

    def to_json(self) -> dict[str, Any]:
        """``{id: figures}``."""
        found: dict[str, Any] = super().to_json()["figures"]
        return found

    @classmethod
    def from_json(cls, document: object, path: str = "") -> Self:
        """What ``to_json`` gave.

        Raises:
            FieldError: the data is damaged.
        """
        return cls(read(dict[str, Evaluation], document, path))


STAGE = cache.Stage("evaluate", __name__, Evaluated)


def run(
    subjects: Sequence[Subject], items: Sequence[Item], output: Path, progress: Progress
) -> cache.Artifact:
    """Evaluate all subjects on the same pictures. The others are compared with the first, which is the
    baseline.

    The artifact is JSON: figures by subject, as ``evaluate`` returns them.
    """

    def make(path: Path) -> Evaluated:
        found = Evaluated(evaluate(subjects, items, path.parent, progress))
        path.write_text(json.dumps(found.to_json(), indent=1))
        return found

    return cache.produce(STAGE, _options(subjects, items), {s.id: s.model for s in subjects}, output, make)


def evaluate(
    subjects: Sequence[Subject], items: Sequence[Item], work: Path, progress: Progress
) -> dict[str, Evaluation]:
    """The figures of every subject on ``items``, by id. Pictures are prepared and asked CHUNK at a time; what
    was asked is kept below ``work`` until all is done, and an interrupted evaluation goes on from there.

    Raises:
        DataError: there are no pictures.
    """
    if not items:
        raise DataError("there are no test pictures to evaluate on")
    labels = np.array([-1 if i.label is None else i.label for i in items])
    models = {s.id: s.model for s in subjects}
    with cache.unfinished(STAGE, _options(subjects, items), models, work / "evaluation") as folder:
        asked = _Asked(folder, len(items), [s.id for s in subjects])
        for start in range(asked.done, len(items), CHUNK):
            _ask(subjects, items, start, asked, progress)
        logits = {s.id: asked.logits(s.id) for s in subjects}
        baseline = logits[subjects[0].id]
        return {s.id: figures(logits[s.id], baseline, labels, s.output) for s in subjects}


def _options(subjects: Sequence[Subject], items: Sequence[Item]) -> dict[str, Any]:
    """What the figures depend on besides the models."""
    return {
        "images": [(i.sha256, i.label) for i in items],
        "subjects": [[s.id, s.preprocessing.to_json(), s.session.to_json(), s.output] for s in subjects],
    }


def _ask(
    subjects: Sequence[Subject], items: Sequence[Item], start: int, asked: "_Asked", progress: Progress
) -> None:
    """Ask all subjects about the CHUNK pictures from ``start`` on."""
    part = items[start : start + CHUNK]
    which = f", {start + 1:,} to {start + len(part):,} of {len(items):,}" if len(items) > CHUNK else ""
    for preprocessing in dict.fromkeys(s.preprocessing for s in subjects):
        with scratch_folder(asked.folder) as folder:
            pictures = prepared(part, preprocessing, folder, progress, which)
            for subject in (s for s in subjects if s.preprocessing == preprocessing):
                asked.keep(subject.id, start, infer(subject, pictures, progress, which))
    asked.finish(start + len(part))


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The logits of ``count`` pictures in files below ``folder``, which take disk and no memory. ``names``:
    of the subjects; a file is called by its place among them."""

    folder: Path
    count: int
    names: Sequence[str]

    @property
    def done(self) -> int:
        """How many pictures all subjects were asked about, here or before an interruption; none where not all
        answers are there."""
        try:
            found = int(json.loads((self.folder / DONE).read_text()))
            whole = all(len(self.logits(name)) == self.count for name in self.names)
        except (OSError, ValueError):
            return 0
        return found if whole else 0

    def keep(self, name: str, start: int, logits: npt.NDArray[np.float32]) -> None:
        """Keep the answers [pictures, outputs] from the picture ``start`` on."""
        path, shape = self._path(name), (self.count, logits.shape[1])
        kept: Any = np.load(path, mmap_mode="r+") if start else reserved_array(path, shape)
        kept[start : start + len(logits)] = logits
        kept.flush()

    def finish(self, done: int) -> None:
        write_json(self.folder / DONE, done)

    def logits(self, name: str) -> npt.NDArray[np.float32]:
        """All answers [n, outputs]."""
        found: npt.NDArray[np.float32] = np.load(self._path(name), mmap_mode="r")
        return found

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.names.index(name)}.npy"


def figures(
    logits: npt.NDArray[np.float32],
    baseline: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    output: str = SOFTMAX,
) -> Evaluation:
    """Accuracy of ``logits`` [n, outputs] and agreement with ``baseline``, as the networks give them.
    ``labels`` [n] are -1 where unknown. A multi-label network has no accuracy."""
    compared = metrics.compare(logits, baseline, labels, output)
    if output == MULTI_LABEL:
        labels = np.full(len(labels), -1)
    known, said = labels >= 0, class_logits(logits, output)
    said = said if known.all() else said[known]
    hits = top_k(said, min(5, said.shape[1])) == labels[known, None]
    return Evaluation(
        n=compared.n,
        top1=metrics.share(hits[:, 0]) if known.any() else None,
        chance=metrics.chance(labels[known], said.shape[1]),
        top5=metrics.share(hits.any(axis=1)) if known.any() and said.shape[1] > 5 else None,
        agreement=metrics.share(compared.same),
        loss_error_points=compared.loss_error_points,
        kl_mean=compared.kl,
        kl_p95=float(np.quantile(compared.divergence, 0.95)),
        loss=losses.estimated(compared.counted, logits, baseline, labels, output),
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Pictures preprocessed once and kept on disk instead of in memory: [n, channels, px, px], float32, in
    the file ``path``."""

    items: Sequence[Item]
    preprocessing: InputSpec
    path: Path

    def of(self, places: range) -> Iterator[npt.NDArray[np.float32]]:
        """The pictures at ``places``, each [1, channels, px, px]. On another machine the file is not there,
        and they are preprocessed again."""
        rows = np.load(self.path, mmap_mode="r") if self.path.is_file() else None
        for place in places:
            found = load(self.items[place].path, self.preprocessing) if rows is None else rows[place]
            yield found[None]


def prepared(
    items: Sequence[Item], preprocessing: InputSpec, folder: Path, progress: Progress, which: str = ""
) -> Prepared:
    """All pictures, preprocessed; ``folder`` keeps them. ``which``: words on them, for the progress."""
    px = preprocessing.px
    path = folder / f"{px}.npy"
    tensors = reserved_array(path, (len(items), *preprocessing.shape))
    with progress.task(f"preparing test images at {px} px{which}", len(items)) as task:
        for row, item in enumerate(items):
            tensors[row] = load(item.path, preprocessing)
            task.advance()
    return Prepared(items, preprocessing, path)


def infer(
    subject: Subject, pictures: Prepared, progress: Progress, which: str = ""
) -> npt.NDArray[np.float32]:
    """Raw logits [n, outputs], one picture at a time as on the device. Several processes take a share of the
    pictures each. ``which``: words on them, for the progress."""
    return processes.together(progress, _infer_share, subject, pictures, which)


def _infer_share(
    subject: Subject, pictures: Prepared, which: str, progress: Progress
) -> npt.NDArray[np.float32]:
    own, rows = processes.share(len(pictures.items)), []
    threads = max(1, device.usable_cores() // processes.local_world())
    with _model_here(subject) as path, progress.task(f"evaluating {subject.id}{which}", len(own)) as task:
        session = Model(path, subject.session, threads)
        for x in pictures.of(own):
            rows.append(session(x))
            task.advance()
    return np.concatenate([row for rows in processes.from_all(rows) for row in rows])


@contextlib.contextmanager
def _model_here(subject: Subject) -> Iterator[Path]:
    """The file of a model. To another machine the first process sends it."""
    path = subject.model.path
    if processes.least(path.is_file()):
        yield path
        return
    content = processes.from_first(path.read_bytes)
    with temporary_folder() as folder:
        sent = folder / path.name
        sent.write_bytes(content)
        yield sent
