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

The learning rate is relative to the size of each tensor. The weights of the two parts of a factorised layer
can differ by five orders of magnitude, so a step that hardly changes the larger part would destroy the
smaller one.
"""

import contextlib
import copy
import dataclasses
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from vgg_calibration import choose
from vgg_export.core import cache, processes
from vgg_export.core.devices import device, here
from vgg_export.core.errors import DataError
from vgg_export.core.files import atomic_file, reserved_array
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress, Quiet
from vgg_export.data.splits import Item, Splits
from vgg_export.data.tensors import batches_of
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain
from vgg_export.options import FinetuneOptions, as_json
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.metrics import compare, loss_error_points
from vgg_runtime.bundle.outputs import MULTI_LABEL
from vgg_runtime.records import AnyFloat, Record

from . import stages
from .divergence import alternatives, divergence

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

BACK_OFF = 0.3  # factor on the rate after an epoch that was rolled back
WARM_UP = 20  # steps, at most
EPSILON = 1e-10  # Adam's epsilon times the size of a tensor: torch's 1e-8 for weights of a usual size
SIZE_OF_ZEROS = 1e-3  # the size to assume for a tensor of zeros, which has none


@dataclasses.dataclass(frozen=True)
class Tuned(Record):
    """``selection_loss``: the loss on the selection set at the start and after every epoch. ``kept_epoch``:
    the epoch that was kept (0: the start). ``processes``: how many took part. ``losses``: the loss against
    the teacher. ``points_lost``: points of top-1 lost against the teacher on the labelled pictures, or of
    agreement where there are none, with ``loss_error_points`` as its standard error. ``images`` and
    ``select_images``: the numbers of fitting and of selection pictures."""

    selection_loss: tuple[AnyFloat, ...]  # of an epoch that went astray no number
    kept_epoch: int
    processes: int
    losses: dict[str, Loss]
    points_lost: float
    loss_error_points: float
    images: int
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
    first = processes.from_first(lambda: chain.site(stages.first_trained(chain, options.train_from)))
    frozen, trained = _divide(network, first.parts()[0].name)
    folder.mkdir(parents=True, exist_ok=True)  # on another machine it may be missing
    with tempfile.TemporaryDirectory(prefix=".finetune.", dir=folder) as scratch:
        sets = {}
        asked = (
            ("fitting", splits.fit, options.images, options.least_area),
            ("selection", splits.select, options.select_images, 1.0),
        )
        for name, items, limit, least_area in asked:
            own = _share(_chosen(items, limit, options.seed), name)
            pictures = _Pictures(name, own, least_area, options.seed, options.batch, progress)
            known = before = answers.read(pictures, teacher.chain.input) if answers else None
            # a teacher of another input size sees the pictures at its own size
            if known is None and teacher.chain.input != chain.input:
                known = _ask(pictures, teacher)
            sets[name] = _cache(pictures, chain.input, frozen, teacher, known, Path(scratch) / name)
            if answers and before is None:
                answers.write(pictures, teacher.chain.input, sets[name].teacher)
        losses, kept = _epochs(trained, sets["fitting"], sets["selection"], options, progress)
        loss, points, error = _lost(trained, sets["selection"], options.batch)
        images, select_images = (
            int(processes.total(len(sets[name].labels))) for name in ("fitting", "selection")
        )
        measured = Tuned(
            tuple(losses), kept, processes.world(), {"tuned": loss}, points, error, images, select_images
        )
    tensors = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
    words = (
        f"distilled for {kept} of {options.epochs} epochs on {images} pictures"
        if kept
        else "fine-tuning did not help and was rolled back"
    )
    source = splits.after_fitting(student.provenance.then(words))
    return checkpoints.Checkpoint(chain, tensors, student.labels, source), measured


def _chosen(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    return choose.limit(items, [i.source for i in items], limit, seed)


def _share(items: Sequence[Item], name: str) -> Sequence[Item]:
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
    own = _share(_chosen(items, options.select_images, options.seed), "selection")
    pictures = _Pictures("selection", own, 1.0, options.seed, options.batch, progress)
    if answers.read(pictures, spec) is None:
        answers.write(pictures, spec, torch.from_numpy(logits[[row[item.sha256] for item in own]]))


def _epochs(
    trained: "nn.Module",
    fitting: "_Cached",
    selection: "_Cached",
    options: FinetuneOptions,
    progress: Progress,
) -> tuple[list[float], int]:
    """Train, and leave the best weights in ``trained``. Returns the selection loss of the start and every
    epoch, and the number of the kept epoch. Weights that lose more than those at the start are given up: the
    training goes on from the best ones, at a smaller rate."""
    losses, kept = [_selection_loss(trained, selection, options)], 0
    best = copy.deepcopy(trained.state_dict())
    schedule = _Schedule(trained, options, int(processes.total(len(fitting.labels))))
    for epoch in range(1, options.epochs + 1):
        rate = schedule.rate()
        _train_epoch(trained, fitting, options, epoch, schedule, progress)
        losses.append(_selection_loss(trained, selection, options))
        log.info(
            "epoch %d: selection loss %.4f (start %.4f) from a rate of %.1e on",
            epoch, losses[-1], losses[0], rate,
        )  # fmt: skip
        if losses[-1] < losses[kept]:
            best, kept = copy.deepcopy(trained.state_dict()), epoch
        elif not losses[-1] < losses[0]:  # the steps were too large: a wide layer needs smaller ones
            trained.load_state_dict(best)
            schedule.back_off()
    trained.load_state_dict(best)
    return losses, kept


class _Schedule:
    """An optimizer and its rate at every step: it falls to 0 along half a cosine (Loshchilov and Hutter 2017)
    over all epochs, and grows for the first steps of an optimizer, a tenth of all, whose estimates are poor
    at first."""

    def __init__(self, trained: "nn.Module", options: FinetuneOptions, count: int) -> None:
        self._trained, self._top = trained, options.rate
        self._steps = options.epochs * -(-count // options.batch)
        self._warm_up, self._step = max(1, min(WARM_UP, self._steps // 10)), 0
        self._begin()

    def _begin(self) -> None:
        self.optimizer, self._since = _optimizer(self._trained, 1.0), 0
        self._sizes = [group["lr"] for group in self.optimizer.param_groups]

    def rate(self) -> float:
        """The rate of the next step, relative to the size of each tensor."""
        falling = 0.5 * (1 + math.cos(math.pi * self._step / max(1, self._steps)))
        return self._top * falling * min(1.0, (self._since + 1) / self._warm_up)

    def step(self) -> None:
        """Make a step with the gradients that are there."""
        for group, size in zip(self.optimizer.param_groups, self._sizes, strict=True):
            group["lr"] = self.rate() * size
        self.optimizer.step()
        self._step, self._since = self._step + 1, self._since + 1

    def back_off(self) -> None:
        """Go on with smaller steps, without what was learnt of the steps that went astray."""
        self._top *= BACK_OFF
        self._begin()


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
class _Cached:
    """The outputs of the frozen layers and of the teacher for this process's pictures: features [n, ...] on
    disk, logits [n, units], and labels [n], -1 where unknown. They do not change while the deeper stages
    train, so each is computed once. ``output``: the meaning of the logits."""

    features: npt.NDArray[np.float32]
    teacher: "torch.Tensor"
    labels: "torch.Tensor"
    output: str

    def batch(self, rows: Sequence[int]) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        import torch

        chosen = list(rows)
        features = torch.from_numpy(self.features[chosen])
        return here(features), here(self.teacher[chosen]), here(self.labels[chosen])


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """A set of pictures. ``least_area``: the least share of a picture that its crop shows; ``seed`` chooses
    the crop. ``batch``: the number of pictures at a time."""

    name: str
    items: Sequence[Item]
    least_area: float
    seed: int
    batch: int
    progress: Progress

    @contextlib.contextmanager
    def batches(self, spec: InputSpec, doing: str) -> "Iterator[Iterator[tuple[torch.Tensor, torch.Tensor]]]":
        """Pairs of pictures [n, channels, px, px] and labels [n]. The pictures are channels-last, which makes
        torch's CPU convolutions three times as fast (measured here)."""
        import torch

        with self.progress.task(f"{doing}, {self.name} pictures", len(self.items)) as task:

            def shown() -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
                for x, y in torch.utils.data.DataLoader(
                    batches_of(self.items, spec, self.least_area, self.seed), self.batch
                ):
                    yield here(x).contiguous(memory_format=torch.channels_last), y
                    task.advance(len(x))

            yield shown()


