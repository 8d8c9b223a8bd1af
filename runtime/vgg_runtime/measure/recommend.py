"""Which variant to ship: the fastest that loses no more than it may, the standard error of its loss
included."""

from collections.abc import Sequence
from typing import Any

from vgg_runtime.bundle.metrics import better_than_chance

MAX_LOSS_POINTS = 1.0
LEAST_LABELLED = 20  # of fewer pictures even a good network's top-1 says little
LEAST_IMAGES = 100  # one point is one picture of a hundred: below that the loss cannot be told


def recommend(
    rows: Sequence[dict[str, Any]],
    baseline: str,
    max_loss_points: float = MAX_LOSS_POINTS,
    problem: str | None = None,
) -> dict[str, Any]:
    """Choose among the rows of a result document by what was measured on test images when the bundle was
    built.

    The loss is the drop of top-1 in points, or 100 * (1 - agreement) where there were no labels; with its
    standard error it must stay within the allowance, as in the search that ``vgg-export all --max-drop``
    makes. Pictures shown on the device do not count: a handful of them decides nothing. ``problem``: that the
    bundle's checkpoint does not understand its pictures, if so.

    Returns:
        ``{"variant", "max_loss_points", "reason"}``; ``variant`` is None when nothing can be said, and
        ``reason`` says why.
    """
    if problem:
        return _answer(None, max_loss_points, problem)
    reference = next((row for row in rows if row["variant"] == baseline), None)
    fit = [row for row in rows if row["error"] is None and row["p50_ms"] and row["built"]]
    if reference is None:
        return _answer(
            None,
            max_loss_points,
            "the baseline was not run beside these, so there is nothing to compare with",
        )
    if not reference["built"]:
        return _answer(
            None,
            max_loss_points,
            "no figures on test images were recorded when this bundle was made, so none is recommended",
        )
    allowance = f"{max_loss_points:g} point{'' if max_loss_points == 1 else 's'}"
    if (n := reference["built"]["n"]) < LEAST_IMAGES:
        return _answer(
            None,
            max_loss_points,
            f"{n} test images are too few to tell a loss of {allowance} (at least {LEAST_IMAGES})",
        )
    if reason := near_chance(reference["built"]):
        return _answer(None, max_loss_points, reason)
    allowed = [row for row in fit if row is reference or _at_worst(row, reference) <= max_loss_points + 1e-9]
    if not allowed:
        return _answer(
            None, max_loss_points, f"no variant that ran here stays within {allowance} of the baseline"
        )
    best = min(allowed, key=lambda row: row["p50_ms"])
    speed = "" if best["speedup"] is None else f" ({best['speedup']:.1f} times the baseline's speed)"
    return _answer(
        best["variant"],
        max_loss_points,
        f"the fastest here{speed} of those that lose at most {allowance}, error included:"
        f" {_words(best, reference)}",
    )


def near_chance(built: dict[str, Any], pictures: str = "test images") -> str | None:
    """Why nothing may be recommended on the baseline's figures: it does not understand the pictures. None
    where it is clearly better than chance, and where that is not known (no labels, or a bundle made before it
    was recorded)."""
    top1, chance = built["top1"], built.get("chance")
    if not top1 or chance is None or better_than_chance(round(top1["rate"] * top1["n"]), top1["n"], chance):
        return None
    found = f"the baseline is right on {100 * top1['rate']:.1f} % of {top1['n']} {pictures}"
    if not better_than_chance(top1["n"], top1["n"], chance):
        return (
            f"{found}, of which {100 * chance:.0f} % are of one class: even all of them would not be"
            " clearly better than chance"
        )
    return (
        f"{found}, which is not clearly better than chance ({100 * chance:.1f} %): it does not understand"
        " these pictures as they are"
        " prepared (normalisation, channel order, range), its classes are in another order, or they are"
        " other pictures; a variant that"
        " agrees with it is no better"
    )


def loss_points(built: dict[str, Any], reference: dict[str, Any]) -> float:
    """What a variant lost against the baseline, in points of top-1, or of disagreement where there were no
    labels."""
    if built["top1"] and reference["top1"]:
        return float(100 * (reference["top1"]["rate"] - built["top1"]["rate"]))
    return float(100 * (1 - built["agreement"]["rate"]))


def _at_worst(row: dict[str, Any], reference: dict[str, Any]) -> float:
    """The loss and its standard error; bundles made before there was one do not have it."""
    return loss_points(row["built"], reference["built"]) + float(row["built"].get("loss_error_points", 0.0))


def _words(row: dict[str, Any], reference: dict[str, Any]) -> str:
    built, of = row["built"], reference["built"]
    if built["top1"] and of["top1"]:
        return (
            f"top-1 {100 * built['top1']['rate']:.1f} % against {100 * of['top1']['rate']:.1f} % on"
            f" {built['n']} test images"
        )
    return (
        f"it agrees with the baseline on {100 * built['agreement']['rate']:.1f} % of {built['n']} test images"
    )


def _answer(variant: str | None, max_loss_points: float, reason: str) -> dict[str, Any]:
    return {"variant": variant, "max_loss_points": max_loss_points, "reason": reason}
