"""Pruned once by magnitude, over all layers, then trained on under the mask.

``adv-prune`` does so to a robust net under attack, the baseline "AP" of Gui et al., NeurIPS 2019;
``nat-prune`` to a naturally trained net on clean inputs alone ("NAP"), the baseline without
robustness.
Codebooks come at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from atmc.factorization.layers import (
    dense_part,
    factorize,
    factorized_weights,
    named_factors,
    train_factors,
)
from atmc.methods.base import Schedule, register
from atmc.methods.closing.shares import ShareSearch, Values, close, put
from atmc.methods.closing.target import Target
from atmc.methods.levels import LevelStage
from atmc.projection import project_topk
from atmc.training.optimization import Average
from atmc.training.stage import Stage

Pruning = Callable[[nn.Module, Target, Tensor], None]


def prune_by_magnitude(model: nn.Module, target: Target, x: Tensor) -> None:
    """Leave the largest weights of all layers together, as many as the budget holds, in place."""
    carriers = {w.carrier: w.factors[w.carrier] for w in factorized_weights(model)}
    weights = {name: carrier.detach().clone() for name, carrier in carriers.items()}
    entries = sum(weight.numel() for weight in weights.values())

    def values_at(share: float) -> Values:
        pruned = project_topk(list(weights.values()), round(share * entries))
        return dict(zip(weights, pruned, strict=True))

    put(model, values_at(ShareSearch(model, target, x).run(values_at)))


class MaskedStage(Stage):
    """Training in which zeros stay zeros; at the end the values are rounded to codebooks.

    Args:
        epochs: length.
        lr: peak rate.
        target: the budget.
        prune: zeroes entries, once, before the first step; None where an earlier stage has.
        close: whether the file is closed at the end, or left to a later stage.
        pruned: what is pruned, in the plural, for the reason why a file leaves room.
    """

    name = "masked"

    def __init__(
        self,
        epochs: int,
        lr: float,
        target: Target,
        prune: Pruning | None = None,
        *,
        close: bool = True,
        pruned: str = "weights",
    ) -> None:
        super().__init__(epochs, lr)
        self.close = close
        self.pruned = pruned
        self.target = target
        self.prune = prune
        self.masks: dict[str, Tensor] = {}

    def reshape(self, model: nn.Module) -> None:
        """Factorize, where no earlier stage has."""
        factorize(model, identity=False)

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """Prune; the optimizer on everything."""
        self.model = model
        if self.prune is not None:
            self.prune(model, self.target, self.example)
        factors = named_factors(model)
        self.factors = {name: factors[name] for name in train_factors(model)}
        self.masks = {name: factor.detach() != 0 for name, factor in self.factors.items()}
        return super().start(model)

    def new_average(self, model: nn.Module) -> Average:
        """Of factors and dense part: the zeros of one step are those of all."""
        tensors = [*self.factors.values(), *dense_part(model).values()]
        return Average(tensors, self.optimization.ema)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Put the zeros back."""
        for name, mask in self.masks.items():
            self.factors[name].mul_(mask)

    def finish(self, model: nn.Module) -> None:
        """Codebooks, and the file within the budget."""
        if self.close:
            close(model, self.target, self.example, self.pruned)

    def measure(self) -> dict[str, int]:
        """Nonzeros now."""
        return {"nonzeros": sum(int(torch.count_nonzero(f)) for f in self.factors.values())}

    def state_dict(self) -> dict[str, Any]:
        """The masks, and how the stage before closed the file."""
        return {"masks": dict(self.masks), "outcome": asdict(self.target.outcome)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.masks = {n: mask.to(self.factors[n].device) for n, mask in state["masks"].items()}
        self.target.outcome.take(state["outcome"])


@register("nat-prune", attacked=False)
@register("adv-prune")
def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """Prune and train on; then the levels."""
    return [
        MaskedStage(schedule.epochs, schedule.lr, target, prune_by_magnitude),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]
