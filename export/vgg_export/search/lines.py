"""The points of a search as lines of a terminal, 80 columns wide at most, and the figures in them as text."""

from collections.abc import Sequence

from vgg_runtime.text import ABSENT, megabytes, padded, printable, printed_width

from .front import lost
from .points import Point

WIDTHS = (6, 19, 7, 7, 6, 11)
NAME = 1  # the column of the name, flush left
HEADER = ("input", "point", "file", "smaller", "faster", "points lost")
BEST = "best so far"
# what a family is called where there is little room; the others need no name
SHORT = {
    "compact, not fitted": "not fitted",
    "filters by L2, repaired": "L2 repaired",
    "filters by L2, not repaired": "L2 alone",
    "filters at random, not repaired": "at random",
}


def header() -> str:
    """The names of the columns of ``line``."""
    return _columns(HEADER, "")


def line(point: Point, baseline: Point, *, best: bool, sure: bool = False) -> str:
    """A point with its input size, strength, file size, that and the speed relative to the baseline, and the
    points lost on the selection pictures with their standard error. ``best``: it is the best one so far;
    ``sure``: the loss is as --sure counts it."""
    cells = (
        f"{point.input_px} px",
        strength(point),
        f"{megabytes(point.bytes)} MB",
        smaller(point, baseline),
        faster(point),
        loss(point, baseline, sure=sure),
    )
    return _columns(cells, BEST if best else SHORT.get(point.family, ""))


def strength(point: Point) -> str:
    """What is left of the network: "conv 18 %  fc 50 %"; of a point without shares, its name without the
    input size."""
    shares = [point.setting.get(name) for name in ("conv_share", "fc_share")]
    if all(isinstance(share, int | float) for share in shares):
        return "  ".join(
            f"{name} {share:.0%}" for name, share in zip(("conv", "fc"), shares, strict=True)
        ).replace("%", " %")
    return point.name.removesuffix(f", {point.input_px} px")


def smaller(point: Point, baseline: Point) -> str:
    """The size of the file relative to the baseline's: "1/81"."""
    return f"1/{baseline.bytes / point.bytes:.0f}"


def faster(point: Point) -> str:
    """The speed relative to the baseline's: "24.4x"."""
    return f"{point.speedup:.1f}x"


def loss(point: Point, baseline: Point, which: str = "select", *, sure: bool = False) -> str:
    """The points lost and their standard error: "-0.2 ± 1.6"; a dash without figures on those pictures."""
    found = lost(point, baseline, which, sure=sure)
    return ABSENT if found is None else f"{found[0]:+.1f} ± {found[1]:.1f}"


def _columns(cells: Sequence[str], note: str) -> str:
    """Cells in columns. Figures are never cut; the name gives way to those that are wider than their
    column."""
    too_wide = sum(max(0, printed_width(cells[k]) - WIDTHS[k]) for k in range(len(cells)) if k != NAME)
    shown = [padded(cell, width, flush_left=False) for cell, width in zip(cells, WIDTHS, strict=True)]
    shown[NAME] = padded(_cut(cells[NAME], WIDTHS[NAME] - too_wide), WIDTHS[NAME] - too_wide, flush_left=True)
    return "  ".join([*shown, note]).rstrip()


def _cut(text: str, width: int) -> str:
    """A name of at most so many columns, which are fewer characters where some take two."""
    return next(cut for n in range(width, 0, -1) if printed_width(cut := printable(text, n)) <= width)
