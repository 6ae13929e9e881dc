"""Batch norms whose running statistics are in their scale and shift.

In eval mode a norm computes γ (x - μ) / √(σ² + ε) + β: of four numbers a channel two matter. A file
stores these two, γ √(1 + ε) / √(σ² + ε) and β - γ μ / √(σ² + ε), beside a mean of 0 and a variance
of 1, which take next to nothing. A channel that never varies, such as one whose weights are all
pruned, is its shift alone: its scale would be some 300 γ, and all scales of a norm are rounded in
steps of a share of the largest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_STATISTICS = ("running_mean", "running_var")
_CONSTANT = 1e-6  # of ε: such a variance is rounding, and makes an output vary by γ / 1000


def foldable_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The batch norms of a model that have a scale, a shift and running statistics to themselves.

    By name; a module that is used twice comes once. Subclasses are left out: they may compute
    something else.
    """
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    norms = {}
    for name, module in model.named_modules():
        if type(module) in _KINDS:
            norm = cast(nn.modules.batchnorm._BatchNorm, module)
            tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            tied = any(owners[id(p)] > 1 for p in (norm.weight, norm.bias))
            if all(isinstance(tensor, Tensor) for tensor in tensors) and not tied:
                norms[name] = norm
    return norms


def statistics_names(model: nn.Module) -> list[str]:
    """The names of the running statistics of :func:`foldable_norms`."""
    return [f"{n}.{part}" if n else part for n in foldable_norms(model) for part in _STATISTICS]


@torch.no_grad()
def folded_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Scales, shifts and statistics of :func:`foldable_norms` as a file stores them, by name.

    Those of a norm whose mean is 0 and whose variance is 1 do not change. The scale of a channel
    without variance is 0.
    """
    values: dict[str, Tensor] = {}
    for name, norm in foldable_norms(model).items():
        mean, variance = (cast(Tensor, getattr(norm, part)).double() for part in _STATISTICS)
        ratio = math.sqrt(1 + norm.eps) / (variance.clamp(min=0) + norm.eps).sqrt()
        scale = norm.weight.double() * ratio * (variance > _CONSTANT * norm.eps)
        shift = norm.bias.double() - scale * mean / math.sqrt(1 + norm.eps)
        parts = {"weight": scale, "bias": shift}
        parts |= {"running_mean": torch.zeros_like(mean), "running_var": torch.ones_like(variance)}
        for part, value in parts.items():
            like = cast(Tensor, getattr(norm, part))
            values[f"{name}.{part}" if name else part] = value.to(like)
    return values


@torch.no_grad()
def fold_statistics(model: nn.Module) -> None:
    """Move the running statistics of :func:`foldable_norms` into their scales and shifts, in place.

    In eval mode the model computes the same as before; in training mode it does not.
    """
    for name, value in folded_statistics(model).items():
        module, _, part = name.rpartition(".")
        cast(Tensor, getattr(model.get_submodule(module), part)).copy_(value)


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Take the running statistics of all batch norms anew, as means over batches, in place.

    Args:
        model: whose other modules run in the mode in which they are.
        batches: of inputs; none for no change.
    """
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]
    if not norms or not batches:
        return
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for x in batches:
            model(x)
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training
