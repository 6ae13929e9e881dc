"""The objective's loss and attacks, and the guard of single-step training."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.training.cheap_attacks import Guard, Visits
from atmc.training.objective import Objective


class Net(nn.Module):
    """A convolution, a norm and a linear layer, for 1 x 8 x 8 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.norm(self.conv(x))).flatten(1))
        return out


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def examples(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 4, (count,), generator=generator)


def test_the_attack_stays_within_the_scaled_eps() -> None:
    x, y = examples()
    model = net()
    for scale in (0.1, 0.5, 1.0):
        adv = Objective(eps=0.2, steps=4).attack(model, x, y, scale)
        assert float((adv - x).abs().max()) == pytest.approx(0.2 * scale, abs=1e-6)
        assert float(adv.min()) >= 0 and float(adv.max()) <= 1
    for eps, scale in ((0.2, 0.0), (0.0, 1.0)):
        assert Objective(eps=eps).attack(model, x, y, scale) is x


# ---- single-step training and its guard


class Scripted(Objective):
    """Attacks that say which one was called; PGD breaks every example while ``weak``."""

    weak = False
    calls: list[str]

    def single_step(self, model: nn.Module, x: Tensor, y: Tensor, scale: float) -> Tensor:
        self.calls.append(f"single {len(y)}")
        return x

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, scale: float) -> Tensor:
        self.calls.append(f"pgd {len(y)}")
        return -x if self.weak else x


def scripted(train_attack: str = "n-fgsm") -> Scripted:
    objective = Scripted(eps=0.1, train_attack=train_attack)  # type: ignore[arg-type]
    object.__setattr__(objective, "calls", [])
    return objective


