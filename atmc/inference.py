"""Running a model: its outputs as logits, its mode, its device, seeds and noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from atmc.factorization.layers import plain_weights

PROBABILITIES = (
    "the outputs of the model are probabilities: a softmax or sigmoid inside it hides gradients, "
    "so that robust accuracies flatter it; let the model return logits"
)
_PROBABILITY_ERROR = 1e-3  # of a sum of probabilities, in half precision too
CLOSE = 1e-4  # of the largest output: the same, but for the order of sums


def main_output(output: object) -> object:
    """The main output of a network that may have auxiliary heads.

    torchvision's GoogLeNet and Inception v3 return a named tuple in training mode, other libraries
    a mapping, with the main head under ``logits``; in a plain tuple or list it comes first.

    Args:
        output: what the network returns.
    """
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if isinstance(output, (tuple, list)) and output:
        return getattr(output, "logits", output[0])
    return output


def as_logits(output: object) -> Tensor:
    """Logits of two classes or more, of shape (N, classes).

    A single logit z for each example, of shape (N, 1) or (N,), is read as the two logits 0 and z:
    the softmax over them is the sigmoid of z, and the cross-entropy the binary one.

    Args:
        output: what the network returns, as :func:`main_output` takes it.

    Raises:
        TypeError: the main output is not a tensor.
    """
    logits = main_output(output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model returns a {type(logits).__name__}, not a tensor of logits")
    if logits.dim() == 1:
        logits = logits[:, None]
    if logits.dim() == 2 and logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits


def are_probabilities(output: object) -> bool:
    """Whether outputs over a batch are probabilities, so that a softmax is inside the network.

    Every row is non-negative and sums to 1; a single column lies in [0, 1], on both sides of 1/2.

    Args:
        output: what the network returns, as :func:`main_output` takes it.
    """
    rows = main_output(output)
    if not isinstance(rows, Tensor) or rows.dim() not in (1, 2) or rows.numel() == 0:
        return False
    if bool((rows < 0).any()):
        return False
    if rows.dim() == 1 or rows.shape[1] == 1:
        return bool((rows <= 1).all() and (rows < 0.5).any() and (rows > 0.5).any())
    return bool(((rows.float().sum(1) - 1).abs() <= _PROBABILITY_ERROR).all())


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Inside, a model is in training or in eval mode; its modules' modes are restored after it."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def run(model: nn.Module, x: Tensor, training: bool = False) -> object:
    """What a model returns in eval mode, or in training mode; its mode is restored."""
    with in_mode(model, training), plain_weights(model):
        return model(x)


def outputs(model: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    """The main output of :func:`run`."""
    return cast(Tensor, main_output(run(model, x, training)))


def same(before: Tensor, after: Tensor) -> bool:
    """Whether outputs agree, but for the order of sums; False if one is NaN."""
    largest = float(before.abs().max())
    return float((after - before).abs().max()) <= CLOSE * largest + 1e-12


@contextlib.contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """No TF32 on a GPU, whose products and convolutions would round their inputs to 10 bits."""
    if device.type != "cuda":
        yield
        return
    backends: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def generator_of(x: Tensor, seed: int = 0) -> torch.Generator:
    """A generator of random numbers on the device of ``x``."""
    return torch.Generator(x.device).manual_seed(seed)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of the host and of the device.

    `torch.manual_seed` formats a stack trace for each kind of device that is missing, which takes
    longer than a step of a small model.
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
