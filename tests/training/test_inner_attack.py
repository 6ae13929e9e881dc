"""The inner attack of a training step: its strength, ATTA's memory, the guard against collapse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.attacks import registry
from atmc.attacks.registry import TrainingAttack, training_attack
from atmc.training import inner_attack
from atmc.training.inner_attack import InnerAttack, StartMemory
from atmc.training.objective import Objective


def net() -> nn.Module:
    """For 1 x 8 x 8 inputs."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)
    )


def examples(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 4, (count,), generator=generator)


def test_the_attack_stays_within_the_scaled_eps() -> None:
    x, y = examples()
    model = net()
    for scale in (0.1, 0.5, 1.0):
        adv = InnerAttack(Objective(eps=0.2, steps=4))(model, x, y, scale, 0)
        assert float((adv - x).abs().max()) == pytest.approx(0.2 * scale, abs=1e-6)
        assert float(adv.min()) >= 0 and float(adv.max()) <= 1
    for eps, scale in ((0.2, 0.0), (0.0, 1.0)):
        assert InnerAttack(Objective(eps=eps))(model, x, y, scale, 0) is x


def test_an_unknown_attack_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown attack 'nfgsm': did you mean 'n-fgsm'\?"):
        InnerAttack(Objective(eps=0.1, train_attack="nfgsm"))


# ---- single-step training and its guard


class Scripted(InnerAttack):
    """Attacks that record which one was called; PGD breaks every example while ``weak``."""

    def __init__(self, train_attack: str = "n-fgsm") -> None:
        super().__init__(Objective(eps=0.1, train_attack=train_attack))
        self.weak = False
        self.calls: list[str] = []

    def _run(
        self, kind: TrainingAttack, model: nn.Module, x: Tensor, y: Tensor, *settings: Any
    ) -> Tensor:
        self.calls.append(f"{kind.name} {len(y)}")
        return -x if self.weak and kind.name == "pgd" else x


