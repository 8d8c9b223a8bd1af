"""The layers of a state dict: which tensors belong to one layer, in which order the layers run, and what the
numbers in their names show of the layers without tensors between them."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError
from vgg_runtime.bundle.input_spec import COLOURS, GREY
from vgg_runtime.text import printable

from .plain_tensors import some

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

Path = tuple[str, ...]  # the parts of a layer's name: ("features", "0")
SAVE_WHOLE = "save the whole network by torch.save(model, FILE), or export it to ONNX: such a file tells"
MOST_ARRANGED, MOST_STEPS = 100, 10_000  # layers, and steps of the search for their order
WEIGHT, BIAS, MEAN, VARIANCE = "weight", "bias", "running_mean", "running_var"


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """A layer with tensors: a convolution (weight [n, c, height, width]), a fully connected layer (weight [n,
    c]), a batch norm (vectors [n]) or a learned slope (PReLU)."""

    path: Path
    tensors: "Tensors"

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def shown(self) -> str:
        """The name for an error."""
        return printable(self.name, 60) or "the layer without a name"

    @property
    def weight(self) -> "torch.Tensor":
        return self.tensors[WEIGHT]

    @property
    def bias(self) -> "torch.Tensor | None":
        return self.tensors.get(BIAS)

    @property
    def is_conv(self) -> bool:
        return WEIGHT in self.tensors and self.weight.dim() == 4

    @property
    def is_linear(self) -> bool:
        return WEIGHT in self.tensors and self.weight.dim() == 2

    @property
    def is_norm(self) -> bool:
        return MEAN in self.tensors

    @property
    def is_slope(self) -> bool:
        """PReLU: one slope for all channels, or one for each."""
        return set(self.tensors) == {WEIGHT} and self.weight.dim() == 1

    @property
    def width(self) -> int:
        """The number of channels that it gives."""
        return len(self.tensors[MEAN if self.is_norm else WEIGHT])

    @property
    def columns(self) -> int:
        """The number of channels or features that it reads."""
        return self.width if self.is_norm or self.is_slope else self.weight.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted:
    """A convolution or fully connected layer with the batch norm or learned slope before and behind it."""

    layer: Named
    before: Named | None = None
    behind: tuple[Named, ...] = ()


def layers(tensors: "Mapping[str, torch.Tensor]") -> list[Named]:
    """The layers in the order of their first tensors.

    Raises:
        CheckpointError: some tensors are of no layer that can be part of a chain; the message names them.
    """
    groups: dict[Path, Tensors] = {}
    for name, tensor in tensors.items():
        *path, part = name.split(".")
        groups.setdefault(tuple(path), {})[part] = tensor
    found = [Named(path, parts) for path, parts in groups.items()]
    if odd := [one for one in found if not _is_known(one)]:
        names = [".".join((*one.path, part)) for one in odd for part in one.tensors]
        shown = [f"{printable(name, 60)} {list(tensors[name].shape)}" for name in names]
        raise CheckpointError(
            f"{len(names)} of {len(tensors)} tensors do not fit: {some(shown)}{_why(odd[0])}; expected"
            " convolutions, fully connected layers and batch norms only"
        )
    return found


def _is_known(one: Named) -> bool:
    parts = set(one.tensors)
    if any(0 in tensor.shape for tensor in one.tensors.values()):
        return False
    if one.is_conv or one.is_linear:
        return parts <= {WEIGHT, BIAS} and all(
            t.shape == (one.width,) for t in one.tensors.values() if t is not one.weight
        )
    if one.is_norm:
        whole = parts in ({MEAN, VARIANCE}, {MEAN, VARIANCE, WEIGHT, BIAS})
        return whole and all(t.shape == (one.width,) for t in one.tensors.values())
    return one.is_slope and one.width == 1


def _why(one: Named) -> str:
    """What an unknown group of tensors most often is, in brackets."""
    parts = set(one.tensors)
    if parts & {MEAN, VARIANCE}:
        missing = [part for part in (WEIGHT, BIAS, MEAN, VARIANCE) if part not in parts]
        lacks = ", ".join(f"{one.shown}.{part}" for part in missing)
        return f" (a batch norm that lacks {lacks})" if missing else " (a batch norm of unequal lengths)"
    if one.is_slope:
        return " (a PReLU with a slope for each channel)"
    if WEIGHT in parts and one.weight.dim() == 1:
        return " (a normalisation by each picture's own statistics, as LayerNorm and GroupNorm)"
    if WEIGHT in parts and one.weight.dim() in (3, 5):
        return f" (a convolution in {one.weight.dim() - 2} dimensions)"
    if one.is_conv:
        return " (a transposed convolution)"
    if parts == {BIAS}:
        return f" (it lacks {one.shown}.{WEIGHT})"
    return ""


def number(part: str) -> int | None:
    """The number that a part of a name is; None: it is no number, or one that no layer has."""
    return int(part) if re.fullmatch(r"[0-9]{1,9}", part) else None


def natural(path: Path) -> tuple[tuple[tuple[bool, int, str], ...], ...]:
    """A key that sorts paths by their words and numbers: features.2 comes before features.10."""
    return tuple(
        tuple((number(piece) is None, number(piece) or 0, piece) for piece in pieces if piece)
        for pieces in (re.split(r"([0-9]+)", part) for part in path)
    )


def chained(found: Sequence[Named], *, in_order: bool) -> list[Weighted]:
    """The convolutions and behind them the fully connected layers, each with its batch norms: in the order of
    the file where that is known and the layers form a chain so, else in the order of their names, and where
    that is none by their shapes.

    Args:
        in_order: the file keeps the order in which the layers were made.

    Raises:
        CheckpointError: they form no chain; the message names the first two that do not fit.
    """
    by_name = sorted(found, key=lambda one: natural(one.path))
    ways = [list(found), by_name] if in_order else [by_name]
    faults = []
    for way in ways:
        convs, linears = [one for one in way if one.is_conv], [one for one in way if one.is_linear]
        if not in_order and convs:
            convs = _arranged(convs, lambda one: one.columns in (GREY, COLOURS))
            linears = _arranged(linears, functools.partial(_reads_maps, convs[-1].width))
        weighted = convs + linears
        if not (fault := _break(weighted)):
            return _with_norms(way, weighted)
        faults.append(fault)
    raise CheckpointError(
        f"{faults[0]}, so the layers form no chain. A second head, a branch or a layer that is not used"
        f" looks so; expected each layer to read what the one before gives: {SAVE_WHOLE}"
    )


def _reads_maps(channels: int, one: Named) -> bool:
    return one.columns % channels == 0


def _arranged(layers: Sequence[Named], is_first: Callable[[Named], bool]) -> list[Named]:
    """Layers in the first order in which each reads what the one before gives; as they are where there is
    none, or it is not found soon."""
    steps = 0

    def follow(found: list[Named]) -> list[Named] | None:
        nonlocal steps
        steps += 1
        if len(found) == len(layers) or steps > MOST_STEPS:
            return found
        for one in layers:
            fits = one.columns == found[-1].width if found else is_first(one)
            if one not in found and fits and (more := follow([*found, one])):
                return more
        return None

    made = follow([]) if len(layers) <= MOST_ARRANGED else None
    return made if made and len(made) == len(layers) else list(layers)


def _break(weighted: Sequence[Named]) -> str:
    """The first two layers that do not fit each other, in words; empty: all do."""
    for before, one in itertools.pairwise(weighted):
        gives, reads = before.width, one.columns
        if before.is_conv and one.is_linear:
            if reads % gives:
                return f"{before.shown} gives {gives} channels, and {one.shown} reads {reads}, no multiple"
        elif one.is_conv and gives != reads:
            grouped = " (depthwise, as in MobileNet and EfficientNet: not supported)" if reads == 1 else ""
            return f"{before.shown} gives {gives} channels, and {one.shown} reads {reads}{grouped}"
        elif gives != reads:
            return f"{before.shown} gives {gives} features, and {one.shown} reads {reads}"
    return ""


def _with_norms(way: Sequence[Named], weighted: Sequence[Named]) -> list[Weighted]:
    """The layers with their batch norms and slopes, by place if every one of these follows a layer of its
    width, else those with words in their names by the numbers in them.

    Raises:
        CheckpointError: one belongs to no layer.
    """
    others = [one for one in way if one.is_norm or one.is_slope]
    named = [one for one in others if not one.path or number(one.path[-1]) is None]
    made = _by_place(way, weighted)
    if made is None and (made := _by_place([one for one in way if one not in named], weighted)):
        made = _by_number(made, named)
    if made is None:
        raise CheckpointError(
            f"it does not show which layers {some([one.shown for one in others])} follow; expected a batch"
            f" norm right behind its layer: {SAVE_WHOLE}"
        )
    return made


def _by_place(way: Sequence[Named], weighted: Sequence[Named]) -> list[Weighted] | None:
    """Each batch norm belongs to the layer right before it in the file, or reads the input or the flattened
    maps and belongs to the one right behind."""
    made = {one: Weighted(one) for one in weighted}
    last: Named | None = None
    for k, one in enumerate(way):
        if one in made:
            last = one
            continue
        behind = next((other for other in way[k + 1 :] if other in made), None)
        if behind and one.is_norm and _is_before(one, last, behind, made):
            made[behind] = dataclasses.replace(made[behind], before=one)
        elif last and (one.is_slope or one.width == last.width) and not _has(made[last], one):
            made[last] = dataclasses.replace(made[last], behind=(*made[last].behind, one))
        else:
            return None
    return [made[one] for one in weighted]


def _has(weighted: Weighted, one: Named) -> bool:
    """Whether a layer has another batch norm, or another slope, already."""
    return any(other.is_norm == one.is_norm for other in weighted.behind)


def _is_before(norm: Named, last: Named | None, behind: Named, made: Mapping[Named, Weighted]) -> bool:
    """Whether a batch norm is of the input or of a head's input, not of the layer before it."""
    if norm.width != behind.columns or not (last is None or behind.is_linear):
        return False
    if last is None or norm.width != last.width or _has(made[last], norm):
        return True
    return last.is_conv and norm.path[:-1] == behind.path[:-1] != last.path[:-1]


