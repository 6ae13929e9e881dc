"""One stage of training: its structure, its optimizer, its schedules and its end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

EXAMPLES = 8  # inputs that a stage sees before it starts


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam, in one pass over memory where torch supports it."""
    moved = list(parameters)
    return torch.optim.Adam(moved, lr, fused=all(_fusable(p) for p in moved))


def _fusable(p: Tensor) -> bool:
    if not p.is_floating_point() or p.device.type not in ("cpu", "cuda"):
        return False
    # The one pass would also write between the entries of a view with gaps.
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(p.dim())
    return p.is_contiguous() or (last is not None and p.is_contiguous(memory_format=last))


class Stage:
    """One stage of training, which a method subclasses.

    ``reshape`` changes the structure alone, never depending on values, so that a resumed run can
    repeat it before the model's state is loaded.

    Args:
        epochs: passes over the loader.
        lr: peak learning rate.
        warmup: share of the stage over which ε rises, 0 to 1.
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
        self.gradients = 1  # passes of the batch, forward and backward, in a step

    def reshape(self, model: nn.Module) -> None:
        """Bring the model into this stage's structure (factorize it, say)."""

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of this stage."""
        return adam(model.parameters(), self.lr)

    def eps_scale(self, progress: float) -> float:
        """ε over its full value: a linear warm-up over the first ``warmup`` of the stage."""
        return min(1.0, progress / self.warmup) if self.warmup > 0 else 1.0

    def lr_scale(self, progress: float) -> float:
        """The rate over its peak: one cycle, up over the first fifth, down as a cosine."""
        if progress < 0.2:
            return 0.1 + 0.9 * progress / 0.2
        return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8)) * 0.99 + 0.01

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
