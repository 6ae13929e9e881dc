"""Concurrent adversarial training and weight pruning by ADMM, layer by layer.

Ye et al., "Adversarial Robustness vs. Model Compression, or Both?", ICCV 2019: from a robust net,
ADMM draws every layer to its constraint set, then comes the hard pruning and training under the
mask. Single weights, columns or filters are pruned. Codebooks come at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from atmc.methods.base import Least, Method, Schedule
from atmc.stages import AdmmStage, LayerSets, LevelStage, MaskedStage, Structure, Target
from atmc.training import Stage

_PRUNED = {"irregular": "weights", "column": "columns", "filter": "filters"}


def _recipe(structure: Structure) -> Callable[[Target, Schedule], Sequence[Stage]]:
    def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
        first, second = schedule.halves
        sets = LayerSets(structure, schedule.ratios)
        return [
            AdmmStage(first, schedule.lr, target, sets, state_dtype=schedule.state_dtype),
            MaskedStage(second, schedule.lr, target, pruned=_PRUNED[structure]),
            LevelStage(schedule.level_epochs, schedule.lr / 2, target),
        ]

    return stages


def _least(structure: Structure) -> Least:
    def least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
        sets = LayerSets(structure, schedule.ratios)
        return AdmmStage(0, 0.0, target, sets).least_bits(model, x)

    return least


def _method(structure: Structure, what: str) -> Method:
    return Method(
        f"admm-{structure}",
        f"ADMM pruning of {what}, layer by layer",
        _recipe(structure),
        least=_least(structure),
        layerwise=True,
    )


IRREGULAR = _method("irregular", "single weights")
COLUMN = _method("column", "columns")
FILTER = _method("filter", "filters")
