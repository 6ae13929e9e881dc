"""Units that are zero for every input in [0, 1] are emptied, others are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from atmc.factorization.layers import factorize
from atmc.methods.closing.silent_units import empty_silent_units
from atmc.methods.closing.unit_order import UnitOrder

X = torch.rand(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
ENDS = (X > 0.5).float()


def network(norm: nn.Module | None = None, activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    activation = activation or nn.ReLU()
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), norm or nn.Identity(), activation, nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 5, 2, padding=1), activation, nn.Flatten()),
        *(nn.Linear(80, 7), activation, nn.Linear(7, 3)),
    )


def emptied(model: nn.Module) -> dict[str, Tensor]:
    """The rows that became empty, by layer; the output must stay the same to the bit."""
    model.eval()
    before = copy.deepcopy(model)
    empty_silent_units(model, X[:4], UnitOrder.of(model, X[:4]))
    for x in (X, ENDS, 0 * X, 0 * X + 1):
        assert torch.equal(model(x), before(x))
    return {
        name: (layer.weight.flatten(1) != 0).any(1)
        ^ (before.get_submodule(name).weight.flatten(1) != 0).any(1)
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }


@pytest.mark.parametrize("identity", [False, True])
def test_units_below_zero_are_emptied(identity: bool) -> None:
    model = factorize(network(), identity=identity)
    with torch.no_grad():
        for layer, units in ((0, [1, 4]), (4, [0]), (7, [2, 6])):
            model[layer].bias[units] = -50
        model[0].bias[2] = -0.01  # below zero for many inputs, not for all
    found = emptied(model)
    if identity:  # W is then a product with 1 on the diagonal, whose rows hold no zeros
        assert not any(bool(rows.any()) for rows in found.values())
        return
    assert found["0"].nonzero().flatten().tolist() == [1, 4]
    assert found["4"].nonzero().flatten().tolist() == [0]
    assert found["7"].nonzero().flatten().tolist() == [2, 6]
    assert not found["9"].any()
    assert not model[0].bias[[1, 4]].any()


def test_a_unit_that_a_norm_would_wake_stays() -> None:
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        assert norm.running_mean is not None
        norm.running_mean[3] = -5  # of an empty unit it makes 5
    model = factorize(network(norm), identity=False)
    with torch.no_grad():
        model[0].bias[3] = -50
        model[1].bias[1] = -50  # stays below zero however small the unit's outputs are
    before = copy.deepcopy(model.state_dict())
    found = emptied(model)
    assert found["0"].nonzero().flatten().tolist() == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Softplus()])
def test_other_activations_have_no_silent_units(activation: nn.Module) -> None:
    model = factorize(network(activation=activation), identity=False)
    with torch.no_grad():
        model[0].bias[1] = -50
    assert not any(bool(rows.any()) for rows in emptied(model).values())


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1).values


def test_without_bounds_nothing_changes() -> None:
    model = factorize(nn.Sequential(*network(), Sorts()), identity=False)
    with torch.no_grad():
        model[0].bias[1] = -50
    assert not any(bool(rows.any()) for rows in emptied(model).values())
