"""A short distillation: the student learns the logits of the original checkpoint, and labels where there are
any.

loss = T^2 KL(teacher || student) at temperature T (Hinton et al. 2015) + cross-entropy of the labelled
pictures. Two classes of a single sigmoid are two classes as any others, whose cross-entropy is the binary
one. A multi-label network learns its probabilities from the teacher alone: a folder names one of a picture's
labels and says nothing of the others. Under ``torchrun`` each process takes its share of the pictures, and
the gradients of a batch are summed over all, so the steps are those of one process.

The student is fitted on crops of the given pictures, and the teacher answers for the same crops (Beyer et al.
2022). A checkpoint that was trained on the whole pictures knows them by heart, so its answers for them say
nothing of how it judges others.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from vgg_calibration import choose
from vgg_export.core import cache, processes
from vgg_export.core.devices import device, here
from vgg_export.core.errors import DataError
from vgg_export.core.files import atomic_file, reserved_array, scratch_folder
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress, Quiet
from vgg_export.data.splits import Item, Splits
from vgg_export.data.tensors import batches_of
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain
from vgg_export.options import FinetuneOptions, as_json
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.records import AnyFloat, Record

from . import stages
from .training import Cached, lost, train

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

LARGEST_FEATURES = 1_000_000  # bytes per picture
T = TypeVar("T")
Crop = tuple[Item, int]  # a picture and the number of one of its crops


@dataclasses.dataclass(frozen=True)
class Tuned(Record):
    """``selection_loss``: the loss on the selection set at the start and after every epoch. ``kept_epoch``:
    the epoch that was kept (0: the start). ``processes``: how many took part. ``losses``: the loss against
    the teacher. ``points_lost``: points of top-1 lost against the teacher on the labelled pictures, or of
    agreement where there are none, with ``loss_error_points`` as its standard error. ``images``,
    ``crops`` and ``select_images``: the numbers of fitting pictures, of their crops, and of selection
    pictures."""

    selection_loss: tuple[AnyFloat, ...]  # of an epoch that went astray no number
    kept_epoch: int
    processes: int
    losses: dict[str, Loss]
    points_lost: float
    loss_error_points: float
    images: int
    crops: int
    select_images: int


@dataclasses.dataclass(frozen=True)
class Skipped(Record):
    """Why nothing was done."""

    skipped: str
    epochs: tuple[int, ...] = ()
    kept_epoch: int = 0


@dataclasses.dataclass(frozen=True)
class Measured(Record):
    """What the fine-tuning did, or why there was none. The JSON holds the fields of the record that is
    there."""

    tuned: Tuned | None
    skipped: Skipped | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields of the record that is there."""
        found = self.tuned or self.skipped
        return found.to_json() if found else {}

    @classmethod
    def from_json(cls, document: object, path: str = "") -> Self:
        """What ``to_json`` gave.

        Raises:
            FieldError: it is neither.
        """
        if isinstance(document, dict) and "skipped" in document:
            return cls(None, Skipped.from_json(document, path))
        return cls(Tuned.from_json(document, path))


STAGE = cache.Stage("finetune", __name__, Measured)


def run(
    student: cache.Artifact,
    teacher: cache.Artifact,
    splits: Splits,
    output: Path,
    options: FinetuneOptions,
    progress: Progress,
    answers: Path | None = None,
) -> cache.Artifact:
    """Fine-tune a checkpoint file towards another; the sidecar records the selection loss of every epoch.

    ``answers``: a folder where the teacher's logits are kept for other students, since computing them takes
    most of the time.

    Without fitting or selection pictures, or for random weights, the student is passed on unchanged and the
    sidecar says why.
    """

    def make(path: Path) -> Measured:
        checkpoint = checkpoints.load(student.path)
        reason = _nothing_to_do(checkpoint, splits, options)
        if reason:
            log.info("not fine-tuned: %s", reason)
            checkpoints.save(checkpoint, path)
            return Measured(None, Skipped(reason))
        kept = Answers(answers, teacher.sha256) if answers else None
        tuned, measured = tune(
            checkpoint, checkpoints.load(teacher.path), splits, options, path.parent, progress, kept
        )
        checkpoints.save(tuned, path)
        return Measured(measured)

    inputs = {
        "student": student,
        "teacher": teacher,
        "splits": cache.Artifact(Path("splits"), splits.digest("fit", "select"), {}),
    }
    return cache.produce(STAGE, as_json(options), inputs, output, make)


