"""Low rank under attack: W = U V, one budget for the ranks of all layers.

The baseline "ALR" of Gui et al., NeurIPS 2019. Codebooks come at the end.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atmc.factorization.layers import (
    FactorizedWeight,
    defactorize,
    factorize,
    factorized_weights,
    named_factors,
    train_factors,
)
from atmc.methods.base import Schedule, register
from atmc.methods.closing.shares import ShareSearch, ShareStage, Values, close, pruned_bits, put
from atmc.methods.closing.target import Target
from atmc.methods.levels import LevelStage
from atmc.training.stage import Stage

_CUTS = 10  # how often ranks are lowered on the way to the target
_SHRINK = 0.6  # share of the stage over which they are


def as_products(model: nn.Module) -> nn.Module:
    """Factorize anew, without an identity and at full rank, in place."""
    return factorize(defactorize(model), rank=sys.maxsize)


@dataclass
class Spectrum:
    """The singular value decomposition of one W, or of one a group.

    left: (..., rows, r), values: (..., r), descending, right: (..., r, rest).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @classmethod
    def of(cls, weight: FactorizedWeight) -> Spectrum:
        """That of U V + C."""
        matrix = weight.parametrization.matrix(weight.U, weight.V, weight.C).detach().double()
        if matrix.shape[-2] > matrix.shape[-1]:
            mirrored = cls._wide(matrix.mT)
            return cls(mirrored.right.mT, mirrored.values, mirrored.left.mT)
        return cls._wide(matrix)

    @classmethod
    def _wide(cls, matrix: Tensor) -> Spectrum:
        """That of a matrix (..., rows, rest) of no more rows than columns, in float64.

        By the eigenvectors of W W', several times faster than an SVD of W. Their product with what
        they leave of W is W, however many digits small singular values have lost.
        """
        _, vectors = torch.linalg.eigh(matrix @ matrix.mT)
        left = vectors.flip(-1)  # descending
        rows = left.mT @ matrix
        values = torch.linalg.vector_norm(rows, dim=-1)
        return cls(left, values, rows / values.clamp(min=1e-300)[..., None])

    def factors(self, rank: int, weight: FactorizedWeight) -> tuple[Tensor, Tensor]:
        """U and V of W's best approximation of that rank, zero where the rank ends."""
        roots = self.values.sqrt() * (torch.arange(self.values.shape[-1]) < rank).to(self.values)
        # A row of zeros stays one: rounding would fill it.
        row = (self.left * self.values[..., None, :]).abs().amax(-1, keepdim=True)
        column = (self.values[..., :, None] * self.right).abs().amax(-2, keepdim=True)
        largest = 1e-9 * self.values[..., :1, None]
        U = self.left * roots[..., None, :] * (row > largest)
        V = roots[..., :, None] * self.right * (column > largest)
        return U.to(weight.U.dtype), V.to(weight.V.dtype)


def ranks_at(spectra: list[Spectrum], share: float) -> list[int]:
    """Ranks whose factors hold ``share`` of the numbers that full rank would; at least 1 each.

    Singular directions of all layers compete by the share of their layer's energy, σ² / ‖W‖²,
    for each number that they cost.
    """
    gains, costs, owners = [], [], []
    for index, spectrum in enumerate(spectra):
        energy = spectrum.values.square()
        groups = energy.reshape(-1, energy.shape[-1]).sum(0) / energy.sum().clamp(min=1e-300)
        cost = spectrum.left.numel() / max(1, energy.shape[-1])
        cost += spectrum.right.numel() / max(1, energy.shape[-1])
        gains += (groups / cost).tolist()
        costs += [cost] * len(groups)
        owners += [index] * len(groups)
    order = sorted(range(len(gains)), key=lambda i: -gains[i])
    left = share * sum(costs)
    ranks = [0] * len(spectra)
    for i in order:
        if costs[i] <= left:
            ranks[owners[i]] += 1
            left -= costs[i]
        else:
            break
    return [max(1, rank) for rank in ranks]


def values_at(weights: Sequence[FactorizedWeight], spectra: list[Spectrum], share: float) -> Values:
    """U and V of the ranks that hold a share of the numbers, by name; C empty."""
    values: dict[str, Tensor] = {}
    for weight, spectrum, rank in zip(weights, spectra, ranks_at(spectra, share), strict=True):
        U, V = spectrum.factors(rank, weight)
        values |= dict(zip(weight.factors, (U, V, torch.zeros_like(weight.C)), strict=True))
    return values


class LowRankStage(ShareStage):
    """U and V trained under attack while ranks fall to what the budget holds.

    Ranks fall in steps, as a cubic: at each, W = U V is cut to the singular directions that rank
    best over all layers.

    Args:
        epochs: length.
        lr: peak rate of Adam.
        target: the budget.
    """

    name = "low-rank"

    def reshape(self, model: nn.Module) -> None:
        """Factorize at full rank, without the identity."""
        as_products(model)

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam on U, V and the dense part."""
        self.model = model
        self.weights = factorized_weights(model)
        self._decompose()
        put(model, self.values_at(1.0))  # what is left of W by rounding is not in C any more
        train_factors(model, [n for n in named_factors(model) if not n.endswith(".C")])
        self.search = ShareSearch(model, self.target, self.example)
        self.aim()
        self.optimizer = self.optimization.build(model, self.lr)
        return self.optimizer

    def _decompose(self) -> None:
        self.spectra = [Spectrum.of(weight) for weight in self.weights]

    def values_at(self, share: float) -> Values:
        """The factors of the weights as they were decomposed last."""
        return values_at(self.weights, self.spectra, share)

    def after_step(self, step: int) -> None:
        """Lower the ranks now and then; what Adam remembers is of other axes then."""
        horizon = _SHRINK * self.total_steps
        every = max(1, math.ceil(horizon / _CUTS))
        if step % every == 0 and step < horizon + every:
            left = max(0.0, 1 - step / horizon) ** 3
            self._decompose()
            share = self.search.share
            put(self.model, self.values_at(share + (1 - share) * left))
            self.optimizer.state.clear()

    def finish(self, model: nn.Module) -> None:
        """The ranks that the file holds, codebooks, the budget."""
        self._decompose()
        put(model, self.values_at(self.aim(final=True)))
        close(model, self.target, self.example, "singular directions")

    def measure(self) -> dict[str, int]:
        """Nonzeros now."""
        factors = [f for weight in self.weights for f in (weight.U, weight.V)]
        return {"nonzeros": sum(int(torch.count_nonzero(f)) for f in factors)}


def least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
    """The size at rank 1."""
    weights = factorized_weights(as_products(model))
    spectra = [Spectrum.of(weight) for weight in weights]
    return pruned_bits(model, target, x, values_at(weights, spectra, 0.0))


@register("low-rank", least=least)
def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """Lower the ranks; then the levels."""
    return [
        LowRankStage(schedule.epochs, schedule.lr, target),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]
