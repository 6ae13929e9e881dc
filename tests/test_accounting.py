import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import DataObject, data, floats, integers, lists
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from atmc import accounting, codec, models
from atmc.accounting import (
    dense_bits,
    dense_width,
    fixed_bits,
    smallest_bits,
    stored_dense_part,
)
from atmc.artifact import to_artifact
from atmc.errors import BudgetError
from atmc.factorization.importance import scores
from atmc.factorization.layers import (
    dense_part,
    factorize,
    factorized_weights,
    named_factors,
    plain_weights,
)
from atmc.projection import topk_masks
from atmc.quantization import rates
from atmc.quantization.codebooks import quantize, quantized_codebook
from atmc.quantization.rates import (
    RateDistortion,
    code_bits,
    factor_bits,
    level_bits,
    nonzeros_for_budget,
    position_bits,
)


def network(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(128, width),
        nn.Linear(width, 4),
    )


# ---- dense size


@pytest.mark.parametrize(
    ("name", "classes", "bits"),
    [
        ("lenet5", 10, 13_776_000),
        ("lenet5-relu", 10, 13_776_000),
        ("resnet34", 10, 680_482_816),
        ("resnet34", 100, 681_957_376),
        ("wrn-16-8", 10, 350_533_120),
    ],
)
def test_dense_sizes_of_the_papers(name: str, classes: int, bits: int) -> None:
    model = models.create(name, num_classes=classes)
    assert dense_bits(model) == bits
    assert dense_bits(factorize(model)) == bits


def test_dense_bits_of_any_module() -> None:
    model = network()
    expected = 32 * (8 * 9 + 128 * 32 + 32 * 4)
    assert dense_bits(model) == expected
    factorize(model, exclude="4")
    assert dense_bits(model) == expected
    with plain_weights(model):
        assert dense_bits(model) == expected
    tied = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    tied[1].weight = tied[0].weight
    assert dense_bits(tied) == 32 * 25
    assert dense_bits(factorize(tied)) == 32 * 25
    foreign = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(9)))
    assert dense_bits(foreign) == 32 * 9 * 16
    biased = nn.Linear(6, 3)
    nn.utils.parametrize.register_parametrization(biased, "bias", nn.Identity())
    assert dense_bits(biased) == 32 * 18
    assert dense_bits(factorize(biased)) == 32 * 18
    assert dense_bits(nn.ReLU()) == 0
    assert dense_bits(nn.ConvTranspose2d(4, 6, 3, groups=2)) == 32 * 4 * 3 * 9


@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 5}])
def test_dense_bits_of_attention(sizes: dict[str, int]) -> None:
    attention = nn.MultiheadAttention(4, 2, **sizes)
    inputs = 4 + sizes.get("kdim", 4) + sizes.get("vdim", 4)
    assert dense_bits(attention) == 32 * (4 * inputs + 4 * 4)
    assert dense_bits(factorize(attention)) == 32 * (4 * inputs + 4 * 4)


def test_level_bits() -> None:
    assert [level_bits(b, 10**6) for b in (1, 4, 8, 32)] == [6, 9, 13, 16]
    # Where few share a codebook its levels need not be exact.
    assert [level_bits(4, n) for n in (0, 1, 100, 1_000, 10_000, 100_000)] == [6, 6, 7, 8, 9, 9]


def test_rounding_levels_costs_less_than_having_so_few() -> None:
    generator = torch.Generator().manual_seed(0)
    for bits in (1, 2, 3, 4):
        for count in (200, 3_000):
            values = torch.randn(count, generator=generator)

            def error(level_bits: int, values: Tensor = values, bits: int = bits) -> float:
                book = quantized_codebook(values, 2**bits, level_bits)
                return float((values - book.levels[book.codes]).square().sum())

            assert error(level_bits(bits, count)) <= 1.15 * error(16)


# ---- the smallest file


def extremes(model: nn.Module, rng: np.random.Generator, kind: str) -> None:
    """The dense part as bad as it may get for the coder."""
    with torch.no_grad():
        for name, tensor in dense_part(model).items():
            if kind == "linear" and "running" in name:  # scales and shifts are stored as they are
                tensor.fill_(float(name.endswith("var")))
                continue
            size = tensor.numel()
            values = rng.uniform(-1, 1, size)
            if kind == "log":
                values = np.exp(rng.uniform(-9, 9, size))
            elif kind == "masked":  # where the two ways to write zeros cost about the same
                values *= rng.random(size) < rng.uniform(0.8, 1.0)
            elif kind == "ends":
                values = np.where(rng.random(size) < 0.5, 1.0, -1.0)
            elif kind == "zero":
                values[:] = 0
            if name.endswith("running_var"):
                values = np.abs(values)
            tensor.copy_(torch.from_numpy(values.reshape(tuple(tensor.shape))))


