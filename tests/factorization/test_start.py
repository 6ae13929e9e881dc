import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.artifact import to_artifact
from atmc.codec import measure
from atmc.factorization import start
from atmc.factorization.covariance import Covariance, input_covariances
from atmc.factorization.layers import factorize, factorized_weights, named_factors
from atmc.factorization.start import (
    KINDS,
    Approximation,
    DataAware,
    Factors,
    Form,
    Weight,
    approximations,
)


def correlated(rest: int, seed: int) -> Covariance:
    torch.manual_seed(seed)
    mixed = torch.randn(1, rest, rest) + torch.ones(rest)
    matrix = mixed @ mixed.mT / rest + 0.05 * torch.eye(rest)
    return Covariance(matrix.diagonal(dim1=1, dim2=2).clone(), matrix, torch.zeros(1, rest))


@pytest.fixture
def weights() -> dict[str, Weight]:
    """One that is of low rank, one that is sparse, one that is both."""
    torch.manual_seed(0)
    product = torch.randn(1, 40, 2) @ torch.randn(1, 2, 60)
    few = torch.randn(1, 40, 60) * (torch.rand(1, 40, 60) < 0.05)
    noise = 0.02 * torch.randn(1, 40, 60)
    matrices = {"product": product, "few": 3 * few, "both": product + 3 * few}
    return {
        name: Weight(matrix + noise, correlated(60, seed))
        for seed, (name, matrix) in enumerate(matrices.items())
    }


def test_each_weight_takes_the_form_that_it_has(weights: dict[str, Weight]) -> None:
    found = approximations(weights, 6000)
    assert found["product"].form.factors == "uv"
    assert found["few"].form.factors == "c"
    assert found["both"].form.factors == "uvc"
    assert found["product"].form.rank == 2


@pytest.mark.parametrize("bits", [1500, 4000, 9000])
def test_a_choice_is_no_worse_than_one_form_and_keeps_the_bits(
    weights: dict[str, Weight], bits: int
) -> None:
    errors = {}
    for factors, kinds in KINDS.items():
        found = approximations(weights, bits, kinds)
        assert sum(a.bits for a in found.values()) <= bits
        assert all(a.form.factors in kinds for a in found.values())
        errors[factors] = sum(a.error for a in found.values())
    assert errors["uvc"] == min(errors.values())
    assert errors["uvc"] < errors["uv"] and errors["uvc"] < errors["c"]


def test_some_rows_stand_for_all_of_a_large_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = Weight(torch.randn(1, 400, 60), correlated(60, 0))
    whole = weight.options(0.05, "c")
    monkeypatch.setattr(start, "_CURVE", 60 * 100)
    part = weight.options(0.05, "c")
    np.testing.assert_array_equal(part.nonzeros, whole.nonzeros)
    np.testing.assert_allclose(part.errors, whole.errors, rtol=0.1)
    assert (part.errors != whole.errors).any()


def test_no_form_is_made_twice(weights: dict[str, Weight], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Weight, Form]] = []
    make = Weight.approximation

    def noted(weight: Weight, form: Form) -> Approximation:
        made.append((weight, form))
        return make(weight, form)

    monkeypatch.setattr(Weight, "approximation", noted)
    approximations(weights, 4000)
    assert len(made) == len(set(made)) > 2 * len(weights)


def test_an_approximation_is_what_it_says(weights: dict[str, Weight]) -> None:
    weight = weights["both"]
    form = Form(rank=3, product_bits=4, nonzeros=100, sparse_bits=3)
    a = weight.approximation(form)
    assert int(torch.count_nonzero(a.C)) <= 100 and a.U.shape[2] == a.V.shape[1] == 3
    assert len(torch.unique(a.C[a.C != 0])) <= 8 and len(torch.unique(a.U[a.U != 0])) <= 16
    left = weight.W - a.U @ a.V - a.C
    assert a.error == pytest.approx(weight.covariance.error(left) / weight.energy, rel=1e-4)


