"""Methods by name: each a recipe of stages, in one file with its stages."""

from __future__ import annotations

from atmc.methods import admm, atmc, dense, hydra, low_rank, magnitude, sequential
from atmc.methods.base import Method, Schedule, get, names, register
from atmc.methods.closing.target import Target

__all__ = [
    "Method",
    "Schedule",
    "Target",
    "admm",
    "atmc",
    "dense",
    "get",
    "hydra",
    "low_rank",
    "magnitude",
    "names",
    "register",
    "sequential",
]
