"""Reads the tensors of a TorchScript program (torch.jit.save). Its code, which is text that torch would
compile and run, is not looked at."""

import dataclasses
from pathlib import Path

from vgg_export.core.errors import CheckpointError

from . import module_trees, state_dicts, unpickle
from .found import Found
from .module_layers import ACTIVATIONS
from .pickle_machine import Stub

SAVE = "save the module that it was made of: torch.save(model, FILE)"
# activations that the program may have where a state dict's are assumed
_ASSUMED = ("ReLU", "Softmax", "LogSoftmax")


def read(path: Path) -> Found:
    """The network of a program, as far as its tensors and the classes of its layers tell.

    Raises:
        CheckpointError: the file is damaged, its tensors are no chain, or it has activations whose place is
            in its code only.
    """
    stub = unpickle.load(path)
    if not isinstance(stub, Stub):
        raise CheckpointError(f"{path} is a TorchScript program without a module; {SAVE}")
    classes = [module.name.rpartition(".")[2] for _, module in module_trees.modules_of(stub)]
    others = [name for name in classes if name in ACTIVATIONS and name not in _ASSUMED]
    if others:
        raise CheckpointError(
            f"{path} is a TorchScript program with {others[0]}, and behind which layers that runs is in its"
            f" code, which is not run: {SAVE}"
        )
    tensors = module_trees.tensors_of(stub)
    if not tensors:
        raise CheckpointError(
            f"{path} is a TorchScript program without tensors of its own, as torch.jit.freeze makes it;"
            f" {SAVE}"
        )
    found = state_dicts.read(tensors)
    return dataclasses.replace(found, container=f"a TorchScript program, read as {found.container}")
