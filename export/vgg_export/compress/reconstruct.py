"""Closed-form repair: every layer is fitted again to the outputs of the original layer, on the inputs that it
gets in the smaller network.

The repair walks once from the input to the logits, and fits each layer that changed or whose inputs did. X~
are its inputs in the smaller network, and Y the outputs that the original layer computes from the original's
own inputs, as ``recorded`` (He et al. 2017, "Channel pruning"):

    W' = W_S + (Y - W_S X~) X~^T (X~ X~^T + lambda I)^-1,  centred;  b' = mean(Y) - W' mean(X~)

This is a ridge regression anchored at the old weights W_S of the remaining inputs. lambda is chosen on
pictures that were not used for the fit. A factorised convolution keeps the r directions of W' X~ with the
largest variance (reduced-rank regression), or the r vertical filters of ``separable``; a fully connected
layer those that matter to the logits. Only sums of products are kept, never all patches. Several processes
walk a share of the pictures each, and the first one solves.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core import processes
from vgg_export.core.devices import here
from vgg_export.core.files import atomic_file, scratch_folder
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress
from vgg_export.data import tensors as of_pictures
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain, Conv, Factor, Site
from vgg_runtime.bundle.metrics import compare
from vgg_runtime.records import Record

from . import separable
from .feature_maps import CHUNK, Pictures, begun, forward, patches
from .least_squares import (
    Behind,
    Centred,
    Moments,
    Sums,
    important,
    in_two_by_directions,
    in_two_by_picture,
    linear_in_parts,
    main_directions,
    ridge,
    ridge_by_picture,
)
from .recorded import Recorded, record

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is repaired. ``original``: the original checkpoint. ``left``: its remaining tensors, by layer of
    the chain. ``kept``: the indices of the remaining filters of each convolution (absent: all). ``chain``:
    the network to fit, which may ask for factorised layers."""

    original: checkpoints.Checkpoint
    left: "dict[str, torch.Tensor]"
    kept: "dict[str, torch.Tensor]"
    chain: Chain

    @property
    def first_changed(self) -> str | None:
        """The first layer that is factorised or has fewer outputs than in the original; None: there is
        none."""
        for site in self.chain.sites:
            weight = f"{site.name}.weight"
            if site.layer.factor or len(self.left[weight]) < len(self.original.tensors[weight]):
                return site.name
        return None


@dataclasses.dataclass(frozen=True)
class Folders:
    """``scratch``: the folder for maps that do not fit into memory. ``parts``: the folder where each fitted
    layer is kept, so that interrupted work continues after the last one (``cache.unfinished``); None: layers
    are not kept."""

    scratch: Path
    parts: Path | None = None


@dataclasses.dataclass(frozen=True)
class Fit(Record):
    """How a layer was fitted. Errors are measured on held-out pictures, as a share of the variance of the
    original layer's outputs there; for a fully connected layer, of the logits that the original's later
    layers compute from them. ``error_before``: with the old weights and a corrected bias. ``error_after``:
    with the new weights. ``strength``: lambda, or None where the old weights were better than any fit."""

    layer: str
    samples: int
    strength: float | None
    rank: int | None
    error_before: float
    error_after: float


def repair(
    problem: Problem,
    pictures: Pictures,
    folders: Folders,
    progress: Progress,
    recorded: Recorded | None = None,
) -> "tuple[dict[str, torch.Tensor], list[Fit]]":
    """The tensors of the chain, and how each fit went. Layers that ``folders.parts`` holds are not fitted
    again. ``pictures``: this process's share. ``recorded``: what the original computes on these pictures,
    from the first layer that changes or an earlier one; None: it is walked for this repair alone."""
    import torch

    names = [site.name for site in problem.chain.sites]
    first = problem.first_changed
    if first is None:
        return dict(problem.left), []
    if recorded is None:
        recorded = record(
            problem.original, pictures, first, folders.scratch / "recorded", folders.scratch, progress
        )
    fitted = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    # scales are not fitted: the layer behind them makes up for what they miss
    tensors = {name: tensor for name, tensor in problem.left.items() if name not in fitted}
    fits: list[Fit] = []
    walk = _Walk(problem, pictures, recorded, folders)
    with torch.inference_mode(), progress.task("fitting the layers", len(names)) as task:
        for name in names:
            made, fit = walk.layer(name)
            tensors |= made
            fits += [fit] if fit else []
            task.advance()
    return tensors, fits


def repair_together(
    problem: Problem, pictures: Pictures, folders: Folders, progress: Progress
) -> "tuple[dict[str, torch.Tensor], list[Fit]]":
    """``repair`` with all pictures, of which several processes take a share each.

    Raises:
        DataError: there are fewer pictures than processes.
    """
    return processes.together(progress, _repair_share, problem, pictures, folders)


