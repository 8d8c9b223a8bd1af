"""Asks a checkpoint about the same labelled pictures with other usual inputs: another normalisation, another
order of the channels, another way of resizing. Finds out which one it was trained with.

A network is asked with each of the others on a few pictures first, and with the best of them on all. Those
few choose and the rest decides, so that the best of many does not win by luck.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from vgg_export.core.progress import Progress
from vgg_runtime.bundle import input_spec, metrics
from vgg_runtime.bundle.input_spec import COLOURS, NORMALIZATIONS, InputSpec
from vgg_runtime.bundle.outputs import class_logits, log_softmax
from vgg_runtime.bundle.preprocess import framed, open_image, scaled
from vgg_runtime.records import Record

from .splits import Item

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ask = Callable[[Floats], Floats]  # a batch [n, channels, px, px] -> what the network gives, [n, units]

BATCH = 10
FIRST, SOME = 20, 60  # pictures of the first round and of both rounds, before the best are asked about all
FINALISTS = 2
NORMALIZATION, RESIZING = "asking it with other normalisations", "asking it with other ways of resizing"
FINAL = "asking it with the best of them"
BEHIND = 0.05  # level of each of the two tests that end a candidate after the first round
# Where a network is right on nearly all pictures, few are left to win. Another normalisation is then better,
# too, if it is right on more of them, leaves at most this share of the loss, and the loss of the rest is less
# at this level (permutation test). A way of resizing is not judged so: any network sees larger things better.
LIKELY, LOSS_LEFT = 0.025, 0.5
LEAST_WON = 4  # an input that corrects fewer pictures is not looked at further
FLIPS = 4000  # random signs of the permutation test


@dataclasses.dataclass(frozen=True)
class Settled:
    """What pictures must not overrule, since the user or the file tells it. ``auto``: the user lets the
    pictures choose."""

    normalization: bool = False
    resize: bool = False
    auto: bool = False


NOTHING_SETTLED = Settled()


@dataclasses.dataclass(frozen=True)
class Tried(Record):
    """A checkpoint that was asked with ``input`` is right on ``right`` of ``n`` pictures."""

    input: InputSpec
    right: int
    n: int

    @property
    def rate(self) -> float:
        return self.right / self.n


@dataclasses.dataclass(frozen=True)
class Trial(Record):
    """The inputs that were tried: the assumed one first, then from the best to the worst. ``best``: the one
    to take instead of the assumed one, None if that is the best. ``clear``: it is clearly better."""

    tried: tuple[Tried, ...]
    best: Tried | None = None
    clear: bool = False

    @property
    def assumed(self) -> Tried:
        return self.tried[0]

    @property
    def better(self) -> Tried:
        """The best, where there is a better one than the assumed."""
        assert self.best
        return self.best


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """The logits with one input, [n, classes], of pictures of these classes, [n]."""

    input: InputSpec
    logits: Floats
    labels: npt.NDArray[np.int64]

    @functools.cached_property
    def hits(self) -> Bools:
        hits: Bools = self.logits.argmax(1) == self.labels
        return hits

    @functools.cached_property
    def losses(self) -> npt.NDArray[np.float64]:
        """How little the right class of each picture was expected: -log p, [n]."""
        return -log_softmax(self.logits)[np.arange(len(self.labels)), self.labels]

    def at(self, places: Sequence[int]) -> "Said":
        return Said(self.input, self.logits[list(places)], self.labels[list(places)])

    def and_of(self, other: "Said") -> "Said":
        logits, labels = (self.logits, other.logits), (self.labels, other.labels)
        return Said(self.input, np.concatenate(logits), np.concatenate(labels))

    def place(self) -> tuple[float, float]:
        """What is smaller for the better of two: fewer errors, then less loss."""
        return -float(self.hits.mean()), float(self.losses.mean())


class Asked:
    """A network and labelled pictures, each of which is decoded once for the inputs that are tried.

    ``output``: what the outputs mean (vgg_runtime.bundle.outputs).
    """

    def __init__(self, network: Ask, output: str, items: Sequence[Item], progress: Progress) -> None:
        self.items, self.labels = items, np.array([item.label for item in items], np.int64)
        self._network, self._output, self._progress = network, output, progress
        self._frames: dict[tuple[int, str, int], npt.NDArray[np.uint8]] = {}

    def said(self, specs: Sequence[InputSpec], places: Sequence[int], doing: str) -> list[Said]:
        """The answers about the pictures at these places, with each input."""
        parts: list[list[Floats]] = [[] for _ in specs]
        with self._progress.task(doing, len(specs) * len(places)) as task:
            for start in range(0, len(places), BATCH):
                batch = places[start : start + BATCH]
                for spec, own in zip(specs, parts, strict=True):
                    x = np.stack([scaled(self.frame(k, spec, specs), spec) for k in batch])
                    own.append(class_logits(self._network(x), self._output))
                    task.advance(len(batch))
        labels = self.labels[list(places)]
        return [Said(spec, np.concatenate(own), labels) for spec, own in zip(specs, parts, strict=True)]

    def frame(self, place: int, spec: InputSpec, also: Iterable[InputSpec] = ()) -> npt.NDArray[np.uint8]:
        """The part of a picture that the network sees: bytes [px, px, channels]."""
        key = place, spec.resize, spec.resize_px
        if key not in self._frames:
            wanted = (spec, *also)
            image = open_image(self.items[place].path, max(wanted, key=lambda one: one.resize_px))
            for one in wanted:
                self._frames[place, one.resize, one.resize_px] = framed(image, one)
        return self._frames[key]


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A trial with the answers behind it. ``best``: those of all pictures with the best input, where that is
    better than the assumed one. ``others``: those of each other input, of at least a few pictures."""

    trial: Trial
    best: Said | None
    others: tuple[Said, ...]


