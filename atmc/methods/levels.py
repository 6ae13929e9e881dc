"""The stage that trains levels, biases and norms alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from torch import nn

from atmc.factorization.layers import (
    dense_part,
    factorize,
    live_factors,
    plain_weights,
    train_factors,
)
from atmc.factorization.norms import estimate_statistics, fold_statistics, foldable_norms
from atmc.inference import in_mode
from atmc.methods.closing.target import UNBOUNDED, Target, encoded_bits, fit
from atmc.methods.closing.unit_order import UnitOrder
from atmc.optim.codebooks import CodebookOptimizer, round_dense_part
from atmc.quantization.rates import FLOAT_BITS, level_bits
from atmc.training.optimization import Average
from atmc.training.stage import Stage

_STATISTICS_BATCHES = 16  # from which the statistics of norms are estimated
_FINER = (1, 2, 4)  # bits that a level may have more than it was trained at, where there is room


class LevelStage(Stage):
    """Positions and codes fixed: levels, biases and norms alone are trained.

    Levels have no weight decay: there are few, each fitted to the many entries that share it.
    Batch norms are as the file has them: their statistics, estimated at the start, are in their
    scales and shifts, which are trained and rounded.
    """

    name = "levels"

    def __init__(self, epochs: int, lr: float, target: Target) -> None:
        super().__init__(epochs, lr)
        self.target = target

    def reshape(self, model: nn.Module) -> None:
        """Factorize, where no earlier stage of this process has."""
        factorize(model, identity=False)

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam on the masters."""
        self.model = model
        train_factors(model)
        self.norms = list(foldable_norms(model).values())
        if self.norms and self.resumed is None:
            if self.total_steps > 0:  # a model that nothing trains stays as it is
                with in_mode(model, training=False), plain_weights(model):
                    estimate_statistics(model, self.sample(_STATISTICS_BATCHES))
            fold_statistics(model)
        floats = self.target.bits == FLOAT_BITS
        bits: Mapping[str, int] = {} if floats else _level_bits(model)
        self.optimizer = CodebookOptimizer(
            model,
            lambda masters: torch.optim.Adam([{"params": masters}], self.lr),
            width=self.target.width,
            level_bits=dict(bits),
        )
        if not self.optimizer.parts:  # the smallest files hold no value to train
            self.total_steps = 0
        return self.optimizer

    def set_mode(self, model: nn.Module) -> None:
        """Training mode, but for norms whose statistics are in their scales."""
        model.train()
        for norm in self.norms:
            norm.eval()

    def new_average(self, model: nn.Module) -> Average:
        """Of the masters, which are rounded as after any step, and of the running statistics."""
        masters = [part.master for part in self.optimizer.parts.values()]
        statistics = [t for t in dense_part(model).values() if not isinstance(t, nn.Parameter)]
        return Average([*masters, *statistics], self.optimization.ema, self.optimizer.write)

    def finish(self, model: nn.Module) -> None:
        """Round the norms' statistics; the file must still fit."""
        round_dense_part(model, self.target.width)
        self._write_finer(model)
        order = cache(lambda: UnitOrder.of(model, self.example))  # at most once, and only if needed
        fit(model, self.target, lambda model: order().sort(model))

    def _write_finer(self, model: nn.Module) -> None:
        """Where levels have become equal, and the file smaller, tell them apart by more bits."""
        target, written = self.target, 0
        for more in _FINER if target.budget_bits != UNBOUNDED else ():
            bits = encoded_bits(model, target, {})
            if bits > target.budget_bits or target.full(bits):
                break
            self.optimizer.write_finer(more)
            if encoded_bits(model, target, {}) > target.budget_bits:
                self.optimizer.write_finer(written)
                break
            written = more

    def state_dict(self) -> dict[str, Any]:
        """How the stage before closed the file."""
        return {"outcome": asdict(self.target.outcome)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.target.outcome.take(state["outcome"])

    def measure(self) -> dict[str, int]:
        """Nonzeros; the file does not change any more."""
        counts = [int(torch.count_nonzero(f)) for f in live_factors(self.model).values()]
        return {"nonzeros": sum(counts)}


def _level_bits(model: nn.Module) -> dict[str, int]:
    """Bits of a level, read off the codebooks that the factors hold."""
    bits = {}
    for name, factor in live_factors(model).items():
        nonzeros = factor.detach()[factor.detach() != 0]
        levels = len(torch.unique(nonzeros))
        if 0 < levels <= 256:
            bits[name] = level_bits(max(1, math.ceil(math.log2(levels))), len(nonzeros))
    return bits
