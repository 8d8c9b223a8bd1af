"""Predicts how long a search takes, before it starts.

The work is counted: pictures that the checkpoint answers, second moments that are solved, points that are
made. Each kind costs a multiple of what the checkpoint needs for a picture, which is timed on this machine,
on the CPU and, where torch computes elsewhere, there.
The multiples were measured on a VGG-16; they depend on the machine less than seconds do. What does not depend
on the network (timing, sessions) is in seconds.
"""

import dataclasses
import math
from collections.abc import Sequence

from vgg_export.network.chain import Chain, Conv
from vgg_export.options import FinetuneOptions
from vgg_runtime.board.targets import TARGETS, Target, saturates

# of the forward pass of the checkpoint in torch
IN_ONNXRUNTIME, TRAINING = 1.0, 3.0
# of the same, int8: on a core with a dot product, on others, and there a build of another core's, whose sums
# must not overflow
IN_INT8, IN_INT8_SLOW, IN_INT8_EXACT = 0.3, 0.6, 1.2
# multiply-accumulates for each d^3, d the inputs of a layer whose second moments are solved at all ranks, or
# fitted
SOLVING, FITTING = 9.0, 14.0
EXPORTING_S = 0.15  # per million parameters
POINT_S, VARIANT_S, START_S = 25.0, 8.0, 20.0
JUDGED, FITTED = 128, 260  # pictures
EPOCHS = 8  # with the tests of the rate
# of a pruned network that is fine-tuned: the epochs with the tests of the rate, the share of the arithmetic
# that is trained, and the share of the checkpoint's arithmetic that is left
TUNING, TRAINED, LEFT = 4, 0.4, 0.7
SELECTED = FinetuneOptions.select_images


@dataclasses.dataclass(frozen=True)
class Forms:
    """What making an int8 build of a whole network takes, by how many forms are tried. ``floats`` and
    ``integers``: the pictures that calibrate and compare the forms; rounding weights together and trying
    layers in float count as such. ``writing_s``: per million parameters."""

    floats: int
    integers: int
    writing_s: float


