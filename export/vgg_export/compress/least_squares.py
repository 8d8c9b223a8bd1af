"""Layers fitted in closed form: ridge regression on second moments, or on pictures in the dual form."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vgg_export.core import processes
from vgg_export.core.devices import device, here
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Site
from vgg_runtime.bundle.outputs import SOFTMAX

from . import layers
from .divergence import divergence

if TYPE_CHECKING:
    import torch


STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # lambda, as a share of the mean variance of an input
USUAL_STRENGTH = 1e-1  # what is tried first: the best of most layers
# lambda where there are fewer pictures than inputs, as a share of the mean eigenvalue
STRENGTHS_BY_PICTURE = (1e-3, 1e-2, 1e-1, 1.0)
# share of uncorrelated inputs in the covariance that chooses a fully connected layer's directions
PRIORS = (0.0, 0.1, 0.5)
DAMPINGS = (0.01, 0.1, 1.0)  # weight of all directions, added to those that the logits are sensitive to
USUAL_DAMPING = 0.1
COMBINATIONS = 16  # random combinations of the logits per picture; their gradients stand for all
SPARE_DIRECTIONS, ITERATIONS = 32, 5  # of the subspace iteration
BLOCK = 768  # inputs at a time whose second moments are summed


@dataclasses.dataclass(frozen=True)
class Moments:
    """Centred second moments of n samples of x [d] and y [k] in float64: xx [d, d] and yx [k, d]; yy is the
    total variance of y."""

    n: int
    xx: "torch.Tensor"
    yx: "torch.Tensor"
    yy: float
    mean_x: "torch.Tensor"
    mean_y: "torch.Tensor"

    def error(self, weight: "torch.Tensor") -> float:
        """The mean squared distance of y from weight [k, d] times x, both centred."""
        return max(0.0, float(self.yy - 2 * (weight * self.yx).sum() + ((weight @ self.xx) * weight).sum()))


class Sums:
    """Accumulates Moments from chunks of samples."""

    def __init__(self, inputs: int, outputs: int) -> None:
        import torch

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device())

        self._n, self._yy = 0, 0.0
        self._xx, self._yx = zeros(inputs, inputs), zeros(outputs, inputs)
        self._x, self._y = zeros(inputs), zeros(outputs)

    def add(self, x: "torch.Tensor", y: "torch.Tensor") -> None:
        """Samples x [m, d] and y [m, k]; products in float32 per chunk, sums in float64."""
        self._n += len(x)
        # the half above the diagonal: the rest of a symmetric product is not multiplied out
        for a in range(0, x.shape[1], BLOCK):
            b = a + BLOCK
            self._xx[a:b, a:] += x[:, a:b].T @ x[:, a:]
        self._yx += y.T @ x
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._yy += float(y.double().square().sum())

    def of_all(self) -> "Sums":
        """These sums over the samples of all processes; this process's are used up."""
        for tensor in (self._xx, self._yx, self._x, self._y):
            processes.add_up(tensor)
        self._n, self._yy = int(processes.total(self._n)), processes.total(self._yy)
        return self

    def moments(self) -> Moments:
        """The moments of all added samples; the sums are used up."""
        import torch

        n = max(1, self._n)
        x, y = self._x / n, self._y / n
        for a in range(BLOCK, len(self._xx), BLOCK):
            self._xx[a:, a - BLOCK : a] = self._xx[a - BLOCK : a, a:].T
        xx, yx = self._xx.div_(n), self._yx.div_(n)
        return Moments(
            self._n, xx.sub_(torch.outer(x, x)), yx.sub_(torch.outer(y, x)), self._yy / n - float(y @ y), x, y
        )


def ridge(start: "torch.Tensor", fitting: Moments, held: Moments) -> "tuple[torch.Tensor, float | None]":
    """The weight [k, d] fitted with the lambda that has the least error on the held-out samples, and that
    lambda; ``start`` and None if no fit is better than ``start``. The strengths are tried from the usual one
    on as long as that helps, so that of two minima the one next to it is found."""
    import torch

    missing = (fitting.yx - start @ fitting.xx).T
    mean = float(fitting.xx.diagonal().mean())
    best: tuple[float, torch.Tensor, float | None] = (held.error(start), start, None)

    def error(strength: float) -> float:
        nonlocal best
        damped = fitting.xx.clone()
        damped.diagonal().add_(strength * mean + 1e-12)
        weight = start + torch.cholesky_solve(missing, torch.linalg.cholesky(damped)).T
        found = held.error(weight)
        if found < best[0]:
            best = (found, weight, strength)
        return found

    _go_down(error, STRENGTHS, STRENGTHS.index(USUAL_STRENGTH))
    return best[1], best[2]