def _repair_share(
    problem: Problem, pictures: Pictures, folders: Folders, progress: Progress
) -> "tuple[dict[str, torch.Tensor], list[Fit]]":
    sets = {"fitting": pictures.fit, "held-out": pictures.held}
    for name, rows in sets.items():
        processes.from_first(functools.partial(processes.ensure_enough, len(rows), name))
    own = Pictures(*(rows[processes.slice_of(len(rows))] for rows in sets.values()))
    folders.scratch.mkdir(parents=True, exist_ok=True)  # on another machine it may be missing
    with scratch_folder(folders.scratch) as scratch:
        return repair(problem, own, Folders(scratch, folders.parts), progress)


class _Walk:
    """The smaller network, as far as it has been walked, beside the records of the original."""

    def __init__(self, problem: Problem, pictures: Pictures, recorded: Recorded, folders: Folders) -> None:
        import torch

        self.problem, self.recorded, self.parts = problem, recorded, folders.parts
        self._names = [site.name for site in problem.chain.sites]
        original = problem.original
        if recorded.maps:
            self._walked, self.ours = self._names.index(recorded.first), recorded.maps.fork()
        else:
            shown = torch.cat([pictures.fit, pictures.held])
            self._walked = 0
            self.ours = begun(original.chain, shown, original.tensors, folders.scratch)

    def layer(self, name: str) -> "tuple[dict[str, torch.Tensor], Fit | None]":
        """Fit one layer of the chain if it or its inputs changed, and move the network past it."""
        chain, place = self.problem.chain, self._names.index(name)
        start, bias = self.problem.left[f"{name}.weight"], self.problem.left[f"{name}.bias"]
        factor = chain.site(name).layer.factor
        tensors, fit = {f"{name}.weight": start, f"{name}.bias": bias}, None
        first = self._names.index(self.problem.first_changed or name)
        if factor or place > first:
            tensors, fit = self._fitted(name, start, factor)
        if place >= self._walked:
            self.ours.advance(*forward(chain, name, self.problem.left | tensors))
        return tensors, fit

    def _fitted(
        self, name: str, start: "torch.Tensor", factor: Factor | None
    ) -> "tuple[dict[str, torch.Tensor], Fit]":
        """The layer that an interrupted run left, or else the layer fitted now and kept."""
        from safetensors.torch import save_file

        part = self.parts / f"{name}.safetensors" if self.parts else None
        if left := processes.from_first(lambda: _left(part)):
            return left
        tensors, fit = (self._conv if start.dim() == 4 else self._linear)(name, start, factor)
        if part and processes.rank() == 0:
            with atomic_file(part) as temporary:
                save_file(
                    {key: tensor.contiguous() for key, tensor in tensors.items()},
                    temporary,
                    {"fit": json.dumps(fit.to_json())},
                )
        return tensors, fit

    def _conv(
        self, name: str, start: "torch.Tensor", factor: Factor | None
    ) -> "tuple[dict[str, torch.Tensor], Fit]":
        fitting, held = self._moments(self.problem.original.chain.site(name), start.shape[1])
        return processes.from_first(lambda: _conv_of(name, here(start), factor, fitting, held))

    def _moments(self, site: Site, inputs: int) -> "tuple[Moments, Moments]":
        """The moments of the patches that the smaller network sees and of the outputs of the original's layer
        ``site`` at those places, for the fitting and the held-out pictures separately. ``inputs``: the number
        of channels that the smaller network has left."""
        conv = site.layer
        assert isinstance(conv, Conv)  # fully connected layers are fitted by picture
        said, places = self.recorded.said(site.name), self.recorded.places(site)
        rows, taps = self.problem.kept.get(site.name), math.prod(conv.kernel)
        outputs = conv.outputs if rows is None else len(rows)
        first, found = 0, []
        for count in self.recorded.own:
            sums = Sums(taps * inputs, outputs)
            for a in range(first, first + count, CHUNK):
                b = min(a + CHUNK, first + count)
                wanted = said[a:b] if rows is None else said[a:b][..., rows]
                seen = patches(self.ours.read(a, b), here(places[a:b]), conv)
                sums.add(seen, here(wanted.reshape(-1, outputs)))
            found.append(sums.of_all().moments())
            first += count
        return found[0], found[1]

    def _linear(
        self, name: str, start: "torch.Tensor", factor: Factor | None
    ) -> "tuple[dict[str, torch.Tensor], Fit]":
        own = self.recorded.gathered
        seen, said = own(self.ours.read(0, sum(self.recorded.own))), own(here(self.recorded.said(name)))
        return processes.from_first(lambda: self._linear_of(name, here(start), factor, seen, said))

    def _linear_of(
        self,
        name: str,
        start: "torch.Tensor",
        factor: Factor | None,
        seen: "torch.Tensor",
        said: "torch.Tensor",
    ) -> "tuple[dict[str, torch.Tensor], Fit]":
        """The fit of a fully connected layer. ``seen``: its inputs in the smaller network, and ``said`` its
        outputs in the original, for all pictures."""
        original, fitted = _fully_connected_here(self.problem.original), self.recorded.counts[0]
        x, y = Centred.of(seen, fitted), Centred.of(said, fitted)
        new, strength = ridge_by_picture(start, x, y)
        judge = Behind(original, name, said[fitted:])
        tensors: dict[str, torch.Tensor] = {f"{name}.weight": new}
        effective: tuple[torch.Tensor, torch.Tensor | None] = (new, None)
        if factor:
            rows = important(original, name, said[:fitted])
            first, second = in_two_by_picture(
                new,
                x,
                rows,
                factor.rank,
                lambda *parts: judge.divergence(y.mean + linear_in_parts(x.held, *parts)),
            )
            tensors, effective = (
                {f"{name}_reduce.weight": first, f"{name}_expand.weight": second},
                (first, second),
            )
        last = f"{name}_expand" if factor else name
        tensors[f"{last}.bias"] = y.mean - linear_in_parts(x.mean[None], *effective)[0]
        errors = [
            judge.error(y.mean + linear_in_parts(x.held, *parts)) for parts in ((start, None), effective)
        ]
        fit = Fit(name, fitted, strength, factor.rank if factor else None, *errors)
        return {key: tensor.cpu() for key, tensor in tensors.items()}, fit


