"""Makes a network of the tensors of a state dict.

Tensors show the convolutions, the batch norms and the fully connected layers. The layers between them follow
from the numbers in the names, from the shapes and from what networks of such names do (CONVENTIONS); what is
left is assumed, and said to be.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError
from vgg_export.network import modules
from vgg_export.network.activations import RELU, Activation
from vgg_export.network.assemble import Assembled, Assembly, side_of
from vgg_export.network.chain import CONVS_PER_STAGE, Conv
from vgg_export.network.provenance import ASSUMED, CONVENTION, Origins
from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.input_spec import COLOURS, GREY, InputSpec

from . import layer_names, strangers, torch_inputs
from .found import PADDED, Found
from .layer_names import SAVE_WHOLE, Named, Weighted, gap
from .plain_tensors import normalisation, plain, some, weights_of_loss

if TYPE_CHECKING:
    import torch

PADDING = {1: 0, 3: 1, 5: 2}  # of the kernels that keep the size of the map
IMAGENET_PX, CIFAR_PX = torch_inputs.USUAL_PX, 32
STAGES = 5  # of a VGG
IMAGENET_CLASSES, CIFAR_CLASSES = 1000, (10, 100)
# Of the fully connected layers behind a dropout, without one before the last layer.
_CIFAR_NUMBERS = ("1", "4", "6")
# Containers of layers that the code of the network runs one by one, with an activation behind each.
_LISTS = ("fcs", "linears", "denses", "hidden", "layers")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the tensors show. ``convs`` and ``linears``: input to output. ``pooled``: for each convolution,
    whether a 2x2 max-pool follows. ``side``: of the map that the first fully connected layer reads; 1 also
    without such a layer. ``depth``: the number of parts that all names begin with. ``conv_head``: the fully
    connected layers are convolutions in the file."""

    convs: tuple[Weighted, ...]
    linears: tuple[Weighted, ...]
    pooled: tuple[bool, ...]
    side: int
    depth: int
    conv_head: bool

    @property
    def pools(self) -> int:
        return sum(self.pooled)

    @property
    def units(self) -> int:
        return (self.linears or self.convs)[-1].layer.width

    @property
    def has_norms(self) -> bool:
        return any(one.is_norm for weighted in self.convs for one in weighted.behind)

    def path(self, weighted: Weighted) -> layer_names.Path:
        """The name of a layer without the prefix that all have."""
        return weighted.layer.path[self.depth :]


@dataclasses.dataclass(frozen=True)
class Convention:
    """What networks with such names and shapes do that tensors do not show.

    ``px``: the side of the input; None: the smallest that the shapes allow. ``pools``: an adaptive average
    pool to the side that the head reads stands before it. ``mean`` and ``std``: of the input for colours;
    None: ImageNet's, assumed. ``words``: a sentence about what is assumed.
    """

    name: str
    applies: Callable[[Layout], bool]
    px: int | None = None
    px_origin: str = CONVENTION
    pools: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bgr: bool = False
    words: str | None = None


def _is_caffe(layout: Layout) -> bool:
    names = [".".join(layout.path(one)) for one in (*layout.convs, *layout.linears)]
    return names[0] == "conv1_1" and names[-3:] == ["fc6", "fc7", "fc8"]


def _is_cifar(layout: Layout) -> bool:
    """One position behind five pools, and a head that networks for ImageNet do not have."""
    if layout.side != 1 or layout.pools != STAGES or not layout.linears:
        return False
    is_bare = len(layout.linears) == 1 and len(layout.path(layout.linears[0])) == 1
    numbers = tuple(one.layer.path[-1] for one in layout.linears)
    return layout.units in CIFAR_CLASSES or (layout.has_norms and is_bare) or numbers == _CIFAR_NUMBERS


