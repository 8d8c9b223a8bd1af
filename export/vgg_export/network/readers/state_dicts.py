"""Turns a torchvision VGG state dict into a checkpoint. The family member, the widths and the number of
classes are read off the tensors."""

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_export.core.errors import CheckpointError
from vgg_export.network.chain import CONVS_PER_BLOCK, POOLED_PX, STRIDE_PX, Plan
from vgg_export.network.modules import fold_batch_norm
from vgg_runtime.text import printable

from . import class_names, file_kinds
from .class_names import ClassNames

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_EXPECTED = "expected a torchvision VGG state dict (vgg11, vgg13, vgg16 or vgg19, plain or _bn)"
_LINEARS = (0, 3, 6)  # of torchvision's classifier
SHOWN = 4
MOST_DEPTH = 3  # of nested dictionaries that are searched for other weights


@dataclasses.dataclass(frozen=True)
class Content:
    """What a checkpoint's file holds.

    ``tensors`` are the network's, by name, and ``names`` those of its classes, None without any.
    ``names_fault`` says why class names in the file cannot be used. ``left_aside`` are other weights of the
    same network that were not taken (averaged ones), each as the keys that lead to them.
    """

    tensors: "dict[str, torch.Tensor]"
    names: ClassNames | None = None
    names_fault: str | None = None
    left_aside: tuple[tuple[str, ...], ...] = ()


