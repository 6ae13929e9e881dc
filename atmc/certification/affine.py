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
    apply: Callable[[Tensor, Tensor], Tensor],
    weight: Tensor,
    shift: Tensor | None,
    terms: int,
) -> Interval:
    """The result of ``apply(input, weight) + shift``.

    Args:
        x: the input.
        apply: linear in the input and in the weight.
        weight: a constant.
        shift: a constant of a shape that broadcasts, or None.
        terms: products that are summed for an element.
    """
    if isinstance(weight, Interval) or isinstance(shift, Interval):
        raise NoRuleError("a product of two intervals")
    weight = weight.to(x.dtype)
    size = weight.abs()
    centre, radius = apply(x.centre, weight), apply(x.radius, size)
    error = None
    if x.error is not None:
        # The sum of products, and the shift that is added to it.
        steps = terms + 1
        error = apply(x.error, size) + rounding(steps, apply(x.magnitude, size))
    if shift is not None:
        shift = shift.to(x.dtype)
        centre = centre + shift
        if error is not None:
            error = error + rounding(terms + 1, shift.abs())
    return Interval(centre - radius, centre + radius, error)


@rule("linear", linear=True)
def _linear(input: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    result = _affine(input, F.linear, weight, bias, weight.shape[-1])
    if input.dim() == 2:
        result.head = Head(input, weight, bias)
    return result


@rule("matmul", "mm", "bmm", "__matmul__", linear=True)
def _matmul(input: Any, other: Any) -> Interval:
    if isinstance(input, Interval) and isinstance(other, Tensor):
        return _affine(input, torch.matmul, other, None, other.shape[-2 if other.dim() > 1 else 0])
    return _affine(other, lambda x, weight: torch.matmul(weight, x), input, None, input.shape[-1])


def _convolution(name: str, transposed: bool) -> Callable[..., Interval]:
    def run(
        input: Interval, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Interval:
        def apply(x: Tensor, weight: Tensor) -> Tensor:
            result: Tensor = getattr(F, name)(x, weight, None, *args, **kwargs)
            return result

        dims = weight.dim() - 2
        shift = None if bias is None else bias.reshape(-1, *[1] * dims)
        # Of a transposed one all kernel places of all inputs, at the most.
        terms = weight.numel() // (weight.shape[1] if transposed else weight.shape[0])
        return _affine(input, apply, weight, shift, terms)

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
        mean = input.nominal.mean(dims)
        variance = input.nominal.var(dims, unbiased=False)
    else:
        raise NoRuleError("batch norm by the statistics of the batch")
    mean, variance = mean.to(input.dtype), variance.to(input.dtype)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(input.dtype)
    shape = (1, -1, *[1] * (input.dim() - 2))
    scale, mean = scale.reshape(shape), mean.reshape(shape)
    one, two = (input.lower - mean) * scale, (input.upper - mean) * scale
    error = None
    if input.error is not None:
        # (x - mean) scale + bias, or x scale + (bias - mean scale): eight operations at most.
        size = (input.magnitude + mean.abs()) * scale.abs()
        error = input.error * scale.abs() + rounding(8, size)
    if bias is not None:
        shift = bias.to(input.dtype).reshape(shape)
        one, two = one + shift, two + shift
        error = None if error is None else error + rounding(8, shift.abs())
    return Interval(torch.minimum(one, two), torch.maximum(one, two), error)


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
