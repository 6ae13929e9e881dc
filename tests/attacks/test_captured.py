"""Attacks on fixed memory: what a CUDA graph would read and write, without a GPU."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from atmc.attacks import captured, gradient, n_fgsm, pgd
from atmc.attacks.folding import folded
from atmc.factorization.layers import factorize, named_factors
from atmc.messages import AtmcWarning
from atmc.training.inner_attack import InnerAttack
from atmc.training.objective import Objective


class Traced(captured._Captured):
    """As a CUDA graph: operations once recorded, run on the memory that they were recorded on."""

    def __init__(self, steps: captured.Steps, inputs: Sequence[Tensor]) -> None:
        super().__init__(steps, inputs)
        self.traced = make_fx(steps)(*self.inputs)
        CAPTURES.append(len(inputs[0]))

    def __call__(self, steps: captured.Steps, inputs: Sequence[Tensor]) -> Tensor:
        for memory, value in zip(self.inputs, inputs, strict=True):
            memory.copy_(value)
        REPLAYS.append(len(inputs[0]))
        output: Tensor = self.traced(*self.inputs)
        return output


CAPTURES: list[int] = []
REPLAYS: list[int] = []


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "_captures", lambda x: True)
    monkeypatch.setattr(captured, "_Captured", Traced)
    monkeypatch.setattr(gradient, "_compiled", lambda device: gradient._ascent)
    CAPTURES.clear()
    REPLAYS.clear()


def network(norms: bool = True) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if norms else nn.Identity()
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()
    )
    return model.append(nn.Linear(64, 5))


def batch(seed: int, count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 5


def move(model: nn.Module, seed: int) -> None:
    """A step of training, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(1 + 0.2 * noise).add_(0.05 * noise)


@pytest.mark.parametrize("attack", ["pgd", "n-fgsm"])
@pytest.mark.parametrize("factorized", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_replays_follow_inputs_weights_and_eps(attack: str, factorized: bool, norms: bool) -> None:
    model = network(norms)
    if factorized:
        factorize(model)
    for step in range(5):
        x, y = batch(step)
        results = []
        for compiled in (False, True):
            torch.manual_seed(step)
            objective = Objective(0.1, 3, train_attack=attack, compiled=compiled)
            results.append(InnerAttack(objective)(model, x, y, (step + 1) / 5, 1))
        torch.testing.assert_close(*results)
        move(model, step)
    assert (CAPTURES, REPLAYS) == ([12], [12] * 5)
    assert all(p.grad is None for p in model.parameters())


def test_without_folding_too_and_for_other_losses() -> None:
    model = factorize(network())
    for step in range(3):
        x, y = batch(step)
        for loss in ("ce", "ce", "margin", "margin"):
            results = [
                pgd(model, x, y, 0.1, 2, random_start=False, loss=loss, compiled=compiled)  # type: ignore[arg-type]
                for compiled in (False, True)
            ]
            torch.testing.assert_close(*results)
        move(model, step)
    assert (CAPTURES, REPLAYS) == ([12, 12], [12] * 12)


def test_the_last_batch_of_an_epoch_is_not_captured() -> None:
    model = network()
    for epoch in range(3):
        for count in (12, 12, 12, 5):
            x, y = batch(epoch, count)
            plain, ours = (
                pgd(model, x, y, 0.1, 2, random_start=False, compiled=c) for c in (False, True)
            )
            torch.testing.assert_close(ours, plain)
    assert (CAPTURES, REPLAYS) == ([12], [12] * 9)
    for _ in range(2):  # a smaller batch that stays
        x, y = batch(0, 7)
        pgd(model, x, y, 0.1, 2, compiled=True)
    assert CAPTURES == [12, 7]


def test_the_weights_of_each_attack_lie_where_the_last_ones_lay() -> None:
    model: Any = factorize(network())
    seen: list[list[int]] = []
    values: list[Tensor] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        seen.append([m.weight.data_ptr() for m in (model[0], model[3], model[6])])
        values.append(model[0].weight.clone())

    model.register_forward_hook(look)
    x, y = batch(0)
    places = []
    for step in range(2):
        with folded(model, x):
            pgd(model, x, y, 0.1, 1 + step, compiled=True)  # a capture each: a replay has no hooks
            expected = model[0].weight
            assert expected.data_ptr() not in seen[-1]
        assert torch.equal(values[-1], expected)
        places.append(seen[-1])
        move(model, step)
    assert places[0] == places[1] and len(set(places[0])) == 3
    assert not any("weight" in module.__dict__ for module in model.modules())


def test_memory_that_moves_is_captured_anew_and_then_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captured, "_MOVES", 3)
    model: Any = network(norms=False)
    x, y = batch(0)

    def same() -> None:
        plain, ours = (
            pgd(model, x, y, 0.1, 2, random_start=False, compiled=c) for c in (False, True)
        )
        torch.testing.assert_close(ours, plain)

    for _ in range(2):
        model[0].weight.data = model[0].weight.data * 1.5
        for _ in range(3):
            same()
    assert len(CAPTURES) == 2  # one for each move
    model[0].weight.data = model[0].weight.data * 1.5
    same()
    model[0].weight.data = model[0].weight.data * 1.5
    with pytest.warns(AtmcWarning, match=r"cannot be compiled .*RuntimeError.*compiled=True"):
        same()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same()
    assert len(CAPTURES) == 3


@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_cannot_be_compiled_runs_as_it_is_with_one_warning(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise NotImplementedError("no compiler\nfor this")

    monkeypatch.setattr(captured, "_captures", lambda x: on_gpu)
    monkeypatch.setattr(gradient, "_compiled", lambda device: fail)
    model = factorize(network())
    x, y = batch(0)
    for attack in (pgd, n_fgsm):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                results = [
                    attack(model, x, y, 0.1, generator=torch.Generator().manual_seed(1), compiled=c)
                    for c in (False, True)
                ]
                torch.testing.assert_close(*results)
        messages = [str(each.message) for each in caught]
        assert len(messages) == (attack is pgd)
        assert all("\n" not in m and "(NotImplementedError)" in m for m in messages)


def test_an_error_of_the_model_is_raised_and_compiling_goes_on() -> None:
    model = network()
    x, y = batch(0)
    for _ in range(2):
        with pytest.raises(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("error")
            pgd(model, x[:, :, :5], y, 0.1, 1, compiled=True)
    for _ in range(2):
        pgd(model, x, y, 0.1, 1, compiled=True)
    assert CAPTURES == [12]


def test_captures_go_with_their_model() -> None:
    model = factorize(network())
    x, y = batch(0)
    for _ in range(2):
        pgd(model, x, y, 0.1, 1, compiled=True)
    assert CAPTURES and named_factors(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    # What is traced here knows no model; nor does a CUDA graph.
    assert gone() is None
