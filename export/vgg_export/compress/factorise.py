"""Factorised layers. A convolution becomes one of a single column and one of a single row (3x3: 3x1 and 1x3),
or one of fewer filters and a 1x1 convolution; a fully connected layer becomes two thinner ones.
``reconstruct`` fits them in closed form to the outputs of the original on a few hundred pictures without
labels.

The forms and ranks of the convolutions follow from a sensitivity table: the share of the variance of a
layer's outputs that each form keeps at each rank. The product of these shares is kept as large as a bound on
the arithmetic allows (Zhang et al. 2015).
"""

import dataclasses
import itertools
import json
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vgg_export.core import cache
from vgg_export.core.errors import NothingToGainError, OptionsError
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress
from vgg_export.data.splits import Item, Splits, fit_and_held
from vgg_export.data.tensors import stacked
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain, Change, Conv, Factor, Site, sizes, sizes_in_words
from vgg_export.options import FactoriseOptions, as_json
from vgg_runtime.records import Record

from . import allocate, feature_maps, least_squares, reconstruct, separable

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Table = dict[str, dict[str, list[float]]]  # shares of variance at rank 1, 2, ..., by layer and form
TABLE_PICTURES = 64  # for the sensitivity table, which needs fewer than the fit
TABLE_PLACES = 256  # sampled places of each picture


@dataclasses.dataclass(frozen=True)
class Factorised(Record):
    """``table``: the share of the variance by layer, form and rank. ``layers``: how each layer was fitted on
    ``images`` pictures. ``losses``: the loss on ``held_images`` pictures, with the truncated weights and with
    the fitted ones."""

    chain: Chain
    parameters: Change
    macs: Change
    images: int
    held_images: int
    table: dict[str, dict[str, dict[str, float]]]
    layers: tuple[reconstruct.Fit, ...]
    losses: dict[str, Loss]


STAGE = cache.Stage("factorise", __name__, Factorised)
SENSITIVITY = cache.Stage("sensitivity", __name__, cache.Nothing)


