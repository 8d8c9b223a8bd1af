"""Draws one plot of the front as SVG: a cost on a logarithmic axis against the points lost. Better is up."""

import dataclasses
import html
import itertools
import math
from collections.abc import Iterator, Sequence

from vgg_runtime.text import printable, printed_width

# Markers as paths in a box from -1 to 1, by matplotlib's letters. They differ in shape, not only in colour.
MARKERS = {
    "o": "M-.9 0a.9 .9 0 1 0 1.8 0a.9 .9 0 1 0 -1.8 0Z",
    "s": "M-.8 -.8H.8V.8H-.8Z",
    "D": "M0 -1.1L1.1 0L0 1.1L-1.1 0Z",
    "v": "M-1 -.8H1L0 1Z",
    "*": "M0 -1.25L.31 -.43L1.19 -.39L.5 .16L.73 1.01L0 .52L-.73 1.01L-.5 .16L-1.19 -.39L-.31 -.43Z",
    "X": "M-1 -.55L-.55 -1L0 -.45L.55 -1L1 -.55L.45 0L1 .55L.55 1L0 .45L-.55 1L-1 .55L-.45 0Z",
    "P": "M-.35 -1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "h": "M0 -1L.87 -.5V.5L0 1L-.87 .5V-.5Z",
}
MARKER_PX, RING_PX, CAP_PX = 6.0, 11.0, 3.0
TEXT_PX, CHARACTER_PX, BOLD_PX = 12, 6.5, 7.4  # the size of text, and the width of one character of it
LONGEST_NAME = 32
# where a label may be, from its dot: to the right is 1 or -1, down is 1 or -1
AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
# A point that loses more is drawn at the lower edge: one bad point must not squeeze the others together.
# WORST_POINTS without a budget, else so many times the budget, or LEAST_WORST_POINTS.
WORST_POINTS, WORST_BUDGETS, LEAST_WORST_POINTS = 10.0, 3.0, 4.0


@dataclasses.dataclass(frozen=True)
class Dot:
    """A point of a plot. ``x``: its cost, above 0. ``lost``: points lost, ± ``error``. ``tag``: the short
    name that is always shown, if there is one; ``name``: the long one, shown where there is room. ``look``:
    colour and marker. ``hollow``: a forecast."""

    x: float
    lost: float
    error: float
    tag: str
    name: str
    look: tuple[str, str]
    hollow: bool = False
    ringed: bool = False


@dataclasses.dataclass(frozen=True)
class Plot:
    """What is drawn. ``front``: places in ``dots`` that a line connects. ``max_lost`` and ``limit``: the
    budget, in points and on the horizontal axis; None: there is none. ``limit_in_words``: the latter's
    label."""

    title: str
    axis: str
    dots: tuple[Dot, ...]
    front: tuple[int, ...] = ()
    max_lost: float | None = None
    limit: float | None = None
    limit_in_words: str = ""


@dataclasses.dataclass(frozen=True)
class Frame:
    """The size of a drawing and its margins in px, and whether long names fit into it."""

    width: int
    height: int
    names: bool
    left: int = 46
    right: int = 14
    top: int = 14
    bottom: int = 44


WIDE, NARROW = Frame(556, 420, names=True), Frame(316, 330, names=False)
Box = tuple[float, float, float, float]  # left, top, right, bottom, in px


@dataclasses.dataclass(frozen=True)
class Scales:
    """Where values lie in a frame. ``costs`` and ``losses``: the least and the largest value shown."""

    frame: Frame
    costs: tuple[float, float]
    losses: tuple[float, float]

    @classmethod
    def of(cls, plot: Plot, frame: Frame) -> "Scales":
        """Scales that show every dot, its error and the budget, apart from what is lost far beyond it."""
        costs = [dot.x for dot in plot.dots] + ([plot.limit] if plot.limit else [])
        worst = WORST_POINTS
        if plot.max_lost is not None:
            worst = max(LEAST_WORST_POINTS, WORST_BUDGETS * plot.max_lost)
        low = min([0.0, *(dot.lost - dot.error for dot in plot.dots)])
        high = max([plot.max_lost or 0.0, *(dot.lost + dot.error for dot in plot.dots)])
        high = max(1.0, min(high, worst))
        room = 0.08 * (high - low)
        margin = max(1.1, (max(costs) / min(costs)) ** 0.06)
        return cls(frame, (min(costs) / margin, max(costs) * margin), (low - room, high + 1.5 * room))

    def x(self, cost: float) -> float:
        """Px from the left."""
        low, high = map(math.log, self.costs)
        width = self.frame.width - self.frame.left - self.frame.right
        return self.frame.left + (math.log(cost) - low) / (high - low) * width

    def y(self, lost: float) -> float:
        """Px from the top; what lies outside is moved to the edge."""
        low, high = self.losses
        height = self.frame.height - self.frame.top - self.frame.bottom
        return self.frame.top + (min(max(lost, low), high) - low) / (high - low) * height

    def outside(self, dot: Dot) -> bool:
        """Whether a dot loses more than is shown."""
        return dot.lost > self.losses[1]

    def centre(self, dot: Dot) -> tuple[float, float]:
        """Where a dot is drawn, in px; whole within the frame."""
        y = self.y(dot.lost)
        return self.x(dot.x), y - MARKER_PX - 2 if self.outside(dot) else y


