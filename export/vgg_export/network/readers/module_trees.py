"""Makes a network of a saved module: its layers by their classes and settings, in the order of its tree.

The code that runs the layers is not in the file. For torch's containers and for the networks of torchvision
and timm it is known. For a class of the user's own the layers run in the order in which they were made, and
where that cannot be the whole story (one pool for all stages) the file is refused.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_export.core.errors import CheckpointError
from vgg_export.network.activations import NONE, RELU
from vgg_export.network.assemble import Assembled, Assembly
from vgg_export.network.chain import AdaptiveAvgPool, AdaptiveMaxPool, AvgPool, Conv, Linear, MaxPool
from vgg_export.network.provenance import ASSUMED, CONVENTION, FILE, Origins
from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.text import printable

from . import class_names, made_order, module_layers, own_tensors, strangers, torch_inputs
from .class_names import ClassNames
from .found import Found
from .module_layers import (
    ACTIVATION,
    CONV,
    EXPORT,
    FLATTEN,
    LINEAR,
    NORM,
    NORMALIZE,
    POOL,
    WHOLE_POOL,
    Leaf,
    role,
)
from .pickle_machine import Stub
from .state_dicts import CIFAR_CLASSES
from .torch_inputs import USUAL_PX

if TYPE_CHECKING:
    import torch

MOST_LAYERS = 10_000
_WEIGHTED = (CONV, LINEAR)
_IN_ORDER = (
    *("torch.nn.modules.container.Sequential", "torchvision.ops.misc.ConvNormActivation"),
    *("torchvision.ops.misc.Conv2dNormActivation", "torchvision.ops.misc.MLP"),
)
_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
# Classes of libraries whose code is known: the modules that it runs, in order.
_RUNS = {
    "torchvision.models.vgg.VGG": ("features", "avgpool", "classifier"),
    "torchvision.models.alexnet.AlexNet": ("features", "avgpool", "classifier"),
    "timm.models.vgg.VGG": ("features", "pre_logits", "head"),
    "timm.layers.classifier.ClassifierHead": ("global_pool", "drop", "fc", "flatten"),
    "timm.layers.adaptive_avgmax_pool.SelectAdaptivePool2d": ("pool", "flatten"),
    "torch.nn.parallel.data_parallel.DataParallel": ("module",),
    "torch.nn.parallel.distributed.DistributedDataParallel": ("module",),
    "torch.optim.swa_utils.AveragedModel": ("module",),
    _COMPILED: ("_orig_mod",),
    "timm.utils.model_ema.ModelEma": ("ema",),
    "timm.utils.model_ema.ModelEmaV2": ("module",),
    "timm.utils.model_ema.ModelEmaV3": ("module",),
}
_TIMM_HEAD, _TIMM_HEAD_RUNS = "timm.models.vgg.ConvMlp", ("fc1", "act1", "drop", "fc2", "act2")
_LISTS = ("torch.nn.modules.container.ModuleList", "torch.nn.modules.container.ModuleDict")
_QUANTIZED = re.compile(
    r"torch\.(?:ao|nn\.quantized|nn\.intrinsic|nn\.qat|quantization)|.*\bbitsandbytes\b|torchao"
)
_JUDGES = re.compile(r"torch\.nn\.modules\.loss\.|torchmetrics\.|.*\.\w*(?:Loss|Metric|Accuracy)$")
_COPIES = re.compile(r"(?:model_|net_)?(?:ema|swa|teacher|averaged|momentum)(?:_?(?:model|net|network))?$")
_BRANCH_CLASSES = re.compile(
    r"BasicBlock|Bottleneck|Res(?!Net)(?=[A-Z_\d]|$)\w*|Res\w*(?:Block|Unit|Layer)|\w*Residual\w*|RB|Inception|_?Dense(?:Layer|Block)|Fire|InvertedResidual"
    r"|Squeeze\w*Excit\w*|SE(?=[A-Z][a-z]|[_\d]|$)\w*|\w*SE(?:Block|Layer|Module)|\w*Att(?:n|ention)\w*|CBAM|\w*MBConv|CNBlock|AdaptiveConcatPool2d|Adaptive\w*AvgMaxPool2?d?"
    r"|FastAdaptive\w*AvgMaxPool"
)
_BRANCH_NAMES = re.compile(r"(?:downsample|shortcut|branch|skip|residual|identity_conv)[_\w]*")
_FLATTENS = re.compile(r"(?:Flatten\w*|View|Reshape|Squeeze\w*)$")


def is_module(value: object) -> bool:
    """Whether a value of a file is a saved torch module."""
    if not isinstance(value, Stub):
        return False
    attributes = _compiled(value).attributes
    return all(isinstance(attributes.get(name), dict) for name in ("_modules", "_parameters"))


def _compiled(stub: Stub) -> Stub:
    """What torch.compile was given, where a module is what it gave."""
    if stub.name == _COMPILED and stub.args and isinstance(stub.args[0], Stub):
        return stub.args[0]
    return stub


def read_module(stub: Stub, path: Path) -> Found:
    """The network of a saved module, with the class names that it has as attributes.

    Args:
        stub: of the module.
        path: of its file, for messages.

    Raises:
        CheckpointError: it is no chain of known layers, or its tree does not show what it computes.
    """
    tree = _Tree(stub)
    if tree.own:
        strangers.ensure_none(tensors_of(stub))
    leaves, guesses = _activated(tree.leaves)
    try:
        made_order.ensure_runs(tree.leaves, leaves, in_own=bool(tree.own))
        network, pool = _pooled(_assembled(leaves), tree)
        spec, origins = _input(network, tree)
    except CheckpointError as error:
        if not tree.own or EXPORT in str(error):
            raise
        raise CheckpointError(
            f"{error}. The code of {_some(tree.own.values())} is not in the file, so its layers were taken"
            f" in the order in which they were made; where that is wrong, {EXPORT}"
        ) from error
    units = next(one for one in reversed(network.layers) if isinstance(one, Conv | Linear)).outputs
    plain = outputs.SIGMOID if units == 1 else outputs.SOFTMAX
    assumed = [*guesses.sentences, *pool, *tree.assumed()]
    if tree.own:
        assumed.insert(
            0,
            f"the layers of {_some(tree.own.values())} in the order in which they were made, since its code"
            " is not in the file",
        )
    if origins.px == CONVENTION and not _adaptive_pool(network):
        sizes = network.sizes()
        assumed.append(
            f"{spec.px} px, the first of the {sizes[0]} to {sizes[-1]} px that fit (else --input-px)"
        )
    names, fault = _names(tree, path)
    return Found(
        f"a PyTorch module ({printable(stub.name, 80)})",
        network,
        spec,
        network.output or plain,
        dataclasses.replace(origins, activations=guesses.origin, output=FILE if network.output else ASSUMED),
        tuple(assumed),
        names,
        fault,
        tuple(tree.remarks),
    )


def activations_of(stub: Stub) -> dict[str, str]:
    """The activation right behind each convolution and fully connected layer of a saved module, such as a
    head that lies beside a state dict, by the path of the layer in the module: {"fc1": "leaky_relu(0.2)",
    "fc2": "none"}.

    Raises:
        CheckpointError: the tree does not show them.
    """
    leaves, _ = _activated(_Tree(stub).leaves)
    found: dict[str, str] = {}
    for leaf in leaves:
        if role(leaf) in _WEIGHTED:
            found[leaf.path] = last = NONE
        elif role(leaf) == ACTIVATION and found and not module_layers.is_output(leaf):
            path, last = next(reversed(found.items()))
            found[path] = module_layers.activation_of(leaf) if last == NONE else last
    return found


def tensors_of(stub: Stub) -> "dict[str, torch.Tensor]":
    """The parameters and buffers of a saved module by their paths, as its ``state_dict()`` has them. Of a
    TorchScript program, whose modules keep both among their attributes, too."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for path, module in modules_of(stub):
        attributes = module.attributes
        if is_module(module):
            leaf = Leaf(path, module)
            attributes = {**leaf.inside("_parameters"), **leaf.inside("_buffers")}
        for name, value in attributes.items():
            if isinstance(value, torch.Tensor):
                found[f"{path}{name}"] = value
    return found


