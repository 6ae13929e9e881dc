"""Where the nonzeros of a factor are: rows, columns, and the densities of both.

Three things are known of the places of trained weights: what reads a dead unit is zero, whole rows
and columns are empty, and the others are filled very unevenly. Each is used where that pays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atmc.codec.codes import decode_codes, encode_codes
from atmc.codec.densities import MAX_COLUMNS, SCALES, STRENGTHS, Densities, Layout, batch
from atmc.codec.errors import AtmcFormatError
from atmc.codec.position_forms import Adaptive, Kept, Lines, codes_of_scales, shortest
from atmc.codec.stream import Reader, Writer
from atmc.codec.subset import read_subset, write_subset

Int64Array = NDArray[np.int64]


def encode_positions(writer: Writer, positions: Int64Array, layout: Layout) -> None:
    """The number of nonzeros, and where they are (ascending, in C order)."""
    writer.part = "positions"
    writer.bounded(int(positions.size), layout.elements)
    if positions.size == 0:
        return
    rows, columns = np.divmod(positions, layout.columns)
    every, kept = Lines(layout.rows), Lines(layout.columns)
    if layout.live is not None:
        dead = not bool(layout.live[columns].all())
        writer.symbol(int(not dead), 2)
        if not dead:
            kept = Lines.some(np.flatnonzero(layout.live))
    form = shortest(rows, columns, every, kept, layout)
    adaptive = isinstance(form, Adaptive)
    plain = not adaptive and form.rows.kept is form.columns.kept is Kept.ALL
    writer.symbol(int(not plain), 2)
    if not plain:
        writer.symbol(form.strength + 1 if isinstance(form, Adaptive) else 0, len(STRENGTHS) + 1)
        writer.symbol(int(form.rows.kept is not Kept.ALL), 2)
        if form.rows.kept is not Kept.ALL:
            writer.symbol(int(form.rows.kept is Kept.FIRST), 2)
        if form.rows.kept is Kept.FIRST:
            writer.bounded(form.rows.lines.size, every.size)
        elif form.rows.kept is Kept.SOME:
            _write_mask(writer, form.rows.lines.all(), every.size)
        writer.symbol(int(form.columns.kept is Kept.SOME), 2)
        if form.columns.kept is Kept.SOME:
            _write_mask(writer, kept.places(form.columns.lines.all()), kept.size)
    some_rows, some_columns = form.rows.lines, form.columns.lines
    if isinstance(form, Adaptive):
        _write_scales(writer, form)
        density = Densities(some_columns.all(), layout, STRENGTHS[form.strength])
        for each in form.batches:
            writer.bernoulli(each.ones, density.chances(each.scales))
            density.see(each.inner)
    else:
        places = some_rows.places(rows) * some_columns.size + some_columns.places(columns)
        write_subset(writer, places, some_rows.size * some_columns.size)


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


def decode_positions(reader: Reader, layout: Layout) -> Int64Array:
    """The inverse of :func:`encode_positions`."""
    count = reader.bounded(layout.elements)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    rows, columns = Lines(layout.rows), Lines(layout.columns)
    if layout.live is not None and reader.symbol(2):
        columns = Lines.some(np.flatnonzero(layout.live))
    strength, told = 0, Kept.ALL
    if reader.symbol(2):
        strength = reader.symbol(len(STRENGTHS) + 1)
        if reader.symbol(2):
            told = Kept.FIRST if reader.symbol(2) else Kept.SOME
        if told is Kept.FIRST:
            rows = Lines(reader.bounded(rows.size))
        elif told is Kept.SOME:
            rows = Lines.some(_read_mask(reader, rows.size))
        if reader.symbol(2):
            columns = Lines.some(columns.at(_read_mask(reader, columns.size)))
    if count > rows.size * columns.size:
        raise AtmcFormatError("damaged file: more nonzeros than places")
    if strength == 0:
        places = read_subset(reader, count, rows.size * columns.size)
        row, inner = np.divmod(places, columns.size)
        return rows.at(row) * layout.columns + columns.at(inner)
    if columns.size > MAX_COLUMNS:
        raise AtmcFormatError(f"damaged file: densities of {columns.size} columns")
    density = Densities(columns.all(), layout, STRENGTHS[strength - 1])
    scales = _read_scales(reader, rows.size, told)
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


def _read_scales(reader: Reader, count: int, told: Kept) -> Int64Array:
    high = reader.symbol(SCALES) + 1
    low = reader.symbol(high) + 1
    if told is Kept.FIRST:
        steps = np.arange(high - low)
        before = read_subset(reader, high - low, count + high - low) - steps
        return low + np.searchsorted(before, np.arange(count), side="right")
    codes = decode_codes(reader, count, high - low + (2 if told is Kept.ALL else 1))
    return np.where(codes > 0, codes + low - 1, 0) if told is Kept.ALL else codes + low
