"""Stages that methods share, and the target that they work towards."""

from atmc.stages.compress import CompressStage
from atmc.stages.dense import DenseStage
from atmc.stages.levels import LevelStage
from atmc.stages.target import Target, encoded_bits, fit

__all__ = [
    "CompressStage",
    "DenseStage",
    "LevelStage",
    "Target",
    "encoded_bits",
    "fit",
]
