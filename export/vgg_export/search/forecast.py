"""What a network loses before it is distilled, which is cheap to know: the original at smaller inputs, not
trained for them, and its factorised forms of every strength, not fitted, both asked about a few selection
pictures. Input sizes beyond hope are not tried."""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_calibration import choose
from vgg_export.compress import factorise, recorded, solved
from vgg_export.core import cache
from vgg_export.core.errors import NothingToGainError, OptionsError
from vgg_export.core.files import write_json
from vgg_export.data.splits import Item, fit_and_held
from vgg_export.data.tensors import logits_together, stacked
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import input_size
from vgg_export.network.chain import Chain
from vgg_export.options import FactoriseOptions
from vgg_export.recipes import Context
from vgg_runtime.bundle.metrics import compare
from vgg_runtime.records import FieldError, Record

from .points import Rung
from .prediction import Candidate

log = logging.getLogger(__name__)

PICTURES = 128  # selection pictures that are asked before anything is distilled
SMALLEST = 3 / 7  # of the own input: 96 px of 224
HOPELESS = 0.2  # at a smaller input the original must agree with itself on this share of the pictures
BATCH = 16
# the share of the default ranks of the fully connected layers, by the least share of the arithmetic
FC_SHARES = ((0.25, 1.0), (0.12, 0.5), (0.0, 0.25))


@dataclasses.dataclass(frozen=True)
class Costs(Record):
    """KL in nats on ``pictures`` selection pictures. ``size``: of the original at this size from itself at
    its own, with its ``agreement``. ``ranks``: of its factorised forms from the original at this size, by
    share of the convolutions' arithmetic."""

    pictures: int
    size: float
    agreement: float
    ranks: dict[str, float]

    @property
    def hopeless(self) -> bool:
        """Whether the size is not worth trying: the original at it gives too many pictures another class."""
        return self.agreement < HOPELESS


