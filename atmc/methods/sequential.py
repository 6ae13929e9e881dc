"""Prune, then SVD, then k-means: the sequential baseline of a unified method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atmc.factorization.layers import FactorizedWeight, factorized_weights
from atmc.methods.base import Schedule, register
from atmc.methods.closing.target import Target
from atmc.methods.levels import LevelStage
from atmc.methods.low_rank import Spectrum, as_products
from atmc.methods.magnitude import MaskedStage, prune_by_magnitude
from atmc.optim.atmc import AUTO_GUESS
from atmc.quantization.rates import factor_bits
from atmc.training.stage import Stage

_ENERGY = 0.9  # share of ‖W‖² that the rank must leave


class SvdStage(MaskedStage):
    """Each pruned layer by its SVD, of the least rank that keeps most of its energy, or as it is.

    A layer becomes W = U V where the factors (which inherit the empty rows and columns of W) are
    estimated to cost less than its nonzeros; else C = W. Then it is trained with zeros fixed, and
    rounded to codebooks.
    """

    name = "svd"

    def reshape(self, model: nn.Module) -> None:
        """Factorize at full rank, without the identity."""
        as_products(model)

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """Decompose, and train under the masks of what that gives."""
        for weight in factorized_weights(model):
            self._decompose(weight)
        return super().start(model)

    @torch.no_grad()
    def _decompose(self, weight: FactorizedWeight) -> None:
        matrix = weight.parametrization.matrix(weight.U, weight.V, weight.C)
        # The structure was formed by an SVD: what it left of a zero is rounding.
        matrix = matrix * (matrix.abs() > 1e-6 * matrix.abs().max())
        weight.U.zero_()
        weight.V.zero_()
        weight.C.copy_(matrix)
        if not bool(matrix.any()):
            return
        spectrum = Spectrum.of(weight)
        energy = spectrum.values.square().reshape(-1, spectrum.values.shape[-1]).sum(0).cumsum(0)
        rank = 1 + int((energy < _ENERGY * energy[-1]).sum())
        U, V = spectrum.factors(rank, weight)
        if self._bits(U, rank) + self._bits(V, rank) < self._bits(matrix, None):
            weight.U.copy_(U)
            weight.V.copy_(V)
            weight.C.zero_()

    def _bits(self, factor: Tensor, rank: int | None) -> float:
        bits = AUTO_GUESS if self.target.bits == "auto" else int(self.target.bits)
        size = factor.numel()
        if rank is not None:  # a file holds the inner size that is used
            size = size // min(factor.shape[-2:]) * rank
        return factor_bits(size, int(torch.count_nonzero(factor)), bits)


@register("sequential")
def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """Prune; decompose; then the levels."""
    first, second = schedule.halves
    return [
        MaskedStage(first, schedule.lr, target, prune_by_magnitude, close=False),
        SvdStage(second, schedule.lr, target),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]
