"""Reads files of torch.save and safetensors: finds the one dictionary of tensors that is a network, wherever
it lies in the file, and the class names beside it."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_export.core.errors import CheckpointError
from vgg_export.network.activations import NONE
from vgg_export.network.chain import Linear
from vgg_export.network.provenance import FILE
from vgg_export.network.safetensors_files import reading
from vgg_runtime.text import printable

from . import class_names, file_kinds, layer_names, module_trees, state_dicts, unpickle
from .class_names import ClassNames
from .found import Found
from .pickle_machine import Stub
from .plain_tensors import not_dense, some

if TYPE_CHECKING:
    import torch

MOST_DEPTH = 8  # of nested containers that are searched
# Words of keys under which copies of a network lie that are not the trained one itself.
_COPIES = re.compile(r"ema|swa|avg|average|shadow|teacher|best|initial|init|backup", re.IGNORECASE)
# Words in the names of the functions that rebuild a tensor, and what it is.
_STRANGE = (("sparse", "a sparse tensor"), ("qtensor", "quantized numbers"), ("nested", "a nested tensor"))
_EXPECTED = (
    "expected a PyTorch state dict, bare or in a dictionary, or a whole network of torch.save(model, FILE)"
)

Keys = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A dictionary of tensors, or a saved module and its tensors; ``keys`` lead to it. ``prefix``: of the
    names in that dictionary, where several networks lie in it. ``strange``: the names of those that are no
    dense numbers, and what each is."""

    keys: Keys
    tensors: "dict[str, torch.Tensor]"
    strange: tuple[tuple[str, str], ...] = ()
    module: Stub | None = None
    prefix: str = ""

    @property
    def in_words(self) -> str:
        """Where it lies, with the keys as Python writes them."""
        under = f"names that begin with {self.prefix!r}" if self.prefix else ""
        return " and ".join(filter(None, (self._key_text, under)))

    @property
    def _key_text(self) -> str:
        return "".join(f"[{key!r}]" for key in self.keys)

    def code(self, path: Path) -> str:
        """The Python expression that gives its tensors."""
        if path.suffix == ".safetensors":
            whole = f"safetensors.torch.load_file({str(path)!r})"
        else:
            whole = f"torch.load({str(path)!r}, map_location='cpu'){self._key_text}"
        if not self.prefix:
            return whole
        return f"{{k: v for k, v in {whole}.items() if k.startswith({self.prefix!r})}}"

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """The network itself comes before its averages, a module, which tells more, before tensors, and what
        lies near before what lies deep."""
        is_copy = any(_COPIES.search(str(key)) for key in (*self.keys, self.prefix))
        return is_copy, self.module is None, len(self.keys)


def read(path: Path) -> Found:
    """The network in a file of torch.save or safetensors, with the class names beside it.

    Raises:
        CheckpointError: the file is truncated, or holds no network that tensors tell.
    """
    if file_kinds.recognise(path).readable == file_kinds.SAFETENSORS:
        data, beside = _read_safetensors(path)
        in_order = False  # such a file sorts its tensors
    else:
        data = beside = unpickle.load(path)
        in_order = True
    candidates = sorted(_candidates(data), key=lambda one: one.rank)
    found, taken = _network(candidates, path, in_words=_in_words(data), in_order=in_order)
    others = [one for one in candidates if one is not taken]
    remarks = tuple(_left_aside(one, path) for one in others if _names_most(one, taken))
    if taken.module is None:
        found = _with_heads(found, taken, [one for one in others if one.module])
    # the tensors of the file are mapped into memory, and the file may change
    own = {name: tensor.clone() for name, tensor in found.network.tensors.items()}
    return dataclasses.replace(
        _with_names(found, beside, path),
        network=dataclasses.replace(found.network, tensors=own),
        remarks=(*found.remarks, *remarks),
    )


