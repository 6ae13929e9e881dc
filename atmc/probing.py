"""Running a model to see whether a change has changed what it says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from atmc.factorization import plain_weights
from atmc.outputs import main_output

CLOSE = 1e-4  # of the largest output: the same, but for the order of sums


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Inside, a model is in training or in eval mode; the modes of its modules are put back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def run(model: nn.Module, x: Tensor, training: bool = False) -> object:
    """What a model returns in eval mode, or in training mode; its own mode is put back."""
    with in_mode(model, training), plain_weights(model):
        return model(x)


def outputs(model: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    """The main output of :func:`run`."""
    return cast(Tensor, main_output(run(model, x, training)))


def same(before: Tensor, after: Tensor) -> bool:
    """Whether outputs agree, but for the order of sums; never where one is NaN."""
    largest = float(before.abs().max())
    return float((after - before).abs().max()) <= CLOSE * largest + 1e-12


def generator_of(x: Tensor, seed: int = 0) -> torch.Generator:
    """A generator of random numbers where ``x`` is: what is large is not made on the host."""
    return torch.Generator(x.device).manual_seed(seed)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of the host and of the device.

    `torch.manual_seed` writes a stack trace for each kind of device that is not there, which takes
    longer than a step of a small model may.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise of the shape and range of ``x``."""
    low, high = x.min(), x.max()
    noise = torch.rand(x.shape, generator=generator, device=generator.device)
    return low + (high - low) * noise.to(x)
