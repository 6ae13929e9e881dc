"""One stage of training: what a method says of its optimizer, its schedule and its end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

EXAMPLES = 8  # that a stage may look at before it starts


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam, in one pass over memory where the library has it so."""
    held = list(parameters)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in held)
    # That pass walks over memory as it lies: a parameter that is a view with gaps is not for it.
    fused = fused and all(_dense(p) for p in held)
    return torch.optim.Adam(held, lr, fused=fused)


def _dense(p: Tensor) -> bool:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(p.dim())
    return p.is_contiguous() or (last is not None and p.is_contiguous(memory_format=last))


class Stage:
    """One stretch of training: how the model is reshaped, which optimizer, which schedules.

    A method subclasses it. ``reshape`` changes the structure alone, never by values, so that
    a resumed run can repeat it before the model's state is loaded.
    """

    name = "stage"

    def __init__(self, epochs: int, lr: float, warmup: float = 0.0) -> None:
        self.epochs = epochs
        self.lr = lr
        self.warmup = warmup
        # Known before start():
        self.total_steps = 0
        self.example = torch.empty(0)  # a few inputs of the loader, (n, ...)

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
        """A term of the loss that is the optimizer's own."""
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
        """Take up :meth:`state_dict`."""
