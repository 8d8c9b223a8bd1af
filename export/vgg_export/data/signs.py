"""Draws the embedded default's data: road signs, with Pillow, at any size, from a seed.

Every picture is a function of ``(class, seed, size_px)`` alone. The pictures are hard on purpose, so that a
classifier stays below 100 % and a loss of accuracy shows: four speed limits differ in one digit, arrows are
mirrored, signs are small, and there is blur, night, noise and things in the way.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

CLASSES = (
    "ahead only",
    "bend left",
    "bend right",
    "crossroads",
    "end of limits",
    "keep left",
    "keep right",
    "no entry",
    "no overtaking",
    "no stopping",
    "parking",
    "pedestrians",
    "priority road",
    "roundabout",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 80",
    "stop",
    "yield",
)
# a small pyramid, so that a small sign is not sampled from a large one (aliasing)
_TEMPLATE_PX = (256, 128, 64)
_SUPERSAMPLE = 4
_RED, _BLUE, _BLACK, _WHITE = (190, 20, 35), (20, 75, 160), (20, 20, 20), (245, 245, 245)
_YELLOW, _GREY = (245, 190, 20), (110, 110, 110)

Colour = tuple[int, int, int]
Point = tuple[float, float]


def draw(name: str, seed: int, size_px: int = 256) -> Image.Image:
    """One road sign in a scene.

    Args:
        name: one of ``CLASSES``.
        seed: any non-negative integer; the same seed gives the same picture.
        size_px: side of the square picture, at least 32.

    Returns:
        An RGB image, ``size_px`` x ``size_px``.

    Raises:
        ValueError: an unknown class or a size below 32 px.
    """
    if name not in CLASSES:
        raise ValueError(f"unknown road sign {name!r}; expected one of {', '.join(CLASSES)}")
    if size_px < 32:
        raise ValueError(f"a road sign needs at least 32 px, found {size_px}")
    rng = np.random.default_rng([seed, CLASSES.index(name)])
    scene = _background(rng, size_px)
    sign, centre, diameter = _placed_sign(rng, name, size_px)
    scene.paste(sign, (0, 0), sign)
    _occlude(rng, scene, centre, diameter)
    return _camera(rng, scene)


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """Sky over ground with clutter: houses, poles, leaves, other round and angular things in sign colours."""
    sky, ground = rng.integers(90, 255, 3), rng.integers(30, 150, 3)
    horizon = rng.uniform(0.3, 0.8)
    rows = np.clip((np.linspace(0, 1, 32) - horizon) * rng.uniform(2, 20) + 0.5, 0, 1)[:, None]
    column = (sky * (1 - rows) + ground * rows).astype(np.uint8)
    scene = Image.fromarray(column[:, None, :]).resize((size, size), Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(4, 22))):
        x, y = rng.uniform(-0.1, 1.1, 2) * size
        w, h = rng.uniform(0.03, 0.5, 2) * size
        colour = _random_colour(rng)
        match rng.integers(0, 4):
            case 0:
                canvas.rectangle((x, y, x + w, y + h), fill=colour)
            case 1:
                canvas.ellipse(
                    (x, y, x + w, y + w), fill=colour, outline=_random_colour(rng), width=1 + size // 60
                )
            case 2:
                corners = [(x + rng.uniform(-w, w), y + rng.uniform(-h, h)) for _ in range(3)]
                canvas.polygon(corners, fill=colour)
            case _:
                canvas.line((x, y, x + rng.uniform(-w, w), y + h), fill=colour, width=1 + int(w / 8))
    return scene.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.02) * size))


def _random_colour(rng: np.random.Generator) -> Colour:
    """Any colour; one time in three a sign's own, so that colour alone does not find the sign."""
    if rng.random() < 0.33:
        palette = (_RED, _BLUE, _WHITE, _YELLOW, _BLACK)
        return palette[int(rng.integers(0, len(palette)))]
    r, g, b = (int(v) for v in rng.integers(0, 256, 3))
    return r, g, b


