"""ATMC: pruning, factorization and quantization as one problem, under attack.

Gui et al., "Model Compression with Adversarial Robustness: A Unified Optimization Framework",
NeurIPS 2019; here under a budget of file bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from atmc.methods.base import Method, Schedule
from atmc.stages import CompressStage, LevelStage, Target
from atmc.training import Stage


def _stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    return [
        CompressStage(
            schedule.epochs,
            schedule.lr,
            target,
            importance="effect-per-bit",
            state_dtype=schedule.state_dtype,
        ),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]


METHOD = Method("atmc", "pruned, factorized and quantized as one problem, under attack", _stages)