def modules_of(stub: Stub) -> Iterator[tuple[str, Stub]]:
    """A module and those below it with their paths, each path with a dot at its end, every module once. The
    modules of a TorchScript program, too."""
    seen: set[int] = set()
    waiting = [("", stub)]
    while waiting:
        path, module = waiting.pop()
        module = _compiled(module)
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        below = module.attributes["_modules"] if is_module(module) else module.attributes
        waiting += [(f"{path}{name}.", one) for name, one in reversed(below.items()) if isinstance(one, Stub)]


def _some(names: "Iterator[str] | Sequence[str] | Any") -> str:
    return " and ".join(printable(name, 60) for name in dict.fromkeys(names))


class _Tree:
    """The layers of a saved module in the order in which they run, as far as that is known.

    ``leaves``: the layers. ``own``: by path, the classes whose code is unknown. ``attributes``: of the module
    and of those that are wrapped in it. ``remarks``: what was left aside. ``normalizes``: what is named after
    the tensors of the normalisations that were found. ``perhaps_residual``: the modules that may add their
    input to what they give.
    """

    def __init__(self, stub: Stub) -> None:
        self.own: dict[str, str] = {}
        self.remarks: list[str] = []
        self.normalizes: list[str] = []
        self.perhaps_residual: list[str] = []
        self.attributes: dict[str, Any] = {}
        self._weighted: dict[int, str] = {}  # the paths of the layers with weights, by the ids of these
        self._open: list[int] = []  # the modules on the way from the root
        self._visited = 0
        self.leaves = list(self._walk(stub, "", None))
        if not any(role(leaf) in _WEIGHTED for leaf in self.leaves):
            raise CheckpointError(
                f"the module ({printable(stub.name, 80)}) has no convolution and no fully connected layer"
            )

    def assumed(self) -> Iterator[str]:
        """Sentences about what is assumed of the code that is not in the file."""
        for names in self.normalizes:
            yield f"(x - mean) / std at the front, x from 0 to 1, by {names}"
        if found := self.perhaps_residual:
            more = f" and {len(found) - 2} more" if len(found) > 2 else ""
            yield (
                f"a plain chain in {' and '.join(found[:2])}{more}, whose input and output have as many"
                f" channels: if the code adds its input to what it gives, this is WRONG; then {EXPORT}"
            )

    def _walk(self, stub: Stub, path: str, owner: str | None) -> list[Leaf]:
        stub = _compiled(stub)
        leaf = Leaf(printable(path, 200) or "network", stub, owner)
        self._say_hooks(leaf)
        self._visited += 1
        if self._visited > MOST_LAYERS or id(stub) in self._open:
            raise CheckpointError(
                f"{leaf.shown} holds itself, or the network has more than {MOST_LAYERS} layers"
            )
        self._refuse(leaf)
        if role(leaf) is not None:
            self._ensure_used_once(leaf)
            return [leaf]
        self._open.append(id(stub))
        try:
            return self._container(leaf, path)
        finally:
            self._open.pop()

    def _say_hooks(self, leaf: Leaf) -> None:
        """Say that a hook is left aside. Those of pruning and of normalised weights are done already."""
        hooks = [*leaf.inside_any("_forward_hooks"), *leaf.inside_any("_forward_pre_hooks")]
        names = [one.name if isinstance(one, Stub) else getattr(one, "full", "a hook") for one in hooks]
        if foreign := [name for name in names if not name.startswith("torch.nn.utils.")]:
            self.remarks.append(
                f"{printable(foreign[0], 80)} is hooked to {leaf.shown} and left aside: if it changes what"
                f" that gives, {EXPORT}"
            )

    def _ensure_used_once(self, leaf: Leaf) -> None:
        if role(leaf) not in _WEIGHTED:
            return
        before = self._weighted.setdefault(id(leaf.stub), leaf.path)
        if before != leaf.path:
            raise CheckpointError(
                f"{printable(before)} and {printable(leaf.path)} are the same layer; expected a chain, where"
                " each layer runs once"
            )

    def _refuse(self, leaf: Leaf) -> None:
        name, last = leaf.stub.name, leaf.stub.name.rpartition(".")[2]
        if _QUANTIZED.match(name):
            raise CheckpointError(
                f"{printable(leaf.path)} is a quantized layer ({printable(name, 80)}); expected the network"
                " in floating point, as it was before its quantization"
            )
        if _BRANCH_CLASSES.fullmatch(last):
            raise CheckpointError(
                f"the network has branches, first in {leaf.shown}; expected a chain, where each layer reads"
                " what the one before gives"
            )

    def _container(self, leaf: Leaf, path: str) -> list[Leaf]:
        children = {name: one for name, one in leaf.inside("_modules").items() if isinstance(one, Stub)}
        if branch := next((name for name in children if _BRANCH_NAMES.fullmatch(name)), None):
            raise CheckpointError(
                f"the network has branches, first in {leaf.shown}, whose {printable(branch)} runs beside"
                " other layers; expected a chain, where each layer reads what the one before gives"
            )
        name, prefix = leaf.stub.name, f"{path}." if path else ""
        if "forward" in leaf.stub.attributes and children:  # another function was put in its place
            return self._of_own_class(leaf, path, children)
        if name == _TIMM_HEAD:
            return list(self._covering(children, prefix))
        if name in _RUNS:
            self.attributes = {**leaf.stub.attributes, **self.attributes}
            parts = [(one, children[one]) for one in _RUNS[name] if one in children]
            return [found for one, child in parts for found in self._walk(child, prefix + one, None)]
        if name in _IN_ORDER:
            return [
                found
                for one, child in children.items()
                for found in self._walk(child, f"{prefix}{one}", None)
            ]
        if not children:
            return self._unknown(leaf)
        return self._of_own_class(leaf, path, children)

    def _covering(self, children: dict[str, Stub], prefix: str) -> Iterator[Leaf]:
        """timm's head of convolutions: the first one covers the map of 7 x 7, to which smaller ones are
        pooled."""
        for name in _TIMM_HEAD_RUNS:
            if name in children:
                for leaf in self._walk(children[name], prefix + name, None):
                    yield dataclasses.replace(leaf, covers=True)

    def _unknown(self, leaf: Leaf) -> list[Leaf]:
        """A module without others in it that is none of torch's known layers.

        Raises:
            CheckpointError: it may compute something.
        """
        last = leaf.stub.name.rpartition(".")[2]
        if _JUDGES.match(leaf.stub.name) or last in ("Sequential", "ModuleList", "ModuleDict"):
            return []
        if not leaf.get("_parameters") and not leaf.get("_buffers") and _FLATTENS.match(last):
            return [Leaf(leaf.path, Stub("torch.nn.modules.flatten.Flatten"), leaf.owner)]
        if leaf.kind:
            raise CheckpointError(
                f"{leaf.shown} is a layer that this program does not read; expected convolutions, batch"
                " norms, activations, pools and fully connected layers"
            )
        raise CheckpointError(
            f"{leaf.shown} is no layer that this program knows, and its code is not in the file; expected"
            f" torch's own layers of a chain: {EXPORT}"
        )

    def _of_own_class(self, leaf: Leaf, path: str, children: dict[str, Stub]) -> list[Leaf]:
        """The layers of a class whose code is unknown, in the order in which they were made."""
        self.attributes = {**leaf.stub.attributes, **self.attributes}
        self.own[path] = leaf.stub.name.rpartition(".")[2]
        units = [unit for unit in self._units(children, path) if unit]
        direct = [unit[0] for unit in units if len(unit) == 1 and unit[0].owner == path]
        pools = [one for one in direct if role(one) == POOL]
        outside = [
            unit
            for unit in units
            if any(role(one) == CONV for one in unit) and not any(role(one) == POOL for one in unit)
        ]
        leaves = [one for unit in units for one in unit]
        first = next((k for k, one in enumerate(leaves) if role(one) in _WEIGHTED), 0)
        if len(pools) == 1 and (len(outside) > 1 or leaves.index(pools[0]) < first):
            raise CheckpointError(
                f"{pools[0].shown} stands once in {self.own[path]} beside {len(outside)} convolutions or"
                f" groups of them, and how often it runs is in code that is not in the file: {EXPORT}"
            )
        if path and _keeps_maps(leaves):
            self.perhaps_residual.append(leaf.shown)
        if norm := own_tensors.normalisation(leaf):
            self.normalizes.append(norm.path)
            return [norm, *leaves]
        return leaves

    def _units(self, children: Mapping[str, Stub], path: str) -> Iterator[list[Leaf]]:
        """The layers of each child of a class of the user's own."""
        has_others = any(not _COPIES.match(name) for name in children)
        for name, child in children.items():
            inner = f"{path}.{name}" if path else name
            if _JUDGES.match(child.name):
                continue
            if has_others and _COPIES.match(name):
                self.remarks.append(f"{printable(inner)}, a copy of the network, is left aside")
                continue
            if self._is_known_already(child):
                continue
            if child.name in _LISTS:
                held = Leaf(inner, child).inside("_modules")
                below = {key: one for key, one in held.items() if isinstance(one, Stub)}
                for unit in self._units(below, inner):
                    yield [
                        dataclasses.replace(one, owner=path) if one.owner == inner else one for one in unit
                    ]
                continue
            found = self._walk(child, inner, path)
            if [role(one) for one in found] == [FLATTEN]:
                continue  # often made first; maps are flattened before the first fully connected layer anyway
            weighted = [one for one in found if role(one) in _WEIGHTED]
            if len(weighted) == 1 and not any(role(one) == ACTIVATION for one in found):
                found = [dataclasses.replace(one, owner=path) for one in found]  # nn.Sequential(conv, norm)
            yield found

    def _is_known_already(self, child: Stub) -> bool:
        """Whether a child is a second name of layers that are there already, as in self.features =
        self.vgg.features."""
        if role(Leaf("", child)) is not None:
            return False
        weighted = [one for _, one in modules_of(child) if role(Leaf("", one)) in _WEIGHTED]
        return bool(weighted) and all(id(one) in self._weighted for one in weighted)


