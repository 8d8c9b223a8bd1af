"""Small networks of PyTorch with weights that tell them apart, and how what was read of one is compared with
it."""

from typing import Any

import torch
from torch import nn
from torchvision.models.vgg import VGG, make_layers

from vgg_export.network import modules
from vgg_export.network.chain import Chain
from vgg_export.network.readers.found import Found

TOLERANCE = 1e-4  # of the largest logit


def initialise(network: nn.Module) -> nn.Module:
    """Weights that keep the scale, and batch norms that do something."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -0.2, 0.2)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.8, 1.2)
                nn.init.uniform_(layer.bias, -0.1, 0.1)
            layer.running_mean.uniform_(-0.1, 0.1)
            assert layer.running_var is not None
            layer.running_var.uniform_(0.8, 1.2)
    return network.eval()


def chain_of(found: Found) -> Chain:
    return Chain(found.input, found.network.layers, found.output)


def difference(found: Found, network: nn.Module) -> float:
    """The largest difference between the logits of the chain and of the network itself, relative to the
    largest logit."""
    chain = chain_of(found)
    built = modules.build(chain).eval()
    built.load_state_dict(found.network.tensors)
    x = torch.randn(4, chain.input.channels, chain.input.px, chain.input.px)
    with torch.inference_mode():
        expected, got = network.eval()(x), built(x)
    return float((got - expected).abs().max() / expected.abs().max())


def narrow_vgg(batch_norm: bool = False, classes: int = 5) -> VGG:
    """torchvision's own class with few channels."""
    with torch.device("meta"):
        network = VGG(nn.Identity(), init_weights=False)
    network.features = make_layers([4, "M", 8, "M", 8, 8, "M", 16, "M", 16, "M"], batch_norm)
    network.classifier = nn.Sequential(
        *(
            nn.Linear(16 * 49, 24),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(24, 24),
            nn.ReLU(True),
            nn.Dropout(),
        ),
        nn.Linear(24, classes),
    )
    initialise(network)
    return network


def small(*between: nn.Module, head: nn.Module | None = None, **conv: Any) -> Any:
    """Two convolutions with layers between, and a head, for 8 px."""
    settings: dict[str, Any] = {"kernel_size": 3, "padding": 1} | conv
    layers = [
        nn.Conv2d(3, 6, **settings),
        *between,
        nn.Conv2d(6, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
    ]
    network = nn.Sequential(*layers, nn.Flatten(), head or nn.Linear(16, 3))
    initialise(network)
    return network
