"""One stage of training: its structure, its optimizer, its schedules and its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from atmc.training.optimization import Average, Optimization

EXAMPLES = 8  # inputs that a stage sees before it starts

# On bounds, the share of the warm-up before ε rises. If it rose from the first step on, constant
# logits would be best at the bounds of an untrained network, and many networks never leave them.
_PLAIN = 0.2


class Stage:
    """One stage of training, which a method subclasses.

    ``reshape`` changes the structure alone, never depending on values, so that a resumed run can
    repeat it before the model's state is loaded.

    Args:
        epochs: passes over the loader.
        lr: peak learning rate.
        warmup: share of the stage over which ε rises, 0 to 1; see ``eps_scale``.
    """

    name = "stage"

    def __init__(self, epochs: int, lr: float, warmup: float = 0.0) -> None:
        self.epochs = epochs
        self.lr = lr
        self.warmup = warmup
        # Known before start():
        self.total_steps = 0
        self.example = torch.empty(0)  # a few inputs of the loader, (n, ...)
        self.batch_size = 1
        self.bounded = False  # whether training is on interval bounds
        self.gradients = 1  # passes of the batch, forward and backward, in a step
        self.optimization = Optimization()
        # Of a checkpoint whose model start() has: its state_dict(). None for a fresh start.
        self.resumed: dict[str, Any] | None = None
        self.sample: Callable[[int], list[Tensor]] = lambda count: []  # inputs, in batches
        # From start() to finish(), of stages that take one:
        self.average: Average | None = None

    def reshape(self, model: nn.Module) -> None:
        """Bring the model into this stage's structure (factorize it, say)."""

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of this stage."""
        return self.optimization.build(model, self.lr)

    def set_mode(self, model: nn.Module) -> None:
        """Bring the model into the mode in which it is trained."""
        model.train()

    def new_average(self, model: nn.Module) -> Average | None:
        """The average of the weights, from now on; None for a stage that takes none.

        A stage that changes which entries are nonzero takes none: an average has the nonzeros of
        all its steps.
        """
        return None

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model holds the averaged weights, where the stage takes an average."""
        return nullcontext() if self.average is None else self.average.applied()

    def eps_scale(self, progress: float) -> float:
        """ε over its full value: a linear warm-up over the first ``warmup`` of the stage.

        In training on bounds ε stays zero for the first fifth of it.
        """
        if self.warmup <= 0:
            return 1.0
        share = min(1.0, progress / self.warmup)
        return max(0.0, (share - _PLAIN) / (1 - _PLAIN)) if self.bounded else share

    def lr_scale(self, progress: float) -> float:
        """The rate over its peak."""
        return self.optimization.lr_scale(progress)

    def penalty(self) -> Tensor | None:
        """A term that the optimizer adds to the loss."""
        return None

    def after_step(self, step: int) -> None:
        """Called after every step; ``step`` counts from 1."""

    def finish(self, model: nn.Module) -> None:
        """Called once when the last step is done."""

    def measure(self) -> dict[str, int]:
        """Figures for the progress line: nonzeros, file bits."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed stage needs besides model and optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
