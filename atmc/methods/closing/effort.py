"""How often a stage does what is not a step, so that it takes a small share of the stage.

The interval follows from sizes: those of the model, its inputs, the batch and the attack. A clock
has no say in it: the same seed must give the same bytes. Sizes become seconds of a nominal machine,
two cores or a GPU; only their ratios count. Those of the cores were measured once, those of the GPU
are an estimate: from the rate of a step there, and a tenth of the cores' time for each weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atmc.factorization.layers import factorized_weights, live_factors
from atmc.inference import outputs

_FORWARDS = 50  # of one example, in the search for dead paths and the comparisons after it
_BACKWARD = 3  # forward passes that a forward and a backward pass are worth
_OVERHEAD = 1.5e-4  # seconds a layer in a pass of a batch, whatever its size


@dataclass(frozen=True)
class _Machine:
    """Multiply-adds a second in a pass; seconds for each weight, and for each layer, of an aim."""

    rate: float
    weight: float
    layer: float


_CPU = _Machine(rate=1e11, weight=2e-8, layer=2e-3)
_GPU = _Machine(rate=1.5e14, weight=2e-9, layer=3e-3)


@dataclass(frozen=True)
class Effort:
    """About how long the parts of a stage take, in seconds of a nominal machine.

    Attributes:
        step: one step: attack, training pass, update.
        aim: dead paths, scores, and the share of a real file that falls on an aim.
    """

    step: float
    aim: float

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, batch_size: int, gradients: int) -> Effort:
        """The effort of a stage.

        Args:
            model: factorized.
            x: a few inputs, (n, ...).
            batch_size: examples in a step.
            gradients: forward and backward passes of the batch in a step.
        """
        machine = _CPU if x.device.type == "cpu" else _GPU
        forward = multiply_adds(model, x) / machine.rate
        layers = len(factorized_weights(model))
        live = sum(factor.numel() for factor in live_factors(model).values())
        step = gradients * (_BACKWARD * batch_size * forward + layers * _OVERHEAD)
        aim = _FORWARDS * forward + live * machine.weight + layers * machine.layer
        return cls(step, aim)

    def interval(self, share: float, aims: float = 1.0) -> int:
        """Steps from one to the next, of what takes as long as so many aims.

        Args:
            share: of the time of all steps that it may take.
            aims: how long it takes.
        """
        return max(1, math.ceil(aims * self.aim / (share * self.step)))


def multiply_adds(model: nn.Module, x: Tensor) -> float:
    """About how many multiply-adds the forward pass of one example takes, in factorized layers.

    Args:
        model: factorized; it is not changed.
        x: a few inputs, (n, ...).
    """
    total = 0.0
    handles = []
    for weight in factorized_weights(model):
        layout = weight.parametrization.layout

        def add(
            module: nn.Module,
            inputs: object,
            output: object,
            size: int = math.prod(layout.shape),
            units: int = layout.rows * layout.groups,
        ) -> None:
            nonlocal total
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):  # a weight is used once for each place of its outputs
                total += size * first.numel() / (units * len(x))

        handles.append(
            model.get_submodule(weight.name.rpartition(".")[0]).register_forward_hook(add)
        )
    try:
        with torch.no_grad():
            outputs(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return total
