"""A short run of distillation: the student learns the checkpoint's own answers, and labels where there are any.

loss = T^2 KL(teacher || student) at temperature T (Hinton et al. 2015) + cross-entropy of the labelled pictures. Runs alone
or under ``torchrun`` (DistributedDataParallel, gloo on CPU): each process then takes its share of every batch.
"""

import contextlib
import copy
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vgg_calibration.choose as choose
from vgg_runtime.preprocess import for_input

from . import model, stage
from .data import Item, Splits, batches_of
from .errors import DataError
from .options import BLOCK_NAMES, FinetuneOptions, as_json
from .progress import Progress, Quiet

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)


def run(student: stage.Artifact, teacher: stage.Artifact, splits: Splits, output: Path, options: FinetuneOptions, progress: Progress) -> stage.Artifact:
    """Fine-tune a checkpoint file towards another; the sidecar records the selection loss of every epoch.

    Without fitting or selection pictures, or for random weights, the student is passed on unchanged and the sidecar says
    why. Under torchrun the first process alone writes.
    """

    def make(path: Path) -> dict[str, object]:
        checkpoint = model.load(student.path)
        reason = _nothing_to_do(checkpoint, splits, options)
        if reason:
            log.info("not fine-tuned: %s", reason)
            model.save(checkpoint, path)
            return {"skipped": reason, "epochs": [], "kept_epoch": 0}
        tuned, measured = tune(checkpoint, model.load(teacher.path), splits, options, progress)
        if rank() == 0:
            model.save(tuned, path)
        return measured

    inputs = {"student": student, "teacher": teacher, "splits": stage.Artifact(Path("splits"), splits.digest(), {})}
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
    if checkpoint.source.get("figures_absent"):
        return "random weights have no knowledge to recover"
    if not options.epochs:
        return "no epochs were asked for"
    if not splits.select:
        return splits.note or "there are no pictures to select the best epoch with"
    return None


def tune(
    student: model.Checkpoint, teacher: model.Checkpoint, splits: Splits, options: FinetuneOptions, progress: Progress
) -> tuple[model.Checkpoint, dict[str, Any]]:
    """The best of the start and every epoch by the loss on the selection set; never worse than the start.

    Raises:
        DataError: student and teacher do not answer the same question.
    """
    import torch

    if student.plan.classes != teacher.plan.classes or student.plan.input_px != teacher.plan.input_px:
        raise DataError(f"the student has {student.plan.classes} classes at {student.plan.input_px} px, the teacher {teacher.plan.classes} at {teacher.plan.input_px} px; expected the same")
    torch.manual_seed(options.seed)
    network, reference = student.model(), teacher.model()
    frozen, trained = _divide(network, options.train_from)
    fit = choose.limit(splits.fit, [i.source for i in splits.fit], options.images, options.seed)
    select = choose.limit(splits.select, [i.source for i in splits.select], options.select_images, options.seed)
    distance = _Distance(frozen, trained, reference, options.temperature)
    shown = progress if rank() == 0 else Quiet()
    losses = [_selection_loss(distance, select, student.plan.input_px, options, shown)]
    best, kept = copy.deepcopy(trained.state_dict()), 0
    for epoch in range(1, options.epochs + 1):
        _train_epoch(distance, fit, student.plan.input_px, options, epoch, shown)
        losses.append(_selection_loss(distance, select, student.plan.input_px, options, shown))
        log.info("epoch %d: selection loss %.4f (start %.4f)", epoch, losses[-1], losses[0])
        if losses[-1] < losses[kept]:
            best, kept = copy.deepcopy(trained.state_dict()), epoch
    trained.load_state_dict(best)
    tensors = {name: t.detach().clone() for name, t in network.state_dict().items()}
    labelled = sum(i.label is not None for i in fit)
    measured = {"selection_loss": losses, "kept_epoch": kept, "images": len(fit), "labelled": labelled, "select_images": len(select), "processes": _world()}
    words = f"distilled for {kept} of {options.epochs} epochs on {len(fit)} pictures" if kept else "fine-tuning did not help and was rolled back"
    source = student.source | {"history": [*student.source.get("history", []), words]}
    return model.Checkpoint(student.plan, tensors, student.labels, source), measured


