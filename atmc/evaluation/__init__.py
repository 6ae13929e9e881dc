"""Clean and robust accuracy of a decoded model."""

from __future__ import annotations

from atmc.attacks.registry import Attack, Source, attack
from atmc.evaluation.accuracy import evaluate, predict

__all__ = ["Attack", "Source", "attack", "evaluate", "predict"]