def _go_down(error: Callable[[float], float], values: Sequence[float], start: int) -> None:
    """Ask for the error at values from place ``start`` on, to either side as long as that helps."""
    first = error(values[start])
    for way in (1, -1):
        last, place = first, start + way
        while 0 <= place < len(values) and (found := error(values[place])) < last:
            last, place = found, place + way
        if last < first:
            return


def main_directions(covariance: "torch.Tensor", rank: int) -> "torch.Tensor":
    """The eigenvectors [n, rank] of the largest eigenvalues of a covariance [n, n]."""
    import torch

    vectors: torch.Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors[:, -rank:]


def main_directions_of(
    times: "Callable[[torch.Tensor], torch.Tensor]", size: int, rank: int
) -> "torch.Tensor":
    """About the eigenvectors [size, rank] of the largest eigenvalues of a covariance that is known by what it
    makes of vectors [size, k]: subspace iteration from random directions, some more than are wanted (Halko,
    Martinsson and Tropp 2011, section 5.1)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    basis = here(torch.randn(size, min(rank + SPARE_DIRECTIONS, size), generator=generator))
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(times(basis)).Q
    vectors = torch.linalg.eigh(basis.T @ times(basis)).eigenvectors
    directions: torch.Tensor = basis @ vectors.flip(1)[:, :rank]
    return directions


def in_two_by_directions(
    weight: "torch.Tensor", basis: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """A convolution [n, c, height, width] of fewer filters [rank, c, height, width] and a 1x1 convolution [n,
    rank, 1, 1], by the directions ``basis`` [n, rank] of its outputs that are kept, and the matrix that both
    make of a patch [n, c * height * width]."""
    reduced = basis.T @ weight.flatten(1)
    return reduced.view(-1, *weight.shape[1:]), basis[:, :, None, None], basis @ reduced


@dataclasses.dataclass(frozen=True)
class Centred:
    """Rows of the fitting and of the held-out pictures, minus the mean of the fitting rows."""

    mean: "torch.Tensor"
    fit: "torch.Tensor"
    held: "torch.Tensor"

    @classmethod
    def of(cls, rows: "torch.Tensor", fitted: int) -> "Centred":
        mean = rows[:fitted].mean(0)
        return cls(mean, rows[:fitted] - mean, rows[fitted:] - mean)


def linear_in_parts(
    x: "torch.Tensor", first: "torch.Tensor", second: "torch.Tensor | None"
) -> "torch.Tensor":
    """x [N, d] through one fully connected layer or through two."""
    out = x @ first.T
    return out if second is None else out @ second.T


def ridge_by_picture(start: "torch.Tensor", x: Centred, y: Centred) -> "tuple[torch.Tensor, float | None]":
    """``ridge`` for a layer with more inputs than there are pictures: the dual form, with one unknown per
    picture and output."""
    import torch

    kernel = (x.fit @ x.fit.T).double()
    missing = (y.fit - x.fit @ start.T).double()
    across, known = (x.held @ x.fit.T).double(), x.held @ start.T
    best_error, best = float((y.held - known).square().sum()), None
    for strength in STRENGTHS_BY_PICTURE:
        damped = kernel.clone()
        damped.diagonal().add_(strength * float(kernel.diagonal().mean()) + 1e-12)
        share = torch.linalg.solve(damped, missing)
        error = float((y.held - known - (across @ share).float()).square().sum())
        if error < best_error:
            best_error, best = error, (share, strength)
    if best is None:
        return start, None
    return start + best[0].float().T @ x.fit, best[1]


@dataclasses.dataclass(frozen=True)
class Behind:
    """Judges a fully connected layer's outputs by the logits that the original's later layers compute from
    them. ``said`` [N, n]: the original layer's outputs on the held-out pictures, before its activation."""

    original: checkpoints.Checkpoint
    layer: str
    said: "torch.Tensor"

    def logits(self, outputs: "torch.Tensor") -> "torch.Tensor":
        """The logits [N, units] from outputs [N, n] before the activation."""
        return layers.logits_of(self.original.chain, self.layer, self.original.tensors)(outputs)

    def error(self, outputs: "torch.Tensor") -> float:
        """The squared distance of the logits from the original's, as a share of the variance of these."""
        wanted = self.logits(self.said)
        return float(
            (self.logits(outputs) - wanted).square().sum()
            / (wanted - wanted.mean(0)).square().sum().clamp_min(1e-30)
        )

    def divergence(self, outputs: "torch.Tensor") -> float:
        """The mean KL from the original's probabilities, in nats."""
        found, wanted = (self.logits(of) for of in (outputs, self.said))
        return float(divergence(found, wanted, self.original.chain.output) / len(found))


