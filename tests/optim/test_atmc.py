import copy
import io
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from atmc import projection
from atmc.factorization.importance import Importance
from atmc.factorization.layers import factorize, named_factors, train_factors
from atmc.optim.atmc import ATMC, cubic
from atmc.quantization.rates import level_bits

Make = Callable[[Any], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 0.01)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return factorize(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)))


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 8, generator=generator)
    return x, x[:, :4].argmax(1)


def train(model: nn.Module, optimizer: ATMC, start: int, stop: int) -> None:
    for step in range(start, stop):
        x, y = data(step)
        loss = F.cross_entropy(model(x), y) + optimizer.penalty()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def assert_decodable(values: Tensor, bits: int) -> None:
    """At most 2^bits nonzero levels, each a short integer times one power of two."""
    levels = torch.unique(values[values != 0]).double()
    assert len(levels) <= 2**bits
    if len(levels):
        precision = level_bits(bits, int(torch.count_nonzero(values)))
        exponent = math.frexp(float(levels.abs().max()))[1] - precision
        # The unit may be twice that, where the largest level rounds to a power of two.
        integers = levels / 2.0**exponent
        assert torch.equal(integers, integers.round())
        assert float(integers.abs().max()) <= 2**precision


# ---- a problem whose answer is known


TARGET = torch.tensor(
    [
        [3.2, 0.1, -0.3, 2.8, -2.2],
        [0.4, 3.1, 0.2, -1.8, 0.3],
        [-2.1, 0.5, 2.9, -1.9, 0.0],
    ]
)
# The eight largest, and the means of the positive and the negative ones.
ANSWER = torch.where(TARGET > 1, 3.0, torch.where(TARGET < -1, -2.0, 0.0))


@pytest.mark.parametrize(
    ("make", "penalty"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), "loss"),
        (lambda p: torch.optim.SGD(p, 0.1), "decoupled"),
        (lambda p: torch.optim.SGD(p, 0.05, momentum=0.5), "loss"),
    ],
)
@pytest.mark.parametrize("rho", [0.3, 1.0])
def test_fixed_point_of_least_squares(make: Make, penalty: str, rho: float) -> None:
    model, optimizer = least_squares(make, penalty, rho)
    V, duplicate = optimizer.factors["weight.V"].detach(), optimizer.duplicates["weight.V"]
    dual = optimizer.duals["weight.V"]
    assert int(torch.count_nonzero(ANSWER)) == 8
    assert torch.equal(duplicate, ANSWER)
    assert torch.allclose(V, ANSWER, atol=5e-3)
    # What holds V at V' is the dual: ∇loss + ρ u = 0 on the support.
    support = ANSWER != 0
    assert torch.allclose(rho * dual[support], (TARGET - V)[support], atol=2e-2)
    assert int(torch.count_nonzero(dual[~support])) == 0
    optimizer.finalize()
    assert torch.equal(model.weight, ANSWER)


def test_duplicate_and_dual_in_half_the_memory_reach_the_same_point() -> None:
    model, optimizer = least_squares(
        lambda p: torch.optim.SGD(p, 0.1), "decoupled", 1.0, torch.bfloat16
    )
    held = (*optimizer.duplicates.values(), *optimizer.duals.values())
    assert {tensor.dtype for tensor in held} == {torch.bfloat16}
    V = optimizer.factors["weight.V"].detach()
    assert torch.allclose(V, ANSWER, atol=2e-2)
    optimizer.finalize()
    assert torch.allclose(model.weight, ANSWER, atol=1e-2)
    assert len(torch.unique(model.weight.detach())) == 3


def test_state_wider_than_the_factors() -> None:
    model = network().bfloat16()
    optimizer = ATMC(
        model, adam(model.parameters()), k=50, duplicate_every=1, state_dtype=torch.float32
    )
    for step in range(3):
        x, y = data(step)
        loss = F.cross_entropy(model(x.bfloat16()).float(), y) + optimizer.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert {factor.dtype for factor in optimizer.factors.values()} == {torch.bfloat16}
    assert {dual.dtype for dual in optimizer.duals.values()} == {torch.float32}
    with pytest.raises(ValueError, match="floating-point"):
        ATMC(model, adam(model.parameters()), k=50, state_dtype=torch.int8)


