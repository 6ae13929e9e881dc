"""Smoother gradients: the net's forward pass, and a backward pass past units that are off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.attacks.bpda import SLOPE, SmoothGradients
from atmc.attacks.gradient import n_fgsm, pgd
from atmc.models import create


def gradient(module: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_(True)
    with SmoothGradients():
        out = module(x * 1.0)  # not a leaf, so that it may be changed in place
    return out.detach(), torch.autograd.grad((out * direction).sum(), x)[0]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_relu_that_is_off_passes_a_tenth(inplace: bool) -> None:
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0])
    direction = torch.tensor([1.0, 2.0, 3.0, 4.0])
    out, slope = gradient(nn.ReLU(inplace), x, direction)
    assert torch.equal(out, x.relu())
    torch.testing.assert_close(slope, direction * torch.tensor([SLOPE, SLOPE, SLOPE, 1.0]))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "ceil"),
    [(2, None, 0, False), (3, 2, 1, False), ((2, 3), (1, 2), (1, 0), True)],
)
def test_a_pool_passes_a_tenth_of_the_mean_as_well(
    size: int | tuple[int, int], stride: int | tuple[int, int] | None,
    padding: int | tuple[int, int], ceil: bool, last: bool,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 8)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    pool = nn.MaxPool2d(size, stride, padding, ceil_mode=ceil)
    mean = nn.AvgPool2d(size, stride, padding, ceil_mode=ceil)
    direction = torch.randn_like(pool(x))
    out, slope = gradient(pool, x, direction)
    assert torch.equal(out, pool(x))
    expected = []
    for module in (pool, mean):
        leaf = x.clone().requires_grad_(True)
        expected.append(torch.autograd.grad((module(leaf) * direction).sum(), leaf)[0])
    torch.testing.assert_close(slope, expected[0] + SLOPE * expected[1])


def test_other_pools_are_left_alone() -> None:
    x = torch.randn(1, 1, 6, 6)
    for function in (
        lambda v: F.max_pool2d(v, 2, dilation=2),
        lambda v: F.max_pool2d(v, 2, return_indices=True)[0],
        lambda v: F.max_pool2d(v[0], 2),
    ):
        leaves = [x.clone().requires_grad_(True) for _ in range(2)]
        plain = function(leaves[0])
        with SmoothGradients():
            smooth = function(leaves[1])
        for out, leaf in ((plain, leaves[0]), (smooth, leaves[1])):
            out.sum().backward()
            assert leaf.grad is not None
        assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_an_attack_sees_pixels_that_pgd_does_not() -> None:
    """Where every unit is off, PGD stays where it started."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[1].bias.fill_(-4.0)
    x, y = torch.rand(8, 1, 6, 6), torch.zeros(8, dtype=torch.int64)
    blind = pgd(model, x, y, 0.2, 3, random_start=False)
    seeing = pgd(model, x, y, 0.2, 3, random_start=False, bpda=True)
    assert torch.equal(blind, x)
    assert float((seeing - x).abs().mean()) > 0.1
    assert float((seeing - x).abs().max()) <= 0.2 + 1e-6


def test_the_mode_and_the_modes_of_other_attacks_go_together() -> None:
    torch.manual_seed(0)
    model = create("lenet5-relu")
    x, y = torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,))
    for attack in (pgd, n_fgsm):
        results = [
            attack(
                model, x, y, 0.1, bpda=True, fast=fast, generator=torch.Generator().manual_seed(0)
            )
            for fast in (False, True)
        ]
        assert float((results[0] - results[1]).abs().gt(1e-4).float().mean()) < 0.02
