"""The registry of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atmc.factorization.start import Factors
from atmc.methods.closing.target import Target
from atmc.parsing import nearest
from atmc.training.stage import Stage


@dataclass(frozen=True)
class Schedule:
    """Lengths and rates of a recipe's stages.

    Args:
        epochs: of all stages that compress, together.
        level_epochs: of the stage that trains levels, biases and norms alone.
        lr: peak learning rate.
        state_dtype: of ADMM's duplicates and duals, None for that of the factors.
        ratios: what layers keep, by layer name or pattern, where a method prunes layer by layer.
        factors: that may hold nonzeros, where a method can do without some.
    """

    epochs: int
    level_epochs: int
    lr: float
    state_dtype: torch.dtype | None = None
    ratios: Mapping[str, float] | None = None
    factors: Factors = "c"

    @property
    def halves(self) -> tuple[int, int]:
        """The epochs, split between pruning and what follows it."""
        return (self.epochs + 1) // 2, self.epochs // 2


Recipe = Callable[[Target, Schedule], Sequence[Stage]]
Least = Callable[[nn.Module, Target, Schedule, Tensor], int]


@dataclass(frozen=True)
class Method:
    """A way to reach the budget.

    Args:
        name: as the setting ``method`` has it.
        stages: the recipe after the dense start.
        attacked: whether the model is attacked while it is trained, its dense start included.
        least: the size in bits of the smallest file, in which every layer has the least that the
            method can leave, for a dense model (which it may change) and a few inputs; raises
            ValueError for a bad schedule. None where that is the empty file.
        auto_bits: b for "auto", where the method does not choose it.
        layerwise: whether it takes ratios.
        unified: whether it takes factors.
        bounded: whether there is a default budget.
    """

    name: str
    stages: Recipe
    attacked: bool = True
    least: Least | None = None
    auto_bits: int | None = None
    layerwise: bool = False
    unified: bool = False
    bounded: bool = True


_METHODS: dict[str, Method] = {}


def register(name: str, **traits: Any) -> Callable[[Recipe], Recipe]:
    """Register the decorated recipe as a method.

    Args:
        name: as the setting ``method`` has it.
        traits: of :class:`Method`.
    """

    def decorate(stages: Recipe) -> Recipe:
        _METHODS[name] = Method(name, stages, **traits)
        return stages

    return decorate


def names() -> tuple[str, ...]:
    """The names of all methods, in alphabetical order."""
    return tuple(sorted(_METHODS))


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the message gives the nearest one.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, names())}")
    return _METHODS[name]