def svg(plot: Plot, frame: Frame) -> str:
    """The plot. Colours of lines and text are left to the style of the page, by class."""
    scales = Scales.of(plot, frame)
    parts = [
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{_safe(plot.title)}">',
        *_budget(plot, scales),
        *_axes(plot, scales),
        _front(plot, scales),
        *(_bar(dot, scales) for dot in plot.dots if dot.error and not scales.outside(dot)),
        *(_dot(dot, scales) for dot in plot.dots),
        *_labels(plot, scales),
        "</svg>",
    ]
    return "\n".join(filter(None, parts))


def marker(look: tuple[str, str], *, hollow: bool = False) -> str:
    """A marker of 2 by 2 units around the origin."""
    colour, letter = look
    colour = "currentColor" if colour == "#000000" else colour  # black would not be seen on a dark page
    kind = "hollow" if hollow else "filled"
    paint = f'fill="none" stroke="{colour}"' if hollow else f'fill="{colour}"'
    return f'<path class="dot {kind}" {paint} d="{MARKERS[letter]}"/>'


def _dot(dot: Dot, scales: Scales) -> str:
    x, y = scales.centre(dot)
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{RING_PX:g}"/>' if dot.ringed else ""
    told = f"{dot.lost:+.1f}, a forecast" if dot.hollow else f"{dot.lost:+.1f} ± {dot.error:.1f}"
    title = f"<title>{_safe(dot.name)}: {dot.x:.3g}, points lost {told}</title>"
    where = f'transform="translate({x:.1f} {y:.1f}) scale({MARKER_PX:g})"'
    return f"{ring}<g {where}>{title}{marker(dot.look, hollow=dot.hollow)}</g>"


def _bar(dot: Dot, scales: Scales) -> str:
    x, ends = scales.x(dot.x), [scales.y(dot.lost - dot.error), scales.y(dot.lost + dot.error)]
    caps = "".join(f"M{x - CAP_PX:.1f} {y:.1f}H{x + CAP_PX:.1f}" for y in ends)
    return f'<path class="bar" d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}{caps}"/>'


def _front(plot: Plot, scales: Scales) -> str:
    ends = sorted(scales.centre(plot.dots[k]) for k in plot.front)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
    return f'<polyline class="front" points="{points}"/>' if len(ends) > 1 else ""


def _budget(plot: Plot, scales: Scales) -> Iterator[str]:
    """The budget's lines, and a tint where the loss is above it."""
    frame = scales.frame
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    if plot.max_lost is not None:
        y = scales.y(plot.max_lost)
        box = f'x="{frame.left}" y="{y:.1f}" width="{right - frame.left}" height="{bottom - y:.1f}"'
        yield f'<rect class="beyond" {box}/><path class="budget" d="M{frame.left} {y:.1f}H{right}"/>'
        at, anchor = (right - 4, "end") if _budget_at_right(plot, scales) else (frame.left + 4, "start")
        yield _text(_budget_label(plot), at, y - 5, anchor, "quiet")
    if plot.limit is not None:
        x, left = scales.x(plot.limit), scales.x(plot.limit) > (frame.left + right) / 2
        yield f'<path class="budget" d="M{x:.1f} {frame.top}V{bottom}"/>'
        yield _text(
            plot.limit_in_words, x + (-5 if left else 5), bottom - 8, "end" if left else "start", "quiet"
        )


def _budget_label(plot: Plot) -> str:
    return f"budget: {plot.max_lost:g} lost"


def _budget_at_right(plot: Plot, scales: Scales) -> bool:
    """Whether the budget's label is at the right end of its line: there are fewer dots in that half."""
    middle = (scales.frame.left + scales.frame.width - scales.frame.right) / 2
    return sum(scales.x(dot.x) > middle for dot in plot.dots) < len(plot.dots) / 2


def _axes(plot: Plot, scales: Scales) -> Iterator[str]:
    frame = scales.frame
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    for lost in loss_ticks(*scales.losses):
        y = scales.y(lost)
        yield f'<path class="{"nought" if lost == 0 else "grid"}" d="M{frame.left} {y:.1f}H{right}"/>'
        yield _text(f"{lost:g}", frame.left - 6, y + 4, "end")
    last = -math.inf
    for cost in cost_ticks(*scales.costs):
        x = scales.x(cost)
        yield f'<path class="grid" d="M{x:.1f} {frame.top}V{bottom}"/>'
        if x - last > 34:  # a number needs that many px
            yield _text(f"{cost:g}", x, bottom + 16, "middle")
            last = x
    yield f'<path class="axis" d="M{frame.left} {frame.top}V{bottom}H{right}"/>'
    yield _text(plot.axis, (frame.left + right) / 2, frame.height - 8, "middle", "quiet")
    middle = (frame.top + bottom) / 2
    turned = f'transform="rotate(-90 12 {middle:.0f})"'
    yield _text("points lost (up is better)", 12, middle, "middle", "quiet", turned)