class Sign(nn.Module):
    """Class 1 where the input is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-x, x], 1)


def test_the_guard_turns_to_pgd_after_a_collapse_and_back() -> None:
    objective = scripted()
    guard = Guard(objective, every=5, examples=3, cure=4)
    x, y = torch.ones(8, 1), torch.ones(8, dtype=torch.int64)
    used = []
    for step in range(16):
        object.__setattr__(objective, "weak", 5 <= step < 9)
        objective.calls.clear()
        guard.attack(Sign(), x, y, 1.0, step)
        if objective.calls[0] == "single 8" and step % 5 == 0:
            assert objective.calls[1] == "pgd 3", step  # the look
        used.append("pgd 8" if "pgd 8" in objective.calls else "single 8")
    assert used == ["single 8"] * 5 + ["pgd 8"] * 4 + ["single 8"] * 7
    assert guard.collapses == 1
    other = Guard(objective, every=5, examples=3, cure=4)
    state = {"collapses": 2, "left": 3, "visits": {"kept": None, "seen": None}}
    other.load_state_dict(state)
    assert other.state_dict() == state
    objective.calls.clear()
    other.attack(Sign(), x, y, 1.0, 10)
    assert objective.calls == ["pgd 8"] and other.left == 2


def test_pgd_needs_no_guard() -> None:
    objective = scripted("pgd")
    object.__setattr__(objective, "weak", True)
    x, y = torch.ones(8, 1), torch.ones(8, dtype=torch.int64)
    guard = Guard(objective)
    guard.attack(Sign(), x, y, 1.0, 0)
    assert objective.calls == ["pgd 8"] and guard.collapses == 0


def test_a_single_step_follows_eps() -> None:
    x, y = examples()
    objective = Objective(eps=0.2, train_attack="n-fgsm")
    adv = objective.single_step(net(), x, y, 0.5)
    assert 0.1 < float((adv - x).abs().max()) <= 0.3 + 1e-6
    assert objective.single_step(net(), x, y, 0.0) is x


# ---- attacks that go on where they were left


def test_a_visit_starts_where_the_last_one_ended() -> None:
    x, _ = examples(6)
    visits, index = Visits(), torch.tensor([7, 0, 3, 4, 9, 2])
    torch.manual_seed(0)
    start = visits.start(x, index, 0.2)
    assert 0.15 < float((start - x).abs().max()) <= 0.2 + 1e-6  # random at first
    adv = (x + 0.2 * torch.where(x > 0.5, -1.0, 0.5)).clamp(0, 1)
    visits.keep(x, adv, index, 0.2)
    again = visits.start(x, index, 0.2)
    torch.testing.assert_close(again, adv, rtol=0, atol=0.2 / 254 + 1e-6)
    # ε has grown since: the same share of the new ball.
    wider = visits.start(x, index, 0.4)
    torch.testing.assert_close(wider, (x + 2 * (adv - x)).clamp(0, 1), rtol=0, atol=0.4 / 250)
    # An example not seen before starts at random, and the others are not forgotten.
    mixed = visits.start(x, torch.tensor([7, 0, 3, 4, 9, 12]), 0.2)
    torch.testing.assert_close(mixed[:5], again[:5])
    assert not torch.equal(mixed[5], again[5])


def test_atta_needs_to_know_which_example_is_which() -> None:
    x, y = examples()
    guard = Guard(Objective(eps=0.1, steps=1, train_attack="atta"), every=100)
    with pytest.raises(ValueError, match=r"loader give \(x, y, index\)"):
        guard.attack(net(), x, y, 0.0, 0)  # at once, not when ε has grown
    unattacked = Guard(Objective(eps=0.0, train_attack="atta"))
    assert unattacked.attack(net(), x, y, 1.0, 0) is x


def test_atta_grows_as_strong_as_pgd_by_single_steps() -> None:
    """On weights that stand still, visits of one step reach what PGD reaches."""
    x, y = examples()
    model, objective = net(), Objective(eps=0.2, steps=1, train_attack="atta")
    guard, index = Guard(objective, every=100), torch.arange(len(y))

    def loss(adv: Tensor) -> float:
        assert float((adv - x).abs().max()) <= 0.2 + 1e-6
        model.eval()
        return float(F.cross_entropy(model(adv), y).detach())

    losses = [loss(guard.attack(model, x, y, 1.0, step, index)) for step in range(1, 9)]
    several = loss(Objective(eps=0.2, steps=8).attack(model, x, y, 1.0))
    assert losses[-1] > losses[0] and losses[-1] > 0.98 * several


# ---- the loss


def plain_loss(
    logits: Tensor, clean: Tensor, y: Tensor, teacher: Tensor, clean_weight: float, distill: float
) -> Tensor:
    """Σ over both batches of weight · ((1 - d) · CE + d · KL(teacher || model)), written out."""
    total = torch.zeros(())
    for weight, outputs in ((1 - clean_weight, logits), (clean_weight, clean)):
        p = outputs.double().softmax(1)
        q = teacher.double().softmax(1)
        for i in range(len(y)):
            hard = -math.log(float(p[i, y[i]]))
            soft = sum(float(q[i, c] * (q[i, c] / p[i, c]).log()) for c in range(p.shape[1]))
            total = total + weight * ((1 - distill) * hard + distill * soft) / len(y)
    return total


@pytest.mark.parametrize("clean_weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("distill", [0.0, 0.5, 1.0])
def test_the_loss_is_its_formula(clean_weight: float, distill: float) -> None:
    x, y = examples()
    adv = (x + 0.1 * torch.randn(x.shape)).clamp(0, 1)
    model = net().eval()
    torch.manual_seed(8)
    teacher = Net()
    teacher.norm.running_mean = torch.tensor([0.1, -0.2, 0.3])
    objective = Objective(eps=0.1, clean_weight=clean_weight, teacher=teacher, distill=distill)
    loss, logits = objective.loss(model, x, adv, y)
    assert torch.equal(logits, model(adv))
    assert teacher.training  # as it was found; it is asked in eval mode
    with torch.no_grad():
        target = teacher.eval()(x)
        expected = plain_loss(model(adv), model(x), y, target, clean_weight, distill)
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_without_a_share_is_not_asked() -> None:
    class Mute(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("asked")

    x, y = examples()
    model = net().eval()
    loss, _ = Objective(eps=0.1, teacher=Mute(), distill=0.0).loss(model, x, x, y)
    assert torch.equal(loss, F.cross_entropy(model(x), y))


def test_autocast_is_of_the_layers_alone() -> None:
    x, y = examples()
    model = net().eval()
    loss, logits = Objective(eps=0.1, precision=torch.bfloat16).loss(model, x, x, y)
    assert loss.dtype == logits.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())
    assert not torch.is_autocast_enabled("cpu")
