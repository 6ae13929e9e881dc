"""The curvature of a loss, and what ranking by it is worth."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atmc.factorization import factorize, factorized_weights, named_factors, scores
from atmc.optim.atmc import ATMC
from atmc.optim.curvature import Curvature


def test_curvature_is_that_of_inputs_and_of_what_outputs_matter() -> None:
    """Of a linear layer under squared loss, whose Hessian is known: E[x_j²] times the weight."""
    torch.manual_seed(0)
    layer = factorize(nn.Linear(5, 3, bias=False))
    (weight,) = factorized_weights(layer)
    spread, matters = torch.tensor([0.1, 0.3, 1.0, 2.0, 4.0]), torch.tensor([0.2, 1.0, 3.0])
    curvature = Curvature({"V": weight.V})
    for _ in range(300):
        x = torch.randn(1, 5) * spread
        layer.zero_grad()
        target = layer(x).detach() + torch.randn(1, 3) / matters.sqrt()
        (matters * (layer(x) - target).square()).sum().backward()
        curvature.update()
    rows, columns = curvature.roots("V")
    product = (rows * columns).square()
    exact = matters[:, None] * spread.square()[None, :]
    ratio = product / exact
    assert float(ratio[:, 1:].max() / ratio[:, 1:].min()) < 3  # noise of 100 steps


def test_the_first_steps_count_alike_and_state_goes_on() -> None:
    torch.manual_seed(0)
    factor = nn.Parameter(torch.zeros(2, 4, 3))
    whole, cut = Curvature({"C": factor}), Curvature({"C": factor})
    squares = []
    for step in range(6):
        factor.grad = torch.randn(2, 4, 3)
        squares.append(factor.grad.square())
        whole.update()
        cut.update()
        if step == 2:
            state = copy.deepcopy(cut.state_dict())
            cut = Curvature({"C": factor})
            cut.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(whole.roots("C"), cut.roots("C"), strict=True))
    mean = torch.stack(squares).mean(0)
    assert torch.allclose(whole.rows["C"], mean.mean(-1, keepdim=True))
    assert torch.allclose(whole.columns["C"], mean.mean(-2, keepdim=True))
    factor.grad = None
    whole.update()
    assert torch.allclose(whole.rows["C"], mean.mean(-1, keepdim=True))


def test_before_any_gradient_it_is_the_effect() -> None:
    model = factorize(nn.Linear(6, 4))
    optimizer = ATMC(model, torch.optim.SGD(model.parameters(), 0.1), k=8, importance="saliency")
    expected = scores(optimizer.weights, "effect")
    assert all(torch.equal(score, expected[name]) for name, score in optimizer.scores().items())


@pytest.mark.parametrize("seed", range(3))
def test_inputs_of_different_sizes_are_pruned_by_what_they_matter(seed: int) -> None:
    """The first half of the inputs is small, and its weights are larger: no more is in them."""
    losses = {}
    for importance in ("effect", "saliency"):
        torch.manual_seed(seed)
        size = torch.tensor([0.02] * 10 + [1.0] * 10)
        true = torch.randn(4, 20).sign() * torch.where(size < 1, 0.6, 0.5)
        model = nn.Linear(20, 4, bias=False)
        with torch.no_grad():
            model.weight.copy_(true)
        factorize(model)
        inner = torch.optim.Adam(model.parameters(), 1e-3)
        optimizer = ATMC(model, inner, k=40, bits=32, importance=importance)  # type: ignore[arg-type]
        for _ in range(100):
            x = torch.randn(32, 20) * size
            loss = F.mse_loss(model(x), x @ true.T + 0.1 * torch.randn(32, 4)) + optimizer.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = torch.randn(1000, 20) * size
        losses[importance] = float(F.mse_loss(model(x), x @ true.T).detach())
        assert sum(int(torch.count_nonzero(f)) for f in named_factors(model).values()) == 40
    assert losses["saliency"] < 0.5 * losses["effect"]


def test_without_a_gradient_nothing_counts_for_nothing() -> None:
    """A network whose output does not depend on some weights, or on none yet."""
    model = factorize(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), identity=False)
    optimizer = ATMC(model, torch.optim.SGD(model.parameters(), 0.0), 20, importance="saliency")
    for factor in named_factors(model).values():
        factor.grad = torch.zeros_like(factor)
    optimizer.step()
    assert optimizer.nonzeros == 20


def test_a_step_of_huge_gradients_does_not_outweigh_all_others() -> None:
    torch.manual_seed(0)
    factor = nn.Parameter(torch.zeros(5, 4))
    curvature = Curvature({"C": factor})
    for step in range(10):
        factor.grad = torch.randn(5, 4) * (1e4 if step == 5 else 1)
        curvature.update()
    assert float(curvature.rows["C"].mean()) < 4
    for _ in range(200):  # what stays is believed
        factor.grad = 10 * torch.randn(5, 4)
        curvature.update()
    assert float(curvature.rows["C"].mean()) == pytest.approx(100, rel=0.3)