@pytest.mark.parametrize(("factors", "rank"), [("uvc", 3), ("uv", 40)])
def test_an_exact_start_is_the_weight(
    weights: dict[str, Weight], factors: Factors, rank: int
) -> None:
    weight = weights["both"]
    U, V, C = weight.exact(Form(rank=3), factors)
    assert U.shape[2] == V.shape[1] == rank
    assert torch.allclose(U @ V + C, weight.W, atol=1e-5)
    assert bool(C.any()) == ("c" in factors)


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    )


def pictures(count: int) -> Tensor:
    """Smooth noise: pixels next to one another vary together."""
    return F.interpolate(torch.rand(count, 3, 3, 3), size=8, mode="bilinear", align_corners=True)


def test_a_model_starts_within_its_bits_and_near_its_outputs() -> None:
    torch.manual_seed(0)
    model, batches = small(), [pictures(64) for _ in range(4)]
    for _ in range(150):  # running statistics
        model(batches[0])
    model.eval()
    start = DataAware(batches, 9000)
    started = factorize(copy.deepcopy(model), start=start)
    sizes = measure(to_artifact(started))
    factor_bits = sum(sizes.parts[part] for part in ("codebooks", "positions", "values"))
    assert 0.8 * 9000 < factor_bits < 1.05 * 9000
    x = pictures(64)
    with torch.no_grad():
        before, after = model(x), started(x)
        pruned = factorize(copy.deepcopy(model), identity=False)
        _prune_to(pruned, sizes.nonzeros)
        cut = pruned(x)
    centre = before - before.mean(0)
    error = float((after - before - (after - before).mean(0)).norm() / centre.norm())
    naive = float((cut - before - (cut - before).mean(0)).norm() / centre.norm())
    assert error < 0.5 * naive
    assert not any(module.training for module in started.children())


def _prune_to(model: nn.Module, nonzeros: int) -> None:
    """Magnitude pruning over all layers."""
    flat = torch.cat([w.C.abs().flatten() for w in factorized_weights(model)])
    threshold = float(flat.topk(nonzeros).values[-1])
    for weight in factorized_weights(model):
        weight.C.mul_(weight.C.abs() >= threshold)


def test_a_bias_takes_up_the_mean_and_norms_are_estimated_again() -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(20, 10)).eval()
    x = 3 + torch.rand(500, 20)
    started = factorize(copy.deepcopy(linear), start=DataAware([x], 400))
    with torch.no_grad():
        assert torch.allclose(started(x).mean(0), linear(x).mean(0), atol=1e-3)
    normed = nn.Sequential(nn.Linear(20, 10, bias=False), nn.BatchNorm1d(10))
    normed(x)
    momentum = normed[1].momentum
    started = factorize(normed, start=DataAware([x], 400))
    norm = started[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None and norm.momentum == momentum
    with torch.no_grad():
        assert torch.allclose(norm.running_mean, started[0](x).mean(0), atol=1e-3)


def test_the_same_batches_give_the_same_factors() -> None:
    torch.manual_seed(0)
    model, batches = small(), [torch.rand(64, 3, 8, 8)]
    first, second = (
        named_factors(factorize(copy.deepcopy(model), start=DataAware(batches, 8000)))
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_without_a_covariance_are_measured_by_themselves() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.out = nn.GRU(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.out(self.gru(x)[0][-1])
            return output

    torch.manual_seed(0)
    model = Recurrent()
    assert list(input_covariances(model, [torch.rand(5, 4, 6)])) == ["out.weight"]
    started = factorize(model, start=DataAware([torch.rand(5, 4, 6)], 1500))
    assert all(
        bool(weight.C.any()) or bool(weight.U.any()) for weight in factorized_weights(started)
    )
    assert started(torch.rand(5, 4, 6)).shape == (4, 3)
