"""Predicts how long a search takes, before it starts.

The work is counted: pictures that the checkpoint answers, second moments that are solved, points that are
made. Each kind costs a multiple of what the checkpoint needs for a picture, which is timed on this machine,
on the CPU and, where torch computes elsewhere, there.
The multiples were measured on a VGG-16; they depend on the machine less than seconds do. What does not depend
on the network (timing, sessions) is in seconds.
"""

import dataclasses
import math

from vgg_export.network.chain import Chain, Conv

# of the forward pass of the checkpoint in torch
IN_ONNXRUNTIME, IN_INT8, TRAINING = 0.85, 0.25, 3.0
# multiply-accumulates for each d^3, d the inputs of a layer whose second moments are solved at all ranks, or
# fitted
SOLVING, FITTING = 7.6, 19.5
EXPORTING_S = 0.15  # per million parameters
QUANTIZING_S, QUANTIZING_FEW_S = 0.21, 0.09  # per million parameters, with every int8 form and with few
POINT_S, VARIANT_S, START_S = 25.0, 8.0, 20.0
JUDGED, FITTED = 128, 260  # pictures
CALIBRATED, CALIBRATED_FEW = 190, 128  # pictures, with every int8 form and with few
EPOCHS = 8  # with the tests of the rate


@dataclasses.dataclass(frozen=True)
class Work:
    """What a search does. ``sizes``: the input sizes in px that are judged, the network's own first; ``px``:
    the one that its points are likely to have; ``walked``: how many are walked beforehand. ``shares``: the
    shares of the arithmetic whose cost is measured. ``selected``, ``crops`` and ``tested``: numbers of
    pictures. ``variants``: how many are made and compared. ``again``: whether compact variants are made at
    the network's own input, too. ``every_form``: see ``QuantizeOptions``."""

    sizes: tuple[int, ...]
    px: int
    walked: int
    shares: tuple[float, ...]
    selected: int
    crops: int
    tested: int
    variants: int
    again: bool
    every_form: bool = True


@dataclasses.dataclass(frozen=True)
class Pace:
    """The seconds that the checkpoint needs for a picture in torch, where torch computes, and on the CPU,
    where onnxruntime does (``tensors.seconds_per_picture``)."""

    in_torch_s: float
    on_cpu_s: float


def expected_s(chain: Chain, work: Work, pace: Pace, points: int) -> float:
    """The seconds of a search that tries so many points, and of making its bundle."""
    picture_s, on_cpu_s = pace.in_torch_s, pace.on_cpu_s
    millions, solved = chain.parameters() / 1e6, _solved(chain) * picture_s / chain.macs()
    at = {px: (px / chain.input.px) ** 2 for px in (*work.sizes, work.px)}
    share = min(work.shares) * 2

    def walking(px: int) -> float:
        return FITTED * at[px] * picture_s + SOLVING * solved

    def making(px: int) -> float:
        learning = work.crops * EPOCHS * TRAINING * share
        seen = FITTED + work.crops * share
        return FITTING * solved + (seen + learning) * at[px] * picture_s + POINT_S

    before = START_S + EXPORTING_S * millions + work.selected * IN_ONNXRUNTIME * on_cpu_s
    calibrated, each_s = (CALIBRATED, QUANTIZING_S) if work.every_form else (CALIBRATED_FEW, QUANTIZING_FEW_S)
    alone = (calibrated + work.selected * IN_INT8) * on_cpu_s + each_s * millions
    judging = sum(JUDGED * at[px] * picture_s for px in work.sizes[1:])
    walks = sorted(work.sizes)[: work.walked]
    forecasting = sum(walking(px) + JUDGED * (1 + sum(work.shares)) * at[px] * picture_s for px in walks)
    teacher = work.crops * picture_s
    again = walking(chain.input.px) + making(chain.input.px) if work.again else 0.0
    testing = work.tested * (IN_ONNXRUNTIME + 2 * IN_INT8) * on_cpu_s + work.variants * VARIANT_S
    return before + alone + judging + forecasting + teacher + points * making(work.px) + again + testing


def _solved(chain: Chain) -> float:
    """The sum of d^3 over the layers that are solved."""
    convs = (
        site.channels * math.prod(site.layer.kernel) for site in chain.convs if isinstance(site.layer, Conv)
    )
    return float(sum(d**3 for d in (*convs, *(site.layer.outputs for site in chain.linears[:-1]))))


def in_words(likely_s: float, most_s: float) -> str:
    """The prediction as a sentence."""
    likely, most = (max(1, round(seconds / 60)) for seconds in (likely_s, most_s))
    bound = f", {most} at most" if most > likely else ""
    return f"the search and its bundle take about {likely} min on this machine{bound}"