_BYTES_STD = (1 / 255,) * COLOURS
# The first one that applies is taken.
CONVENTIONS = (
    Convention(
        "of a Caffe VGG for ImageNet",
        lambda layout: _is_caffe(layout) and layout.side == 7 and layout.units == IMAGENET_CLASSES,
        IMAGENET_PX,
        pools=True,
        mean=(103.939 / 255, 116.779 / 255, 123.68 / 255),
        std=_BYTES_STD,
        bgr=True,
    ),
    Convention(
        "of a VGG-Face",
        lambda layout: _is_caffe(layout) and layout.side == 7,
        IMAGENET_PX,
        pools=True,
        mean=(93.5940 / 255, 104.7624 / 255, 129.1863 / 255),
        std=_BYTES_STD,
        bgr=True,
    ),
    Convention(
        "of a timm VGG",
        lambda layout: layout.conv_head and layout.side == 7 and layout.pools == STAGES,
        IMAGENET_PX,
        pools=True,
    ),
    Convention(
        "of a VGG as torchvision arranges it",
        lambda layout: layout.side == 7 and layout.pools == STAGES,
        IMAGENET_PX,
        pools=True,
    ),
    Convention("of a VGG for CIFAR", _is_cifar, CIFAR_PX),
    Convention(
        "of a network with global average pooling",
        lambda layout: layout.side == 1,
        IMAGENET_PX,
        ASSUMED,
        pools=True,
        words="global average pooling before the head, since it reads one value for each channel",
    ),
    Convention("of a network without an adaptive pool", lambda _: True),
)


def read(tensors: "Mapping[str, torch.Tensor]", *, in_order: bool = True) -> Found:
    """The network of a state dict, whatever prefix its names have.

    Args:
        tensors: by name.
        in_order: they are in the order in which the network makes its layers, as torch.save keeps it.

    Raises:
        CheckpointError: it is no chain, or tensors alone do not tell what it computes; the message names the
            tensors.
    """
    strangers.ensure_none(tensors)
    of_loss = weights_of_loss(tensors)
    weights = plain({name: tensor for name, tensor in tensors.items() if name not in of_loss})
    of_input = normalisation(weights)
    weights = {name: tensor for name, tensor in weights.items() if name not in of_input}
    found = layer_names.layers(weights)
    if not any(one.is_conv for one in found):
        raise CheckpointError(
            "it has no convolution; expected a network that reads pictures, with its convolutions"
        )
    weighted = layer_names.chained(found, in_order=in_order)
    _ensure_finite(weights, weighted)
    layout, pools_words = _layout(weighted)
    convention = next(one for one in CONVENTIONS if one.applies(layout))
    network, words = _assembled(layout, convention)
    said = [convention.words, pools_words, *words]
    unpadded = None
    if convention.px_origin == ASSUMED or convention.px is None:
        unpadded = _unpadded(network)
        said += [PADDED] if unpadded else []
    if of_input:
        convention = _normalised(convention, of_input, network.channels)
        said.append(f"the normalisation of the input by {' and '.join(of_input)} in the file")
    spec, origin = _input(network, layout, convention)
    if not convention.pools and (sizes := network.sizes()):
        said.append(f"{spec.px} px, since {sizes[0]} to {sizes[-1]} px fit (else --input-px)")
    return Found(
        f"a PyTorch state dict {convention.name}",
        network,
        spec,
        outputs.SIGMOID if layout.units == 1 else outputs.SOFTMAX,
        Origins(px=origin, normalize=CONVENTION if _tells(convention, network.channels) else ASSUMED),
        tuple(sentence for sentence in said if sentence),
        remarks=(f"{some(of_loss)} (weights of a loss): left aside",) if of_loss else (),
        unpadded=unpadded,
    )


def _unpadded(network: Assembled) -> Assembled | None:
    """The network with convolutions that read nothing beyond their maps; None where it is the same."""
    layers = tuple(
        dataclasses.replace(layer, padding=(0, 0, 0, 0)) if isinstance(layer, Conv) else layer
        for layer in network.layers
    )
    return None if layers == network.layers else dataclasses.replace(network, layers=layers)


def _tells(convention: Convention, channels: int) -> bool:
    """Whether a convention tells the normalisation of an input of so many channels."""
    return convention.mean is not None and len(convention.mean) == channels


