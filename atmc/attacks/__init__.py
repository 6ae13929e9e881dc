"""Attacks inside an ε ball: FGSM, N-FGSM, PGD and WRM, and those of other packages."""

from __future__ import annotations

from atmc.attacks.folding import folded
from atmc.attacks.freezing import frozen
from atmc.attacks.gradient import fgsm, n_fgsm, pgd, wrm
from atmc.attacks.losses import Loss, dlr_loss, margin_loss
from atmc.attacks.packaged import autoattack, cw_linf, square
from atmc.attacks.registry import (
    Attack,
    Source,
    attack,
    default_step_size,
    register,
    register_training,
)

__all__ = [
    "Attack",
    "Loss",
    "Source",
    "attack",
    "autoattack",
    "cw_linf",
    "default_step_size",
    "dlr_loss",
    "fgsm",
    "folded",
    "frozen",
    "margin_loss",
    "n_fgsm",
    "pgd",
    "register",
    "register_training",
    "square",
    "wrm",
]