class Answers:
    """Logits of a teacher on sets of pictures, kept as files in a folder. A file is named after all that its
    logits depend on."""

    def __init__(self, folder: Path, teacher_sha256: str) -> None:
        self._folder, self._teacher = folder, teacher_sha256

    def _path(self, of: "_Pictures", spec: InputSpec) -> Path:
        shown = [i.sha256 for i in of.items]
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
) -> _Cached:
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
    return _Cached(features, answers, torch.cat(labels), teacher.chain.output)


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


def distance(
    logits: "torch.Tensor", teacher: "torch.Tensor", labels: "torch.Tensor", temperature: float, output: str
) -> "torch.Tensor":
    """Sum over a batch of T^2 KL(teacher || student) and, where labels are not -1 and a picture has one
    class, cross-entropy; logits are [N, units], and mean ``output``."""
    from torch.nn import functional

    loss = temperature**2 * divergence(logits, teacher, output, temperature)
    if output != MULTI_LABEL and (labels >= 0).any():
        classes = alternatives(logits, output)
        loss = loss + functional.cross_entropy(classes, labels, ignore_index=-1, reduction="sum")
    return loss


def _optimizer(trained: "nn.Module", rate: float) -> "torch.optim.Optimizer":
    """Adam with a rate relative to the root mean square of each tensor, as in Adafactor (Shazeer and Stern
    2018, section 8)."""
    import torch

    sizes = ((t, float(t.detach().square().mean().sqrt())) for t in trained.parameters() if t.requires_grad)
    groups = [
        {"params": [t], "lr": rate * (size or SIZE_OF_ZEROS), "eps": EPSILON / (size or SIZE_OF_ZEROS)}
        for t, size in sizes
    ]
    return torch.optim.Adam(groups)


