"""Low rank under attack: W = U V, one budget for the ranks of all layers.

The baseline "ALR" of Gui et al., NeurIPS 2019. Codebooks come at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atmc.methods.base import Method, Schedule
from atmc.stages import LevelStage, LowRankStage, Target
from atmc.training import Stage


def _stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    return [
        LowRankStage(schedule.epochs, schedule.lr, target),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]


def _least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
    return LowRankStage(0, 0.0, target).least_bits(model, x)


METHOD = Method("low-rank", "two thin matrices a layer, under attack", _stages, least=_least)