def _read_safetensors(path: Path) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    """The tensors, and what the file's metadata says, as far as that is JSON."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    metadata: dict[str, Any] = {}
    with reading(path):
        with safe_open(path, framework="np") as file:
            for key, text in (file.metadata() or {}).items():
                with contextlib.suppress(ValueError, RecursionError):  # most of it is no JSON
                    metadata[key] = json.loads(text)
        return load_file(path), metadata


def _network(
    candidates: Sequence[Candidate], path: Path, *, in_words: str, in_order: bool
) -> tuple[Found, Candidate]:
    """The first of the candidates that is a network.

    Args:
        in_words: what the file holds.
        in_order: the file keeps the order of its tensors.

    Raises:
        CheckpointError: none is; the message is about the one that comes nearest.
    """
    faults: list[CheckpointError] = []
    for one in [one for one in candidates if _has_both(one.tensors)] or candidates:
        try:
            return _read(one, path, in_order=in_order), one
        except CheckpointError as error:
            faults.append(error)
    if faults:
        raise faults[0]
    raise CheckpointError(f"{path} holds {in_words}; {_EXPECTED}")


def _read(one: Candidate, path: Path, *, in_order: bool) -> Found:
    if one.module:
        return module_trees.read_module(one.module, path)
    for name, what in one.strange:
        raise CheckpointError(not_dense(name, what))
    return state_dicts.read(one.tensors, in_order=in_order)


def _with_heads(found: Found, taken: Candidate, modules: Iterable[Candidate]) -> Found:
    """With the activations of a part of the network that lies beside its tensors as a module, such as its
    classifier."""
    told: dict[str, str] = {}
    for one in modules:
        assert one.module
        part = str(one.keys[-1]) if one.keys else ""
        own = {f"{part}.{name}": tensor for name, tensor in one.tensors.items()}
        if all(name in taken.tensors and taken.tensors[name].equal(own[name]) for name in own):
            with contextlib.suppress(CheckpointError):  # it tells nothing that can be used
                inside = module_trees.activations_of(one.module)
                told |= {f"{part}.{name}": activation for name, activation in inside.items()}
    hidden = [one.name for one in found.network.layers if isinstance(one, Linear) and one.activation != NONE]
    if not hidden or not all(found.network.names[name] in told for name in hidden):
        return found
    layers = tuple(
        dataclasses.replace(one, activation=told[found.network.names[one.name]])
        if isinstance(one, Linear) and one.name in hidden
        else one
        for one in found.network.layers
    )
    return dataclasses.replace(
        found,
        network=dataclasses.replace(found.network, layers=layers),
        origins=dataclasses.replace(found.origins, activations=FILE),
    )


def _candidates(data: Any, keys: Keys = (), barren: set[int] | None = None) -> Iterator[Candidate]:
    """Every module, and every dictionary with weights of layers, wherever it lies.

    Args:
        barren: the containers, by their identity, that are being searched or have nothing: a file may name
            one in many places, and in itself.
    """
    barren = set() if barren is None else barren
    if len(keys) > MOST_DEPTH or id(data) in barren or not isinstance(data, list | tuple | Mapping | Stub):
        return
    barren.add(id(data))
    found = list(_candidates_in(data, keys, barren))
    if found:
        barren.discard(id(data))
    yield from found


def _candidates_in(data: Any, keys: Keys, barren: set[int]) -> Iterator[Candidate]:
    """Those of a container. Its tensors lie in it directly or (a network in parts, such as features and
    classifier) in the dictionaries right inside it."""
    if isinstance(data, list | tuple):
        for k, value in enumerate(data):
            yield from _candidates(value, (*keys, k), barren)
        return
    if isinstance(data, Stub) and module_trees.is_module(data):
        tensors = module_trees.tensors_of(data)
        if _has_weights(tensors):
            yield Candidate(keys, tensors, module=data)
        return
    inside = _entries(data)
    own = _tensors(inside)
    if _has_weights(own):
        yield from _networks_in(Candidate(keys, own, _strange(inside)))
        return
    parts = {str(key): _tensors(_entries(value)) for key, value in inside.items()}
    parts = {key: tensors for key, tensors in parts.items() if _has_weights(tensors)}
    joined = {f"{key}.{name}": tensor for key, part in parts.items() for name, tensor in part.items()}
    if _has_both(joined) and not any(map(_has_both, parts.values())):
        yield Candidate(keys, joined)
        return
    for key, value in inside.items():
        yield from _candidates(value, (*keys, key if isinstance(key, int) else str(key)), barren)


def _networks_in(whole: Candidate) -> Iterator[Candidate]:
    """The networks of one dictionary, which may hold several under prefixes of their own, such as a network
    and its average; most often it is one."""
    paths = [tuple(name.split(".")) for name in whole.tensors if _is_weight(name)]
    depth = layer_names.common_prefix(paths)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in whole.tensors.items():
        groups.setdefault(".".join(name.split(".")[: depth + 1]) + ".", {})[name] = tensor
    networks = {prefix: tensors for prefix, tensors in groups.items() if _has_both(tensors)}
    for prefix, copy in networks.items():
        rest = {name: tensor for name, tensor in whole.tensors.items() if name not in copy}
        if _is_copy(rest, copy, prefix):
            yield dataclasses.replace(whole, tensors=rest)
            yield dataclasses.replace(whole, tensors=copy, prefix=prefix)
            return
    if len(networks) < 2:
        yield whole
        return
    for prefix, tensors in networks.items():
        yield dataclasses.replace(whole, tensors=tensors, prefix=prefix)


def _is_copy(rest: Mapping[str, Any], copy: Mapping[str, Any], prefix: str) -> bool:
    """Whether tensors under a prefix are those of a network without it."""
    own = {name.removeprefix(prefix).removeprefix("module.") for name in copy}
    return bool(rest) and {name for name in rest if _is_weight(name)} == {n for n in own if _is_weight(n)}


def _entries(value: Any) -> "Mapping[Any, Any]":
    """What a dictionary, one of the user's own kind or an object such as a Namespace holds by name; nothing
    for other values and for modules, which are more than their tensors."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Stub) and not module_trees.is_module(value):
        return value.entries or value.attributes
    return {}


