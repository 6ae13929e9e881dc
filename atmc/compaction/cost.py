"""The cost of one example: multiply-adds of a forward pass, parameters, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atmc.compaction.check import Runner, quiet, random_input

_WARM_UP = 10
_LEAST, _MOST = 10, 200  # repetitions of each
_SECONDS = 3.0  # after which the least number is enough


class Cost(NamedTuple):
    """The cost of one example.

    Attributes:
        parameters: entries of all parameters, zeros included; a tied one counts once.
        multiply_adds: of all convolutions, linear and recurrent layers and other products of
            matrices for one example, zeros included.
    """

    parameters: int
    multiply_adds: int


def count(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Count the cost of one example, on a forward pass of a model in eval mode."""
    # nn.Bilinear's product is in no torch's table.
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._trilinear: _trilinear_operations}
    )
    with _separate_products(), quiet(), torch.no_grad(), counter:
        model(random_input(model, input_shape, 1))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)  # a product and a sum are one


@contextmanager
def _separate_products() -> Iterator[None]:
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


def _trilinear_operations(
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


def latencies(runners: Sequence[Runner], input_shape: tuple[int, ...]) -> list[float]:
    """The median time of a batch of one, in milliseconds, of each runner.

    They take turns, so that the load of the machine is shared among them.
    """
    x = torch.rand(1, *input_shape)
    for runner in runners:
        for _ in range(_WARM_UP):
            runner(x)
    seconds: list[list[float]] = [[] for _ in runners]
    start = time.perf_counter()
    for repetition in range(_MOST):
        if repetition >= _LEAST and time.perf_counter() - start > _SECONDS:
            break
        for runner, series in zip(runners, seconds, strict=True):
            before = time.perf_counter()
            runner(x)
            series.append(time.perf_counter() - before)
    return [1000 * statistics.median(series) for series in seconds]
