"""What a method is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atmc.methods.stages import Target
from atmc.training import Stage


@dataclass(frozen=True)
class Schedule:
    """Lengths and rates that a recipe is given.

    Args:
        epochs: of the stage that compresses.
        level_epochs: of the stage that trains levels, biases and norms alone.
        lr: peak learning rate.
    """

    epochs: int
    level_epochs: int
    lr: float


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
