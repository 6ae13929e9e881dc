"""How long one example takes in onnxruntime, on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from atmc.exporters.onnx import OnnxRunner

_WARM_UP = 10
_LEAST, _MOST = 10, 200  # repetitions of each
_SECONDS = 3.0  # after which the least will do


def measure(files: Sequence[bytes], input_shape: tuple[int, ...]) -> list[float]:
    """The median time of a batch of one, in milliseconds, of each model.

    They take turns, so that what else the machine does is shared among them.

    Args:
        files: ONNX files, as bytes.
        input_shape: of one input.
    """
    runners = [OnnxRunner(data) for data in files]
    x = torch.rand(1, *input_shape)
    for runner in runners:
        for _ in range(_WARM_UP):
            runner(x)
    times: list[list[float]] = [[] for _ in runners]
    start = time.perf_counter()
    for repetition in range(_MOST):
        if repetition >= _LEAST and time.perf_counter() - start > _SECONDS:
            break
        for runner, held in zip(runners, times, strict=True):
            before = time.perf_counter()
            runner(x)
            held.append(time.perf_counter() - before)
    return [1000 * statistics.median(held) for held in times]
