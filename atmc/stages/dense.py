"""Training of the dense model."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from atmc.training import Stage, adam

DenseOptimizer = Literal["adam", "sgd"]
RateSchedule = Literal["one-cycle", "constant", "cosine"]


class DenseStage(Stage):
    """Adversarial training of the dense model, ε warmed up.

    Args:
        epochs: length.
        lr: peak rate.
        warmup: share of the stage over which ε rises.
        optimizer: "adam", or "sgd" with a momentum of 0.9.
        schedule: of the rate: "one-cycle", "constant", or "cosine" down from the peak.
    """

    name = "dense"

    def __init__(
        self,
        epochs: int,
        lr: float,
        warmup: float,
        optimizer: DenseOptimizer = "adam",
        schedule: RateSchedule = "one-cycle",
    ) -> None:
        super().__init__(epochs, lr, warmup)
        self.optimizer = optimizer
        self.schedule = schedule

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam or SGD on everything."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), self.lr, momentum=0.9)
        return adam(model.parameters(), self.lr)

    def lr_scale(self, progress: float) -> float:
        """The rate over its peak."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return super().lr_scale(progress)
