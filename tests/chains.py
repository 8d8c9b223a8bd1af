"""Small chains of many kinds with drawn weights."""

import dataclasses

import torch

from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import modules
from vgg_export.network.activations import NONE
from vgg_export.network.chain import (
    Activate,
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool,
    Chain,
    Conv,
    Factor,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Scale,
)
from vgg_export.network.provenance import Provenance
from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.input_spec import InputSpec


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A chain without its input, which has ``channels`` and sides of ``px``. ``ops``: the operators of its
    exported graph."""

    layers: tuple[Layer, ...]
    ops: dict[str, int]
    px: int = 32
    channels: int = 3
    output: str = outputs.SOFTMAX


def last(units: int = 5, number: int = 1) -> Linear:
    return Linear(f"fc{number}", units, NONE)


def of_activation(text: str, *ops: str) -> Drawn:
    """The activation behind convolutions and in the head. ``ops``: its operators."""
    convs = (Conv("conv1_1", 8, activation=text), MaxPool(), Conv("conv2_1", 8, activation=text), AvgPool())
    whole = {"AveragePool": 1, "Conv": 2, "Gemm": 2, "MaxPool": 1, "Reshape": 1} | dict.fromkeys(ops, 3)
    return Drawn((*convs, Flatten(), Linear("fc1", 16, text), last(number=2)), whole)


GLOBAL = AdaptiveAvgPool((1, 1))
CHAINS = {
    "global pool, one fully connected layer": Drawn(
        (Conv("conv1_1", 8), MaxPool(), Conv("conv2_1", 16), GLOBAL, Flatten(), last()),
        {"Conv": 2, "Gemm": 1, "GlobalAveragePool": 1, "MaxPool": 1, "Relu": 2, "Reshape": 1},
    ),
    "32 px without adaptive pool": Drawn(
        (
            Conv("conv1_1", 8),
            MaxPool(),
            Conv("conv2_1", 16),
            MaxPool(),
            Flatten(),
            Linear("fc1", 20),
            last(5, 2),
        ),
        {"Conv": 2, "Gemm": 2, "MaxPool": 2, "Relu": 3, "Reshape": 1},
    ),
    "large kernels, strides": Drawn(
        (
            Conv("conv1_1", 8, (7, 7), (2, 2), (3, 3, 3, 3)),
            Conv("conv1_2", 16, (5, 5), (2, 2), (2, 2, 2, 2)),
            Flatten(),
            last(),
        ),
        {"Conv": 2, "Gemm": 1, "Relu": 2, "Reshape": 1},
    ),
    "scales": Drawn(
        (
            Conv("conv1_1", 8),
            Scale("scale1"),
            Conv("conv1_2", 16),
            MaxPool(),
            Flatten(),
            Linear("fc1", 12),
            Scale("scale2"),
            last(5, 2),
        ),
        {"Conv": 4, "Gemm": 2, "MaxPool": 1, "Relu": 3, "Reshape": 3},
    ),
    "activations behind pools, one channel": Drawn(
        (
            Conv("conv1_1", 8, activation=NONE),
            MaxPool(),
            Activate("relu"),
            Conv("conv2_1", 8, activation=NONE),
            AvgPool(),
            Activate("relu"),
            Conv("conv3_1", 8, activation=NONE),
            MaxPool(),
            Activate("silu"),
            Flatten(),
            last(),
        ),
        {
            "AveragePool": 1,
            "Conv": 4,
            "Gemm": 1,
            "MaxPool": 2,
            "Mul": 1,
            "Relu": 2,
            "Reshape": 1,
            "Sigmoid": 1,
        },
        px=48,
        channels=1,
    ),
    "pool and activation first, pool with ceil": Drawn(
        (
            AvgPool(),
            Activate("tanh"),
            Conv("conv1_1", 8),
            AvgPool((3, 3), (2, 2), ceil=True),
            Flatten(),
            last(),
        ),
        {"AveragePool": 2, "Conv": 2, "Gemm": 1, "Relu": 1, "Reshape": 1, "Tanh": 1},
    ),
    "asymmetric padding": Drawn(
        (
            Conv("conv1_1", 8, stride=(2, 2), padding=(0, 0, 1, 1)),
            Conv("conv1_2", 8, (4, 3), padding=(1, 0, 2, 2)),
            MaxPool((3, 3), (2, 2), (1, 1)),
            Flatten(),
            last(),
        ),
        {"Conv": 2, "Gemm": 1, "MaxPool": 1, "Relu": 2, "Reshape": 1},
    ),
    "convolution as classifier": Drawn(
        (
            Conv("conv1_1", 8),
            MaxPool(),
            Conv("conv2_1", 5, (1, 1), padding=(0, 0, 0, 0), activation=NONE),
            GLOBAL,
            Flatten(),
        ),
        {"Conv": 2, "GlobalAveragePool": 1, "MaxPool": 1, "Relu": 1, "Reshape": 1},
    ),
    "no convolution": Drawn(
        (Flatten(), Linear("fc1", 20), last(5, 2)), {"Conv": 1, "Gemm": 2, "Relu": 1, "Reshape": 1}
    ),
    "global max-pool": Drawn(
        (Conv("conv1_1", 8), AdaptiveMaxPool((1, 1)), Flatten(), last()),
        {"Conv": 1, "Gemm": 1, "MaxPool": 1, "Relu": 1, "Reshape": 1},
    ),
    "uneven adaptive pool": Drawn(
        (Conv("conv1_1", 8), AdaptiveAvgPool((7, 7)), Flatten(), last()),
        {"Conv": 1, "Gemm": 1, "Relu": 1, "Reshape": 1},
    ),
    "even adaptive pool": Drawn(
        (Conv("conv1_1", 8), AdaptiveAvgPool((8, 4)), Flatten(), last()),
        {"AveragePool": 1, "Conv": 1, "Gemm": 1, "Relu": 1, "Reshape": 1},
    ),
    "limits in a row": Drawn(
        (Conv("conv1_1", 8), MaxPool(), Activate("relu6"), Activate("relu"), Flatten(), Flatten(), last()),
        {"Clip": 1, "Conv": 1, "Gemm": 1, "MaxPool": 1, "Reshape": 1},
    ),
    "factorised": Drawn(
        (
            Conv("conv1_1", 8),
            Conv("conv1_2", 8, (5, 5), (2, 2), (2, 2, 2, 2), factor=Factor("spatial", 4)),
            Conv("conv1_3", 8, (3, 3), (2, 2), (0, 0, 1, 1), factor=Factor("spatial", 4)),
            Conv("conv1_4", 8, factor=Factor("channel", 4)),
            Flatten(),
            Linear("fc1", 16, "tanh", Factor("linear", 6)),
            last(5, 2),
        ),
        {"Conv": 7, "Gemm": 3, "Relu": 4, "Reshape": 1, "Tanh": 1},
    ),
    "one sigmoid": Drawn(
        (Conv("conv1_1", 8), MaxPool(), Flatten(), Linear("fc1", 12, "sigmoid"), last(1, 2)),
        {"Conv": 1, "Gemm": 2, "MaxPool": 1, "Relu": 1, "Reshape": 1, "Sigmoid": 1},
        output=outputs.SIGMOID,
    ),
    "multi-label": Drawn(
        (Conv("conv1_1", 8), MaxPool(), Conv("conv2_1", 8), GLOBAL, Flatten(), last(4)),
        {"Conv": 2, "Gemm": 1, "GlobalAveragePool": 1, "MaxPool": 1, "Relu": 2, "Reshape": 1},
        output=outputs.MULTI_LABEL,
    ),
    "leaky_relu": of_activation("leaky_relu(0.2)", "LeakyRelu"),
    "relu6": of_activation("relu6", "Clip"),
    "elu": of_activation("elu(0.7)", "Elu"),
    "tanh": of_activation("tanh", "Tanh"),
    "silu": of_activation("silu", "Sigmoid", "Mul"),
    "gelu": of_activation("gelu", "Gelu"),
    "gelu_tanh": of_activation("gelu_tanh", "Gelu"),
    "none": of_activation("none"),
}


def checkpoint(drawn: Drawn, seed: int = 0) -> checkpoints.Checkpoint:
    """The chain with weights that keep its maps alive, and scales from a tenth to ten."""
    grey = (0.5,) * drawn.channels
    network = Chain(InputSpec(drawn.px, drawn.px, grey, grey, drawn.channels), drawn.layers, drawn.output)
    torch.manual_seed(seed)
    tensors = {name: tensor.detach().clone() for name, tensor in modules.build(network).state_dict().items()}
    for name, tensor in tensors.items():
        if name.endswith("weight"):
            tensor.mul_(1.7 if tensor.dim() > 1 else 10 ** (2 * torch.rand_like(tensor) - 1))
    labels = tuple(f"class {k}" for k in range(network.classes))
    return checkpoints.Checkpoint(network, tensors, labels, Provenance("file", "drawn for tests"))
