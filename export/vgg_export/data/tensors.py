"""Pictures as torch tensors and data sets."""

import logging
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.preprocess import load, open_image, to_tensor

from .splits import Item

if TYPE_CHECKING:
    import torch
    from torch import nn


log = logging.getLogger(__name__)


def batches_of(
    items: Sequence[Item], preprocessing: InputSpec, least_area: float = 1.0, seed: int = 0
) -> "torch.utils.data.Dataset[tuple[torch.Tensor, int]]":
    """A torch dataset of pictures, float32 [channels, px, px], with their class indices, -1 where there is no
    label.

    With ``least_area`` below 1 each picture is cropped to a part of about that share of its area or more; the
    same ``seed`` always gives the same crop.
    """
    import torch

    class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            item = items[index]
            image = open_image(item.path)
            if least_area < 1:
                image = image.crop(part_of(image.size, least_area, f"{seed}:{item.sha256}"))
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


def answering(network: "nn.Module") -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """A network as a function of arrays: a batch [n, channels, px, px] -> logits [n, units]."""
    import torch

    layers = network.to(memory_format=torch.channels_last)

    def answer(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return layers(torch.from_numpy(x)).numpy()  # type: ignore[no-any-return]

    return answer
