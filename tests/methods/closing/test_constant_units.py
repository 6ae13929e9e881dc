"""Constants move into the next bias where that is exact, and stay where it is not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from atmc.factorization.layers import factorize, factorized_weights
from atmc.methods.closing.constant_units import fold_constant_units
from atmc.methods.closing.unit_order import UnitOrder

X = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def network(
    activation: nn.Module, padding: int = 0, bias: bool = True, norm: nn.Module | None = None
) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        norm or nn.Identity(),
        activation,
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 2, padding=padding, bias=bias),
        activation,
        nn.Flatten(),
        nn.Linear(5 * (2 + 2 * padding) ** 2, 7),
        activation,
        nn.Linear(7, 3),
    )


def emptied(model: nn.Module, layer: str, units: list[int]) -> None:
    """Units whose row is empty, and whose bias is not."""
    weight = next(w for w in factorized_weights(model) if w.name == f"{layer}.weight")
    with torch.no_grad():
        for factor in (weight.U, weight.V, weight.C):
            factor[units] = 0


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Sigmoid()])
def test_constants_move_and_the_output_stays(activation: nn.Module) -> None:
    model = factorize(network(activation)).eval()
    with torch.no_grad():
        for layer in (0, 4, 7):
            model[layer].bias.copy_(torch.rand(model[layer].bias.shape) + 0.5)
    for layer, units in (("0", [1, 4]), ("4", [0]), ("7", [2, 3, 6])):
        emptied(model, layer, units)
    before, held = model(X), copy.deepcopy(model.state_dict())
    model.train()
    fold_constant_units(model, X, UnitOrder.of(model, X))
    assert model.training and model[7].training
    model.eval()
    for layer, units in ((0, [1, 4]), (4, [0]), (7, [2, 3, 6])):
        bias = model[layer].bias
        assert not bias[units].any() and bias.count_nonzero() == len(bias) - len(units)
    assert torch.allclose(model(X), before, atol=1e-5)
    for name, value in model.state_dict().items():
        if not name.endswith("bias"):
            assert torch.equal(value, held[name]), name


@pytest.mark.parametrize(("padding", "bias", "normed"), [(1, True, 0), (0, False, 0), (0, True, 1)])
def test_nothing_moves_where_it_is_not_exact(padding: int, bias: bool, normed: int) -> None:
    norm = nn.BatchNorm2d(6) if normed else None  # it takes constants away in training
    model = factorize(network(nn.ReLU(), padding, bias, norm)).eval()
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    emptied(model, "0", [1, 4])
    held = copy.deepcopy(model.state_dict())
    fold_constant_units(model, X, UnitOrder.of(model, X))
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())


def test_layers_of_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(torch.relu(self.one(x.flatten(1, 2)))).mean(1)
            return out

    torch.manual_seed(0)
    model = factorize(Tokens())
    with torch.no_grad():
        model.one.bias.fill_(0.7)
    emptied(model, "one", [5])
    before = model(X)
    fold_constant_units(model, X, UnitOrder.of(model, X))
    assert model.one.bias.count_nonzero() == 5
    assert torch.allclose(model(X), before, atol=1e-6)


@pytest.mark.parametrize("how", ["function", "keyword", "autocast"])
def test_layers_that_are_called_in_other_ways(how: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.one(x))
            if how == "function":
                out: Tensor = nn.functional.linear(h, self.two.weight, self.two.bias)
            elif how == "keyword":
                out = self.two(input=h)
            else:
                with torch.autocast("cpu", torch.bfloat16):
                    out = self.two(torch.relu(self.one(x)))
            return out

    torch.manual_seed(0)
    model = factorize(Own())
    x = torch.rand(5, 8)
    with torch.no_grad():
        model.one.bias.fill_(0.7)
    emptied(model, "one", [5])
    before, biases = model(x), (model.one.bias.clone(), model.two.bias.clone())
    fold_constant_units(model, x, UnitOrder((("one.weight", "two.weight"),)))
    if how != "autocast":  # what the layer is given cannot be seen
        assert torch.equal(model.one.bias, biases[0]) and torch.equal(model.two.bias, biases[1])
    assert torch.allclose(model(x), before, atol=0.02 if how == "autocast" else 0)