@pytest.mark.parametrize("kind", ["linear", "log", "masked", "ends", "zero"])
@pytest.mark.parametrize("width", [2, 4, 5, 6, 7, 8])
def test_fixed_bits_bounds_the_file_and_is_near_it(width: int, kind: str) -> None:
    rng = np.random.default_rng(width)
    meta = {"model": "digits-cnn"}
    for size in (1, 33, 700):
        model = nn.Sequential(nn.Linear(2, size), nn.BatchNorm1d(size), nn.Linear(size, 1))
        model.register_buffer("steps", torch.tensor([3, 500, -2]))
        model.register_parameter("one", nn.Parameter(torch.tensor(0.5)))
        bounds = {m is None: fixed_bits(model, width=width, meta=m) for m in (None, meta)}
        factorize(model, identity=False)
        with torch.no_grad():
            for factor in named_factors(model).values():
                factor.zero_()
        largest = 0
        for _ in range(4):
            extremes(model, rng, kind)
            for m in (None, meta):
                data = codec.encode(to_artifact(model, width=width, meta=m))
                assert 8 * len(data) <= bounds[m is None]
                largest = max(largest, 8 * len(data) if m is None else 0)
        assert fixed_bits(model, width=width) == bounds[True]
        if kind == "linear":
            # Two bytes, the coder's rounding, and what linear values take less than logarithmic.
            values = sum(t.numel() for t in stored_dense_part(model).values())
            slack = 16 + 2**-11 * bounds[True] + values * (width - math.log2(2**width - 1))
            assert largest >= bounds[True] - slack


def test_smallest_bits_is_a_promise_whatever_training_did() -> None:
    rng = np.random.default_rng(0)
    model = network()
    least = smallest_bits(model)
    assert least == fixed_bits(model, width=4)
    factorize(model)
    for factor in named_factors(model).values():
        with torch.no_grad():
            factor.zero_()
    for kind in ("linear", "masked", "ends"):
        extremes(model, rng, kind)
        assert codec.measure(to_artifact(model, width=4)).file_bits <= least
        assert smallest_bits(model) == least


def test_largest_bits_wants_empty_factors() -> None:
    artifact = to_artifact(factorize(network()))
    with pytest.raises(ValueError, match="all zero"):
        codec.largest_bits(artifact, [8])


def test_dense_width() -> None:
    model = network()
    bounds = {width: fixed_bits(model, width=width) for width in (4, 5, 6, 8)}
    assert list(bounds.values()) == sorted(bounds.values())
    least = smallest_bits(model)
    with pytest.raises(BudgetError, match=f"smallest possible file of this model is {least} bits"):
        dense_width(model, least - 1)
    assert dense_width(model, least) == 4
    for narrower, width in ((4, 5), (5, 6), (6, 8)):
        assert dense_width(model, 3 * bounds[width]) == width
        assert dense_width(model, 3 * bounds[width] - 1) == narrower
    before = copy.deepcopy(model.state_dict())
    dense_width(model, 10**6, meta={"model": "x"})
    assert list(model.state_dict()) == list(before)


def test_a_dense_part_takes_what_factors_cannot() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(400), nn.Linear(4, 4))
    room = accounting.fixed_bits(model, width=8) + 2 * 16 * 8 + 400
    assert room < 3 * accounting.fixed_bits(model, width=8)
    assert dense_width(model, room) == 8
    assert dense_width(model, room, bits=32) < 8


# ---- budget to k


def slow_k(ranks: list[Tensor], bits: list[int], available: float) -> set[int]:
    """Every k that fits where k + 1 does not, by sorting and trying them all."""
    flat = [
        (-float(score), index)
        for index, tensor in enumerate(ranks)
        for score in tensor.flatten()
        if score > 0
    ]
    retained = [0] * len(ranks)
    fits = []
    for index in [None, *(index for _, index in sorted(flat, key=lambda item: item[0]))]:
        if index is not None:
            retained[index] += 1
        cost = sum(
            factor_bits(t.numel(), n, b) for t, n, b in zip(ranks, retained, bits, strict=True)
        )
        fits.append(cost <= available)
    fits.append(False)
    result = {k for k in range(len(fits) - 1) if fits[k] and not fits[k + 1]}
    return result or {0}


