"""Points of a search with made-up figures."""

from typing import Any

from vgg_export.search import points
from vgg_runtime.bundle.metrics import wilson_interval
from vgg_runtime.result import Evaluation, Proportion

BASE_MS, BASE_BYTES, N = 100.0, 500_000_000, 1000


def figures(top1: float | None, agreement: float = 0.99, error: float = 0.0) -> Evaluation:
    def proportion(rate: float) -> Proportion:
        return Proportion(rate, N, wilson_interval(round(rate * N), N))

    return Evaluation(
        n=N,
        top1=None if top1 is None else proportion(top1),
        chance=None,
        top5=None,
        agreement=proportion(agreement),
        loss_error_points=error,
        kl_mean=0.0,
        kl_p95=0.0,
    )


def point(
    name: str, top1: float | None, speed: float, size: float, family: str = "compact", **more: Any
) -> points.Point:
    """``size``: how many times smaller than the baseline."""
    return points.Point(
        family,
        name,
        ("export",),
        model=f"{name}.onnx",
        sha256=name,
        input_px=160,
        precision="int8",
        target="pi5",
        bytes=round(BASE_BYTES / size),
        parameters=1,
        macs=1,
        p50_ms=BASE_MS / speed,
        baseline_p50_ms=BASE_MS,
        select=figures(top1, more.get("agreement", 0.99), more.get("error", 0.0)),
        test=more.get("test"),
    )


BASE = point("fp32", 0.95, 1, 1, "baseline", agreement=1.0)