class Sign(nn.Module):
    """Class 1 where the input is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-x, x], 1)


def test_the_guard_turns_to_pgd_after_a_collapse_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_attack, "CHECK_EVERY", 5)
    monkeypatch.setattr(inner_attack, "CHECK_EXAMPLES", 3)
    monkeypatch.setattr(inner_attack, "CURE_STEPS", 4)
    attack = Scripted()
    x, y = torch.ones(8, 1), torch.ones(8, dtype=torch.int64)
    used = []
    for step in range(16):
        attack.weak = 5 <= step < 9
        attack.calls.clear()
        attack(Sign(), x, y, 1.0, step)
        if attack.calls[0] == "n-fgsm 8" and step % 5 == 0:
            assert attack.calls[1] == "pgd 3", step  # the check
        used.append("pgd 8" if "pgd 8" in attack.calls else "n-fgsm 8")
    assert used == ["n-fgsm 8"] * 5 + ["pgd 8"] * 4 + ["n-fgsm 8"] * 7
    assert attack.guard.collapses == 1
    other = Scripted()
    state = {"collapses": 2, "left": 3, "visits": {"kept": None, "seen": None}}
    other.load_state_dict(state)
    assert other.state_dict() == state
    other(Sign(), x, y, 1.0, 10)
    assert other.calls == ["pgd 8"] and other.state_dict()["left"] == 2


def test_pgd_needs_no_guard() -> None:
    attack = Scripted("pgd")
    attack.weak = True
    x, y = torch.ones(8, 1), torch.ones(8, dtype=torch.int64)
    attack(Sign(), x, y, 1.0, 0)
    assert attack.calls == ["pgd 8"] and attack.guard.collapses == 0


def test_a_single_step_follows_eps() -> None:
    x, y = examples()
    attack = InnerAttack(Objective(eps=0.2, train_attack="n-fgsm"))
    adv = attack(net(), x, y, 0.5, 1)
    assert 0.1 < float((adv - x).abs().max()) <= 0.3 + 1e-6
    assert attack(net(), x, y, 0.0, 1) is x


# ---- attacks that continue


def test_a_visit_starts_where_the_last_one_ended() -> None:
    x, _ = examples(6)
    memory, index = StartMemory(), torch.tensor([7, 0, 3, 4, 9, 2])
    torch.manual_seed(0)
    start = memory.starts(x, index, 0.2)
    assert 0.15 < float((start - x).abs().max()) <= 0.2 + 1e-6  # random at first
    adv = (x + 0.2 * torch.where(x > 0.5, -1.0, 0.5)).clamp(0, 1)
    memory.store(x, adv, index, 0.2)
    again = memory.starts(x, index, 0.2)
    torch.testing.assert_close(again, adv, rtol=0, atol=0.2 / 254 + 1e-6)
    # ε has grown since: the same share of the new ball.
    wider = memory.starts(x, index, 0.4)
    torch.testing.assert_close(wider, (x + 2 * (adv - x)).clamp(0, 1), rtol=0, atol=0.4 / 250)
    # An example not seen before starts at random, and the others are not forgotten.
    mixed = memory.starts(x, torch.tensor([7, 0, 3, 4, 9, 12]), 0.2)
    torch.testing.assert_close(mixed[:5], again[:5])
    assert not torch.equal(mixed[5], again[5])


def test_atta_needs_to_know_which_example_is_which() -> None:
    x, y = examples()
    attack = InnerAttack(Objective(eps=0.1, steps=1, train_attack="atta"))
    with pytest.raises(ValueError, match=r"loader give \(x, y, index\)"):
        attack(net(), x, y, 0.0, 0)  # at once, not when ε has grown
    unattacked = InnerAttack(Objective(eps=0.0, train_attack="atta"))
    assert unattacked(net(), x, y, 1.0, 0) is x


def test_atta_grows_as_strong_as_pgd_by_single_steps() -> None:
    """On weights that stand still, visits of one step reach what PGD reaches."""
    x, y = examples()
    model = net()
    attack = InnerAttack(Objective(eps=0.2, steps=1, train_attack="atta"))
    index = torch.arange(len(y))

    def loss(adv: Tensor) -> float:
        assert float((adv - x).abs().max()) <= 0.2 + 1e-6
        model.eval()
        return float(F.cross_entropy(model(adv), y).detach())

    losses = []
    for step in range(1, 9):
        losses.append(loss(attack(model, x, y, 1.0, step, index)))
        attack.remember()
    several = loss(InnerAttack(Objective(eps=0.2, steps=8))(model, x, y, 1.0, 0))
    assert losses[-1] > losses[0] and losses[-1] > 0.98 * several


# ---- TRADES


@pytest.mark.parametrize("train_attack", ["pgd", "n-fgsm", "atta"])
def test_trades_is_attacked_where_predictions_part(train_attack: str) -> None:
    """Whatever the labels are, from a prediction in eval mode; the model's mode comes back."""
    x, y = examples()
    model = net().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    objective = Objective(eps=0.2, steps=5, train_attack=train_attack, trades_beta=6.0)
    results = []
    for labels in (y, (y + 1) % 4):
        torch.manual_seed(0)
        attack = InnerAttack(objective)
        results.append(attack(model, x, labels, 1.0, 1, torch.arange(len(y))))
    assert torch.equal(*results)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        p = model(x).softmax(1)

        def apart(inputs: Tensor) -> Tensor:
            return (p * (p.log() - model(inputs).log_softmax(1))).sum(1)

        noise = (x + 0.2 * torch.randn_like(x).sign()).clamp(0, 1)
        assert bool((apart(results[0]) > apart(noise)).all())


def test_the_guard_checks_with_the_divergence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[tuple[str, Any]] = []
    for name in ("pgd", "n-fgsm"):
        kind = training_attack(name)

        def run(
            model: nn.Module, x: Tensor, *_: Any, kind: TrainingAttack = kind, **how: Any
        ) -> Tensor:
            losses.append((kind.name, how.get("loss")))
            return x

        monkeypatch.setitem(registry._trained, name, replace(kind, run=run))
    x, y = examples()
    for beta in (6.0, None):
        losses.clear()
        objective = Objective(eps=0.2, train_attack="n-fgsm", trades_beta=beta)
        InnerAttack(objective)(net(), x, y, 1.0, 0)
        loss = None if beta is None else "kl"
        assert losses == [("n-fgsm", loss), ("pgd", loss)]