def _nothing_to_do(
    checkpoint: checkpoints.Checkpoint, splits: Splits, options: FinetuneOptions
) -> str | None:
    if not checkpoint.has_knowledge:
        return "random weights have no knowledge to recover"
    if not options.epochs:
        return "no epochs were asked for"
    if not splits.select:
        return splits.note or "there are no pictures to select the best epoch with"
    return None


def tune(
    student: checkpoints.Checkpoint,
    teacher: checkpoints.Checkpoint,
    splits: Splits,
    options: FinetuneOptions,
    folder: Path,
    progress: Progress,
    answers: "Answers | None" = None,
) -> tuple[checkpoints.Checkpoint, Tuned]:
    """Train a student, and keep the start or the epoch that has the least loss on the selection set. Several
    processes share the pictures of both sets.

    Raises:
        DataError: student and teacher have different numbers or kinds of outputs, or there are fewer pictures
            than processes.
        OptionsError: the student has fewer stages than the one to train from.
    """
    _ensure_same_outputs(student.chain, teacher.chain)
    return processes.together(progress, _tuned, student, teacher, splits, options, folder, answers)


def _tuned(
    student: checkpoints.Checkpoint,
    teacher: checkpoints.Checkpoint,
    splits: Splits,
    options: FinetuneOptions,
    folder: Path,
    answers: "Answers | None",
    progress: Progress,
) -> tuple[checkpoints.Checkpoint, Tuned]:
    import torch

    chain = student.chain
    torch.manual_seed(options.seed)
    network = student.model().to(device())
    first = processes.from_first(lambda: chain.site(_first_trained(chain, options)))
    frozen, trained = _divide(network, first.parts()[0].name)
    folder.mkdir(parents=True, exist_ok=True)  # on another machine it may be missing
    with scratch_folder(folder) as scratch:
        sets = {}
        asked = (
            ("fitting", splits.fit, options.images, options.least_area, options.crops),
            ("selection", splits.select, options.select_images, 1.0, 1),
        )
        for name, items, limit, least_area, crops in asked:
            own = _share(_crops(_chosen(items, limit, options.seed), limit, crops), name)
            pictures = _Pictures(name, own, least_area, options.seed, options.batch, progress)
            known = before = answers.read(pictures, teacher.chain.input) if answers else None
            # a teacher of another input size sees the pictures at its own size
            if known is None and teacher.chain.input != chain.input:
                known = _ask(pictures, teacher)
            sets[name] = _cache(pictures, chain.input, frozen, teacher, known, Path(scratch) / name)
            if answers and before is None:
                answers.write(pictures, teacher.chain.input, sets[name].teacher)
        losses, kept = train(trained, sets["fitting"], sets["selection"], options, progress)
        loss, points, error = lost(trained, sets["selection"], options.batch)
        crops, select_images = (
            int(processes.total(len(sets[name].labels))) for name in ("fitting", "selection")
        )
        measured = Tuned(
            tuple(losses),
            kept,
            processes.world(),
            {"tuned": loss},
            points,
            error,
            min(len(splits.fit), options.images),
            crops,
            select_images,
        )
    tensors = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
    words = (
        f"distilled for {kept} of {options.epochs} epochs on {crops} crops of {measured.images} pictures"
        if kept
        else "fine-tuning did not help and was rolled back"
    )
    source = splits.after_fitting(student.provenance.then(words))
    return checkpoints.Checkpoint(chain, tensors, student.labels, source), measured