def _normalised(convention: Convention, of_input: "Mapping[str, torch.Tensor]", channels: int) -> Convention:
    """The convention with the mean and the standard deviation [channels] that lie beside the layers.

    Raises:
        CheckpointError: they are none of pictures of so many channels.
    """
    mean, std = (tensor.double().flatten() for tensor in of_input.values())
    if not len(mean) == len(std) == channels or not bool((std > 0).all()):
        names = " and ".join(of_input)
        raise CheckpointError(
            f"{names} are {mean.tolist()} and {std.tolist()}; expected a mean and a standard deviation above"
            f" zero for each of the {channels} channels: remove them from the file, and tell the"
            " normalisation by --normalize"
        )
    white = torch_inputs.white_of(mean, std)
    return dataclasses.replace(
        convention, mean=tuple((mean / white).tolist()), std=tuple((std / white).tolist()), bgr=False
    )


def _ensure_finite(weights: "Mapping[str, torch.Tensor]", weighted: Sequence[Weighted]) -> None:
    bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if not bad:
        return
    head = {
        ".".join((*one.layer.path, part))
        for one in weighted
        if one.layer.is_linear
        for part in one.layer.tensors
    }
    if set(bad) == head and all(weights[name].isnan().all() for name in bad):
        raise CheckpointError(
            "every weight of the classifier is NaN: the file holds the features only (as torchvision's"
            " IMAGENET1K_FEATURES), and its classifier was never trained; train one on your classes, then"
            " save the whole network"
        )
    raise CheckpointError(
        f"{some(bad)} {'holds' if len(bad) == 1 else 'hold'} values that are not finite (NaN or infinity);"
        " the training that made this file went wrong"
    )


def _layout(weighted: Sequence[Weighted]) -> tuple[Layout, str | None]:
    """The layers in their roles, and a sentence about the pools where they are assumed.

    Raises:
        CheckpointError: the convolutions or the head cannot be told from tensors.
    """
    convs = [one for one in weighted if one.layer.is_conv]
    linears = [one for one in weighted if one.layer.is_linear]
    convs, head, side = _head_of_convs(convs)
    for one in convs:
        _ensure_kernel(one.layer)
    conv_head = bool(head)
    linears = [*head, *linears]
    if not linears and tuple(convs[-1].layer.weight.shape[2:]) != (1, 1):
        raise CheckpointError(
            f"it holds the features only ({len(convs)} convolutions, the last one"
            f" {convs[-1].layer.shown}); its classifier is missing: save the whole network"
        )
    if side is None:
        side = _side(convs[-1].layer, linears[0].layer) if linears else 1
    _ensure_room(convs)
    between, words = _pools(convs)
    depth = layer_names.common_prefix([one.layer.path for one in (*convs, *linears)])
    layout = Layout(tuple(convs), tuple(linears), (*between, True), side, depth, conv_head)
    last = _modules_before_head(convs, linears, between)
    if last == 0 or (last == 1 and side == 1 and not _is_cifar(layout)):  # the one layer is global pooling
        layout = dataclasses.replace(layout, pooled=(*between, False))
    return layout, words


def _head_of_convs(convs: list[Weighted]) -> tuple[list[Weighted], list[Weighted], int | None]:
    """The convolutions without those at their end that compute what fully connected layers do (one that
    covers the whole map, and 1x1 ones behind it); these as fully connected layers; the side of the map."""
    for k, one in enumerate(convs[1:], 1):
        rows, columns = one.layer.weight.shape[2:]
        rest = convs[k + 1 :]
        covers = rows == columns and rows > 1 and rows not in PADDING
        if covers and all(tuple(other.layer.weight.shape[2:]) == (1, 1) for other in rest):
            return convs[:k], [_flat(one), *map(_flat, rest)], rows
    return convs, [], None


def _flat(one: Weighted) -> Weighted:
    tensors = {**one.layer.tensors, layer_names.WEIGHT: one.layer.weight.flatten(1)}
    return dataclasses.replace(one, layer=Named(one.layer.path, tensors))


