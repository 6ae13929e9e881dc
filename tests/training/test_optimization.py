"""How a stage descends: schedules, weight decay of W, the averaged weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.factorization.layers import (
    factorize,
    factorized_weights,
    named_factors,
    train_factors,
)
from atmc.methods.low_rank import as_products
from atmc.optim.atmc import ATMC
from atmc.training.optimization import Average, Optimization, OptimizerName, decay_shares


class Net(nn.Module):
    """Layers and norms, of one dimension and of three, for 1 x 8 x 8 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.9))
        self.whole = nn.LayerNorm((4, 3, 3))
        self.wide = nn.Linear(36, 8)
        self.narrow = nn.Linear(8, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.whole(self.scale * self.norm(self.conv(x)))
        out: Tensor = self.narrow(F.relu(self.wide(x.flatten(1))))
        return out


WEIGHTS = {"conv.weight", "wide.weight", "narrow.weight"}


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def matrices(model: nn.Module) -> dict[str, Tensor]:
    return {
        w.name: w.parametrization.matrix(w.U, w.V, w.C).detach().clone()
        for w in factorized_weights(model)
    }


# ---- schedules


def test_the_schedules_of_the_rate() -> None:
    def scales(schedule: Any, *progress: float) -> list[float]:
        return [Optimization(schedule=schedule).lr_scale(p) for p in progress]

    assert scales("constant", 0, 0.5, 0.999) == [1, 1, 1]
    assert scales("cosine", 0, 1 / 3, 0.5, 2 / 3, 1) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    steps = scales("piecewise", 0, 0.499, 0.5, 0.749, 0.75, 0.999)
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert scales("one-cycle", 0, 0.2, 1) == pytest.approx([0.1, 1, 0.01])


# ---- weight decay


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_one_step_of_a_dense_model_by_hand(name: OptimizerName) -> None:
    model, rate, decay = net(), 0.03, 0.2
    optimizer = Optimization(name, weight_decay=decay).build(model, rate)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.rand(8, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    for n, parameter in model.named_parameters():
        old, gradient = before[n], parameter.grad
        assert gradient is not None
        shrunk = old * (1 - rate * decay) if n in WEIGHTS else old
        # The first step of Adam is as long as the rate: both moments are corrected to the gradient.
        move = gradient / (gradient.abs() + 1e-8) if name == "adam" else gradient
        torch.testing.assert_close(parameter.detach(), shrunk - rate * move, msg=n)


def test_without_decay_it_is_plain_adam() -> None:
    optimizer = Optimization().build(net(), 1e-3)
    assert type(optimizer) is torch.optim.Adam
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0]


@pytest.mark.parametrize("form", ["identity", "rank", "products"])
def test_a_factorized_weight_decays_as_the_weight_itself(form: str) -> None:
    """Without gradients a step multiplies W by 1 - γλ, whatever its factors are."""
    model = net()
    if form == "products":
        as_products(model)
    else:
        factorize(model, rank=3 if form == "rank" else None)
    kinds = {w.parametrization.identity for w in factorized_weights(model)}
    assert kinds == ({"left", "right"} if form == "identity" else {"none"})
    with torch.no_grad():
        for factor in named_factors(model).values():
            factor.add_(0.1 * torch.randn_like(factor))
    before, rest = matrices(model), copy.deepcopy(dict(model.named_parameters()))
    rate, decay = 0.01, 0.1
    optimizer = Optimization(weight_decay=decay).build(model, rate)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, W in matrices(model).items():
        # Halves multiply to 1 - γλ + (γλ / 2)².
        torch.testing.assert_close(W, before[name] * (1 - rate * decay), rtol=1e-5, atol=2e-6)
    factors = named_factors(model)
    for name, parameter in model.named_parameters():
        if "parametrizations" not in name:
            assert torch.equal(parameter, rest[name]), name
    for weight in factorized_weights(model):
        free = {"left": "U", "right": "V"}.get(weight.parametrization.identity)
        assert free is None or factors[f"{weight.name}.{free}"] not in decay_shares(model)


def test_what_a_stage_does_not_move_does_not_decay() -> None:
    model = factorize(net())
    fixed = [w.C for w in factorized_weights(model)]
    with torch.no_grad():
        for factor in fixed:
            factor.fill_(0.5)
    train_factors(model, [name for name in named_factors(model) if not name.endswith("C")])
    optimizer = Optimization(weight_decay=0.5).build(model, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    assert all(bool((factor == 0.5).all()) for factor in fixed)


def test_a_shared_weight_decays_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(decay_shares(model).values()) == [1.0]
    factorize(model)
    (weight,) = factorized_weights(model)
    assert decay_shares(model) == {weight.C: 1.0, weight.factors[weight.carrier]: 1.0}


def test_decay_is_of_the_factors_and_the_rest_of_the_step_stays() -> None:
    """Decay, then Adam, the pull to the duplicate, the projection: written out for one step."""
    rate, decay, rho = 0.02, 0.5, 3.0
    model = factorize(net())
    inner = Optimization(weight_decay=decay).build(model, rate)
    optimizer = ATMC(model, inner, k=200, bits=2, rho=rho, duplicate_every=1)

    def step(moved: nn.Module, by: torch.optim.Optimizer, seed: int) -> None:
        x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        by.zero_grad()
        moved(x).square().mean().backward()
        by.step()

    step(model, optimizer, 0)
    duplicates = {name: d.clone() for name, d in optimizer.duplicates.items()}
    duals = {name: u.clone() for name, u in optimizer.duals.items()}
    twin = copy.deepcopy(model)
    before = {name: f.detach().clone() for name, f in named_factors(twin).items()}
    plain = torch.optim.Adam(twin.parameters(), rate)
    states = optimizer.inner.state
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        plain.state[p] = copy.deepcopy(states[q])
    step(model, optimizer, 1)
    step(twin, plain, 1)
    shares = decay_shares(twin)
    moved = {}
    for name, factor in named_factors(twin).items():
        shrunk = factor.detach() - rate * decay * shares.get(factor, 0.0) * before[name]
        target = duplicates[name] - duals[name]
        moved[name] = (shrunk + rate * rho * target) / (1 + rate * rho)
    threshold = torch.cat([m.abs().flatten() for m in moved.values()]).topk(200).values[-1]
    for name, factor in named_factors(model).items():
        expected = moved[name] * (moved[name].abs() >= threshold)
        torch.testing.assert_close(factor.detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


# ---- the average


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_that_of_a_loop(decay: float) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(3, 4), torch.randn(5)]
    expected = [t.double().clone() for t in tensors]
    average = Average(tensors, decay)
    for t in range(60):
        for tensor in tensors:
            tensor += torch.randn_like(tensor)
        average.update()
        d = min(decay, (1 + t) / (10 + t))
        expected = [d * a + (1 - d) * x for a, x in zip(expected, tensors, strict=True)]
    for a, b in zip(average.values, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_averages_are_applied_for_a_while_or_for_good() -> None:
    changes: list[float] = []
    tensor = torch.zeros(2)
    average = Average([tensor], 0.5, lambda: changes.append(float(tensor[0])))
    tensor += 10
    average.update()
    with pytest.raises(RuntimeError), average.applied():
        assert tensor.tolist() == [9, 9]  # 0.1 of the start, whatever the decay
        raise RuntimeError
    assert tensor.tolist() == [10, 10]
    average.apply()
    assert tensor.tolist() == [9, 9]
    assert changes == [9, 10, 9]


def test_the_state_of_an_average() -> None:
    tensor = torch.zeros(2)
    average, other = Average([tensor], 0.9), Average([tensor], 0.9)
    for _ in range(3):
        tensor += 1
        average.update()
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    for each in (average, other):
        each.update()
    assert torch.equal(average.values[0], other.values[0])
    assert average.updates == other.updates == 4
