"""Brings the tensors of a state dict to the weights that the network computes with: what counts or measures
is left out, and masks and normalised weights are multiplied out."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError
from vgg_runtime.bundle.input_spec import COLOURS, GREY
from vgg_runtime.text import printable

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

SHOWN = 4
# Buffers that count something: batches, averaged models, what a profiler counted.
_COUNTERS = re.compile(r"(?:^|\.)(?:num_batches_tracked|n_averaged|total_ops|total_params|_extra_state)$")
# Modules that a network is trained and judged with.
_JUDGES = re.compile(
    r"(?:train_|val_|valid_|test_|best_)?"
    r"(?:loss|losses|loss_fn|loss_func|criterion|metric|metrics|acc|accuracy|f1|auroc|precision|recall"
    r"|confmat|confusion_matrix)\."
)
# Weights of a loss that people keep beside the layers, and what a network does to its input.
_OF_LOSS = re.compile(r"(?:^|\.)(?:class_?weights?|cls_weights?|pos_weights?|loss_weights?|label_weights?)$")
_OF_INPUT = re.compile(r"(?:^|\.)(?:pixel_|image_|img_|input_|norm_)?(?P<part>mean|std)$")


def weights_of_loss(tensors: "Mapping[str, torch.Tensor]") -> list[str]:
    """The names of one-dimensional tensors that weigh the classes in a loss, and are of no layer."""
    return [name for name, tensor in tensors.items() if tensor.dim() == 1 and _OF_LOSS.search(name)]


def normalisation(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Mean and standard deviation of the input that lie beside the layers, by name, mean first; empty without
    the two, or with several."""
    found = {
        name: tensor
        for name, tensor in tensors.items()
        if _OF_INPUT.search(name)
        and tensor.numel() in (GREY, COLOURS)
        and list(tensor.shape) in ([tensor.numel()], [tensor.numel(), 1, 1], [1, tensor.numel(), 1, 1])
    }
    by_part = {match["part"]: name for name in found if (match := _OF_INPUT.search(name))}
    if len(found) != 2 or len(by_part) != 2:
        return {}
    return {by_part[part]: found[by_part[part]] for part in ("mean", "std")}


def plain(tensors: "Mapping[str, torch.Tensor]") -> "Tensors":
    """The weights by name, detached, without counters, losses and single numbers beside
    the layers, in the order of the file.

    Raises:
        CheckpointError: a tensor is no dense floating-point numbers, or is made of others in an unknown way.
    """
    kept = {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if not _COUNTERS.search(name) and not _JUDGES.match(name) and (tensor.dim() or "." in name)
    }
    for name, tensor in kept.items():
        if what := _unusable(tensor):
            raise CheckpointError(not_dense(name, what))
    return _multiplied_out(kept)


def not_dense(name: str, what: str) -> str:
    """The error for a tensor that is no dense floating-point numbers."""
    return f"it holds {printable(name, 60)} as {what}; expected dense floating-point numbers: save it as such"


def some(names: Sequence[str], limit: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _unusable(tensor: "torch.Tensor") -> str | None:
    """What a tensor is whose numbers cannot be used as they are; None when they can."""
    import torch

    if tensor.is_meta:
        return "a shape without numbers (device meta)"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({tensor.layout})"
    if not tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')} numbers"
    return None


def _masked(of: "Tensors") -> "torch.Tensor":
    """torch.nn.utils.prune: the weights that were kept."""
    weight, mask = of.values()
    return weight.mul(mask)


def _weight_norm(of: "Tensors") -> "torch.Tensor":
    """torch.nn.utils.weight_norm, old and new: a length and a direction for each output."""
    length, direction = of.values()
    lengths = direction.double().flatten(1).square().sum(1).sqrt().view(length.shape)
    return (direction.double() * (length.double() / lengths)).float()


def _spectral_norm(of: "Tensors") -> "torch.Tensor":
    """torch.nn.utils.spectral_norm, old and new: divided by the largest singular value, whose vectors are
    beside."""
    weight, left, right = of.values()
    largest = left.double() @ (weight.double().flatten(1) @ right.double())
    return weight.double().div(largest).float()


# The endings of the tensors that stand for one weight, and how it is made of them. The longest come first.
_MADE_OF: tuple[tuple[tuple[str, ...], "Callable[[Tensors], torch.Tensor]"], ...] = (
    (("_orig", "_u", "_v"), _spectral_norm),
    (("_orig", "_mask"), _masked),
    (("_g", "_v"), _weight_norm),
)
_PARAMETRIZED: tuple[tuple[tuple[str, ...], "Callable[[Tensors], torch.Tensor]"], ...] = (
    (("original", "0._u", "0._v"), _spectral_norm),
    (("original0", "original1"), _weight_norm),
)


def _multiplied_out(tensors: "Tensors") -> "Tensors":
    """The tensors with one weight in place of those that it is made of."""
    found: Tensors = {}
    used = set[str]()
    for name, tensor in tensors.items():
        if name in used:
            continue
        for plain_name, parts, make in _compositions(name):
            if all(part in tensors for part in parts.values()):
                of = {ending: tensors[part] for ending, part in parts.items()}
                _ensure_shapes(plain_name, of, make)
                found[plain_name] = make(of)
                used.update(parts.values())
                break
        else:
            found[name] = tensor
    if left := next((name for name in found if "parametrizations." in name), None):
        raise CheckpointError(
            f"{printable(left, 80)} is part of a parametrized weight of an unknown kind; expected plain"
            " weights: remove it with torch.nn.utils.parametrize.remove_parametrizations, then save again"
        )
    return found


def _compositions(
    name: str,
) -> "Iterator[tuple[str, dict[str, str], Callable[[Tensors], torch.Tensor]]]":
    """What a tensor of this name can be a part of: the name of the whole, its parts by their endings, and how
    it is made of them."""
    if match := re.fullmatch(r"(.*?)parametrizations\.(weight|bias)\.(.+)", name):
        for endings, make in _PARAMETRIZED:
            if match[3] in endings:
                stem = f"{match[1]}parametrizations.{match[2]}."
                yield match[1] + match[2], {ending: stem + ending for ending in endings}, make
    elif match := re.fullmatch(r"(.*?)(weight|bias)(_[a-z]+)", name):
        for endings, make in _MADE_OF:
            if match[3] in endings:
                stem = match[1] + match[2]
                yield stem, {ending: stem + ending for ending in endings}, make


def _ensure_shapes(name: str, of: "Tensors", make: "Callable[[Tensors], torch.Tensor]") -> None:
    """Make sure that the parts of a weight fit each other."""
    shapes = [list(tensor.shape) for tensor in of.values()]
    first = next(iter(of.values()))
    if make is _masked:
        fits = shapes[0] == shapes[1]
    elif make is _weight_norm:
        fits = first.dim() > 0 and first.numel() == len(first) == shapes[1][0]
    else:
        fits = shapes[1:] == [[first.shape[0]], [first[0].numel()]]
    if not fits:
        raise CheckpointError(
            f"the parts of {printable(name, 60)} are {', '.join(map(str, shapes))}, which do not make one"
            " weight; expected masks of the same shape and norms per output: save the network with plain"
            " weights"
        )
