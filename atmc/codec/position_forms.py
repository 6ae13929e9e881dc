"""How the positions of nonzeros can be written, and which way is the shortest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from atmc.codec.codes import codes_bits
from atmc.codec.densities import (
    MAX_COLUMNS,
    SCALES,
    Densities,
    Layout,
    Lines,
    scales_of_counts,
)
from atmc.codec.row_order import MAX_ROWS, Key, RowOrder, row_keys
from atmc.codec.stream import Int64Array, bernoulli_bits
from atmc.codec.subset import subset_bits

# Entries by which a form is judged: more would only take longer.
_SAMPLE = 1 << 18
# Fewer nonzeros than this teach nothing; so many for each column, and two strengths are tried.
_FEW, _MANY = 32, 4
_FLAGS = 1.0 + 2.0  # not plain, and the strength
_NO_SCALES = np.zeros(0, dtype=np.int64)


class Which(Enum):
    """Which rows or columns a form is restricted to."""

    ALL = 0
    FIRST = 1  # rows alone: those before all empty ones, and the fuller the earlier
    SOME = 2


@dataclass(frozen=True)
class Axis:
    """The rows or columns that a form is restricted to; ``bits``: what it takes to name them."""

    which: Which
    lines: Lines
    bits: float


@dataclass(frozen=True)
class Form:
    """A way to write the positions.

    Attributes:
        rows: that it is restricted to.
        columns: that it is restricted to.
        bits: its length, nearly.
        strength: of the densities of rows and columns; 0: all places there are equally likely.
        scales: where there are densities, of each of the rows, 0 if empty.
        order: of the rows, where that carries a payload.
    """

    rows: Axis
    columns: Axis
    bits: float
    strength: int
    scales: Int64Array
    order: RowOrder | None


def shortest(rows: Int64Array, columns: Int64Array, readable: Lines, layout: Layout) -> Form:
    """The shortest form, of equal ones the plainest.

    Args:
        rows: of the nonzeros, in order of their places; at least one.
        columns: of the nonzeros.
        readable: the columns that are not known to be empty.
        layout: the matrix.
    """
    row_axes, column_axes = _row_axes(rows, Lines(layout.rows)), _axes(columns, readable, 1)
    keys = _canonical_keys(rows, columns, row_axes[-1])
    uniform = min(_uniform_forms(rows.size, row_axes, column_axes, keys), key=_length)
    adaptive = _adaptive_forms(rows, columns, row_axes, column_axes, keys, layout)
    best = min([uniform, *adaptive], key=_length)
    if best.strength and _sampled_rows(layout) < layout.rows:
        # Judged by its first rows, and the others may be unlike them.
        fit = _Fit(rows, columns, layout.rows, best.columns, best.strength, layout)
        best = min(uniform, fit.form(best.rows, keys), key=_length)
    return best


def _length(form: Form) -> int:
    return round(form.bits)


def _axes(used: Int64Array, lines: Lines, flags: int) -> list[Axis]:
    """All of ``lines``, and those that are used, of which ``flags`` bits say that a set follows."""
    filled = Lines.of(np.unique(used))
    bits = flags + (2 * filled.size.bit_length() + subset_bits(filled.size, lines.size))
    return [Axis(Which.ALL, lines, 1.0), Axis(Which.SOME, filled, bits)]


def _row_axes(used: Int64Array, lines: Lines) -> list[Axis]:
    axes = _axes(used, lines, 2)
    filled = axes[1].lines
    if int(used[-1]) == filled.size - 1:
        axes.append(Axis(Which.FIRST, filled, 3 + math.log2(lines.size + 1)))
    return axes


def _canonical_keys(rows: Int64Array, columns: Int64Array, filled: Axis) -> list[Key] | None:
    """The keys of rows that are the first ones, and in canonical order; None where they are not."""
    if filled.which is not Which.FIRST or filled.lines.size > MAX_ROWS:
        return None
    counts = np.bincount(rows)
    if (counts[1:] > counts[:-1]).any():
        return None
    keys = row_keys(rows, columns, counts.size)
    return keys if all(a <= b for a, b in itertools.pairwise(keys)) else None


def _uniform_forms(
    count: int, row_axes: Sequence[Axis], column_axes: Sequence[Axis], keys: list[Key] | None
) -> Iterator[Form]:
    """The forms in which all places are equally likely; the plain one comes first."""
    row_order = RowOrder.of(keys, [0] * len(keys)) if keys is not None else None
    for rows, columns in itertools.product(row_axes, column_axes):
        order = row_order if rows.which is Which.FIRST else None
        bits = 0.0
        if not rows.which is columns.which is Which.ALL:
            bits = _FLAGS + rows.bits + columns.bits - (order.capacity if order else 0)
        bits += subset_bits(count, rows.lines.size * columns.lines.size)
        yield Form(rows, columns, bits, 0, _NO_SCALES, order)


def _sampled_rows(layout: Layout) -> int:
    """The number of rows by which forms are judged."""
    return layout.rows if layout.elements <= _SAMPLE else max(1, _SAMPLE // layout.columns)


def _adaptive_forms(
    rows: Int64Array,
    columns: Int64Array,
    row_axes: Sequence[Axis],
    column_axes: Sequence[Axis],
    keys: list[Key] | None,
    layout: Layout,
) -> Iterator[Form]:
    """The forms with densities. Those of a long tensor are of its first rows, lengths estimates."""
    readable, filled = column_axes
    if layout.rows < 2 or readable.lines.size > MAX_COLUMNS or rows.size < _FEW:
        return
    limit = _sampled_rows(layout)
    sampled = rows < limit
    share = rows.size / max(1, int(sampled.sum()))

    def forms(columns_axis: Axis, strength: int) -> list[Form]:
        fit = _Fit(rows[sampled], columns[sampled], limit, columns_axis, strength, layout)
        return [fit.form(axis, keys, share) for axis in row_axes]

    # Counts are trusted soon where there are many.
    strengths = [1] if rows.size < _MANY * readable.lines.size else [1, 2]
    of_all = [form for strength in strengths for form in forms(readable, strength)]
    yield from of_all
    if filled.lines.size < readable.lines.size:
        yield from forms(filled, min(of_all, key=lambda form: form.bits).strength)


class _Fit:
    """The scales that suit the first ``limit`` rows, under the densities of some columns."""

    def __init__(
        self,
        rows: Int64Array,
        columns: Int64Array,
        limit: int,
        axis: Axis,
        strength: int,
        layout: Layout,
    ) -> None:
        self._axis, self._strength, self._layout = axis, strength, layout
        self._rows, self._columns = rows, axis.lines.places(columns)
        self._counts = np.bincount(rows, minlength=limit)
        self._scales, self._bits = self._coded()

    def _coded(self, scales: Int64Array | None = None) -> tuple[Int64Array, float]:
        """Scales of the rows that are not empty, by default the best, and the bits of these."""
        fitted, bits = [_NO_SCALES], 0.0
        density = Densities(self._axis.lines, self._layout, self._strength)
        for batch in density.batches(self._rows, self._columns, scales):
            fitted.append(batch.scales)
            bits += bernoulli_bits(batch.ones, batch.chances)
        return np.concatenate(fitted), bits

    def form(self, rows: Axis, keys: list[Key] | None, share: float = 1.0) -> Form:
        """The form of these rows.

        Args:
            rows: that the form is restricted to.
            keys: of all rows, where they are in canonical order.
            share: of the bits of all nonzeros to those of the nonzeros here.
        """
        scales, bits, order = self._scales, self._bits, None
        if rows.which is Which.ALL:
            scales = np.zeros(self._counts.size, dtype=np.int64)
            scales[self._counts > 0] = self._scales
        elif rows.which is Which.FIRST:
            scales = np.maximum.accumulate(scales)
            if keys is not None:
                # What is learned of columns depends on the order: so scales come from counts alone.
                by_count = scales_of_counts(self._counts[: scales.size], self._axis.lines.size)
                order = RowOrder.of(keys[: scales.size], by_count.tolist())
                scales = scales if order is None else by_count
            if not np.array_equal(scales, self._scales):
                bits = self._coded(scales)[1]
        bits = bits + _scales_bits(scales, rows.which) - (order.capacity if order else 0)
        bits = _FLAGS + self._axis.bits + rows.bits + share * bits
        return Form(rows, self._axis, bits, self._strength, scales, order)


def codes_of_scales(scales: Int64Array, which: Which) -> tuple[int, int, Int64Array]:
    """Smallest and largest scale of rows with nonzeros, and codes: 0 is the smallest, or no row."""
    filled = scales[scales > 0]
    low, high = int(filled.min()), int(filled.max())
    if which is Which.ALL:
        return low, high, np.where(scales > 0, scales - low + 1, 0)
    return low, high, scales - low


def _scales_bits(scales: Int64Array, which: Which) -> float:
    """What scales take, nearly."""
    if not scales.any():
        return 0.0
    low, high, codes = codes_of_scales(scales, which)
    bits = 2 * math.log2(SCALES)
    if which is Which.FIRST:
        return bits + subset_bits(high - low, scales.size + high - low)
    return bits + codes_bits(codes, high - low + (2 if which is Which.ALL else 1))