def run(
    checkpoint: cache.Artifact,
    splits: Splits,
    output: Path,
    options: FactoriseOptions,
    progress: Progress,
    tables: Path | None = None,
) -> cache.Artifact:
    """Factorise a checkpoint file; the sidecar holds the chain, the sensitivity table, how each layer was
    fitted and what was lost.

    ``tables``: a folder where the sensitivity table is kept. The table does not depend on the strength.
    """
    fit, held = fit_and_held(splits, options.images, options.held_images, options.seed)
    inputs = {
        "checkpoint": checkpoint,
        "splits": cache.Artifact(Path("splits"), splits.digest("fit", "select"), {}),
    }

    def make(path: Path) -> Factorised:
        original = checkpoints.load(checkpoint.path)
        with cache.unfinished(STAGE, as_json(options), inputs, output) as parts:
            kept = (tables or output.parent) / "sensitivity.json"
            made, measured = factorise(original, fit, held, options, Parts(parts, kept, checkpoint), progress)
        source = splits.after_fitting(made.provenance)
        checkpoints.save(dataclasses.replace(made, provenance=source), path)
        log.info("factorised %s", sizes_in_words(original.chain, made.chain))
        if losses := measured.losses:
            words = ", ".join(f"{100 * loss.agreement:.1f} % {name}" for name, loss in losses.items())
            log.info("agreement with the original on %d held-out pictures: %s", len(held), words)
        return measured

    return cache.produce(STAGE, as_json(options), inputs, output, make)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where finished parts of the work are kept. ``layers``: the folder of fitted layers. ``table``: the file
    of the sensitivity table. ``checkpoint``: the file that the table describes."""

    layers: Path
    table: Path
    checkpoint: cache.Artifact


def factorise(
    original: checkpoints.Checkpoint,
    fit: Sequence[Item],
    held: Sequence[Item],
    options: FactoriseOptions,
    parts: Parts,
    progress: Progress,
) -> tuple[checkpoints.Checkpoint, Factorised]:
    """The factorised checkpoint, and what was measured while it was made.

    Raises:
        OptionsError: the checkpoint is factorised already, or a rank that was asked for saves nothing.
        NothingToGainError: as ``choose_ranks``.
    """
    chain = original.chain
    if chain.factorised:
        raise OptionsError("the checkpoint is factorised already; give the one that it was made from")
    # an impossible request fails before any picture is read: here each rank keeps the whole variance
    choose_ranks(
        chain,
        {
            site.name: dict.fromkeys(forms, [1.0] * site.layer.outputs * max(kernel))
            for site, kernel, forms in _forms(chain)
        },
        options,
    )
    pictures = feature_maps.Pictures(*(stacked(items, chain.input) for items in (fit, held)))
    with tempfile.TemporaryDirectory(prefix=".factorise.", dir=parts.layers) as folder:
        table = _kept_table(
            original, [i.sha256 for i in fit[:TABLE_PICTURES]], pictures, parts, Path(folder), progress
        )
        smaller = choose_ranks(chain, table, options)
        cut = truncated(original, smaller)
        tensors, fits = cut, list[reconstruct.Fit]()
        if fitted := options.repair and original.has_knowledge:
            problem = reconstruct.Problem(original, original.tensors, {}, smaller)
            tensors, fits = reconstruct.repair(
                problem, pictures, reconstruct.Folders(Path(folder), parts.layers), progress
            )
    words = (
        f"factorised to {smaller.macs() / chain.macs():.0%} of the arithmetic and"
        f" {smaller.parameters() / chain.parameters():.0%}"
        f" of the parameters, " + (f"fitted on {len(fit)} pictures" if fitted else "not fitted")
    )
    made = checkpoints.Checkpoint(smaller, tensors, original.labels, original.provenance.then(words))
    losses: dict[str, Loss] = {}
    if original.has_knowledge:
        with progress.task("measuring the loss of the factorising", None):
            stages = {"removed": dataclasses.replace(made, tensors=cut)} | (
                {"repaired": made} if fitted else {}
            )
            losses = {name: reconstruct.loss(original, left, pictures.held) for name, left in stages.items()}
    return made, Factorised(
        smaller,
        *sizes(chain, smaller),
        images=len(fit),
        held_images=len(held),
        table={
            name: {kind: _at_ranks(shares, options.multiple) for kind, shares in forms.items()}
            for name, forms in table.items()
        },
        layers=tuple(fits),
        losses=losses,
    )


def _at_ranks(shares: Sequence[float], multiple: int) -> dict[str, float]:
    return {str(rank): round(shares[rank - 1], 6) for rank in range(multiple, len(shares) + 1, multiple)}


def truncated(original: checkpoints.Checkpoint, chain: Chain) -> "dict[str, torch.Tensor]":
    """The tensors of a chain whose factors come from the singular value decomposition of the original's
    weights, without pictures."""
    import torch

    tensors = dict(original.tensors)
    for site in chain.sites:
        if not (factor := site.layer.factor):
            continue
        name = site.name
        weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")
        if factor.kind == "spatial":
            vertical, horizontal = separable.by_weights(weight, factor.rank)
            reduce, expand = vertical[..., None], horizontal[:, :, None]
        else:
            torch.manual_seed(0)  # the randomised method starts from random directions
            left, values, right = torch.svd_lowrank(
                weight.flatten(1), q=min(factor.rank + 16, *weight.flatten(1).shape), niter=4
            )
            reduce = (right * values)[:, : factor.rank].T.reshape(factor.rank, *weight.shape[1:])
            expand = left[:, : factor.rank].reshape(len(weight), factor.rank, *(1,) * (weight.dim() - 2))
        tensors[f"{name}_reduce.weight"], tensors[f"{name}_expand.weight"] = (
            reduce.contiguous(),
            expand.contiguous(),
        )
        tensors[f"{name}_expand.bias"] = bias
    return tensors


def _kept_table(
    original: checkpoints.Checkpoint,
    images: list[str],
    pictures: feature_maps.Pictures,
    parts: Parts,
    scratch: Path,
    progress: Progress,
) -> Table:
    """The sensitivity table, read from its file if that was made of the same pictures."""

    def make(path: Path) -> cache.Nothing:
        table = sensitivity(original, pictures.fit[:TABLE_PICTURES], scratch, progress)
        path.write_text(json.dumps(table))
        return cache.Nothing()

    made = cache.produce(SENSITIVITY, {"images": images}, {"checkpoint": parts.checkpoint}, parts.table, make)
    table: Table = json.loads(made.path.read_text())
    return table


def sensitivity(
    original: checkpoints.Checkpoint, pictures: "torch.Tensor", scratch: Path, progress: Progress
) -> Table:
    """For every convolution and form, the share of the variance of its outputs that rank 1, 2, ... keeps."""
    import torch

    chain, tensors, table = original.chain, original.tensors, Table()
    maps = feature_maps.begun(chain, pictures, tensors, scratch)
    with (
        torch.inference_mode(),
        progress.task("measuring the sensitivity of the layers", len(chain.convs)) as task,
    ):
        for site, _, forms in _forms(chain):
            moments = _moments(maps, len(pictures), site)
            table[site.name] = _shares(tensors[f"{site.name}.weight"].double(), moments, forms)
            maps.advance(*feature_maps.forward(chain, site.name, tensors))
            task.advance()
    return table


def _forms(chain: Chain) -> Iterator[tuple[Site, tuple[int, int], tuple[str, ...]]]:
    """Every convolution with its kernel and the forms that it can take: a kernel of one row or column has no
    spatial form."""
    for site in chain.convs:
        assert isinstance(site.layer, Conv)
        kernel = site.layer.kernel
        yield site, kernel, ("channel", "spatial") if min(kernel) > 1 else ("channel",)


def _moments(maps: feature_maps.Maps, count: int, site: Site) -> "torch.Tensor":
    """Centred second moments [d, d] of the patches that a convolution sees at some places of the pictures; d
    is channels * height * width of its kernel."""
    import torch

    conv, area = site.layer, math.prod(site.outputs[1:])
    assert isinstance(conv, Conv)
    generator, sums = torch.Generator().manual_seed(0), None
    for a in range(0, count, feature_maps.CHUNK):
        x = maps.read(a, min(a + feature_maps.CHUNK, count))
        places = torch.stack(
            [torch.randperm(area, generator=generator)[:TABLE_PLACES] for _ in range(len(x))]
        )
        rows = feature_maps.patches(x, places, conv)
        sums = sums or least_squares.Sums(rows.shape[1], 1)
        sums.add(rows, rows[:, :1])
    assert sums is not None  # there are pictures
    return sums.moments().xx


def _shares(weight: "torch.Tensor", xx: "torch.Tensor", forms: tuple[str, ...]) -> dict[str, list[float]]:
    """By form, the share of the variance of a convolution's outputs that rank 1, 2, ... keeps, up to the last
    rank that saves anything."""
    import torch

    flat = weight.flatten(1)
    values = torch.linalg.eigvalsh(flat @ xx @ flat.T).flip(0).clamp_min(0)
    made = {"channel": (values.cumsum(0) / values.sum().clamp_min(1e-30)).tolist()}
    if "spatial" in forms:
        n, c, height, width = weight.shape
        most = height * width * c * n // (height * c + width * n)
        made["spatial"] = separable.separate(weight, xx, max(1, most)).shares()
    return made


def choose_ranks(chain: Chain, table: Table, options: FactoriseOptions) -> Chain:
    """The chain with the convolutions' arithmetic at most ``conv_share`` of what it was, and the fully
    connected ranks.

    Every convolution offers points (arithmetic, -log of the variance kept). On the lower convex hull of these
    the cheapest step of all layers is taken until the bound is met.

    Raises:
        NothingToGainError: the bound cannot be met, or nothing would become smaller.
        OptionsError: a rank that was asked for saves nothing, or there are more or fewer than layers for
        them.
    """
    factors = _conv_factors(chain, table, options) | _linear_factors(chain, options)
    smaller = chain.with_factors(factors)
    if not factors or smaller.macs() >= chain.macs():
        raise NothingToGainError(
            f"factorising this {chain.family} to {options.conv_share:.0%} of its arithmetic does not make it"
            " smaller"
        )
    return smaller


def _conv_factors(chain: Chain, table: Table, options: FactoriseOptions) -> dict[str, Factor]:
    """The factors of the convolutions for at most ``conv_share`` of their arithmetic."""
    full = {site.name: _macs(site) for site in chain.convs}
    bound, total = options.conv_share * sum(full.values()), sum(full.values())
    steps = []
    for name, forms in table.items():
        offers = _offers(chain.site(name), forms, options.multiple)
        points = [
            allocate.Point(full[name], 0.0, -1),
            *(allocate.Point(macs, loss, k) for k, (macs, loss, _) in enumerate(offers)),
        ]
        for (more, better, _), (less, worse, k) in itertools.pairwise(allocate.hull(points)):
            steps.append(((worse - better) / (more - less), more - less, name, offers[k].factor))
    chosen: dict[str, Factor] = {}
    for _, saved, name, factor in sorted(steps, key=lambda step: step[:3]):
        if total <= bound:
            break
        total -= saved
        chosen[name] = factor
    if total > bound:
        raise NothingToGainError(
            f"the convolutions cannot be factorised to {options.conv_share:.0%} of their arithmetic with"
            " ranks in multiples of"
            f" {options.multiple}; the least is {total / sum(full.values()):.0%}: use a larger --conv-share"
        )
    return chosen


def _linear_factors(chain: Chain, options: FactoriseOptions) -> dict[str, Factor]:
    """The factors of the fully connected layers but the last, where they save anything."""
    sites, factors = chain.linears[:-1], {}
    for site, rank in zip(sites, fc_ranks(chain, options), strict=True):
        c, n = site.channels, site.layer.outputs
        if rank * (c + n) < c * n:
            factors[site.name] = Factor("linear", rank)
        elif options.fc_ranks:
            raise OptionsError(
                f"--fc-ranks: rank {rank} saves nothing in {site.name}, which is {c} x {n}; use a rank of"
                f" at most {(c * n - 1) // (c + n)}"
            )
    return factors


class Offer(NamedTuple):
    """An option for a convolution: its multiply-accumulates, its loss, and the factor."""

    macs: int
    loss: float
    factor: Factor


def _offers(site: Site, forms: dict[str, list[float]], multiple: int) -> list[Offer]:
    """The forms and ranks of a convolution that save anything."""
    found = []
    for kind, shares in forms.items():
        for rank in range(multiple, len(shares) + 1, multiple):
            factor = Factor(kind, rank)
            macs = _macs(site.made_of(factor))
            if macs < _macs(site):
                found.append(Offer(macs, -math.log(max(shares[rank - 1], 1e-12)), factor))
    return found


def _macs(site: Site) -> int:
    return sum(part.macs() for part in site.parts())


def fc_ranks(chain: Chain, options: FactoriseOptions) -> tuple[int, ...]:
    """The ranks of all fully connected layers but the last: as asked for, or of the first a sixteenth of its
    width and of the others a thirty-second, more where there are many outputs.

    Raises:
        OptionsError: another number of ranks was asked for.
    """
    sites, asked = chain.linears[:-1], options.fc_ranks
    if asked and len(asked) != len(sites):
        raise OptionsError(
            f"--fc-ranks gives {','.join(map(str, asked))}, but the network has {len(sites)} fully connected"
            f" layer{'' if len(sites) == 1 else 's'} before its last; expected one rank for each"
        )
    return asked or tuple(_fc_rank(site, chain.units, options, first=not k) for k, site in enumerate(sites))


def _fc_rank(site: Site, units: int, options: FactoriseOptions, *, first: bool) -> int:
    """The default rank of a fully connected layer."""
    by, width = (1 if first else 2), site.layer.outputs
    rank = max(1, width // (16 * by), min(units // by, width // (8 * by)))
    return options.multiple * math.ceil(options.fc_share * rank / options.multiple)
