"""Where the nonzeros of a factor are: rows, columns, and the densities of both.

Three things are known of the places of trained weights: what reads a dead unit is zero, whole rows
and columns are empty, and the others are filled very unevenly. Each is used where that pays.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atmc.codec.codes import codes_bits, decode_codes, encode_codes
from atmc.codec.errors import AtmcFormatError
from atmc.codec.stream import TOTAL, Reader, Writer, bernoulli_bits
from atmc.codec.subset import read_subset, subset_bits, write_subset

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# What is expected of a column weighs as much as so many nonzeros in it.
STRENGTHS = (0.5, 2.0, 8.0)
# A channel, or a place in the kernel, counts as if it had so many average columns more.
_SMOOTHING = 8
# A row that is not empty has a scale in 1 .. _SCALES: its density in powers of two, downwards; 11
# is the mean.
_SCALES = 39
_MEAN_SCALE = 11
# Densities are learned for so many columns at most, and rows are coded together up to so many
# entries: both bound the memory.
_MAX_COLUMNS = 1 << 20
_MAX_BATCH = 1 << 16
# Entries by which the strength is chosen: more would only take longer.
_SAMPLE = 1 << 18


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


def encode_positions(writer: Writer, positions: Int64Array, layout: Layout) -> None:
    """The number of nonzeros, and where they are (ascending, in C order)."""
    writer.part = "positions"
    writer.bounded(int(positions.size), layout.elements)
    if positions.size == 0:
        return
    rows, columns = np.divmod(positions, layout.columns)
    kept = np.arange(layout.columns)
    if layout.live is not None:
        dead = not bool(layout.live[columns].all())
        writer.symbol(int(not dead), 2)
        if not dead:
            kept = np.flatnonzero(layout.live)
    every = np.arange(layout.rows)
    best = _Choice(every, kept, 0, subset_bits(positions.size, every.size * kept.size))
    for choice in _candidates(rows, columns, every, kept, layout):
        if round(choice.bits) < round(best.bits):
            best = choice
    plain = best.strength == 0 and best.rows is every and best.columns is kept
    writer.symbol(int(not plain), 2)
    if not plain:
        writer.symbol(best.strength, len(STRENGTHS) + 1)
        for some, before in ((best.rows, every), (best.columns, kept)):
            writer.symbol(int(some is not before), 2)
            if some is not before:
                _write_mask(writer, np.searchsorted(before, some), before.size)
    if best.strength == 0:
        places = np.searchsorted(best.rows, rows) * best.columns.size
        write_subset(
            writer,
            places + np.searchsorted(best.columns, columns),
            best.rows.size * best.columns.size,
        )
        return
    runs = list(_batches(rows, columns, best, layout))
    scales = np.zeros(best.rows.size, dtype=np.int64)
    filled = np.unique(np.searchsorted(best.rows, rows))
    scales[filled] = np.concatenate([run.scales for run in runs])
    _write_scales(writer, scales, best.rows is not every)
    for run in runs:
        writer.bernoulli(run.ones, run.density.chances(run.scales))


def decode_positions(reader: Reader, layout: Layout) -> Int64Array:
    """The inverse of :func:`encode_positions`."""
    count = reader.bounded(layout.elements)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    kept = np.arange(layout.columns)
    if layout.live is not None and reader.symbol(2):
        kept = np.flatnonzero(layout.live)
    rows, columns, strength, masked = np.arange(layout.rows), kept, 0, False
    if reader.symbol(2):
        strength = reader.symbol(len(STRENGTHS) + 1)
        masked = bool(reader.symbol(2))
        rows = _read_mask(reader, rows.size) if masked else rows
        columns = kept[_read_mask(reader, kept.size)] if reader.symbol(2) else kept
    if count > rows.size * columns.size:
        raise AtmcFormatError("damaged file: more nonzeros than places")
    if strength == 0:
        places = read_subset(reader, count, rows.size * columns.size)
        inner = columns[places % columns.size]
        return np.asarray(rows[places // columns.size] * layout.columns + inner, dtype=np.int64)
    if columns.size > _MAX_COLUMNS:
        raise AtmcFormatError(f"damaged file: densities of {columns.size} columns")
    density = _Densities(columns, layout, STRENGTHS[strength - 1])
    scales = _read_scales(reader, rows.size, masked)
    rows, scales = rows[scales > 0], scales[scales > 0]
    found = [np.zeros(0, dtype=np.int64)]
    start = 0
    while start < rows.size:
        end = start + _batch(start, rows.size, columns.size)
        ones = np.flatnonzero(reader.bernoulli(density.chances(scales[start:end])))
        inner = ones % columns.size
        density.see(inner)
        found.append(rows[start + ones // columns.size] * layout.columns + columns[inner])
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
class _Choice:
    """A way to write positions: the rows and columns that are told apart, and how."""

    rows: Int64Array
    columns: Int64Array
    strength: int  # 0: all places equally likely; else an index into STRENGTHS, and one
    bits: float


def _candidates(
    rows: Int64Array, columns: Int64Array, every: Int64Array, kept: Int64Array, layout: Layout
) -> Iterator[_Choice]:
    """All but the plain one, with their lengths, the number of nonzeros apart."""
    filled_rows, filled_columns = np.unique(rows), np.unique(columns)
    row_masks = [(every, 1.0), (filled_rows, _mask_bits(filled_rows.size, every.size))]
    column_masks = [(kept, 1.0), (filled_columns, _mask_bits(filled_columns.size, kept.size))]
    flags = 1.0 + 2.0
    uniform = [
        _Choice(
            some_rows,
            some_columns,
            0,
            flags
            + row_bits
            + column_bits
            + subset_bits(rows.size, some_rows.size * some_columns.size),
        )
        for some_rows, row_bits in row_masks
        for some_columns, column_bits in column_masks
    ]
    yield from uniform
    if every.size < 2 or kept.size > _MAX_COLUMNS:
        return
    # Long tensors are judged by their first rows.
    limit = every.size if layout.elements <= _SAMPLE else max(1, _SAMPLE // layout.columns)
    sample = rows < limit
    share = rows.size / max(1, int(sample.sum()))

    def adaptive(mask: tuple[Int64Array, float], strength: int) -> Iterator[_Choice]:
        choice = _Choice(every[:limit], mask[0], strength, 0.0)
        runs = list(_batches(rows[sample], columns[sample], choice, layout))
        bits = sum(bernoulli_bits(run.ones, run.density.chances(run.scales)) for run in runs)
        found = np.concatenate([run.scales for run in runs] or [np.zeros(0, np.int64)])
        scales = np.zeros(limit, dtype=np.int64)
        scales[np.unique(rows[sample])] = found
        fixed = flags + mask[1]
        for (some_rows, row_bits), seen in zip(row_masks, (scales, found), strict=True):
            both = bits + _scales_bits(seen, some_rows is not every)
            yield _Choice(some_rows, mask[0], strength, fixed + row_bits + share * both)

    of_all = [c for i in range(len(STRENGTHS)) for c in adaptive(column_masks[0], 1 + i)]
    yield from of_all
    yield from adaptive(column_masks[1], min(of_all, key=lambda choice: choice.bits).strength)


def _codes_of_scales(scales: Int64Array, masked: bool) -> tuple[int, int, Int64Array]:
    """Smallest and largest scale of rows with nonzeros, and codes: 0 is the smallest, or no row."""
    filled = scales[scales > 0]
    low, high = int(filled.min()), int(filled.max())
    return low, high, scales - low if masked else np.where(scales > 0, scales - low + 1, 0)


def _scales_bits(scales: Int64Array, masked: bool) -> float:
    if not scales.any():
        return 0.0
    low, high, codes = _codes_of_scales(scales, masked)
    return 2 * math.log2(_SCALES) + codes_bits(codes, high - low + (1 if masked else 2))


def _write_scales(writer: Writer, scales: Int64Array, masked: bool) -> None:
    low, high, codes = _codes_of_scales(scales, masked)
    writer.symbol(high - 1, _SCALES)
    writer.symbol(low - 1, high)
    encode_codes(writer, codes, high - low + (1 if masked else 2))


def _read_scales(reader: Reader, count: int, masked: bool) -> Int64Array:
    high = reader.symbol(_SCALES) + 1
    low = reader.symbol(high) + 1
    codes = decode_codes(reader, count, high - low + (1 if masked else 2))
    return codes + low if masked else np.where(codes > 0, codes + low - 1, 0)


def _batch(seen: int, rows: int, columns: int) -> int:
    """How many rows come next under the same densities: a quarter of those before them."""
    return min(max(1, min(seen // 4, _MAX_BATCH // columns)), rows - seen)


@dataclass(frozen=True)
class _Batch:
    """Rows with nonzeros, coded under the same densities; ``ones``: places of the nonzeros."""

    ones: Int64Array
    scales: Int64Array
    density: _Densities


def _batches(
    rows: Int64Array, columns: Int64Array, choice: _Choice, layout: Layout
) -> Iterator[_Batch]:
    """All nonzeros, in batches; a batch must be used before the next, which learns from it."""
    density = _Densities(choice.columns, layout, STRENGTHS[choice.strength - 1])
    inner = np.searchsorted(choice.columns, columns)
    row = np.unique(rows, return_inverse=True)[1]
    count = int(row[-1]) + 1 if row.size else 0
    ends = np.searchsorted(row, np.arange(count + 1))
    start = 0
    while start < count:
        end = start + _batch(start, count, choice.columns.size)
        mine = slice(int(ends[start]), int(ends[end]))
        ones = (row[mine] - start) * choice.columns.size + inner[mine]
        scales = density.fit(np.diff(ends[start : end + 1]))
        yield _Batch(ones, scales, density.copy())
        density.see(inner[mine])
        start = end


class _Densities:
    """Chances of a nonzero in each column of the next row, learned from the rows before it.

    Every operation is on integers or a single rounded one on float64: the chances are the same
    everywhere.
    """

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
        return np.clip(chances, 1, TOTAL - 1).ravel()

    def fit(self, ones: Int64Array) -> Int64Array:
        """Scales whose expected numbers of ones are nearest to ``ones``, by their ratio."""
        wanted = ones.astype(np.float64) * TOTAL

        def expected(scales: Int64Array) -> NDArray[np.float64]:
            sums = self.chances(scales).reshape(scales.size, -1).sum(axis=1)
            return np.asarray(sums, dtype=np.float64)  # exact

        # Sought: the sparsest scale of which not fewer ones are expected than there are. A guess,
        # right where odds are small, then steps: so the guess decides nothing but the time.
        guess = _MEAN_SCALE - 1 + np.frexp(self._weights.sum() / ones)[1].astype(np.int64)
        low = np.clip(guess, 1, _SCALES)
        here = expected(low)
        while (short := (here < wanted) & (low > 1)).any():
            low = low - short
            here = expected(low)
        sparser = np.minimum(low + 1, _SCALES)
        while (more := (expected(sparser) >= wanted) & (sparser > low)).any():
            low = low + more
            sparser = np.minimum(low + 1, _SCALES)
            here = expected(low)
        nearer = wanted * wanted < here * expected(sparser)
        return np.asarray(np.where(nearer, sparser, low), dtype=np.int64)

    def see(self, inner: Int64Array) -> None:
        """Learn from the nonzeros of a batch, given by their columns."""
        self._counts = self._counts + np.bincount(inner, minlength=self._counts.size)
        self._total += inner.size
        for group in self._groups:
            group.see(inner)
        self._weights = self._relative()

    def copy(self) -> _Densities:
        """As it is now: only what :meth:`chances` needs."""
        return copy.copy(self)


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
