"""Convolutions of few input channels, with an input gradient that keeps the processor busy.

An attack asks for the gradient of the image, and the first layer of an image network has one
or three input channels. Vectorized kernels run over channels, so that the last link of every
attack step, small in arithmetic, is the slowest of all (for 1 -> 20 channels of 5x5, more than
a third of the step). One matrix product over all positions and a shifted sum a tap do the same
several times faster; in bfloat16, on processors with matrix units, a transposed convolution does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from atmc.attacks.replacement import Pair, Replacement, pair
from atmc.hardware import matrix_units

# Where torch's kernel is the slower one, by measurement.
_MOST_CHANNELS = 4
_LEAST_RATIO = 8  # output channels to input channels, above one input channel
_LEAST_POSITIONS = 2**14  # of the output, over the batch


class _ThinConv2d(torch.autograd.Function):
    """``F.conv2d`` with one group, differentiable in the input alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Pair
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = x.shape, *geometry
        stride, padding, dilation = geometry
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        return input_gradient(gradient, weight, *ctx.geometry), None, None, None, None, None


def input_gradient(
    gradient: Tensor, weight: Tensor, shape: torch.Size, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient of a convolution's input, the faster of two ways.

    Args:
        gradient: of the output, (n, out, oh, ow).
        weight: (out, in, kh, kw).
        shape: of the input, (n, in, h, w).
        stride, padding, dilation: of the convolution, (rows, columns).

    Returns:
        (n, in, h, w) in the gradient's type, summed in float32 or better.
    """
    if gradient.dtype == torch.bfloat16 and matrix_units():
        return _transposed(gradient, weight, shape, stride, padding, dilation)
    return _by_taps(gradient, weight, shape, stride, padding, dilation)


def _transposed(
    gradient: Tensor, weight: Tensor, shape: torch.Size, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """By torch's transposed convolution."""
    # Rows and columns at the end that no output depends on.
    unseen = [
        shape[2 + i]
        - ((gradient.shape[2 + i] - 1) * stride[i] - 2 * padding[i])
        - (dilation[i] * (weight.shape[2 + i] - 1) + 1)
        for i in range(2)
    ]
    return F.conv_transpose2d(gradient, weight, None, stride, padding, unseen, 1, dilation)


def _by_taps(
    gradient: Tensor, weight: Tensor, shape: torch.Size, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """By one product over all positions and one shifted sum a tap."""
    n, channels, height, width = shape
    out, _, kh, kw = weight.shape
    oh, ow = gradient.shape[2:]
    # A row a tap and channel, so that each shifted sum reads memory in order.
    taps = weight.permute(2, 3, 1, 0).reshape(kh * kw * channels, out)
    products = taps @ gradient.permute(0, 2, 3, 1).reshape(-1, out).t()
    total = torch.promote_types(gradient.dtype, torch.float32)
    shifted = products.to(total).view(kh * kw, channels, n, oh, ow).unbind(0)
    padded = (channels, n, height + 2 * padding[0], width + 2 * padding[1])
    summed = gradient.new_zeros(padded, dtype=total)
    planes, images, rows, columns = summed.stride()
    strides = (planes, images, rows * stride[0], columns * stride[1])
    for tap, values in enumerate(shifted):
        i, j = divmod(tap, kw)
        start = i * dilation[0] * rows + j * dilation[1] * columns
        summed.as_strided((channels, n, oh, ow), strides, start).add_(values)
    inside = summed[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return inside.transpose(0, 1).to(gradient.dtype)


def _geometry(
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Pair, Pair, Pair] | None:
    """Stride, padding and dilation; None of grouped convolutions, and of padding as a word."""
    if groups != 1 or isinstance(padding, str):
        return None
    return pair(stride), pair(padding), pair(dilation)


def _is_thin(x: Tensor, weight: Tensor, stride: tuple[int, int]) -> bool:
    """Whether the taps are the faster way for this call."""
    out, channels = weight.shape[:2]
    positions = x.shape[0] * x.shape[2] * x.shape[3] // (stride[0] * stride[1])
    wide = channels == 1 or out >= _LEAST_RATIO * channels
    return channels <= _MOST_CHANNELS and wide and positions >= _LEAST_POSITIONS


def _convolve(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | None:
    if not (input.requires_grad and input.device.type == "cpu" and input.dim() == 4):
        return None
    geometry = _geometry(*args, **kwargs)
    if geometry is None or not _is_thin(input, weight, geometry[0]):
        return None
    if torch.is_autocast_enabled("cpu") and input.dtype != torch.float64:
        kind = torch.get_autocast_dtype("cpu")
        input, weight = input.to(kind), weight.to(kind)
        bias = None if bias is None else bias.to(kind)
    bias = None if bias is None else bias.detach()
    return cast(Tensor, _ThinConv2d.apply(input, weight.detach(), bias, *geometry))


class ThinConvolutions(Replacement):
    """Inside, ``F.conv2d`` of few input channels on the CPU has the fast input gradient.

    Values are those of ``F.conv2d``; the input gradient differs by rounding. Weights and biases of
    those layers get no gradient, which an attack does not need: an autograd function computes every
    gradient that it has. A weight that is itself computed from the input is taken as a constant.
    Autocast applies as in ``F.conv2d``.
    """

    def replace(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Replace the convolutions that fit; compiled models have other kernels."""
        if func is F.conv2d and not torch.compiler.is_compiling():
            return _convolve(*args, **kwargs)
        return None
