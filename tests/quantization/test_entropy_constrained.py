"""Codebooks for codes that will be entropy coded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atmc.quantization.codebooks import quantize, quantized_codebook
from atmc.quantization.entropy_constrained import bit_price, entropy_constrained, territories
from atmc.quantization.kmeans import Line, partition
from atmc.quantization.rates import code_bits


def tails(count: int, seed: int = 0) -> Tensor:
    """As the values that pruning leaves: none near zero, exponential beyond."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 1 - 0.5 * torch.rand(count, generator=generator).log()
    return sizes * torch.randint(0, 2, (count,), generator=generator).mul(2).sub(1)


def line_of(values: Tensor) -> Line:
    points, counts = np.unique(values.double().numpy(), return_counts=True)
    return Line(points, counts)


numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(st.dictionaries(numbers, st.floats(0, 50), min_size=1, max_size=12), st.data())
@settings(max_examples=300, deadline=None)
def test_territories_are_those_of_the_cheapest_levels(
    costs: dict[float, float], data: st.DataObject
) -> None:
    levels = np.array(sorted(costs))
    penalties = np.array([costs[level] for level in levels])
    left, borders = territories(levels, penalties)
    assert (np.diff(left) > 0).all() and borders.size == left.size - 1
    assert (np.diff(borders) > 0).all()
    for x in data.draw(st.lists(numbers, min_size=1, max_size=20)):
        chosen = left[int(np.searchsorted(borders, x))]
        cost = (x - levels) ** 2 + penalties
        assert cost[chosen] <= cost.min() + 1e-6 * (1 + cost.min())


@given(st.lists(numbers, min_size=2, max_size=60, unique=True), st.integers(1, 8), st.floats(0, 9))
@settings(max_examples=200, deadline=None)
def test_no_turn_costs_more_than_the_start(values: list[float], count: int, price: float) -> None:
    line = line_of(torch.tensor(values, dtype=torch.float64))
    if line.points.size <= count:
        return
    start = partition(line, count)

    def cost(bounds: np.ndarray) -> float:
        parts = np.split(line.scaled, bounds[1:-1])
        error = sum(float(((part - part.mean()) ** 2).sum()) for part in parts)
        return error + price * sum(-p.size * math.log2(p.size / line.points.size) for p in parts)

    coded = entropy_constrained(line, start, price)
    assert coded.bounds[0] == 0 and coded.bounds[-1] == line.points.size
    assert (np.diff(coded.bounds) > 0).all() and coded.bounds.size <= start.size
    assert cost(coded.bounds) <= cost(start) * (1 + 1e-9) + 1e-12
    counts = np.diff(coded.bounds)
    assert np.allclose(coded.lengths, -np.log2(counts / line.points.size))
    if price == 0:
        assert np.array_equal(coded.bounds, start)


@pytest.mark.parametrize("count", [1_000, 4_000, 100_000])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fewer_bits_than_plain_levels_of_the_same_error(count: int, bits: int) -> None:
    values = tails(count)

    def measure(b: int, rdo: bool) -> tuple[float, float]:
        book = quantized_codebook(values, 2**b, 12, rdo=rdo)
        assert len(book.integers) <= 2**b
        error = (values - quantize(values, book.levels, book.codes)).square().sum()
        return math.log2(float(error)), code_bits(book.codes)

    plain = [measure(b, rdo=False) for b in range(1, 7)]
    error, length = measure(bits, rdo=True)
    errors, lengths = zip(*plain[::-1], strict=True)
    assert length < (0.98 if count < 4_000 else 0.96) * float(np.interp(error, errors, lengths))


def test_the_price_follows_the_values_and_not_how_near_they_are_to_levels() -> None:
    values = tails(5_000)
    book = quantized_codebook(values, 8, 12)
    drawn = 0.01 * values + 0.99 * book.levels[book.codes]

    def price(values: Tensor, levels: int = 8) -> float:
        line = line_of(values)
        return math.ldexp(bit_price(line, levels), 2 * line.scale)

    assert price(drawn) == pytest.approx(price(values), rel=0.15)
    assert price(values, 16) == pytest.approx(price(values) / 4)
    assert price(7 * values) == pytest.approx(49 * price(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_that_hold_all_values_are_kept(dtype: torch.dtype) -> None:
    exact = torch.tensor([-3.0, -1.0, 0.0, 1.0, 1.0, 2.0] * 50 + [7.0], dtype=dtype)
    book = quantized_codebook(exact, 8, 8, rdo=True)
    assert torch.equal(quantize(exact, book.levels, book.codes), exact.float())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("level_bits", [2, 5, 12])
def test_codes_and_levels_fit(scale: float, level_bits: int) -> None:
    values = (tails(3_000) * scale).float().reshape(60, 50)
    book = quantized_codebook(values, 16, level_bits, rdo=True)
    assert (book.integers.diff() > 0).all() and (book.integers != 0).all()
    assert int(book.integers.abs().max()) < 2 ** (level_bits - 1)
    assert torch.equal(book.codes.unique(), torch.arange(len(book.integers)))
    # In order: a larger value never takes a lower level.
    order = values.flatten().argsort()
    assert (book.codes[order].diff() >= 0).all()
    warm = quantized_codebook(values, 16, level_bits, book.centroids, rdo=True)
    assert len(book.centroids) == 16 and len(warm.centroids) == 16
    assert len(quantized_codebook(torch.zeros(4), 8, 8, rdo=True).codes) == 0


def test_many_values_as_few_points() -> None:
    values = tails(70_000)
    book = quantized_codebook(values, 8, 12, rdo=True)
    exact = quantized_codebook(values.double(), 8, 12, rdo=True)
    error = [(values - b.levels[b.codes]).square().mean() for b in (book, exact)]
    assert error[0] == pytest.approx(float(error[1]), rel=0.01)
    assert code_bits(book.codes) == pytest.approx(code_bits(exact.codes), rel=0.01)
