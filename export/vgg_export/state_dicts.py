"""A torchvision VGG state dict -> a checkpoint: family member, widths and class count are read off the tensors."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError
from .model import CONVS_PER_BLOCK, POOLED_PX, STRIDE_PX, Plan, fold_batch_norm

if TYPE_CHECKING:
    import torch

State = "dict[str, torch.Tensor]"
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_EXPECTED = "expected a torchvision VGG state dict (vgg11, vgg13, vgg16 or vgg19, plain or _bn)"


def read_file(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a .pth, .pt or .safetensors file, bare or under ``state_dict``/``model``, without ``module.``.

    Raises:
        CheckpointError: missing, truncated, not of these formats, or holding pickled code.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; --weights takes auto, imagenet, demo, random or a .pth, .pt or .safetensors file")
    data: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for wrapper in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
    return _tensors(data, path)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); it may be truncated: fetch it again") from error


def _read_pickle(path: Path) -> Any:
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "Unsupported" in str(error):
            raise CheckpointError(
                f"{path} holds pickled Python objects, not only tensors, and is not loaded because that runs code;"
                " save the tensors alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise CheckpointError(f"{path} is not a PyTorch checkpoint or is truncated ({_brief(error)}); {_EXPECTED}") from error
    except Exception as error:  # a damaged file makes the reader fail in any way there is
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__} {_brief(error)}); it may be truncated: fetch it again. {_EXPECTED}"
        ) from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _tensors(data: Any, path: Path) -> "dict[str, torch.Tensor]":
    import torch

    if not isinstance(data, dict) or not data:
        raise CheckpointError(f"{path} holds a {type(data).__name__}; {_EXPECTED}")
    state = {}
    for name, value in data.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path} holds {name!r} of type {type(value).__name__}; {_EXPECTED}, possibly under 'state_dict' or 'model'"
            )
        state[str(name).removeprefix("module.")] = value
    return state


def to_plan_and_tensors(state: "dict[str, torch.Tensor]") -> "tuple[Plan, dict[str, torch.Tensor]]":
    """Infer the plan, fold batch norm, rename ``features.0`` to ``conv1_1`` and ``classifier.6`` to ``fc3``; float32.

    Raises:
        CheckpointError: not a VGG, with the first thing that does not fit.
    """
    indices = sorted(int(m[1]) for name, t in state.items() if (m := re.fullmatch(r"features\.(\d+)\.weight", name)) and t.dim() == 4)
    if not indices or any(f"classifier.{k}.weight" not in state for k in (0, 3, 6)):
        raise CheckpointError(f"the tensors are {', '.join(list(state)[:4])} …; {_EXPECTED} with features.N and classifier.0/3/6")
    batch_norm = f"features.{indices[0] + 1}.running_mean" in state
    blocks = _blocks(indices, 3 if batch_norm else 2)
    family = next((name for name, counts in CONVS_PER_BLOCK.items() if counts == tuple(len(b) for b in blocks)), None)
    if family is None:
        raise CheckpointError(f"found {[len(b) for b in blocks]} convolutions per block; {_EXPECTED}")
    plan = _plan(state, family, blocks)
    tensors: dict[str, torch.Tensor] = {}
    for (name, *_), index in zip(plan.convs(), indices, strict=True):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = _conv(state, index, batch_norm=batch_norm)
    for k, index in enumerate((0, 3, 6), 1):
        for part in ("weight", "bias"):
            tensors[f"fc{k}.{part}"] = _get(state, f"classifier.{index}.{part}")
    _ensure_nothing_else(state, indices, batch_norm=batch_norm)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} holds values that are not finite (NaN or infinity); the training that made this file went wrong")
    return plan, tensors


def _ensure_nothing_else(state: "dict[str, torch.Tensor]", indices: Sequence[int], *, batch_norm: bool) -> None:
    """A tensor that no layer of a VGG has means another function; dropping it silently would compile the wrong network."""
    layers = {f"features.{i}" for i in indices} | {f"classifier.{k}" for k in (0, 3, 6)}
    norms = {f"features.{i + 1}" for i in indices} if batch_norm else set()
    known = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    known |= {f"{norm}.{part}" for norm in norms for part in (*_NORM.values(), "num_batches_tracked")}
    if extra := sorted(state.keys() - known):
        raise CheckpointError(f"the file holds {', '.join(extra[:4])} besides a VGG's layers; {_EXPECTED} and nothing else")


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
    widths = tuple(tuple(_get(state, f"features.{i}.weight").shape[0] for i in block) for block in blocks)
    fc1, fc2, fc3 = (_get(state, f"classifier.{k}.weight") for k in (0, 3, 6))
    if any(t.dim() != 2 for t in (fc1, fc2, fc3)):
        raise CheckpointError(f"the classifier's weights are {[tuple(t.shape) for t in (fc1, fc2, fc3)]}; expected three matrices")
    positions = POOLED_PX**2
    if fc1.shape[1] != widths[-1][-1] * positions:
        raise CheckpointError(f"classifier.0 takes {fc1.shape[1]} inputs; expected {widths[-1][-1]} channels x {positions} positions")
    return Plan(family, widths, (fc1.shape[0], fc2.shape[0]), fc3.shape[0], POOLED_PX * STRIDE_PX)


def _conv(state: "dict[str, torch.Tensor]", index: int, *, batch_norm: bool) -> "tuple[torch.Tensor, torch.Tensor]":
    weight, name = _get(state, f"features.{index}.weight"), f"features.{index}.bias"
    if not batch_norm:
        return weight, _get(state, name)
    norm = {key: _get(state, f"features.{index + 1}.{part}") for key, part in _NORM.items()}
    if any(vector.shape != weight.shape[:1] for vector in norm.values()):
        raise CheckpointError(f"features.{index + 1} does not have the {weight.shape[0]} channels of features.{index}; {_EXPECTED}")
    bias = _get(state, name) if name in state else None
    return fold_batch_norm(weight, bias, gamma=norm["gamma"], beta=norm["beta"], mean=norm["mean"], variance=norm["variance"])


_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}


def _get(state: "dict[str, torch.Tensor]", name: str) -> "torch.Tensor":
    if name not in state:
        raise CheckpointError(f"the file lacks {name}; {_EXPECTED}")
    return state[name].float().contiguous()
