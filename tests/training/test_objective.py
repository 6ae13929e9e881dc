"""The loss that training minimizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
