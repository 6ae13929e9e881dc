"""Attacks inside an ε ball: FGSM, N-FGSM, PGD and WRM, and those of other packages."""

from __future__ import annotations

from atmc.attacks.freezing import frozen
from atmc.attacks.gradient import default_step_size, fgsm, n_fgsm, pgd, wrm
from atmc.attacks.losses import Loss, dlr_loss, margin_loss

__all__ = [
    "Loss",
    "default_step_size",
    "dlr_loss",
    "fgsm",
    "frozen",
    "margin_loss",
    "n_fgsm",
    "pgd",
    "wrm",
]