def read_file(path: Path) -> Content:
    """Read a file of torch.save or safetensors, whatever its name is.

    The tensors may be bare or under ``state_dict``, ``model`` or ``model_state_dict``. A prefix ``module.``
    is removed from their names.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind (the message says which), or holds
            pickled code.
    """
    import torch

    if path.is_dir():
        raise CheckpointError(file_kinds.folder(path))
    if not path.is_file():
        raise CheckpointError(
            f"there is no file {path}; --weights takes auto, imagenet, demo, random or a .pth, .pt or"
            " .safetensors file"
        )
    try:
        kind = file_kinds.recognise(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check that you may read it"
        ) from error
    if kind.readable is None:
        raise CheckpointError(f"{path} is {kind.what}; {kind.do}")
    data, metadata = (
        _read_safetensors(path) if kind.readable == file_kinds.SAFETENSORS else (_read_pickle(path), None)
    )
    whole, keys = data, tuple[str, ...]()
    for wrapper in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data, keys = data[wrapper], (*keys, wrapper)
    if not keys and isinstance(data, dict):  # names of classes may stand among the tensors
        data = {
            k: v
            for k, v in data.items()
            if isinstance(v, torch.Tensor) or str(k).lower() not in class_names.KEYS
        }
    tensors = _tensors(data, path)
    names, fault = None, None
    try:
        names = class_names.beside(whole if metadata is None else metadata, path)
    except CheckpointError as error:  # --labels can still give them
        fault = str(error)
    return Content(tensors, names, fault, tuple(_others(whole, keys, tensors)) if keys else ())


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Any]]:
    """The tensors, and what the file's metadata says, as far as that is JSON."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    metadata: dict[str, Any] = {}
    try:
        with safe_open(path, framework="np") as file:
            for key, text in (file.metadata() or {}).items():
                with contextlib.suppress(ValueError, RecursionError):  # most of it is no JSON
                    metadata[key] = json.loads(text)
        return load_file(path), metadata
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated: fetch it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    import pickle

    import torch

    try:
        with path.open("rb") as file:  # given a path, torch would look at its name
            begins = file.read(2)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) and (begins == b"PK" or begins[:1] == pickle.PROTO):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors{_objects(path)} and is not loaded, because"
                " that could run code from the file;"
                " save the tensors alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint or is truncated: fetch it again; {_EXPECTED}"
        ) from error
    except Exception as error:
        # a damaged file can raise any error, with a message for programmers
        raise CheckpointError(
            f"{path} cannot be read by PyTorch; it may be truncated: fetch it again; {_EXPECTED}"
        ) from error


def _objects(path: Path) -> str:
    """The classes and functions, other than tensors, that a file of torch.save names, in brackets; empty
    where torch cannot list them."""
    import torch

    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # an old or damaged format: the message does not list them
        return ""
    # the whole network's class says more than its layers'
    shown = sorted(found, key=lambda name: name.startswith("torch.nn."))
    return f" ({_some([printable(name, 80) for name in shown])})" if found else ""


def _some(names: Sequence[str], limit: int = SHOWN) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _tensors(data: Any, path: Path) -> "dict[str, torch.Tensor]":
    import torch

    if not isinstance(data, dict) or not data:
        raise CheckpointError(
            f"{path} holds {'an empty' if isinstance(data, dict) else 'a'} {type(data).__name__}; {_EXPECTED}"
        )
    wrong = [str(name) for name, value in data.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        under = ["[" + "][".join(map(repr, keys)) + "]" for keys, _ in _dictionaries_of_tensors(data)]
        hint = f"; its tensors lie under {_some(under)}: save those alone" if under else ""
        types = [f"{printable(name)!r} ({type(data[name]).__name__})" for name in wrong if name in data]
        raise CheckpointError(
            f"{path} holds {_some(types or wrong)}; {_EXPECTED}, bare or under"
            f" {' or '.join(map(repr, _WRAPPERS))}{hint}"
        )
    for name, value in data.items():
        if why := _unusable(str(name), value):
            raise CheckpointError(
                f"{path} holds {printable(str(name), 60)} as {why}; expected dense floating-point numbers:"
                " save it as such"
            )
    return {str(name).removeprefix("module."): value.detach() for name, value in data.items()}


def _unusable(name: str, tensor: "torch.Tensor") -> str | None:
    """What a tensor is whose numbers cannot be used as they are; None when they can."""
    import torch

    if tensor.is_meta:
        return "a shape without numbers (device meta)"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({tensor.layout})"
    if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
        return f"{str(tensor.dtype).removeprefix('torch.')} numbers"
    return None


def _dictionaries_of_tensors(
    data: Any, keys: tuple[str, ...] = ()
) -> "Iterator[tuple[tuple[str, ...], Mapping[str, torch.Tensor]]]":
    """Every dictionary inside ``data`` most of whose values are tensors, with the keys that lead to it."""
    import torch

    if not isinstance(data, Mapping) or len(keys) > MOST_DEPTH:
        return
    tensors = {str(name): value for name, value in data.items() if isinstance(value, torch.Tensor)}
    if keys and 2 * len(tensors) > len(data):
        yield keys, tensors
        return
    for key, value in data.items():
        yield from _dictionaries_of_tensors(value, (*keys, str(key)))


def _others(
    whole: Any, taken: tuple[str, ...], tensors: "dict[str, torch.Tensor]"
) -> Iterator[tuple[str, ...]]:
    """The keys of every other dictionary in the file that names most of this network's tensors, with any
    prefix."""
    for keys, found in _dictionaries_of_tensors(whole):
        if (
            keys != taken
            and sum(any(name.endswith(own) for name in found) for own in tensors) > len(tensors) / 2
        ):
            yield keys


def to_plan_and_tensors(state: "dict[str, torch.Tensor]") -> "tuple[Plan, dict[str, torch.Tensor]]":
    """Infer the plan, fold batch norm, rename ``features.0`` to ``conv1_1`` and ``classifier.6`` to ``fc3``;
    float32.

    Raises:
        CheckpointError: it is not a VGG; the message names the tensors that do not fit.
    """
    indices = sorted(
        int(m[1])
        for name, t in state.items()
        if (m := re.fullmatch(r"features\.(\d+)\.weight", name)) and t.dim() == 4
    )
    batch_norm = bool(indices) and f"features.{indices[0] + 1}.running_mean" in state
    _ensure_its_names(state, indices, batch_norm=batch_norm)
    blocks = _blocks(indices, 3 if batch_norm else 2)
    family = next(
        (name for name, counts in CONVS_PER_BLOCK.items() if counts == tuple(len(b) for b in blocks)), None
    )
    if family is None:
        raise CheckpointError(f"found {[len(b) for b in blocks]} convolutions per block; {_EXPECTED}")
    _ensure_finite(state, indices)
    plan = _plan(state, family, blocks)
    _ensure_shapes(state, plan, indices)
    tensors: dict[str, torch.Tensor] = {}
    for (name, *_), index in zip(plan.convs(), indices, strict=True):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = _conv(state, index, batch_norm=batch_norm)
    for k, index in enumerate(_LINEARS, 1):
        for part in ("weight", "bias"):
            tensors[f"fc{k}.{part}"] = _get(state, f"classifier.{index}.{part}")
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{bad[0]} is not finite once its batch norm is folded into it; check that no running variance is"
            " below zero"
        )
    return plan, tensors


def _ensure_its_names(state: "dict[str, torch.Tensor]", indices: Sequence[int], *, batch_norm: bool) -> None:
    """Make sure that every tensor is one of a VGG's and none is missing: without one the network would
    compute something else.

    Raises:
        CheckpointError: the message names the tensors that do not fit and the missing ones.
    """
    layers = [f"features.{i}" for i in indices] + [f"classifier.{k}" for k in _LINEARS]
    norms = [f"features.{i + 1}" for i in indices] if batch_norm else []
    optional = {f"{norm}.num_batches_tracked" for norm in norms} | {
        f"features.{i}.bias" for i in indices if batch_norm
    }
    needed = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    needed += [f"{norm}.{part}" for norm in norms for part in _NORM.values()]
    other_kernels = {
        f"features.{i}.weight" for i in indices if tuple(state[f"features.{i}.weight"].shape[2:]) != (3, 3)
    }
    extra = [name for name in state if (name not in needed and name not in optional) or name in other_kernels]
    missing = [name for name in needed if name not in state and name not in optional]
    if not extra and not missing:
        return
    found = []
    if extra:
        shapes = [f"{printable(name, 60)} {list(state[name].shape)}" for name in extra]
        found.append(f"{len(extra)} of {len(state)} tensors do not fit: {_some(shapes)}")
    if missing:
        found.append(f"it lacks {_some(missing)}")
    raise CheckpointError(
        f"{'; '.join(found)}{_prefix_in_words(state)}; {_EXPECTED}, its layers features.N and"
        " classifier.0, .3 and .6"
    )


def _ensure_shapes(state: "dict[str, torch.Tensor]", plan: Plan, indices: Sequence[int]) -> None:
    """Make sure that each layer takes as many inputs as the one before has outputs."""
    names = [*(f"features.{i}" for i in indices), *(f"classifier.{k}" for k in _LINEARS)]
    sizes = [[n, c, 3, 3] for _, c, n in plan.convs()] + [[n, c] for _, c, n in plan.linears()]
    for name, size in zip(names, sizes, strict=True):
        for part, expected in (("weight", size), ("bias", size[:1])):
            tensor = state.get(f"{name}.{part}")
            if tensor is not None and list(tensor.shape) != expected:
                raise CheckpointError(
                    f"{name}.{part} is {list(tensor.shape)}, but the layer before asks for {expected};"
                    f" {_EXPECTED}"
                )


def _prefix_in_words(state: "dict[str, torch.Tensor]") -> str:
    """A hint for names that all begin with the same prefix and are a VGG's without it; else empty."""
    first = next(iter(state), "")
    place = first.find("features.")
    if place > 0 and all(name.startswith(first[:place]) for name in state):
        return f" (every name begins with {printable(first[:place])!r}: save them without it)"
    return ""


