"""Prune, then SVD, then k-means, one after the other: what a unified method must beat."""

from __future__ import annotations

from collections.abc import Sequence

from atmc.methods.base import Method, Schedule
from atmc.stages import LevelStage, MaskedStage, SvdStage, Target, prune_by_magnitude
from atmc.training import Stage


def _stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    first, second = schedule.halves
    return [
        MaskedStage(first, schedule.lr, target, prune_by_magnitude, close=False),
        SvdStage(second, schedule.lr, target),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]


METHOD = Method("sequential", "pruned, then decomposed, then rounded, one by one", _stages)
