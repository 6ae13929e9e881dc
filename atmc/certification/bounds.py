"""Bounds of a network's logits over the ε-ball of each input, and what they prove.

An example is certified where the margin of its class over every other is positive in the whole
ball: then no attack within ε changes the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atmc.certification import affine, arrangement, elementwise  # noqa: F401  (the rules)
from atmc.certification.interval import Interval, NoRuleError, rounding
from atmc.errors import CertificationError
from atmc.inference import as_logits

_VALUES = 2**24  # of the differences of rows that are formed at a time


def ball(x: Tensor, eps: float, *, exact: bool = False) -> Interval:
    """The inputs within ε of ``x`` in ℓ∞, and in [0, 1].

    Args:
        x: inputs (n, ...) in [0, 1].
        eps: the radius.
        exact: whether rounding is accounted for: in float64, with a bound of that of float32.

    Raises:
        ValueError: a negative or NaN ε.
    """
    if not eps >= 0:
        raise ValueError(f"eps is {eps}: give a number of at least 0")
    if not exact:
        return Interval((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
    x = x.double()
    reach = eps + rounding(2, x.abs() + eps)  # of an attack that adds ε in float32
    return Interval((x - reach).clamp(0, 1), (x + reach).clamp(0, 1), torch.zeros_like(x))


def propagate(model: nn.Module, x: Interval) -> Interval:
    """The logits of a model over a box of inputs, (n, classes), in the mode in which it is.

    Raises:
        CertificationError: a function of torch that has no sound rule; the message names it and
            the layer.
    """
    try:
        logits = as_logits(model(x))
    except NoRuleError as error:
        raise CertificationError(_refusal(model, x, str(error))) from error
    if not isinstance(logits, Interval):
        raise CertificationError(
            f"{type(model).__name__} returns a constant: there is nothing to certify"
        )
    return logits


def _refusal(model: nn.Module, x: Interval, function: str) -> str:
    """Why a network has no bounds: run once more, to see which layer calls the function."""
    running: list[tuple[str, nn.Module]] = []
    hooks = []
    for name, module in model.named_modules():
        hooks.append(
            module.register_forward_pre_hook(
                lambda module, _, name=name: running.append((name, module))
            )
        )
        hooks.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        model(Interval(x.lower, x.upper, x.error, x.nominal))
    except NoRuleError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    name, module = running[-1] if running else ("", model)
    layer = f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
    return f"{layer} calls {function}, of which no sound bounds are known: leave it out, or attack"


def margins(logits: Interval, y: Tensor) -> Tensor:
    """Lower bounds of z_y - z_j over the box, (n, classes); 0 for j = y.

    Where the last layer is linear they are bounded with its rows W_y - W_j (Gowal et al., 2018,
    section 3), which is never looser than the difference of the bounds of both.

    Args:
        logits: of :func:`propagate`.
        y: classes (n,), int64.
    """
    if logits.head is None:
        lower = logits.lower.gather(1, y[:, None]) - logits.upper
    else:
        head = logits.head
        count = max(1, _VALUES // head.weight.numel())
        whole = head.input.centre, head.input.radius, y
        parts = zip(*(torch.split(each, count) for each in whole), strict=True)
        lower = torch.cat([_head_margins(head.weight, head.bias, *part) for part in parts])
    if logits.error is not None:
        lower = lower - logits.error - logits.error.gather(1, y[:, None])
    return lower.scatter(1, y[:, None], 0.0)


def _head_margins(
    weight: Tensor, bias: Tensor | None, centre: Tensor, radius: Tensor, y: Tensor
) -> Tensor:
    weight = weight.to(centre.dtype)
    rows = weight[y][:, None] - weight  # (n, classes, inputs)
    lower = (rows @ centre[:, :, None] - rows.abs() @ radius[:, :, None])[:, :, 0]
    if bias is not None:
        bias = bias.to(centre.dtype)
        lower = lower + bias[y][:, None] - bias
    return lower