def _ensure_finite(state: "dict[str, torch.Tensor]", indices: Sequence[int]) -> None:
    bad = [
        name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if not bad:
        return
    head = {f"classifier.{k}.{part}" for k in _LINEARS for part in ("weight", "bias")}
    if set(bad) == head and all(state[name].isnan().all() for name in bad):
        raise CheckpointError(
            "every weight of the classifier is NaN: the file holds the features only (as torchvision's"
            " IMAGENET1K_FEATURES), and its"
            " classifier was never trained; train one on your classes, then save the whole network"
        )
    raise CheckpointError(
        f"{_some(bad)} {'holds' if len(bad) == 1 else 'hold'} values that are not finite (NaN or"
        " infinity); the training that made this"
        " file went wrong"
    )


def _blocks(indices: Sequence[int], step: int) -> list[list[int]]:
    """Convolution indices by block: a pool between two of them shows as a gap of one more than ``step``."""
    blocks = [[indices[0]]]
    for before, index in itertools.pairwise(indices):
        if index - before == step:
            blocks[-1].append(index)
        elif index - before == step + 1:
            blocks.append([index])
        else:
            raise CheckpointError(f"features.{index} follows features.{before}; {_EXPECTED}")
    return blocks


def _plan(state: "dict[str, torch.Tensor]", family: str, blocks: list[list[int]]) -> Plan:
    first = _get(state, f"features.{blocks[0][0]}.weight")
    if first.shape[1] != 3:
        raise CheckpointError(
            f"features.{blocks[0][0]} takes {first.shape[1]} channels; expected three: this version reads"
            " colour pictures"
        )
    widths = tuple(tuple(_get(state, f"features.{i}.weight").shape[0] for i in block) for block in blocks)
    fc1, fc2, fc3 = (_get(state, f"classifier.{k}.weight") for k in _LINEARS)
    if any(t.dim() != 2 for t in (fc1, fc2, fc3)):
        raise CheckpointError(
            f"the classifier's weights are {[tuple(t.shape) for t in (fc1, fc2, fc3)]}; expected three"
            " matrices"
        )
    positions = POOLED_PX**2
    if fc1.shape[1] != widths[-1][-1] * positions:
        seen, rest = divmod(fc1.shape[1], widths[-1][-1])
        side = (
            ""
            if rest or round(seen**0.5) ** 2 != seen
            else f", that is {round(seen**0.5)} x {round(seen**0.5)} positions"
        )
        raise CheckpointError(
            f"classifier.0 takes {fc1.shape[1]} inputs{side}; expected {widths[-1][-1]} channels x"
            f" {POOLED_PX} x {POOLED_PX} ="
            f" {widths[-1][-1] * positions}: this version reads networks that pool to {POOLED_PX} x"
            f" {POOLED_PX}, as torchvision's do"
        )
    if fc3.shape[0] == 1:
        raise CheckpointError(
            "the last layer has one output, for two classes with a sigmoid; expected one output per class:"
            " with a single one, every picture would be class 0 at 100 %. Make two outputs that say the same:"
            " replace both classifier.6.weight and classifier.6.bias, each called t here, by"
            " torch.cat([torch.zeros_like(t), t]); the first class is then the one at 0"
        )
    return Plan(family, widths, (fc1.shape[0], fc2.shape[0]), fc3.shape[0], POOLED_PX * STRIDE_PX)


def _conv(
    state: "dict[str, torch.Tensor]", index: int, *, batch_norm: bool
) -> "tuple[torch.Tensor, torch.Tensor]":
    weight, name = _get(state, f"features.{index}.weight"), f"features.{index}.bias"
    if not batch_norm:
        return weight, _get(state, name)
    norm = {key: _get(state, f"features.{index + 1}.{part}") for key, part in _NORM.items()}
    if any(vector.shape != weight.shape[:1] for vector in norm.values()):
        raise CheckpointError(
            f"features.{index + 1} does not have the {weight.shape[0]} channels of features.{index};"
            f" {_EXPECTED}"
        )
    bias = _get(state, name) if name in state else None
    return fold_batch_norm(
        weight, bias, gamma=norm["gamma"], beta=norm["beta"], mean=norm["mean"], variance=norm["variance"]
    )


_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}


def _get(state: "dict[str, torch.Tensor]", name: str) -> "torch.Tensor":
    return state[name].float().contiguous()
