"""W = U V + C as a parametrization of the layers of any module."""

from __future__ import annotations

from atmc.factorization.importance import Importance, scores
from atmc.factorization.layers import (
    FactorizedWeight,
    defactorize,
    dense_part,
    factorize,
    factorized_weights,
    is_factorized,
    live_factors,
    named_factors,
    named_state,
    plain_weights,
    train_factors,
)
from atmc.factorization.norms import estimate_statistics, fold_statistics
from atmc.factorization.parametrization import Factorization, Identity, Layout
from atmc.factorization.start import DataAware, Factors, Form

__all__ = [
    "DataAware",
    "Factorization",
    "FactorizedWeight",
    "Factors",
    "Form",
    "Identity",
    "Importance",
    "Layout",
    "defactorize",
    "dense_part",
    "estimate_statistics",
    "factorize",
    "factorized_weights",
    "fold_statistics",
    "is_factorized",
    "live_factors",
    "named_factors",
    "named_state",
    "plain_weights",
    "scores",
    "train_factors",
]