def _keeps_maps(leaves: Sequence[Leaf]) -> bool:
    """Whether layers are several convolutions whose maps are of the number and size of those that they read,
    so that these could be added to them."""
    convs = [one for one in leaves if role(one) == CONV]
    return (
        len(convs) > 1
        and not any(role(one) in (POOL, WHOLE_POOL, LINEAR) for one in leaves)
        and all(one.pair("stride", 1) == (1, 1) for one in convs)
        and convs[0].get("in_channels") == convs[-1].get("out_channels")
    )


_RELU = Leaf("relu", Stub("torch.nn.modules.activation.ReLU"))


@dataclasses.dataclass(frozen=True)
class _Guesses:
    """``origin``: how the activations are known. ``sentences``: what is assumed about them."""

    origin: str = FILE
    sentences: tuple[str, ...] = ()

    def and_that(self, used: Leaf | None) -> "_Guesses":
        """These, and that one activation, or else ReLU as a function, is behind several layers."""
        kind = module_layers.activation_of(used) if used else RELU
        words = [f"{kind} behind every layer but the last, as one for several layers"] if used else []
        is_assumed = kind == RELU or self.origin == ASSUMED
        return _Guesses(ASSUMED if is_assumed else CONVENTION, (*self.sentences, *words))


def _activated(leaves: Sequence[Leaf]) -> tuple[list[Leaf], _Guesses]:
    """The layers with an activation behind each one with weights, where the code that runs them is unknown
    and uses one activation for several layers, or a function.

    Raises:
        CheckpointError: there are several kinds, and which one runs where is not in the file.
    """
    last_ones = [one for one in leaves if one.owner is not None and module_layers.is_output(one)]
    found, guesses = [one for one in leaves if one not in last_ones], _Guesses()
    for owner in dict.fromkeys(one.owner for one in leaves if one.owner is not None):
        last = max((k for k, one in enumerate(found) if role(one) in _WEIGHTED), default=0)
        own = [
            k for k, one in enumerate(found) if one.owner == owner and role(one) in _WEIGHTED and k != last
        ]
        bare = [k for k in own if not _has_activation(found, k)]
        if bare:
            used, at_end = _used(found, owner)
            behind = own if used else bare
            acts = [one for one in found if one.owner == owner and role(one) == ACTIVATION]
            found = [*_with_activation(found, used or _RELU, behind, acts), *at_end]
            guesses = guesses.and_that(used)
    return [*found, *last_ones], guesses


