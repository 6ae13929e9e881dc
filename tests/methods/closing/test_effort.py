"""The interval of what is not a step, from sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from atmc import models
from atmc.factorization.layers import factorize, train_factors
from atmc.methods import Target
from atmc.methods.atmc import CompressStage
from atmc.methods.closing.effort import Effort, multiply_adds


def test_multiply_adds_of_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, stride=2, groups=2)
            self.up = nn.ConvTranspose2d(6, 4, 2)
            self.rows = nn.Linear(8, 5)
            self.rnn = nn.RNN(5, 5, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(torch.relu(self.conv(x)))  # (n, 6, 7, 7), then (n, 4, 8, 8)
            x = self.rows(self.rows(x.flatten(1, 2)).repeat(1, 1, 2)[..., :8])
            return self.rnn(x)[0].mean(1)

    model = factorize(Net())
    expected = 6 * 2 * 9 * 7 * 7 + 6 * 4 * 4 * 8 * 8 + 2 * 40 * 32 + 2 * 25 * 32
    assert multiply_adds(model, torch.rand(3, 4, 15, 15)) == expected


@pytest.mark.parametrize(("batch_size", "gradients"), [(1, 2), (128, 2), (128, 8), (512, 11)])
def test_what_is_no_step_takes_its_share(batch_size: int, gradients: int) -> None:
    model = factorize(models.create("resnet18-w4"))
    train_factors(model)
    effort = Effort.of(model, torch.rand(2, 3, 32, 32), batch_size, gradients)
    for share, aims in ((0.04, 1.0), (0.03, 0.5), (0.001, 2.0)):
        steps = effort.interval(share, aims)
        assert aims * effort.aim <= share * steps * effort.step
        assert steps == 1 or aims * effort.aim > share * (steps - 1) * effort.step
    # Twice the batch, twice the work, but for what every pass costs.
    twice = Effort.of(model, torch.rand(2, 3, 32, 32), 2 * batch_size, gradients)
    assert effort.step < twice.step < 2 * effort.step
    assert twice.aim == effort.aim


@pytest.mark.parametrize("total_steps", [1, 4, 30, 345, 5000])
@pytest.mark.parametrize("batch_size", [1, 64, 4096])
def test_intervals_of_a_stage(total_steps: int, batch_size: int) -> None:
    model = models.create("digits-cnn")
    stage = CompressStage(1, 1e-3, Target.of(model, 9_000, 4, None))
    stage.total_steps = total_steps
    stage.example = torch.rand(4, 1, 8, 8)
    stage.batch_size, stage.gradients = batch_size, 2
    stage.reshape(model)
    stage.start(model)
    aims = total_steps / stage._aim_interval()
    assert min(total_steps, 3) <= aims <= 51
    every = stage.optimizer.duplicate_every
    assert every == 10 or total_steps / every >= 10
    if total_steps == 5000:  # neither bound decides
        share = aims * stage.effort.aim / (total_steps * stage.effort.step)
        assert share <= 0.04
        assert math.isclose(share, 0.04, rel_tol=0.2) or aims > 49
