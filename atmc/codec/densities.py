"""Densities of rows and columns: how likely each entry of the next rows is to be nonzero.

Every operation here is on integers, or a single rounded one on float64: the chances are the same on
every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atmc.codec.stream import TOTAL

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# What is expected of a column weighs as much as so many nonzeros in it.
STRENGTHS = (2.0, 0.5)
# A channel, or a place in the kernel, counts as if it had so many average columns more.
_SMOOTHING = 8
# A row that is not empty has a scale in 1 .. SCALES: its density in powers of two, downwards; 11
# is the mean.
SCALES = 39
_MEAN_SCALE = 11
# Densities are learned for so many columns at most, and rows are coded together up to so many
# entries: both bound the memory.
MAX_COLUMNS = 1 << 20
_MAX_BATCH = 1 << 16


@dataclass(frozen=True)
class Layout:
    """A factor as a matrix of ``rows`` x ``columns``.

    Columns come in blocks of ``block``, one for each input channel; where they are the places of a
    kernel (``spatial``), these are modelled too. ``live`` says which columns read something that
    may differ from zero; None where that is unknown.
    """

    rows: int
    columns: int
    block: int = 1
    spatial: bool = False
    live: BoolArray | None = None

    @property
    def elements(self) -> int:
        """Number of entries."""
        return self.rows * self.columns


def batch(seen: int, rows: int, columns: int) -> int:
    """How many rows come next under the same densities: a quarter of those before them."""
    return min(max(1, min(seen // 4, _MAX_BATCH // columns)), rows - seen)


def scales_of_counts(ones: Int64Array, columns: int) -> Int64Array:
    """As :meth:`Densities.fit`, for rows of ``ones`` nonzeros in ``columns`` columns all alike."""
    odds = np.ldexp(1.0, _MEAN_SCALE - np.arange(SCALES, 0, -1))
    expected = columns * np.maximum((odds / (1.0 + odds) * TOTAL).astype(np.int64), 1)
    expected = expected.astype(np.float64)  # ascending, as scales descend from SCALES to 1; exact
    wanted = ones.astype(np.float64) * TOTAL
    denser = np.minimum(np.searchsorted(expected, wanted), SCALES - 1)
    sparser = np.maximum(denser - 1, 0)
    nearer = wanted * wanted < expected[denser] * expected[sparser]
    return np.asarray(SCALES - np.where(nearer, sparser, denser), dtype=np.int64)


class Densities:
    """Chances of a nonzero in each column of the next row, learned from the rows before it."""

    def __init__(self, columns: Int64Array, layout: Layout, strength: float) -> None:
        self._strength = strength
        self._columns = float(columns.size)
        self._counts = np.zeros(columns.size)
        self._total = 1.0
        self._groups = []
        if layout.block > 1:
            self._groups.append(_Group(columns // layout.block))
            if layout.spatial:
                self._groups.append(_Group(columns % layout.block))
        self._weights = self._relative()

    def _relative(self) -> NDArray[np.float64]:
        """Each column's density relative to the mean: its own count, and what is expected of it."""
        expected: NDArray[np.float64] | float = 1.0
        for group in self._groups:
            expected = expected * group.relative(self._columns, self._total)
        mean = self._total / self._columns
        return np.asarray((self._counts + self._strength * expected) / (mean + self._strength))

    def chances(self, scales: Int64Array) -> Int64Array:
        """P(1) over 2**24, rows of these scales one after the other.

        The odds are 2**(11 - scale) times the column's relative density.
        """
        odds = self._weights * np.ldexp(1.0, _MEAN_SCALE - scales)[:, None]
        chances = (odds / (1.0 + odds) * TOTAL).astype(np.int64)
        return np.minimum(np.maximum(chances, 1), TOTAL - 1).ravel()

    def fit(self, ones: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Scales whose expected numbers of ones are nearest to ``ones``, by their ratio.

        Returns:
            The scales, one a row, and :meth:`chances` of them.
        """
        wanted = ones.astype(np.float64) * TOTAL

        def expected(scales: Int64Array) -> tuple[Int64Array, NDArray[np.float64]]:
            chances = self.chances(scales).reshape(scales.size, -1)
            return chances, chances.sum(axis=1).astype(np.float64)  # exact

        # Sought: the sparsest scale of which not fewer ones are expected than there are. A guess,
        # right where odds are small, then steps: so the guess decides nothing but the time.
        guess = _MEAN_SCALE - 1 + np.frexp(self._weights.sum() / ones)[1].astype(np.int64)
        low = np.clip(guess, 1, SCALES)
        while True:
            next_one = np.minimum(low + 1, SCALES)
            chances, sums = expected(np.concatenate((low, next_one)))
            here, sparser = sums[: low.size], sums[low.size :]
            step = ((sparser >= wanted) & (low < SCALES)).astype(np.int64)
            step -= (here < wanted) & (low > 1)
            if not step.any():
                break
            low = low + step
        nearer = wanted * wanted < here * sparser
        chosen = np.where(nearer, low.size, 0) + np.arange(low.size)
        return np.where(nearer, next_one, low), chances[chosen].ravel()

    def see(self, inner: Int64Array) -> None:
        """Learn from the nonzeros of a batch, given by their columns."""
        self._counts = self._counts + np.bincount(inner, minlength=self._counts.size)
        self._total += inner.size
        for group in self._groups:
            group.see(inner)
        self._weights = self._relative()


class _Group:
    """Columns that share a channel or a place in the kernel."""

    def __init__(self, labels: Int64Array) -> None:
        self._label = np.unique(labels, return_inverse=True)[1]
        sizes = np.bincount(self._label)
        self._smoothed = sizes.astype(np.float64) + _SMOOTHING
        self._counts = np.zeros(sizes.size)

    def relative(self, columns: float, total: float) -> NDArray[np.float64]:
        """Density in each column's group, relative to the mean."""
        density = (self._counts * columns + _SMOOTHING * total) / (self._smoothed * total)
        return np.asarray(density[self._label])

    def see(self, inner: Int64Array) -> None:
        self._counts += np.bincount(self._label[inner], minlength=self._counts.size)
