"""Trains the last layers of a network towards the answers of another, with inputs that are computed once.

Adam with one learning rate, which is found by a short test and falls to 0 along half a cosine (Loshchilov and
Hutter 2017). The rate is relative to the size of each tensor. The weights of the two parts of a factorised
layer can differ by five orders of magnitude, so a step that hardly changes the larger part would destroy the
smaller one.
"""

import copy
import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vgg_export.core import processes
from vgg_export.core.devices import here
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress, Task
from vgg_export.options import FinetuneOptions
from vgg_runtime.bundle.metrics import compare, loss_error_points
from vgg_runtime.bundle.outputs import MULTI_LABEL

from .divergence import alternatives, divergence

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

# The rates that are tried, the largest first. Longer training bears a larger rate than a short test does, so
# the largest that keeps most of the gain of the next one is taken.
RATES = (8e-3, 4e-3, 2e-3, 1e-3, 5e-4)
MOST_OF_THE_GAIN = 0.75
TEST_STEPS, TEST_PICTURES = 62, 128  # of a test: steps of training, and selection pictures that judge it
BACK_OFF = 0.3  # factor on the rate after an epoch that was rolled back
WARM_UP = 20  # steps, at most
EPSILON = 1e-10  # Adam's epsilon times the size of a tensor: torch's 1e-8 for weights of a usual size
SIZE_OF_ZEROS = 1e-3  # the size to assume for a tensor of zeros, which has none


@dataclasses.dataclass(frozen=True)
class Cached:
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


def train(
    trained: "nn.Module", fitting: Cached, selection: Cached, options: FinetuneOptions, progress: Progress
) -> tuple[list[float], int]:
    """Train, and leave the best weights in ``trained``. Returns the selection loss of the start and every
    epoch, and the number of the kept epoch. Weights that lose more than those at the start are given up: the
    training goes on from the best ones, at a smaller rate."""
    losses, kept = [selection_loss(trained, selection, options)], 0
    best = copy.deepcopy(trained.state_dict())
    rate = options.rate or _tested_rate(trained, fitting, selection, options, progress)
    batches = _batches(fitting, options)
    schedule = _Schedule(trained, rate, options.epochs * batches)
    for epoch in range(1, options.epochs + 1):
        now = schedule.rate()
        with progress.task(f"training, epoch {epoch} of {options.epochs}", batches) as task:
            train_epoch(trained, fitting, options, epoch, schedule, task)
        losses.append(selection_loss(trained, selection, options))
        log.info(
            "epoch %d: selection loss %.4f (start %.4f) from a rate of %.1e on",
            epoch, losses[-1], losses[0], now,
        )  # fmt: skip
        if losses[-1] < losses[kept]:
            best, kept = copy.deepcopy(trained.state_dict()), epoch
        elif not losses[-1] < losses[0]:  # the steps were too large: a wide layer needs smaller ones
            trained.load_state_dict(best)
            schedule.back_off()
    trained.load_state_dict(best)
    return losses, kept


def _tested_rate(
    trained: "nn.Module", fitting: Cached, selection: Cached, options: FinetuneOptions, progress: Progress
) -> float:
    """The rate that short tests find best, as RATES says; ``trained`` is as before."""
    start = copy.deepcopy(trained.state_dict())
    before = selection_loss(trained, selection, options, TEST_PICTURES)
    steps = min(TEST_STEPS, _batches(fitting, options))
    gains: list[float] = []
    found = RATES[-1]
    for count, rate in enumerate(RATES, 1):
        schedule = _Schedule(trained, rate, steps)
        with progress.task(f"testing learning rates, {count} of at most {len(RATES)}", steps) as task:
            train_epoch(trained, fitting, options, 1, schedule, task, steps)
            loss = selection_loss(trained, selection, options, TEST_PICTURES)
        gains.append(before - loss if math.isfinite(loss) else -math.inf)
        trained.load_state_dict(start)
        if len(gains) > 1 and 0 < gains[-2] >= MOST_OF_THE_GAIN * gains[-1]:
            found = RATES[len(gains) - 2]
            break
    log.info("learning rate %.1e, from %d short tests", found, len(gains))
    return found


def _batches(cached: Cached, options: FinetuneOptions) -> int:
    """The number of batches with the pictures of all processes."""
    return -(-int(processes.total(len(cached.labels))) // options.batch)


class _Schedule:
    """An optimizer and its rate at every step. It grows for the first steps of an optimizer, a tenth of all,
    whose estimates are poor at first."""

    def __init__(self, trained: "nn.Module", rate: float, steps: int) -> None:
        self._trained, self._top, self._steps = trained, rate, steps
        self._warm_up, self._step = max(1, min(WARM_UP, steps // 10)), 0
        self._begin()

    def _begin(self) -> None:
        self.optimizer, self._since = _optimizer(self._trained), 0
        self._sizes = [group["lr"] for group in self.optimizer.param_groups]

    def rate(self) -> float:
        """The rate of the next step, relative to the size of each tensor."""
        falling = 0.5 * (1 + math.cos(math.pi * self._step / max(1, self._steps)))
        return self._top * falling * min(1.0, (self._since + 1) / self._warm_up)

    def step(self) -> None:
        """Make a step with the gradients that are there."""
        rate = self.rate()
        for group, size in zip(self.optimizer.param_groups, self._sizes, strict=True):
            group["lr"] = rate * size
        self.optimizer.step()
        self._step, self._since = self._step + 1, self._since + 1

    def back_off(self) -> None:
        """Go on with smaller steps, without what was learnt of the steps that went astray."""
        self._top *= BACK_OFF
        self._begin()


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


def _optimizer(trained: "nn.Module") -> "torch.optim.Optimizer":
    """Adam whose rate is the root mean square of each tensor, to be multiplied by a relative one, as in
    Adafactor (Shazeer and Stern 2018, section 8)."""
    import torch

    sizes = ((t, float(t.detach().square().mean().sqrt())) for t in trained.parameters() if t.requires_grad)
    groups = [
        {"params": [t], "lr": size or SIZE_OF_ZEROS, "eps": EPSILON / (size or SIZE_OF_ZEROS)}
        for t, size in sizes
    ]
    return torch.optim.Adam(groups)


def train_epoch(
    trained: "nn.Module",
    cached: Cached,
    options: FinetuneOptions,
    epoch: int,
    schedule: _Schedule,
    task: Task,
    steps: int | None = None,
) -> None:
    """Train once with each of the pictures of all processes, or as many batches of them as ``steps``."""
    import torch

    trained.train()
    world, count = processes.world(), int(processes.total(len(cached.labels)))
    generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    for start in range(0, count, options.batch)[:steps]:
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
    gradients = []
    for tensor in trained.parameters():
        if tensor.requires_grad:
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            gradients.append(tensor.grad)
    processes.add_up_all(gradients)


def selection_loss(
    trained: "nn.Module", cached: Cached, options: FinetuneOptions, limit: int | None = None
) -> float:
    """Mean loss over the selection set of all processes, or about ``limit`` pictures of it."""
    import torch

    own = len(cached.labels) if limit is None else min(len(cached.labels), -(-limit // processes.world()))
    total = 0.0
    with torch.inference_mode():
        for start in range(0, own, options.batch):
            x, teacher, labels = cached.batch(range(start, min(start + options.batch, own)))
            total += float(distance(trained(x), teacher, labels, options.temperature, cached.output))
    return processes.total(total) / processes.total(own)


def lost(trained: "nn.Module", cached: Cached, batch: int) -> tuple[Loss, float, float]:
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
