"""The constrained optimizers: ATMC, ADMM pruning, and training of levels."""

from __future__ import annotations

from atmc.optim.atmc import ATMC, cubic
from atmc.optim.codebooks import CodebookOptimizer
from atmc.optim.pruning import PruningADMM

__all__ = ["ATMC", "CodebookOptimizer", "PruningADMM", "cubic"]
