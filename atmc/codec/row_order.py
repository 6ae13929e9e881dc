"""Rows that may stand in any order: the order in which they are written carries other bits.

The hidden units of a network have no order of their own. So their rows have one that follows from
what they hold, and are *written* in another: the reader puts them back, and from where each stood
it reads a number, the payload.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import TypeAlias

import numpy as np

from atmc.codec.stream import Int64Array
from atmc.errors import AtmcFormatError

Key: TypeAlias = tuple[int, bytes]

MAX_ROWS = 1 << 16
# Rows whose places are one number: bounds the time that long integers take.
_RUN = 1024
# Fewer bits would not pay for a second stream.
_LEAST = 16


def row_keys(rows: Int64Array, columns: Int64Array, count: int) -> list[Key]:
    """What ``count`` rows are sorted by: the fuller first, then by the columns of the nonzeros.

    Args:
        rows: of the nonzeros, ascending.
        columns: of the nonzeros, ascending in each row.
        count: of rows.
    """
    ends = np.searchsorted(rows, np.arange(count + 1)).tolist()
    data = columns.astype(">i8").tobytes()
    return [(a - b, data[8 * a : 8 * b]) for a, b in pairwise(ends)]


def canonical_order(rows: Int64Array, columns: Int64Array, count: int) -> Int64Array:
    """The row that belongs in each place; equal ones stay as they are."""
    keys = row_keys(rows, columns, count)
    return np.array(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


@dataclass(frozen=True)
class RowOrder:
    """Rows of which those in one class may change places.

    Attributes:
        keys: of the rows, in canonical order within each class.
        classes: of the rows, ascending.
    """

    keys: Sequence[Key]
    classes: Sequence[int]

    @classmethod
    def of(cls, keys: Sequence[Key], classes: Sequence[int]) -> RowOrder | None:
        """The order of such rows, or None where it carries too few bits."""
        order = cls(keys, classes)
        return order if len(keys) <= MAX_ROWS and order.capacity >= _LEAST else None

    @cached_property
    def _parts(self) -> list[tuple[bool, list[int]]]:
        return list(_parts(self.keys, self.classes))

    @cached_property
    def capacity(self) -> int:
        """How many bits the order carries."""
        orders = math.prod(math.factorial(len(part)) for free, part in self._parts if free)
        return orders.bit_length() - 1

    def write(self, payload: int) -> Int64Array:
        """The rows in the order that carries ``payload``, a number of :attr:`capacity` bits."""
        order: list[int] = []
        for free, part in self._parts:
            if free:
                payload, number = divmod(payload, math.factorial(len(part)))
                part = _permuted(part, number)
            order += part
        return np.array(order, dtype=np.int64)


def read_order(keys: Sequence[Key], classes: Sequence[int]) -> tuple[Int64Array, int, int]:
    """The inverse of :meth:`RowOrder.write`, of rows as they were written.

    Returns:
        The canonical place of each row, the capacity of their order, and the payload.

    Raises:
        AtmcFormatError: no writer puts rows in this order.
    """
    by_class = sorted(range(len(keys)), key=lambda row: (classes[row], keys[row]))
    sorted_keys = [keys[row] for row in by_class]
    places: list[int] = []
    payload, orders = 0, 1
    for free, part in _parts(sorted_keys, classes):
        written = keys[len(places) : len(places) + len(part)]
        if free:
            # The keys of a free part are distinct.
            place_of = {sorted_keys[place]: place for place in part}
            if set(written) != place_of.keys():
                raise AtmcFormatError("damaged file: rows in no order")
            part_places = [place_of[key] for key in written]
            payload += orders * _permutation_number(part, part_places)
            orders *= math.factorial(len(part))
            places += part_places
        else:
            if [sorted_keys[place] for place in part] != list(written):
                raise AtmcFormatError("damaged file: rows in no order")
            places += part
    capacity = orders.bit_length() - 1
    if capacity == 0 or payload >> capacity:
        raise AtmcFormatError("damaged file: rows in an order that tells nothing")
    return np.array(places, dtype=np.int64), capacity, payload


def _parts(keys: Sequence[Key], classes: Sequence[int]) -> Iterator[tuple[bool, list[int]]]:
    """Rows that are written together: runs of different ones, in any order; then their copies."""
    for _, members in groupby(range(len(keys)), key=classes.__getitem__):
        different: list[int] = []
        copies: list[int] = []
        for row in members:
            is_copy = bool(different) and keys[different[-1]] == keys[row]
            (copies if is_copy else different).append(row)
        for start in range(0, len(different), _RUN):
            yield True, different[start : start + _RUN]
        if copies:
            yield False, copies


def _permuted(part: list[int], number: int) -> list[int]:
    """The ``number``-th order: each digit says which of those that are left comes next."""
    left, order = list(part), []
    while left:
        number, digit = divmod(number, len(left))
        order.append(left.pop(digit))
    return order


def _permutation_number(part: list[int], order: list[int]) -> int:
    """The inverse of :func:`_permuted`."""
    left, digits = list(part), []
    for row in order:
        digit = left.index(row)
        del left[digit]
        digits.append(digit)
    number = 0
    for size, digit in enumerate(reversed(digits), 1):
        number = number * size + digit
    return number