def _used(leaves: Sequence[Leaf], owner: str) -> tuple[Leaf | None, list[Leaf]]:
    """The one activation that a class of the user's own uses for several layers, None: it has none; and the
    sigmoid that it has beside, which stands behind the logits.

    Raises:
        CheckpointError: it has several.
    """
    acts = [one for one in leaves if one.owner == owner and role(one) == ACTIVATION]
    kinds = {module_layers.activation_of(one): one for one in acts}
    at_end = [kinds.pop("sigmoid")] if "sigmoid" in kinds and len(kinds) > 1 else []
    if len(kinds) > 1:
        raise CheckpointError(
            f"{_some(one.shown for one in acts)} are fewer than the layers that they run behind, and which"
            f" runs where is in code that is not in the file: {EXPORT}"
        )
    return next(iter(kinds.values()), None), at_end


def _has_activation(leaves: Sequence[Leaf], k: int) -> bool:
    slot = itertools.takewhile(lambda one: role(one) not in _WEIGHTED, leaves[k + 1 :])
    return any(role(one) == ACTIVATION for one in slot)


def _with_activation(
    leaves: Sequence[Leaf], used: Leaf, behind: Sequence[int], without: Sequence[Leaf]
) -> list[Leaf]:
    """The layers with ``used`` behind some of them and their batch norms, and the layers ``without``"
    " gone."""
    found: list[Leaf] = []
    waiting = on_maps = False
    for k, leaf in enumerate(leaves):
        on_maps = role(leaf) == CONV or (on_maps and role(leaf) != LINEAR)
        if waiting and (role(leaf) != NORM or (on_maps and leaf.kind == module_layers.OF_FEATURES)):
            found.append(used)
            waiting = False
        if not any(leaf is one for one in without):
            found.append(leaf)
        waiting = waiting or k in behind
    return found