def _chosen(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    return choose.limit(items, [i.source for i in items], limit, seed)


def _first_trained(chain: Chain, options: FinetuneOptions) -> str:
    """The first layer whose weights change. Where nobody asks for a stage, the maps that are kept in front of
    it are at most as large as LARGEST_FEATURES allows, or those of the last stage but one."""
    for last in range(options.trained_stages, 2, -1):
        name = stages.first_trained(chain, options.train_from, last)
        if options.train_from is not None or 4 * math.prod(chain.site(name).inputs) <= LARGEST_FEATURES:
            return name
    return stages.first_trained(chain, options.train_from, min(2, options.trained_stages))


def _crops(items: Sequence[Item], limit: int, most: int) -> list[Crop]:
    """As many crops as pictures are allowed, but at most ``most`` of each."""
    return [(item, k) for k in range(most) for item in items][: max(limit, len(items))]


def _share(items: Sequence[T], name: str) -> Sequence[T]:
    """The pictures of this process: each takes every n-th, so that each has some of every batch."""
    processes.from_first(lambda: processes.ensure_enough(len(items), name))
    return items[processes.rank() :: processes.world()]


def give_answers(
    folder: Path,
    teacher: cache.Artifact,
    items: Sequence[Item],
    logits: npt.NDArray[np.float32],
    options: FinetuneOptions,
) -> None:
    """Keep the teacher's logits [n, units] on the selection pictures ``items``, which are known already, so
    that no distillation with these options asks for them again. Each process keeps those of its share."""
    spec = checkpoints.read_header(teacher.path).chain.input
    processes.together(Quiet(), _give, Answers(folder, teacher.sha256), items, logits, options, spec)


def _give(
    answers: "Answers",
    items: Sequence[Item],
    logits: npt.NDArray[np.float32],
    options: FinetuneOptions,
    spec: InputSpec,
    progress: Progress,
) -> None:
    import torch

    row = {item.sha256: k for k, item in enumerate(items)}
    own = _share(_crops(_chosen(items, options.select_images, options.seed), 1, 1), "selection")
    pictures = _Pictures("selection", own, 1.0, options.seed, options.batch, progress)
    if answers.read(pictures, spec) is None:
        answers.write(pictures, spec, torch.from_numpy(logits[[row[item.sha256] for item, _ in own]]))


def _ensure_same_outputs(student: Chain, teacher: Chain) -> None:
    """Make sure that the logits of two networks can be compared."""
    if student.classes != teacher.classes:
        raise DataError(
            f"the student has {student.classes} classes, the teacher {teacher.classes}; expected the same"
        )
    if student.output != teacher.output:
        raise DataError(
            f"the student's outputs are {student.output!r}, the teacher's {teacher.output!r}; expected the"
            " same"
        )


def _divide(network: "nn.Module", first: str) -> "tuple[nn.Sequential, nn.Sequential]":
    """The layers before ``first``, whose weights do not change, and the others from it on. Both share the
    network's tensors."""
    import torch

    layers = list(network.named_children())
    # a convolution whose sides are padded differently has its padding before it
    start = next(k for k, (name, _) in enumerate(layers) if name in (first, f"{first}_padding"))
    frozen, trained = (
        torch.nn.Sequential(*(layer for _, layer in part)) for part in (layers[:start], layers[start:])
    )
    frozen.requires_grad_(requires_grad=False)
    return frozen, trained


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """A set of pictures, each with the number of its crop. ``least_area``: the least share of a picture that
    a crop shows; ``seed`` chooses the crops. ``batch``: the number of pictures at a time."""

    name: str
    items: Sequence[Crop]
    least_area: float
    seed: int
    batch: int
    progress: Progress

    @contextlib.contextmanager
    def batches(self, spec: InputSpec, doing: str) -> "Iterator[Iterator[tuple[torch.Tensor, torch.Tensor]]]":
        """Pairs of pictures [n, channels, px, px] and labels [n]. The pictures are channels-last, which makes
        torch's CPU convolutions three times as fast (measured here)."""
        import torch

        items, crops = zip(*self.items, strict=True) if self.items else ((), ())
        cropped = batches_of(items, spec, self.least_area, self.seed, crops)
        with self.progress.task(f"{doing}, {self.name} pictures", len(self.items)) as task:

            def shown() -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
                for x, y in torch.utils.data.DataLoader(cropped, self.batch):
                    yield here(x).contiguous(memory_format=torch.channels_last), y
                    task.advance(len(x))

            yield shown()


class Answers:
    """Logits of a teacher on sets of pictures, kept as files in a folder. A file is named after all that its
    logits depend on."""

    def __init__(self, folder: Path, teacher_sha256: str) -> None:
        self._folder, self._teacher = folder, teacher_sha256

    def _path(self, of: "_Pictures", spec: InputSpec) -> Path:
        shown = [(item.sha256, crop) for item, crop in of.items]
        said = cache.digest(__name__, self._teacher, spec.to_json(), of.least_area, of.seed, shown)
        return self._folder / f"answers-{said}.npy"

    def read(self, of: "_Pictures", spec: InputSpec) -> "torch.Tensor | None":
        """The logits [n, units], or None when they are not known."""
        import torch

        try:
            found: npt.NDArray[np.float32] = np.load(self._path(of, spec), allow_pickle=False)
        except (OSError, ValueError):
            return None  # not there or damaged: the teacher is asked again
        return torch.from_numpy(found) if len(found) == len(of.items) else None

    def write(self, of: "_Pictures", spec: InputSpec, logits: "torch.Tensor") -> None:
        self._folder.mkdir(parents=True, exist_ok=True)  # on another machine it may be missing
        with atomic_file(self._path(of, spec)) as temporary, temporary.open("wb") as file:
            np.save(file, logits.numpy())


def _cache(
    pictures: _Pictures,
    spec: InputSpec,
    frozen: "nn.Sequential",
    teacher: checkpoints.Checkpoint,
    known: "torch.Tensor | None",
    path: Path,
) -> Cached:
    """Compute what does not change during training. ``known``: the teacher's logits if they are known."""
    import torch

    reference, frozen = (
        n.to(device()).to(memory_format=torch.channels_last) for n in (teacher.model(), frozen)
    )
    # pruning does not change the first stages, so they are computed once for student and teacher
    shared = _begins_with(reference, frozen)
    if shared:
        reference = reference[len(frozen) :]
    features: npt.NDArray[np.float32] | None = None
    logits, labels, done = [], [], 0
    doing = "asking the teacher" if known is None else "computing features"
    with torch.inference_mode(), pictures.batches(spec, doing) as batches:
        for x, y in batches:
            seen = frozen(x)
            found = seen.cpu().contiguous().numpy()
            if features is None:
                features = reserved_array(path, (len(pictures.items), *found.shape[1:]))
            features[done : done + len(found)] = found
            if known is None:
                logits.append(reference(seen if shared else x).cpu())
            labels.append(y)
            done += len(found)
    if features is None:
        raise DataError(f"there are no {pictures.name} pictures; give some")
    answers = torch.cat(logits).clone() if known is None else known
    return Cached(features, answers, torch.cat(labels), teacher.chain.output)


def _ask(pictures: _Pictures, teacher: checkpoints.Checkpoint) -> "torch.Tensor":
    """The teacher's logits [n, units] at its own input size."""
    import torch

    network = teacher.model().to(device()).to(memory_format=torch.channels_last)
    with torch.inference_mode(), pictures.batches(teacher.chain.input, "asking the teacher") as batches:
        logits = [network(x).cpu() for x, _ in batches]
    return torch.cat(logits).clone() if logits else torch.zeros(0, teacher.chain.units)


def _begins_with(network: "nn.Sequential", layers: "nn.Sequential") -> bool:
    """Whether the first layers of a network are equal to these, to the last bit."""
    import torch

    begins = network[: len(layers)]
    if [repr(layer) for layer in begins] != [repr(layer) for layer in layers]:
        return False
    wanted, found = layers.state_dict().values(), begins.state_dict().values()
    return all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
