"""Hidden units in order: the same outputs, smaller files."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc import codec, models
from atmc.artifact import to_artifact
from atmc.factorization.layers import factorize, factorized_weights, named_factors
from atmc.methods.closing.unit_order import UnitOrder
from atmc.optim.codebooks import round_dense_part
from atmc.optim.rounding import rounded

X = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Norms, a branch whose inner units are its own, maps that are added, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 9, 3, padding=1)
        self.down_norm = nn.BatchNorm2d(9)
        self.up = nn.Conv2d(9, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)
        self.wide = nn.Linear(6 * 36, 5)
        self.tall = nn.Linear(5, 40)
        self.scale = nn.LayerNorm(40)
        self.one, self.two = nn.Linear(40, 40), nn.Linear(40, 40)
        self.two.weight = self.one.weight
        self.last = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.up(F.relu(self.down_norm(self.down(x))))
        x = F.relu(self.wide(self.grouped(x).flatten(1)))
        x = F.relu(self.scale(self.tall(x)))
        out: Tensor = self.last(torch.tanh(self.two(torch.tanh(self.one(x)))))
        return out


def pruned(model: nn.Module, kept: float, seed: int = 0) -> nn.Module:
    """All factors and norms random, a share of the factors' entries left, unevenly."""
    generator = torch.Generator().manual_seed(seed)
    factorize(model)
    with torch.no_grad():
        for factor in named_factors(model).values():
            values = torch.randn(factor.shape, generator=generator) * factor.shape[-1] ** -0.5
            uneven = torch.rand(*factor.shape[:-1], 1, generator=generator).square() * 3
            factor.copy_(values * (torch.rand(factor.shape, generator=generator) < kept * uneven))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                for name in ("weight", "bias", "running_mean", "running_var"):
                    tensor = getattr(module, name, None)
                    if tensor is not None:
                        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def test_the_outputs_stay_and_the_fullest_units_come_first() -> None:
    model = pruned(Residual(), 0.5)
    before = model(X)
    order = UnitOrder.of(model, X)
    # Not those whose outputs are added up, taken by groups, normalized apart, or tied.
    assert order.pairs == (("down.weight", "up.weight"), ("wide.weight", "tall.weight"))
    held = copy.deepcopy(model.state_dict())
    order.sort(model)
    assert any(not torch.equal(value, held[name]) for name, value in model.state_dict().items())
    assert torch.allclose(model(X), before, atol=1e-5)
    weights = {weight.name: weight for weight in factorized_weights(model)}
    for name, _ in order.pairs:
        weight = weights[name]
        counts = weight.factors[weight.carrier].count_nonzero(-1)
        assert (counts.diff() <= 0).all()


@pytest.mark.parametrize(
    ("name", "shape", "pairs"),
    [
        ("digits-cnn", (1, 8, 8), 3),
        ("lenet5", (1, 28, 28), 3),
        ("vgg16-w1", (3, 32, 32), 13),
        ("resnet18-w1", (3, 32, 32), 8),
    ],
)
def test_models_of_the_zoo(name: str, shape: tuple[int, ...], pairs: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, *shape)
    model = pruned(models.create(name), 0.6)
    before = model(x).detach()
    order = UnitOrder.of(model, x)
    assert len(order.pairs) == pairs
    order.sort(model)
    assert torch.allclose(model(x), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    held = copy.deepcopy(model.state_dict())
    order.sort(model)  # in order already
    assert all(torch.equal(value, held[key]) for key, value in model.state_dict().items())


def test_files_are_smaller() -> None:
    sizes = []
    for seed in range(3):
        model = pruned(models.create("digits-cnn"), 0.004, seed)
        carriers = {weight.carrier for weight in factorized_weights(model)}
        with torch.no_grad():
            for name, factor in named_factors(model).items():
                factor.copy_(rounded(factor, 3)[0] * (name in carriers))
        round_dense_part(model, 8)
        before = len(codec.encode(to_artifact(model)))
        UnitOrder.of(model, torch.rand(4, 1, 8, 8)).sort(model)
        sizes.append(len(codec.encode(to_artifact(model))) / before)
    assert max(sizes) < 0.99


def test_a_model_that_refuses_noise_has_no_pairs() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.max()) < 5:
                raise ValueError("not my data")
            out: Tensor = self.two(F.relu(self.one(x)))
            return out

    model = factorize(Picky())
    assert UnitOrder.of(model, torch.full((2, 4), 9.0)).pairs == ()


def test_registered_in_another_order_than_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.tanh(self.first(x)))
            return out

    model = pruned(Backwards(), 0.9)
    x = torch.rand(5, 4)
    before = model(x)
    order = UnitOrder.of(model, x)
    assert order.pairs == ()
    order.sort(model)
    assert torch.equal(model(x), before)


class Uneven(nn.Module):
    """The first unit is treated unlike the others, or groups are, or only in training."""

    def __init__(self, units: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.one = nn.Conv2d(2, units, 3)
        self.norm = nn.GroupNorm(2, units) if how == "groups" else nn.Identity()
        self.two = nn.Conv2d(units, 3, 3)
        self.register_buffer("factors", torch.linspace(0.5, 2, units), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.one(x)))
        if self.how == "first":
            h = torch.cat((2 * h[:, :1], torch.tanh(h[:, 1:])), 1)
        if self.how == "training" and self.training:
            h = torch.cat((2 * h[:, :1], h[:, 1:]), 1)
        if self.how == "not in the file":
            h = h * self.factors[:, None, None]
        out: Tensor = self.two(h).flatten(1)
        return out


@pytest.mark.parametrize(
    ("how", "units"),
    [
        *itertools.product(("first", "training", "not in the file", "alike"), (2, 3, 4, 6, 9)),
        *itertools.product(("groups",), (2, 4, 6)),
    ],
)
def test_units_that_are_not_alike_stay(how: str, units: int) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = factorize(Uneven(units, how))
        found = UnitOrder.of(model, X[:, :, : 6 + seed, :6]).pairs
        # Two groups of one unit each are alike.
        alike = how == "alike" or (how == "groups" and units == 2)
        assert found == ((("one.weight", "two.weight"),) if alike else ())


def test_dropout_is_no_hindrance() -> None:
    layers = (nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    model = factorize(nn.Sequential(*layers)).train()
    assert len(UnitOrder.of(model, torch.rand(5, 4)).pairs) == 1
    assert model.training and layers[2].p == 0.5