def important(original: checkpoints.Checkpoint, layer: str, said: "torch.Tensor") -> "torch.Tensor":
    """Directions [m, n] in which the logits are sensitive to a fully connected layer's outputs ``said`` [N,
    n] before the activation: the gradients, at each picture, of random combinations of the logits (their
    second moments are what a change of the outputs does to the logits, to first order). Logits that a softmax
    follows are centred, because it leaves out what they have in common."""
    import torch

    chain, tensors = original.chain, original.tensors
    places = [site.name for site in chain.linears]
    sites = chain.linears[places.index(layer) :]
    slopes, x = [], said
    for k, site in enumerate(sites):
        if k:
            x = torch.nn.functional.linear(x, tensors[f"{site.name}.weight"], tensors[f"{site.name}.bias"])
        x, slope = _with_slope(site, tensors, x)
        slopes.append(slope)
    generator = torch.Generator().manual_seed(0)
    rows = here(torch.randn(len(said), COMBINATIONS, chain.units, generator=generator))
    if chain.output == SOFTMAX:
        rows -= rows.mean(2, keepdim=True)
    rows *= slopes[-1][:, None]
    for site, slope in zip(sites[:0:-1], slopes[-2::-1], strict=True):
        rows = rows @ tensors[f"{site.name}.weight"] * slope[:, None]
    return rows.flatten(0, 1)


def _with_slope(
    site: Site, tensors: "dict[str, torch.Tensor]", x: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """What follows a fully connected layer, of its outputs x [N, n], and the derivative there, both [N, n].
    All that can follow one treats each feature by itself."""
    import torch

    with torch.inference_mode(mode=False), torch.enable_grad():
        start = x.clone().requires_grad_(True)
        made = layers.behind(site, tensors)(start.clone())
        (slope,) = torch.autograd.grad(made.sum(), start)
    return made.detach(), slope


@dataclasses.dataclass(frozen=True)
class _Covariance:
    """That of a layer's outputs, as its two parts, of trace 1 each. ``said`` [N, n]: the outputs.
    ``uncorrelated`` [n, n]: what uncorrelated inputs would make of it."""

    said: "torch.Tensor"
    uncorrelated: "torch.Tensor"

    @classmethod
    def of(cls, said: "torch.Tensor", uncorrelated: "torch.Tensor") -> "_Covariance":
        """The parts, of which each is made one of trace 1."""
        return cls(said / said.norm().clamp_min(1e-15), uncorrelated / uncorrelated.trace().clamp_min(1e-30))

    def weighted_times(self, root: "torch.Tensor", prior: float, v: "torch.Tensor") -> "torch.Tensor":
        """root^T C root times v [n, k], where ``prior`` is the share of the second part in C. Multiplied out,
        that matrix would take several times as long."""
        v = root @ v
        return root.T @ (self.said.T @ (self.said @ v) * (1 - prior) + self.uncorrelated @ v * prior)


def in_two_by_picture(
    weight: "torch.Tensor",
    x: Centred,
    rows: "torch.Tensor",
    rank: int,
    cost: "Callable[[torch.Tensor, torch.Tensor], float]",
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The two parts [rank, d] and [n, rank] of a fully connected layer. They keep the directions of its
    outputs that vary most and that the logits are sensitive to.

    With G the second moments of ``rows`` (``important``), damped, and C the covariance of the outputs, the
    best for tr (W - W') C_x (W - W')^T G are the main directions of G^1/2 C G^1/2. A few hundred pictures
    estimate neither well, so a share of the covariance for uncorrelated inputs is mixed into C, and a
    multiple of the identity is added to G. Of the shares that are tried those are taken whose parts have the
    least ``cost`` on held-out pictures.
    """
    import torch

    said = x.fit @ weight.T
    covariance = _Covariance.of(said, (weight * x.fit.square().mean(0)) @ weight.T)
    sensitive = rows.T @ rows
    sensitive /= sensitive.diagonal().mean().clamp_min(1e-30)
    best_cost, best, best_prior = math.inf, None, 0.0
    # one after the other: all priors at the usual damping, and the best of them at the others
    for damping in (USUAL_DAMPING, *(each for each in DAMPINGS if each != USUAL_DAMPING)):
        root = torch.linalg.cholesky(sensitive + damping * here(torch.eye(len(sensitive))))
        for prior in PRIORS if damping == USUAL_DAMPING else (best_prior,):
            times = functools.partial(covariance.weighted_times, root, prior)
            directions = main_directions_of(times, len(root), rank)
            first = directions.T @ root.T @ weight
            second = torch.linalg.solve_triangular(root.T, directions, upper=True)
            found = cost(first, second)
            if found < best_cost:
                best_cost, best, best_prior = found, (first, second), prior
    assert best is not None  # there are candidates
    return best[0].contiguous(), best[1].contiguous()
