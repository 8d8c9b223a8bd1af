"""Drawn networks whose answers depend on the picture."""

import dataclasses

import torch

from vgg_export.network import checkpoint as checkpoints


def undecided(checkpoint: checkpoints.Checkpoint, x: torch.Tensor) -> checkpoints.Checkpoint:
    """The same with logits that are zero on average over pictures and spread by two: left alone, most drawn
    networks say one class of everything, and so surely that hardly a change of their layers is noticed."""
    with torch.inference_mode():
        logits = checkpoint.model()(x)
    weight, bias = (checkpoint.tensors[f"fc3.{part}"] for part in ("weight", "bias"))
    scale = 2 / logits.std(0)
    changed = {"fc3.weight": weight * scale[:, None], "fc3.bias": (bias - logits.mean(0)) * scale}
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | changed)


def awake(checkpoint: checkpoints.Checkpoint, layer: str, x: torch.Tensor) -> checkpoints.Checkpoint:
    """The same with a convolution whose filters are each zero on average over pictures before the ReLU: some
    that are drawn say nothing or next to nothing of any picture."""
    network = checkpoint.model()
    with torch.inference_mode():
        said = network[: list(dict(network.named_children())).index(layer) + 1](x)
    changed = {f"{layer}.bias": checkpoint.tensors[f"{layer}.bias"] - said.mean((0, 2, 3))}
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | changed)
