"""The loss that training minimizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.attacks import registry
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
    assert teacher.training  # as before; it is asked in eval mode
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


# ---- TRADES


def plain_trades(model: nn.Module, x: Tensor, adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """The mean over examples of CE(x, y) + β Σ_c p_c (log p_c - log q_c), written out."""
    p, q = model(x).softmax(1), model(adv).softmax(1)
    total = torch.zeros(())
    for i in range(len(y)):
        total = total - p[i, y[i]].log()
        for c in range(p.shape[1]):
            total = total + beta * p[i, c] * (p[i, c].log() - q[i, c].log())
    return total / len(y)


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_the_loss_and_gradient_of_trades_are_those_of_its_formula(beta: float) -> None:
    x, y = examples()
    adv = (x + 0.1 * torch.randn(x.shape)).clamp(0, 1)
    model = net().eval()
    parameters = list(model.parameters())
    loss, logits = Objective(eps=0.1, trades_beta=beta).loss(model, x, adv, y)
    assert torch.equal(logits, model(adv))
    expected = plain_trades(model, x, adv, y, beta)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distill", [0.0, 0.5, 1.0])
def test_a_teacher_shares_the_clean_part_of_trades(distill: float) -> None:
    x, y = examples()
    adv = (x + 0.1 * torch.randn(x.shape)).clamp(0, 1)
    model = net().eval()
    torch.manual_seed(8)
    teacher = Net().eval()
    with torch.no_grad():
        clean, logits = model(x), model(adv)
        hard_and_soft = plain_loss(clean, clean, y, teacher(x), 1.0, distill)
        apart = plain_trades(model, x, adv, y, 6.0) - plain_trades(model, x, adv, y, 0.0)
    objective = Objective(eps=0.1, trades_beta=6.0, teacher=teacher, distill=distill)
    loss, shown = objective.loss(model, x, adv, y)
    assert float(loss.detach()) == pytest.approx(float(hard_and_soft + apart), abs=1e-5)
    assert torch.equal(shown, logits)


@pytest.mark.parametrize("unattacked", [{"eps": 0.0}, {"eps": 0.1, "train_attack": "none"}])
def test_without_an_attack_trades_is_the_loss_on_clean_inputs(unattacked: dict[str, Any]) -> None:
    """Dropout would make two predictions of the same inputs differ."""
    x, y = examples()
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    loss, logits = Objective(trades_beta=6.0, **unattacked).loss(model, x, x, y)
    assert torch.equal(loss, F.cross_entropy(logits, y))
    assert len(passes) == 1


def test_trades_under_autocast_is_formed_in_float32() -> None:
    x, y = examples()
    adv = (x + 0.1 * torch.randn(x.shape)).clamp(0, 1)
    model = net().eval()
    objective = Objective(eps=0.1, trades_beta=6.0, precision=torch.bfloat16)
    loss, logits = objective.loss(model, x, adv, y)
    assert loss.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        clean = model(x).float()
    p = clean.double().softmax(1)
    apart = (p * (p.log() - logits.double().log_softmax(1))).sum(1).mean()
    expected = F.cross_entropy(clean, y) + 6.0 * apart
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_what_trades_does_not_go_with(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"clean_weight 0\.5 does not apply to TRADES") as caught:
        Objective(eps=0.1, trades_beta=6.0, clean_weight=0.5)
    assert "\n" not in str(caught.value)
    Objective(eps=0.0, trades_beta=6.0, clean_weight=0.5)  # nothing is attacked
    labelled = registry.TrainingAttack("labelled", lambda model, x, *_, **__: x)
    monkeypatch.setitem(registry._trained, "labelled", labelled)
    with pytest.raises(ValueError, match="attack labelled does not ascend the divergence"):
        Objective(eps=0.1, trades_beta=6.0, train_attack="labelled")
