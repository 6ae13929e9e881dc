"""Your own model on the command line, which calls ``net``:

atmc compress --model examples/own_model.py:net --budget-bits 3kB --output runs/own
atmc evaluate runs/own/model.atmc --model examples/own_model.py:net --attack pgd-40
atmc export runs/own/model.atmc --model examples/own_model.py:net --output own.onnx
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """For digits of 1 × 8 × 8 in [0, 1]; it normalizes its inputs, so that ε is in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.one = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem((x - 0.3) / 0.4))
        x = F.relu(x + self.two(F.relu(self.norm(self.one(x)))))
        logits: Tensor = self.head(torch.flatten(F.max_pool2d(x, 2), 1))
        return logits


def net() -> nn.Module:
    return Residual()
