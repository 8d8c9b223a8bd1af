"""A short run of distillation: the student learns the checkpoint's own answers, and labels where there are any.

loss = T^2 KL(teacher || student) at temperature T (Hinton et al. 2015) + cross-entropy of the labelled pictures. Runs alone
or under ``torchrun`` (DistributedDataParallel, gloo on CPU): each process then takes its share of every batch.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import vgg_calibration.choose as choose
from vgg_runtime.preprocess import for_input

from . import model, stage
from .data import Item, Splits, batches_of
from .errors import DataError
from .options import FinetuneOptions, as_json
from .progress import Progress, Quiet
from .storage import atomic_file, reserved_array

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

BACK_OFF = 0.3  # of the rate, after an epoch that did not help and was rolled back


def run(
    student: stage.Artifact,
    teacher: stage.Artifact,
    splits: Splits,
    output: Path,
    options: FinetuneOptions,
    progress: Progress,
    answers: Path | None = None,
) -> stage.Artifact:
    """Fine-tune a checkpoint file towards another; the sidecar records the selection loss of every epoch.

    ``answers``: a folder where the teacher's answers are kept for other students; asking it is most of the time.

    Without fitting or selection pictures, or for random weights, the student is passed on unchanged and the sidecar says
    why. Under torchrun the first process alone writes.
    """

    def make(path: Path) -> dict[str, object]:
        checkpoint = model.load(student.path)
        reason = _nothing_to_do(checkpoint, splits, options)
        if reason:
            log.info("not fine-tuned: %s", reason)
            if rank() == 0:
                model.save(checkpoint, path)
            return {"skipped": reason, "epochs": [], "kept_epoch": 0}
        kept = Answers(answers, teacher.sha256) if answers and _world() == 1 else None
        tuned, measured = tune(checkpoint, model.load(teacher.path), splits, options, path.parent, progress, kept)
        if rank() == 0:
            model.save(tuned, path)
        return measured

    inputs = {"student": student, "teacher": teacher, "splits": stage.Artifact(Path("splits"), splits.digest("fit", "select"), {})}
    with _process_group():
        if rank() == 0:
            return stage.produce("finetune", as_json(options), inputs, output, make)
        if not stage.current("finetune", as_json(options), inputs, output):  # else the first process has nothing to do either
            make(output)  # takes part in the sums, writes nothing
        return student


def rank() -> int:
    """Number of this process under torchrun, 0 alone."""
    return int(os.environ.get("RANK", "0"))


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    import torch.distributed as distributed

    if _world() == 1:
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _nothing_to_do(checkpoint: model.Checkpoint, splits: Splits, options: FinetuneOptions) -> str | None:
    if not checkpoint.has_knowledge:
        return "random weights have no knowledge to recover"
    if not options.epochs:
        return "no epochs were asked for"
    if not splits.select:
        return splits.note or "there are no pictures to select the best epoch with"
    return None


def tune(
    student: model.Checkpoint,
    teacher: model.Checkpoint,
    splits: Splits,
    options: FinetuneOptions,
    folder: Path,
    progress: Progress,
    answers: "Answers | None" = None,
) -> tuple[model.Checkpoint, dict[str, Any]]:
    """The best of the start and every epoch by the loss on the selection set; never worse than the start.

    Raises:
        DataError: student and teacher do not answer the same question.
    """
    import torch

    if student.plan.classes != teacher.plan.classes:
        raise DataError(f"the student has {student.plan.classes} classes, the teacher {teacher.plan.classes}; expected the same")
    torch.manual_seed(options.seed)
    network = student.model()
    frozen, trained = _divide(network, options.train_from)
    shown = progress if rank() == 0 else Quiet()
    with tempfile.TemporaryDirectory(prefix=".finetune.", dir=folder) as scratch:
        sets = {}
        for name, items, limit in (("fitting", splits.fit, options.images), ("selection", splits.select, options.select_images)):
            chosen = choose.limit(items, [i.source for i in items], limit, options.seed)[rank() :: _world()]
            known = before = answers.read(chosen, teacher.plan.input_px) if answers else None
            if known is None and teacher.plan.input_px != student.plan.input_px:  # each sees the pictures at its own size
                known = _ask(chosen, teacher, options.batch, shown, name)
            found = _cache(chosen, student.plan.input_px, frozen, teacher, known, Path(scratch) / name, options.batch, shown, name)
            if answers and before is None:
                answers.write(chosen, teacher.plan.input_px, found.teacher)
            sets[name] = found
        losses, kept = _epochs(trained, sets["fitting"], sets["selection"], options, shown)
        measured = {"selection_loss": losses, "kept_epoch": kept, "processes": _world()}
        measured["losses"] = {"tuned": _loss(trained, sets["selection"], options.batch)}
        measured |= {"images": _total(len(sets["fitting"].labels)), "select_images": _total(len(sets["selection"].labels))}
    tensors = {name: t.detach().clone() for name, t in network.state_dict().items()}
    words = (
        f"distilled for {kept} of {options.epochs} epochs on {measured['images']} pictures"
        if kept
        else "fine-tuning did not help and was rolled back"
    )
    source = student.source | {"history": [*student.source.get("history", []), words], "fitted_on": splits.fitted()}
    return model.Checkpoint(student.plan, tensors, student.labels, source), measured


def _epochs(
    trained: "nn.Module", fitting: "_Cached", selection: "_Cached", options: FinetuneOptions, progress: Progress
) -> tuple[list[float], int]:
    """Train; leaves the best weights in ``trained`` and returns the selection loss of the start and every epoch, and the kept one."""
    losses, kept = [_selection_loss(trained, selection, options)], 0
    best, rate = copy.deepcopy(trained.state_dict()), options.rate
    for epoch in range(1, options.epochs + 1):
        _train_epoch(trained, fitting, options, epoch, rate, progress)
        losses.append(_selection_loss(trained, selection, options))
        log.info("epoch %d: selection loss %.4f (start %.4f) at a rate of %.1e", epoch, losses[-1], losses[0], rate)
        rate *= options.decay
        if losses[-1] < losses[kept]:
            best, kept = copy.deepcopy(trained.state_dict()), epoch
        else:  # too large a step: a wide layer needs a smaller rate than a narrow one
            trained.load_state_dict(best)
            rate *= BACK_OFF
    trained.load_state_dict(best)
    return losses, kept


def _divide(network: "nn.Module", train_from: str) -> "tuple[nn.Sequential, nn.Sequential]":
    """The layers before the first trained block, whose weights stay, and the rest; both share the network's tensors."""
    import torch

    layers = list(network.named_children())
    first = next(k for k, (name, _) in enumerate(layers) if name.startswith(train_from))
    frozen, trained = (torch.nn.Sequential(*(layer for _, layer in part)) for part in (layers[:first], layers[first:]))
    frozen.requires_grad_(requires_grad=False)
    return frozen, trained


