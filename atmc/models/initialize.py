"""Initial weights: those that several models share, and those that can be asked for by name."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def kaiming(model: nn.Module) -> None:
    """Draw every 2-D convolution's weight for ReLU networks (He et al., ICCV 2015), in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _uniform(weight: Tensor) -> Tensor:
    bound = weight[0].numel() ** -0.5
    return nn.init.uniform_(weight, -bound, bound)


def _normal(weight: Tensor) -> Tensor:
    return nn.init.normal_(weight, std=weight[0].numel() ** -0.5)


def _interval(weight: Tensor) -> Tensor:
    """A layer and its ReLU keep the mean width of a box of inputs.

    With n inputs it grows by n E|w| / 2, which is 1 for normal weights of deviation √(2π) / n
    (Shi et al., "Fast certified robust training with short warmup", NeurIPS 2021, equation 6).
    """
    return nn.init.normal_(weight, std=math.sqrt(2 * math.pi) / weight[0].numel())


# The first seven of Ye et al. (ICCV 2019, table 6), of which "uniform" and "normal" are scaled to
# 1 / √(fan-in).
INITIALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": _uniform,
    "normal": _normal,
    "xavier-uniform": nn.init.xavier_uniform_,
    "xavier-normal": nn.init.xavier_normal_,
    "kaiming-uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "kaiming-normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
    "interval": _interval,
}


@torch.no_grad()
def initialize(model: nn.Module, name: str) -> None:
    """Draw the weights of all Conv2d and Linear layers anew, biases zero, in place.

    Raises:
        ValueError: no initialization of that name.
    """
    if name not in INITIALIZATIONS:
        known = ", ".join(INITIALIZATIONS)
        raise ValueError(f"unknown initialization {name!r} (known: {known})")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            INITIALIZATIONS[name](module.weight)
            if module.bias is not None:
                module.bias.zero_()
