"""Where the nonzeros of a factor are: rows, columns, and the densities of both.

Three things are known of the places of trained weights: what reads a dead unit is zero, whole rows
and columns are empty, and the others are filled very unevenly. Each is used where that pays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atmc.codec.codes import codes_bits, decode_codes, encode_codes
from atmc.codec.densities import MAX_COLUMNS, SCALES, STRENGTHS, Densities, Layout, batch
from atmc.codec.errors import AtmcFormatError
from atmc.codec.stream import Reader, Writer, bernoulli_bits
from atmc.codec.subset import read_subset, subset_bits, write_subset

Int64Array = NDArray[np.int64]

# Entries by which the strength is chosen: more would only take longer.
_SAMPLE = 1 << 18
# Fewer nonzeros than this teach nothing; so many for each column, and two strengths are tried.
_FEW, _MANY = 32, 4


def encode_positions(writer: Writer, positions: Int64Array, layout: Layout) -> None:
    """The number of nonzeros, and where they are (ascending, in C order)."""
    writer.part = "positions"
    writer.bounded(int(positions.size), layout.elements)
    if positions.size == 0:
        return
    rows, columns = np.divmod(positions, layout.columns)
    every, kept = _Lines(layout.rows), _Lines(layout.columns)
    if layout.live is not None:
        dead = not bool(layout.live[columns].all())
        writer.symbol(int(not dead), 2)
        if not dead:
            kept = _some(np.flatnonzero(layout.live))
    best = _Choice(every, kept, 0, subset_bits(positions.size, every.size * kept.size))
    row_masks, column_masks = _masks(rows, every), _masks(columns, kept)
    for choice in _uniform(positions.size, row_masks, column_masks):
        if round(choice.bits) < round(best.bits):
            best = choice
    batches: list[_Batch] = []
    uniform = best
    for choice in _adaptive(rows, columns, row_masks, column_masks, layout):
        if round(choice.bits) < round(best.bits):
            best = choice
    if best.strength:
        batches = _batches(rows, columns, best, layout)
        scales = _scales_of_rows(rows, batches, best)
        # The sample may have been unlike the rest.
        bits = sum(each.bits for each in batches) + _scales_bits(scales, best.rows is not every)
        if round(best.fixed + bits) >= round(uniform.bits):
            best = uniform
    plain = best.strength == 0 and best.rows is every and best.columns is kept
    writer.symbol(int(not plain), 2)
    if not plain:
        writer.symbol(best.strength, len(STRENGTHS) + 1)
        for some, before in ((best.rows, every), (best.columns, kept)):
            writer.symbol(int(some is not before), 2)
            if some is not before:
                _write_mask(writer, before.places(some.all()), before.size)
    if best.strength == 0:
        write_subset(
            writer,
            best.rows.places(rows) * best.columns.size + best.columns.places(columns),
            best.rows.size * best.columns.size,
        )
        return
    _write_scales(writer, scales, best.rows is not every)
    density = Densities(best.columns.all(), layout, STRENGTHS[best.strength - 1])
    for each in batches:
        writer.bernoulli(each.ones, density.chances(each.scales))
        density.see(each.inner)


def decode_positions(reader: Reader, layout: Layout) -> Int64Array:
    """The inverse of :func:`encode_positions`."""
    count = reader.bounded(layout.elements)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    rows, columns = _Lines(layout.rows), _Lines(layout.columns)
    if layout.live is not None and reader.symbol(2):
        columns = _some(np.flatnonzero(layout.live))
    strength, masked = 0, False
    if reader.symbol(2):
        strength = reader.symbol(len(STRENGTHS) + 1)
        masked = bool(reader.symbol(2))
        rows = _some(_read_mask(reader, rows.size)) if masked else rows
        if reader.symbol(2):
            columns = _some(columns.at(_read_mask(reader, columns.size)))
    if count > rows.size * columns.size:
        raise AtmcFormatError("damaged file: more nonzeros than places")
    if strength == 0:
        places = read_subset(reader, count, rows.size * columns.size)
        row, inner = np.divmod(places, columns.size)
        return rows.at(row) * layout.columns + columns.at(inner)
    if columns.size > MAX_COLUMNS:
        raise AtmcFormatError(f"damaged file: densities of {columns.size} columns")
    density = Densities(columns.all(), layout, STRENGTHS[strength - 1])
    scales = _read_scales(reader, rows.size, masked)
    filled = rows.at(np.flatnonzero(scales))
    scales = scales[scales > 0]
    found = [np.zeros(0, dtype=np.int64)]
    start = 0
    while start < filled.size:
        end = start + batch(start, filled.size, columns.size)
        ones = np.flatnonzero(reader.bernoulli(density.chances(scales[start:end])))
        inner = ones % columns.size
        density.see(inner)
        found.append(filled[start + ones // columns.size] * layout.columns + columns.at(inner))
        start = end
    positions = np.concatenate(found).astype(np.int64, copy=False)
    if positions.size != count:
        raise AtmcFormatError(f"damaged file: {positions.size} nonzeros where {count} are promised")
    return positions


def _write_mask(writer: Writer, indices: Int64Array, size: int) -> None:
    writer.bounded(indices.size, size)
    write_subset(writer, indices, size)


def _read_mask(reader: Reader, size: int) -> Int64Array:
    return read_subset(reader, reader.bounded(size), size)


def _mask_bits(count: int, size: int) -> float:
    return 1 + 2 * count.bit_length() + subset_bits(count, size)


@dataclass(frozen=True)
class _Lines:
    """The rows or columns that may hold nonzeros: ``indices`` (ascending), or all if None."""

    size: int
    indices: Int64Array | None = None

    def places(self, lines: Int64Array) -> Int64Array:
        """Where lines that are among them stand."""
        return lines if self.indices is None else np.searchsorted(self.indices, lines)

    def at(self, places: Int64Array) -> Int64Array:
        """The lines that stand there."""
        return places if self.indices is None else self.indices[places]

    def all(self) -> Int64Array:
        """Every one of them: as much memory as there are."""
        return np.arange(self.size, dtype=np.int64) if self.indices is None else self.indices


def _some(indices: Int64Array) -> _Lines:
    return _Lines(int(indices.size), indices)


@dataclass(frozen=True)
class _Choice:
    """A way to write positions: the rows and columns that are told apart, and how.

    ``bits``: its length, the number of nonzeros apart; ``fixed``: what flags and masks have of it.
    """

    rows: _Lines
    columns: _Lines
    strength: int  # 0: all places equally likely; else an index into STRENGTHS, and one
    bits: float
    fixed: float = 0.0


_Masks = list[tuple[_Lines, float]]
_FLAGS = 1.0 + 2.0  # not plain, and the strength


def _masks(used: Int64Array, lines: _Lines) -> _Masks:
    """All lines, or those that are used, and what it takes to say so."""
    filled = _some(np.unique(used))
    return [(lines, 1.0), (filled, _mask_bits(filled.size, lines.size))]


def _uniform(count: int, row_masks: _Masks, column_masks: _Masks) -> Iterator[_Choice]:
    """All places in the rows and columns that are told apart equally likely."""
    for rows, row_bits in row_masks:
        for columns, column_bits in column_masks:
            fixed = _FLAGS + row_bits + column_bits
            bits = fixed + subset_bits(count, rows.size * columns.size)
            yield _Choice(rows, columns, 0, bits, fixed)


def _adaptive(
    rows: Int64Array,
    columns: Int64Array,
    row_masks: _Masks,
    column_masks: _Masks,
    layout: Layout,
) -> Iterator[_Choice]:
    """Under densities of rows and columns; the lengths of long tensors are guessed."""
    every, kept = row_masks[0][0], column_masks[0][0]
    if every.size < 2 or kept.size > MAX_COLUMNS or rows.size < _FEW:
        return
    # Long tensors are judged by their first rows.
    limit = every.size if layout.elements <= _SAMPLE else max(1, _SAMPLE // layout.columns)
    sample = rows < limit
    share = rows.size / max(1, int(sample.sum()))

    def adaptive(mask: tuple[_Lines, float], strength: int) -> Iterator[_Choice]:
        choice = _Choice(every, mask[0], strength, 0.0)
        batches = _batches(rows[sample], columns[sample], choice, layout)
        bits = sum(some.bits for some in batches)
        found = np.concatenate([some.scales for some in batches] or [np.zeros(0, np.int64)])
        scales = np.zeros(limit, dtype=np.int64)
        scales[np.unique(rows[sample])] = found
        for (some_rows, row_bits), seen in zip(row_masks, (scales, found), strict=True):
            both = bits + _scales_bits(seen, some_rows is not every)
            fixed = _FLAGS + mask[1] + row_bits
            yield _Choice(some_rows, mask[0], strength, fixed + share * both, fixed)

    # Counts are trusted soon where there are many.
    strengths = [1] if rows.size < _MANY * kept.size else [1, 2]
    of_all = [choice for strength in strengths for choice in adaptive(column_masks[0], strength)]
    yield from of_all
    yield from adaptive(column_masks[1], min(of_all, key=lambda choice: choice.bits).strength)


def _scales_of_rows(rows: Int64Array, batches: list[_Batch], choice: _Choice) -> Int64Array:
    """The scale of each row that is told apart, 0 where it is empty."""
    scales = np.zeros(choice.rows.size, dtype=np.int64)
    scales[np.unique(choice.rows.places(rows))] = np.concatenate([b.scales for b in batches])
    return scales


def _codes_of_scales(scales: Int64Array, masked: bool) -> tuple[int, int, Int64Array]:
    """Smallest and largest scale of rows with nonzeros, and codes: 0 is the smallest, or no row."""
    filled = scales[scales > 0]
    low, high = int(filled.min()), int(filled.max())
    return low, high, scales - low if masked else np.where(scales > 0, scales - low + 1, 0)


def _scales_bits(scales: Int64Array, masked: bool) -> float:
    if not scales.any():
        return 0.0
    low, high, codes = _codes_of_scales(scales, masked)
    return 2 * math.log2(SCALES) + codes_bits(codes, high - low + (1 if masked else 2))


def _write_scales(writer: Writer, scales: Int64Array, masked: bool) -> None:
    low, high, codes = _codes_of_scales(scales, masked)
    writer.symbol(high - 1, SCALES)
    writer.symbol(low - 1, high)
    encode_codes(writer, codes, high - low + (1 if masked else 2))


def _read_scales(reader: Reader, count: int, masked: bool) -> Int64Array:
    high = reader.symbol(SCALES) + 1
    low = reader.symbol(high) + 1
    codes = decode_codes(reader, count, high - low + (1 if masked else 2))
    return codes + low if masked else np.where(codes > 0, codes + low - 1, 0)


@dataclass(frozen=True)
class _Batch:
    """Rows with nonzeros, coded under the same densities.

    ``inner``: the columns of the nonzeros; ``ones``: their places in the batch.
    """

    inner: Int64Array
    ones: Int64Array
    scales: Int64Array
    bits: float


def _batches(
    rows: Int64Array, columns: Int64Array, choice: _Choice, layout: Layout
) -> list[_Batch]:
    """All nonzeros, in batches, and the scales that suit the rows."""
    density = Densities(choice.columns.all(), layout, STRENGTHS[choice.strength - 1])
    inner = choice.columns.places(columns)
    row = np.unique(rows, return_inverse=True)[1]
    count = int(row[-1]) + 1 if row.size else 0
    ends = np.searchsorted(row, np.arange(count + 1))
    found = []
    start = 0
    while start < count:
        end = start + batch(start, count, choice.columns.size)
        mine = slice(int(ends[start]), int(ends[end]))
        ones = (row[mine] - start) * choice.columns.size + inner[mine]
        scales = density.fit(np.diff(ends[start : end + 1]))
        bits = bernoulli_bits(ones, density.chances(scales))
        found.append(_Batch(inner[mine], ones, scales, bits))
        density.see(inner[mine])
        start = end
    return found
