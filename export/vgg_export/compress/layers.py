"""The layers of a chain as functions of tensors, one place at a time."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vgg_export.core.devices import device
from vgg_export.network import modules
from vgg_export.network.activations import Activation
from vgg_export.network.chain import Chain, Part, Placed, Scale, Site

if TYPE_CHECKING:
    import torch
    from torch import nn

    Tensors = Mapping[str, torch.Tensor]
    Step = Callable[[torch.Tensor], torch.Tensor]


def weighted(
    part: Part, x: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor | None"
) -> "torch.Tensor":
    """A convolution or fully connected layer of the geometry of ``part`` on x [N, c, ...]."""
    from torch.nn import functional

    if part.kernel is None:
        return functional.linear(x, weight, bias)
    top, left, bottom, right = part.padding
    if (top, left) == (bottom, right):
        return functional.conv2d(x, weight, bias, part.stride, (top, left))
    return functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, bias, part.stride)


def whole(site: Site) -> Part:
    """The layer of a place as one, even if it is made of two."""
    (part,) = site.made_of(None).parts()
    return part


def behind(site: Site, tensors: "Tensors") -> "Step":
    """What follows a layer up to the input of the next one: its activation, then scales, pools and the
    flattening. The step may change its input in place."""
    activate = Activation.of(site.layer.activation).function()
    rest = _between(site.behind, tensors)

    def step(x: "torch.Tensor") -> "torch.Tensor":
        x = activate(x)
        for layer in rest:
            x = layer(x)
        return x

    return step


def before_first(chain: Chain, tensors: "Tensors") -> "Step | None":
    """What comes before the first convolution or fully connected layer; None where there is nothing."""
    layers = _between(chain.before_first, tensors)
    if not layers:
        return None

    def step(x: "torch.Tensor") -> "torch.Tensor":
        x = x.clone()  # an activation changes it in place
        for layer in layers:
            x = layer(x)
        return x

    return step


def _between(layers: tuple[Placed, ...], tensors: "Tensors") -> "list[nn.Module]":
    """The modules of layers between others, with their tensors."""
    found = []
    for placed in layers:
        module = modules.between(placed)
        if module is None:
            continue
        if isinstance(placed.layer, Scale):
            name = placed.layer.name
            module.load_state_dict({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})
        found.append(module.to(device()).eval().requires_grad_(requires_grad=False))
    return found


def logits_of(chain: Chain, name: str, tensors: "Tensors") -> "Step":
    """The step from the outputs [N, n] of a fully connected layer, before its activation, to the logits [N,
    units]. It leaves its input as it is."""
    places = [site.name for site in chain.sites]
    first, *later = chain.sites[places.index(name) :]
    start = behind(first, tensors)
    steps = [(site, behind(site, tensors)) for site in later]

    def step(x: "torch.Tensor") -> "torch.Tensor":
        x = start(x.clone())
        for site, rest in steps:
            weight, bias = (tensors[f"{site.name}.{part}"] for part in ("weight", "bias"))
            x = rest(weighted(whole(site), x, weight, bias))
        return x

    return step
