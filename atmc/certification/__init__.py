"""Certified accuracy: bounds of what a network computes over the whole ε-ball of an input."""

from atmc.certification.bounds import ball, margins, propagate
from atmc.certification.certificate import Certificate
from atmc.certification.interval import Interval, NoRuleError, rule

__all__ = ["Certificate", "Interval", "NoRuleError", "ball", "margins", "propagate", "rule"]