def _train_epoch(
    trained: "nn.Module",
    cached: _Cached,
    options: FinetuneOptions,
    epoch: int,
    schedule: _Schedule,
    progress: Progress,
) -> None:
    import torch

    trained.train()
    world, count = processes.world(), int(processes.total(len(cached.labels)))
    generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    starts = range(0, count, options.batch)
    with progress.task(f"fine-tuning, epoch {epoch} of {options.epochs}", len(starts)) as task:
        for start in starts:
            batch = order[start : start + options.batch]
            own = [place // world for place in batch if place % world == processes.rank()]
            schedule.optimizer.zero_grad()
            if own:  # a short batch may have no picture of this process
                x, teacher, labels = cached.batch(own)
                loss = distance(trained(x), teacher, labels, options.temperature, cached.output) / len(batch)
                loss.backward()  # type: ignore[no-untyped-call]
            _add_up_gradients(trained)
            schedule.step()
            task.advance()
    trained.eval()


def _add_up_gradients(trained: "nn.Module") -> None:
    """Replace every gradient by its sum over all processes."""
    import torch

    if processes.world() == 1:
        return
    for tensor in trained.parameters():
        if tensor.requires_grad:
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            processes.add_up(tensor.grad)


def _selection_loss(trained: "nn.Module", cached: _Cached, options: FinetuneOptions) -> float:
    """Mean loss over the selection set of all processes."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(cached.labels), options.batch):
            x, teacher, labels = cached.batch(range(start, min(start + options.batch, len(cached.labels))))
            total += float(distance(trained(x), teacher, labels, options.temperature, cached.output))
    return processes.total(total) / processes.total(len(cached.labels))


def _lost(trained: "nn.Module", cached: _Cached, batch: int) -> tuple[Loss, float, float]:
    """The loss over the selection set of all processes (agreement with the teacher and mean KL in nats), and
    the points lost against the teacher with their standard error: of top-1 on the labelled pictures, of
    agreement where there are none."""
    import torch

    with torch.inference_mode():
        said = [
            trained(cached.batch(range(start, min(start + batch, len(cached.labels))))[0]).cpu()
            for start in range(0, len(cached.labels), batch)
        ]
    found = compare(torch.cat(said).numpy(), cached.teacher.numpy(), cached.labels.numpy(), cached.output)
    n, labelled = int(processes.total(found.n)), int(processes.total(len(found.lost)))
    differing, kl = (processes.total(float(each.sum())) for each in (found.differing, found.divergence))
    counted, each = (labelled, found.lost) if labelled else (n, found.differing)
    total, squares = processes.total(float(each.sum())), processes.total(float((each**2).sum()))
    loss = Loss((n - differing) / n, kl / n, n, "the checkpoint")
    return loss, 100 * total / counted, loss_error_points(total, squares, counted)
