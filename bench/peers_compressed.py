"""Makes the network smaller with other tools, to the arithmetic of one of the bundle's variants, and
fine-tunes it on the same pictures for the same time.

The tools are Torch-Pruning and fasterai. Each removes, by its defaults, the same share of channels or ranks
from every layer; the share is found by bisection. The output layer stays whole, as both say. The fine-tuning
is the plainest of their documentation: cross-entropy, with the optimizer and the schedule of their examples.
They get what their examples do not have: the best of three rates by a short test, random parts of the
pictures, and the input size of the variant.
"""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers_engines import Compression, Made, NotPossibleError, Sources
from vgg_export.data.splits import Item
from vgg_runtime.bundle.input_spec import InputSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    Parameters = Iterable[nn.Parameter]

TOLERANCE = 0.02  # of the multiply-accumulates that are asked for
NEAR_ENOUGH = 0.002  # ends the bisection
MOST_REMOVED = 0.995
BISECTIONS = 20
BATCH = 16  # that of vgg-export's own distillation
LEAST_AREA = 0.4  # likewise: the least share of a picture that its part shows
RATES = (1.0, 0.1, 0.01)  # times the recipe's: theirs are for networks with batch norm
TEST_SHARE = 0.05  # of the minutes, for each of these rates
OPSET = 20


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a tool's examples fine-tune. ``rate``: the highest learning rate. ``factor``: what it is multiplied
    with, by the share of the time that has passed, 0..1."""

    optimizer: "Callable[[Parameters, float], torch.optim.Optimizer]"
    rate: float
    factor: Callable[[float], float]


def steps(passed: float) -> float:
    """A tenth of the rate after 60 % of the time, and a hundredth after 80 %."""
    return 1.0 if passed < 0.6 else 0.1 if passed < 0.8 else 0.01


def one_cycle(passed: float) -> float:
    """fastai's ``fit_one_cycle``: in a quarter of the time from 1/25 up to the rate, then down to almost
    nothing, along cosines."""
    up, low, lowest = 0.25, 1 / 25, 1e-5
    if passed < up:
        return low + (1 - low) * (1 - math.cos(math.pi * passed / up)) / 2
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * (passed - up) / (1 - up))) / 2


def _sgd(parameters: "Parameters", rate: float) -> "torch.optim.Optimizer":
    import torch

    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4)


def _adam(parameters: "Parameters", rate: float) -> "torch.optim.Optimizer":
    """fastai's Adam with its defaults."""
    import torch

    return torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01)


TORCH_PRUNING = Recipe(_sgd, 0.01, steps)  # of its reproduce/main.py
FASTAI = Recipe(_adam, 1e-3, one_cycle)


# The tools: a function that makes a network of a ratio, and one for the arithmetic of that network, which
# need not compute its weights.


def torch_pruning(sources: Sources, folder: Path) -> Made:
    """The quick start of Torch-Pruning: the channels with the least L2 norm of their group go, the same share
    in every layer. Without its ``round_to``, because the steps would be too coarse for equal arithmetic."""
    import torch
    import torch_pruning as tp

    def smaller(network: "nn.Sequential", ratio: float, shape: tuple[int, ...]) -> "nn.Module":
        pruned = copy.deepcopy(network)
        tp.pruner.BasePruner(
            pruned,
            torch.zeros(1, *shape),
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[pruned[-1]],
        ).step()
        return pruned

    return _compressed(sources, folder, smaller, smaller, TORCH_PRUNING)


def fasterai_pruning(sources: Sources, folder: Path) -> Made:
    """fasterai's ``Pruner``: the filters with the least magnitude go, the same share in every layer."""
    import torch
    from fasterai.core.criteria import large_final
    from fasterai.prune.pruner import Pruner

    def smaller(network: "nn.Sequential", ratio: float, shape: tuple[int, ...]) -> "nn.Module":
        pruned = copy.deepcopy(network)
        example = torch.zeros(1, *shape)
        Pruner(pruned, ratio, "local", large_final, example_inputs=example).prune_model()
        return pruned

    return _compressed(sources, folder, smaller, smaller, FASTAI)


