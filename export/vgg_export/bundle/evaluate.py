"""Accuracy of and agreement between exported files on the test images, through onnxruntime and the device's
preprocessing."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_export.core import cache
from vgg_export.core.errors import DataError
from vgg_export.core.files import reserved_array
from vgg_export.core.progress import Progress
from vgg_export.data.splits import Item
from vgg_runtime.board import device
from vgg_runtime.board.targets import here
from vgg_runtime.bundle import metrics
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.preprocess import Preprocessing, load
from vgg_runtime.bundle.session import Model, exact

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model file, how its input is made, and for which cores it is (none: for any)."""

    id: str
    model: cache.Artifact
    preprocessing: Preprocessing
    targets: Sequence[str] = ()
    settings: SessionSettings = dataclasses.field(default_factory=SessionSettings)

    @property
    def session(self) -> SessionSettings:
        """Computes here what the model computes on its own cores."""
        return exact(self.settings, here(), self.targets)


def run(
    subjects: Sequence[Subject], items: Sequence[Item], output: Path, progress: Progress
) -> cache.Artifact:
    """Evaluate all subjects on the same pictures; the first is the baseline that the others are compared
    with.

    The artifact is JSON: variant -> figures, as ``evaluate`` returns them.
    """
    import json

    pictures = [(i.sha256, i.label) for i in items]
    options = {
        "images": pictures,
        "subjects": [[s.id, s.preprocessing.to_json(), dataclasses.asdict(s.session)] for s in subjects],
    }

    def make(path: Path) -> dict[str, object]:
        figures = evaluate(subjects, items, path.parent, progress)
        path.write_text(json.dumps(figures, indent=1))
        return figures

    return cache.produce("evaluate", options, {s.id: s.model for s in subjects}, output, make)


def evaluate(
    subjects: Sequence[Subject], items: Sequence[Item], work: Path, progress: Progress
) -> dict[str, Any]:
    """Figures of every subject on ``items``.

    Returns:
        ``{id: {"n", "top1", "chance", "top5", "agreement", "loss_error_points", "kl_mean", "kl_p95"}}``;
        proportions are ``{"rate", "n", "interval95"}``, top-1, ``chance`` and top-5 are None without labels,
        top-5 also with five classes or fewer, where it says nothing. ``chance`` and ``loss_error_points`` as
        ``metrics`` says.

    Raises:
        DataError: no pictures.
    """
    if not items:
        raise DataError("there are no test pictures to evaluate on")
    labels = np.array([-1 if i.label is None else i.label for i in items])
    logits: dict[str, npt.NDArray[np.float32]] = {}
    for preprocessing in dict.fromkeys(s.preprocessing for s in subjects):
        with tempfile.TemporaryDirectory(prefix=".evaluate.", dir=work) as folder:
            tensors = prepared(items, preprocessing, Path(folder), progress)
            for subject in (s for s in subjects if s.preprocessing == preprocessing):
                logits[subject.id] = infer(subject, tensors, progress)
            del tensors
    baseline = logits[subjects[0].id]
    return {s.id: figures(logits[s.id], baseline, labels) for s in subjects}


def figures(
    logits: npt.NDArray[np.float32], baseline: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Accuracy of ``logits`` [n, classes] and agreement with ``baseline``; ``labels`` [n] with -1 where
    unknown."""
    known = labels >= 0
    divergence = metrics.kl_divergence(baseline, logits)
    best = metrics.top_k(logits, min(5, logits.shape[1]))
    reference = baseline.argmax(axis=1)
    right, was_right = best[known, 0] == labels[known], reference[known] == labels[known]
    lost = was_right.astype(int) - right if known.any() else (best[:, 0] != reference).astype(int)
    return {
        "n": len(logits),
        "top1": _proportion(right),
        "chance": metrics.chance(labels[known], logits.shape[1]),
        "top5": _proportion((best[known] == labels[known, None]).any(axis=1))
        if logits.shape[1] > 5
        else None,
        "agreement": _proportion(best[:, 0] == reference),
        "loss_error_points": metrics.loss_error_points(float(lost.sum()), float((lost**2).sum()), len(lost)),
        "kl_mean": float(divergence.mean()),
        "kl_p95": float(np.quantile(divergence, 0.95)),
    }


def _proportion(hits: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    if not len(hits):
        return None
    right = int(hits.sum())
    return {
        "rate": right / len(hits),
        "n": len(hits),
        "interval95": list(metrics.wilson_interval(right, len(hits))),
    }


def prepared(
    items: Sequence[Item], preprocessing: Preprocessing, folder: Path, progress: Progress
) -> npt.NDArray[np.float32]:
    """All pictures preprocessed once, on disk rather than in memory: [n, 3, px, px]."""
    px = preprocessing.crop_px
    tensors = reserved_array(folder / f"{px}.npy", (len(items), 3, px, px))
    with progress.task(f"preparing test images at {px} px", len(items)) as task:
        for row, item in enumerate(items):
            tensors[row] = load(item.path, preprocessing)
            task.advance()
    return tensors


def infer(subject: Subject, tensors: npt.NDArray[np.float32], progress: Progress) -> npt.NDArray[np.float32]:
    """Logits [n, classes], one picture at a time as on the device."""
    session = Model(subject.model.path, subject.session, device.usable_cores())
    rows = []
    with progress.task(f"evaluating {subject.id}", len(tensors)) as task:
        for row in range(len(tensors)):
            rows.append(session(tensors[row : row + 1]))
            task.advance()
    return np.concatenate(rows)
