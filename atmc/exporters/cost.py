"""What one example costs: the multiply-adds of a forward pass, and the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atmc.exporters.check import random_input
from atmc.exporters.quiet import quiet


@dataclass(frozen=True)
class Cost:
    """Of one model.

    Attributes:
        parameters: entries of all parameters, zeros included; a tied one counts once.
        multiply_adds: of all convolutions, linear and recurrent layers and other products of
            matrices for one example, zeros included.
    """

    parameters: int
    multiply_adds: int


def count(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Count what one example costs, on a forward pass.

    Args:
        model: plain, in eval mode.
        input_shape: of one input.
    """
    with _products(), quiet(), torch.no_grad(), _counter() as counter:
        model(random_input(model, input_shape, 1))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)  # a product and a sum are one


@contextmanager
def _products() -> Iterator[None]:
    """No kernel that does several products in one, which the counter of some torch cannot see.

    Attention runs as its two products, and recurrent layers a product a step.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), quiet(), torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _counter() -> FlopCounterMode:
    # nn.Bilinear's product is in no torch's table.
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten._trilinear: _trilinear})


def _trilinear(
    one: Sequence[int],
    two: Sequence[int],
    three: Sequence[int],
    *expanded: Sequence[int],
    **_: object,
) -> int:
    """Floating-point operations of a product of three tensors, each expanded along some axes."""
    shapes = []
    for shape, axes in zip((one, two, three), expanded, strict=False):
        sizes = list(shape)
        for axis in axes:
            sizes.insert(axis, 1)
        shapes.append(sizes)
    operations: int = 2 * math.prod(max(sizes) for sizes in zip(*shapes, strict=True))
    return operations
