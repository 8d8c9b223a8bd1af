"""Trains the embedded default: a VGG19 at a quarter of its width on drawn road signs.

Run once by whoever maintains the package (``vgg-export demo-train``); the result ships as float16
safetensors. Training is progressive: most epochs see small pictures, the last ones see 224 px, the size at
which the network is used.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vgg_export import __version__
from vgg_export.core.errors import OptionsError
from vgg_export.core.files import sha256, write_json
from vgg_export.core.progress import Progress
from vgg_export.network import chain, modules
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.provenance import Provenance
from vgg_runtime.bundle.input_spec import InputSpec, for_input
from vgg_runtime.bundle.metrics import wilson_interval
from vgg_runtime.bundle.preprocess import to_tensor

from . import signs

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

CHAIN = chain.Chain(
    for_input(224),
    chain.vgg_layers(
        ((16,) * 2, (32,) * 2, (64,) * 4, (128,) * 4, (128,) * 4), (512, 512, len(signs.CLASSES))
    ),
)
DRAWN_PX = 256  # the preprocessing resizes to this before it crops 224
TEST_SEED = 10_000_000  # training draws from seeds below, tests from here on: disjoint by construction


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some epochs at one input size ``px``. ``rate`` is the peak of a one-cycle learning rate."""

    px: int
    epochs: int
    rate: float
    batch: int


PHASES = (Phase(64, 8, 0.08, 64), Phase(112, 4, 0.04, 64), Phase(160, 1, 0.015, 64), Phase(224, 2, 0.01, 48))


@dataclasses.dataclass(frozen=True)
class DemoTrainOptions:
    """``images`` drawn for training, ``test_images`` for the accuracy on the model card."""

    output: Path
    images: int = 24_000
    test_images: int = 2_000
    seed: int = 0
    phases: tuple[Phase, ...] = PHASES

    def __post_init__(self) -> None:
        if not len(signs.CLASSES) <= self.images < TEST_SEED:
            raise OptionsError(
                f"--images must be between {len(signs.CLASSES)} and {TEST_SEED - 1}, found {self.images}"
            )
        if self.test_images < 1:
            raise OptionsError(f"--test-images must be positive, found {self.test_images}")


def run(options: DemoTrainOptions, progress: Progress) -> dict[str, Any]:
    """Draw, train, fold the batch norm, save as float16, test what was saved; returns the model card."""
    import torch

    torch.manual_seed(options.seed)
    # at the first phase's size the adaptive pool is a module, so that the head can be trained at every size
    network = modules.build(CHAIN.at(PHASES[0].px), batch_norm=True, dropout=0.25)
    pictures, labels = draw_many(
        options.images, options.seed * options.images, progress, "drawing training signs"
    )
    for phase in options.phases:
        _train(network, phase, pictures, labels, options.seed, progress)
    source = Provenance("demo", "VGG19 at a quarter of its width, trained on drawn road signs")
    checkpoint = _folded(network, source)
    checkpoints.save(checkpoint, options.output, half=True)
    return _write_card(options, progress)


