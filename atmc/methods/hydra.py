"""HYDRA: pruning by importance scores learned under the robust loss, then fine-tuning.

Sehwag et al., NeurIPS 2020: every layer by the same share. Codebooks come at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atmc.methods.base import Method, Schedule
from atmc.stages import LevelStage, MaskedStage, ScoreStage, Target
from atmc.training import Stage


def _stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    first, second = schedule.halves
    return [
        ScoreStage(first, target),
        MaskedStage(second, schedule.lr, target),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]


def _least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
    return ScoreStage(0, target).least_bits(model, x)


METHOD = Method("hydra", "pruned by scores learned under the robust loss", _stages, least=_least)
