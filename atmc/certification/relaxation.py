"""Bounds by a linear relaxation, backwards from the margins to the inputs (CROWN).

Zhang et al., "Efficient neural network robustness certification with general activation functions",
NeurIPS 2018. Each ReLU and max-pool is replaced by a linear function that bounds it over the
interval that it reads (here of interval bounds, as in CROWN-IBP, Zhang et al., ICLR 2020): from
below where the margin rises with it, from above where it falls. The margin over the ball is then at
least that of a linear function of the inputs.

The coefficients of that function are a backward pass in which the replaced functions have the
slopes of their bounds. Its value at the centre of the ball is the margin there, less what each
function lies off its bound there, times its coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from atmc.attacks.replacement import Pair, Replacement, pair
from atmc.certification.bounds import margins
from atmc.certification.interval import Interval, Read
from atmc.errors import CertificationError
from atmc.inference import as_logits

# Functions that read the shape or the type of a tensor, not its values.
_CONSTANTS = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
_BY_SHAPE = {"expand_as", "view_as", "to"}  # of their second argument


class _Slack:
    """What the functions of a pass lie off their bounds, times their coefficients: (n,)."""

    def __init__(self) -> None:
        self.total = torch.zeros(0)

    def add(self, coefficients: Tensor, off_lower: Tensor, off_upper: Tensor) -> None:
        off = coefficients * torch.where(coefficients >= 0, off_lower, off_upper)
        if len(self.total) == 1:  # all is of that example
            off = off[None]
        elif off.shape[0] != len(self.total):
            raise _unknown("another order of dimensions than (examples, ...)")
        self.total = self.total + off.flatten(1).sum(1)


class _ReLU(torch.autograd.Function):
    """``relu``, whose backward pass has the slopes of its linear bounds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: Tensor, upper: Tensor, slack: _Slack) -> Tensor:
        out = x.relu()
        ctx.save_for_backward(x, lower, upper, out)
        ctx.slack = slack
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, lower, upper, out = ctx.saved_tensors
        (coefficients,) = gradients
        unstable = (lower < 0) & (upper > 0)
        on = (lower >= 0).to(x.dtype)
        chord = torch.where(unstable, upper / (upper - lower).clamp(min=1e-300), on)
        ray = torch.where(unstable, (upper > -lower).to(x.dtype), on)  # the tighter of 0 and x
        shift = torch.where(unstable, -chord * lower, torch.zeros_like(x))
        ctx.slack.add(coefficients, out - ray * x, out - (chord * x + shift))
        return coefficients * torch.where(coefficients >= 0, ray, chord), None, None, None