@dataclasses.dataclass(frozen=True)
class _Cached:
    """What the frozen layers and the teacher say of this process's pictures: features [n, ...] on disk, logits [n, classes],
    labels [n] with -1 where unknown. Neither changes while the deeper blocks train, so each is computed once."""

    features: npt.NDArray[np.float32]
    teacher: "torch.Tensor"
    labels: "torch.Tensor"

    def batch(self, rows: Sequence[int]) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        import torch

        return torch.from_numpy(self.features[list(rows)]), self.teacher[list(rows)], self.labels[list(rows)]


class Answers:
    """Logits of a teacher on sets of pictures, kept as files in a folder and found by what they depend on."""

    def __init__(self, folder: Path, teacher_sha256: str) -> None:
        self._folder, self._teacher = folder, teacher_sha256

    def _path(self, items: Sequence[Item], px: int) -> Path:
        asked = json.dumps([self._teacher, px, stage.versions(), stage.source_digest(), [i.sha256 for i in items]])
        return self._folder / f"answers-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npy"

    def read(self, items: Sequence[Item], px: int) -> "torch.Tensor | None":
        """[n, classes], or None when they are not known."""
        import torch

        try:
            found: npt.NDArray[np.float32] = np.load(self._path(items, px), allow_pickle=False)
        except (OSError, ValueError):
            return None  # not there or damaged: the teacher is asked again
        return torch.from_numpy(found) if len(found) == len(items) else None

    def write(self, items: Sequence[Item], px: int, logits: "torch.Tensor") -> None:
        with atomic_file(self._path(items, px)) as temporary, temporary.open("wb") as file:
            np.save(file, logits.numpy())


def _cache(
    items: Sequence[Item],
    px: int,
    frozen: "nn.Sequential",
    teacher: model.Checkpoint,
    known: "torch.Tensor | None",
    path: Path,
    batch: int,
    progress: Progress,
    name: str,
) -> _Cached:
    """``known``: the teacher's logits where it was asked before."""
    import torch

    # channels-last is what torch's CPU convolutions are fast at: three times here
    fast = torch.channels_last
    reference, frozen = teacher.model().to(memory_format=fast), frozen.to(memory_format=fast)
    shared = _begins_with(reference, frozen)  # pruning leaves the first blocks alone: no need to compute them twice
    if shared:
        reference = reference[len(frozen) :]
    features: npt.NDArray[np.float32] | None = None
    logits, labels, done = [], [], 0
    words = f"asking the teacher, {name} pictures" if known is None else f"computing features, {name} pictures"
    with torch.inference_mode(), progress.task(words, len(items)) as task:
        for x, y in torch.utils.data.DataLoader(batches_of(items, for_input(px)), batch):
            x = x.contiguous(memory_format=fast)
            seen = frozen(x)
            found = seen.contiguous().numpy()
            if features is None:
                features = reserved_array(path, (len(items), *found.shape[1:]))
            features[done : done + len(found)] = found
            if known is None:
                logits.append(reference(seen if shared else x))
            labels.append(y)
            done += len(found)
            task.advance(len(found))
    if features is None:
        raise DataError(f"process {rank()} of {_world()} has no {name} pictures; use fewer processes or more pictures")
    return _Cached(features, torch.cat(logits).clone() if known is None else known, torch.cat(labels))


