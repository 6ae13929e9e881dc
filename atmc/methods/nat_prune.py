"""Magnitude pruning and rounding with no attack anywhere: what robustness is lost to.

The recipe of ``adv-prune`` from a naturally trained net, all on clean inputs (the baseline "NAP" of
Gui et al., NeurIPS 2019).
"""

from __future__ import annotations

from atmc.methods import adv_prune
from atmc.methods.base import Method

METHOD = Method(
    "nat-prune",
    "pruned once by magnitude, no attack in training",
    adv_prune.stages,
    attacked=False,
)
