"""How the places of nonzeros can be written, and which way is the shortest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atmc.codec.codes import codes_bits
from atmc.codec.densities import MAX_COLUMNS, SCALES, STRENGTHS, Densities, Layout, batch
from atmc.codec.stream import bernoulli_bits
from atmc.codec.subset import subset_bits

Int64Array = NDArray[np.int64]

# Entries by which a form is judged: more would only take longer.
_SAMPLE = 1 << 18
# Fewer nonzeros than this teach nothing; so many for each column, and two strengths are tried.
_FEW, _MANY = 32, 4
_FLAGS = 1.0 + 2.0  # not plain, and the strength


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


@dataclass(frozen=True)
class Uniform:
    """All places in the rows and columns that are told apart equally likely."""

    rows: Lines
    columns: Lines
    bits: float


@dataclass(frozen=True)
class Adaptive:
    """Densities of rows and columns; ``scales``: of each row that is told apart, 0 if empty."""

    rows: Lines
    columns: Lines
    bits: float
    strength: int  # an index into STRENGTHS
    batches: list[Batch]
    scales: Int64Array


@dataclass(frozen=True)
class _Masked:
    """Rows or columns, all that there are or those that are used, and what it takes to say so."""

    lines: Lines
    bits: float
    all: bool


def _masks(used: Int64Array, lines: Lines) -> tuple[_Masked, _Masked]:
    filled = Lines.some(np.unique(used))
    count = filled.size
    told = 1 + 2 * count.bit_length() + subset_bits(count, lines.size)
    return _Masked(lines, 1.0, True), _Masked(filled, told, False)


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
    row_masks, column_masks = _masks(rows, every), _masks(columns, kept)
    plain = Uniform(every, kept, subset_bits(rows.size, every.size * kept.size))
    best: Uniform | Adaptive = plain
    for uniform in _uniform(rows.size, row_masks, column_masks):
        if round(uniform.bits) < round(best.bits):
            best = uniform
    otherwise = best
    for adaptive in _adaptive(rows, columns, row_masks, column_masks, layout):
        if round(adaptive.bits) < round(best.bits):
            best = adaptive
    if isinstance(best, Adaptive) and _sampled(every, layout) < every.size:
        # Judged by its first rows, and the others may be unlike them.
        mask = column_masks[best.columns is not kept]
        batches = _batches(rows, columns, mask.lines, best.strength, layout)
        row_mask = row_masks[best.rows is not every]
        best = _form(batches, rows, row_mask, mask, best.strength, every.size)
        if round(best.bits) >= round(otherwise.bits):
            best = otherwise
    return best


def _uniform(
    count: int, row_masks: tuple[_Masked, ...], column_masks: tuple[_Masked, ...]
) -> Iterator[Uniform]:
    for rows in row_masks:
        for columns in column_masks:
            bits = _FLAGS + rows.bits + columns.bits
            bits += subset_bits(count, rows.lines.size * columns.lines.size)
            yield Uniform(rows.lines, columns.lines, bits)


def _sampled(every: Lines, layout: Layout) -> int:
    """The number of rows by which forms are judged."""
    return every.size if layout.elements <= _SAMPLE else max(1, _SAMPLE // layout.columns)


def _adaptive(
    rows: Int64Array,
    columns: Int64Array,
    row_masks: tuple[_Masked, _Masked],
    column_masks: tuple[_Masked, _Masked],
    layout: Layout,
) -> Iterator[Adaptive]:
    """The lengths of long tensors are guessed, and their batches are not all."""
    every, kept = row_masks[0].lines, column_masks[0].lines
    if every.size < 2 or kept.size > MAX_COLUMNS or rows.size < _FEW:
        return
    limit = _sampled(every, layout)
    sample = rows < limit
    share = rows.size / max(1, int(sample.sum()))

    def under(mask: _Masked, strength: int) -> list[Adaptive]:
        batches = _batches(rows[sample], columns[sample], mask.lines, strength, layout)
        return [
            _form(batches, rows[sample], row_mask, mask, strength, limit, share)
            for row_mask in row_masks
        ]

    # Counts are trusted soon where there are many.
    strengths = [0] if rows.size < _MANY * kept.size else [0, 1]
    of_all = [form for strength in strengths for form in under(column_masks[0], strength)]
    yield from of_all
    yield from under(column_masks[1], min(of_all, key=lambda form: form.bits).strength)


def _form(
    batches: list[Batch],
    rows: Int64Array,
    row_mask: _Masked,
    column_mask: _Masked,
    strength: int,
    count: int,
    share: float = 1.0,
) -> Adaptive:
    """``rows``: of the nonzeros among the first ``count`` rows; all take ``share`` times theirs."""
    scales = np.concatenate([some.scales for some in batches] or [np.zeros(0, np.int64)])
    if row_mask.all:
        of_all = np.zeros(count, dtype=np.int64)
        of_all[np.unique(rows)] = scales
        scales = of_all
    bits = sum(some.bits for some in batches) + _scales_bits(scales, not row_mask.all)
    bits = _FLAGS + column_mask.bits + row_mask.bits + share * bits
    return Adaptive(row_mask.lines, column_mask.lines, bits, strength, batches, scales)


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
        scales = density.fit(np.diff(ends[start : end + 1]))
        bits = bernoulli_bits(ones, density.chances(scales))
        found.append(Batch(inner[mine], ones, scales, bits))
        density.see(inner[mine])
        start = end
    return found


def codes_of_scales(scales: Int64Array, masked: bool) -> tuple[int, int, Int64Array]:
    """Smallest and largest scale of rows with nonzeros, and codes: 0 is the smallest, or no row."""
    filled = scales[scales > 0]
    low, high = int(filled.min()), int(filled.max())
    return low, high, scales - low if masked else np.where(scales > 0, scales - low + 1, 0)


def _scales_bits(scales: Int64Array, masked: bool) -> float:
    """What scales take, nearly."""
    if not scales.any():
        return 0.0
    low, high, codes = codes_of_scales(scales, masked)
    return 2 * math.log2(SCALES) + codes_bits(codes, high - low + (1 if masked else 2))
