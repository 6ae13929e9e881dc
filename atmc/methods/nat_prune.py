"""Magnitude pruning and rounding with no attack anywhere: what robustness is lost to.

A naturally trained net is pruned once, to the largest weights that the budget holds, trained
on with the mask, rounded to codebooks, and its levels are trained on: all on clean inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from atmc.methods.base import Method, Schedule
from atmc.stages import CompressStage, LevelStage, Target
from atmc.training import Stage


def _stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    prune = CompressStage(
        schedule.epochs,
        schedule.lr,
        target,
        importance="magnitude",
        shrink=0.0,
        prune_only=True,
        state_dtype=schedule.state_dtype,
    )
    return [prune, LevelStage(schedule.level_epochs, schedule.lr / 2, target)]


METHOD = Method("nat-prune", attacked=False, stages=_stages)
