"""Networks for ``verdict_study.py``: a ladder of real compact networks, their answers to a large set of drawn
signs, and a network that knows its training pictures by heart."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vgg_export import inputs as given
from vgg_export.bundle import evaluate
from vgg_export.core import cache
from vgg_export.core.progress import Progress
from vgg_export.data import drawn, splits, tensors
from vgg_export.graphs.model_info import Described
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import input_size
from vgg_export.options import (
    DataOptions,
    DistilOptions,
    DrawOptions,
    FactoriseOptions,
    RecipeOptions,
    WeightsOptions,
)
from vgg_export.recipes import BASELINE, DISTIL, EXPORT, FACTORISE, Context, Step, Steps
from vgg_runtime.board import device
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.bundle.session import Model

ANEW_FROM = "conv5_1"  # the layers that a memorising network learns
FITTED_ON = 256  # pictures, at most
EPOCHS, BATCH, RATE = 40, 32, 0.02


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which networks, and on which pictures. ``shares``: of the convolutions' arithmetic. ``px``: the input
    size of all of them, 0: the original's own. ``test``: pictures that are drawn to judge on, of which so
    many are ``judged`` on (None: all), and ``fit`` those that the networks are fitted on. ``memorise``: make
    a network first that knows so many pictures by heart."""

    weights: str
    shares: tuple[float, ...]
    px: int
    test: int
    fit: int
    memorise: int = 0
    judged: int | None = None


def answers(asked: Asked, work: Path, progress: Progress) -> Path:
    """The file with the logits of all networks, float32 [n, classes] each, under the networks' names, the
    baseline's first; ``labels`` int64 [n]; and ``macs``, one number per network. It is made once."""
    found = work / "answers.npz"
    if not found.exists():
        folder = drawn.draw_signs(DrawOptions(work / "signs", asked.fit, asked.test, seed=7), progress)
        models, items = ladder(asked, folder, work, progress)
        logits = infer(models, items, progress)
        macs = [model.read(Described).model.macs for model in models.values()]
        labels = np.array([item.label for item in items])
        np.savez(found, labels=labels, macs=macs, **logits)  # type: ignore[arg-type]
    return found


def of_files(files: Sequence[Path], asked: Asked, work: Path, progress: Progress) -> Path:
    """The same of exported models; the first is the baseline."""
    found = work / "answers.npz"
    if not found.exists():
        folder = drawn.draw_signs(DrawOptions(work / "signs", asked.fit, asked.test, seed=7), progress)
        models = {path.stem: given.model_file(path) for path in files}
        first = next(iter(models.values()))
        data = DataOptions(str(folder), test_images=asked.test)
        items = shuffled(given.splits_for(first, data, work, progress).test)[: asked.judged]
        macs = [model.read(Described).model.macs for model in models.values()]
        labels = np.array([item.label for item in items])
        np.savez(found, labels=labels, macs=macs, **infer(models, items, progress))  # type: ignore[arg-type]
    return found


def ladder(
    asked: Asked, pictures: Path, work: Path, progress: Progress
) -> tuple[dict[str, cache.Artifact], Sequence[splits.Item]]:
    """Float models of every share, with and without distillation, by name, and the test pictures. The first
    is the baseline."""
    data = DataOptions(str(pictures), test_images=asked.test)
    checkpoint = given.checkpoint_file(WeightsOptions(asked.weights), data, work, progress)
    if asked.px:
        checkpoint = input_size.run(checkpoint, work / f"{asked.px}.safetensors", asked.px, progress)
    shown = given.splits_for(checkpoint, data, work, progress)
    if asked.memorise:
        checkpoint = memorising(checkpoint, shown, asked.memorise, work)
    wanted = RecipeOptions(data=data, distil=DistilOptions("classifier"))
    base = Context(checkpoint, shown, wanted, progress, work, work)
    models = {"baseline": Steps(base).make(BASELINE.steps)}
    for share in asked.shares:
        factorised = FactoriseOptions(conv_share=share, images=FITTED_ON, multiple=4)
        own = dataclasses.replace(base, options=dataclasses.replace(wanted, factorise=factorised))
        for name, tuned in (("", ()), (", distilled", (DISTIL,))):
            models[f"{share:.0%}{name}"] = _made(own, (FACTORISE, *tuned, EXPORT), work / f"{share}")
    return models, shuffled(shown.test)[: asked.judged]


def shuffled(items: Sequence[splits.Item]) -> list[splits.Item]:
    """The pictures in an order of chance, but always in the same."""
    return [items[k] for k in np.random.default_rng(0).permutation(len(items))]


def _made(context: Context, steps: tuple[Step, ...], folder: Path) -> cache.Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    return Steps(dataclasses.replace(context, folder=folder)).make(steps)


def infer(
    models: dict[str, cache.Artifact], items: Sequence[splits.Item], progress: Progress
) -> dict[str, npt.NDArray[np.float32]]:
    """The logits of every model, float32 [n, classes]. No picture is kept."""
    subjects = {
        name: evaluate.Subject(name, model, model.read(Described).model.preprocessing)
        for name, model in models.items()
    }
    sessions = {
        name: Model(subject.model.path, subject.session, device.usable_cores())
        for name, subject in subjects.items()
    }
    found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in models}
    with progress.task("asking all networks", len(items)) as task:
        for item in items:
            prepared = {
                spec: load(item.path, spec)[None] for spec in {s.preprocessing for s in subjects.values()}
            }
            for name, session in sessions.items():
                found[name].append(session(prepared[subjects[name].preprocessing]))
            task.advance()
    return {name: np.concatenate(rows) for name, rows in found.items()}


def memorising(checkpoint: cache.Artifact, shown: splits.Splits, count: int, work: Path) -> cache.Artifact:
    """The checkpoint with its last layers learnt anew from ``count`` pictures, without augmentation, until it
    knows them by heart."""
    path = work / "memorising.safetensors"
    if not path.exists():
        before = checkpoints.load(checkpoint.path)
        network, items = before.model(), shown.fit[:count]
        names = [name for name, _ in network.named_children()]
        edge = names.index(ANEW_FROM)
        frozen, learning = network[:edge], network[edge:]
        torch.manual_seed(0)
        for module in learning.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                torch.nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        labels = torch.tensor([item.label for item in items])
        with torch.inference_mode():
            x = torch.cat(
                [
                    frozen(tensors.stacked(items[k : k + BATCH], before.chain.input))
                    for k in range(0, len(items), BATCH)
                ]
            )
        _learn(learning, x.clone(), labels)
        own = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        checkpoints.save(dataclasses.replace(before, tensors=own), path)
    return cache.of(path)


def _learn(network: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Train on inputs [n, ...] and their classes [n]."""
    steps = EPOCHS * -(-len(x) // BATCH)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            loss = torch.nn.functional.cross_entropy(network(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