def sizes_of(chain: Chain, asked: int | None) -> tuple[int, ...]:
    """The input sizes to look at, the largest first: the network's own and smaller ones in steps of its
    stride, or the one that was ``asked`` for."""
    own, step = chain.input.px, chain.stride_px
    wanted = [asked] if asked else range((own - 1) // step * step, math.ceil(SMALLEST * own) - 1, -step)
    return (own, *(px for px in wanted if _fits(chain, px)))


def _fits(chain: Chain, px: int) -> bool:
    try:
        input_size.ensure_resizable(chain, px)
    except OptionsError:
        return False
    return True


class Forecast:
    """Costs before distilling, by input size, each found out once and kept. ``logits`` [n, units]: the
    original's on ``items``, the selection pictures."""

    def __init__(self, context: Context, items: Sequence[Item], logits: npt.NDArray[np.float32]) -> None:
        self._context = context
        self._chain = checkpoints.read_header(context.checkpoint.path).chain
        chosen = choose.limit(
            list(enumerate(items)), [i.source for i in items], PICTURES, context.options.data.seed
        )
        self._items, self._logits = [item for _, item in chosen], logits[[k for k, _ in chosen]]
        self._known: dict[str, factorise.Measured] = {}  # by the hash of the original at a size

    def alone(self, px: int, folded: cache.Artifact) -> Costs:
        """What the size alone costs, without any ranks. At its own the original is what all is compared
        with."""
        if px == self._chain.input.px:
            return Costs(len(self._items), 0.0, 1.0, {})
        path = self._path(folded, ())
        if known := _read(path):
            return known
        original = checkpoints.load(folded.path)
        with self._context.progress.task(f"asking the checkpoint at {px} px, untrained", None):
            x = stacked(self._items, original.chain.input)
            said = compare(self._said(original, x), self._logits, output=original.chain.output)
        found = Costs(len(self._items), said.kl, said.agreement, {})
        write_json(path, found.to_json())
        return found

    def at(self, px: int, folded: cache.Artifact, shares: Sequence[float]) -> Costs:
        """The costs at a size. ``folded``: the original for that size."""
        path = self._path(folded, shares)
        if known := _read(path):
            return known
        original, ranks = checkpoints.load(folded.path), {}
        x = stacked(self._items, original.chain.input)
        with self._context.progress.task(f"forecasting {px} px", len(shares)) as task:
            whole = self._said(original, x)
            for share, network in self._networks(original, folded, shares):
                said = self._said(network, x)
                ranks[f"{share:g}"] = compare(said, whole, output=original.chain.output).kl
                task.advance()
        found = dataclasses.replace(self.alone(px, folded), ranks=ranks)
        write_json(path, found.to_json())
        return found

    def _path(self, folded: cache.Artifact, shares: Sequence[float]) -> Path:
        """The file of costs, named after all that they depend on."""
        logits = [float(self._logits.sum()), float(np.abs(self._logits).sum())]
        pictures = [item.sha256 for item in self._items]
        said = cache.digest(__name__, folded.sha256, list(shares), pictures, logits)
        return self._context.shared / f"costs-{said}.json"

    def _networks(
        self, original: checkpoints.Checkpoint, folded: cache.Artifact, shares: Sequence[float]
    ) -> Iterator[tuple[float, checkpoints.Checkpoint]]:
        """The factorised forms, not fitted, for shares of the arithmetic, as far as these can be reached."""
        measured = self._measured(folded)
        assert measured.forms  # a search keeps them
        forms = solved.read(measured.forms, measured.table)
        for share in shares:
            try:
                chain = ranks_for(original.chain, measured.table, self._context.options.factorise, share)
            except NothingToGainError:
                return
            yield share, forms.unfitted(original, chain)

    def table(self, folded: cache.Artifact) -> solved.Table:
        """The sensitivity table of the original at a size."""
        return self._measured(folded).table

    def disk_bytes(self, folded: Sequence[cache.Artifact]) -> int:
        """The size of what is kept of the original at these sizes, about."""
        options = self._context.options.factorise
        counts = (options.images, options.held_images)
        chains = [checkpoints.read_header(one.path).chain for one in folded]
        return sum(recorded.disk_bytes(chain, counts) + solved.disk_bytes(chain) for chain in chains)

    def _measured(self, folded: cache.Artifact) -> factorise.Measured:
        """What the fitting at a size starts from; it is measured once, and kept."""
        if folded.sha256 not in self._known:
            context, options = self._context, self._context.options.factorise
            fit, held = fit_and_held(context.splits, options.images, options.held_images, options.seed)
            parts = factorise.Parts(context.folder, context.shared, folded, context.records)
            self._known[folded.sha256] = factorise.measure_together(
                checkpoints.load(folded.path), fit, held, parts, context.shared, context.progress
            )
        return self._known[folded.sha256]

    def _said(self, network: checkpoints.Checkpoint, x: Any) -> npt.NDArray[np.float32]:
        """The logits of a network for the pictures."""
        return logits_together(network, x, BATCH)


def ranks_for(chain: Chain, table: solved.Table, options: FactoriseOptions, share: float) -> Chain:
    """The chain of a share of the convolutions' arithmetic, as ``factorise`` makes it.

    Raises:
        NothingToGainError: as ``factorise.choose_ranks``.
    """
    wanted = dataclasses.replace(options, conv_share=share, fc_share=fc_share(share))
    return factorise.choose_ranks(chain, table, wanted)


def fc_share(conv_share: float) -> float:
    """The share of the default ranks of the fully connected layers that goes with one of the arithmetic."""
    return next(fc for least, fc in FC_SHARES if conv_share >= least)


def _read(path: Path) -> Costs | None:
    try:
        return Costs.from_json(json.loads(path.read_text()), path.name)
    except (OSError, ValueError, FieldError):
        return None  # not there or damaged


def candidates(px: int, costs: Costs, chains: Mapping[float, Chain]) -> list[Candidate]:
    """The candidates of a size: a rung for every share that has a chain. Between shares that were asked the
    logarithm of the cost is linear in that of the share."""
    known = sorted((math.log(float(share)), max(kl, 1e-6)) for share, kl in costs.ranks.items())
    shares, logs = [share for share, _ in known], [math.log(cost) for _, cost in known]
    return [
        Candidate(
            Rung(share, fc_share(share), px),
            chain.macs(),
            chain.parameters(),
            costs.size,
            math.exp(float(np.interp(math.log(share), shares, logs))),
        )
        for share, chain in chains.items()
        if known
    ]
