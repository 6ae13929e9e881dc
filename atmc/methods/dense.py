"""Adversarial training alone: the baseline without compression.

32 bits a weight by default; with fewer, codebooks are the only compression.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atmc.factorization.layers import dense_part, factorize
from atmc.methods.base import Schedule, register
from atmc.methods.closing.shares import pruned_bits
from atmc.methods.closing.target import Target
from atmc.methods.levels import LevelStage
from atmc.methods.magnitude import MaskedStage
from atmc.quantization.rates import FLOAT_BITS
from atmc.training.optimization import Average
from atmc.training.stage import Stage


class DenseStage(Stage):
    """Adversarial training of the dense model, ε warmed up."""

    name = "dense"

    def new_average(self, model: nn.Module) -> Average:
        """Of all weights, and of the norms' running statistics."""
        return Average(list(dense_part(model).values()), self.optimization.ema)


def least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
    """The size of the file with every weight."""
    return pruned_bits(factorize(model, identity=False), target, x, {})


@register("dense", least=least, auto_bits=FLOAT_BITS, bounded=False)
def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """Nothing is pruned; levels are trained where there are any."""
    epochs = 0 if target.bits == FLOAT_BITS else schedule.level_epochs
    return [MaskedStage(0, schedule.lr, target), LevelStage(epochs, schedule.lr / 2, target)]