def _ensure_kernel(layer: Named) -> None:
    rows, columns = layer.weight.shape[2:]
    if rows != columns or rows not in PADDING:
        raise CheckpointError(
            f"{layer.shown} is a {rows}x{columns} convolution {list(layer.weight.shape)}, whose stride and"
            " padding tensors do not tell; expected kernels of 1, 3 or 5 with stride 1, as a VGG has:"
            f" {SAVE_WHOLE}"
        )


def _side(conv: Named, linear: Named) -> int:
    positions = linear.columns // conv.width
    side = side_of(positions)
    if side is None:
        paths = " (as fastai's AdaptiveConcatPool2d, which has two paths)" if positions == 2 else ""
        raise CheckpointError(
            f"{linear.shown} reads {linear.columns} features, that is {positions} for each of the"
            f" {conv.width} channels of {conv.shown}{paths}; expected those of a square map, such as 49:"
            f" {SAVE_WHOLE}"
        )
    return side


def _pools(convs: Sequence[Weighted]) -> tuple[list[bool], str | None]:
    """Whether a pool follows each convolution but the last, and a sentence about it where that is assumed.

    Raises:
        CheckpointError: neither names nor widths show the pools.
    """
    words = {
        "by numbers": "a 2x2 max-pool where the numbers in the names leave room for one more layer than"
        " usual, and behind the last convolution",
        "by stages": "a 2x2 max-pool between the stages that the names show, and behind the last one",
        "by widths": "a 2x2 max-pool behind each stage of a VGG, whose stages the widths show",
    }
    ways = {"by numbers": _by_numbers(convs), "by stages": _by_stages(convs), "by widths": _by_widths(convs)}
    known = {name: between for name, between in ways.items() if between is not None}
    if not known:
        raise CheckpointError(
            f"neither the names nor the widths of its {len(convs)} convolutions show where it pools:"
            f" {SAVE_WHOLE}"
        )
    families = [name for name, between in known.items() if _is_family(between)]
    name = (families or list(known))[0]
    is_plain = bool(families) and name != "by widths"
    return known[name], None if is_plain else words[name]


def _counts(between: Sequence[bool]) -> tuple[int, ...]:
    """The number of convolutions in each stage."""
    counts = [1]
    for pool in between:
        if pool:
            counts.append(1)
        else:
            counts[-1] += 1
    return tuple(counts)


def _is_family(between: Sequence[bool]) -> bool:
    return _counts(between) in CONVS_PER_STAGE.values()


def _by_numbers(convs: Sequence[Weighted]) -> list[bool] | None:
    """Pools where the number of the next convolution in its Sequential is larger than usual, and where a new
    Sequential begins; None: the numbers do not show it."""
    paths = layer_names.as_blocks([one.layer.path for one in convs])
    in_blocks = paths[0] != convs[0].layer.path
    steps = [gap(*pair) for pair in itertools.pairwise(paths)] if in_blocks else _steps(convs)
    within = [step for step in steps if step is not None]
    if len(convs) > 1 and (not within or (len(set(within)) == 1 and len(within) == len(steps))):
        return None
    new = [len(a) != len(b) or a[:-1] != b[:-1] for a, b in itertools.pairwise(paths)]
    if any(step is None and not begins for step, begins in zip(steps, new, strict=True)):
        return None  # names without numbers
    usual = min(within, default=0)
    return [step > usual if step is not None else True for step in steps]


def _steps(convs: Sequence[Weighted]) -> list[int | None]:
    """The steps between the numbers of convolutions in one Sequential, without those of batch norms; None
    where they are in none."""
    steps = []
    for one, behind in itertools.pairwise(convs):
        step = gap(one.layer.path, behind.layer.path)
        norms = sum(gap(one.layer.path, other.path) is not None for other in one.behind if other.is_norm)
        steps.append(None if step is None else step - norms)
    return steps


