"""Finds the filters that the next layer misses least: the optimal brain surgeon on channels (Hassibi & Stork
1993), with the error of the next layer's outputs as the loss (He et al. 2017).

The consumer is the layer that reads the channels. W_:,c are all its weights that read channel c, and G =
Cov(x) + lambda I for its input channels over pictures and positions. Removing c, and fitting the consumer
again to the remaining channels, costs

    rho_c = ||W_:,c||^2 / [G^-1]_cc.

The covariance is centred because the repair that follows corrects the bias. The cheapest channel is removed,
G^-1 and W are updated to those of the refit, and so on. So of two equal channels the first costs nothing to
remove, and the second then does. The form is exact for a fully connected consumer of one position; for others
it assumes that the taps of a channel are uncorrelated, each with the channel's covariance, which keeps the
matrix C x C.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core.progress import Progress
from vgg_export.network import checkpoint as checkpoints

from . import feature_maps, least_squares

if TYPE_CHECKING:
    import torch

# lambda as a share of the mean variance of a channel: the smallest that the repair tries
DAMPING = least_squares.STRENGTHS[0]


@dataclasses.dataclass(frozen=True)
class Removal:
    """``order``: the channels [C] of a convolution in the order of their removal. ``costs``: the cost of
    removing the first 0, 1, ... C of them, as a share of the variance of the consumer's outputs: 0 for none
    and 1 for all."""

    order: "torch.Tensor"
    costs: tuple[float, ...]

    def at_widths(self, multiple: int) -> dict[int, float]:
        """The cost by width, for every multiple of ``multiple`` and for the full width (0)."""
        full = len(self.order)
        return {width: self.costs[full - width] for width in (*range(multiple, full, multiple), full)}


def removals(
    original: checkpoints.Checkpoint, pictures: "torch.Tensor", scratch: Path, progress: Progress
) -> dict[str, Removal]:
    """The order of removal of every convolution's filters, in one pass of pictures [N, channels, px, px]
    through the original. A convolution that gives the logits is left out.

    ``scratch`` is a folder for maps that do not fit into memory.
    """
    import torch

    chain, tensors = original.chain, original.tensors
    pairs = [(site, consumer) for site, consumer in itertools.pairwise(chain.sites) if site.is_conv]
    maps, found = feature_maps.begun(chain, pictures, tensors, scratch), {}
    with torch.inference_mode(), progress.task("measuring the cost of each filter", len(pairs)) as task:
        for site, consumer in pairs:
            maps.advance(*feature_maps.forward(chain, site.name, tensors))
            channels, weight = site.layer.outputs, tensors[f"{consumer.name}.weight"]
            covariance = _covariance(maps, len(pictures), channels)
            found[site.name] = removal(covariance, gram(weight, channels), DAMPING)
            task.advance()
    return found


def _covariance(maps: feature_maps.Maps, count: int, channels: int) -> "torch.Tensor":
    """The covariance [C, C] of the channels over all pictures and positions, in float64. Behind the
    flattening the features are ordered channel * positions + position."""
    sums = least_squares.Sums(channels, 1)
    for a in range(0, count, feature_maps.CHUNK):
        x = maps.read(a, min(a + feature_maps.CHUNK, count))
        rows = x.view(len(x), channels, -1).transpose(1, 2).reshape(-1, channels)
        sums.add(rows, rows[:, :1])
    return sums.moments().xx.cpu()  # the removal is many small steps, one after the other


def gram(weight: "torch.Tensor", channels: int) -> "torch.Tensor":
    """The products [C, C] of the weights that read channel c and those that read channel d, in float64:
    summed over the outputs and taps of a convolution [n, C, height, width], or the outputs and positions of a
    fully connected layer [n, C * positions]."""
    import torch

    total = torch.zeros(channels, channels, dtype=torch.float64)
    for tap in weight.view(len(weight), channels, -1).unbind(2):
        total += tap.double().T @ tap.double()
    return total


def removal(covariance: "torch.Tensor", readers: "torch.Tensor", damping: float) -> Removal:
    """Remove the cheapest channel, fit again, and so on until none is left.

    Args:
        covariance: of the channels, [C, C] float64. readers: ``gram`` of the consumer's weights, [C, C]
        float64. The costs need no more of W, and it is small even where W is large.
        damping: lambda as a share of the mean variance.
    """
    import torch

    variance = max(1e-30, float((readers * covariance).sum()))
    damped = covariance.clone()
    damped.diagonal().add_(damping * float(covariance.diagonal().mean()) + 1e-12)
    inverse, readers = torch.linalg.inv(damped), readers.clone()
    there = torch.ones(len(damped), dtype=torch.bool)
    order, costs, total = [], [0.0], 0.0
    for _ in range(len(damped)):
        diagonal = torch.where(there, inverse.diagonal(), 1.0)
        each = torch.where(there, readers.diagonal().clamp_min(0) / diagonal, torch.inf)
        c = int(each.argmin())
        total += float(each[c])
        order.append(c)
        costs.append(min(1.0, total / variance))
        # the refit hands the weights that read c on to the other channels: W - W_c g, with g the row of G^-1
        # divided by its diagonal
        share, column = inverse[c] / inverse[c, c], readers[c].clone()
        readers += (
            torch.outer(share, share) * column[c] - torch.outer(column, share) - torch.outer(share, column)
        )
        inverse -= torch.outer(inverse[:, c].clone(), share)
        there[c] = False
    return Removal(torch.tensor(order), tuple(costs))
