"""Stages that methods share, and the target that they work towards."""

from atmc.stages.admm import AdmmStage
from atmc.stages.compress import CompressStage
from atmc.stages.dense import DenseStage
from atmc.stages.layerwise import LayerSets, Structure
from atmc.stages.learned_scores import ScoreStage
from atmc.stages.levels import LevelStage
from atmc.stages.low_rank import LowRankStage
from atmc.stages.masked import MaskedStage, prune_by_magnitude
from atmc.stages.svd import SvdStage
from atmc.stages.target import Target, encoded_bits, fit

__all__ = [
    "AdmmStage",
    "CompressStage",
    "DenseStage",
    "LayerSets",
    "LevelStage",
    "LowRankStage",
    "MaskedStage",
    "ScoreStage",
    "Structure",
    "SvdStage",
    "Target",
    "encoded_bits",
    "fit",
    "prune_by_magnitude",
]