def test_least_squares_under_adam() -> None:
    """Adam weighs entries by their gradients' size, so the levels are means of a kind only."""
    model, optimizer = least_squares(lambda p: torch.optim.Adam(p, 0.03), None, 1.0)
    optimizer.finalize()
    assert len(torch.unique(model.weight.detach())) == 3
    assert torch.allclose(model.weight, ANSWER, atol=0.2)


def least_squares(
    make: Make, penalty: str | None, rho: float, kept: torch.dtype | None = None
) -> tuple[nn.Linear, ATMC]:
    """min ½‖X V' - Y‖² with XᵀX = I is min ½‖V - T‖²: the sparse, two-level answer is known."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False)
    factorize(model)
    X = torch.linalg.qr(torch.randn(12, 5))[0]
    Y = X @ TARGET.T
    V = named_factors(model)["weight.V"]
    optimizer = ATMC(
        model,
        make([V]),
        k=8,
        bits=1,
        rho=rho,
        duplicate_every=5,
        factors=["weight.V"],  # V alone: convex
        penalty=penalty,  # type: ignore[arg-type]
        state_dtype=kept,
    )
    with torch.no_grad():  # the start must not decide the support
        V.copy_(TARGET + 0.1 * torch.randn(3, 5))
    for _ in range(400):
        loss = 0.5 * (model(X) - Y).square().sum() + optimizer.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, optimizer


# ---- the step, piece by piece


def test_sgd_step_is_the_formula() -> None:
    model = network()
    rate, rho = 0.1, 0.7
    inner = torch.optim.SGD(model.parameters(), rate)
    optimizer = ATMC(model, inner, k=10**6, bits=2, rho=rho, duplicate_every=3)
    train(model, optimizer, 0, 4)
    x, y = data(4)
    before = {name: f.detach().clone() for name, f in optimizer.factors.items()}
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(optimizer.factors.values()))
    gap = {n: f - optimizer.duplicates[n] + optimizer.duals[n] for n, f in before.items()}
    expected = 0.5 * rho * sum(float(g.double().square().sum()) for g in gap.values())
    assert optimizer.penalty().item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0
    train(model, optimizer, 4, 5)
    for (name, factor), gradient in zip(optimizer.factors.items(), gradients, strict=True):
        moved = before[name] - rate * (gradient + rho * gap[name])
        assert torch.allclose(factor.detach(), moved, atol=1e-6), name


class Waits(TorchDispatchMode):
    """Counts the operations of torch for which the host would have to wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2"):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shadows", [False, True])
