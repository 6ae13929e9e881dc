"""What a method is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from atmc.stages import Target
from atmc.training import Stage


@dataclass(frozen=True)
class Schedule:
    """Lengths and rates that a recipe is given.

    Args:
        epochs: of the stage that compresses.
        level_epochs: of the stage that trains levels, biases and norms alone.
        lr: peak learning rate.
        state_dtype: of ADMM's duplicates and duals, None for that of the factors.
    """

    epochs: int
    level_epochs: int
    lr: float
    state_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Method:
    """A way to reach the budget.

    Args:
        name: as on the command line.
        attacked: whether the model is attacked while it is trained, its dense start included.
        stages: the recipe after the dense start.
    """

    name: str
    attacked: bool
    stages: Callable[[Target, Schedule], Sequence[Stage]]
