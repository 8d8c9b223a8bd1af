"""A convolution as one of a single column and one of a single row, such as 3x3 as 3x1 and 1x3 (Jaderberg et
al. 2014), in closed form and with regard to its inputs.

The vertical filters are the main directions of what the columns of a patch contribute to the output, the
covariance of a column being the mean over the places that it can have. Given these, the horizontal filters
are the least-squares solution on the whole patch, which includes the correlations between columns. Everything
follows from the second moments of the patches. The vertical filters are ordered by importance, so that one
solution serves every rank.
"""

import dataclasses
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckFailedError

if TYPE_CHECKING:
    import torch

DAMPINGS = (
    1e-6,
    1e-5,
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
    1e1,
    1e2,
)  # shares of the mean variance; inputs that are always zero have no variance


@dataclasses.dataclass(frozen=True)
class Separable:
    """``vertical`` [rank, c, height]: filters whose outputs have the same variance. z [rank * width] are
    their outputs in the columns of a patch. ``zz``: the second moments of z. ``yz`` [n, rank * width]: those
    of z with the convolution's outputs, whose total variance is ``yy``."""

    vertical: "torch.Tensor"
    zz: "torch.Tensor"
    yz: "torch.Tensor"
    yy: float

    def shares(self) -> list[float]:
        """The share of the variance of the outputs that the first 1, 2, ... vertical filters keep."""
        import torch

        whitened = torch.linalg.solve_triangular(cholesky(self.zz), self.yz.T, upper=False)
        kept = whitened.square().sum(1).view(len(self.vertical), -1).sum(1).cumsum(0)
        return [min(1.0, float(share)) for share in kept / max(self.yy, 1e-30)]

    def horizontal(self) -> "torch.Tensor":
        """The best horizontal filters [n, rank, width] for these vertical filters."""
        import torch

        solved = torch.cholesky_solve(self.yz.T, cholesky(self.zz)).T
        return solved.reshape(len(self.yz), len(self.vertical), -1)


def separate(weight: "torch.Tensor", xx: "torch.Tensor", rank: int) -> Separable:
    """The best ``rank`` vertical filters of a convolution.

    Args:
        weight: [n, c, height, width], float64.
        xx: centred second moments of its patches [c * height * width, ...], in the order of
            ``feature_maps.patches``.
        rank: at most min(height * c, width * n).
    """
    import torch

    n, c, height, width = weight.shape
    moments = xx.view(c, height, width, c, height, width)

    def between(h: int, g: int) -> torch.Tensor:
        return moments[:, :, h, :, :, g].reshape(height * c, height * c)

    column = sum((between(h, h) for h in range(width)), xx.new_zeros(())) / width
    root = cholesky(column)
    contributed = root.T @ weight.permute(1, 2, 0, 3).reshape(height * c, width * n)
    directions = torch.linalg.eigh(contributed @ contributed.T).eigenvectors.flip(1)[:, :rank]
    vertical = torch.linalg.solve_triangular(root.T, directions, upper=True).T
    zz = torch.stack(
        [torch.stack([vertical @ between(h, g) @ vertical.T for g in range(width)], 2) for h in range(width)],
        1,
    )
    zz = zz.reshape(width * rank, width * rank)
    flat = weight.reshape(n, -1)
    yx = flat @ xx
    columns = yx.view(n, c, height, width)
    yz = torch.stack([columns[..., h].reshape(n, height * c) @ vertical.T for h in range(width)], 2)
    yz = yz.reshape(n, width * rank)
    return Separable(vertical.view(rank, c, height), zz, yz, float((yx * flat).sum()))


def cholesky(moments: "torch.Tensor") -> "torch.Tensor":
    """The lower Cholesky factor of second moments, with the least damping that works. Where inputs vary
    little compared with their mean, rounding may make a centred moment negative.

    Raises:
        CheckFailedError: the matrix is not positive even with the largest damping.
    """
    import torch

    mean = float(moments.diagonal().mean())
    for damping in DAMPINGS:
        damped = moments.clone()
        damped.diagonal().add_(damping * mean + 1e-30)
        result = torch.linalg.cholesky_ex(damped)
        if not result.info:
            root: torch.Tensor = result.L
            return root
    raise CheckFailedError(
        f"the second moments of a layer's inputs (mean {mean:.3g}) are not positive; its weights or"
        " pictures are not finite"
    )


def in_two(form: Separable) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """The weights of the column [rank, c, height, 1] and of the row [n, rank, 1, width], and the matrix that
    both make of a patch [n, c * height * width]."""
    horizontal = form.horizontal()
    effective = joined(form.vertical, horizontal).flatten(1)
    return form.vertical[..., None], horizontal[:, :, None], effective


def joined(vertical: "torch.Tensor", horizontal: "torch.Tensor") -> "torch.Tensor":
    """The convolution [n, c, height, width] that equals vertical [rank, c, height] and then horizontal
    filters [n, rank, width]."""
    import torch

    return torch.einsum("rcv,nrh->ncvh", vertical, horizontal)


def by_weights(weight: "torch.Tensor", rank: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Vertical [rank, c, height] and horizontal filters [n, rank, width] from the singular value
    decomposition of the weights [n, c, height, width], without pictures."""
    import torch

    n, c, height, width = weight.shape
    torch.manual_seed(0)  # the randomised method starts from random directions
    unfolded = weight.permute(1, 2, 0, 3).reshape(height * c, width * n)
    left, values, right = torch.svd_lowrank(unfolded, q=min(rank + 16, *unfolded.shape), niter=4)
    roots = values[:rank].sqrt()
    return (left[:, :rank] * roots).T.reshape(rank, c, height), (right[:, :rank] * roots).view(
        n, width, rank
    ).transpose(1, 2)
