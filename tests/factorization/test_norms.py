import copy
from typing import cast

import torch
from torch import Tensor, nn

from atmc.factorization.norms import (
    estimate_statistics,
    fold_statistics,
    foldable_norms,
    folded_statistics,
    statistics_names,
)
from atmc.optim.codebooks import round_dense_part


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    )
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    for _ in range(3):
        model(2 * torch.rand(20, 3, 8, 8))
    return model.eval()


@torch.no_grad()
def test_a_folded_model_computes_the_same_in_eval_mode() -> None:
    model, x = network(), torch.rand(5, 3, 8, 8)
    before = model(x)
    stored = folded_statistics(model)
    assert torch.equal(model(x), before)  # nothing is changed
    fold_statistics(model)
    assert torch.allclose(model(x), before, atol=1e-5)
    for name in statistics_names(model):
        value = model.state_dict()[name]
        assert torch.equal(value, torch.full_like(value, float(name.endswith("var"))))
    again = folded_statistics(model)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_norms_that_cannot_be_folded_are_left_alone() -> None:
    class Own(nn.BatchNorm1d):
        pass

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good = nn.BatchNorm1d(3)
            self.plain = nn.BatchNorm1d(3, affine=False)
            self.untracked = nn.BatchNorm1d(3, track_running_stats=False)
            self.own = Own(3)
            self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.second.weight = self.first.weight
            self.layer = nn.LayerNorm(3)

    model = Net()
    assert list(foldable_norms(model)) == ["good"]
    assert statistics_names(model) == ["good.running_mean", "good.running_var"]
    model.own.running_mean.fill_(2.0)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.good.running_mean.fill_(1.0)  # type: ignore[union-attr]
    fold_statistics(model)
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert changed == ["good.weight", "good.bias"] or changed == ["good.bias"]


@torch.no_grad()
def test_a_channel_that_never_varies_is_its_shift() -> None:
    """Its scale, 300 times that of others, would leave the others few of the values of a file."""
    model, x = network(), 2 * torch.rand(20, 3, 8, 8)
    cast(nn.Conv2d, model[0]).weight[2] = 0
    estimate_statistics(model, [x, 2 * torch.rand(20, 3, 8, 8)])
    before = model(x)
    scales = folded_statistics(model)["1.weight"]
    assert scales[2] == 0 and (scales != 0).sum() == 5 and float(scales.abs().max()) < 20
    fold_statistics(model)
    assert torch.allclose(model(x), before, atol=1e-5)
    written = copy.deepcopy(model)
    round_dense_part(written, 6)
    assert (written(x) - before).std() < 0.1 * before.std()


@torch.no_grad()
def test_statistics_are_those_of_the_batches() -> None:
    model = network()
    other = copy.deepcopy(model)
    batches = [3 + torch.rand(10, 3, 8, 8) for _ in range(4)]
    estimate_statistics(model, batches)
    x = torch.cat(batches)
    first = model[0](x)
    norm = model[1]
    assert torch.allclose(norm.running_mean, first.mean((0, 2, 3)), atol=1e-4)
    expected = torch.stack([model[0](b).var((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(norm.running_var, expected, rtol=1e-4)
    assert norm.momentum == 0.1 and not any(module.training for module in model.modules())
    before: dict[str, Tensor] = {n: v.clone() for n, v in other.state_dict().items()}
    estimate_statistics(other, [])
    assert all(torch.equal(v, before[n]) for n, v in other.state_dict().items())
