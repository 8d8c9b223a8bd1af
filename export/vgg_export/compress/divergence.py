"""How far the logits of one network are from those of another, as a loss in torch.

``vgg_runtime.bundle.metrics`` computes the same in numpy for figures.
"""

from typing import TYPE_CHECKING

from vgg_runtime.bundle import outputs

if TYPE_CHECKING:
    import torch


def alternatives(logits: "torch.Tensor", output: str) -> "torch.Tensor":
    """Logits [N, units] as those of what is chosen between: [N, classes], where a single sigmoid is two
    classes, or [N, labels, 2] (no and yes) of a multi-label network."""
    import torch

    if output == outputs.SIGMOID:
        return torch.cat([torch.zeros_like(logits), logits], 1)
    if output == outputs.MULTI_LABEL:
        return torch.stack([torch.zeros_like(logits), logits], 2)
    return logits


def divergence(
    logits: "torch.Tensor", reference: "torch.Tensor", output: str, temperature: float = 1.0
) -> "torch.Tensor":
    """The sum over a batch of KL(reference || logits) in nats, at a temperature; of a multi-label network the
    mean over its labels. Both are [N, units]."""
    from torch.nn.functional import kl_div

    wanted, found = (alternatives(one / temperature, output).log_softmax(-1) for one in (reference, logits))
    total: torch.Tensor = kl_div(found, wanted, reduction="sum", log_target=True)
    return total / logits.shape[1] if output == outputs.MULTI_LABEL else total
