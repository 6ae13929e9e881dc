"""Concurrent adversarial training and weight pruning by ADMM, layer by layer.

Ye et al., "Adversarial Robustness vs. Model Compression, or Both?", ICCV 2019: from a robust net,
ADMM draws every layer to its constraint set, then comes the hard pruning and training under the
mask. Single weights, columns or filters are pruned. Codebooks come at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from atmc.factorization.layers import (
    FactorizedWeight,
    factorize,
    factorized_weights,
    train_factors,
)
from atmc.methods.base import Schedule, register
from atmc.methods.closing.effort import Effort
from atmc.methods.closing.shares import ShareSearch, ShareStage, Values, pruned_bits, put
from atmc.methods.closing.target import Target
from atmc.methods.levels import LevelStage
from atmc.methods.magnitude import MaskedStage
from atmc.optim.pruning import PruningADMM
from atmc.optim.splitting import rising_rho
from atmc.projection import project_columns, project_filters, project_topk
from atmc.training.stage import Stage

_PRUNED = {"irregular": "weights", "column": "columns", "filter": "filters"}
_MOST_AIMS = 5  # how often the share is chosen anew
_AIMS_SHARE, _FILES = 0.05, 5  # of the time of all steps; files that an aim takes
_DUPLICATES = 50  # of a stage


class AdmmStage(ShareStage):
    """Weights drawn towards their layer's set by ADMM, then pruned to it, once.

    The share of all layers is the one at which the file keeps the budget; it is chosen anew a few
    times, since the weights move, and at the end.

    Args:
        epochs: length.
        lr: peak rate of Adam.
        target: the budget.
        sets: what each layer may keep.
        state_dtype: of duplicates and duals, None for that of the weights.
    """

    name = "admm"

    def __init__(
        self,
        epochs: int,
        lr: float,
        target: Target,
        sets: LayerSets,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(epochs, lr, target)
        self.sets = sets
        self.state_dtype = state_dtype

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """PruningADMM around Adam, on the factors that are W."""
        self.model = model
        self.effort = Effort.of(model, self.example, self.batch_size, self.gradients)
        steps = max(1, self.total_steps)
        carriers = {w.carrier: w.factors[w.carrier] for w in factorized_weights(model)}
        train_factors(model, carriers)
        self.optimizer = PruningADMM(
            carriers,
            self.optimization.build(model, self.lr),
            self.sets.projections(model, 1.0),
            rho=rising_rho(steps),
            duplicate_every=max(1, steps // _DUPLICATES),
            state_dtype=self.state_dtype,
        )
        self.search = ShareSearch(model, self.target, self.example)
        self.aim()
        return self.optimizer

    def values_at(self, share: float) -> Values:
        """The projections of the weights."""
        return self.sets.project(self.model, share)

    def aim(self, *, final: bool = False) -> float:
        """The share, and the projections that follow from it."""
        share = super().aim(final=final)
        self.optimizer.projections = self.sets.projections(self.model, share)
        return share

    def after_step(self, step: int) -> None:
        """Choose the share anew now and then."""
        needed = self.effort.interval(_AIMS_SHARE, _FILES)
        if step % max(1, self.total_steps // _MOST_AIMS, min(needed, self.total_steps // 2)) == 0:
            self.aim()

    def finish(self, model: nn.Module) -> None:
        """The hard pruning."""
        share = self.aim(final=True)
        put(model, self.values_at(share))
        if share == 1 and self.sets.ratios is not None:
            self.target.outcome.whole = "the ratios keep no more"

    def measure(self) -> dict[str, int]:
        """Nonzeros that the pruning would leave now."""
        values = self.values_at(self.search.share).values()
        return {"nonzeros": sum(int(torch.count_nonzero(value)) for value in values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        super().load_state_dict(state)
        self.optimizer.projections = self.sets.projections(self.model, self.search.share)


Structure = Literal["irregular", "column", "filter"]


@dataclass(frozen=True)
class LayerSets:
    """The sets onto which Ye et al. (ICCV 2019) project, sized by one share for all layers.

    At share c a layer keeps min(1, c · ratio) of its weights, columns or filters, and at least
    one. Filters are the rows of W, the units of a linear layer among them. With filters the last
    layer is exempt: its rows are the classes.

    Args:
        structure: what is pruned as one.
        ratios: by layer name or pattern; the first that matches counts, and a layer that none
            names stays whole. None: the same ratio, 1, for all.
    """

    structure: Structure
    ratios: Mapping[str, float] | None = None

    def ratio(self, weight: FactorizedWeight, last: bool) -> float | None:
        """A layer's ratio; None: it is exempt."""
        if self.ratios is None:
            return None if last and self.structure == "filter" else 1.0
        layer = weight.name.rpartition(".")[0]
        for pattern, ratio in self.ratios.items():
            if fnmatchcase(layer, pattern) or fnmatchcase(weight.name, pattern):
                return None if last and self.structure == "filter" else ratio
        return None

    def projections(self, model: nn.Module, share: float) -> dict[str, Callable[[Tensor], Tensor]]:
        """The projection of every weight's carrier, by the carrier's name.

        Raises:
            ValueError: a pattern of the ratios names no layer.
        """
        weights = factorized_weights(model)
        self._check(weights)
        projections = {}
        for weight in weights:
            ratio = self.ratio(weight, weight is weights[-1])
            layout = weight.parametrization.layout
            size = {
                "irregular": math.prod(layout.shape),
                "column": layout.rest,
                "filter": layout.rows,
            }[self.structure]
            part = 1.0 if ratio is None else min(1.0, share * ratio)
            count = max(1, math.floor(part * size + 1e-9))
            projections[weight.carrier] = _projection(self.structure, count)
        return projections

    def project(self, model: nn.Module, share: float) -> Values:
        """The weights of a model, projected, by the carriers' names."""
        projections = self.projections(model, share)
        return {
            weight.carrier: projections[weight.carrier](weight.factors[weight.carrier].detach())
            for weight in factorized_weights(model)
        }

    def _check(self, weights: Sequence[FactorizedWeight]) -> None:
        names = [weight.name for weight in weights]
        layers = [name.rpartition(".")[0] for name in names]
        for pattern in self.ratios or ():
            if not any(fnmatchcase(name, pattern) for name in (*names, *layers)):
                raise ValueError(
                    f"ratios name {pattern!r}, which is no layer (layers: {', '.join(layers)})"
                )


def _projection(structure: Structure, count: int) -> Callable[[Tensor], Tensor]:
    def one(matrix: Tensor) -> Tensor:
        if structure == "filter":
            return project_filters(matrix, count)
        if structure == "column":
            return project_columns(matrix, count)
        return project_topk([matrix], count)[0]

    def project(matrix: Tensor) -> Tensor:
        if matrix.dim() == 2 or structure == "irregular":
            return one(matrix)
        return torch.stack([one(group) for group in matrix])  # each group by itself

    return project


def _method(structure: Structure) -> None:
    """Register the method that prunes one kind of structure."""

    def least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
        sets = LayerSets(structure, schedule.ratios)
        return pruned_bits(model, target, x, sets.project(factorize(model, identity=False), 0.0))

    @register(f"admm-{structure}", least=least, layerwise=True)
    def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
        first, second = schedule.halves
        sets = LayerSets(structure, schedule.ratios)
        return [
            AdmmStage(first, schedule.lr, target, sets, state_dtype=schedule.state_dtype),
            MaskedStage(second, schedule.lr, target, pruned=_PRUNED[structure]),
            LevelStage(schedule.level_epochs, schedule.lr / 2, target),
        ]


for _structure in get_args(Structure):
    _method(_structure)
