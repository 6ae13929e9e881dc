"""Rules of layers that are linear: centre and radius by the weights and by their absolute values.

With c and r the centre and the radius of the inputs, those of W x + b are W c + b and |W| r
(Gowal et al., "On the effectiveness of interval bound propagation", 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atmc.certification.interval import Head, Interval, NoRuleError, rounding, rule


def _affine(
    x: Interval,
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    weight: Tensor,
    bias: Tensor | None,
    terms: int,
) -> Interval:
    """The result of ``apply(input, weight, bias)``.

    Args:
        x: the input.
        apply: linear in the input and in the weight, plus the bias.
        weight: a constant.
        bias: a constant, or None.
        terms: products that are summed for an element.
    """
    if isinstance(weight, Interval) or isinstance(bias, Interval):
        raise NoRuleError("a product of two intervals")
    weight = weight.to(x.lower.dtype)
    bias = None if bias is None else bias.to(x.lower.dtype)
    # Halves of the weight stand for those of the sum and the difference, which are much larger.
    half = weight / 2
    centre = apply(x.lower + x.upper, half, bias)
    radius = apply(x.upper - x.lower, half.abs(), None)
    error = None
    if x.error is not None:
        size = weight.abs()
        magnitude = apply(x.magnitude, size, None if bias is None else bias.abs())
        # The sum of products, and the bias that is added to it.
        error = apply(x.error, size, None) + rounding(terms + 1, magnitude)
    return Interval(centre - radius, centre + radius, error)


@rule("linear", linear=True)
def _linear(input: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    result = _affine(input, F.linear, weight, bias, weight.shape[-1])
    if input.dim() == 2:
        box = Interval(input.lower, input.upper, input.error)  # the input itself may be changed
        result.head = Head(box, weight, bias)
    return result


@rule("matmul", "mm", "bmm", "__matmul__", linear=True)
def _matmul(input: Any, other: Any) -> Interval:
    if isinstance(input, Interval) and isinstance(other, Tensor):
        terms = other.shape[-2 if other.dim() > 1 else 0]
        return _affine(input, lambda x, weight, _: torch.matmul(x, weight), other, None, terms)
    terms = input.shape[-1]
    return _affine(other, lambda x, weight, _: torch.matmul(weight, x), input, None, terms)


def _convolution(name: str, transposed: bool) -> Callable[..., Interval]:
    def run(
        input: Interval, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Interval:
        def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = getattr(F, name)(x, weight, bias, *args, **kwargs)
            return result

        # Of a transposed one all kernel places of all inputs, at the most.
        terms = weight.numel() // (weight.shape[1] if transposed else weight.shape[0])
        return _affine(input, apply, weight, bias, terms)

    return run


for _dims in (1, 2, 3):
    for _name, _transposed in (f"conv{_dims}d", False), (f"conv_transpose{_dims}d", True):
        rule(_name, linear=True)(_convolution(_name, _transposed))


@rule("batch_norm", linear=True)
def _batch_norm(
    input: Interval,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Interval:
    if not training and running_mean is not None and running_var is not None:
        mean, variance = running_mean, running_var
    elif input.nominal is not None:
        dims = [dim for dim in range(input.dim()) if dim != 1]
        mean = input.nominal.mean(dims, keepdim=True)
        variance = (input.nominal - mean).square().mean(dims)  # faster than var on CPUs
        mean = mean.flatten()
    else:
        raise NoRuleError("batch norm by the statistics of the batch")
    kind = input.lower.dtype
    mean, variance = mean.to(kind), variance.to(kind)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(kind)
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.to(kind)
    shape = (1, -1, *[1] * (input.dim() - 2))
    half, shift = scale.reshape(shape) / 2, shift.reshape(shape)
    centre = torch.addcmul(shift, input.lower + input.upper, half)
    radius = (input.upper - input.lower) * half.abs()
    error = None
    if input.error is not None:
        # (x - mean) scale + bias, or x scale + (bias - mean scale): eight operations at most.
        constant = (mean * scale).abs()
        if bias is not None:
            constant = constant + bias.to(kind).abs()
        size = scale.abs().reshape(shape)
        magnitude = input.magnitude * size + constant.reshape(shape)
        error = input.error * size + rounding(8, magnitude)
    return Interval(centre - radius, centre + radius, error)


@rule("instance_norm", linear=True)
def _instance_norm(
    input: Interval,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Interval:
    if use_input_stats:
        raise NoRuleError("instance norm by the statistics of its input")
    return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
