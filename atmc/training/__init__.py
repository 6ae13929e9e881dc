"""Training under attack, stage by stage."""

from __future__ import annotations

from atmc.training.inner_attack import InnerAttack
from atmc.training.loop import Progress, Trainer, derive
from atmc.training.objective import Objective
from atmc.training.stage import Stage

__all__ = ["InnerAttack", "Objective", "Progress", "Stage", "Trainer", "derive"]
