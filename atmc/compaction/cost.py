"""The cost of one example: multiply-adds of a forward pass, parameters, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atmc import codec
from atmc.compaction.check import Runner, first_line, quiet, random_input
from atmc.compaction.compaction import compact
from atmc.hardware import forked_generators
from atmc.models.preparation import copy_model

_WARM_UP = 10
_LEAST, _MOST = 5, 100  # repetitions of each
_SECONDS = 0.5  # of timing at the end of a run


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


@torch.no_grad()
def latencies(runners: Sequence[Runner], x: Tensor, seconds: float = 3.0) -> list[float]:
    """The median time of a pass over ``x``, in milliseconds, of each runner.

    They take turns, so that the load of the machine is shared among them.

    Args:
        runners: what is timed.
        x: the input, such as a batch of one.
        seconds: after which the least number of repetitions is enough.
    """
    start = time.perf_counter()
    for _ in range(_WARM_UP):
        _turn(runners, x)
        if time.perf_counter() - start > seconds / 4:
            break
    start, turns = time.perf_counter(), []
    for repetition in range(_MOST):
        if repetition >= _LEAST and time.perf_counter() - start > seconds:
            break
        turns.append(_turn(runners, x))
    return [1000 * statistics.median(series) for series in zip(*turns, strict=True)]


def _turn(runners: Sequence[Runner], x: Tensor) -> list[float]:
    """The seconds that each runner takes once, one after the other."""
    times = []
    for runner in runners:
        before = time.perf_counter()
        runner(x)
        times.append(time.perf_counter() - before)
    return times


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure(
    model: nn.Module, input_shape: tuple[int, ...], artifact: codec.Artifact
) -> dict[str, Any]:
    """The cost of one example before and after compaction, as report.json has it.

    Latencies are medians of a batch of one in PyTorch, on one thread of the processor, which other
    processes on the machine disturb least. Nothing is raised: not every model that can be
    compressed can be traced and counted.

    Args:
        model: plain, as decoded, on the processor; it is not changed.
        input_shape: of one input.
        artifact: that it was decoded from.

    Returns:
        ``{"dense", "compact", "thin", "error"}``: ``"dense"`` is the model as it is, and
        ``"compact"`` what :func:`atmc.compaction.compact` makes of it, each with ``"parameters"``,
        ``"multiply_adds"`` and ``"latency_ms"``; ``"thin"`` lists the layers that became two. What
        cannot be measured is None, and ``"error"`` says why, else None.
    """
    report: dict[str, Any] = dict.fromkeys(("dense", "compact", "thin", "error"))
    try:
        with forked_generators(), quiet():
            dense = copy_model(model).eval().to(memory_format=torch.contiguous_format)
            report["dense"] = count(dense, input_shape)._asdict() | {"latency_ms": None}
            smaller, thin = compact(dense, input_shape, artifact)
            report["compact"] = count(smaller, input_shape)._asdict() | {"latency_ms": None}
            report["thin"] = list(thin)
            x = random_input(dense, input_shape, 1)
            with _one_thread():
                times = latencies((dense, smaller), x, _SECONDS)
            for name, latency in zip(("dense", "compact"), times, strict=True):
                report[name]["latency_ms"] = latency
    except Exception as error:  # users' models raise errors of any kind
        report["error"] = first_line(error)
    return report
