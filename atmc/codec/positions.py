"""Where the nonzeros of a factor are: rows, columns, and the densities of both.

Three things are known of the places of trained weights: what reads a dead unit is zero, whole rows
and columns are empty, and the others are filled very unevenly. Each is used where that pays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atmc.codec.codes import decode_codes, encode_codes
from atmc.codec.densities import MAX_COLUMNS, SCALES, STRENGTHS, Densities, Layout, batch
from atmc.codec.position_forms import (
    Adaptive,
    Batch,
    Kept,
    Lines,
    Uniform,
    codes_of_scales,
    shortest,
)
from atmc.codec.row_order import MAX_ROWS, read_order, row_keys
from atmc.codec.stream import Reader, Writer
from atmc.codec.subset import read_subset, write_subset
from atmc.errors import AtmcFormatError

Int64Array = NDArray[np.int64]

# Closing loops encode a model many times, and most of its tensors have the same places in all of
# them. Of tensors with up to so many nonzeros it is remembered how they are written.
_REMEMBERED = 1 << 14


@lru_cache(maxsize=128)
def _remembered(
    positions: bytes, kept: bytes | None, rows: int, columns: int, block: int, spatial: bool
) -> Uniform | Adaptive:
    """:func:`shortest` for the bytes of int64 positions, and of the columns that are kept."""
    some = Lines(columns) if kept is None else Lines.some(np.frombuffer(kept, dtype=np.int64))
    row, column = np.divmod(np.frombuffer(positions, dtype=np.int64), columns)
    return shortest(row, column, Lines(rows), some, Layout(rows, columns, block, spatial))


class PlannedPositions:
    """Where nonzeros are, and how that is written.

    Args:
        positions: of the nonzeros, ascending, in C order.
        layout: the matrix.

    Attributes:
        spare: bits of something else that the order of the rows tells.
    """

    def __init__(self, positions: Int64Array, layout: Layout) -> None:
        self._layout, self._count = layout, int(positions.size)
        self.spare = 0
        if not self._count:
            return
        self._rows, self._columns = np.divmod(positions, layout.columns)
        self._every, self._kept = Lines(layout.rows), Lines(layout.columns)
        self._dead = False
        if layout.live is not None:
            self._dead = not bool(layout.live[self._columns].all())
            if not self._dead:
                self._kept = Lines.some(np.flatnonzero(layout.live))
        if positions.size <= _REMEMBERED:
            live = None if self._kept.indices is None else self._kept.indices.tobytes()
            shape = (layout.rows, layout.columns, layout.block, layout.spatial)
            self._form = _remembered(positions.tobytes(), live, *shape)
        else:
            self._form = shortest(self._rows, self._columns, self._every, self._kept, layout)
        self.spare = self._form.order.bits if self._form.order is not None else 0

    def write(self, writer: Writer, number: int = 0) -> None:
        """The number of nonzeros and their places; the order of the rows tells ``number``."""
        writer.part = "positions"
        writer.bounded(self._count, self._layout.elements)
        if not self._count:
            return
        form = self._form
        if self._layout.live is not None:
            writer.symbol(int(not self._dead), 2)
        adaptive = isinstance(form, Adaptive)
        plain = not adaptive and form.rows.kept is form.columns.kept is Kept.ALL
        writer.symbol(int(not plain), 2)
        if not plain:
            self._write_lines(writer)
        if isinstance(form, Adaptive):
            _write_scales(writer, form)
        rows = self._rows
        if form.order is not None:
            place = form.order.write(number).argsort()
            rows = place[rows]
        if isinstance(form, Adaptive):
            columns = form.columns.lines
            density = Densities(columns.all(), self._layout, STRENGTHS[form.strength])
            batches: Iterable[Batch] = form.batches
            if form.order is not None:
                batches = _rearranged(rows, columns.places(self._columns), form)
            for each in batches:
                writer.bernoulli(each.ones, density.chances(each.scales))
                density.see(each.inner)
        else:
            some_rows, some_columns = form.rows.lines, form.columns.lines
            places = some_rows.places(rows) * some_columns.size
            places = np.sort(places + some_columns.places(self._columns))
            write_subset(writer, places, some_rows.size * some_columns.size)

    def _write_lines(self, writer: Writer) -> None:
        form = self._form
        writer.symbol(form.strength + 1 if isinstance(form, Adaptive) else 0, len(STRENGTHS) + 1)
        writer.symbol(int(form.rows.kept is not Kept.ALL), 2)
        if form.rows.kept is not Kept.ALL:
            writer.symbol(int(form.rows.kept is Kept.FIRST), 2)
        if form.rows.kept is Kept.FIRST:
            writer.symbol(int(form.order is not None), 2)
            writer.bounded(form.rows.lines.size, self._every.size)
        elif form.rows.kept is Kept.SOME:
            _write_mask(writer, form.rows.lines.all(), self._every.size)
        writer.symbol(int(form.columns.kept is Kept.SOME), 2)
        if form.columns.kept is Kept.SOME:
            _write_mask(writer, self._kept.places(form.columns.lines.all()), self._kept.size)


def _rearranged(rows: Int64Array, inner: Int64Array, form: Adaptive) -> Iterator[Batch]:
    """The batches of a form whose rows are written in another order."""
    by_row = np.lexsort((inner, rows))
    rows, inner = rows[by_row], inner[by_row]
    count, size = form.scales.size, form.columns.lines.size
    ends = np.searchsorted(rows, np.arange(count + 1))
    start = 0
    while start < count:
        end = start + batch(start, count, size)
        mine = slice(int(ends[start]), int(ends[end]))
        ones = (rows[mine] - start) * size + inner[mine]
        yield Batch(inner[mine], ones, form.scales[start:end], 0.0)
        start = end


def _write_scales(writer: Writer, form: Adaptive) -> None:
    low, high, codes = codes_of_scales(form.scales, form.rows.kept)
    writer.symbol(high - 1, SCALES)
    writer.symbol(low - 1, high)
    if form.rows.kept is Kept.FIRST:
        # In order: how many rows have a smaller scale, for each scale but the least.
        steps = np.arange(high - low)
        before = np.searchsorted(codes, steps, side="right")
        write_subset(writer, before + steps, codes.size + high - low)
    else:
        encode_codes(writer, codes, high - low + (2 if form.rows.kept is Kept.ALL else 1))


class DecodedPositions(NamedTuple):
    """Where nonzeros are (ascending, in C order), and what the order of their rows told."""

    positions: Int64Array
    spare: int
    number: int


def decode_positions(reader: Reader, layout: Layout) -> DecodedPositions:
    """The inverse of :meth:`PlannedPositions.write`."""
    count = reader.bounded(layout.elements)
    if count == 0:
        return DecodedPositions(np.zeros(0, dtype=np.int64), 0, 0)
    rows, columns = Lines(layout.rows), Lines(layout.columns)
    if layout.live is not None and reader.symbol(2):
        columns = Lines.some(np.flatnonzero(layout.live))
    strength, told, ordered = 0, Kept.ALL, False
    if reader.symbol(2):
        strength = reader.symbol(len(STRENGTHS) + 1)
        if reader.symbol(2):
            told = Kept.FIRST if reader.symbol(2) else Kept.SOME
        if told is Kept.FIRST:
            ordered = bool(reader.symbol(2))
            rows = Lines(reader.bounded(rows.size))
            if ordered and rows.size > MAX_ROWS:
                raise AtmcFormatError(f"damaged file: the order of {rows.size} rows")
        elif told is Kept.SOME:
            rows = Lines.some(_read_mask(reader, rows.size))
        if reader.symbol(2):
            columns = Lines.some(columns.at(_read_mask(reader, columns.size)))
    if count > rows.size * columns.size:
        raise AtmcFormatError("damaged file: more nonzeros than places")
    if strength == 0:
        row, inner = np.divmod(read_subset(reader, count, rows.size * columns.size), columns.size)
        scales = np.zeros(rows.size, dtype=np.int64)
    else:
        if columns.size > MAX_COLUMNS:
            raise AtmcFormatError(f"damaged file: densities of {columns.size} columns")
        scales = _read_scales(reader, rows.size, told)
        row, inner = _read_adaptive(reader, scales, columns, layout, STRENGTHS[strength - 1])
        if row.size != count:
            raise AtmcFormatError(f"damaged file: {row.size} nonzeros where {count} are promised")
    if not ordered:
        return DecodedPositions(rows.at(row) * layout.columns + columns.at(inner), 0, 0)
    places, spare, number = read_order(row_keys(row, inner, rows.size), scales.tolist())
    positions = np.sort(places[row] * layout.columns + columns.at(inner))
    return DecodedPositions(positions, spare, number)


def _read_adaptive(
    reader: Reader, scales: Int64Array, columns: Lines, layout: Layout, strength: float
) -> tuple[Int64Array, Int64Array]:
    """Rows and columns of the nonzeros, as places among those that are told apart."""
    density = Densities(columns.all(), layout, strength)
    filled = np.flatnonzero(scales)
    scales = scales[filled]
    rows, inner = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    start = 0
    while start < filled.size:
        end = start + batch(start, filled.size, columns.size)
        ones = np.flatnonzero(reader.bernoulli(density.chances(scales[start:end])))
        found = ones % columns.size
        density.see(found)
        rows.append(filled[start + ones // columns.size])
        inner.append(found)
        start = end
    return (
        np.concatenate(rows).astype(np.int64, copy=False),
        np.concatenate(inner).astype(np.int64, copy=False),
    )


def _write_mask(writer: Writer, indices: Int64Array, size: int) -> None:
    writer.bounded(indices.size, size)
    write_subset(writer, indices, size)


def _read_mask(reader: Reader, size: int) -> Int64Array:
    return read_subset(reader, reader.bounded(size), size)


def _read_scales(reader: Reader, count: int, told: Kept) -> Int64Array:
    high = reader.symbol(SCALES) + 1
    low = reader.symbol(high) + 1
    if told is Kept.FIRST:
        steps = np.arange(high - low)
        before = read_subset(reader, high - low, count + high - low) - steps
        return low + np.searchsorted(before, np.arange(count), side="right")
    codes = decode_codes(reader, count, high - low + (2 if told is Kept.ALL else 1))
    return np.where(codes > 0, codes + low - 1, 0) if told is Kept.ALL else codes + low