def _tensors(data: "Mapping[Any, Any]") -> "dict[str, torch.Tensor]":
    """The tensors of a dictionary that have names."""
    import torch

    return {name: t for name, t in data.items() if isinstance(name, str) and isinstance(t, torch.Tensor)}


def _strange(data: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    """The names of tensors of a kind that is not read, and what each is."""
    stubs = {str(name): value.name for name, value in data.items() if isinstance(value, Stub)}
    return tuple(
        (name, next((words for word, words in _STRANGE if word in kind), "a tensor of an unknown kind"))
        for name, kind in stubs.items()
        if kind.startswith(("torch._utils._rebuild", "torch.Tensor", "torch._tensor"))
    )


def _has_weights(tensors: "Mapping[str, torch.Tensor]") -> bool:
    """Whether a tensor is the weight of a convolution or of a fully connected layer."""
    return any(_is_weight(name) and t.dim() in (2, 4) for name, t in tensors.items())


def _has_both(tensors: "Mapping[str, torch.Tensor]") -> bool:
    """Whether there are weights of convolutions and of fully connected layers."""
    return {2, 4} <= {t.dim() for name, t in tensors.items() if _is_weight(name)}


def _is_weight(name: str) -> bool:
    return re.search(r"(?:^|\.)weight(?:_orig|_v)?$|parametrizations\.weight\.original\d?$", name) is not None


def _in_words(data: Any) -> str:
    """What a file holds that has no network."""
    if isinstance(data, Stub):
        return f"a {printable(data.name, 80)}"
    if not isinstance(data, Mapping):
        return f"a {type(data).__name__}"
    if not data:
        return f"an empty {type(data).__name__}"
    kinds = {
        key: value.name if isinstance(value, Stub) else type(value).__name__ for key, value in data.items()
    }
    return some([f"{printable(str(key))!r} ({printable(kind, 60)})" for key, kind in kinds.items()])


def _names_most(one: Candidate, taken: Candidate) -> bool:
    """Whether a dictionary names most of a network's tensors, with any prefix."""
    parts = [name.removeprefix(taken.prefix).removeprefix("module.") for name in taken.tensors]
    named = sum(any(name.endswith(part) for name in one.tensors) for part in parts)
    return named > len(parts) / 2


def _left_aside(one: Candidate, path: Path) -> str:
    return (
        f"the file also holds weights of the same network under {one.in_words}, which are left aside"
        f" (averaged ones are often the better); to take them: torch.save({one.code(path)}, 'other.pth')"
    )


def _with_names(found: Found, data: Any, path: Path) -> Found:
    """With the class names beside the tensors, or why they cannot be used."""
    names: ClassNames | None = None
    fault = found.names_fault
    beside = {key: _entries(value) or value for key, value in _entries(data).items()}
    try:
        names = class_names.beside(beside, path)
    except CheckpointError as error:  # --labels can still give them
        fault = str(error)
    return dataclasses.replace(found, names=names or found.names, names_fault=fault)
