"""Pruning by ADMM, one constraint set a layer (Ye et al., ICCV 2019, algorithm 1).

In the words of :mod:`atmc.optim.splitting` the duplicate is Z, the nearest point to θ + u at which
a layer keeps the weights, columns or filters that it may keep. The weights approach it while they
are trained; then they are pruned to it once, and trained on under the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from atmc.optim.splitting import Penalty, Schedule, Splitting, at

Projection = Callable[[Tensor], Tensor]


class PruningADMM(Splitting):
    """Any torch optimizer, with weights that approach a projection of theirs.

    Args:
        weights: the weights to prune, by name.
        optimizer: over the model's parameters, these weights among them.
        projections: for each weight, the projection onto its constraint set (see
            :mod:`atmc.projection`); it returns the tensor with what does not stay at zero.
        rho: the penalty weight; a float or a function of the step.
        duplicate_every: steps between duplicates: 1 is the paper's algorithm, an epoch or more its
            authors' code.
        penalty: "loss", "decoupled", or None to choose by the inner optimizer.
        state_dtype: of duplicates and duals, None for that of the weights.

    Raises:
        ValueError: projections that are not one for each weight, or a bad setting.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        projections: Mapping[str, Projection],
        *,
        rho: float | Schedule = 1.5e-3,
        duplicate_every: int = 1,
        penalty: Penalty | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        if differ := sorted(weights.keys() ^ projections.keys()):
            raise ValueError(f"give one projection for each weight: {differ[0]!r} has none")
        if not weights:
            raise ValueError("there is no weight to prune")
        if duplicate_every < 1:
            raise ValueError(f"duplicate_every is {duplicate_every}: give at least 1")
        super().__init__(weights, optimizer, rho=rho, penalty=penalty, state_dtype=state_dtype)
        self.projections = dict(projections)
        self.duplicate_every = duplicate_every
        self.masks: dict[str, Tensor] = {}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Inner step; then penalty, duplicate and dual, or, once pruned, the masks."""
        loss = self.inner.step(closure)
        with torch.no_grad():
            self.steps += 1
            if self.masks:
                for name, mask in self.masks.items():
                    self.variables[name].mul_(mask)
                return loss
            self._proximal()
            if self.steps % self.duplicate_every == 0:
                self._duplicate()
            self._set_rho(float(at(self.rho, self.steps)))
        return loss

    def _duplicate(self) -> None:
        for name, projection in self.projections.items():
            self._renew(name, projection(self._shifted(name).clone()))

    @torch.no_grad()
    def prune(self) -> None:
        """Project the weights themselves; what is zero then stays zero, and the penalty is gone.

        Steps that follow are the masked retraining.
        """
        for name, weight in self.variables.items():
            weight.copy_(self.projections[name](weight.detach()))
            self.masks[name] = weight != 0
        self.duplicates.clear()
        self.duals.clear()

    def state_dict(self) -> dict[str, object]:
        """The inner optimizer's state, duplicates, duals, masks and counters."""
        return super().state_dict() | {"masks": dict(self.masks)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Take up the state of an optimizer of the same weights.

        Raises:
            ValueError: a state of other weights.
        """
        masks = state_dict["masks"]
        assert isinstance(masks, dict)
        super().load_state_dict(state_dict)
        self.masks = {n: mask.to(self.variables[n].device, copy=True) for n, mask in masks.items()}
