"""Positions alone: every way to write them, and what each is for."""

from __future__ import annotations

import math
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmc.codec import AtmcFormatError
from atmc.codec.densities import SCALES, STRENGTHS, Layout, scales_of_counts
from atmc.codec.positions import PlannedPositions, decode_positions
from atmc.codec.row_order import canonical_order
from atmc.codec.stream import Reader, Writer, bernoulli_bits


def ideal_bits(writer: Writer) -> float:
    return math.fsum(writer.costs.values())


def round_trip(positions: np.ndarray, layout: Layout) -> float:
    """The length in bits of positions that came back as they were."""
    planned = PlannedPositions(positions, layout)
    payload = random.Random(0).getrandbits(planned.capacity)
    writer = Writer()
    planned.write(writer, payload)
    reader = Reader(writer.finish())
    decoded = decode_positions(reader, layout)
    np.testing.assert_array_equal(decoded.positions, positions)
    assert (decoded.capacity, decoded.payload) == (planned.capacity, payload)
    reader.finish()
    return ideal_bits(writer) - planned.capacity


def entropy(count: int, size: int) -> float:
    p = count / size
    return 0.0 if p in (0, 1) else -size * float(p * np.log2(p) + (1 - p) * np.log2(1 - p))


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Layout]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, channels, block = (draw(st.integers(0, most)) for most in (40, 12, 9))
    columns = channels * block
    spread = draw(st.sampled_from([0.0, 1.0, 3.0]))
    shares = np.exp(spread * rng.normal(size=(rows, 1))) * np.exp(spread * rng.normal(size=columns))
    shares *= draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 5.0]))
    shares[rng.random(rows) < draw(st.sampled_from([0.0, 0.5]))] = 0
    live = np.repeat(rng.random(channels) < 0.5, block) if draw(st.booleans()) else None
    if live is not None and draw(st.booleans()):
        shares = shares * live
    positions = np.flatnonzero(rng.random((rows, columns)) < shares)
    return positions, Layout(rows, columns, max(block, 1), draw(st.booleans()), live)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_round_trip(case: tuple[np.ndarray, Layout]) -> None:
    round_trip(*case)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_never_much_above_the_entropy(case: tuple[np.ndarray, Layout]) -> None:
    positions, layout = case
    if positions.size:
        assert round_trip(positions, layout) <= 1.01 * entropy(positions.size, layout.elements) + 64


def test_alike_in_all_places_takes_the_entropy() -> None:
    rng = np.random.default_rng(0)
    positions = np.flatnonzero(rng.random(400 * 500) < 0.02)
    assert round_trip(positions, Layout(400, 500)) < 1.001 * entropy(positions.size, 200_000) + 40


@pytest.mark.parametrize("density", [0.01, 0.1])
def test_uneven_rows_and_columns_come_near_what_they_were_drawn_from(density: float) -> None:
    rng = np.random.default_rng(0)
    shares = np.exp(rng.normal(size=(300, 1))) * np.exp(rng.normal(size=400))
    shares = np.minimum(shares / shares.mean() * density, 0.9)
    mask = rng.random(shares.shape) < shares
    drawn = -float(np.log2(np.where(mask, shares, 1 - shares)).sum())
    bits = round_trip(np.flatnonzero(mask), Layout(300, 400))
    # The densities of 700 rows and columns have to be learned: some 4 bits each.
    assert bits < drawn + 4 * 700
    assert bits < 0.96 * entropy(int(mask.sum()), mask.size)


@pytest.mark.parametrize("spatial", [False, True])
def test_channels_and_places_in_the_kernel_are_learned(spatial: bool) -> None:
    rng = np.random.default_rng(0)
    by_place = np.array([0.1, 1, 0.1, 1, 4, 1, 0.1, 1, 0.1]) if spatial else np.ones(9)
    by_channel = np.exp((0 if spatial else 1.5) * rng.normal(size=(64, 1)))
    shares = np.ones((40, 1, 1)) * by_channel * by_place
    positions = np.flatnonzero(rng.random(shares.shape) < shares / shares.mean() * 0.03)
    known = round_trip(positions, Layout(40, 576, 9, spatial))
    assert known < 0.97 * round_trip(positions, Layout(40, 576))