def fasterai_decomposition(sources: Sources, folder: Path) -> Made:
    """fasterai's ``Conv_Decomposer`` with its default, Tucker, and its ``FC_Decomposer``, with the same share
    of the ranks removed everywhere. The first convolution stays: it would lose one or two of three
    colours."""
    import torch
    from fasterai.misc.conv_decomposer import Conv_Decomposer
    from fasterai.misc.fc_decomposer import FC_Decomposer

    def smaller(network: "nn.Sequential", ratio: float, shape: tuple[int, ...], **given: int) -> "nn.Module":
        first = next(n for n, m in network.named_children() if isinstance(m, torch.nn.Conv2d))
        last = [name for name, _ in network.named_children()][-1]
        factorised = Conv_Decomposer().decompose(network, ratio, exclude=[first], **given)
        made: nn.Module = FC_Decomposer().decompose(factorised, ratio, exclude=[last])
        return made

    def shapes_of_smaller(network: "nn.Sequential", ratio: float, shape: tuple[int, ...]) -> "nn.Module":
        """The same without numbers, because the singular values of a large layer take minutes. Its iterations
        look at numbers, and change no shape."""
        with torch.device("meta"):
            return smaller(copy.deepcopy(network).to("meta"), ratio, shape, n_iter=0)

    return _compressed(sources, folder, smaller, shapes_of_smaller, FASTAI)


Smaller = Callable[["nn.Sequential", float, tuple[int, ...]], "nn.Module"]


def _compressed(
    sources: Sources, folder: Path, smaller: Smaller, shapes_of_smaller: Smaller, recipe: Recipe
) -> Made:
    import torch

    asked = sources.compression
    assert asked is not None
    torch.set_num_threads(sources.threads)
    torch.manual_seed(0)
    pictures = read_pictures(asked.pictures)
    whole, shape = original(sources, pictures.preprocessing), pictures.preprocessing.shape
    ratio, macs = ratio_for(
        asked.macs,
        multiply_accumulates(whole, shape),
        lambda ratio: multiply_accumulates(shapes_of_smaller(whole, ratio, shape), shape),
    )
    targets = Targets.of(whole, pictures)
    changed = smaller(whole, ratio, shape)
    tuned = fine_tune(changed, targets, recipe, asked)
    made = folder / "fp32.onnx"
    export(changed, shape, made)
    parameters = sum(tensor.numel() for tensor in changed.parameters())
    return Made([made], parameters, macs, f"{100 * ratio:.1f} % removed in each layer; {tuned}")


# The network and its arithmetic


def original(sources: Sources, preprocessing: InputSpec) -> "nn.Sequential":
    """The checkpoint's network for the input size of ``preprocessing``. An adaptive pool that no exporter
    writes is multiplied into the layer behind it; that changes no output.

    Raises:
        NotPossibleError: there is no checkpoint.
    """
    from peers_engines import checkpoint_as_it_is
    from vgg_export.network import adaptive_pool, input_size
    from vgg_export.network import checkpoint as checkpoints

    found = checkpoints.load(checkpoint_as_it_is(sources, sources.checkpoint.parent)[0])
    other = preprocessing.px != found.chain.input.px
    sized = input_size.fold(found, preprocessing.px) if other else adaptive_pool.without_pool(found)
    return sized.model()


def multiply_accumulates(network: "nn.Module", shape: tuple[int, ...]) -> int:
    """Those of the convolutions and fully connected layers in one inference, as the bundle counts them."""
    import torch

    counts: list[int] = []

    def count(layer: Any, inputs: Any, output: "torch.Tensor") -> None:
        counts.append(layer.weight.numel() * math.prod(output.shape[2:]))

    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    device = layers[0].weight.device
    with contextlib.ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.register_forward_hook(count).remove)
        network(torch.zeros(1, *shape, device=device))
    return sum(counts)


