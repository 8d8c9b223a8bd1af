"""The factorised forms of an original's convolutions for its own inputs, at every rank at once.

Everything follows from the second moments of the patches that each convolution sees in the original, which
are measured once. A form keeps its directions in order of importance, so that a rank is a cut through them.
The shares of the variance that the ranks keep are the sensitivity table; the forms themselves, cut to the
ranks of a chain, are a network that costs no further pass over the pictures (``reconstruct`` fits a better
one, layer after layer, to the inputs that the smaller network really has).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core import processes
from vgg_export.core.devices import here
from vgg_export.core.files import atomic_file, opened_by_library
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain, Conv, Factor, Site

from . import separable
from .feature_maps import patches
from .least_squares import Moments, Sums

if TYPE_CHECKING:
    import torch

Table = dict[str, dict[str, tuple[float, ...]]]  # shares of variance at rank 1, 2, ..., by layer and form


@dataclasses.dataclass(frozen=True)
class Solved:
    """The forms of one original. ``shares``: the sensitivity table. ``tensors``: by layer, form and part
    ("conv2_1.spatial.vertical"), float32. ``mean``: the mean patch of a layer ("conv2_1.mean")."""

    shares: Table
    tensors: "Mapping[str, torch.Tensor]"

    def factors(self, site: Site, factor: Factor, weight: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """The tensors of a convolution made of two. ``weight``: its own [n, c, height, width]."""
        import torch

        name, rank = site.name, factor.rank

        def part(of: str) -> "torch.Tensor":
            return self.tensors[f"{name}.{factor.kind}.{of}"].double()

        mean, (_, *shape) = self.tensors[f"{name}.mean"].double(), weight.shape
        if factor.kind == "spatial":
            columns = weight.shape[3] * rank
            vertical, zz, yz = part("vertical")[:rank], part("zz"), part("yz")
            form = separable.Separable(vertical, zz[:columns, :columns], yz[:, :columns], 1.0)
            horizontal = form.horizontal()
            first, second = vertical[..., None], horizontal[:, :, None]
            # of both parts in turn, which costs less than what they make together
            reduced = torch.einsum("rcv,cvh->rh", vertical, mean.view(*shape))
            said = torch.einsum("nrh,rh->n", horizontal, reduced)
        else:
            basis = part("basis")[:, :rank]
            first, second = (basis.T @ weight.flatten(1).double()).view(-1, *shape), basis[:, :, None, None]
            said = basis @ (first.flatten(1) @ mean)
        return {
            f"{name}_reduce.weight": first.float().contiguous(),
            f"{name}_expand.weight": second.float().contiguous(),
            "bias": (weight.flatten(1).double() @ mean - said).float(),  # what the bias must make up for
        }

    def unfitted(self, original: checkpoints.Checkpoint, chain: Chain) -> checkpoints.Checkpoint:
        """The original with its convolutions in the forms and ranks of ``chain``, and its fully connected
        layers as they are."""
        factors = {site.name: site.layer.factor for site in chain.convs if site.layer.factor}
        tensors = dict(original.tensors)
        for name, factor in factors.items():
            weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")
            made = self.factors(chain.site(name), factor, weight)
            tensors[f"{name}_expand.bias"] = bias + made.pop("bias")
            tensors |= made
        return dataclasses.replace(original, chain=original.chain.with_factors(factors), tensors=tensors)


def forms(chain: Chain) -> Iterator[tuple[Site, tuple[int, int], tuple[str, ...]]]:
    """Every convolution with its kernel and the forms that it can take: a kernel of one row or column has no
    spatial form."""
    for site in chain.convs:
        assert isinstance(site.layer, Conv)
        kernel = site.layer.kernel
        yield site, kernel, ("channel", "spatial") if min(kernel) > 1 else ("channel",)


class Solving:
    """Watches an original being walked (``recorded.record``) and solves each convolution once all fitting
    pictures have passed it. ``fitted``: the number of fitting pictures, which come first. Several processes
    add up their sums, and take turns in solving."""

    def __init__(self, original: checkpoints.Checkpoint, fitted: int) -> None:
        self._original, self._own = original, len(processes.share(fitted))
        self._forms = {site.name: kinds for site, _, kinds in forms(original.chain)}
        self._sums: Sums | None = None
        self._shares: Table = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def watch(self, site: Site, a: int, x: "torch.Tensor", places: "torch.Tensor | None") -> None:
        """Add the patches of a chunk of fitting pictures; see ``recorded.Watch``."""
        count = min(len(x), self._own - a)
        if places is None or count <= 0:
            return
        assert isinstance(site.layer, Conv)
        rows = patches(x[:count], places[:count], site.layer)
        self._sums = self._sums or Sums(rows.shape[1], 1)
        self._sums.add(rows, rows[:, :1])
        if a + count == self._own:
            sums, self._sums = self._sums.of_all(), None
            if list(self._forms).index(site.name) % processes.world() == processes.rank():
                self._solve(site, sums.moments())

    def _solve(self, site: Site, moments: Moments) -> None:
        import torch

        name, kinds = site.name, self._forms[site.name]
        weight = here(self._original.tensors[f"{name}.weight"]).double()
        flat = weight.flatten(1)
        values, basis = torch.linalg.eigh(flat @ moments.xx @ flat.T)
        values = values.flip(0).clamp_min(0)
        found = {f"{name}.mean": moments.mean_x, f"{name}.channel.basis": basis.flip(1)}
        self._shares[name] = {"channel": tuple((values.cumsum(0) / values.sum().clamp_min(1e-30)).tolist())}
        if "spatial" in kinds:
            n, c, height, width = weight.shape
            most = height * width * c * n // (height * c + width * n)
            form = separable.separate(weight, moments.xx, max(1, most))
            self._shares[name]["spatial"] = tuple(form.shares())
            parts = {"vertical": form.vertical, "zz": form.zz, "yz": form.yz}
            found |= {f"{name}.spatial.{part}": tensor for part, tensor in parts.items()}
        self._tensors |= {key: tensor.float().cpu().contiguous() for key, tensor in found.items()}

    def solved(self) -> Solved:
        """What was found by all processes, once the original has been walked to its end."""
        shares: Table = {}
        tensors: dict[str, torch.Tensor] = {}
        for found_shares, found_tensors in processes.from_all((self._shares, self._tensors)):
            shares |= found_shares
            tensors |= found_tensors
        return Solved({name: shares[name] for name in self._forms}, tensors)


def write(path: Path, solved: Solved) -> None:
    """Keep the forms as a file; the table is not in it."""
    from safetensors.torch import save_file

    with atomic_file(path) as temporary:
        save_file(dict(solved.tensors), temporary)


def read(path: Path, shares: Table) -> Solved:
    """The forms that ``write`` kept, with their table."""
    from safetensors.torch import load_file

    with opened_by_library(path):
        return Solved(shares, load_file(path))


def disk_bytes(chain: Chain) -> int:
    """The size of the file of a chain's forms, about."""
    total = 0
    for site, (height, width), kinds in forms(chain):
        c, n = site.channels, site.layer.outputs
        total += n * n + height * width * c
        if "spatial" in kinds:
            rank = max(1, height * width * c * n // (height * c + width * n))
            total += rank * height * c + (width * rank) ** 2 + n * width * rank
    return 4 * total
