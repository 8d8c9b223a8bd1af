"""The transforms of F(m, 3) by Toom, Cook and Winograd, which apply filters of three taps with fewer
multiplications (Lavin and Gray 2015, arXiv:1509.09308).

Each output of a correlation y[k] = sum_j g[j] d[k + j] with three weights g takes three multiplications.
Evaluating polynomials at m + 1 points and at infinity gives m outputs with m + 2 multiplications in all: y =
A^T ((G g) * (B^T d)), which is exact in exact arithmetic. In two dimensions the transforms are applied to the
columns and to the rows, and (3 m)^2 multiplications become (m + 2)^2.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

TAPS = 3
# In the order of their use: the smaller the numbers in the transforms, the smaller the rounding error.
POINTS = (0, 1, -1, 2, -2)
LARGEST = len(POINTS) - 1  # outputs of one tile

Matrix = list[list[Fraction]]


@dataclasses.dataclass(frozen=True)
class Form:
    """A form with tiles of ``rows`` x ``columns`` outputs; the number is 1 in a direction in which the filter
    has only one tap. Its text is, for example, "F(4x4)"."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= LARGEST and 1 <= self.columns <= LARGEST and self.rows * self.columns > 1):
            raise ValueError(
                f"tiles of {self.rows}x{self.columns} outputs; expected 1 to {LARGEST} each way, and more"
                " than one in all"
            )

    def __str__(self) -> str:
        return f"F({self.rows}x{self.columns})"

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the filters that the form applies to."""
        return (TAPS if self.rows > 1 else 1, TAPS if self.columns > 1 else 1)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the inputs of a tile, and of the transformed inputs that are multiplied."""
        return (self.rows + self.kernel[0] - 1, self.columns + self.kernel[1] - 1)

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """The number of tiles that cover a map, down and across. Tiles at the edge may reach beyond the
        map."""
        return math.ceil(height / self.rows), math.ceil(width / self.columns)

    def covered(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the part of the plane that the tiles' windows cover."""
        down, across = self.tiles(height, width)
        return down * self.rows + self.kernel[0] - 1, across * self.columns + self.kernel[1] - 1


# The forms by their names in files. A tile of four is the largest whose rounding error stays far below the
# changes by int8 or pruning.
FORMS = {str(form): form for form in (Form(2, 2), Form(4, 4), Form(2, 1), Form(4, 1), Form(1, 2), Form(1, 4))}


def of_kernel(kernel: tuple[int, int]) -> tuple[Form, ...]:
    """The forms of FORMS for a filter of this height and width."""
    return tuple(form for form in FORMS.values() if form.kernel == kernel)


def input_transform(m: int) -> Matrix:
    """B^T [m + 2, m + 2]: row i holds the coefficients of the polynomial that is 0 at all points but the
    i-th, the last row those of the one that is 0 at all of them."""
    points = POINTS[: m + 1]
    rows = [[*_polynomial([p for p in points if p != point]), Fraction(0)] for point in points]
    return [*rows, _polynomial(list(points))]


def weight_transform(m: int) -> Matrix:
    """G [m + 2, 3]: the filter's polynomial at every point, divided by what the row of B^T is there, and its
    last coefficient."""
    points = POINTS[: m + 1]
    scales = [math.prod(Fraction(point - p) for p in points if p != point) for point in points]
    rows = [
        [Fraction(point) ** k / scale for k in range(TAPS)]
        for point, scale in zip(points, scales, strict=True)
    ]
    return [*rows, [Fraction(k == TAPS - 1) for k in range(TAPS)]]


def output_transform(m: int) -> Matrix:
    """A^T [m, m + 2]: powers of the points, and infinity for the last output."""
    return [[Fraction(point) ** k for point in POINTS[: m + 1]] + [Fraction(k == m - 1)] for k in range(m)]


def _polynomial(roots: list[int]) -> list[Fraction]:
    """The coefficients of prod (x - root), the constant one first."""
    coefficients = [Fraction(1)]
    for root in roots:
        lower, higher = [*(-root * c for c in coefficients), Fraction(0)], [Fraction(0), *coefficients]
        coefficients = [a + b for a, b in zip(lower, higher, strict=True)]
    return coefficients


def input_matrix(form: Form) -> npt.NDArray[np.float32]:
    """kron(B^T, B^T) [window, window] for flattened windows; B^T alone where the filter has one tap in the
    other direction."""
    return _both(input_transform, form)


def weight_matrix(form: Form) -> npt.NDArray[np.float32]:
    """kron(G, G) [window, kernel]: transforms the taps of a filter to the factors of a transformed window."""
    return _both(weight_transform, form)


def output_matrix(form: Form) -> npt.NDArray[np.float32]:
    """kron(A^T, A^T) [tile, window]: transforms the products to the outputs of a tile."""
    return _both(output_transform, form)


def _both(transform: Callable[[int], Matrix], form: Form) -> npt.NDArray[np.float32]:
    """The transform of columns and rows together. The exact fractions are rounded once."""
    vertical, horizontal = (transform(m) if m > 1 else [[Fraction(1)]] for m in (form.rows, form.columns))
    return np.array([[float(a * b) for a in v for b in h] for v in vertical for h in horizontal], np.float32)