def ratio_for(wanted: int, whole: int, macs_of: Callable[[float], int]) -> tuple[float, int]:
    """The share to remove so that about ``wanted`` multiply-accumulates remain of ``whole``, by bisection.

    Args:
        macs_of: the multiply-accumulates that remain by the share, 0..1; they never grow with it.

    Returns:
        The share, and what remains.

    Raises:
        NotPossibleError: the network has no more to begin with, or no share is within TOLERANCE.
    """
    if whole <= wanted * (1 + TOLERANCE):
        raise NotPossibleError(
            f"the network has {whole / 1e9:.3g} GMACs at this input size, and {wanted / 1e9:.3g} are allowed:"
            " there is nothing to remove; name a smaller variant with --compress-to"
        )
    low, high, best = 0.0, MOST_REMOVED, (0.0, whole)
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        found = macs_of(ratio)
        best = min(best, (ratio, found), key=lambda one: abs(one[1] - wanted))
        if abs(best[1] - wanted) <= NEAR_ENOUGH * wanted:
            break
        low, high = (ratio, high) if found > wanted else (low, ratio)
    if abs(best[1] - wanted) > TOLERANCE * wanted:
        raise NotPossibleError(
            f"no ratio gives {wanted / 1e9:.3g} GMACs within {TOLERANCE:.0%}; the nearest is {best[0]:.3f}"
            f" with {best[1] / 1e9:.3g}"
        )
    return best


