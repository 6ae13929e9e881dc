"""Training under attack, stage by stage."""

from __future__ import annotations

from atmc.training.loop import Progress, Trainer, derive
from atmc.training.objective import Objective, TrainAttack
from atmc.training.stage import Stage

__all__ = ["Objective", "Progress", "Stage", "TrainAttack", "Trainer", "derive"]