def _fully_connected_here(original: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """An original whose fully connected layers are where torch computes."""
    names = {f"{site.name}.{part}" for site in original.chain.linears for part in ("weight", "bias")}
    moved = {name: here(tensor) if name in names else tensor for name, tensor in original.tensors.items()}
    return dataclasses.replace(original, tensors=moved)


def _left(part: Path | None) -> "tuple[dict[str, torch.Tensor], Fit] | None":
    """The layer that a file holds; None where there is none."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    if not part or not part.is_file():
        return None
    with safe_open(part, framework="pt") as file:
        return load_file(part), Fit.from_json(json.loads(file.metadata()["fit"]))


def _conv_of(
    name: str, start: "torch.Tensor", factor: Factor | None, fitting: Moments, held: Moments
) -> "tuple[dict[str, torch.Tensor], Fit]":
    """The fit of a convolution to moments of the fitting and of the held-out pictures."""
    weight, strength = ridge(start.flatten(1).double(), fitting, held)
    last = f"{name}_expand" if factor else name
    if factor:
        tensors, effective = in_two(name, weight.view(start.shape), fitting.xx, factor)
    else:
        tensors, effective = {f"{name}.weight": weight.view(start.shape).float()}, weight
    tensors[f"{last}.bias"] = (fitting.mean_y - effective @ fitting.mean_x).float()
    errors = [held.error(w) / max(held.yy, 1e-30) for w in (start.flatten(1).double(), effective)]
    fit = Fit(name, fitting.n, strength, factor.rank if factor else None, *errors)
    return {key: tensor.cpu() for key, tensor in tensors.items()}, fit


def in_two(
    name: str, weight: "torch.Tensor", xx: "torch.Tensor", factor: Factor
) -> "tuple[dict[str, torch.Tensor], torch.Tensor]":
    """The weights of the two parts of a factorised convolution, and their product [n, c * height * width].

    Args:
        weight: [n, c, height, width], float64; xx: centred second moments of its patches, [c * height *
        width]
            squared.
    """
    if factor.kind == "spatial":
        first, second, effective = separable.in_two(separable.separate(weight, xx, factor.rank))
    else:
        flat = weight.flatten(1)
        first, second, effective = in_two_by_directions(
            weight, main_directions(flat @ xx @ flat.T, factor.rank)
        )
    tensors = {f"{name}_reduce.weight": first, f"{name}_expand.weight": second}
    return {key: tensor.float().contiguous() for key, tensor in tensors.items()}, effective


def loss(original: checkpoints.Checkpoint, smaller: checkpoints.Checkpoint, pictures: "torch.Tensor") -> Loss:
    """The loss on pictures [N, channels, px, px] that nothing was fitted on; of several processes each has
    its share of them."""
    theirs, ours = (
        of_pictures.logits(checkpoint.model(), pictures, CHUNK) for checkpoint in (original, smaller)
    )
    against = f"the checkpoint at {original.chain.input.px} px"
    return Loss.of(compare(ours, theirs, output=original.chain.output), against)