def export(network: "nn.Module", shape: tuple[int, ...], path: Path) -> None:
    """Write the ONNX graph with fully connected weights as the baseline's graph has them, which onnxruntime's
    int8 kernel needs."""
    import torch

    from vgg_export.graphs.export import simplify_average_pools, transpose_linear_weights

    program = torch.onnx.export(
        network.to(memory_format=torch.contiguous_format),
        (torch.zeros(1, *shape),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None  # it is None only when torch.onnx.export writes the file itself
    transpose_linear_weights(program.model)
    simplify_average_pools(program.model)
    program.save(path)


# The pictures


@dataclasses.dataclass(frozen=True)
class FinetunePictures:
    """Pictures to fit and to select with, and how they become tensors."""

    preprocessing: InputSpec
    fitting: tuple[Item, ...]
    selection: tuple[Item, ...]


def write_pictures(pictures: FinetunePictures, path: Path) -> Path:
    """Write which pictures to fine-tune with; ``read_pictures`` reads it. Returns ``path``."""
    items = {
        name: [dataclasses.asdict(item) | {"path": str(item.path.resolve())} for item in part]
        for name, part in (("fitting", pictures.fitting), ("selection", pictures.selection))
    }
    content = {"preprocessing": pictures.preprocessing.to_json(), **items}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read_pictures(path: Path) -> FinetunePictures:
    """What ``write_pictures`` wrote.

    Raises:
        NotPossibleError: there are no pictures to fit or none to select with.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    parts = {
        name: tuple(Item(**one | {"path": Path(one["path"])}) for one in content[name])
        for name in ("fitting", "selection")
    }
    if empty := [name for name, items in parts.items() if not items]:
        raise NotPossibleError(
            f"the bundle has no {empty[0]} pictures, and nothing can be fine-tuned without"
        )
    return FinetunePictures(InputSpec.from_json(content["preprocessing"]), **parts)


# The fine-tuning


@dataclasses.dataclass(frozen=True)
class Targets:
    """The pictures with what a network should answer: probabilities [n, classes] of the fitting pictures, and
    tensors [n, channels, px, px] and probabilities of the selection pictures."""

    pictures: FinetunePictures
    fitting: "torch.Tensor"
    selection: "tuple[torch.Tensor, torch.Tensor]"

    @classmethod
    def of(cls, network: "nn.Module", pictures: FinetunePictures) -> "Targets":
        """A picture's label is what it should answer, or the answer of ``network`` where there is none."""
        from vgg_export.data.tensors import stacked

        fitting = _wanted(network, pictures.fitting, pictures.preprocessing)
        wanted = _wanted(network, pictures.selection, pictures.preprocessing)
        return cls(pictures, fitting, (stacked(pictures.selection, pictures.preprocessing), wanted))


def _wanted(network: "nn.Module", items: Sequence[Item], preprocessing: InputSpec) -> "torch.Tensor":
    import torch

    from vgg_export.data.tensors import stacked

    with torch.no_grad():
        classes = network(torch.zeros(1, *preprocessing.shape)).shape[1]
        rows = [
            network(stacked([item], preprocessing))[0].softmax(0)
            if item.label is None
            else torch.nn.functional.one_hot(torch.tensor(item.label), classes).float()
            for item in items
        ]
    return torch.stack(rows)


def fine_tune(network: "nn.Module", targets: Targets, recipe: Recipe, asked: Compression) -> str:
    """Train for ``asked.minutes``, of which a short test of each of RATES is a part, and leave the weights
    with the least loss on the selection pictures in ``network``. Returns in words what was done."""
    import torch

    network.to(memory_format=torch.channels_last)
    seconds = 60 * asked.minutes
    losses = {}
    for factor in RATES:
        tested = copy.deepcopy(network)
        losses[factor] = _train(tested, targets, recipe, factor, TEST_SHARE * seconds)[0]
    best = min(losses, key=lambda factor: losses[factor])
    rest = (1 - TEST_SHARE * len(RATES)) * seconds
    loss, epochs = _train(network, targets, recipe, best, rest)
    labelled = sum(item.label is not None for item in targets.pictures.fitting)
    return (
        f"fine-tuned for {asked.minutes:.1f} minutes ({epochs:.1f} epochs) on"
        f" {len(targets.pictures.fitting)} pictures, {labelled} with labels, at a rate of"
        f" {best * recipe.rate:g}, selection loss {loss:.2f}"
    )


def _train(
    network: "nn.Module", targets: Targets, recipe: Recipe, factor: float, seconds: float
) -> tuple[float, float]:
    """Train for ``seconds``, and keep the start or the epoch with the least loss on the selection pictures.
    Returns that loss, and the number of epochs. A checkpoint's network has neither dropout nor batch norm, so
    that training and evaluation mode are the same."""
    import torch

    optimizer = recipe.optimizer(network.parameters(), recipe.rate * factor)
    start, seen = time.perf_counter(), 0
    least, best = _loss(network, targets), copy.deepcopy(network.state_dict())
    for x, wanted, ends in _batches(targets):
        passed = (time.perf_counter() - start) / seconds
        if passed < 1:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * factor * recipe.factor(passed)
            loss = torch.nn.functional.cross_entropy(network(x), wanted)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            seen += len(x)
            if not ends:
                continue
        now = _loss(network, targets)
        if now < least:
            least, best = now, copy.deepcopy(network.state_dict())
        if passed >= 1 or now == math.inf:  # weights that are no numbers stay so
            break
    network.load_state_dict(best)
    return least, seen / len(targets.fitting)


def _batches(targets: Targets) -> "Iterator[tuple[torch.Tensor, torch.Tensor, bool]]":
    """Random parts of the fitting pictures, epoch by epoch without end: float32 [n, channels, px, px], what
    to answer [n, classes], and whether it is the last batch of an epoch."""
    import torch

    from vgg_export.data.tensors import batches_of

    items, spec = targets.pictures.fitting, targets.pictures.preprocessing
    for epoch in itertools.count():
        parts = batches_of(items, spec, LEAST_AREA, epoch)
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(items), BATCH):
            rows = order[start : start + BATCH]
            x = torch.stack([parts[int(k)][0] for k in rows]).contiguous(memory_format=torch.channels_last)
            yield x, targets.fitting[rows], start + BATCH >= len(items)


def _loss(network: "nn.Module", targets: Targets) -> float:
    """The mean cross-entropy on the selection pictures; infinite where the network gives no numbers."""
    import torch

    x, wanted = targets.selection
    with torch.inference_mode():
        logits = torch.cat([network(x[k : k + BATCH]) for k in range(0, len(x), BATCH)])
        loss = float(torch.nn.functional.cross_entropy(logits, wanted))
    return loss if math.isfinite(loss) else math.inf
