"""Payloads of the order of rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmc.codec import AtmcFormatError
from atmc.codec.row_order import Key, RowOrder, canonical_order, read_order, row_keys


def key(*columns: int) -> Key:
    return -len(columns), np.array(columns, dtype=">i8").tobytes()


@st.composite
def orders(draw: st.DrawFn) -> RowOrder:
    """Classes of rows of three columns or fewer, so that many are equal."""
    keys: list[Key] = []
    classes: list[int] = []
    for number in range(draw(st.integers(1, 3))):
        rows = draw(st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=1, max_size=30))
        in_class = sorted(key(*sorted(row)) for row in rows)
        keys += in_class
        classes += [number] * len(in_class)
    return RowOrder(keys, classes)


@settings(max_examples=300, deadline=None)
@given(orders(), st.data())
def test_every_number_comes_back(order: RowOrder, draw: st.DataObject) -> None:
    payload = draw.draw(st.integers(0, 2**order.capacity - 1))
    written = order.write(payload)
    assert sorted(written.tolist()) == list(range(len(order.keys)))
    keys = [order.keys[row] for row in written]
    if order.capacity == 0:  # and then nobody says that it tells something
        with pytest.raises(AtmcFormatError, match="tells nothing"):
            read_order(keys, order.classes)
        return
    places, bits, decoded = read_order(keys, order.classes)
    assert (bits, decoded) == (order.capacity, payload)
    # Equal rows are each other's.
    assert [order.keys[place] for place in places] == keys
    assert sorted(places.tolist()) == list(range(len(keys)))


def test_all_orders_of_a_few_rows_are_used() -> None:
    order = RowOrder([key(0, 1), key(0, 2), key(1, 2), key(3)], [0, 0, 0, 0])
    assert order.capacity == 4  # of 24 orders
    written = {tuple(order.write(number)) for number in range(2**4)}
    assert len(written) == 16 <= math.factorial(4)
    refused = 0
    for way in itertools.permutations(order.keys):
        try:
            read_order(way, order.classes)
        except AtmcFormatError:
            refused += 1
    assert refused == 24 - 16


def test_copies_out_of_place_are_refused() -> None:
    a, b = key(0, 1), key(0, 2)
    assert read_order([b, a, a], [0, 0, 0])[1:] == (1, 1)
    for way in ([a, a, b], [b, b, a]):
        with pytest.raises(AtmcFormatError, match="order"):
            read_order(way, [0, 0, 0])


def test_a_few_rows_tell_nothing_worth_a_stream() -> None:
    keys = [key(column) for column in range(8)]
    assert RowOrder.of(keys, [0] * 8) is None  # log2(8!) is 15.3
    assert RowOrder.of([*keys, key(8)], [0] * 9) is not None
    assert RowOrder.of([*keys, key(8)], [0] * 5 + [1] * 4) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.integers(0, 300), max_size=4), max_size=12))
def test_canonical_order_is_by_number_and_then_by_columns(rows: list[set[int]]) -> None:
    columns = [sorted(row) for row in rows]
    row_of = np.array([i for i, row in enumerate(columns) for _ in row], dtype=np.int64)
    flat = np.array([column for row in columns for column in row], dtype=np.int64)
    assert row_keys(row_of, flat, len(rows)) == [key(*row) for row in columns]
    order = canonical_order(row_of, flat, len(rows))
    assert order.tolist() == sorted(range(len(rows)), key=lambda i: (-len(columns[i]), columns[i]))
