"""Drawn networks whose predictions depend on the picture."""

import dataclasses

import torch

from vgg_export.network import checkpoint as checkpoints


def undecided(checkpoint: checkpoints.Checkpoint, x: torch.Tensor) -> checkpoints.Checkpoint:
    """The checkpoint with logits that have mean zero and standard deviation two over the pictures ``x``. Most
    drawn networks give every picture the same class, so surely that changes of their layers hardly show."""
    with torch.inference_mode():
        logits = checkpoint.model()(x)
    weight, bias = (checkpoint.tensors[f"fc3.{part}"] for part in ("weight", "bias"))
    scale = 2 / logits.std(0)
    changed = {"fc3.weight": weight * scale[:, None], "fc3.bias": (bias - logits.mean(0)) * scale}
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | changed)


def awake(checkpoint: checkpoints.Checkpoint, layer: str, x: torch.Tensor) -> checkpoints.Checkpoint:
    """The checkpoint with a convolution whose filters each have mean zero over the pictures ``x`` before the
    ReLU. Some drawn filters are zero, or nearly so, for every picture."""
    network = checkpoint.model()
    with torch.inference_mode():
        said = network[: list(dict(network.named_children())).index(layer) + 1](x)
    changed = {f"{layer}.bias": checkpoint.tensors[f"{layer}.bias"] - said.mean((0, 2, 3))}
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | changed)
