"""Rules of activations, of arithmetic, and of pools: both ends by the function itself.

A function that does not decrease in any of its inputs maps the ends of the inputs to the ends of
the outputs. The others are activations with one minimum, absolute values, squares and products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atmc.certification.interval import Interval, NoRuleError, Read, as_interval, rounding, rule

_STEPS = 16  # float32 operations that an activation counts as
_LARGEST_EXPONENT = 88  # of e in float32


def _activation(
    x: Interval, f: Callable[[Tensor], Tensor], slope: float = 1.0, exact: bool = False
) -> Interval:
    """The result of an activation that does not decrease.

    Args:
        x: its input.
        f: the activation.
        slope: the largest of its slopes.
        exact: whether float32 computes it without rounding.
    """
    lower, upper = f(x.lower), f(x.upper)
    return Interval(lower, upper, _error(x, lower, upper, slope, exact))


def _error(x: Interval, lower: Tensor, upper: Tensor, slope: float, exact: bool) -> Tensor | None:
    if x.error is None:
        return None
    error = slope * x.error
    if not exact:
        # Some cancel their input against a constant, so that this counts as well.
        size = torch.maximum(lower.abs(), upper.abs()) + torch.maximum(x.lower.abs(), x.upper.abs())
        error = error + rounding(_STEPS, size + error)
    return error


@rule("relu")
def _relu(input: Interval, inplace: bool = False) -> Interval:
    return _activation(input, F.relu, exact=True)


@rule("relu6")
def _relu6(input: Interval, inplace: bool = False) -> Interval:
    return _activation(input, F.relu6, exact=True)


@rule("hardtanh")
def _hardtanh(
    input: Interval, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Interval:
    return _activation(input, lambda end: F.hardtanh(end, min_val, max_val))


@rule("clamp", "clip")
def _clamp(input: Interval, min: Any = None, max: Any = None) -> Interval:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raise NoRuleError("clamp by tensors")
    return _activation(input, lambda end: end.clamp(min, max))


@rule("leaky_relu")
def _leaky_relu(input: Interval, negative_slope: float = 0.01, inplace: bool = False) -> Interval:
    if negative_slope < 0:
        raise NoRuleError("leaky_relu with a negative slope")
    slope = max(1.0, negative_slope)
    return _activation(input, lambda end: F.leaky_relu(end, negative_slope), slope)


@rule("prelu")
def _prelu(input: Interval, weight: Tensor) -> Interval:
    if bool((weight < 0).any()):
        raise NoRuleError("prelu with a negative slope")
    slope = max(1.0, float(weight.detach().max()))
    return _activation(input, lambda end: F.prelu(end, weight.to(end.dtype)), slope)


@rule("elu")
def _elu(input: Interval, alpha: float = 1.0, inplace: bool = False) -> Interval:
    if alpha < 0:
        raise NoRuleError("elu with a negative alpha")
    return _activation(input, lambda end: F.elu(end, alpha), max(1.0, alpha))


@rule("celu")
def _celu(input: Interval, alpha: float = 1.0, inplace: bool = False) -> Interval:
    if alpha < 0:
        raise NoRuleError("celu with a negative alpha")
    return _activation(input, lambda end: F.celu(end, alpha))


@rule("softplus")
def _softplus(input: Interval, beta: float = 1.0, threshold: float = 20.0) -> Interval:
    if beta <= 0:
        raise NoRuleError("softplus with a beta that is not positive")
    if threshold > _LARGEST_EXPONENT:
        raise NoRuleError(f"softplus with a threshold above {_LARGEST_EXPONENT}")
    jump = math.exp(-threshold) / beta  # where it becomes linear
    result = _activation(input, lambda end: F.softplus(end, beta, threshold))
    error = None if result.error is None else result.error + jump
    return Interval(result.lower - jump, result.upper + jump, error)


# By the largest slope.
_SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "sigmoid": (torch.sigmoid, 0.25),
    "tanh": (torch.tanh, 1.0),
    "selu": (F.selu, 1.7581),
    "logsigmoid": (F.logsigmoid, 1.0),
    "log_sigmoid": (F.logsigmoid, 1.0),
    "softsign": (F.softsign, 1.0),
    "hardsigmoid": (F.hardsigmoid, 1 / 6),
    "tanhshrink": (F.tanhshrink, 1.0),
    "atan": (torch.atan, 1.0),
    "erf": (torch.erf, 1.1284),
}


def _smooth(f: Callable[[Tensor], Tensor], slope: float) -> Callable[..., Interval]:
    def run(input: Interval, inplace: bool = False) -> Interval:
        return _activation(input, f, slope)

    return run


for _name, (_f, _slope) in _SMOOTH.items():
    rule(_name)(_smooth(_f, _slope))


def _one_minimum(
    x: Interval, f: Callable[[Tensor], Tensor], minimum: float, slope: float
) -> Interval:
    """The result of an activation that falls up to a point and rises after it.

    Args:
        x: its input.
        f: the activation.
        minimum: where it is least, to 10 digits.
        slope: the largest absolute value of its slopes.
    """
    first, second = f(x.lower), f(x.upper)
    least = f(torch.full_like(first, minimum)) - 1e-12
    inside = (x.lower <= minimum) & (minimum <= x.upper)
    lower = torch.where(inside, least, torch.minimum(first, second))
    upper = torch.maximum(first, second)
    return Interval(lower, upper, _error(x, lower, upper, slope, exact=False))


@rule("silu")
def _silu(input: Interval, inplace: bool = False) -> Interval:
    return _one_minimum(input, F.silu, -1.2784645428, 1.1)


@rule("mish")
def _mish(input: Interval, inplace: bool = False) -> Interval:
    return _one_minimum(input, F.mish, -1.1924312145, 1.1)


@rule("hardswish")
def _hardswish(input: Interval, inplace: bool = False) -> Interval:
    return _one_minimum(input, F.hardswish, -1.5, 1.5)


@rule("gelu")
def _gelu(input: Interval, approximate: str = "none") -> Interval:
    minimum = -0.7517915241 if approximate == "none" else -0.7524614122
    return _one_minimum(input, lambda end: F.gelu(end, approximate=approximate), minimum, 1.13)


@rule("add", "__add__", "__radd__", "__iadd__", linear=True)
def _add(input: Any, other: Any, *, alpha: float = 1) -> Interval:
    a, b = _pair(input, other)
    if alpha != 1:
        b = _scaled(b, torch.tensor(float(alpha), dtype=b.lower.dtype, device=b.device))
    lower, upper = a.lower + b.lower, a.upper + b.upper
    return Interval(lower, upper, _sum_error(a, b))


@rule("sub", "subtract", "__sub__", "__isub__", linear=True)
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Interval:
    return _add(input, other, alpha=-alpha)


@rule("__rsub__", "rsub", linear=True)
def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Interval:
    return _add(other, input, alpha=-alpha)


@rule("neg", "negative", "__neg__", linear=True)
def _neg(input: Interval) -> Interval:
    return Interval(-input.upper, -input.lower, input.error)


@rule("mul", "multiply", "__mul__", "__rmul__", "__imul__", linear=True)
def _mul(input: Any, other: Any) -> Interval:
    if not isinstance(input, Interval):
        input, other = other, input
    if not isinstance(other, Interval):
        return _scaled(input, torch.as_tensor(other, device=input.device).to(input.lower.dtype))
    if input.journal is not None:  # of two intervals it is not linear
        input.journal.append(Read("mul", input))
    products = [
        one * two for one in (input.lower, input.upper) for two in (other.lower, other.upper)
    ]
    error = None
    if input.error is not None and other.error is not None:
        # Each factor may be off; their errors count once more in the rounding.
        size = input.magnitude * other.magnitude
        error = input.magnitude * other.error + other.magnitude * input.error + rounding(1, size)
    lower, upper = products[0], products[0]
    for each in products[1:]:
        lower, upper = torch.minimum(lower, each), torch.maximum(upper, each)
    return Interval(lower, upper, error)


@rule("div", "divide", "true_divide", "__truediv__", "__itruediv__", linear=True)
def _div(input: Any, other: Any) -> Interval:
    if isinstance(other, Interval):
        raise NoRuleError("division by an interval")
    divisor = torch.as_tensor(other, device=input.device).to(input.lower.dtype)
    return _scaled(input, 1 / divisor)


def _scaled(x: Interval, factor: Tensor) -> Interval:
    one, two = x.lower * factor, x.upper * factor
    error = None
    if x.error is not None:
        size = torch.maximum(one.abs(), two.abs()) + x.error * factor.abs()
        error = x.error * factor.abs() + rounding(2, size)  # a quotient may be a product
    return Interval(torch.minimum(one, two), torch.maximum(one, two), error)


def _pair(one: Any, two: Any) -> tuple[Interval, Interval]:
    like: Interval = one if isinstance(one, Interval) else two
    return as_interval(one, like), as_interval(two, like)


def _sum_error(a: Interval, b: Interval) -> Tensor | None:
    if a.error is None or b.error is None:
        return None
    # A number among them is rounded too.
    total: Tensor = a.error + b.error + rounding(2, a.magnitude + b.magnitude)
    return total


@rule("abs", "absolute")
def _abs(input: Interval) -> Interval:
    one, two = input.lower.abs(), input.upper.abs()
    crosses = (input.lower < 0) & (input.upper > 0)
    lower = torch.where(crosses, torch.zeros_like(one), torch.minimum(one, two))
    return Interval(lower, torch.maximum(one, two), input.error)


@rule("square", "pow", "__pow__")
def _square(input: Interval, exponent: Any = 2) -> Interval:
    if exponent != 2:
        raise NoRuleError(f"the power {exponent}")
    size = _abs(input)
    error = None
    if input.error is not None:
        error = input.error * (2 * size.upper + input.error)
        error = error + rounding(1, input.magnitude.square())
    return Interval(size.lower.square(), size.upper.square(), error)


@rule("maximum", "fmax")
def _maximum(input: Any, other: Any) -> Interval:
    return _extreme(torch.maximum, input, other)


@rule("minimum", "fmin")
def _minimum(input: Any, other: Any) -> Interval:
    return _extreme(torch.minimum, input, other)


def _extreme(f: Callable[..., Tensor], one: Any, two: Any) -> Interval:
    a, b = _pair(one, two)
    error = None if a.error is None or b.error is None else torch.maximum(a.error, b.error)
    return Interval(f(a.lower, b.lower), f(a.upper, b.upper), error)


def _pool(name: str) -> Callable[..., Interval]:
    """The rule of a pool that takes the largest value of a window."""

    def run(input: Interval, *args: Any, **kwargs: Any) -> Interval:
        func = getattr(F, name, None) or getattr(torch, name)
        lower, upper = func(input.lower, *args, **kwargs), func(input.upper, *args, **kwargs)
        if not isinstance(lower, Tensor):
            raise NoRuleError(f"{name} with indices")
        error = None if input.error is None else func(input.error, *args, **kwargs)
        return Interval(lower, upper, error)

    return run


for _name in ("max_pool1d", "max_pool2d", "max_pool3d"):
    rule(_name)(_pool(_name))
for _name in ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "amax"):
    rule(_name)(_pool(_name))


def _mean(name: str, terms: Callable[..., int]) -> Callable[..., Interval]:
    """The rule of a weighted mean, or of a sum.

    Args:
        name: of the function.
        terms: how many elements a result sums at the most; of the input, the result, and the
            arguments after the input.
    """

    def run(input: Interval, *args: Any, **kwargs: Any) -> Interval:
        func = getattr(F, name, None) or getattr(torch, name)
        divisor = kwargs.get("divisor_override", args[5] if len(args) > 5 else None)
        if divisor is not None and divisor < 0:
            raise NoRuleError(f"{name} with a negative divisor")
        lower, upper = func(input.lower, *args, **kwargs), func(input.upper, *args, **kwargs)
        error = None
        if input.error is not None:
            size = func(input.magnitude, *args, **kwargs)
            count = terms(input, lower, *args, **kwargs)
            error = func(input.error, *args, **kwargs) + rounding(count, size)
        return Interval(lower, upper, error)

    return run


def _reduced(input: Interval, result: Tensor, *args: Any, **kwargs: Any) -> int:
    return input.numel() // max(1, result.numel()) + 1


def _window(dims: int) -> Callable[..., int]:
    def terms(input: Any, result: Any, kernel_size: Any, *args: Any, **kwargs: Any) -> int:
        sizes = list(kernel_size) if isinstance(kernel_size, Iterable) else [kernel_size]
        return int(math.prod(sizes if len(sizes) == dims else sizes * dims)) + 1

    return terms


def _adaptive_window(input: Interval, result: Tensor, *args: Any, **kwargs: Any) -> int:
    sides = zip(input.shape[1:], result.shape[1:], strict=True)
    return math.prod(1 if old == new else old // max(1, new) + 2 for old, new in sides) + 1


for _name in ("mean", "sum"):
    rule(_name, linear=True)(_mean(_name, _reduced))
for _dims in (1, 2, 3):
    rule(f"avg_pool{_dims}d", linear=True)(_mean(f"avg_pool{_dims}d", _window(_dims)))
for _name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"):
    rule(_name, linear=True)(_mean(_name, _adaptive_window))


@rule("interpolate", linear=True)
def _interpolate(
    input: Interval,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Interval:
    if mode == "bicubic" or antialias:
        raise NoRuleError(f"interpolate with mode {mode!r}")
    how = size, scale_factor, mode, align_corners, recompute_scale_factor
    if mode == "area":
        return _mean("interpolate", _adaptive_window)(input, *how)
    if mode.startswith("nearest") and input.error is not None:
        return _nearest(input, how)
    # Of eight neighbours at the most, each by a product of weights.
    result = _mean("interpolate", lambda *_, **__: 32)(input, *how)
    if input.error is None or result.error is None:
        return result
    # Places are numbers up to the longest side, rounded in float32; they are weights.
    dims = list(range(2, input.dim()))
    sides = [max(input.shape[dim], result.shape[dim]) for dim in dims]
    off = rounding(8 * sum(sides), input.magnitude.amax(dims, keepdim=True))
    return Interval(result.lower, result.upper, result.error + off)


def _nearest(input: Interval, how: tuple[Any, ...]) -> Interval:
    """The elements that float32 chooses: it may round a place to another one than float64."""
    sides = input.shape[2:]
    if math.prod(sides) > 2**24:
        raise NoRuleError("interpolate of more than 2**24 places")
    places = torch.arange(math.prod(sides), dtype=torch.float32, device=input.device)
    chosen = F.interpolate(places.reshape(1, 1, *sides), *how).long()[0, 0]

    def take(part: Tensor) -> Tensor:
        return part.flatten(2)[:, :, chosen.flatten()].reshape(*part.shape[:2], *chosen.shape)

    error = None if input.error is None else take(input.error)
    return Interval(take(input.lower), take(input.upper), error)
