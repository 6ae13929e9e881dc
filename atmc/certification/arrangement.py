"""Rules of functions that move values and compute none: the ends move alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from atmc.certification.interval import (
    Interval,
    NoRuleError,
    as_interval,
    first_tensor,
    rounding,
    rule,
)

_VIEWS = (
    *("view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute"),
    *("transpose", "swapaxes", "movedim", "t", "expand", "expand_as", "contiguous", "chunk"),
    *("split", "unbind", "narrow", "select", "__getitem__", "detach", "channel_shuffle"),
    *("pixel_shuffle", "pixel_unshuffle"),
)
_COPIES = ("clone", "repeat", "repeat_interleave", "flip", "roll", "index_select", "tile")
_JOINTS = ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")


def _moved(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function that only moves values makes of an interval, or of several.

    Where it moves a constant, like an interval, that is a constant.
    """
    like = first_tensor((args, kwargs))

    def at(part: str) -> Any:
        def pick(value: Any) -> Any:
            return getattr(value, part) if isinstance(value, Interval) else value

        return func(*tree_map(pick, args), **tree_map(pick, kwargs))

    lower = at("lower")
    if args and isinstance(args[0], Tensor) and not isinstance(args[0], Interval):
        return lower
    upper, error = at("upper"), None if like.error is None else at("error")
    if isinstance(lower, Tensor):
        return Interval(lower, upper, error)
    errors = [None] * len(lower) if error is None else error
    return tuple(Interval(*parts) for parts in zip(lower, upper, errors, strict=True))


def _mover(name: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, torch.dtype) for each in (*args, *kwargs.values())):
            raise NoRuleError(f"{name} of the bits as another type")
        func = getattr(Tensor, name, None) or getattr(torch, name, None) or getattr(F, name)
        return _moved(func, *args, **kwargs)

    return run


for _each in _VIEWS:
    rule(_each, view=True, linear=True)(_mover(_each))
for _each in _COPIES:
    rule(_each, linear=True)(_mover(_each))


@rule("to", "float", "double", view=True, linear=True)
def _to(input: Any, *args: Any, **kwargs: Any) -> Any:
    """A type of more digits changes nothing; one of fewer rounds."""
    if not isinstance(input, Interval):  # a constant, to the type of an interval
        like = first_tensor((args, kwargs))
        return input.to(like.device, like.dtype)
    kept = {"memory_format", "non_blocking", "copy"}
    settings = {key: value for key, value in kwargs.items() if key not in kept}
    if input.error is None and (args or settings):
        moved: Interval = _moved(Tensor.to, input, *args, **settings)
        return moved
    for each in (*args, *settings.values()):
        kind = each.dtype if isinstance(each, Tensor) else each
        if isinstance(kind, torch.dtype) and kind not in (torch.float32, torch.float64):
            raise NoRuleError(f"a conversion to {kind}")
    return input


def _joint(name: str) -> Callable[..., Interval]:
    def run(tensors: Any, *args: Any, **kwargs: Any) -> Interval:
        like = first_tensor(tensors)
        parts = [as_interval(each, like) for each in tensors]
        joined: Interval = _moved(getattr(torch, name), parts, *args, **kwargs)
        return joined

    return run


for _each in _JOINTS:
    rule(_each, linear=True)(_joint(_each))


@rule("pad", linear=True)
def _pad(
    input: Interval, pad: list[int], mode: str = "constant", value: float | None = None
) -> Interval:
    error = None
    if input.error is not None:
        off = rounding(1, abs(value)) if mode == "constant" and value else None
        error = F.pad(input.error, pad, mode, off)
    lower, upper = (F.pad(end, pad, mode, value) for end in (input.lower, input.upper))
    return Interval(lower, upper, error)


def _dropout(name: str) -> Callable[..., Interval]:
    def run(
        input: Interval, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Interval:
        if not training or p == 0:
            return input
        if input.error is not None:
            raise NoRuleError(f"{name} in training mode")
        mask: Tensor = getattr(F, name)(torch.ones_like(input.lower), p)
        result = Interval(mask * input.lower, mask * input.upper)
        if input.nominal is not None:
            result.nominal = mask * input.nominal
        return result

    return run


for _each in ("dropout", "dropout1d", "dropout2d", "dropout3d"):
    rule(_each, linear=True)(_dropout(_each))


def _constant(name: str) -> Callable[..., Tensor]:
    def run(input: Interval, *args: Any, **kwargs: Any) -> Tensor:
        func = getattr(torch, name, None) or getattr(Tensor, name)
        made: Tensor = func(input.lower.detach().to(input.dtype), *args, **kwargs)
        return made

    return run


for _each in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"):
    rule(_each, linear=True)(_constant(_each))
