"""Where the nonzeros of a factor are: rows, columns, and the densities of both.

Three things are known of the places of trained weights: what reads a dead unit is zero, whole rows
and columns are empty, and the others are filled very unevenly. Each is used where that pays.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from atmc.codec.codes import decode_codes, encode_codes
from atmc.codec.densities import (
    MAX_COLUMNS,
    SCALES,
    STRENGTHS,
    Densities,
    Layout,
    Lines,
    batch_size,
)
from atmc.codec.position_forms import Form, Which, codes_of_scales, shortest
from atmc.codec.row_order import MAX_ROWS, read_order, row_keys
from atmc.codec.stream import Int64Array, Reader, Writer
from atmc.codec.subset import (
    read_counted_subset,
    read_subset,
    write_counted_subset,
    write_subset,
)
from atmc.errors import AtmcFormatError

# Closing loops encode a model many times, and most of its tensors have the same places in all of
# them. The forms of tensors with up to so many nonzeros are cached.
_CACHED = 1 << 14


@lru_cache(maxsize=128)
def _cached_form(positions: bytes, readable: bytes | None, layout: Layout) -> Form:
    """:func:`shortest` for the bytes of int64 positions, and of the columns that are readable."""
    lines = Lines(layout.columns)
    if readable is not None:
        lines = Lines.of(np.frombuffer(readable, dtype=np.int64))
    rows, columns = np.divmod(np.frombuffer(positions, dtype=np.int64), layout.columns)
    return shortest(rows, columns, lines, layout)


class PlannedPositions:
    """Where nonzeros are, and how that is written.

    Args:
        positions: of the nonzeros, ascending, in C order.
        layout: the matrix.

    Attributes:
        capacity: bits of other data that the order of the rows carries.
    """

    def __init__(self, positions: Int64Array, layout: Layout) -> None:
        self._layout, self._count = layout, int(positions.size)
        self.capacity = 0
        if not self._count:
            return
        self._rows, self._columns = np.divmod(positions, layout.columns)
        self._readable = Lines(layout.columns)
        if layout.live is not None and layout.live[self._columns].all():
            self._readable = Lines.of(np.flatnonzero(layout.live))
        if positions.size <= _CACHED:
            indices = self._readable.indices
            readable = None if indices is None else indices.tobytes()
            self._form = _cached_form(positions.tobytes(), readable, replace(layout, live=None))
        else:
            self._form = shortest(self._rows, self._columns, self._readable, layout)
        if self._form.order is not None:
            self.capacity = self._form.order.capacity

    def write(self, writer: Writer, payload: int = 0) -> None:
        """The number of nonzeros and their places; the order of the rows carries ``payload``."""
        writer.part = "positions"
        writer.bounded(self._count, self._layout.elements)
        if not self._count:
            return
        form = self._form
        if self._layout.live is not None:
            writer.symbol(self._readable.indices is not None, 2)
        restricted = not form.rows.which is form.columns.which is Which.ALL
        writer.symbol(restricted or form.strength > 0, 2)
        if restricted or form.strength > 0:
            self._write_lines(writer)
        height, width = form.rows.lines.size, form.columns.lines.size
        rows, columns = form.rows.lines.places(self._rows), form.columns.lines.places(self._columns)
        if form.order is not None:
            rows = form.order.write(payload).argsort()[rows]
            by_row = np.lexsort((columns, rows))
            rows, columns = rows[by_row], columns[by_row]
        if form.strength == 0:
            write_subset(writer, rows * width + columns, height * width)
            return
        _write_scales(writer, form.scales, form.rows.which)
        densities = Densities(form.columns.lines, self._layout, form.strength)
        for ones, _, chances in densities.batches(rows, columns, form.scales[form.scales > 0]):
            writer.bernoulli(ones, chances)

    def _write_lines(self, writer: Writer) -> None:
        rows, columns = self._form.rows, self._form.columns
        writer.symbol(self._form.strength, len(STRENGTHS))
        writer.symbol(rows.which is not Which.ALL, 2)
        if rows.which is not Which.ALL:
            writer.symbol(rows.which is Which.FIRST, 2)
        if rows.which is Which.FIRST:
            writer.symbol(self._form.order is not None, 2)
            writer.bounded(rows.lines.size, self._layout.rows)
        elif rows.which is Which.SOME:
            write_counted_subset(writer, rows.lines.all(), self._layout.rows)
        writer.symbol(columns.which is Which.SOME, 2)
        if columns.which is Which.SOME:
            places = self._readable.places(columns.lines.all())
            write_counted_subset(writer, places, self._readable.size)


def _write_scales(writer: Writer, scales: Int64Array, which: Which) -> None:
    low, high, codes, size = codes_of_scales(scales, which)
    writer.symbol(high - 1, SCALES)
    writer.symbol(low - 1, high)
    if which is Which.FIRST:
        # In order: how many rows have a smaller scale, for each scale but the least.
        steps = np.arange(high - low)
        before = np.searchsorted(codes, steps, side="right")
        write_subset(writer, before + steps, codes.size + high - low)
    else:
        encode_codes(writer, codes, size)


class DecodedPositions(NamedTuple):
    """Where nonzeros are (ascending, in C order), and what the order of their rows carries."""

    positions: Int64Array
    capacity: int
    payload: int


def decode_positions(reader: Reader, layout: Layout) -> DecodedPositions:
    """The inverse of :meth:`PlannedPositions.write`."""
    count = reader.bounded(layout.elements)
    if count == 0:
        return DecodedPositions(np.zeros(0, dtype=np.int64), 0, 0)
    rows, columns = Lines(layout.rows), Lines(layout.columns)
    if layout.live is not None and reader.symbol(2):
        columns = Lines.of(np.flatnonzero(layout.live))
    strength, which, ordered = 0, Which.ALL, False
    if reader.symbol(2):
        strength = reader.symbol(len(STRENGTHS))
        if reader.symbol(2):
            which = Which.FIRST if reader.symbol(2) else Which.SOME
        if which is Which.FIRST:
            ordered = bool(reader.symbol(2))
            rows = Lines(reader.bounded(rows.size))
            if ordered and rows.size > MAX_ROWS:
                raise AtmcFormatError(f"damaged file: the order of {rows.size} rows")
        elif which is Which.SOME:
            rows = Lines.of(read_counted_subset(reader, rows.size))
        if reader.symbol(2):
            columns = Lines.of(columns.at(read_counted_subset(reader, columns.size)))
    if count > rows.size * columns.size:
        raise AtmcFormatError("damaged file: more nonzeros than places")
    if strength == 0:
        row, column = np.divmod(read_subset(reader, count, rows.size * columns.size), columns.size)
        scales = np.zeros(rows.size, dtype=np.int64)
    else:
        if columns.size > MAX_COLUMNS:
            raise AtmcFormatError(f"damaged file: densities of {columns.size} columns")
        scales = _read_scales(reader, rows.size, which)
        row, column = _read_adaptive(reader, scales, columns, Densities(columns, layout, strength))
        if row.size != count:
            raise AtmcFormatError(f"damaged file: {row.size} nonzeros where {count} are promised")
    if not ordered:
        return DecodedPositions(rows.at(row) * layout.columns + columns.at(column), 0, 0)
    places, capacity, payload = read_order(row_keys(row, column, rows.size), scales.tolist())
    positions = np.sort(places[row] * layout.columns + columns.at(column))
    return DecodedPositions(positions, capacity, payload)


def _read_scales(reader: Reader, count: int, which: Which) -> Int64Array:
    high = reader.symbol(SCALES) + 1
    low = reader.symbol(high) + 1
    if which is Which.FIRST:
        steps = np.arange(high - low)
        before = read_subset(reader, high - low, count + high - low) - steps
        return low + np.searchsorted(before, np.arange(count), side="right")
    empty = int(which is Which.ALL)
    codes = decode_codes(reader, count, high - low + 1 + empty)
    return np.where(codes >= empty, codes + low - empty, 0)


def _read_adaptive(
    reader: Reader, scales: Int64Array, columns: Lines, densities: Densities
) -> tuple[Int64Array, Int64Array]:
    """Rows and columns of the nonzeros, as places among those that the form is restricted to."""
    filled = np.flatnonzero(scales)
    rows, inner = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    start = 0
    while start < filled.size:
        batch = filled[start : start + batch_size(start, filled.size, columns.size)]
        ones = np.flatnonzero(reader.bernoulli(densities.chances(scales[batch])))
        row, column = np.divmod(ones, columns.size)
        densities.see(column)
        rows.append(batch[row])
        inner.append(column)
        start += batch.size
    return np.concatenate(rows), np.concatenate(inner)
