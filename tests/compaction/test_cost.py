"""Multiply-adds against loops that do each of them; latency; both of a network and its compact."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atmc import models
from atmc.compaction import compact
from atmc.compaction.cost import count, latencies, measure

from .compaction_builders import decoded


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


def test_runners_are_timed_in_turns_and_slow_ones_less_often() -> None:
    order: list[str] = []
    x = torch.rand(1, 2)

    def runner(name: str) -> Any:
        def run(given: Tensor) -> Tensor:
            assert given is x and not torch.is_grad_enabled()
            order.append(name)
            return given

        return run

    times = latencies([runner("a"), runner("b")], x, seconds=0.0)
    assert len(times) == 2 and min(times) >= 0
    assert order == ["a", "b"] * 6  # one to warm up, five to be measured
    order.clear()
    latencies([runner("a"), runner("b")], x, seconds=60.0)
    assert order == ["a", "b"] * 110


def test_the_cost_of_a_network_and_of_its_compact_one(capsys: pytest.CaptureFixture[str]) -> None:
    model, artifact = decoded(3, lambda factors: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    report = measure(model, (3, 9, 9), artifact)
    assert report["error"] is None
    assert report["thin"] == ["0", "3", "6", "8"]
    smaller = compact(model, (3, 9, 9), artifact).model
    for name, network in (("dense", model), ("compact", smaller)):
        cost = count(network, (3, 9, 9))
        assert report[name]["parameters"] == cost.parameters
        assert report[name]["multiply_adds"] == cost.multiply_adds
        assert report[name]["latency_ms"] > 0
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert capsys.readouterr() == ("", "")


def test_the_cost_of_a_network_in_another_layout_and_type() -> None:
    model, artifact = decoded(3, lambda factors: None)
    wanted = measure(model, (3, 9, 9), artifact)
    model = model.double().to(memory_format=torch.channels_last)
    report = measure(model, (3, 9, 9), artifact)
    assert report["compact"]["multiply_adds"] == wanted["compact"]["multiply_adds"]
    assert report["compact"]["latency_ms"] > 0
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore


class Branches(nn.Sequential):
    """Takes another way for dark inputs, so that it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x if x.mean() > 0.1 else 2 * x)
        return out


class Fails(nn.Sequential):
    """Needs another processor than this."""

    def forward(self, x: Tensor) -> Tensor:
        print("hm")
        raise AttributeError("only on\nthat device")


def test_what_cannot_be_measured_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, artifact = decoded(3, lambda factors: None)
    report = measure(Branches(*plain), (3, 9, 9), artifact)
    cost = count(plain, (3, 9, 9))
    assert report["dense"] == {**cost._asdict(), "latency_ms": None}
    assert report["compact"] is report["thin"] is None
    assert "cannot be compacted, as torch.fx cannot trace it" in report["error"]
    report = measure(Fails(*plain), (3, 9, 9), artifact)
    error = "only on"
    assert report == {"dense": None, "compact": None, "thin": None, "error": error}
    assert capsys.readouterr() == ("", "")

    def fail(*_: object) -> list[float]:
        assert torch.get_num_threads() == 1
        raise RuntimeError("no clock")

    monkeypatch.setattr("atmc.compaction.cost.latencies", fail)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    report = measure(plain, (3, 9, 9), artifact)
    assert report["error"] == "no clock" and len(report["thin"]) == 4
    assert report["compact"]["multiply_adds"] < report["dense"]["multiply_adds"]
    assert report["compact"]["latency_ms"] is report["dense"]["latency_ms"] is None
    assert torch.get_num_threads() == 3
    torch.set_num_threads(threads)