ALL_FORMS, FEW_FORMS = Forms(650, 600, 0.21), Forms(190, 240, 0.09)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a search does. ``sizes``: the input sizes in px that are judged, the network's own first; ``px``:
    the one that its points are likely to have; ``walked``: how many are walked beforehand. ``shares``: the
    shares of the arithmetic whose cost is measured. ``selected``, ``crops``, ``tested`` and ``tuned``:
    numbers of pictures, the last those that a pruned network is fine-tuned on. ``variants``: how many are
    made and compared; ``pruned``: how many of these are pruned and int8; None: none is pruned. ``again``:
    whether compact variants are made at the network's own input, too. ``int8``: for each int8 build of a
    network that has weights of its own, what a picture costs there (``int8_cost``). ``every_form``: whether
    all forms of int8 are likely to be tried."""

    sizes: tuple[int, ...]
    px: int
    walked: int
    shares: tuple[float, ...]
    selected: int
    crops: int
    tested: int
    variants: int
    again: bool
    pruned: int | None = None
    tuned: int = 0
    int8: tuple[float, ...] = (IN_INT8,)
    every_form: bool = True


@dataclasses.dataclass(frozen=True)
class Pace:
    """The seconds that the checkpoint needs for a picture in torch, where torch computes, and on the CPU,
    where onnxruntime does (``tensors.seconds_per_picture``)."""

    in_torch_s: float
    on_cpu_s: float


def expected_s(chain: Chain, work: Work, pace: Pace, points: int) -> float:
    """The seconds of a search that tries so many points, and of making its bundle."""
    return _Expected(chain, work, pace).all_s(points)


class _Expected:
    """The parts of the prediction, in seconds."""

    def __init__(self, chain: Chain, work: Work, pace: Pace) -> None:
        self.work, self.picture_s, self.on_cpu_s = work, pace.in_torch_s, pace.on_cpu_s
        self.own_px, self.millions = chain.input.px, chain.parameters() / 1e6
        self.solved = _solved(chain) * pace.in_torch_s / chain.macs()
        self.share = min(work.shares) * 2

    def all_s(self, points: int) -> float:
        again = self.walking(self.own_px) + self.point(self.own_px) if self.work.again else 0.0
        search = self.before() + points * self.point(self.work.px) + again
        return search + self.pruned() + self.testing()

    def at(self, px: int) -> float:
        """A picture of another size, relative to one of the network's own."""
        return (px / self.own_px) ** 2

    def before(self) -> float:
        """Until the first point: the baseline, int8 alone, the sizes, what ranks cost, and the teacher."""
        work = self.work
        told = work.selected * (IN_ONNXRUNTIME + work.int8[0]) * self.on_cpu_s
        judging = sum(JUDGED * self.at(px) for px in work.sizes[1:]) * self.picture_s
        walks = sorted(work.sizes)[: work.walked]
        losing = sum(JUDGED * (1 + sum(work.shares)) * self.at(px) for px in walks) * self.picture_s
        walked = sum(self.walking(px) for px in walks)
        made = START_S + EXPORTING_S * self.millions + self.quantizing()
        return made + told + judging + walked + losing + work.crops * self.picture_s

    def walking(self, px: int) -> float:
        return FITTED * self.at(px) * self.picture_s + SOLVING * self.solved

    def point(self, px: int) -> float:
        learning = self.work.crops * EPOCHS * TRAINING * self.share
        seen = FITTED + self.work.crops * self.share
        return FITTING * self.solved + (seen + learning) * self.at(px) * self.picture_s + POINT_S

    def quantizing(self) -> float:
        """The int8 builds of the whole network."""
        forms = ALL_FORMS if self.work.every_form else FEW_FORMS
        pictures = sum(forms.floats + forms.integers * int8 for int8 in self.work.int8)
        return pictures * self.on_cpu_s + forms.writing_s * self.millions * len(self.work.int8)

    def pruned(self) -> float:
        """A network that is pruned, repaired and fine-tuned, and its int8 builds."""
        if self.work.pruned is None:
            return 0.0
        learning = 1 + LEFT * (1 + TUNING * TRAINING * TRAINED)
        repairing = 2 * FITTED * self.picture_s + FITTING * self.solved
        tuning = (self.work.tuned * learning + min(SELECTED, self.work.selected)) * self.picture_s
        return repairing + tuning + LEFT * self.work.pruned * self.quantizing()

    def testing(self) -> float:
        """All variants on the test pictures, and their measurement."""
        work = self.work
        left = 0 if work.pruned is None else LEFT
        answers = IN_ONNXRUNTIME * (1 + left) + sum(work.int8) * (1 + left * (work.pruned or 0))
        return work.tested * answers * self.on_cpu_s + work.variants * VARIANT_S


def int8_cost(core: Target, targets: Sequence[str]) -> tuple[float, ...]:
    """What a picture costs on ``core`` with the builds of a whole network that are made for ``targets``, of
    the forward pass of the checkpoint: one for each kind of weights (``builds``)."""
    kinds: dict[bool, str] = {}
    for name in targets:
        kinds.setdefault(TARGETS[name].reduce_range, name)
    plain = IN_INT8 if core.dot_product else IN_INT8_SLOW
    return tuple(IN_INT8_EXACT if saturates(core, (name,)) else plain for name in kinds.values())


def _solved(chain: Chain) -> float:
    """The sum of d^3 over the layers that are solved."""
    convs = (
        site.channels * math.prod(site.layer.kernel) for site in chain.convs if isinstance(site.layer, Conv)
    )
    return float(sum(d**3 for d in (*convs, *(site.layer.outputs for site in chain.linears[:-1]))))


def in_words(likely_s: float, most_s: float, points: tuple[int, int] | None = None) -> str:
    """The prediction as a sentence. ``points``: where a search has no bound, the numbers of points that both
    are for."""
    likely, most = (max(1, round(seconds / 60)) for seconds in (likely_s, most_s))
    bound = f", {most} at most" if most > likely else ""
    if points:
        bound = f" if {points[0]} points are tried, and {most} min if {points[1]} are"
    return f"the search and its bundle take about {likely} min on this machine{bound}"