@pytest.mark.parametrize("density", [0.0005, 0.02])
@pytest.mark.parametrize("head", [0.0, 0.9])
def test_first_rows_unlike_the_rest_cost_nothing(density: float, head: float) -> None:
    """Long tensors are judged by their first rows: these are empty, or very uneven."""
    rng = np.random.default_rng(0)
    mask = rng.random((1024, 2048)) < density
    mask[:128] = False
    mask[:128, :40] = rng.random((128, 40)) < head
    positions = np.flatnonzero(mask)
    bits = round_trip(positions, Layout(1024, 2048))
    assert bits <= 1.01 * entropy(positions.size, mask.size) + 64


def test_a_few_nonzeros_take_no_memory_for_the_zeros() -> None:
    tracemalloc.start()
    round_trip(np.array([7, 12345]), Layout(1 << 20, 1 << 30))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_rows_in_order_take_no_memory_for_the_zeros() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((2048, 4096)) < 0.01
    rows, columns = np.nonzero(mask)
    mask = mask[canonical_order(rows, columns, 2048)]
    positions = np.flatnonzero(mask)
    tracemalloc.start()
    planned = PlannedPositions(positions, Layout(2048, 4096))
    planned.write(Writer(), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert planned.capacity > 10_000
    assert peak < 50_000_000  # a number for each entry would be 67


@pytest.mark.parametrize("columns", [1, 7, 300, 70_000])
def test_scales_of_counts_are_the_nearest(columns: int) -> None:
    ones = np.unique(np.minimum(np.rint(1.3 ** np.arange(50)), columns)).astype(np.int64)
    scales = np.arange(1, SCALES + 1)
    odds = 2.0 ** (11 - scales)
    expected = columns * np.maximum(np.floor(odds / (1 + odds) * 2**24), 1) / 2**24
    slow = [scales[np.argmin(np.abs(np.log(expected / n)))] for n in ones]
    assert scales_of_counts(ones, columns).tolist() == slow


def test_dense_rows_and_columns_take_their_names_alone() -> None:
    mask = np.zeros((200, 300), bool)
    mask[np.ix_(np.arange(0, 200, 7), np.arange(0, 300, 11))] = True
    names = entropy(29, 200) + entropy(28, 300)
    assert round_trip(np.flatnonzero(mask), Layout(200, 300)) < names + 60


def test_columns_that_read_nothing_are_free() -> None:
    rng = np.random.default_rng(0)
    live = np.repeat(rng.random(40) < 0.3, 5)
    mask = (rng.random((50, 200)) < 0.1) & live
    bits = round_trip(np.flatnonzero(mask), Layout(50, 200, 5, live=live))
    assert bits < entropy(int(mask.sum()), 50 * int(live.sum())) + 40
    # A nonzero in a column that should be dead is stored all the same.
    round_trip(np.array([int(np.flatnonzero(~live)[0])]), Layout(50, 200, 5, live=live))


@pytest.mark.parametrize("strength", range(1, len(STRENGTHS)))
def test_a_liar_about_columns_is_refused(strength: int) -> None:
    """Densities of many columns would take memory that a few bytes must not claim."""
    writer = Writer()
    layout = Layout(3, 1 << 21)
    writer.bounded(5, layout.elements)
    for value, size in ((1, 2), (strength, 3), (0, 2), (0, 2)):
        writer.symbol(value, size)
    with pytest.raises(AtmcFormatError, match="columns"):
        decode_positions(Reader(writer.finish()), layout)


def test_bits_of_every_chance_come_back() -> None:
    rng = np.random.default_rng(0)
    chances = np.concatenate([[1, 2, (1 << 24) - 1, 1 << 23], rng.integers(1, 1 << 24, 5000)])
    for ones in (np.arange(0), np.arange(5004), np.flatnonzero(rng.random(5004) * 2**24 < chances)):
        writer = Writer()
        writer.bernoulli(ones, chances)
        assert ideal_bits(writer) == pytest.approx(bernoulli_bits(ones, chances))
        data = writer.finish()
        assert 8 * len(data) <= ideal_bits(writer) * 1.001 + 16
        reader = Reader(data)
        np.testing.assert_array_equal(np.flatnonzero(reader.bernoulli(chances)), ones)
        reader.finish()