def loss_ticks(low: float, high: float) -> list[float]:
    """Round values on a linear axis, about five."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def cost_ticks(low: float, high: float) -> list[float]:
    """Round values on a logarithmic axis: 1, 2, 5, 10, ..., and all digits where those are fewer than
    three."""
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    found: list[float] = []
    for digits in ((1, 2, 5), range(1, 10), [k / 10 for k in range(10, 100)]):
        found = [round(p * d, 10) for p in powers for d in digits if low <= round(p * d, 10) <= high]
        if len(found) >= 3:
            break
    return found


def _labels(plot: Plot, scales: Scales) -> Iterator[str]:
    """The tags of all dots, with the name where there is room: first the ringed dots, then the front, then
    the others, the last one first. A label covers no dot and no other label, and a line only where it must.
    Where no place is left, a dot that was tried keeps its tag; a forecast and a dot at the edge, where many
    meet, have no label then."""
    lines, taken = list(_lines(plot, scales)), list(_solids(plot, scales))
    order = sorted(range(len(plot.dots)), key=lambda k: (not plot.dots[k].ringed, k not in plot.front, -k))
    shown: dict[int, str] = {}
    for k in order:
        dot, texts = plot.dots[k], _texts(plot.dots[k], scales)
        tries = itertools.product(texts, ([*taken, *lines], taken))
        found = next(((text, box) for text, marks in tries if (box := _free(text, dot, scales, marks))), None)
        if not found and dot.tag and not scales.outside(dot):
            found = texts[-1], next(_places(texts[-1], dot, scales))
        if found:
            text, box = found
            taken.append(box)
            shown[k] = _text(text, box[0], box[3] - 3, "start", "ringed" if dot.ringed else "")
    yield from (shown[k] for k in sorted(shown))


def _solids(plot: Plot, scales: Scales) -> Iterator[Box]:
    """The boxes of the dots and of the budget's label."""
    for dot in plot.dots:
        yield _around(*scales.centre(dot), RING_PX if dot.ringed else MARKER_PX)
    if plot.max_lost is not None:
        width, y = round(CHARACTER_PX * len(_budget_label(plot))), scales.y(plot.max_lost)
        left = scales.frame.left
        if _budget_at_right(plot, scales):
            left = scales.frame.width - scales.frame.right - width
        yield left, y - 17, left + width, y


def _lines(plot: Plot, scales: Scales) -> Iterator[Box]:
    """Boxes along the error bars and the front."""
    for dot in plot.dots:
        if not scales.outside(dot):
            x = scales.centre(dot)[0]
            yield x - CAP_PX, scales.y(dot.lost - dot.error), x + CAP_PX, scales.y(dot.lost + dot.error)
    ends = sorted(scales.centre(plot.dots[k]) for k in plot.front)
    for (x, y), (far_x, far_y) in itertools.pairwise(ends):
        steps = math.ceil(math.dist((x, y), (far_x, far_y)) / 4)
        for k in range(steps):
            yield _around(x + k / steps * (far_x - x), y + k / steps * (far_y - y), 1)


def _texts(dot: Dot, scales: Scales) -> Sequence[str]:
    """What may stand beside a dot, the best first. At the edge it tells what is lost."""
    tag = f"{dot.tag} ↓ {dot.lost:.0f} lost".lstrip() if scales.outside(dot) else dot.tag
    name = f"{tag} {printable(dot.name, LONGEST_NAME)}".lstrip()
    return [text for text in ((name, tag) if scales.frame.names else (tag,)) if text]


def _free(text: str, dot: Dot, scales: Scales, taken: Sequence[Box]) -> Box | None:
    frame = scales.frame
    for box in _places(text, dot, scales):
        inside = frame.left < box[0] and box[2] <= frame.width and frame.top - 8 < box[1]
        if inside and box[3] < frame.height - frame.bottom and not any(_meet(box, other) for other in taken):
            return box
    return None


def _places(text: str, dot: Dot, scales: Scales) -> Iterator[Box]:
    """The boxes that a text may fill: right of a dot, left of it, and so around it."""
    x, y = scales.centre(dot)
    gap = (RING_PX if dot.ringed else MARKER_PX) + 3
    width = printed_width(text) * (BOLD_PX if dot.ringed else CHARACTER_PX)
    height = TEXT_PX + 2
    for across, down in AROUND:
        left = x + gap if across > 0 else x - gap - width if across < 0 else x - width / 2
        reach = gap if across == 0 else 0.75 * gap + 3
        top = y - height / 2 + down * (reach + height / 2 - 2)
        yield left, top, left + width, top + height


def _around(x: float, y: float, radius: float) -> Box:
    return x - radius, y - radius, x + radius, y + radius


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _text(text: str, x: float, y: float, anchor: str, kind: str = "", more: str = "") -> str:
    attributes = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    kind = f' class="{kind}"' if kind else ""
    return f"<text {attributes}{kind}{' ' + more if more else ''}>{_safe(text)}</text>"


def _safe(text: str) -> str:
    return html.escape(text)
