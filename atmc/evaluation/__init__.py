"""Clean and robust accuracy of a decoded model."""

from __future__ import annotations

from atmc.evaluation.accuracy import Attack, attack, evaluate, predict

__all__ = ["Attack", "attack", "evaluate", "predict"]
