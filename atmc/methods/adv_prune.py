"""A robust net pruned once, by magnitude over all layers, then trained on under attack.

The baseline "AP" of Gui et al., NeurIPS 2019. Codebooks come at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from atmc.methods.base import Method, Schedule
from atmc.stages import LevelStage, MaskedStage, Target, prune_by_magnitude
from atmc.training import Stage


def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """Prune and train on; then the levels."""
    return [
        MaskedStage(schedule.epochs, schedule.lr, target, prune_by_magnitude),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]


METHOD = Method("adv-prune", "pruned once by magnitude, then trained on under attack", stages)