def _assembled(leaves: Sequence[Leaf]) -> Assembled:
    first = next(one for one in leaves if role(one) in _WEIGHTED)
    if role(first) != CONV:
        raise CheckpointError(f"{first.shown} comes first; expected a convolution, which reads pictures")
    assembly = Assembly(module_layers.weight_and_bias(first, 4)[0].shape[1])
    for k, leaf in enumerate(leaves):
        if role(leaf) != WHOLE_POOL or not any(
            one.covers for one in leaves[:k]
        ):  # one position is left there
            module_layers.add(leaf, assembly)
    return assembly.finish()


def _pooled(network: Assembled, tree: _Tree) -> tuple[Assembled, tuple[str, ...]]:
    """The network with the global pool that code outside the file most likely runs, and a sentence about
    it: the head reads one value for each channel, and the network is none for CIFAR."""
    linears = [one for one in network.layers if isinstance(one, Linear)]
    convs = [one for one in network.layers if isinstance(one, Conv)]
    if not tree.own or not linears or not convs or _adaptive_pool(network):
        return network, ()
    is_bare = len(linears) == 1 and any(role(one) == NORM for one in tree.leaves)
    is_cifar = linears[-1].outputs in CIFAR_CLASSES or is_bare
    if network.columns != convs[-1].outputs or is_cifar:
        return network, ()
    return network.pooled_to((1, 1)), (
        "global average pooling before the head, since it reads one value for each channel",
    )


