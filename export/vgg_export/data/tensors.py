"""Pictures as torch tensors and data sets."""

import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vgg_export.core import processes
from vgg_export.core.devices import CPU, device, here
from vgg_export.core.progress import Progress, Quiet
from vgg_export.network import checkpoint as checkpoints
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.preprocess import load, open_image, to_tensor

from .splits import Item

if TYPE_CHECKING:
    import torch
    from torch import nn


log = logging.getLogger(__name__)

TIMED, BATCHES = 8, 4  # pictures of a batch that is timed, and how many are


def batches_of(
    items: Sequence[Item],
    preprocessing: InputSpec,
    least_area: float = 1.0,
    seed: int = 0,
    crops: Sequence[int] | None = None,
) -> "torch.utils.data.Dataset[tuple[torch.Tensor, int]]":
    """A torch dataset of pictures, float32 [channels, px, px], with their class indices, -1 where there is no
    label.

    With ``least_area`` below 1 each picture is cropped to a part of about that share of its area or more; the
    same ``seed`` and the same number among ``crops``, one for each item (None: all 0), always give the same
    crop.
    """
    import torch

    class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            item = items[index]
            # a part of the picture must be large enough, too
            needed = preprocessing.at(math.ceil(preprocessing.px / math.sqrt(min(least_area, 1.0))))
            image = open_image(item.path, needed)
            if least_area < 1:
                drawn_for = f"{seed}:{item.sha256}:{crops[index] if crops else 0}"
                image = image.crop(part_of(image.size, least_area, drawn_for))
            return torch.from_numpy(to_tensor(image, preprocessing)), -1 if item.label is None else item.label

    return Pictures()


def part_of(size: tuple[int, int], least_area: float, seed: str) -> tuple[int, int, int, int]:
    """A random box (left, upper, right, lower) in px within a picture of ``size`` (width, height).

    Its area is from about ``least_area`` of the picture's to all of it, its shape up to a quarter wider or
    narrower than the picture's. The same ``seed`` always gives the same box.
    """
    chance, (width, height) = random.Random(seed), size
    area, stretch = chance.uniform(least_area, 1) * width * height, chance.uniform(0.8, 1.25)
    wide = max(1, min(width, round(math.sqrt(area * stretch * width / height))))
    high = max(1, min(height, round(math.sqrt(area / stretch * height / width))))
    left, upper = chance.randint(0, width - wide), chance.randint(0, height - high)
    return left, upper, left + wide, upper + high


def stacked(items: Sequence[Item], preprocessing: InputSpec) -> "torch.Tensor":
    """Pictures as one float32 tensor [N, channels, px, px]."""
    import torch

    return torch.stack([torch.from_numpy(load(item.path, preprocessing)) for item in items])


def logits(network: "nn.Module", pictures: "torch.Tensor", batch: int) -> npt.NDArray[np.float32]:
    """The logits [N, units] of a network for pictures [n, channels, px, px], ``batch`` of them at a time. Of
    several processes each has its ``share`` of N pictures, and gets the logits of all."""
    import torch

    layers = network.to(device()).to(memory_format=torch.channels_last)
    count = int(processes.total(len(pictures)))
    with torch.inference_mode():
        parts = [
            layers(here(pictures[k : k + batch]).contiguous(memory_format=torch.channels_last)).cpu()
            for k in range(0, max(1, len(pictures)), batch)
        ]
        said = processes.gathered(torch.cat(parts), processes.share(count), count)
    return said.numpy()


def logits_together(
    network: checkpoints.Checkpoint, pictures: "torch.Tensor", batch: int
) -> npt.NDArray[np.float32]:
    """``logits`` for all pictures [N, channels, px, px], of which several processes take a share each."""
    return processes.together(Quiet(), _logits_share, network, pictures, batch)


def seconds_per_picture(network: checkpoints.Checkpoint) -> tuple[float, float]:
    """The seconds that a network needs for a picture where torch computes, and on the CPU."""
    import torch

    where, cpu = device(), torch.device(CPU)
    found = _seconds_on(where, network)
    return found, found if where == cpu else _seconds_on(cpu, network)


def _seconds_on(where: "torch.device", network: checkpoints.Checkpoint) -> float:
    """The least of a few batches, since the first ones take longer."""
    import torch

    layers = network.model().to(where).to(memory_format=torch.channels_last)
    shown, found = torch.rand(TIMED, *network.chain.input.shape), []
    shown = shown.contiguous(memory_format=torch.channels_last)
    for _ in range(BATCHES):
        began = time.perf_counter()
        with torch.inference_mode():
            layers(shown.to(where)).cpu()
        found.append((time.perf_counter() - began) / TIMED)
    return min(found)


def _logits_share(
    network: checkpoints.Checkpoint, pictures: "torch.Tensor", batch: int, _: Progress
) -> npt.NDArray[np.float32]:
    return logits(network.model(), pictures[processes.slice_of(len(pictures))], batch)


@contextlib.contextmanager
def answering(
    checkpoint: checkpoints.Checkpoint,
) -> Iterator[Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]]:
    """A network as a function of arrays: a batch [n, channels, px, px] -> logits [n, units]. Several
    processes share the batches that the first one asks about; each keeps the network to the end of the
    block."""
    processes.together(Quiet(), _keep, checkpoint)
    try:
        yield lambda x: processes.together(Quiet(), _answer, x)
    finally:
        _Kept.network = None
    processes.together(Quiet(), _keep, None)  # after an error all processes end


class _Kept:
    """The network that is being asked."""

    network: "nn.Module | None" = None


def _keep(checkpoint: checkpoints.Checkpoint | None, _: Progress) -> None:
    _Kept.network = checkpoint.model() if checkpoint else None


def _answer(x: npt.NDArray[np.float32], _: Progress) -> npt.NDArray[np.float32]:
    import torch

    assert _Kept.network is not None  # ``answering`` keeps one
    own = torch.from_numpy(x[processes.slice_of(len(x))])
    return logits(_Kept.network, own, max(1, len(own)))