@pytest.mark.parametrize("seed", range(6))
def test_nonzeros_for_budget_against_trying_them_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(20, 30), (7,), (0, 4), (300,), (4, 4, 4)]
    ranks = [torch.rand(s, generator=generator) ** (1 + i) for i, s in enumerate(shapes)]
    if seed % 2:  # many ties
        ranks = [(r * 6).round() / 6 for r in ranks]
    bits = [1 + int(b) for b in torch.randint(8, (5,), generator=generator)]
    for available in (0.0, 9.0, 60.0, 200.0, 500.0, 1500.0, 3000.0, 1e6):
        retained = nonzeros_for_budget(ranks, bits, available)
        k = sum(retained)
        assert retained == [int(mask.sum()) for mask in topk_masks(ranks, k)]
        cost = sum(
            factor_bits(r.numel(), n, b) for r, n, b in zip(ranks, retained, bits, strict=True)
        )
        assert cost <= available or k == 0
        assert k in slow_k(ranks, bits, available)


def test_position_bits() -> None:
    assert position_bits(100, 0) == position_bits(100, 100) == position_bits(0, 0) == 0
    assert position_bits(100, 50) == 100
    log_binomial = (math.lgamma(10001) - math.lgamma(101) - math.lgamma(9901)) / math.log(2)
    assert position_bits(10_000, 100) == pytest.approx(log_binomial, rel=0.01)


