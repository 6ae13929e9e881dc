"""Pruning by ADMM: its step, its end, and what a resumed loop needs."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from atmc.optim.pruning import Projection, PruningADMM
from atmc.projection import project_columns, project_filters, project_topk


def keep(count: int) -> Projection:
    return lambda weight: project_topk([weight], count)[0]


def problem() -> tuple[nn.Linear, Tensor, Tensor]:
    """Least squares with five true weights of 60."""
    torch.manual_seed(0)
    x = torch.randn(200, 12)
    true = torch.zeros(5, 12)
    for row in range(5):
        true[row, 2 * row] = 1.0 + row
    return nn.Linear(12, 5, bias=False), x, x @ true.t()


def train(
    model: nn.Linear, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> float:
    value = 0.0
    for _ in range(steps):
        loss = (model(x) - y).square().mean()
        value = loss.item()
        if isinstance(optimizer, PruningADMM):
            loss = loss + optimizer.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return value


@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_the_true_support_is_found_and_kept(inner: str) -> None:
    model, x, y = problem()
    kind = torch.optim.SGD if inner == "sgd" else torch.optim.Adam
    optimizer = PruningADMM(
        {"weight": model.weight}, kind(model.parameters(), 0.05), {"weight": keep(5)}, rho=0.1
    )
    train(model, optimizer, x, y, 400)
    optimizer.prune()
    assert int(torch.count_nonzero(model.weight)) == 5
    assert train(model, optimizer, x, y, 200) < 1e-4
    assert int(torch.count_nonzero(model.weight)) == 5


def test_a_step_is_the_formula() -> None:
    model, x, y = problem()
    optimizer = PruningADMM(
        {"weight": model.weight}, torch.optim.SGD(model.parameters(), 0.1), {"weight": keep(5)},
        rho=lambda step: 0.5 if step < 3 else 1.0,
    )  # fmt: skip
    W, Z, u = model.weight.detach().clone(), None, torch.zeros(5, 12)
    for step in range(1, 5):
        gradient = 2 * (x @ W.t() - y).t() @ x / y.numel()
        rho = 0.5 if step < 4 else 1.0
        if Z is not None:
            gradient = gradient + rho * (W - Z + u)
        W = W - 0.1 * gradient
        Z = project_topk([W + u], 5)[0]
        u = u + W - Z
        if step == 3:
            u = u * 0.5  # u is scaled: ρ doubles, u halves
        train(model, optimizer, x, y, 1)
        torch.testing.assert_close(model.weight.detach(), W, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.duplicates["weight"], Z, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.duals["weight"], u, rtol=1e-5, atol=1e-6)


def test_duplicates_come_as_often_as_asked() -> None:
    model, x, y = problem()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = PruningADMM({"weight": model.weight}, inner, {"weight": keep(5)}, duplicate_every=3)
    train(model, optimizer, x, y, 2)
    assert not optimizer.duplicates
    train(model, optimizer, x, y, 1)
    first = optimizer.duplicates["weight"].clone()
    train(model, optimizer, x, y, 2)
    assert torch.equal(optimizer.duplicates["weight"], first)


@pytest.mark.parametrize("projection", [project_filters, project_columns])
def test_filters_and_columns_go_whole(projection: Projection) -> None:
    model, x, y = problem()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = PruningADMM(
        {"weight": model.weight}, inner, {"weight": partial(projection, count=2)}
    )  # type: ignore[call-arg]
    train(model, optimizer, x, y, 3)
    optimizer.prune()
    train(model, optimizer, x, y, 3)
    lines = model.weight if projection is project_filters else model.weight.t()
    assert int((lines != 0).any(1).sum()) == 2


@pytest.mark.parametrize("pruned", [False, True])
def test_a_state_goes_on_where_it_was(pruned: bool) -> None:
    model, x, y = problem()

    def make(net: nn.Linear) -> PruningADMM:
        inner = torch.optim.Adam(net.parameters(), 0.05)
        return PruningADMM({"weight": net.weight}, inner, {"weight": keep(9)}, rho=0.1)

    optimizer = make(model)
    train(model, optimizer, x, y, 5)
    if pruned:
        optimizer.prune()
    other = copy.deepcopy(model)
    resumed = make(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, each in ((model, optimizer), (other, resumed)):
        train(net, each, x, y, 5)
    assert torch.equal(model.weight, other.weight)


def test_what_cannot_be_is_refused() -> None:
    model, _, _ = problem()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    weights = {"weight": model.weight}
    with pytest.raises(ValueError, match="'weight' has none"):
        PruningADMM(weights, inner, {})
    with pytest.raises(ValueError, match="no weight"):
        PruningADMM({}, inner, {})
    with pytest.raises(ValueError, match="at least 1"):
        PruningADMM(weights, inner, {"weight": keep(5)}, duplicate_every=0)
    with pytest.raises(ValueError, match="does not hold"):
        PruningADMM({"other": nn.Parameter(torch.zeros(1))}, inner, {"other": keep(1)})