def _input(network: Assembled, tree: _Tree) -> tuple[InputSpec, Origins]:
    """The input, and how its size is known.

    Raises:
        CheckpointError: no size fits.
    """
    px, origin = _px(network, tree)
    if any(one.stub.name == NORMALIZE for one in tree.leaves):
        plain = (0.0,) * network.channels, (1.0,) * network.channels
        return torch_inputs.as_usual(network, px, *plain), Origins(px=origin, normalize=FILE)
    return torch_inputs.as_usual(network, px), Origins(px=origin)


def _adaptive_pool(network: Assembled) -> AdaptiveAvgPool | AdaptiveMaxPool | None:
    return next((one for one in network.layers if isinstance(one, AdaptiveAvgPool | AdaptiveMaxPool)), None)


def _px(network: Assembled, tree: _Tree) -> tuple[int, str]:
    """The side of the input: that of Lightning's example, 224 px in front of an adaptive pool, else the
    smallest that fits and that every stride divides."""
    import torch

    examples = [tree.attributes.get(name) for name in ("example_input_array", "_example_input_array")]
    example = next((one for one in examples if one is not None), None)
    if isinstance(example, torch.Tensor) and example.dim() == 4 and example.shape[2] == example.shape[3]:
        px = example.shape[3]
        if network.fits(px):
            return px, FILE
    stride = math.prod(one.stride[0] for one in network.layers if isinstance(one, Conv | MaxPool | AvgPool))
    pool = _adaptive_pool(network)
    if pool and network.fits(USUAL_PX):
        return USUAL_PX, CONVENTION if pool.size[0] * stride == USUAL_PX else ASSUMED
    sizes = network.sizes()
    if not sizes:
        raise CheckpointError(
            f"its layers fit no input: the first fully connected layer reads {network.columns} features, and"
            " the layers before it give so many for no size"
        )
    whole = (px for px in sizes if px % stride == 0 and network.fits(px))
    return next(whole, sizes[0]), ASSUMED if pool else CONVENTION


def _names(tree: _Tree, path: Path) -> tuple[ClassNames | None, str | None]:
    """The class names among the attributes, or why they cannot be used."""
    attributes = {
        name: one.entries if isinstance(one, Stub) and one.entries else one  # a dictionary of another class
        for name, one in tree.attributes.items()
    }
    try:
        return class_names.beside(attributes, path), None
    except CheckpointError as error:  # --labels can still give them
        return None, str(error)
