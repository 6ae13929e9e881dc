"""Pruning by ADMM while the net is attacked, layer by layer (Ye et al., ICCV 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from atmc.factorization import factorized_weights
from atmc.pruning import PruningADMM
from atmc.stages.closing import ShareStage, Values, put
from atmc.stages.layerwise import LayerSets
from atmc.stages.penalty import rising_rho
from atmc.stages.target import Target
from atmc.training import adam

_AIMS = 5  # how often the share is chosen anew


class AdmmStage(ShareStage):
    """Weights drawn towards their layer's set by ADMM, then pruned to it, once.

    The share of all layers is the one at which the file keeps the budget; it is chosen anew a few
    times, since the weights move, and at the end.

    Args:
        epochs: length.
        lr: peak rate of Adam.
        target: the budget.
        sets: what each layer may keep.
        rho: the penalty weight at the end; it rises from zero as the square of the progress.
            None makes the pull, summed over all steps, the same for any length.
        duplicate_every: steps between Z and u; None for a fiftieth of the stage.
    """

    name = "admm"

    def __init__(
        self,
        epochs: int,
        lr: float,
        target: Target,
        sets: LayerSets,
        *,
        rho: float | None = None,
        duplicate_every: int | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(epochs, lr, target)
        self.sets = sets
        self.rho = rho
        self.duplicate_every = duplicate_every
        self.state_dtype = state_dtype

    def take(self, model: nn.Module) -> None:
        """Check the table of ratios.

        Raises:
            ValueError: it names no layer.
        """
        super().take(model)
        self.sets.check(model)
        self.carriers = {w.carrier: w.factors[w.carrier] for w in factorized_weights(model)}

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """PruningADMM around Adam, on the factors that are W."""
        self.take(model)
        steps = max(1, self.total_steps)
        carried = {id(factor) for factor in self.carriers.values()}
        empty = {id(f) for w in factorized_weights(model) for f in w.factors.values()} - carried
        self.optimizer = PruningADMM(
            self.carriers,
            adam((p for p in model.parameters() if id(p) not in empty), self.lr),
            self.sets.projections(model, self.share),
            rho=rising_rho(steps, self.rho),
            duplicate_every=self.duplicate_every or max(1, steps // 50),
            state_dtype=self.state_dtype,
        )
        self.aim()
        return self.optimizer

    def values_at(self, share: float) -> Values:
        """The projections of the weights."""
        projections = self.sets.projections(self.model, share)
        return {n: projections[n](f.detach().clone()) for n, f in self.carriers.items()}

    def aim(self) -> None:
        """The share, and the projections that follow from it."""
        super().aim()
        self.optimizer.projections = self.sets.projections(self.model, self.share)

    def after_step(self, step: int) -> None:
        """Choose the share anew now and then."""
        if step % max(1, self.total_steps // _AIMS) == 0:
            self.aim()

    def finish(self, model: nn.Module) -> None:
        """The hard pruning."""
        self.aim()
        put(model, self.values_at(self.share))
        if self.share == 1 and self.sets.ratios is not None:
            self.target.outcome.whole = "the ratios keep no more"

    def measure(self) -> dict[str, int]:
        """Nonzeros that the pruning would leave now."""
        values = self.values_at(self.share).values()
        return {"nonzeros": sum(int(torch.count_nonzero(value)) for value in values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        super().load_state_dict(state)
        self.optimizer.projections = self.sets.projections(self.model, self.share)