class _MaxPool2d(torch.autograd.Function):
    """``max_pool2d``: from below its input of the largest lower end, from above the largest end.

    Where that input is the largest for certain, it is the result.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lower: Tensor, upper: Tensor, slack: _Slack, windows: _Windows
    ) -> Tensor:
        least, best = windows(lower).max(-1)
        ends = windows(upper)
        most = ends.amax(-1)
        others = ends.scatter(-1, best[..., None], -torch.inf).amax(-1)
        values = windows(x)
        out = values.amax(-1)
        chosen = values.gather(-1, best[..., None])[..., 0]
        ctx.save_for_backward(best, others <= least, out - chosen, out - most)
        ctx.shape, ctx.slack, ctx.windows = x.shape, slack, windows
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        best, certain, off_chosen, off_most = ctx.saved_tensors
        (coefficients,) = gradients
        off_upper = torch.where(certain, off_chosen, off_most)
        ctx.slack.add(coefficients, off_chosen, off_upper)
        passed = torch.where((coefficients >= 0) | certain, coefficients, 0.0)
        with torch.enable_grad():
            x = passed.new_zeros(ctx.shape, requires_grad=True)
            chosen = ctx.windows(x).gather(-1, best[..., None])[..., 0]
        return torch.autograd.grad(chosen, x, passed)[0], None, None, None, None


class _Windows:
    """The inputs of each window of a pool: (n, channels, rows, columns, inputs)."""

    def __init__(self, size: Pair, stride: Pair, padding: Pair) -> None:
        self.size, self.stride, self.padding = size, stride, padding

    def __call__(self, x: Tensor) -> Tensor:
        rows, columns = self.padding
        x = F.pad(x, (columns, columns, rows, rows), value=-torch.inf)
        for dim in (0, 1):
            x = x.unfold(2 + dim, self.size[dim], self.stride[dim])
        return x.flatten(-2)


class _Relaxed(Replacement):
    """Inside, functions that are not linear are bounded over the intervals that they read."""

    def __init__(self, journal: list[Read]) -> None:
        super().__init__()
        self.reads = iter(journal)
        self.slack = _Slack()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the call, and see that its result still depends on the inputs for autograd."""
        result = super().__torch_function__(func, types, args, kwargs)
        name = getattr(func, "__name__", "")
        of_constant = name in _BY_SHAPE and not _requires_grad(args[:1])
        if name in _CONSTANTS or of_constant:
            return result
        if _requires_grad((args, kwargs)) and any(
            isinstance(each, Tensor) and each.is_floating_point() and not each.requires_grad
            for each in tree_leaves(result)
        ):
            raise _unknown("a value that has no gradient (no_grad, detach)")
        return result

    def replace(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Replace ReLU and max-pool; the interval pass has seen that there is nothing else."""
        result: Tensor
        if not args and "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        if not args or not isinstance(args[0], Tensor) or not args[0].requires_grad:
            return None  # a constant, which the interval pass has not recorded
        if func in (F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_):
            box, x = self._next(args[0]), args[0]
            in_place = func in (torch.relu_, Tensor.relu_) or kwargs.get("inplace", False)
            read = x.clone() if in_place else x
            result = _ReLU.apply(read, box.lower, box.upper, self.slack)
            return x.copy_(result) if in_place else result
        if func in (F.max_pool2d, torch.max_pool2d):
            box = self._next(args[0])
            windows = _pool_windows(*args[1:], **kwargs)
            result = _MaxPool2d.apply(args[0], box.lower, box.upper, self.slack, windows)
            return result
        return None

    def _next(self, x: Tensor) -> Interval:
        """The interval that the function at hand has read, which contains ``x``."""
        read = next(self.reads, None)
        slack = 1e-9 * (1 + x.detach().abs())
        if (
            read is None
            or read.input.shape != x.shape
            or not bool(((x >= read.input.lower - slack) & (x <= read.input.upper + slack)).all())
        ):
            raise _unknown("another way through its layers at each call")
        return read.input

    def check_end(self, values: Tensor) -> None:
        """Refuse a pass that has left out what was recorded, or has gradients of its own."""
        if next(self.reads, None) is not None:
            raise _unknown("another way through its layers at each call")
        left, seen = [values.grad_fn], set()
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            kind = getattr(node, "_forward_cls", None)  # of functions written in Python
            if kind not in (None, _ReLU, _MaxPool2d):
                raise _unknown(f"a gradient of its own ({kind.__name__})")
            left += [each for each, _ in node.next_functions]


def _requires_grad(values: Any) -> bool:
    return any(isinstance(each, Tensor) and each.requires_grad for each in tree_leaves(values))


def _unknown(what: str) -> CertificationError:
    return CertificationError(f"the network has {what}: use interval bounds")


def _pool_windows(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> _Windows:
    if pair(dilation) != (1, 1) or ceil_mode or return_indices:
        raise CertificationError(
            "the linear relaxation knows no max_pool2d with dilation, ceil_mode or indices: "
            "use interval bounds"
        )
    size = pair(kernel_size)
    return _Windows(size, size if stride in (None, [], ()) else pair(stride), pair(padding))


def relaxed_margins(twin: nn.Module, x: Interval, logits: Interval, y: Tensor) -> Tensor:
    """Lower bounds of z_y - z_j over a box, (n, classes), 0 for j = y: the better of both kinds.

    Args:
        twin: a network of linear layers, ReLU and max_pool2d, in eval mode, in the type of the ends
            of ``x``, with parameters that require no gradient.
        x: the box, with the journal of the pass that gave ``logits``.
        logits: of :func:`~atmc.certification.bounds.propagate` over it, in any type of the network.
        y: classes (n,), int64.

    Raises:
        CertificationError: another function in the network; the message names it. Or a network
            that detaches values, has gradients of its own, or mixes the examples of a batch.
    """
    assert x.journal is not None
    best = margins(logits, y)
    for each in x.journal:
        if each.function not in ("relu", "max_pool2d"):
            raise CertificationError(
                f"the linear relaxation knows linear layers, ReLU and max_pool2d, not "
                f"{each.function}: use interval bounds"
            )
    centre = x.centre.requires_grad_()
    relaxed = _Relaxed(x.journal)
    try:
        with torch.enable_grad(), relaxed:
            values = as_logits(twin(centre))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as failure:  # of types that do not go together
        raise _unknown("layers that do not run in float64") from failure
    if not values.requires_grad:
        raise _unknown("outputs that have no gradient (no_grad, detach)")
    relaxed.check_end(values)
    off = 1e-9 * (1 + values.detach().abs())
    if not bool(((values >= logits.lower - off) & (values <= logits.upper + off)).all()):
        raise _unknown("other outputs in float64 than in float32")
    error = 0.0 if logits.error is None else logits.error + logits.error.gather(1, y[:, None])
    columns = []
    for other in range(values.shape[1]):
        with torch.enable_grad():
            margin = values.gather(1, y[:, None])[:, 0] - values[:, other]
        weights = torch.ones_like(margin)
        slopes, slack = _backward(relaxed.slack, margin, centre, weights)
        if other == 0:
            _check_independent(relaxed.slack, margin, centre, slopes, slack)
        reach = (slopes.abs() * x.radius).flatten(1).sum(1)
        columns.append(margin.detach() - slack - reach)
    lower = torch.stack(columns, 1) - error
    return torch.maximum(best, lower.scatter(1, y[:, None], 0.0))


def _backward(
    slack: _Slack, margin: Tensor, centre: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Slopes of the inputs, and the slack of each example, of the weighted sum of the margins."""
    slack.total = torch.zeros_like(weights)
    (slopes,) = torch.autograd.grad(margin, centre, weights, retain_graph=True)
    return slopes, slack.total


def _check_independent(
    slack: _Slack, margin: Tensor, centre: Tensor, slopes: Tensor, total: Tensor
) -> None:
    """Refuse a network in which the answer for an example depends on the others of its batch.

    With other weights of the examples, slopes and slack of each are in proportion to its weight.
    """
    generator = torch.Generator().manual_seed(0)
    weights = 1 + torch.rand(len(margin), generator=generator, dtype=margin.dtype)
    weights = weights.to(margin.device)
    again, total_again = _backward(slack, margin, centre, weights)
    expected = weights.reshape(-1, *[1] * (slopes.dim() - 1)) * slopes
    for one, other in (again, expected), (total_again, weights * total):
        if not torch.allclose(one, other, rtol=1e-6, atol=1e-9 * float(other.abs().max())):
            raise _unknown("answers that depend on the other examples of a batch")