def _by_number(weighted: Sequence[Weighted], others: Iterable[Named]) -> list[Weighted] | None:
    """With each batch norm at the one layer of its width that has the same numbers in its name."""
    made = {one.layer: one for one in weighted}
    for norm in others:
        fitting = [one for one in made if _numbers(one) == _numbers(norm) and one.width == norm.width]
        if len(fitting) > 1:
            heads = "fc" in norm.name or "linear" in norm.name
            fitting = [one for one in fitting if one.is_linear == heads]
        first = weighted[0].layer
        if not fitting and norm.is_norm and norm.width == first.columns and not made[first].before:
            made[first] = dataclasses.replace(made[first], before=norm)  # of the input
            continue
        if len(fitting) != 1 or made[fitting[0]].behind:
            return None
        made[fitting[0]] = dataclasses.replace(made[fitting[0]], behind=(norm,))
    return list(made.values())


def _numbers(one: Named) -> list[str]:
    return re.findall(r"\d+", one.name)


def gap(before: Path, behind: Path) -> int | None:
    """The difference of the numbers of two modules in one Sequential; None: they are in none."""
    k = next((k for k, pair in enumerate(zip(before, behind, strict=False)) if pair[0] != pair[1]), None)
    if k is None or len(before) != k + 1 or len(behind) != k + 1:
        return None
    first, second = number(before[k]), number(behind[k])
    return None if first is None or second is None else second - first


def common_prefix(paths: Sequence[Path]) -> int:
    """The number of parts that all names begin with, without their last one."""
    shortest = min(len(path) for path in paths) - 1
    return next(
        (k for k in range(shortest) if any(path[k] != paths[0][k] for path in paths)), max(shortest, 0)
    )


def as_blocks(paths: Sequence[Path]) -> list[Path]:
    """The names of the modules that hold one convolution each, where each has such a module of its own
    (features.0.conv, layer3.0), else the names as they are."""
    found = list(paths)
    while all(len(path) > 1 for path in found) and len({path[:-1] for path in found}) == len(found):
        found = [path[:-1] for path in found]
    return found
