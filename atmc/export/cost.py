"""What one example costs: the multiply-adds of a forward pass, and the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atmc.export.check import random_input
from atmc.export.quiet import quiet


@dataclass(frozen=True)
class Cost:
    """Of one model.

    Attributes:
        parameters: entries of all parameters, zeros included; a tied one counts once.
        multiply_adds: of all convolutions, linear layers and other matrix products for one
            example, zeros included.
    """

    parameters: int
    multiply_adds: int


def count(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Count what one example costs, on a forward pass.

    Args:
        model: plain, in eval mode.
        input_shape: of one input.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one kernel hides the products
    try:
        with quiet(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(random_input(model, input_shape, 1))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)  # a product and a sum are one
