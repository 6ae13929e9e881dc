"""Levels for values that will be entropy coded: a rare code is long, and has to be worth it.

Chou, Lookabaugh and Gray, "Entropy-constrained vector quantization" (1989), on a line. Codes, their
lengths and levels are improved in turns: every value takes the level of least squared error plus
price times length, lengths follow from how often codes are taken, and levels are the means of what
takes them. A level that nothing takes any more is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atmc.quantization.kmeans import Floats, Ints, Line

_CONVERGED = 1e-4  # relative gain of a turn that ends them
# Of prices from 2 ln 2 on, one that gains most on the weights of trained nets, at 2 to 5 bits.
_PRICE = 3.0


@dataclass(frozen=True)
class Coded:
    """A partition of the points of a line, and what its codes take.

    Attributes:
        bounds: of the parts, as :class:`atmc.quantization.kmeans.Line` has them.
        lengths: ideal length of each part's code, in bits.
    """

    bounds: Ints
    lengths: Floats


def bit_price(line: Line, levels: int) -> float:
    """What a bit of the codes is worth, in squared error, where ``levels`` levels share the values.

    At high resolution one more bit for every value leaves a quarter of the squared error D, so a
    bit is worth 2 ln 2 · D / n. D is not measured but expected, var|x| · (levels / 2)^-2: values
    that training has drawn to their levels leave hardly any, and need no other codes for that.
    """
    counts = np.diff(line.weight)
    sizes = np.abs(line.scaled)
    mean = float(counts @ sizes) / float(line.weight[-1])
    spread = float(counts @ (sizes - mean) ** 2) / float(line.weight[-1])
    return _PRICE * spread * (2 / levels) ** 2


def entropy_constrained(line: Line, bounds: Ints, price: float) -> Coded:
    """A local optimum of squared error plus ``price`` times the length of all codes.

    Args:
        line: the points.
        bounds: of the partition to start from.
        price: squared error (scaled as the line is) that a bit is worth; 0 changes no bounds.
    """
    best = np.inf
    while True:
        counts = np.diff(line.weight[bounds])
        lengths = -np.log2(counts / line.weight[-1])
        cost = float(line.error(bounds[:-1], bounds[1:]).sum()) + price * float(counts @ lengths)
        if price == 0 or cost >= best * (1 - _CONVERGED):
            return Coded(bounds, lengths)
        best = cost
        _, borders = territories(line.means(bounds), price * lengths)
        inner = np.unique(np.searchsorted(line.scaled, borders, side="right"))
        inner = inner[(inner > 0) & (inner < line.scaled.size)]
        bounds = np.concatenate(([0], inner, [line.scaled.size]))


def territories(levels: Floats, penalties: Floats) -> tuple[Ints, Floats]:
    """Which levels are the cheapest anywhere, and the borders between them.

    At x level l costs (x - l)² + its penalty. A border itself belongs to the lower level.

    Args:
        levels: ascending, distinct.
        penalties: not negative, one a level.

    Returns:
        Indices of the levels that are left, ascending, and the borders between neighbours.
    """
    left = np.arange(levels.size)
    while True:
        level, penalty = levels[left], penalties[left]
        borders = (level[:-1] + level[1:]) / 2 + np.diff(penalty) / (2 * np.diff(level))
        widths = np.diff(borders)
        if not widths.size or widths.min() > 0:
            return left, borders
        # Where two neighbours are both too dear, the one that goes may make room for the other.
        left = np.delete(left, int(widths.argmin()) + 1)
