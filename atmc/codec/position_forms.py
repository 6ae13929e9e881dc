"""How the places of nonzeros can be written, and which way is the shortest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from atmc.codec.codes import codes_bits
from atmc.codec.densities import (
    MAX_COLUMNS,
    SCALES,
    STRENGTHS,
    Densities,
    Layout,
    batch,
    scales_of_counts,
)
from atmc.codec.row_order import MAX_ROWS, Key, RowOrder, row_keys
from atmc.codec.stream import bernoulli_bits
from atmc.codec.subset import subset_bits

Int64Array = NDArray[np.int64]

# Entries by which a form is judged: more would only take longer.
_SAMPLE = 1 << 18
# Fewer nonzeros than this teach nothing; so many for each column, and two strengths are tried.
_FEW, _MANY = 32, 4
_FLAGS = 1.0 + 2.0  # not plain, and the strength
_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Lines:
    """The rows or columns that may hold nonzeros: ``indices`` (ascending), or all if None."""

    size: int
    indices: Int64Array | None = None

    @classmethod
    def some(cls, indices: Int64Array) -> Lines:
        """Those of these indices."""
        return cls(int(indices.size), indices)

    def places(self, lines: Int64Array) -> Int64Array:
        """Where lines that are among them stand."""
        return lines if self.indices is None else np.searchsorted(self.indices, lines)

    def at(self, places: Int64Array) -> Int64Array:
        """The lines that stand there."""
        return places if self.indices is None else self.indices[places]

    def all(self) -> Int64Array:
        """Every one of them: as much memory as there are."""
        return np.arange(self.size, dtype=np.int64) if self.indices is None else self.indices


@dataclass(frozen=True)
class Batch:
    """Rows with nonzeros, coded under the same densities.

    ``inner``: the columns of the nonzeros; ``ones``: their places in the batch.
    """

    inner: Int64Array
    ones: Int64Array
    scales: Int64Array
    bits: float


class Kept(Enum):
    """Which rows or columns are told apart."""

    ALL = 0
    FIRST = 1  # rows alone: those before all empty ones, and the fuller the earlier
    SOME = 2


@dataclass(frozen=True)
class Told:
    """Rows or columns that are told apart, and what it takes to say so."""

    kept: Kept
    lines: Lines
    bits: float


@dataclass(frozen=True)
class Uniform:
    """All places in the rows and columns that are told apart equally likely."""

    rows: Told
    columns: Told
    bits: float
    order: RowOrder | None = None  # of rows whose order tells something


@dataclass(frozen=True)
class Adaptive:
    """Densities of rows and columns; ``scales``: of each row that is told apart, 0 if empty."""

    rows: Told
    columns: Told
    bits: float
    strength: int  # an index into STRENGTHS
    batches: list[Batch]
    scales: Int64Array
    order: RowOrder | None = None


def _columns(used: Int64Array, lines: Lines) -> tuple[Told, Told]:
    filled = Lines.some(np.unique(used))
    return Told(Kept.ALL, lines, 1.0), Told(Kept.SOME, filled, 1 + _mask_bits(filled, lines))


def _rows(used: Int64Array, lines: Lines) -> tuple[Told, ...]:
    filled = Lines.some(np.unique(used))
    some = Told(Kept.SOME, filled, 2 + _mask_bits(filled, lines))
    if int(filled.all()[-1]) != filled.size - 1:
        return Told(Kept.ALL, lines, 1.0), some
    first = Told(Kept.FIRST, filled, 3 + math.log2(lines.size + 1))
    return Told(Kept.ALL, lines, 1.0), some, first


def _sorted_keys(rows: Int64Array, columns: Int64Array, filled: Told) -> list[Key] | None:
    """The keys of rows that are the first ones, and in canonical order; None where they are not."""
    if filled.kept is not Kept.FIRST or filled.lines.size > MAX_ROWS:
        return None
    counts = np.bincount(rows)
    if (counts[1:] > counts[:-1]).any():
        return None
    keys = row_keys(rows, columns, counts.size)
    return keys if all(a <= b for a, b in itertools.pairwise(keys)) else None


def _mask_bits(filled: Lines, lines: Lines) -> float:
    return 2 * filled.size.bit_length() + subset_bits(filled.size, lines.size)


def shortest(
    rows: Int64Array, columns: Int64Array, every: Lines, kept: Lines, layout: Layout
) -> Uniform | Adaptive:
    """The shortest form, of equal ones the plainest.

    Args:
        rows: of the nonzeros, in order of their places; at least one.
        columns: of the nonzeros.
        every: all rows.
        kept: the columns that are not known to be empty.
        layout: the matrix.
    """
    told_rows, told_columns = _rows(rows, every), _columns(columns, kept)
    keys = _sorted_keys(rows, columns, told_rows[-1])
    plain = subset_bits(rows.size, every.size * kept.size)
    best: Uniform | Adaptive = Uniform(told_rows[0], told_columns[0], plain)
    for uniform in _uniform(rows.size, told_rows, told_columns, keys):
        if round(uniform.bits) < round(best.bits):
            best = uniform
    otherwise = best
    for adaptive in _adaptive(rows, columns, told_rows, told_columns, keys, layout):
        if round(adaptive.bits) < round(best.bits):
            best = adaptive
    if isinstance(best, Adaptive) and _sampled(every, layout) < every.size:
        # Judged by its first rows, and the others may be unlike them.
        under = _Under(rows, columns, every.size, best.columns, best.strength, layout)
        best = under.form(best.rows, keys)
        if round(best.bits) >= round(otherwise.bits):
            best = otherwise
    return best


def _uniform(
    count: int,
    told_rows: tuple[Told, ...],
    told_columns: tuple[Told, ...],
    keys: list[Key] | None,
) -> Iterator[Uniform]:
    for rows in told_rows:
        order = None
        if rows.kept is Kept.FIRST and keys is not None:
            order = RowOrder.of(keys, [0] * len(keys))
        for columns in told_columns:
            bits = _FLAGS + rows.bits + columns.bits - (order.bits if order else 0)
            bits += subset_bits(count, rows.lines.size * columns.lines.size)
            yield Uniform(rows, columns, bits, order)


def _sampled(every: Lines, layout: Layout) -> int:
    """The number of rows by which forms are judged."""
    return every.size if layout.elements <= _SAMPLE else max(1, _SAMPLE // layout.columns)


def _adaptive(
    rows: Int64Array,
    columns: Int64Array,
    told_rows: tuple[Told, ...],
    told_columns: tuple[Told, Told],
    keys: list[Key] | None,
    layout: Layout,
) -> Iterator[Adaptive]:
    """The lengths of long tensors are guessed, and their batches are not all."""
    every, kept = told_rows[0].lines, told_columns[0].lines
    if every.size < 2 or kept.size > MAX_COLUMNS or rows.size < _FEW:
        return
    limit = _sampled(every, layout)
    sample = rows < limit
    share = rows.size / max(1, int(sample.sum()))

    def forms(told: Told, strength: int) -> list[Adaptive]:
        under = _Under(rows[sample], columns[sample], limit, told, strength, layout)
        return [under.form(told_row, keys, share) for told_row in told_rows]

    # Counts are trusted soon where there are many.
    strengths = [0] if rows.size < _MANY * kept.size else [0, 1]
    of_all = [form for strength in strengths for form in forms(told_columns[0], strength)]
    yield from of_all
    if told_columns[1].lines.size < kept.size:
        yield from forms(told_columns[1], min(of_all, key=lambda form: form.bits).strength)


class _Under:
    """The nonzeros of the first ``limit`` rows under the densities of some columns."""

    def __init__(
        self,
        rows: Int64Array,
        columns: Int64Array,
        limit: int,
        told: Told,
        strength: int,
        layout: Layout,
    ) -> None:
        self._told, self._strength, self._layout = told, strength, layout
        self._ones = np.bincount(rows, minlength=limit)
        self._batches = _batches(rows, columns, told.lines, strength, layout)
        self._found = np.concatenate([b.scales for b in self._batches] or [_NONE])
        self._of_all = np.zeros(limit, dtype=np.int64)
        self._of_all[np.unique(rows)] = self._found

    def form(self, rows: Told, keys: list[Key] | None, share: float = 1.0) -> Adaptive:
        """With these rows; all nonzeros take ``share`` times as much as those here.

        ``keys``: of rows in canonical order.
        """
        batches, order = self._batches, None
        scales = self._of_all if rows.kept is Kept.ALL else self._found
        if rows.kept is Kept.FIRST:
            scales = np.maximum.accumulate(scales)
            if keys is not None:
                # What is learned of columns depends on the order: so scales come from counts alone.
                by_count = scales_of_counts(self._ones[: scales.size], self._told.lines.size)
                order = RowOrder.of(keys[: scales.size], by_count.tolist())
                scales = scales if order is None else by_count
            if not np.array_equal(scales, self._found):
                batches = self._with(scales)
        bits = sum(each.bits for each in batches) + _scales_bits(scales, rows.kept)
        bits -= order.bits if order else 0
        bits = _FLAGS + self._told.bits + rows.bits + share * bits
        return Adaptive(rows, self._told, bits, self._strength, batches, scales, order)

    def _with(self, scales: Int64Array) -> list[Batch]:
        """The batches with other scales."""
        density = Densities(self._told.lines.all(), self._layout, STRENGTHS[self._strength])
        found, start = [], 0
        for each in self._batches:
            own = scales[start : start + each.scales.size]
            start += own.size
            bits = bernoulli_bits(each.ones, density.chances(own))
            found.append(Batch(each.inner, each.ones, own, bits))
            density.see(each.inner)
        return found


def _batches(
    rows: Int64Array, columns: Int64Array, kept: Lines, strength: int, layout: Layout
) -> list[Batch]:
    """All nonzeros, in batches, and the scales that suit the rows."""
    density = Densities(kept.all(), layout, STRENGTHS[strength])
    inner = kept.places(columns)
    row = np.unique(rows, return_inverse=True)[1]
    count = int(row[-1]) + 1 if row.size else 0
    ends = np.searchsorted(row, np.arange(count + 1))
    found = []
    start = 0
    while start < count:
        end = start + batch(start, count, kept.size)
        mine = slice(int(ends[start]), int(ends[end]))
        ones = (row[mine] - start) * kept.size + inner[mine]
        scales, chances = density.fit(np.diff(ends[start : end + 1]))
        bits = bernoulli_bits(ones, chances)
        found.append(Batch(inner[mine], ones, scales, bits))
        density.see(inner[mine])
        start = end
    return found


def codes_of_scales(scales: Int64Array, kept: Kept) -> tuple[int, int, Int64Array]:
    """Smallest and largest scale of rows with nonzeros, and codes: 0 is the smallest, or no row."""
    filled = scales[scales > 0]
    low, high = int(filled.min()), int(filled.max())
    return (
        low,
        high,
        np.where(scales > 0, scales - low + 1, 0) if kept is Kept.ALL else scales - low,
    )


def _scales_bits(scales: Int64Array, kept: Kept) -> float:
    """What scales take, nearly."""
    if not scales.any():
        return 0.0
    low, high, codes = codes_of_scales(scales, kept)
    bits = 2 * math.log2(SCALES)
    if kept is Kept.FIRST:
        return bits + subset_bits(high - low, scales.size + high - low)
    return bits + codes_bits(codes, high - low + (2 if kept is Kept.ALL else 1))