def _ensure_room(convs: Sequence[Weighted]) -> None:
    """Make sure that the numbers of convolutions in one Sequential leave room for a pool somewhere, where
    they leave room for an activation: with neither pools nor known strides the sizes are open."""
    if len(convs) > 1 and set(_steps(convs)) == {2}:
        first, second = convs[0].layer, convs[1].layer
        raise CheckpointError(
            f"the numbers in its names leave no room for a pool ({first.shown}, {second.shown}: one layer"
            " between two convolutions, the activation), so the convolutions have strides, which tensors do"
            f" not tell, or nothing shrinks the maps: {SAVE_WHOLE}"
        )


def _by_stages(convs: Sequence[Weighted]) -> list[bool] | None:
    """Pools where the first of two numbers in the name changes (conv1_1, block2_conv1), or where a name says
    that it is a stage or block; None: the names do not show it."""
    paths = layer_names.as_blocks([one.layer.path for one in convs])
    numbers = [re.findall(r"\d+", path[-1]) for path in paths]
    if all(len(two) == 2 for two in numbers):
        return [a[0] != b[0] for a, b in itertools.pairwise(numbers)]
    if all(re.fullmatch(r"(?:block|stage)_?\d+", path[-1]) for path in paths):
        return [True] * (len(paths) - 1)
    parents = [path[:-1] for path in paths]
    if len(set(parents)) > 1 and all(len(path) > 1 for path in paths):
        return [a != b for a, b in itertools.pairwise(parents)]
    return None


def _by_widths(convs: Sequence[Weighted]) -> list[bool] | None:
    """Pools between the stages of the VGG with so many convolutions, where the widths change as in a VGG;
    else where the widths double, if they change nowhere else."""
    widths = [one.layer.width for one in convs]
    grows = [k for k, (a, b) in enumerate(itertools.pairwise(widths), 1) if a != b]
    for counts in CONVS_PER_STAGE.values():
        ends = list(itertools.accumulate(counts))
        if sum(counts) == len(widths) and grows in (ends[:3], ends[:4]):
            return [k in ends for k in range(1, len(widths))]
    steps = [(a != b, 2 * a == b) for a, b in itertools.pairwise(widths)]
    if all(changes == doubles for changes, doubles in steps):
        return [changes for changes, _ in steps]
    return None


def _modules_before_head(
    convs: Sequence[Weighted], linears: Sequence[Weighted], between: Sequence[bool]
) -> int | None:
    """The number of layers between the last convolution with its activation and the flattening; None: they
    are in no Sequential with the head, so the numbers do not show it."""
    steps = [gap(a.layer.path, b.layer.path) for a, b in itertools.pairwise(convs)]
    usual = [step - pool for step, pool in zip(steps, between, strict=True) if step is not None]
    step = gap(convs[-1].layer.path, linears[0].layer.path) if linears else None
    return None if step is None or not usual else step - min(usual) - 1


def _assembled(layout: Layout, convention: Convention) -> tuple[Assembled, list[str]]:
    """The layers with those between them, and sentences about what is assumed.

    Raises:
        CheckpointError: they do not form a chain.
    """
    assembly = Assembly(layout.convs[0].layer.columns)
    _ensure_channels(layout.convs[0].layer)
    for one, pooled in zip(layout.convs, layout.pooled, strict=True):
        if one.before:
            assembly.norm(one.before.name, *_scale_and_shift(one.before))
        side = PADDING[one.layer.weight.shape[2]]
        assembly.conv(one.layer.name, one.layer.weight, one.layer.bias, padding=(side,) * 4)
        is_last = not layout.linears and one is layout.convs[-1]
        _behind(assembly, one, activated=not is_last, pool=pooled and not is_last)
    if convention.pools or not layout.linears:
        assembly.adaptive_avg_pool((layout.side, layout.side))
    assembly.flatten()
    words = []
    for k, one in enumerate(layout.linears):
        behind = layout.linears[k + 1] if k + 1 < len(layout.linears) else None
        activated = behind is not None and not _is_appended(one, behind)
        if behind and not activated:
            words.append(f"no activation between {one.layer.shown} and {behind.layer.shown}")
        layer = one.layer
        if one.before:
            layer = _into_columns(layer, one.before)
        assembly.linear(layer.name, layer.weight, layer.bias)
        _behind(assembly, one, activated=activated, pool=False)
    return assembly.finish(), words