def pruned(sizes: tuple[int, ...], k: int, bits: int, seed: int) -> nn.Module:
    """A random model of k nonzeros, the largest, with codebooks of 2^bits levels."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
    factorize(model)
    with torch.no_grad():
        for index, factor in enumerate(named_factors(model).values()):
            factor.copy_(torch.randn_like(factor) * (1 + index % 3))
        for factor, mask in zip(
            named_factors(model).values(),
            topk_masks(list(scores(factorized_weights(model), "magnitude").values()), k),
            strict=True,
        ):
            factor.mul_(mask)
            book = quantized_codebook(factor, 2**bits, level_bits(bits, k))
            factor.copy_(quantize(factor, book.levels, book.codes))
    return model


@pytest.mark.parametrize("bits", [1, 3, 4, 6])
@pytest.mark.parametrize("budget", [15_000, 40_000])
def test_what_is_planned_is_what_the_codec_takes(bits: int, budget: int) -> None:
    sizes = (120, 150, 100)
    model = pruned(sizes, 10**9, 8, seed=bits)
    ranks = list(scores(factorized_weights(model), "magnitude").values())
    names = list(named_factors(model))
    width = dense_width(model, budget)
    left = budget - fixed_bits(model, width=width)
    k = sum(nonzeros_for_budget(ranks, [bits] * len(names), left))
    small = pruned(sizes, k, bits, seed=bits)
    real = codec.measure(to_artifact(small, width=width))
    assert real.nonzeros == k > 0
    assert real.paper_bits <= bits * real.nonzeros
    # The codes' entropy is below b; with what is measured of it the estimate is closer.
    measured = [
        code_bits(torch.unique(f.detach()[f.detach() != 0], return_inverse=True)[1])
        for f in named_factors(small).values()
    ]
    fixed = fixed_bits(model, width=width)
    bits_each = [bits] * len(names)
    assert sum(nonzeros_for_budget(ranks, bits_each, budget - fixed, measured)) >= k
    closer = fixed + sum(
        factor_bits(f.numel(), int(torch.count_nonzero(f)), bits, v)
        for f, v in zip(named_factors(small).values(), measured, strict=True)
    )
    assert closer == pytest.approx(real.file_bits, rel=0.03)
    assert 0.9 * budget <= real.file_bits <= 1.01 * budget


# ---- bits per tensor


def distortion(
    tensors: dict[str, Tensor], weights: dict[str, float], bits: dict[str, int], rdo: bool
) -> float:
    error = energy = 0.0
    for name, tensor in tensors.items():
        values = tensor[tensor != 0].double()
        energy += weights[name] * float(values.square().sum())
        if len(values):
            book = quantized_codebook(
                values, 2 ** bits[name], level_bits(bits[name], len(values)), rdo=rdo
            )
            error += weights[name] * float((values - book.levels[book.codes]).square().sum())
    return error / energy


@pytest.mark.parametrize("rdo", [False, True])
@pytest.mark.parametrize("bound", [0.2, 0.05, 0.01, 0.001])
def test_choose_bits_meets_its_distortion(bound: float, rdo: bool) -> None:
    torch.manual_seed(0)
    tensors = {
        "normal": torch.randn(2000),
        "laplace": torch.distributions.Laplace(0.0, 1.0).sample((3000,)),
        "signs": torch.randn(500).sign() * 0.5,
        "sparse": torch.randn(4000) * (torch.rand(4000) < 0.05),
        "empty": torch.zeros(30),
    }
    weights = {"normal": 1.0, "laplace": 0.1, "signs": 1.0, "sparse": 10.0, "empty": 1.0}
    bits = RateDistortion.of(tensors, weights, rdo=rdo).choose(bound)
    assert bits.keys() == tensors.keys()
    assert all(1 <= b <= 8 for b in bits.values())
    assert distortion(tensors, weights, bits, rdo) <= bound
    assert bits["signs"] == bits["empty"] == 1
    assert bits["laplace"] <= bits["normal"] <= bits["sparse"]
    # Not one bit too many: the last one given was needed.
    fewer = [
        distortion(tensors, weights, {**bits, name: b - 1}, rdo)
        for name, b in bits.items()
        if b > 1
    ]
    assert not fewer or max(fewer) > bound


def curve(errors: list[float], rates: list[float]) -> Callable[[int], tuple[float, float]]:
    """Error and rate by bits, from 1 on."""
    return dict(enumerate(zip(errors, rates, strict=True), 1)).__getitem__


def test_a_bit_that_makes_the_error_larger_is_passed_over() -> None:
    """Levels of more bits are told less precisely: of a few values the error may rise with b."""
    falling = [4.0**-bits for bits in range(1, 9)]
    stairs = [0.0203, 0.0214, 0.0065, 0.000677, 7.1e-05, 2.1e-05, 3.9e-06, 1.5e-06]
    few = [160.0, 179.0, 207.0, 245.0, 262.0, 278.0, 293.0, 309.0]
    many = [1e5 * bits for bits in range(1, 9)]
    curves = {"few": curve(stairs, few), "many": curve(falling, many)}
    table = RateDistortion(("few", "many"), curves, 3.0)
    assert table.choose(0.003) == {"few": 8, "many": 4}  # and not all that many can have


@settings(deadline=None, max_examples=200)
@given(data())
def test_bits_are_chosen_for_the_most_error_a_bit_of_file(drawn: DataObject) -> None:
    """Whatever the curves: the bound is met where any choice meets it."""
    names, thousandths = ("a", "b"), integers(0, 1000).map(lambda n: n / 1000)
    errors = {n: drawn.draw(lists(thousandths, min_size=8, max_size=8)) for n in names}
    rates = {n: sorted(drawn.draw(lists(floats(1, 99), min_size=8, max_size=8))) for n in names}
    bound = drawn.draw(floats(0, 1))
    curves = {name: curve(errors[name], rates[name]) for name in names}
    chosen = RateDistortion(names, curves, 1.0).choose(bound)
    left = sum(errors[name][chosen[name] - 1] for name in names)
    assert left <= bound or left == sum(map(min, errors.values()))
    # Fewer bits of either alone, at an error no larger, would have been taken.
    for name in names:
        assert all(e > errors[name][chosen[name] - 1] for e in errors[name][: chosen[name] - 1])


def test_choose_bits_does_what_it_can() -> None:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(5000)}
    assert RateDistortion.of(tensors, {"a": 1.0}).choose(0.0) == {"a": 8}
    assert RateDistortion.of({"a": torch.zeros(5)}, {"a": 1.0}).choose(0.01) == {"a": 1}


def test_code_bits() -> None:
    assert code_bits(torch.zeros(0, dtype=torch.int64)) == 0
    assert code_bits(torch.tensor([1, 1, 1])) == 0
    assert code_bits(torch.tensor([0, 1, 3, 2])) == 2
    assert rates.FLOAT_BITS == 32


def test_statistics_of_norms_take_next_to_nothing() -> None:
    def net(norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 500), norm, nn.Linear(500, 2))

    with_norm, without = (fixed_bits(net(n), width=8) for n in (nn.BatchNorm1d(500), nn.Identity()))
    # Names take most of the rest.
    assert 2 * 500 * 8 < with_norm - without < 2 * 500 * 8 + 600
    model = factorize(net(nn.BatchNorm1d(500)))
    assert sum(t.numel() for t in stored_dense_part(model).values()) == 500 + 2 * 500 + 2
