"""Gradients that get past ReLUs which are off and inputs which a max-pool leaves out.

In a net of few weights most pixels have no gradient at all: the path of a pixel ends at a unit
that is off, or at a maximum that it loses. PGD cannot see such a pixel, so that the net looks more
robust than it is, and training on such attacks teaches it to look so. In the backward pass
differentiable approximation (BPDA, Athalye et al., ICML 2018) the forward pass is the net's, and
the backward pass that of a smoother net.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atmc.attacks.replacement import Pair, Replacement, pair

SLOPE = 0.1  # of a ReLU that is off, and the share of the gradient that a window's mean receives

_aten = torch.ops.aten


class _ReLU(torch.autograd.Function):
    """``relu`` with the gradient of a leaky one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool = False) -> Tensor:
        out = x.relu_() if inplace else x.relu()
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return _aten.leaky_relu_backward(gradients[0], out, SLOPE, True), None


class _MaxPool2d(torch.autograd.Function):
    """``max_pool2d`` with a part of the mean's gradient added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Pair, stride: Pair, padding: Pair, ceil: bool) -> Tensor:
        out, indices = _aten.max_pool2d_with_indices(x, size, stride, padding, (1, 1), ceil)
        ctx.save_for_backward(x, indices)
        ctx.geometry = size, stride, padding, ceil
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, indices = ctx.saved_tensors
        size, stride, padding, ceil = ctx.geometry
        (gradient,) = gradients
        maximum: Tensor = _aten.max_pool2d_with_indices_backward(
            gradient, x, size, stride, padding, (1, 1), ceil, indices
        )
        mean = _aten.avg_pool2d_backward(gradient, x, size, stride, padding, ceil, True, None)
        return maximum.add_(mean, alpha=SLOPE), None, None, None, None


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    out: Tensor = _ReLU.apply(input, inplace)
    return out


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    if pair(dilation) != (1, 1) or input.dim() != 4 or return_indices:
        return None
    size = pair(kernel_size)
    strides = size if stride is None or stride in ([], ()) else pair(stride)
    out: Tensor = _MaxPool2d.apply(input, size, strides, pair(padding), ceil_mode)
    return out


class SmoothGradients(Replacement):
    """Inside, ``relu`` and ``max_pool2d`` have a smoother gradient; their values stay.

    Pools of other dimensions than two, or with dilation, keep theirs.
    """

    def replace(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Replace the two functions where gradients are recorded."""
        if not torch.is_grad_enabled():
            return None
        if func in (F.relu, torch.relu, Tensor.relu):
            return _relu(*args, **kwargs)
        if func in (torch.relu_, Tensor.relu_):
            return _relu(args[0], inplace=True)
        if func in (F.max_pool2d, torch.max_pool2d):
            return _max_pool2d(*args, **kwargs)
        return None
