"""The dense start as it is: adversarial training alone, the line that others are held against.

32 bits a weight unless fewer are asked for; then codebooks are all the compression there is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atmc.accounting import FLOAT_BITS
from atmc.factorization import factorize
from atmc.methods.base import Method, Schedule
from atmc.stages import LevelStage, MaskedStage, Target
from atmc.stages.closing import pruned_bits
from atmc.training import Stage


def _stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    epochs = 0 if target.bits == FLOAT_BITS else schedule.level_epochs
    return [MaskedStage(0, schedule.lr, target), LevelStage(epochs, schedule.lr / 2, target)]


def _least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
    return pruned_bits(factorize(model), target, x, {})


METHOD = Method(
    "dense",
    "not compressed: the dense start itself",
    _stages,
    least=_least,
    auto_bits=FLOAT_BITS,
    bounded=False,
)