def _ensure_channels(first: Named) -> None:
    if first.columns not in (GREY, COLOURS):
        raise CheckpointError(
            f"{first.shown} reads {first.columns} channels; expected 3 (colours) or 1 (grey), which"
            " pictures have"
        )


def _behind(assembly: Assembly, one: Weighted, *, activated: bool, pool: bool) -> None:
    """Batch norm, activation and pool behind a layer. The batch norm comes first, unless its number leaves
    room for the activation before it."""
    norm = next((other for other in one.behind if other.is_norm), None)
    slope = next((other for other in one.behind if other.is_slope), None)
    activation = RELU if activated else "none"
    if slope is not None:
        activation = Activation("leaky_relu", float(slope.weight)).text
    room = (gap(one.layer.path, norm.path) or 1) - 1 if norm else 0
    if norm and not room:
        assembly.norm(norm.name, *_scale_and_shift(norm))
    assembly.activation(activation)
    if norm and room:
        if pool and room > 1:
            assembly.max_pool((2, 2), (2, 2))
        assembly.norm(norm.name, *_scale_and_shift(norm))
    if pool and not (norm and room > 1):
        assembly.max_pool((2, 2), (2, 2))


def _scale_and_shift(norm: Named) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    mean, variance = norm.tensors[layer_names.MEAN], norm.tensors[layer_names.VARIANCE]
    if not bool((variance >= 0).all()):
        raise CheckpointError(
            f"{norm.shown}.{layer_names.VARIANCE} has values below zero, which no variance has: the file"
            " is damaged"
        )
    return modules.scale_and_shift(
        gamma=norm.tensors.get(layer_names.WEIGHT, torch.ones_like(mean)),
        beta=norm.tensors.get(layer_names.BIAS, torch.zeros_like(mean)),
        mean=mean,
        variance=variance,
    )


def _into_columns(layer: Named, norm: Named) -> Named:
    """A fully connected layer with the batch norm of the features that it reads folded into its columns."""
    import torch

    scale, shift = _scale_and_shift(norm)
    weight = layer.weight.double()
    bias = torch.zeros(layer.width, dtype=torch.float64) if layer.bias is None else layer.bias.double()
    tensors = {
        layer_names.WEIGHT: (weight * scale).float(),
        layer_names.BIAS: (bias + weight @ shift).float(),
    }
    return Named(layer.path, tensors)


def _is_appended(one: Weighted, behind: Weighted) -> bool:
    """Whether a fully connected layer was put behind another one without an activation between: its number is
    the next one, its name stands behind numbers in a Sequential, or it stands elsewhere and the layer before
    gives ImageNet's classes."""
    a, b = one.layer.path, behind.layer.path
    k = next((k for k, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), None)
    if k is None:
        return False
    first, second = layer_names.number(a[k]), layer_names.number(b[k])
    if first is not None and second is not None:
        is_list = k > 0 and a[k - 1] in _LISTS
        starts = len(b) == k + 1 or b[k + 1] == "0"
        return len(a) == k + 1 and starts and second - first - len(one.behind) == 1 and not is_list
    if k and first is not None and len(a) == k + 1:
        return True  # add_module on a Sequential with numbers
    return one.layer.width == IMAGENET_CLASSES and a[:-1] != b[:-1]


def _input(network: Assembled, layout: Layout, convention: Convention) -> tuple[InputSpec, str]:
    """The input of the network, and how its size is known.

    Raises:
        CheckpointError: no size fits.
    """
    px = convention.px or layout.side << layout.pools
    if not network.fits(px):
        raise CheckpointError(
            f"its layers fit no input: {layout.pools} pools and a head that reads {layout.side} x"
            f" {layout.side} positions; {SAVE_WHOLE}"
        )
    mean, std = (convention.mean, convention.std) if _tells(convention, network.channels) else (None, None)
    spec = torch_inputs.as_usual(network, px, mean, std, bgr=convention.bgr)
    return spec, convention.px_origin