def normalizations(spec: InputSpec) -> list[InputSpec]:
    """``spec`` with each other usual normalisation, and with red and blue exchanged in each."""
    usual = [word for word, one in NORMALIZATIONS.items() if spec.channels == COLOURS or one.grey]
    found = [input_spec.normalized(spec, word) for word in usual]
    if spec.channels == COLOURS:
        found += [input_spec.exchanged(one) for one in (spec, *found)]
        # what OpenCV read, with ImageNet's numbers in their usual order
        found.append(dataclasses.replace(input_spec.normalized(spec, "imagenet"), bgr=True))
    return [one for one in dict.fromkeys(found) if one != spec]


def resizings(spec: InputSpec) -> list[InputSpec]:
    """``spec`` with each other usual way of resizing."""
    margin = input_spec.for_input(spec.px).resize_px
    words = ("crop", "squash", "pad", f"crop:{spec.px}", f"squash:{margin}")
    return [one for one in (input_spec.resized(spec, word) for word in words) if one != spec]


def try_others(asked: Asked, own: Said, settled: Settled) -> Found:
    """Ask a network with other usual inputs. ``own``: its answers about all n pictures with the assumed one.

    The normalisation is found first, with the assumed resizing; then the resizing, with what was found. Where
    the network is wrong on 20 pictures or less, only inputs that would correct enough of them go on. The
    others are asked about 20 to 60 pictures, and the best two about all. With colours and n = 300 these are
    up to 1,900 runs of the network, and less than 300 where the assumed input is right.
    """
    order = [int(k) for k in np.random.default_rng(0).permutation(len(asked.items))]
    some, rest = order[: (cut := min(SOME, len(order) // 2))], order[cut:]
    candidates = _hopeful(asked, own, normalizations(own.input))
    found = _contest(asked, own, candidates, some, rest, NORMALIZATION)
    others = list(found.others)
    if not settled.resize:
        base = found.best if found.best and (found.clear or settled.auto) else own
        candidates = _distinct(asked, base.input, _hopeful(asked, base, resizings(base.input)), some)
        more = _contest(asked, base, candidates, some, rest, RESIZING)
        others += more.others
        # a way of resizing that is better by little is luck
        found = more if more.clear else found
    ranked = sorted(others, key=lambda said: (-len(said.hits), said.place()))
    best = tried(found.best) if found.best else None
    return Found(Trial(tuple(map(tried, (own, *ranked))), best, found.clear), found.best, tuple(ranked))


def _hopeful(asked: Asked, own: Said, candidates: Sequence[InputSpec]) -> list[InputSpec]:
    """The candidates that could be better. Where the network is wrong on few pictures, these tell."""
    wrong = [int(k) for k in np.flatnonzero(~own.hits)]
    if len(wrong) > FIRST:
        return list(candidates)
    if len(wrong) < LEAST_WON or not candidates:
        return []
    found = asked.said(candidates, wrong, "asking it with other inputs where it is wrong")
    return [said.input for said in found if said.hits.sum() >= LEAST_WON]


def tried(said: Said) -> Tried:
    """The answers counted."""
    return Tried(said.input, int(said.hits.sum()), len(said.hits))


def _sweep(
    asked: Asked, own: Said, candidates: Sequence[InputSpec], some: Sequence[int], doing: str
) -> list[Said]:
    """Ask with each candidate, in two rounds; those that are clearly behind after the first, by what they are
    right on or by how little they expected it, take no part in the second."""
    if not candidates:
        return []
    first, second = some[:FIRST], some[FIRST:]
    begun = asked.said(candidates, first, doing)
    leader = min([own.at(range(len(first))), *begun], key=Said.place)
    ahead = [said for said in begun if not _clearly_behind(said, leader)]
    behind = [said for said in begun if said not in ahead]
    if not second:
        return begun
    more = asked.said([said.input for said in ahead], second, doing)
    return [said.and_of(rest) for said, rest in zip(ahead, more, strict=True)] + behind


def _clearly_behind(said: Said, leader: Said) -> bool:
    return (
        clearly_more(leader.hits, said.hits, BEHIND) or _chance_of_less(leader.losses, said.losses) < BEHIND
    )


def _distinct(
    asked: Asked, spec: InputSpec, others: Sequence[InputSpec], places: Sequence[int]
) -> list[InputSpec]:
    """Those of the others that show the network pixels which ``spec`` and the ones before do not: of square
    pictures, for example, squash and crop show the same."""
    kept = [spec]
    for one in others:
        if not any(_show_the_same(asked, one, other, places, [spec, *others]) for other in kept):
            kept.append(one)
    return kept[1:]


def _show_the_same(
    asked: Asked, one: InputSpec, other: InputSpec, places: Sequence[int], also: Sequence[InputSpec]
) -> bool:
    return all(np.array_equal(asked.frame(k, one, also), asked.frame(k, other, also)) for k in places)


@dataclasses.dataclass(frozen=True, eq=False)
class _Contest:
    """``others``: the answers with each candidate. ``best``: those with the best of them about all pictures,
    where that is better than what it was compared with; ``clear``: clearly."""

    others: tuple[Said, ...]
    best: Said | None
    clear: bool


def _contest(
    asked: Asked,
    own: Said,
    candidates: Sequence[InputSpec],
    some: Sequence[int],
    rest: Sequence[int],
    doing: str,
) -> _Contest:
    """Compare candidates with ``own``. Some pictures choose the finalists, the rest decides."""
    mine = own.at(some)
    found = _sweep(asked, mine, candidates, some, doing)
    ahead = [said for said in found if len(said.hits) == len(some) and said.place() < mine.place()]
    finalists = sorted(ahead, key=Said.place)[:FINALISTS]
    last = asked.said([said.input for said in finalists], rest, FINAL) if finalists else []
    back = [int(k) for k in np.argsort([*some, *rest])]
    whole = [said.and_of(more).at(back) for said, more in zip(finalists, last, strict=True)]
    level = metrics.CHANCE_LEVEL / max(1, len(finalists))
    clear = [said for said in whole if _clearly_better(said, own, rest, level)]
    better = [said for said in whole if said.place() < own.place()]
    best = min(clear or better, key=Said.place, default=None)
    return _Contest((*whole, *(said for said in found if said not in finalists)), best, bool(clear))


def _clearly_better(said: Said, own: Said, rest: Sequence[int], level: float) -> bool:
    """Whether an input is right clearly more often on the rest of the pictures; for a normalisation see also
    LIKELY."""
    last, mine = said.at(rest), own.at(rest)
    if clearly_more(last.hits, mine.hits, level):
        return True
    return (
        not resized(said.input, own.input)
        and int(said.hits.sum()) > int(own.hits.sum())
        and bool(said.losses.mean() <= LOSS_LEFT * own.losses.mean())
        and _chance_of_less(last.losses, mine.losses) < LIKELY
    )


def _chance_of_less(losses: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """The probability that equally good answers would have a mean loss that is so much less than the others'
    on the same pictures (permutation test with random signs)."""
    less = others - losses
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (FLIPS, len(less)))
    return float((1 + (signs @ less >= less.sum()).sum()) / (1 + FLIPS))


def resized(spec: InputSpec, other: InputSpec) -> bool:
    """Whether two inputs of a size show the network other parts of a picture."""
    return (spec.resize, spec.resize_px) != (other.resize, other.resize_px)


def rescaled(spec: InputSpec, other: InputSpec) -> bool:
    """Whether two inputs differ in their normalisation or in the order of the channels."""
    return (spec.mean, spec.std, spec.bgr) != (other.mean, other.std, other.bgr)


def clearly_more(some: Bools, others: Bools, level: float = metrics.CHANCE_LEVEL) -> bool:
    """Whether the first is right more often than the second on the same pictures (exact sign test)."""
    won, lost = int((some & ~others).sum()), int((others & ~some).sum())
    return won > lost and metrics.binomial_tail(won, won + lost, 0.5) < level