@pytest.mark.parametrize("importance", get_args(Importance))
def test_a_step_waits_once_for_a_gpu(
    importance: Importance, shadows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    optimizer = ATMC(
        *(model, sgd(model.parameters()), 30),
        duplicate_every=4,
        importance=importance,
        rho=rising,
        shadows=shadows,
    )
    train(model, optimizer, 0, 4)
    assert optimizer.duplicates
    reads, tolist = [], Tensor.tolist

    def read(tensor: Tensor) -> Any:
        reads.append(tensor.shape)
        return tolist(tensor)

    def on_device(
        scores: Tensor, k: int, near: float, around: float, out: Tensor
    ) -> projection.Selection:
        return projection._select_on_device(scores, k, out)

    x, y = data(4)
    loss = F.cross_entropy(model(x), y) + optimizer.penalty()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    monkeypatch.setattr("atmc.optim.atmc.select", on_device)
    monkeypatch.setattr(Tensor, "tolist", read)
    with Waits() as waits:
        optimizer.step()
    assert (waits.count, len(reads)) == (0, 1)
    assert optimizer.nonzeros <= 30


def rising(step: int) -> float:
    return 0.1 * step


@pytest.mark.parametrize("kept", [None, torch.bfloat16, torch.float64])
def test_the_decoupled_penalty_moves_each_factor_by_its_groups_rate(
    kept: torch.dtype | None,
) -> None:
    model = network()
    one, *others = model.parameters()
    groups = [{"params": [one], "lr": 0.5}, {"params": others, "lr": 0.02}]
    optimizer = ATMC(
        model, torch.optim.Adam(groups), k=60, rho=0.7, duplicate_every=1, state_dtype=kept
    )
    train(model, optimizer, 0, 2)
    expected = {}
    for name, factor in optimizer.factors.items():
        assert optimizer.duals[name].dtype == (kept or torch.float32)
        pull = 0.7 * (0.5 if factor is one else 0.02)
        target = optimizer.duplicates[name].double() - optimizer.duals[name].double()
        expected[name] = (factor.detach().double() + pull * target) / (1 + pull)
    with torch.no_grad():
        optimizer._proximal()
    for name, factor in optimizer.factors.items():
        torch.testing.assert_close(factor.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def test_adam_is_given_the_penalty_decoupled() -> None:
    model = network()
    optimizer = ATMC(model, adam(model.parameters()), k=10**6, bits=2, rho=5.0, duplicate_every=2)
    train(model, optimizer, 0, 3)
    assert optimizer.penalty_kind == "decoupled"
    assert optimizer.penalty().item() == 0
    twin = copy.deepcopy(model)
    plain = adam(twin.parameters())
    plain.load_state_dict(copy.deepcopy(optimizer.inner.state_dict()))
    targets = {n: d - optimizer.duals[n] for n, d in optimizer.duplicates.items()}
    train(model, optimizer, 3, 4)
    # Step 4 took a duplicate as well; factors are as they were after projection.
    x, y = data(3)
    F.cross_entropy(twin(x), y).backward()  # type: ignore[no-untyped-call]
    plain.step()
    for name, moved in named_factors(twin).items():
        pull = 0.01 * 5.0
        expected = (moved.detach() + pull * targets[name]) / (1 + pull)
        assert torch.allclose(optimizer.factors[name].detach(), expected, atol=1e-6), name


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("importance", ["magnitude", "effect"])
def test_support_rule_and_levels_after_every_step(make: Make, importance: str) -> None:
    model = network()
    schedule = cubic(150, 30, 12)
    optimizer = ATMC(
        model,
        make(model.parameters()),
        schedule,
        bits=2,
        rho=lambda step: 0.1 * step,
        duplicate_every=3,
        importance=importance,  # type: ignore[arg-type]
    )
    for step in range(20):
        train(model, optimizer, step, step + 1)
        assert optimizer.steps == step + 1
        assert optimizer.nonzeros <= schedule(step + 1)
        assert bool(optimizer.duplicates) == (step >= 2)
        for name, duplicate in optimizer.duplicates.items():
            off = optimizer.factors[name] == 0
            assert int(torch.count_nonzero(duplicate[off])) == 0
            assert int(torch.count_nonzero(optimizer.duals[name][off])) == 0
            assert_decodable(duplicate, 2)
    assert optimizer.nonzeros == 30
    optimizer.finalize()
    assert 0 < optimizer.nonzeros <= 30
    for factor in optimizer.factors.values():
        assert_decodable(factor.detach(), 2)
    with pytest.raises(RuntimeError, match="finalized"):
        optimizer.step()


def test_dual_moves_with_each_duplicate_and_only_then() -> None:
    model = network()
    optimizer = ATMC(model, sgd(model.parameters()), k=10**6, bits=1, duplicate_every=4)
    train(model, optimizer, 0, 4)
    first = {n: d.clone() for n, d in optimizer.duals.items()}
    for name, factor in optimizer.factors.items():
        assert torch.allclose(first[name], factor - optimizer.duplicates[name])
    train(model, optimizer, 4, 7)
    assert all(torch.equal(d, first[n]) for n, d in optimizer.duals.items())
    train(model, optimizer, 7, 8)
    for name, factor in optimizer.factors.items():
        expected = first[name] + factor - optimizer.duplicates[name]
        assert torch.allclose(optimizer.duals[name], expected, atol=1e-6)


def test_dual_is_rescaled_as_rho_changes() -> None:
    model = network()
    optimizer = ATMC(
        model,
        sgd(model.parameters()),
        k=10**6,
        bits=1,
        rho=lambda step: 0.5 * (step + 1),
        duplicate_every=4,
    )
    train(model, optimizer, 0, 4)
    multipliers = {n: 2.5 * u for n, u in optimizer.duals.items()}  # ρ of step 4
    for step in (4, 5, 6):
        rho = 0.5 * (step + 1)
        gaps = [
            f - optimizer.duplicates[n] + optimizer.duals[n] for n, f in optimizer.factors.items()
        ]
        expected = 0.5 * rho * sum(float(g.detach().square().sum()) for g in gaps)
        assert optimizer.penalty().item() == pytest.approx(expected, rel=1e-5)
        train(model, optimizer, step, step + 1)
        for name, dual in optimizer.duals.items():
            assert torch.allclose(0.5 * (step + 2) * dual, multipliers[name], atol=1e-5)


def test_momentum_is_the_memory_by_which_entries_come_back() -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.9, 0.5, 0.0]]))
    factorize(model)
    V = named_factors(model)["weight.V"]
    inner = torch.optim.SGD([V], 0.1, momentum=0.9)
    optimizer = ATMC(model, inner, k=2, factors=["weight.V"], duplicate_every=1000)
    target = torch.tensor([[1.2, 0.0, 0.0, 3.0]])
    alive = []
    for _ in range(10):
        optimizer.zero_grad()
        (0.5 * (model.weight - target).square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        buffer = inner.state[V]["momentum_buffer"]
        alive.append((V != 0).squeeze().tolist())
    assert alive[0] == [True, True, False, False]
    assert alive[-1] == [True, False, False, True]
    assert int(torch.count_nonzero(buffer)) == 4


@pytest.mark.parametrize("make", [sgd, adam])
def test_what_is_cut_goes_on_from_where_it_was(make: Make) -> None:
    """Against a dense copy that takes the steps, and of which the network is the best k."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    train_factors(factorize(model, identity=False), ["0.weight.C", "2.weight.C"])
    twin = copy.deepcopy(model)
    schedule = cubic(72, 20, 8)
    optimizer = ATMC(
        *(model, make([p for p in model.parameters() if p.requires_grad]), schedule),
        factors=["0.weight.C", "2.weight.C"],
        shadows=True,
        duplicate_every=999,
    )
    inner = make([p for p in twin.parameters() if p.requires_grad])
    moving = {name: named_factors(twin)[name] for name in optimizer.factors}
    dense = {name: factor.detach().clone() for name, factor in moving.items()}
    returned = 0
    for step in range(14):
        before = {name: factor != 0 for name, factor in optimizer.factors.items()}
        train(model, optimizer, step, step + 1)
        x, y = data(step)
        inner.zero_grad()
        F.cross_entropy(twin(x), y).backward()  # type: ignore[no-untyped-call]
        sparse = {name: factor.detach().clone() for name, factor in moving.items()}
        inner.step()
        moved = {n: f.detach() - sparse[n] for n, f in moving.items()}
        dense = {name: value + moved[name] for name, value in dense.items()}
        values = torch.cat([value.abs().flatten() for value in dense.values()])
        threshold = values.topk(schedule(step + 1)).values[-1]
        for name, factor in moving.items():
            with torch.no_grad():
                on = dense[name].abs() >= threshold
                factor.copy_(dense[name] * on)
                dense[name] = torch.where(on, dense[name], 0.998 * dense[name])
            ours = optimizer.factors[name].detach()
            torch.testing.assert_close(ours, factor.detach(), atol=1e-5, rtol=1e-4)
            whole = ours + optimizer.shadows[name]
            torch.testing.assert_close(whole, dense[name], atol=1e-5, rtol=1e-4)
            returned += int(((ours != 0) & ~before[name]).sum())
        assert optimizer.nonzeros == schedule(step + 1)
    assert returned > 0


def test_a_larger_k_takes_what_was_cut() -> None:
    model = network()
    optimizer = ATMC(
        *(model, adam(model.parameters()), 40), importance="saliency", shadows=True, floor=0.2
    )
    train(model, optimizer, 0, 12)
    before = {name: factor.detach().clone() for name, factor in optimizer.factors.items()}
    whole = {name: factor + optimizer.shadows[name] for name, factor in before.items()}
    assert not any(bool((f * optimizer.shadows[n]).any()) for n, f in before.items())
    assert optimizer.nonzeros == 40 < optimizer.available
    assert optimizer.available == sum(int(torch.count_nonzero(value)) for value in whole.values())
    everything = optimizer.pruned(optimizer.available)
    assert all(torch.equal(everything[name], value) for name, value in whole.items())
    masks = optimizer.best(60)
    assert sum(int(mask.sum()) for mask in masks.values()) == 60
    assert all(not bool((mask & (whole[name] == 0)).any()) for name, mask in masks.items())
    scores = {name: score.clone() for name, score in optimizer.scores().items()}
    assert all(bool((score[whole[name] != 0] > 0).all()) for name, score in scores.items())
    optimizer.choose_bits(60)
    quantized = optimizer.quantized(60)
    assert sum(int(torch.count_nonzero(value)) for value in quantized.values()) == 60
    assert all(torch.equal(optimizer.factors[name], value) for name, value in before.items())

    again = network(seed=1)
    other = ATMC(
        *(again, adam(again.parameters()), 40), importance="saliency", shadows=True, floor=0.2
    )
    again.load_state_dict(model.state_dict())
    other.scores()  # of the factors without the shadows, which come now
    other.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(score, scores[name]) for name, score in other.scores().items())
    without = ATMC(again, adam(again.parameters()), 40, importance="saliency")
    with pytest.raises(ValueError, match="other shadows"):
        without.load_state_dict(optimizer.state_dict())

    optimizer.finalize(60)
    assert optimizer.nonzeros == optimizer.available == 60


def test_what_comes_back_is_not_drawn_to_zero() -> None:
    model = network()
    optimizer = ATMC(model, adam(model.parameters()), 40, rho=0.5, shadows=True, duplicate_every=3)
    returned = 0
    for step in range(12):
        before = {name: factor != 0 for name, factor in optimizer.factors.items()}
        train(model, optimizer, step, step + 1)
        if optimizer.steps % 3 == 0:
            continue  # duplicates are new
        for name, duplicate in optimizer.duplicates.items():
            factor = optimizer.factors[name].detach()
            back = (factor != 0) & ~before[name]
            assert torch.equal(duplicate[back], factor[back])
            assert not bool(optimizer.duals[name][back].any())
            assert not bool((duplicate * (factor == 0)).any())
            returned += int(back.sum())
    assert returned > 0


@pytest.mark.parametrize("importance", ["magnitude", "effect"])
def test_factors_that_are_left_out_stay_as_they_are(importance: Importance) -> None:
    model = network()
    factors = named_factors(model)
    allowed = ["0.weight.V", "2.weight.C"]
    free = {id(f) for name, f in factors.items() if name not in allowed}
    before = {name: f.detach().clone() for name, f in factors.items()}
    inner = adam([p for p in model.parameters() if id(p) not in free])
    optimizer = ATMC(model, inner, k=12, factors=allowed, importance=importance, duplicate_every=2)
    train(model, optimizer, 0, 5)
    assert list(optimizer.factors) == allowed
    assert optimizer.nonzeros == 12
    optimizer.finalize(7)
    assert sum(int(torch.count_nonzero(f)) for f in optimizer.factors.values()) == 7
    for name, factor in factors.items():
        assert name in allowed or torch.equal(factor, before[name])


def test_no_codebook_at_32_bits() -> None:
    model = network()
    optimizer = ATMC(model, adam(model.parameters()), k=40, bits=32, duplicate_every=2)
    train(model, optimizer, 0, 6)
    for name, factor in optimizer.factors.items():
        assert torch.allclose(optimizer.duplicates[name], factor, atol=1e-6)
    before = {n: f.detach().clone() for n, f in optimizer.factors.items()}
    optimizer.finalize()
    assert optimizer.nonzeros == 40
    for name, factor in optimizer.factors.items():
        assert torch.allclose(factor, before[name], atol=1e-6)


def test_bits_by_name() -> None:
    model = network()
    bits = {name: 1 + index for index, name in enumerate(named_factors(model))}
    optimizer = ATMC(model, adam(model.parameters()), k=10**6, bits=bits, duplicate_every=2)
    train(model, optimizer, 0, 4)
    optimizer.finalize()
    for name, factor in optimizer.factors.items():
        assert_decodable(factor.detach(), bits[name])
    assert len(torch.unique(optimizer.factors["0.weight.V"].detach())) > 2


def test_cubic() -> None:
    schedule = cubic(1000, 100, 10)
    values = [schedule(step) for step in range(15)]
    assert values[0] == 1000 and values[10:] == [100] * 5
    assert values[5] == round(100 + 900 / 8)
    assert values == sorted(values, reverse=True)
    assert cubic(10, 3, 0)(0) == 3


# ---- beside torch


@given(
    st.floats(0, 1),
    st.integers(0, 120),
    st.lists(st.sampled_from([0.0, 1e-9, 1.0, 1e6]), min_size=3, max_size=3),
)
def test_no_layer_falls_below_its_part_of_k(floor: float, k: int, scales: list[float]) -> None:
    torch.manual_seed(k)
    model = factorize(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4), nn.Conv1d(4, 4, 3, groups=4)))
    names = [name for name in named_factors(model) if name.endswith("C")]
    for name, scale in zip(names, scales, strict=True):
        named_factors(model)[name].data.normal_().mul_(scale)
    train_factors(model, names)
    moved = [named_factors(model)[name] for name in names]
    optimizer = ATMC(model, sgd(moved), k=k, factors=names, floor=floor)
    sides = {names[0]: 14, names[1]: 10, names[2]: 4 * 4}  # rows and columns, in each group
    scores = {name: score.clone() for name, score in optimizer.scores().items()}
    with torch.no_grad():
        optimizer._project(k)
    assert optimizer.nonzeros == min(k, sum(int((score > 0).sum()) for score in scores.values()))
    kept, rest = [], []
    for name, score in scores.items():
        ranked = score[score > 0].sort(descending=True).values.tolist()
        least = int(floor * k * (sides[name] / sum(sides.values())))
        kept += ranked[:least]
        rest += ranked[least:]
        assert int((optimizer.factors[name] != 0).sum()) >= min(least, len(ranked))
    # Beyond the parts the best of all layers, one after the other.
    kept += sorted(rest, reverse=True)[: max(0, k - len(kept))]
    mine = torch.cat([s[optimizer.factors[n] != 0] for n, s in scores.items()])
    assert sorted(mine.tolist()) == sorted(kept)
    for name, score in optimizer.scores().items():
        assert torch.equal(score, scores[name] * (optimizer.factors[name] != 0))


def test_is_a_torch_optimizer() -> None:
    model = network()
    inner = sgd(model.parameters())
    optimizer = ATMC(model, inner, k=50)
    assert isinstance(optimizer, torch.optim.Optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    for step in range(4):
        train(model, optimizer, step, step + 1)
        scheduler.step()
    assert inner.param_groups[0]["lr"] == pytest.approx(0.0005)
    assert optimizer.param_groups is inner.param_groups
    assert all(p.grad is not None for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_closure() -> None:
    model = network()
    optimizer = ATMC(model, sgd(model.parameters()), k=50)
    x, y = data(0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(1.4, abs=0.5)
    assert optimizer.nonzeros == 50


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("stop", [2, 7, 9])
@pytest.mark.parametrize(("kept", "shadows"), [(None, False), (torch.bfloat16, True)])
def test_a_resumed_run_is_the_uninterrupted_one(
    make: Make, stop: int, kept: torch.dtype | None, shadows: bool
) -> None:
    def start(model: nn.Module) -> ATMC:
        return ATMC(
            model,
            make(model.parameters()),
            cubic(150, 40, 10),
            bits=3,
            rho=lambda step: 0.02 * step * step,
            duplicate_every=3,
            importance="effect",
            shadows=shadows,
            state_dtype=kept,
        )

    whole = network()
    optimizer = start(whole)
    optimizer.floor = 0.3
    train(whole, optimizer, 0, stop)
    buffer = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(whole, optimizer, stop, 14)

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = network(seed=1)
    resumed.load_state_dict(saved["model"])
    again = start(resumed)
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, stop, 14)
    for one, two in ((optimizer, again),):
        assert (one.steps, one.floor) == (two.steps, two.floor) == (14, 0.3)
        assert bool(one.shadows) == shadows
        for kind in ("factors", "shadows", "duplicates", "duals"):
            mine, other = getattr(one, kind), getattr(two, kind)
            assert all(
                t.dtype == (kept if kept and kind[:2] == "du" else torch.float32)
                for t in mine.values()
            )
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[name], other[name]) for name in mine)
    optimizer.finalize()
    again.finalize()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    # A finalized state stays finalized.
    last = start(network())
    last.load_state_dict(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="finalized"):
        last.step()


def test_state_of_another_model() -> None:
    model = network()
    optimizer = ATMC(model, adam(model.parameters()), k=50, duplicate_every=1)
    train(model, optimizer, 0, 1)
    other = factorize(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4)))
    with pytest.raises(ValueError, match="does not fit this model"):
        ATMC(other, adam(other.parameters()), k=50).load_state_dict(optimizer.state_dict())


def test_errors() -> None:
    plain = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"no factors: call atmc.factorize"):
        ATMC(plain, adam(plain.parameters()), k=3)
    early = adam(plain.parameters())
    factorize(plain)
    with pytest.raises(ValueError, match=r"does not hold weight.U: build it"):
        ATMC(plain, early, k=3)

    def build(**settings: Any) -> ATMC:
        return ATMC(plain, adam(plain.parameters()), k=3, **settings)

    for bits in (0, 9, 16, -1):
        with pytest.raises(ValueError, match=f"bits of weight.U is {bits}: use 1 to 8, or 32"):
            build(bits=bits)
    with pytest.raises(ValueError, match=r"bits names 'fc.U', which is no factor"):
        build(bits={"fc.U": 3})
    with pytest.raises(ValueError, match=r"bits says nothing of 'weight.V'"):
        build(bits={"weight.U": 3})
    with pytest.raises(ValueError, match=r"factors names 'fc.U', which is no factor"):
        build(factors=["fc.U"])
    with pytest.raises(ValueError, match=r"the optimizer moves 'weight.U', which factors leaves"):
        build(factors=["weight.V"])
    with pytest.raises(ValueError, match="duplicate_every is 0"):
        build(duplicate_every=0)
    with pytest.raises(ValueError, match="unknown importance 'lamp'"):
        build(importance="lamp")
    for floor in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"floor is .*: give a share of k from 0 to 1"):
            build(floor=floor)
    with pytest.raises(ValueError, match="unknown penalty 'admm'"):
        build(penalty="admm")
    optimizer = build()
    with pytest.raises(ValueError, match="use 1 to 8"):
        optimizer.set_bits(12)
    assert set(optimizer.bits.values()) == {4}


def test_auto_bits_follow_the_nonzeros():
    """Chosen while k shrinks, fixed once it has settled, and kept by the state."""
    torch.manual_seed(0)
    model = factorize(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)))
    opt = ATMC(
        model,
        torch.optim.SGD(model.parameters(), 0.05),
        cubic(200, 40, 30),
        "auto",
        duplicate_every=5,
    )
    x, y = torch.rand(32, 12), torch.randint(0, 4, (32,))
    seen = []
    for _ in range(60):
        opt.zero_grad()
        (F.cross_entropy(model(x), y) + opt.penalty()).backward()
        opt.step()
        seen.append(dict(opt.bits))
    assert set(seen[0].values()) == {4}
    assert set(seen[-1].values()) != {4}
    assert seen[45] == seen[-1]
    twin = ATMC(model, torch.optim.SGD(model.parameters(), 0.05), 40, "auto", duplicate_every=5)
    twin.load_state_dict(opt.state_dict())
    assert twin.bits == opt.bits
    opt.finalize()
    for name, factor in opt.factors.items():
        assert len(torch.unique(factor[factor != 0])) <= 2 ** opt.bits[name]


def test_what_another_has_pruned_is_not_drawn_back() -> None:
    model = factorize(network())
    optimizer = ATMC(model, sgd(model.parameters()), 30, 3, rho=5.0, duplicate_every=1)
    train(model, optimizer, 0, 5)
    name, factor = next((n, f) for n, f in named_factors(model).items() if f.any())
    dropped = factor.detach() != 0
    with torch.no_grad():
        factor.zero_()
    kept = {n: (d.clone(), optimizer.duals[n].clone()) for n, d in optimizer.duplicates.items()}
    assert kept[name][0][dropped].any()
    optimizer.forget_zeros()
    assert not optimizer.duplicates[name].any() and not optimizer.duals[name].any()
    for other, (duplicate, dual) in kept.items():
        if other != name:
            assert torch.equal(optimizer.duplicates[other], duplicate)
            assert torch.equal(optimizer.duals[other], dual)
    assert optimizer.penalty() >= 0


def test_its_state_is_laid_out_as_torch_lays_it_out() -> None:
    model = factorize(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    optimizer = ATMC(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), k=20, bits=2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model(torch.rand(3, 6)).sum().backward()
    optimizer.step()
    scheduler.step()
    held = optimizer.state_dict()
    theirs = optimizer.inner.state_dict()
    assert held.keys() >= {"state", "param_groups"}
    assert (held["param_groups"], held["state"].keys()) == (
        *(theirs["param_groups"], theirs["state"].keys()),
    )
    assert held["param_groups"][0]["lr"] == 0.05
    optimizer.load_state_dict(held)
    assert optimizer.param_groups[0]["lr"] == 0.05
