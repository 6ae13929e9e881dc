"""Global ℓ0 projection under attack: the pruning-only ancestor of ATMC.

After every step the k largest weights of all layers together stay (Gui et al., NeurIPS 2019,
section 4); k shrinks as a cubic. Codebooks come at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from atmc.methods.base import Method, Schedule
from atmc.stages import CompressStage, LevelStage, Target
from atmc.training import Stage


def _stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    prune = CompressStage(
        schedule.epochs, schedule.lr, target, importance="magnitude", rho=0.0, prune_only=True
    )
    return [prune, LevelStage(schedule.level_epochs, schedule.lr / 2, target)]


METHOD = Method("l0", "the largest weights of all layers, projected after every step", _stages)
