"""Densities of rows and columns: how likely each entry of the next rows is to be nonzero.

Every operation here is on integers, or a single rounded one on float64: the chances are the same on
every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atmc.codec.stream import TOTAL, BoolArray, Int64Array

# What is expected of a column weighs as much as so many nonzeros in it. Number 0 is that of a form
# without densities.
STRENGTHS = (0.0, 2.0, 0.5)
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


@dataclass(frozen=True)
class Lines:
    """Some rows or columns: those of ascending ``indices``, or the first ``size`` if None."""

    size: int
    indices: Int64Array | None = None

    @classmethod
    def of(cls, indices: Int64Array) -> Lines:
        """Those of these indices."""
        return cls(int(indices.size), indices)

    def places(self, lines: Int64Array) -> Int64Array:
        """Where each of ``lines`` stands among these."""
        return lines if self.indices is None else np.searchsorted(self.indices, lines)

    def at(self, places: Int64Array) -> Int64Array:
        """The lines that stand there."""
        return places if self.indices is None else self.indices[places]

    def all(self) -> Int64Array:
        """Every one of them: as much memory as there are."""
        return np.arange(self.size, dtype=np.int64) if self.indices is None else self.indices


def batch_size(seen: int, rows: int, columns: int) -> int:
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
    """Chances of a nonzero in each column of the next row, learned from the rows before it.

    Args:
        columns: of the layout, that are coded.
        layout: the matrix.
        strength: an index of STRENGTHS.
    """

    def __init__(self, columns: Lines, layout: Layout, strength: int) -> None:
        self._strength = STRENGTHS[strength]
        self._width = columns.size
        self._counts = np.zeros(columns.size)
        self._total = 1.0
        self._groups = []
        if layout.block > 1:
            self._groups.append(_Group(columns.all() // layout.block))
            if layout.spatial:
                self._groups.append(_Group(columns.all() % layout.block))
        self._weights = self._relative()

    def _relative(self) -> NDArray[np.float64]:
        """Each column's density relative to the mean: its own count, and what is expected of it."""
        expected: NDArray[np.float64] | float = 1.0
        for group in self._groups:
            expected = expected * group.relative(self._width, self._total)
        mean = self._total / self._width
        return np.asarray((self._counts + self._strength * expected) / (mean + self._strength))

    def chances(self, scales: Int64Array) -> Int64Array:
        """P(1) over 2**24, rows of these scales one after the other.

        The odds are 2**(11 - scale) times the column's relative density.
        """
        odds = self._weights * np.ldexp(1.0, _MEAN_SCALE - scales)[:, None]
        odds /= 1.0 + odds
        odds *= TOTAL
        return np.clip(odds, 1, TOTAL - 1).astype(np.int64).ravel()

    def fit(self, ones: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Scales whose expected numbers of ones are nearest to ``ones``, by their ratio.

        Returns:
            The scales, one a row, and :meth:`chances` of them.
        """
        wanted = ones.astype(np.float64) * TOTAL
        # Sought: the sparsest scale of which not fewer ones are expected than there are. A guess,
        # right where odds are small, then steps: so the guess decides nothing but the time.
        guess = _MEAN_SCALE - 1 + np.frexp(self._weights.sum() / ones)[1].astype(np.int64)
        denser = np.clip(guess, 1, SCALES)
        while True:
            sparser = np.minimum(denser + 1, SCALES)
            chances = self.chances(np.concatenate((denser, sparser))).reshape(2, ones.size, -1)
            more, fewer = chances.sum(axis=2).astype(np.float64)  # exact
            step = ((fewer >= wanted) & (denser < SCALES)).astype(np.int64)
            step -= (more < wanted) & (denser > 1)
            if not step.any():
                break
            denser = denser + step
        nearer = wanted * wanted < more * fewer
        chosen = chances[nearer.astype(np.int64), np.arange(ones.size)]
        return np.where(nearer, sparser, denser), chosen.ravel()

    def see(self, columns: Int64Array) -> None:
        """Learn from the nonzeros of a batch, by their columns."""
        self._counts = self._counts + np.bincount(columns, minlength=self._counts.size)
        self._total += columns.size
        for group in self._groups:
            group.see(columns)
        self._weights = self._relative()

    def batches(
        self, rows: Int64Array, columns: Int64Array, scales: Int64Array | None = None
    ) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
        """Batches of rows under the same densities, which then learn from them.

        Args:
            rows: of the nonzeros, ascending.
            columns: of the nonzeros, as places among those that are coded.
            scales: of the rows that are not empty; by default those of :meth:`fit`.

        Yields:
            The places of the nonzeros in the batch, its scales, and the chances of its entries.
        """
        rows = np.cumsum(np.diff(rows, prepend=rows[:1]) > 0)
        count = int(rows[-1]) + 1 if rows.size else 0
        ends = np.searchsorted(rows, np.arange(count + 1))
        start = 0
        while start < count:
            end = start + batch_size(start, count, self._width)
            part = slice(int(ends[start]), int(ends[end]))
            ones = (rows[part] - start) * self._width + columns[part]
            if scales is None:
                yield ones, *self.fit(np.diff(ends[start : end + 1]))
            else:
                yield ones, scales[start:end], self.chances(scales[start:end])
            self.see(columns[part])
            start = end


class _Group:
    """Columns that share a channel or a place in the kernel."""

    def __init__(self, labels: Int64Array) -> None:
        self._label = np.unique(labels, return_inverse=True)[1]
        sizes = np.bincount(self._label)
        self._smoothed = sizes.astype(np.float64) + _SMOOTHING
        self._counts = np.zeros(sizes.size)

    def relative(self, width: int, total: float) -> NDArray[np.float64]:
        """Density in each column's group, relative to the mean."""
        density = (self._counts * width + _SMOOTHING * total) / (self._smoothed * total)
        return np.asarray(density[self._label])

    def see(self, columns: Int64Array) -> None:
        self._counts += np.bincount(self._label[columns], minlength=self._counts.size)
