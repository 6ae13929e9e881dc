"""Gradients in channels_last where the activations are.

Where convolutions in channels_last end in a ``flatten``, the gradient comes back contiguous, and
every layer before it copies what it gets, the largest maps included. Converted once, at the
``flatten``, where the map is smallest, it stays in channels_last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from atmc.attacks.replacement import Replacement


class _Flatten(torch.autograd.Function):
    """``flatten(1)`` of a map in channels_last, with a gradient in channels_last."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.flatten(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].reshape(ctx.shape).contiguous(memory_format=torch.channels_last)


def _from_one(start_dim: int = 0, end_dim: int = -1) -> bool:
    return start_dim == 1 and end_dim in (-1, 3)


class ChannelsLastGradients(Replacement):
    """Inside, ``flatten(1)`` of a map in channels_last passes such a gradient on; values stay."""

    def replace(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Replace the flattening of such maps; compiled models arrange theirs."""
        if func in (torch.flatten, Tensor.flatten) and args and not torch.compiler.is_compiling():
            x, *dims = args
            last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            if last and x.requires_grad and not x.is_contiguous() and _from_one(*dims, **kwargs):
                flat: Tensor = _Flatten.apply(x)
                return flat
        return None
