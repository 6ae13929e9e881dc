"""Multiply-adds against loops that do each of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from atmc import models
from atmc.compaction.cost import count


def slow(layer: nn.Module, x: Tensor) -> int:
    """One by one: for every output, every weight that it reads, padding included."""
    shape = layer(x).shape[1:]
    if isinstance(layer, nn.Linear):
        return sum(layer.in_features for _ in itertools.product(*map(range, shape)))
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d))
    if isinstance(layer, nn.ConvTranspose2d):  # every input goes to so many outputs
        inputs = itertools.product(*map(range, x.shape[1:]))
        read = layer.out_channels // layer.groups * math.prod(layer.kernel_size)
        return sum(read for _ in inputs)
    total = 0
    for channel, *_ in itertools.product(*map(range, shape)):
        group = channel // (layer.out_channels // layer.groups)
        members = [
            i for i in range(layer.in_channels) if i // (layer.in_channels // layer.groups) == group
        ]
        for _ in itertools.product(members, *map(range, layer.kernel_size)):
            total += 1
    return total


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, (3, 2), stride=2, padding=1), (3, 7, 6)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5)),
        (nn.Conv2d(5, 10, 3, groups=5, dilation=2), (5, 6, 6)),
        (nn.Conv1d(2, 3, 4), (2, 9)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 3, 3)),
        (nn.Linear(7, 5), (7,)),
        (nn.Linear(7, 5, bias=False), (3, 7)),
    ],
)
def test_one_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    cost = count(layer, shape)
    assert cost.multiply_adds == slow(layer, torch.rand(1, *shape))
    assert cost.parameters == sum(value.numel() for value in layer.parameters())


def test_what_is_called_twice_counts_twice_and_a_tied_weight_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.one(self.one(self.two(x)))
            return out

    cost = count(Twice(), (4,))
    assert (cost.multiply_adds, cost.parameters) == (48, 24)


def test_attention_counts_its_products() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.heads(x, x, x, need_weights=False)[0]
            return out

    tokens = 5
    projections, scores = 4 * tokens * 6 * 6, 2 * tokens * tokens * 6
    assert count(Attention().eval(), (tokens, 6)).multiply_adds == projections + scores


@pytest.mark.parametrize(
    ("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)], ids=lambda value: str(value)
)
def test_recurrent_layers_count_a_product_a_step(layer: type[nn.RNNBase], gates: int) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(4, 5, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)[0]
            return out

    steps = 7
    wanted = 2 * steps * gates * (4 * 5 + 5 * 5)
    assert count(Last().eval(), (steps, 4)).multiply_adds == wanted


def test_a_bilinear_layer_counts_a_product_for_every_weight() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(3, 3, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x, x)
            return out

    assert count(Squared(), (3,)).multiply_adds == 3 * 3 * 5


def test_lenet() -> None:
    cost = count(models.create("lenet5"), (1, 28, 28))
    assert cost.multiply_adds == 24 * 24 * 500 + 8 * 8 * 25_000 + 400_000 + 5_000
    assert cost.parameters == 430_500 + 580