def _placed_sign(rng: np.random.Generator, name: str, size: int) -> tuple[Image.Image, Point, float]:
    """The sign under a random perspective as an RGBA layer of the scene's size, its centre and its diameter
    in px."""
    diameter = size * math.exp(rng.uniform(math.log(0.22), math.log(0.72)))
    slack = max(0.0, 0.40 * size - diameter / 2)  # the centre crop of the preprocessing still shows the sign
    centre = (size / 2 + rng.uniform(-slack, slack), size / 2 + rng.uniform(-slack, slack))
    angle, shear = math.radians(rng.normal(0, 7)), rng.normal(0, 0.08)
    squeeze = rng.uniform(0.75, 1.0)
    corners: list[Point] = []
    for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x, y = (u + shear * v) * squeeze + rng.normal(0, 0.04), v + rng.normal(0, 0.04)
        rotated = (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
        corners.append((centre[0] + rotated[0] * diameter / 2, centre[1] + rotated[1] * diameter / 2))
    template = next((px for px in reversed(_TEMPLATE_PX) if px >= diameter), _TEMPLATE_PX[0])
    source = [(0.0, 0.0), (template, 0.0), (template, template), (0.0, template)]
    layer = _template(name, template).transform(
        (size, size), Image.Transform.PERSPECTIVE, _perspective(corners, source), Image.Resampling.BILINEAR
    )
    faded = ImageEnhance.Color(layer).enhance(rng.uniform(0.45, 1.1))  # old paint
    faded.putalpha(layer.getchannel("A"))
    return faded, centre, diameter


def _perspective(target: list[Point], source: list[Point]) -> list[float]:
    """The eight coefficients with which Pillow maps a pixel of the target back to the source."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    solution: npt.NDArray[np.float64] = np.linalg.solve(np.array(rows), np.array(values))
    return [float(v) for v in solution]


def _occlude(rng: np.random.Generator, scene: Image.Image, centre: Point, diameter: float) -> None:
    """A branch, a pole or a sticker over part of the sign, in about half of the pictures."""
    if rng.random() < 0.5:
        return
    canvas = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(1, 4))):
        x = centre[0] + rng.uniform(-0.5, 0.5) * diameter
        y = centre[1] + rng.uniform(-0.5, 0.5) * diameter
        reach = rng.uniform(0.05, 0.16) * diameter
        colour = _random_colour(rng)
        if rng.random() < 0.5:
            canvas.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
        else:
            dx, dy = rng.uniform(-0.6, 0.6, 2) * diameter
            canvas.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=1 + int(reach / 3))


def _camera(rng: np.random.Generator, scene: Image.Image) -> Image.Image:
    """Light, shadow, defocus or motion blur, sensor noise."""
    size = scene.width
    blur = abs(rng.normal(0, 0.007)) * size
    scene = scene.filter(
        ImageFilter.BoxBlur((blur, 0)) if rng.random() < 0.3 else ImageFilter.GaussianBlur(blur * 0.7)
    )
    pixels = np.asarray(scene, np.float32)
    gain = rng.uniform(0.25, 1.3) * rng.uniform(0.85, 1.15, 3)
    slope = rng.normal(0, 0.35, 2)
    across, down = np.meshgrid(np.linspace(-0.5, 0.5, size), np.linspace(-0.5, 0.5, size))
    light = np.clip(1 + slope[0] * across + slope[1] * down, 0.3, 1.8).astype(np.float32)[..., None]
    lift = rng.uniform(0, 45)  # haze
    noise = rng.standard_normal((size, size, 3), np.float32) * np.float32(abs(rng.normal(0, 11)))
    shown = pixels * light * gain.astype(np.float32) + np.float32(lift) + noise
    return Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8))


@functools.cache
def _template(name: str, size_px: int) -> Image.Image:
    """The clean sign, RGBA, drawn ``_SUPERSAMPLE`` times larger and reduced."""
    side = size_px * _SUPERSAMPLE
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    shape, glyph = _FACES[name]
    pen = _Pen(ImageDraw.Draw(image), side)
    shape(pen)
    if glyph:
        glyph(pen)
    return image.reduce(_SUPERSAMPLE)


class _Pen:
    """Draws in coordinates from -1 to 1, y downwards."""

    def __init__(self, canvas: ImageDraw.ImageDraw, side: int) -> None:
        self.canvas, self.half = canvas, side / 2

    def at(self, points: list[Point]) -> list[Point]:
        return [((x + 1) * self.half, (y + 1) * self.half) for x, y in points]

    def disc(self, radius: float, colour: Colour, x: float = 0, y: float = 0) -> None:
        self.canvas.ellipse(
            self.at([(x - radius, y - radius)])[0] + self.at([(x + radius, y + radius)])[0], fill=colour
        )

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.canvas.rectangle(self.at([(left, top)])[0] + self.at([(right, bottom)])[0], fill=colour)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        self.canvas.polygon(self.at(points), fill=colour)

    def line(self, points: list[Point], width: float, colour: Colour) -> None:
        self.canvas.line(self.at(points), fill=colour, width=int(width * self.half), joint="curve")

    def text(self, text: str, height: float, colour: Colour) -> None:
        font = ImageFont.load_default(height * self.half)
        centre = self.at([(0, 0)])[0]
        self.canvas.text(centre, text, fill=colour, font=font, anchor="mm", stroke_width=self.half * 0.03)

    def arrow_head(self, tip: Point, direction: float, length: float, colour: Colour) -> None:
        """A triangle whose tip points to ``direction`` (radians, 0 = right, clockwise)."""
        along = (math.cos(direction), math.sin(direction))
        base = (tip[0] - along[0] * length, tip[1] - along[1] * length)
        side = (-along[1] * length * 0.75, along[0] * length * 0.75)
        self.polygon(
            [tip, (base[0] + side[0], base[1] + side[1]), (base[0] - side[0], base[1] - side[1])], colour
        )


def _ring(pen: _Pen) -> None:
    pen.disc(0.98, _RED)
    pen.disc(0.74, _WHITE)


def _blue_disc(pen: _Pen) -> None:
    pen.disc(0.98, _WHITE)
    pen.disc(0.93, _BLUE)


def _triangle(pen: _Pen) -> None:
    pen.polygon([(0, -0.92), (0.98, 0.8), (-0.98, 0.8)], _RED)
    pen.polygon([(0, -0.50), (0.64, 0.6), (-0.64, 0.6)], _WHITE)


def _yield(pen: _Pen) -> None:
    pen.polygon([(0, 0.92), (0.98, -0.8), (-0.98, -0.8)], _RED)
    pen.polygon([(0, 0.50), (0.64, -0.6), (-0.64, -0.6)], _WHITE)


def _octagon(pen: _Pen) -> None:
    for radius, colour in ((1.0, _WHITE), (0.94, _RED)):
        pen.polygon(
            [
                (radius * math.cos(a), radius * math.sin(a))
                for a in (math.pi * (k + 0.5) / 4 for k in range(8))
            ],
            colour,
        )


def _diamond(pen: _Pen) -> None:
    for reach, colour in ((0.98, _WHITE), (0.90, _BLACK), (0.86, _WHITE), (0.62, _YELLOW)):
        pen.polygon([(0, -reach), (reach, 0), (0, reach), (-reach, 0)], colour)


def _red_disc_bar(pen: _Pen) -> None:
    pen.disc(0.98, _RED)
    pen.box(-0.72, -0.17, 0.72, 0.17, _WHITE)


def _no_stopping(pen: _Pen) -> None:
    pen.disc(0.98, _RED)
    pen.disc(0.80, _BLUE)
    pen.line([(-0.6, -0.6), (0.6, 0.6)], 0.2, _RED)
    pen.line([(0.6, -0.6), (-0.6, 0.6)], 0.2, _RED)


def _end_of_limits(pen: _Pen) -> None:
    pen.disc(0.98, _GREY)
    pen.disc(0.92, _WHITE)
    for shift in (-0.24, -0.08, 0.08, 0.24):
        pen.line([(-0.55 + shift, 0.60), (0.55 + shift, -0.60)], 0.07, _BLACK)


def _parking(pen: _Pen) -> None:
    pen.box(-0.92, -0.92, 0.92, 0.92, _WHITE)
    pen.box(-0.86, -0.86, 0.86, 0.86, _BLUE)
    pen.text("P", 1.5, _WHITE)


def _number(text: str) -> Callable[[_Pen], None]:
    return lambda pen: pen.text(text, 0.95, _BLACK)


def _stop_text(pen: _Pen) -> None:
    pen.text("STOP", 0.62, _WHITE)


def _bend(mirror: int) -> Callable[[_Pen], None]:
    def glyph(pen: _Pen) -> None:
        pen.line([(0.12 * mirror, 0.52), (0.12 * mirror, 0.18), (-0.10 * mirror, -0.04)], 0.13, _BLACK)
        pen.arrow_head((-0.26 * mirror, -0.20), math.pi * (1.25 if mirror > 0 else 1.75), 0.24, _BLACK)

    return glyph


def _crossroads(pen: _Pen) -> None:
    pen.line([(-0.24, 0.02), (0.24, 0.48)], 0.12, _BLACK)
    pen.line([(0.24, 0.02), (-0.24, 0.48)], 0.12, _BLACK)


def _pedestrian(pen: _Pen) -> None:
    pen.disc(0.09, _BLACK, 0.02, -0.16)
    pen.line([(0.0, -0.05), (0.0, 0.24)], 0.13, _BLACK)
    pen.line([(0.0, 0.20), (-0.16, 0.52)], 0.09, _BLACK)
    pen.line([(0.0, 0.20), (0.16, 0.52)], 0.09, _BLACK)
    pen.line([(-0.2, 0.16), (0.0, 0.0), (0.2, 0.12)], 0.07, _BLACK)


def _overtaking(pen: _Pen) -> None:
    for x, colour in ((-0.30, _RED), (0.30, _BLACK)):
        pen.box(x - 0.22, -0.06, x + 0.22, 0.20, colour)
        pen.box(x - 0.14, -0.24, x + 0.14, -0.02, colour)
        pen.box(x - 0.20, 0.18, x - 0.08, 0.32, colour)
        pen.box(x + 0.08, 0.18, x + 0.20, 0.32, colour)


def _straight(pen: _Pen) -> None:
    pen.line([(0, 0.66), (0, -0.25)], 0.24, _WHITE)
    pen.arrow_head((0, -0.72), -math.pi / 2, 0.52, _WHITE)


def _keep(mirror: int) -> Callable[[_Pen], None]:
    def glyph(pen: _Pen) -> None:
        pen.line([(-0.48 * mirror, -0.48), (0.25 * mirror, 0.25)], 0.24, _WHITE)
        pen.arrow_head((0.56 * mirror, 0.56), math.pi * (0.25 if mirror > 0 else 0.75), 0.50, _WHITE)

    return glyph


def _roundabout(pen: _Pen) -> None:
    for k in range(3):
        start = 2 * math.pi * k / 3 - math.pi / 2
        arc = [(0.48 * math.cos(start + t), 0.48 * math.sin(start + t)) for t in np.linspace(0.1, 1.25, 12)]
        pen.line(arc, 0.18, _WHITE)
        end = start + 1.75
        pen.arrow_head((0.48 * math.cos(end), 0.48 * math.sin(end)), end + math.pi / 2 - 0.3, 0.34, _WHITE)


_FACES: dict[str, tuple[Callable[[_Pen], None], Callable[[_Pen], None] | None]] = {
    "ahead only": (_blue_disc, _straight),
    "bend left": (_triangle, _bend(1)),
    "bend right": (_triangle, _bend(-1)),
    "crossroads": (_triangle, _crossroads),
    "end of limits": (_end_of_limits, None),
    "keep left": (_blue_disc, _keep(-1)),
    "keep right": (_blue_disc, _keep(1)),
    "no entry": (_red_disc_bar, None),
    "no overtaking": (_ring, _overtaking),
    "no stopping": (_no_stopping, None),
    "parking": (_parking, None),
    "pedestrians": (_triangle, _pedestrian),
    "priority road": (_diamond, None),
    "roundabout": (_blue_disc, _roundabout),
    "speed limit 30": (_ring, _number("30")),
    "speed limit 50": (_ring, _number("50")),
    "speed limit 60": (_ring, _number("60")),
    "speed limit 80": (_ring, _number("80")),
    "stop": (_octagon, _stop_text),
    "yield": (_yield, None),
}
