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
    return _Search(rows, columns, readable, layout).shortest()


class _Search:
    """The forms of some nonzeros; the arguments are those of :func:`shortest`."""

    def __init__(
        self, rows: Int64Array, columns: Int64Array, readable: Lines, layout: Layout
    ) -> None:
        self._rows, self._columns, self._layout = rows, columns, layout
        self._column_axes = _axes(columns, readable, 1)
        self._row_axes = _axes(rows, Lines(layout.rows), 2)
        self._keys: list[Key] | None = None
        filled = self._row_axes[1].lines
        if int(rows[-1]) == filled.size - 1:
            first = Axis(Which.FIRST, filled, 3 + math.log2(layout.rows + 1))
            self._row_axes.append(first)
            if filled.size <= MAX_ROWS:
                keys = row_keys(rows, columns, filled.size)
                if all(a <= b for a, b in itertools.pairwise(keys)):
                    self._keys = keys  # the rows are in canonical order

    def shortest(self) -> Form:
        def length(form: Form) -> int:
            return round(form.bits)

        uniform = min(self._uniform(), key=length)
        sampled = self._layout.rows  # by which forms are judged
        if self._layout.elements > _SAMPLE:
            sampled = max(1, _SAMPLE // self._layout.columns)
        best = min([uniform, *self._adaptive(sampled)], key=length)
        if best.strength and sampled < self._layout.rows:
            # The other rows may be unlike the first ones.
            of_all = self._fitted(best.columns, best.strength, self._layout.rows, [best.rows])
            best = min([uniform, *of_all], key=length)
        return best

    def _uniform(self) -> Iterator[Form]:
        """The forms in which all places are equally likely; the plain one comes first."""
        keys = self._keys
        row_order = RowOrder.of(keys, [0] * len(keys)) if keys is not None else None
        for rows, columns in itertools.product(self._row_axes, self._column_axes):
            order = row_order if rows.which is Which.FIRST else None
            bits = 0.0
            if not rows.which is columns.which is Which.ALL:
                bits = _FLAGS + rows.bits + columns.bits - (order.capacity if order else 0)
            bits += subset_bits(self._rows.size, rows.lines.size * columns.lines.size)
            yield Form(rows, columns, bits, 0, _NO_SCALES, order)

    def _adaptive(self, sampled: int) -> Iterator[Form]:
        """The forms with densities, judged by the first ``sampled`` rows."""
        readable, filled = self._column_axes
        count, width = self._rows.size, readable.lines.size
        if self._layout.rows < 2 or width > MAX_COLUMNS or count < _FEW:
            return
        # Counts are trusted soon where there are many.
        strengths = [1] if count < _MANY * width else [1, 2]
        forms = [form for s in strengths for form in self._fitted(readable, s, sampled)]
        yield from forms
        if filled.lines.size < width:
            strength = min(forms, key=lambda form: form.bits).strength
            yield from self._fitted(filled, strength, sampled)

    def _fitted(
        self, axis: Axis, strength: int, limit: int, row_axes: Sequence[Axis] | None = None
    ) -> Iterator[Form]:
        """The forms with the scales that suit the first ``limit`` rows.

        Args:
            axis: of the columns.
            strength: of their densities.
            limit: where it is not all rows, their number of nonzeros makes the length an estimate.
            row_axes: by default all of them.
        """
        among = self._rows < limit
        rows, columns = self._rows[among], axis.lines.places(self._columns[among])
        share = self._rows.size / max(1, rows.size)
        counts = np.bincount(rows, minlength=limit)

        def code(scales: Int64Array | None = None) -> tuple[Int64Array, float]:
            """Scales of the rows that are not empty, by default the best, and the bits of these."""
            fitted, bits = [_NO_SCALES], 0.0
            densities = Densities(axis.lines, self._layout, strength)
            for ones, some_scales, chances in densities.batches(rows, columns, scales):
                fitted.append(some_scales)
                bits += bernoulli_bits(ones, chances)
            return np.concatenate(fitted), bits

        best, best_bits = code()
        for row_axis in row_axes or self._row_axes:
            scales, bits, order = best, best_bits, None
            if row_axis.which is Which.ALL:
                scales = np.zeros(limit, dtype=np.int64)
                scales[counts > 0] = best
            elif row_axis.which is Which.FIRST:
                scales = np.maximum.accumulate(best)
                if self._keys is not None:
                    # What is learned of columns depends on the order, so scales come from counts.
                    by_count = scales_of_counts(counts[: best.size], axis.lines.size)
                    order = RowOrder.of(self._keys[: best.size], by_count.tolist())
                    scales = scales if order is None else by_count
                if not np.array_equal(scales, best):
                    bits = code(scales)[1]
            bits = bits + _scales_bits(scales, row_axis.which) - (order.capacity if order else 0)
            bits = _FLAGS + axis.bits + row_axis.bits + share * bits
            yield Form(row_axis, axis, bits, strength, scales, order)


def _axes(used: Int64Array, lines: Lines, flags: int) -> list[Axis]:
    """All of ``lines``, and those that are used, of which ``flags`` bits say that a set follows."""
    filled = Lines.of(np.unique(used))
    bits = flags + (2 * filled.size.bit_length() + subset_bits(filled.size, lines.size))
    return [Axis(Which.ALL, lines, 1.0), Axis(Which.SOME, filled, bits)]


def codes_of_scales(scales: Int64Array, which: Which) -> tuple[int, int, Int64Array, int]:
    """Smallest and largest scale of the rows with nonzeros, codes of all rows, and codes there are.

    Code 0 is the smallest scale, or an empty row where there can be one.
    """
    filled = scales[scales > 0]
    low, high = int(filled.min()), int(filled.max())
    empty = int(which is Which.ALL)
    return low, high, np.where(scales > 0, scales - low + empty, 0), high - low + 1 + empty


def _scales_bits(scales: Int64Array, which: Which) -> float:
    """What scales take, nearly."""
    if not scales.any():
        return 0.0
    low, high, codes, size = codes_of_scales(scales, which)
    bits = 2 * math.log2(SCALES)
    if which is Which.FIRST:
        return bits + subset_bits(high - low, scales.size + high - low)
    return bits + codes_bits(codes, size)
