"""One constraint set a layer: single weights, columns or filters, each layer by its own ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from atmc.factorization import FactorizedWeight, factorized_weights
from atmc.projection import project_columns, project_filters, project_topk

Structure = Literal["irregular", "column", "filter"]


@dataclass(frozen=True)
class LayerSets:
    """The sets onto which Ye et al. (ICCV 2019) project, sized by one share for all layers.

    At share c a layer keeps min(1, c · ratio) of its weights, columns or filters, and at least
    one. Filters are the rows of W, the units of a linear layer among them. With filters the last
    layer is exempt: its rows are the classes.

    Args:
        structure: what is kept or dropped as one.
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
        """The projection of every weight's carrier, by the carrier's name."""
        weights = factorized_weights(model)
        found = {}
        for weight in weights:
            ratio = self.ratio(weight, weight is weights[-1])
            layout = weight.parametrization.layout
            size = {
                "irregular": math.prod(layout.shape),
                "column": layout.rest,
                "filter": layout.rows,
            }[self.structure]
            kept = 1.0 if ratio is None else min(1.0, share * ratio)
            found[weight.carrier] = _projection(
                self.structure, max(1, math.floor(kept * size + 1e-9))
            )
        return found

    def check(self, model: nn.Module) -> None:
        """Refuse a table that names no layer of the model.

        Raises:
            ValueError: a pattern without a layer.
        """
        names = [weight.name for weight in factorized_weights(model)]
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
