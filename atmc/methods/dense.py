"""Adversarial training alone: the baseline without compression.

32 bits a weight by default; with fewer, codebooks are the only compression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from atmc.factorization.layers import factorize
from atmc.methods.base import Schedule, register
from atmc.methods.closing.shares import pruned_bits
from atmc.methods.closing.target import Target
from atmc.methods.levels import LevelStage
from atmc.methods.magnitude import MaskedStage
from atmc.quantization.rates import FLOAT_BITS
from atmc.training.stage import Stage, adam

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


def least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
    """The size of the file with every weight."""
    return pruned_bits(factorize(model), target, x, {})


@register("dense", least=least, auto_bits=FLOAT_BITS, bounded=False)
def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """Nothing is pruned; levels are trained where there are any."""
    epochs = 0 if target.bits == FLOAT_BITS else schedule.level_epochs
    return [MaskedStage(0, schedule.lr, target), LevelStage(epochs, schedule.lr / 2, target)]
