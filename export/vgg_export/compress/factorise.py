"""Factorised layers. A convolution becomes one of a single column and one of a single row (3x3: 3x1 and 1x3),
or one of fewer filters and a 1x1 convolution; a fully connected layer becomes two thinner ones.
``reconstruct`` fits them in closed form to the outputs of the original on a few hundred pictures without
labels.

The forms and ranks of the convolutions follow from a sensitivity table: the share of the variance of a
layer's outputs that each form keeps at each rank. The product of these shares is kept as large as a bound on
the arithmetic allows (Zhang et al. 2015).
"""

import dataclasses
import functools
import itertools
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vgg_export.core import cache, processes
from vgg_export.core.errors import NothingToGainError, OptionsError
from vgg_export.core.files import scratch_folder, write_json
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress
from vgg_export.data.splits import Item, Splits, fit_and_held
from vgg_export.data.tensors import stacked
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain, Change, Factor, Site, sizes, sizes_in_words
from vgg_export.options import FactoriseOptions, as_json
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.records import FieldError, Record, read

from . import allocate, feature_maps, reconstruct, recorded, separable, solved

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


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


def run(
    checkpoint: cache.Artifact,
    splits: Splits,
    output: Path,
    options: FactoriseOptions,
    progress: Progress,
    tables: Path | None = None,
    records: Path | None = None,
) -> cache.Artifact:
    """Factorise a checkpoint file; the sidecar holds the chain, the sensitivity table, how each layer was
    fitted and what was lost.

    ``tables``: a folder where the sensitivity table is kept. The table does not depend on the strength.
    ``records``: a folder where what the original computes is kept, too, for other strengths.
    """
    fit, held = fit_and_held(splits, options.images, options.held_images, options.seed)
    inputs = {
        "checkpoint": checkpoint,
        "splits": cache.Artifact(Path("splits"), splits.digest("fit", "select"), {}),
    }

    def make(path: Path) -> Factorised:
        original = checkpoints.load(checkpoint.path)
        with cache.unfinished(STAGE, as_json(options), inputs, output) as parts:
            kept = Parts(parts, tables or output.parent, checkpoint, records)
            made, measured = factorise(original, fit, held, options, kept, progress)
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
    """Where finished parts of the work are kept. ``layers``: the folder of fitted layers. ``tables``: the
    folder of the sensitivity table. ``checkpoint``: the file of the original. ``records``: the folder of what
    it computes on the pictures and of its solved forms; None: they are not kept."""

    layers: Path
    tables: Path
    checkpoint: cache.Artifact
    records: Path | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the factorising of an original at any strength starts from. ``forms``: the file of its solved
    forms, None where that is not kept."""

    table: solved.Table
    recorded: recorded.Recorded
    forms: Path | None


def factorise(
    original: checkpoints.Checkpoint,
    fit: Sequence[Item],
    held: Sequence[Item],
    options: FactoriseOptions,
    parts: Parts,
    progress: Progress,
) -> tuple[checkpoints.Checkpoint, Factorised]:
    """The factorised checkpoint, and what was measured while it was made. Several processes share the
    pictures.

    Raises:
        OptionsError: the checkpoint is factorised already, or a rank that was asked for saves nothing.
        NothingToGainError: as ``choose_ranks``.
        DataError: there are fewer pictures than processes.
    """
    chain = original.chain
    if chain.factorised:
        raise OptionsError("the checkpoint is factorised already; give the one that it was made from")
    # an impossible request fails before any picture is read: here each rank keeps the whole variance
    choose_ranks(
        chain,
        {
            site.name: dict.fromkeys(forms, (1.0,) * site.layer.outputs * max(kernel))
            for site, kernel, forms in solved.forms(chain)
        },
        options,
    )
    return processes.together(progress, _factorised, original, fit, held, options, parts)


def _factorised(
    original: checkpoints.Checkpoint,
    fit: Sequence[Item],
    held: Sequence[Item],
    options: FactoriseOptions,
    parts: Parts,
    progress: Progress,
) -> tuple[checkpoints.Checkpoint, Factorised]:
    chain, pictures = original.chain, share(fit, held, original.chain.input)
    parts.layers.mkdir(parents=True, exist_ok=True)  # on another machine it may be missing
    with scratch_folder(parts.layers) as folder:
        shown = [[item.sha256 for item in items] for items in (fit, held)]
        measured = measure(original, pictures, shown, parts, folder, progress)
        smaller = processes.from_first(lambda: choose_ranks(chain, measured.table, options))
        cut = processes.from_first(lambda: truncated(original, smaller))
        tensors, fits = cut, list[reconstruct.Fit]()
        if fitted := options.repair and original.has_knowledge:
            problem = reconstruct.Problem(original, original.tensors, {}, smaller)
            folders = reconstruct.Folders(folder, parts.layers)
            tensors, fits = reconstruct.repair(problem, pictures, folders, progress, measured.recorded)
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
            for name, forms in measured.table.items()
        },
        layers=tuple(fits),
        losses=losses,
    )


def share(fit: Sequence[Item], held: Sequence[Item], spec: InputSpec) -> feature_maps.Pictures:
    """This process's share of the fitting and of the held-out pictures.

    Raises:
        DataError: there are fewer than processes.
    """
    for items, name in ((fit, "fitting"), (held, "held-out")):
        processes.from_first(functools.partial(processes.ensure_enough, len(items), name))
    own = (items[processes.slice_of(len(items))] for items in (fit, held))
    return feature_maps.Pictures(*(stacked(items, spec) for items in own))


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


def measure(
    original: checkpoints.Checkpoint,
    pictures: feature_maps.Pictures,
    shown: Sequence[Sequence[str]],
    parts: Parts,
    scratch: Path,
    progress: Progress,
) -> Measured:
    """Walk the original once: the sensitivity table, its solved forms, and the outputs to fit others to. What
    was kept is not made again. ``pictures``: this process's share. ``shown``: the hashes of all the fitting
    and held-out pictures."""
    said = cache.digest(__name__, parts.checkpoint.sha256, shown)
    path, folder = parts.tables / f"sensitivity-{said}.json", parts.records or scratch
    forms = parts.records / f"forms-{said}.safetensors" if parts.records else None
    table = processes.from_first(lambda: _known_table(path) if forms is None or forms.is_file() else None)
    solving = None if table else solved.Solving(original, len(shown[0]))
    first = original.chain.sites[0].name
    found = recorded.record(
        original,
        pictures,
        first,
        folder / f"recorded-{said}",
        scratch,
        progress,
        solving.watch if solving else None,
    )
    if solving:
        made = solving.solved()
        if processes.rank() == 0:
            if forms:
                solved.write(forms, made)
            write_json(path, made.shares)
        table = made.shares
    assert table is not None  # known, or made now
    return Measured(table, found, forms)


def measure_together(
    original: checkpoints.Checkpoint,
    fit: Sequence[Item],
    held: Sequence[Item],
    parts: Parts,
    scratch: Path,
    progress: Progress,
) -> Measured:
    """``measure`` with all pictures, of which several processes take a share each. ``scratch``: a folder for
    what does not fit into memory; it is empty again at the end, so what was recorded is at hand only in
    ``parts.records``.

    Raises:
        DataError: there are fewer pictures than processes.
    """
    return processes.together(progress, _measure_share, original, fit, held, parts, scratch)


def _measure_share(
    original: checkpoints.Checkpoint,
    fit: Sequence[Item],
    held: Sequence[Item],
    parts: Parts,
    scratch: Path,
    progress: Progress,
) -> Measured:
    pictures = share(fit, held, original.chain.input)
    shown = [[item.sha256 for item in items] for items in (fit, held)]
    scratch.mkdir(parents=True, exist_ok=True)  # on another machine it may be missing
    with scratch_folder(scratch) as folder:
        return measure(original, pictures, shown, parts, folder, progress)


def _known_table(path: Path) -> solved.Table | None:
    """The table of a file; None where there is none or it is damaged, so that it is measured again."""
    try:
        table: solved.Table = read(solved.Table, json.loads(path.read_text()), path.name)
    except (OSError, ValueError, FieldError):
        return None
    return table


def choose_ranks(chain: Chain, table: solved.Table, options: FactoriseOptions) -> Chain:
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


def _conv_factors(chain: Chain, table: solved.Table, options: FactoriseOptions) -> dict[str, Factor]:
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


def _offers(site: Site, forms: dict[str, tuple[float, ...]], multiple: int) -> list[Offer]:
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