def _ask(items: Sequence[Item], teacher: model.Checkpoint, batch: int, progress: Progress, name: str) -> "torch.Tensor":
    """The teacher's logits [n, classes] at its own input size."""
    import torch

    network, logits = teacher.model().to(memory_format=torch.channels_last), []
    with torch.inference_mode(), progress.task(f"asking the teacher, {name} pictures", len(items)) as task:
        for x, _ in torch.utils.data.DataLoader(batches_of(items, for_input(teacher.plan.input_px)), batch):
            logits.append(network(x.contiguous(memory_format=torch.channels_last)))
            task.advance(len(x))
    return torch.cat(logits).clone() if logits else torch.zeros(0, teacher.plan.classes)


def _begins_with(network: "nn.Sequential", layers: "nn.Sequential") -> bool:
    """Whether the first layers of a network are these, to the last bit."""
    import torch

    wanted, found = layers.state_dict().values(), network[: len(layers)].state_dict().values()
    return len(wanted) == len(found) and all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def distance(logits: "torch.Tensor", teacher: "torch.Tensor", labels: "torch.Tensor", temperature: float) -> "torch.Tensor":
    """Sum over a batch of T^2 KL(teacher || student) and, where labels are not -1, cross-entropy; logits are [N, classes]."""
    from torch.nn import functional

    wanted, found = (teacher / temperature).log_softmax(1), (logits / temperature).log_softmax(1)
    loss = temperature**2 * functional.kl_div(found, wanted, reduction="sum", log_target=True)
    if (labels >= 0).any():
        loss = loss + functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return loss


def _train_epoch(trained: "nn.Module", cached: _Cached, options: FinetuneOptions, epoch: int, rate: float, progress: Progress) -> None:
    import torch

    tail: nn.Module = trained.train()
    if _world() > 1:
        tail = torch.nn.parallel.DistributedDataParallel(trained)
    # A new optimizer each epoch: its state would belong to weights that a roll-back forgets.
    optimizer = torch.optim.Adam(trained.parameters(), lr=rate)
    # Every process makes as many steps of as many pictures, as the averaging of gradients needs.
    steps, per_process = -(-_least(len(cached.labels)) // max(1, options.batch // _world())), max(1, options.batch // _world())
    order = torch.randperm(len(cached.labels), generator=torch.Generator().manual_seed(options.seed * 1000 + epoch)).tolist()
    with progress.task(f"fine-tuning, epoch {epoch} of {options.epochs}", steps) as task:
        for step in range(steps):
            x, teacher, labels = cached.batch(order[step * per_process : (step + 1) * per_process])
            loss = distance(tail(x), teacher, labels, options.temperature) / len(labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            task.advance()
    trained.eval()


def _selection_loss(trained: "nn.Module", cached: _Cached, options: FinetuneOptions) -> float:
    """Mean loss over the selection set of all processes."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(cached.labels), options.batch):
            x, teacher, labels = cached.batch(range(start, min(start + options.batch, len(cached.labels))))
            total += float(distance(trained(x), teacher, labels, options.temperature))
    return _total(total) / _total(len(cached.labels))


def _loss(trained: "nn.Module", cached: _Cached, batch: int) -> dict[str, Any]:
    """Agreement with the teacher and mean KL in nats over the selection set of all processes."""
    import torch
    from torch.nn import functional

    same, divergence = 0.0, 0.0
    with torch.inference_mode():
        for start in range(0, len(cached.labels), batch):
            x, teacher, _ = cached.batch(range(start, min(start + batch, len(cached.labels))))
            logits = trained(x)
            same += float((logits.argmax(1) == teacher.argmax(1)).sum())
            divergence += float(functional.kl_div(logits.log_softmax(1), teacher.log_softmax(1), reduction="sum", log_target=True))
    n = int(_total(len(cached.labels)))
    return {"agreement": _total(same) / n, "kl": _total(divergence) / n, "n": n, "against": "the checkpoint"}


def _total(value: float) -> float:
    """Sum over all processes."""
    return _reduced(value, "SUM")


def _least(value: int) -> int:
    """Smallest of all processes."""
    return int(_reduced(value, "MIN"))


def _reduced(value: float, how: str) -> float:
    import torch

    if _world() == 1:
        return value
    tensor = torch.tensor(float(value), dtype=torch.float64)
    torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, how))
    return float(tensor)
