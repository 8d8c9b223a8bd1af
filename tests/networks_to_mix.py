"""A network of which some layers are cheaper in int8 and others in float on a core without a dot product."""

import torch
from conftest import CLASSES

from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import modules
from vgg_export.network.chain import Chain, Factor, vgg_layers
from vgg_export.network.provenance import Provenance
from vgg_runtime.bundle.input_spec import for_input


def factorised() -> checkpoints.Checkpoint:
    """A VGG11 at 64 px with random weights and layers of every kind, wide enough behind for Winograd."""
    stages = ((16,), (32,), (128, 128), (128, 128), (128, 128))
    network = Chain(for_input(64), vgg_layers(stages, (64, 16, len(CLASSES))))
    factors = {
        "conv2_1": Factor("spatial", 16),
        "conv3_1": Factor("channel", 32),
        "fc1": Factor("linear", 16),
    }
    network = network.with_factors(factors | {"conv4_2": Factor("spatial", 64)})
    torch.manual_seed(0)
    model = modules.build(network)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return checkpoints.Checkpoint(network, tensors, CLASSES, Provenance("random", "for tests"))
