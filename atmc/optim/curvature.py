"""What an entry of a factor is worth to the loss, from the gradients of training.

Near a minimum the loss changes by κ d² / 2 when an entry moves by d, and κ θ² / 2 is what it costs
to cut one, its saliency (LeCun, Denker & Solla, "Optimal brain damage", NeurIPS 1989). The mean
square of the gradient stands for κ. For the weight of a layer that is, but for a factor, the mean
square of the input times that of the derivative of the loss in the output: by how much the entry
changes the output, and what the output matters. Single entries are noise, so it is taken as the
product of a share of the row and one of the column (Shazeer & Stern, "Adafactor", ICML 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_DECAY = 0.99  # of the means, a step
# Of the mean over a factor so far, what a step counts for: a norm behind a channel that has nearly
# died makes the gradients before it hundreds of times as large, in one step.
_MOST = 4.0
_LEAST = 0.01  # of the mean over a factor, added to each: where no gradient has come yet


class Curvature:
    """κ of the entries of factors, up to one number for all of them.

    Args:
        factors: (..., rows, columns) by name; their gradients are read.
    """

    def __init__(self, factors: Mapping[str, Tensor]) -> None:
        self.factors = factors
        self.rows = {n: f.new_zeros(*f.shape[:-1], 1).float() for n, f in factors.items()}
        self.columns = {
            n: f.new_zeros(*f.shape[:-2], 1, f.shape[-1]).float() for n, f in factors.items()
        }
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take up the gradients of a step."""
        self.steps += 1
        # At first a plain mean of all steps.
        share = max(1 - _DECAY, 1 / self.steps)
        for name, factor in self.factors.items():
            if factor.grad is not None:
                squares = factor.grad.float().square()
                rows, columns = squares.mean(-1, keepdim=True), squares.mean(-2, keepdim=True)
                mean, now = self.rows[name].mean(), rows.mean()
                most = torch.where(mean > 0, _MOST * mean / now.clamp(min=1e-30), 1.0).clamp(max=1)
                self.rows[name].lerp_(rows * most, share)
                self.columns[name].lerp_(columns * most, share)

    def roots(self, name: str) -> tuple[Tensor, Tensor]:
        """√κ of a factor as a product of two, of shape (..., rows, 1) and (..., 1, columns)."""
        rows, columns = self.rows[name], self.columns[name]
        # Without any gradient entries rank by their size: none may count for nothing.
        mean = rows.mean(-2, keepdim=True).clamp(min=1e-30)
        rows, columns = rows + _LEAST * mean, columns + _LEAST * mean
        return rows.sqrt(), (columns / mean).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """The means; tensors are not copied."""
        return {"rows": self.rows, "columns": self.columns, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        for part in ("rows", "columns"):
            for name, tensor in getattr(self, part).items():
                tensor.copy_(state[part][name])
        self.steps = state["steps"]
