import copy

import pytest
import torch
from torch import Tensor, nn

from atmc.factorization.importance import Importance, scores
from atmc.factorization.layers import (
    FactorizedWeight,
    factorize,
    factorized_weights,
    named_factors,
    train_factors,
)


def brute_force(weight: FactorizedWeight) -> list[Tensor]:
    """The Frobenius norm of the change of W when one entry after the other goes to zero."""
    whole = weight.parametrization(weight.U, weight.V, weight.C)
    found = []
    for factor in (weight.U, weight.V, weight.C):
        changes = torch.zeros_like(factor)
        for place in range(factor.numel()):
            flat = factor.view(-1)
            kept = flat[place].clone()
            flat[place] = 0
            changed = weight.parametrization(weight.U, weight.V, weight.C)
            changes.view(-1)[place] = (whole - changed).norm()
            flat[place] = kept
        found.append(changes)
    return found


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 3),
        nn.Linear(3, 5),
        nn.Conv2d(2, 4, 2),
        nn.Conv2d(4, 6, 2, groups=2),
        nn.ConvTranspose1d(4, 2, 3, groups=2),
    ],
)
@pytest.mark.parametrize("rank", [None, 2])
@torch.no_grad()
def test_effect_is_the_change_of_w(layer: nn.Module, rank: int | None) -> None:
    model = factorize(copy.deepcopy(layer).double(), rank=rank)
    torch.manual_seed(0)
    for factor in named_factors(model).values():
        factor.copy_(torch.randn_like(factor))
        factor[torch.rand_like(factor) < 0.3] = 0
    (weight,) = factorized_weights(model)
    for found, expected in zip(
        scores([weight], "effect").values(), brute_force(weight), strict=True
    ):
        assert torch.allclose(found, expected, atol=1e-12)


@torch.no_grad()
def test_effect_of_a_column_that_the_deviation_cancels() -> None:
    model = factorize(nn.Linear(4, 2))
    (weight,) = factorized_weights(model)
    weight.U[0, 0] = -1  # I + U has an empty first column: the first row of V is worth nothing
    U, V, _ = scores([weight], "effect").values()
    assert torch.count_nonzero(V[0]) == 0 and torch.count_nonzero(V[1]) == 4
    assert torch.isfinite(U).all()


@torch.no_grad()
def test_scores_follow_the_order_of_the_factors() -> None:
    model = factorize(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)))
    weights = factorized_weights(model)
    for factor in named_factors(model).values():
        factor.copy_(torch.randn_like(factor))
    factors = named_factors(model)
    by_magnitude = scores(weights, "magnitude")
    by_effect = scores(weights, "effect")
    assert list(by_magnitude) == list(by_effect) == list(factors)
    assert all(torch.equal(score, factors[name].abs()) for name, score in by_magnitude.items())
    assert all(score.shape == factors[name].shape for name, score in by_effect.items())
    assert torch.equal(by_effect["1.weight.C"], weights[1].C.abs())
    assert not any(score.requires_grad for score in (*by_magnitude.values(), *by_effect.values()))
    out = {name: torch.empty_like(by_effect[name]) for name in ("0.weight.V", "1.weight.U")}
    written = scores(weights, "effect", out)
    assert list(written) == list(out)
    for name, score in out.items():
        assert written[name] is score and torch.equal(score, by_effect[name])


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Linear(3, 4)], ids=["left", "right"])
@pytest.mark.parametrize("importance", ["magnitude", "effect"])
def test_scores_beside_factors_that_are_not_trained(
    layer: nn.Module, importance: Importance
) -> None:
    model = factorize(copy.deepcopy(layer))
    expected = scores(factorized_weights(model), importance)
    trained = train_factors(model)
    (weight,) = factorized_weights(model)
    assert trained == [weight.carrier]
    out = {weight.carrier: torch.empty_like(weight.factors[weight.carrier])}
    scores([weight], importance, out)
    assert torch.equal(out[weight.carrier], expected[weight.carrier])