def draw_many(
    count: int, first_seed: int, progress: Progress, label: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """``count`` signs, classes in turn: pictures uint8 [count, 256, 256, 3] and class indices [count]."""
    labels = np.arange(count) % len(signs.CLASSES)
    pictures = np.empty((count, DRAWN_PX, DRAWN_PX, 3), np.uint8)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool, progress.task(label, count) as task:
        drawn = pool.map(_draw_one, labels.tolist(), range(first_seed, first_seed + count), chunksize=64)
        for row, picture in enumerate(drawn):
            pictures[row] = picture
            task.advance()
    return pictures, labels


def _draw_one(label: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.asarray(signs.draw(signs.CLASSES[label], seed, DRAWN_PX))


def _train(
    network: "nn.Module",
    phase: Phase,
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    seed: int,
    progress: Progress,
) -> None:
    import torch

    network.train()
    network.to(memory_format=torch.channels_last)
    steps = phase.epochs * math.ceil(len(labels) / phase.batch)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=phase.rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.rate, total_steps=steps, pct_start=0.2)
    average = 0.0
    with progress.task(f"training at {phase.px} px", steps) as task:
        for x, y in _batches(phase, pictures, labels, np.random.default_rng([seed, phase.px])):
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(network(x).float(), y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            average += 0.02 * (loss.item() - average)
            task.advance()
    log.info("after %d px: running training loss %.3f", phase.px, average)


def _batches(
    phase: Phase, pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], rng: np.random.Generator
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Random crops of 200 to 256 px, scaled to the phase's size and normalised, with their labels [N].

    Pictures are float32 [N, 3, px, px], channels-last.
    """
    import torch

    whole = InputSpec(phase.px, phase.px)
    for _ in range(phase.epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), phase.batch):
            rows = np.sort(order[start : start + phase.batch])
            side = int(rng.integers(200, DRAWN_PX + 1))
            top, left = rng.integers(0, DRAWN_PX - side + 1, 2)
            crop = torch.from_numpy(pictures[rows, top : top + side, left : left + side]).permute(0, 3, 1, 2)
            scaled = torch.nn.functional.interpolate(
                crop, (phase.px, phase.px), mode="bilinear", antialias=True
            )
            x = _prepared(scaled.permute(0, 2, 3, 1).contiguous().numpy(), whole)
            yield x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels[rows])


def _prepared(pictures: npt.NDArray[np.uint8], preprocessing: InputSpec) -> "torch.Tensor":
    """Pictures [N, side, side, 3] as the device makes them ready, [N, 3, px, px]."""
    import torch

    return torch.from_numpy(np.stack([to_tensor(Image.fromarray(p), preprocessing) for p in pictures]))


def _folded(network: "nn.Module", source: Provenance) -> checkpoints.Checkpoint:
    """The VGG without batch norm that computes the same in evaluation mode."""
    state = {name: t.detach().contiguous() for name, t in network.state_dict().items()}
    tensors: dict[str, torch.Tensor] = {}
    for site in CHAIN.convs:
        norm = f"{site.name}_norm"
        scale, shift = modules.scale_and_shift(
            gamma=state[f"{norm}.weight"],
            beta=state[f"{norm}.bias"],
            mean=state[f"{norm}.running_mean"],
            variance=state[f"{norm}.running_var"],
        )
        weight, bias = modules.scaled_outputs(state[f"{site.name}.weight"], None, scale, shift)
        tensors |= {f"{site.name}.weight": weight, f"{site.name}.bias": bias}
    for site in CHAIN.linears:
        tensors |= {f"{site.name}.{part}": state[f"{site.name}.{part}"] for part in ("weight", "bias")}
    return checkpoints.Checkpoint(CHAIN, tensors, signs.CLASSES, source)


def test_accuracy(path: Path, count: int, progress: Progress) -> tuple[int, int]:
    """``(right, n)`` of a saved demo checkpoint at 224 px on ``count`` signs drawn from the test seeds."""
    import torch

    network = checkpoints.load(path).model().to(memory_format=torch.channels_last)
    pictures, labels = draw_many(count, TEST_SEED, progress, "drawing test signs")
    right = 0
    with torch.inference_mode(), progress.task("testing at 224 px", count) as task:
        for start in range(0, count, 50):
            x = _prepared(pictures[start : start + 50], CHAIN.input)
            found = network(x.contiguous(memory_format=torch.channels_last)).argmax(1).numpy()
            right += int((found == labels[start : start + 50]).sum())
            task.advance(len(found))
    return right, count


def _write_card(options: DemoTrainOptions, progress: Progress) -> dict[str, Any]:
    """The model card beside the weights: command, versions, hash, accuracy with n and interval."""
    import PIL
    import torch

    right, n = test_accuracy(options.output, options.test_images, progress)
    low, high = wilson_interval(right, n)
    card = {
        "model": "vgg19 at a quarter of its width, 20 drawn road signs",
        "command": f"vgg-export demo-train --images {options.images} --test-images {options.test_images}"
        f" --seed {options.seed}",
        "check": "vgg-export demo-test",
        "sha256": sha256(options.output),
        "parameters": CHAIN.parameters(),
        "phases": [dataclasses.asdict(p) for p in options.phases],
        "accuracy": {
            "top1": right / n,
            "n": n,
            "interval95": [low, high],
            "input_px": CHAIN.input.px,
            "test_seeds": [TEST_SEED, TEST_SEED + n - 1],
        },
        "versions": {
            "vgg-export": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        },
        "chain_sha256": hashlib.sha256(json.dumps(CHAIN.to_json()).encode()).hexdigest(),
    }
    write_json(options.output.with_suffix(".json"), card)
    return card