def _divide(network: "nn.Module", train_from: str) -> "tuple[nn.Module, nn.Module]":
    """The layers before the first trained block, whose weights stay, and the rest; both share the network's tensors."""
    import torch

    layers = list(network.named_children())
    first = next(k for k, (name, _) in enumerate(layers) if name.startswith(train_from)) if train_from != BLOCK_NAMES[0] else 0
    frozen, trained = (torch.nn.Sequential(*(layer for _, layer in part)) for part in (layers[:first], layers[first:]))
    frozen.requires_grad_(requires_grad=False)
    return frozen, trained


class _Distance:
    """How far the student is from teacher and labels, as a sum over a batch."""

    def __init__(self, frozen: "nn.Module", trained: "nn.Module", teacher: "nn.Module", temperature: float) -> None:
        self.frozen, self.trained, self.teacher, self.temperature = frozen, trained, teacher, temperature

    def __call__(self, x: "torch.Tensor", labels: "torch.Tensor", tail: "nn.Module | None" = None) -> "torch.Tensor":
        """``x`` [N, 3, px, px], ``labels`` [N] with -1 where unknown; ``tail`` stands in for the trained layers."""
        import torch
        from torch.nn import functional

        with torch.no_grad():
            wanted = (self.teacher(x) / self.temperature).log_softmax(1)
            features = self.frozen(x)
        logits = (tail or self.trained)(features)
        found = (logits / self.temperature).log_softmax(1)
        loss = self.temperature**2 * functional.kl_div(found, wanted, reduction="sum", log_target=True)
        if (labels >= 0).any():
            loss = loss + functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return loss


def _train_epoch(distance: _Distance, items: Sequence[Item], px: int, options: FinetuneOptions, epoch: int, progress: Progress) -> None:
    import torch

    tail = distance.trained.train()
    if _world() > 1:
        tail = torch.nn.parallel.DistributedDataParallel(tail)
    # A new optimizer each epoch: its state would belong to weights that a roll-back forgets.
    rate = options.rate * 0.5 ** (epoch - 1)
    optimizer = torch.optim.Adam(distance.trained.parameters(), lr=rate)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(options.seed * 1000 + epoch)).tolist()
    shuffled = [items[k] for k in order]
    # Each process takes every n-th picture; all make the same number of steps, as the averaging of gradients needs.
    per_process = max(1, options.batch // _world())
    share = shuffled[rank() :: _world()][: max(1, len(shuffled) // _world())]
    with progress.task(f"fine-tuning, epoch {epoch} of {options.epochs}", len(share)) as task:
        for x, labels in _loader(share, px, per_process):
            loss = distance(x, labels, tail) / len(labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            task.advance(len(labels))
    distance.trained.eval()


def _selection_loss(distance: _Distance, items: Sequence[Item], px: int, options: FinetuneOptions, progress: Progress) -> float:
    """Mean loss over the selection set, summed over all processes."""
    import torch

    total = torch.zeros(2, dtype=torch.float64)
    share = items[rank() :: _world()]
    with torch.inference_mode(), progress.task("scoring on the selection set", len(share)) as task:
        for x, labels in _loader(share, px, options.batch):
            total += torch.tensor([float(distance(x, labels)), len(labels)], dtype=torch.float64)
            task.advance(len(labels))
    if _world() > 1:
        torch.distributed.all_reduce(total)
    return float(total[0] / total[1])


def _loader(items: Sequence[Item], px: int, batch: int) -> "torch.utils.data.DataLoader[tuple[torch.Tensor, int]]":
    from torch.utils.data import DataLoader

    return DataLoader(batches_of(items, for_input(px)), batch)
