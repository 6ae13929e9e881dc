import math

import kmeans1d
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atmc.quantization import codebooks as quantization
from atmc.quantization.codebooks import (
    QuantizedCodebook,
    codebook,
    nearest,
    quantize,
    quantized_codebook,
    round_levels,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def gaussian(rng, n):
    return rng.normal(size=n)


def laplace(rng, n):
    return rng.laplace(size=n)


def bimodal(rng, n):
    return np.concatenate([rng.normal(-1, 0.1, n // 3), rng.normal(2, 0.4, n - n // 3)])


def pruned(rng, n):
    """Heavy tails with a gap around zero, as magnitude pruning leaves them."""
    dense = 0.02 * rng.standard_t(3, size=6 * n)
    return dense[np.argsort(-np.abs(dense))[:n]]


def layered(rng, n):
    """Weights of several scales in one tensor, hard-thresholded."""
    dense = rng.normal(size=(8, n)) * np.geomspace(0.01, 1, 8)[:, None]
    return dense[np.abs(dense) > 0.05][:n]


def cauchy(rng, n):
    return rng.standard_cauchy(size=n)


DISTRIBUTIONS = [gaussian, laplace, bimodal, pruned, layered, cauchy]


def squared_error(values, levels):
    distance = np.full(values.shape, np.inf)
    for level in np.asarray(levels, dtype=np.float64):
        np.minimum(distance, np.abs(values - level), out=distance)
    return float((distance**2).sum())


def check(values, levels, codes, count):
    """The promises that every codebook keeps."""
    nonzeros = values[values != 0].double()
    assert levels.dtype == values.dtype
    assert codes.dtype == torch.int64
    assert codes.shape == nonzeros.shape
    assert levels.numel() <= count
    assert (levels.diff() > 0).all()
    assert (levels != 0).all()
    if nonzeros.numel():
        distance = (nonzeros[:, None] - levels.double()).abs()
        closest = distance.min(dim=1)
        chosen = distance.gather(1, codes[:, None])[:, 0]
        assert (chosen <= closest.values * (1 + 1e-12)).all()


@pytest.mark.parametrize("size", [1000, 3000, 12_000])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_error_within_one_percent_of_the_optimum(distribution, size):
    values = distribution(np.random.default_rng(size), size).astype(np.float32)
    exact = np.sort(values.astype(np.float64))
    previous = math.inf
    for bits in range(1, 9) if size < 12_000 else (2, 5, 8):
        levels, codes = codebook(torch.from_numpy(values), 2**bits)
        ours = float((torch.from_numpy(values).double() - levels.double()[codes]).square().sum())
        _, best = kmeans1d.cluster(exact, 2**bits)
        assert ours <= 1.01 * squared_error(exact, best), bits
        assert ours <= previous
        assert levels.numel() == 2**bits
        previous = ours


@pytest.mark.parametrize("levels", [3, 40, 200, 300])
def test_error_on_a_lattice_with_an_atom(levels):
    rng = np.random.default_rng(0)
    values = np.concatenate([np.round(rng.normal(size=3000) * 300) / 7, np.full(4000, 0.3)])
    values = values[values != 0]
    found, _ = codebook(torch.from_numpy(values), levels)
    _, best = kmeans1d.cluster(np.sort(values), levels)
    assert squared_error(values, found) <= 1.01 * squared_error(values, best)


def test_many_levels():
    values = torch.from_numpy(np.random.default_rng(0).laplace(size=3000))
    for count in (600, 1500, 2990):
        levels, codes = codebook(values, count)
        check(values, levels, codes, count)
        _, best = kmeans1d.cluster(np.sort(values.numpy()), count)
        assert levels.numel() > 0.99 * count
        ours = float((values - levels[codes]).square().sum())
        assert ours <= 1.1 * squared_error(values.numpy(), best)


def quantile_lloyd(values, count):
    levels = np.unique(np.quantile(values, (np.arange(count) + 0.5) / count))
    for _ in range(30):
        codes = np.abs(values[:, None] - levels).argmin(axis=1)
        levels = np.array([values[codes == c].mean() for c in np.unique(codes)])
    return levels


pools = st.sampled_from(
    [
        st.integers(-5, 5).map(float),
        st.floats(-1, 1, width=16),
        st.sampled_from([1e-3, 1.0, -1.0, 1.001, 2.0, 1e3, -4e4, 6e-8, 0.0]),
    ]
)


@given(
    pools.flatmap(lambda pool: st.lists(pool, max_size=60)),
    st.integers(1, 20),
    st.sampled_from(DTYPES),
)
@settings(max_examples=400, deadline=None)
def test_promises(values, count, dtype):
    values = torch.tensor(values, dtype=torch.float64).to(dtype)
    levels, codes = codebook(values, count)
    check(values, levels, codes, count)
    distinct = values[values != 0].unique()
    if distinct.numel() <= count:
        assert torch.equal(levels, distinct)


@given(pools.flatmap(lambda p: st.lists(p, min_size=1, max_size=60)), st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_never_worse_than_lloyd_from_quantiles(values, count):
    # One sign, so that no level can fall on zero, which the rival may use and a codebook may not.
    values = np.abs(np.array(values, dtype=np.float64)) + 1e-3
    levels, codes = codebook(torch.from_numpy(values), count)
    ours = float(((values - levels[codes].numpy()) ** 2).sum())
    slack = 1e-12 * float((values**2).sum())
    assert ours <= squared_error(values, quantile_lloyd(values, count)) + slack
    if count < np.unique(values).size:
        _, best = kmeans1d.cluster(np.sort(values), count)
        assert ours == pytest.approx(squared_error(values, best), rel=1e-6, abs=slack)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_nonzeros(dtype):
    for values in (torch.zeros(0, dtype=dtype), torch.zeros(3, 2, dtype=dtype)):
        levels, codes = codebook(values, 4)
        assert levels.dtype == dtype
        assert codes.dtype == torch.int64
        assert levels.numel() == codes.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_distinct_values_are_returned_exactly(dtype):
    values = torch.tensor([[0.3, -1.7], [0.0, 0.3], [6e-8, -0.0]], dtype=dtype)
    levels, codes = codebook(values, 3)
    assert torch.equal(levels, values[values != 0].unique())
    assert torch.equal(quantize(values, levels, codes), values)
    levels, codes = codebook(torch.full((5,), 0.1, dtype=dtype), 2)
    assert torch.equal(levels, torch.tensor([0.1], dtype=dtype))
    assert codes.tolist() == [0] * 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_crowded_values_stay_distinct(dtype):
    values = 1 + torch.arange(2000, dtype=torch.float64) / 4000
    values = torch.cat([values, -values]).to(dtype)
    for count in (2, 17, 100, 256):
        levels, codes = codebook(values, count)
        check(values, levels, codes, count)


def test_scalar_and_gradient():
    levels, codes = codebook(torch.tensor(2.0, requires_grad=True), 1)
    assert (levels.tolist(), codes.tolist()) == ([2.0], [0])
    assert not levels.requires_grad


def test_a_level_at_zero_moves_to_the_nearest_member():
    levels, codes = codebook(torch.tensor([-2.0, -1.0, 1.0, 2.0]), 1)
    assert (levels.tolist(), codes.tolist()) == ([-1.0], [0] * 4)
    levels, codes = codebook(torch.tensor([9.0, -2.0, 1.0, 0.0, 1.0, -9.0]), 3)
    assert levels.tolist() == [-9.0, 1.0, 9.0]
    assert codes.tolist() == [2, 1, 1, 1, 0]


@pytest.mark.parametrize("scale", [1e-300, 1e300, 5e-324])
def test_extreme_scales(scale):
    values = torch.tensor([1.0, 2.0, 5.0, 6.0, 7.0, -7.0], dtype=torch.float64) * scale
    levels, codes = codebook(values, 3)
    expected = torch.tensor([-7.0, 1.5, 6.0], dtype=torch.float64) * scale
    assert levels.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert codes.tolist() == [1, 1, 2, 2, 2, 0]


def test_scales_that_no_common_factor_fits():
    values = torch.tensor([1e300, 1.1e300, 1e-300, 2e-300, -1e-310], dtype=torch.float64)
    for count in range(1, 6):
        check(values, *codebook(values, count), count)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refusals(bad):
    with pytest.raises(ValueError, match="finite"):
        codebook(torch.tensor([1.0, bad]), 2)
    with pytest.raises(ValueError, match="finite"):
        round_levels(torch.tensor([bad]), 4)
    with pytest.raises(ValueError, match="at least 1"):
        codebook(torch.ones(2), 0)
    with pytest.raises(ValueError, match="float"):
        codebook(torch.ones(2, dtype=torch.int32), 2)
    with pytest.raises(ValueError, match="no levels"):
        nearest(torch.ones(2), torch.zeros(0))
    for bits in (1, 17):
        with pytest.raises(ValueError, match="level_bits"):
            round_levels(torch.ones(1), bits)


def test_deterministic_and_independent_of_order():
    values = torch.from_numpy(laplace(np.random.default_rng(5), 5000)).float()
    levels, codes = codebook(values, 32)
    again, same = codebook(values.clone(), 32)
    assert torch.equal(levels, again)
    assert torch.equal(codes, same)
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    shuffled, moved = codebook(values[order].reshape(50, 100), 32)
    assert torch.equal(shuffled, levels)
    assert torch.equal(moved, codes[order])


def test_warm_start():
    rng = np.random.default_rng(6)
    values = torch.from_numpy(gaussian(rng, 8000)).float()
    levels, _ = codebook(values, 16)
    nudged = values + 0.01 * torch.from_numpy(gaussian(rng, 8000)).float()
    cold, _ = codebook(nudged, 16)
    warm, codes = codebook(nudged, 16, init=levels)
    check(nudged, warm, codes, 16)
    exact = nudged.double().numpy()
    assert squared_error(exact, warm) <= 1.01 * squared_error(exact, cold)
    # A start that leaves levels without members would waste them, so it is not used.
    for poor in (levels[:5], torch.full((16,), math.nan), torch.arange(100.0, 116.0)):
        assert torch.equal(codebook(nudged, 16, init=poor)[0], cold)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [2, 16, 256])
def test_buckets_add_no_error_that_counts(distribution, count, monkeypatch):
    size = quantization._MERGED + 30_000
    values = torch.from_numpy(distribution(np.random.default_rng(9), size)).float()
    levels, codes = codebook(values, count)
    assert torch.equal(codes, nearest(values[values != 0], levels))
    monkeypatch.setattr(quantization, "_MERGED", math.inf)
    exact, _ = codebook(values, count)
    wide = values.double().numpy()
    assert squared_error(wide, levels) <= 1.001 * squared_error(wide, exact)


@given(
    st.lists(
        st.one_of(
            st.floats(-2, 2, width=32),
            st.floats(allow_nan=False, allow_infinity=False, width=32),
            st.sampled_from([1.0, 1.0 + 2**-12, -1.0, 1e-45, -1e-45, 3.4e38]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 3),
)
@settings(max_examples=300, deadline=None)
def test_promises_hold_for_buckets(values, count):
    tensor = torch.tensor(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "_MERGED", 0)
        patch.setattr(quantization, "_SPREAD", math.inf)
        levels, codes = codebook(tensor, count)
    check(tensor, levels, codes, count)
    assert torch.equal(codes, nearest(tensor[tensor != 0], levels))


def log_uniform(rng, n):
    return 10 ** rng.uniform(-12, -4, n)


@pytest.mark.parametrize("count", [16, 64, 256])
@pytest.mark.parametrize(
    "bulk_and_rest",
    [
        lambda rng: (rng.uniform(1, 1.01, 90_000), log_uniform(rng, 6000)),
        lambda rng: (rng.normal(1, 0.01, 90_000), rng.normal(0, 1e-3, 10_000)),
        lambda rng: (rng.normal(1, 0.02, 90_000), rng.normal(0, 1e-2, 10_000)),
    ],
)
def test_buckets_that_are_too_wide_where_the_values_lie_give_way(bulk_and_rest, count, monkeypatch):
    values = torch.from_numpy(np.concatenate(bulk_and_rest(np.random.default_rng(1)))).float()
    levels, _ = codebook(values, count)
    monkeypatch.setattr(quantization, "_MERGED", math.inf)
    exact, _ = codebook(values, count)
    wide = values.double().numpy()
    assert squared_error(wide, levels) <= 1.005 * squared_error(wide, exact)


def test_buckets_that_are_too_few_give_way_to_the_values():
    crowded = 1 + torch.arange(100_000) % 7000 * 2.0**-23
    levels, codes = codebook(crowded, 256)
    check(crowded[:2000], levels, codes[:2000], 256)
    assert levels.numel() == 256


def test_nearest_breaks_ties_downwards():
    levels = torch.tensor([-1.0, 1.0, 2.0])
    values = torch.tensor([[-9.0, 0.0, 1e-6], [1.5, 1.6, 9.0]])
    assert nearest(values, levels).tolist() == [[0, 0, 1], [1, 2, 2]]
    assert nearest(torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_quantize_places_levels_at_the_nonzeros():
    values = torch.tensor([[0.0, 5.0], [-3.0, 0.0]], dtype=torch.float64)
    levels = torch.tensor([-1.0, 2.0], requires_grad=True)
    ours = quantize(values, levels, torch.tensor([1, 0]))
    assert ours.dtype == torch.float32
    assert ours.tolist() == [[0.0, 2.0], [-1.0, 0.0]]
    (3 * ours).sum().backward()
    assert levels.grad is not None
    assert levels.grad.tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match="3 codes for 2"):
        quantize(values, levels, torch.tensor([1, 0, 0]))


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32).filter(bool), min_size=1, max_size=12),
    st.integers(2, 16),
)
@settings(max_examples=300, deadline=None)
def test_rounding(levels, bits):
    integers, exponent = round_levels(torch.tensor(levels), bits)
    limit = 2 ** (bits - 1) - 1
    assert integers.dtype == torch.int32
    largest = max(abs(level) for level in levels)
    fitting = [e for e in range(-126, 101) if round(largest * 2.0**-e) <= limit]
    assert exponent == fitting[0]
    for level, integer in zip(levels, integers.tolist(), strict=True):
        assert integer == (round(level * 2.0**-exponent) or math.copysign(1, level))


def test_rounding_at_the_ends():
    integers, exponent = round_levels(torch.tensor([3e38, -3e38, 1.0]), 16)
    assert (integers.tolist(), exponent) == ([32767, -32767, 1], 100)
    integers, exponent = round_levels(torch.tensor([1e-44, -1e-44]), 4)
    assert (integers.tolist(), exponent) == ([1, -1], -126)
    integers, exponent = round_levels(torch.zeros(0), 4)
    assert (integers.dtype, integers.numel(), exponent) == (torch.int32, 0, 0)


@pytest.mark.parametrize("level_bits", [2, 4, 8, 12, 16])
@pytest.mark.parametrize("count", [1, 2, 16, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_quantized_codebook(level_bits, count, dtype):
    values = torch.from_numpy(pruned(np.random.default_rng(7), 3000)).to(dtype)
    values[::3] = 0
    book = quantized_codebook(values.reshape(30, 100), count, level_bits)
    integers = book.integers.long()
    assert book.integers.dtype == torch.int32
    assert 1 <= integers.numel() <= count
    assert (integers.diff() > 0).all()
    assert (integers != 0).all()
    assert integers.abs().max() < 2 ** (level_bits - 1)
    assert book.levels.dtype == torch.float32
    assert torch.equal(book.levels.double(), integers.double() * 2.0**book.exponent)
    assert torch.equal(book.codes.unique(), torch.arange(integers.numel()))
    check(values.double(), book.levels.double(), book.codes, count)
    if level_bits == 16:
        levels, codes = codebook(values.double(), count)
        nonzeros = values[values != 0].double()
        exact = (nonzeros - levels[codes]).square().sum()
        rounded = (nonzeros - book.levels.double()[book.codes]).square().sum()
        assert rounded <= 1.01 * exact


@pytest.mark.parametrize("rdo", [False, True])
@pytest.mark.parametrize("values", [torch.zeros(4), torch.ones(4)])
def test_quantized_codebook_of_no_levels_is_refused(values, rdo):
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        quantized_codebook(values, 0, 8, rdo=rdo)


def test_quantized_codebook_without_nonzeros():
    book = quantized_codebook(torch.zeros(4), 8, 8)
    assert isinstance(book, QuantizedCodebook)
    assert book.integers.numel() == book.codes.numel() == book.levels.numel() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree():
    values = torch.from_numpy(laplace(np.random.default_rng(8), 5000)).float()
    levels, codes = codebook(values, 64)
    theirs, there = codebook(values.cuda(), 64)
    assert torch.equal(theirs.cpu(), levels)
    assert torch.equal(there.cpu(), codes)
