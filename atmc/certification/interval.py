"""A box of tensors that goes through a network's own ``forward`` in place of one tensor.

An :class:`Interval` stands for all tensors between two ends. torch hands each function that is
called with one to the rule registered for it (``__torch_function__``), so that no module has to be
rewritten. A function without a rule is refused: what it does with a box is not known.

Beside the ends, which hold for real numbers, an interval has a bound of the rounding of float32.
A sum of n products of float32 numbers, in any order, is within γ_n Σ|a b| of the exact one, with
γ_n = n u / (1 - n u) and u = 2⁻²⁴ (Higham, "Accuracy and Stability of Numerical Algorithms", 2002,
section 3.1); where it may overflow, the bound is infinite. The ends are computed in float64, whose
own rounding is smaller by 2⁻²⁹ and is counted as one more float32 operation. To the network such
an interval is of float32, so that what it computes of constants is what it always computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from atmc.errors import CertificationError

Rule = TypeVar("Rule", bound=Callable[..., Any])

_UNIT = 2.0**-24  # the rounding of a float32 operation, relative to its result
_SMALLEST = 2.0**-126  # of a normal float32: products below it may become zero
_LARGEST = 2.0**127  # half of what float32 holds
_PLACES: tuple[Any, ...] = (Tensor, torch, F, torch._C._nn)  # where functions of torch are found
_METADATA = {
    *("dim", "size", "numel", "nelement", "ndimension", "element_size", "get_device", "stride"),
    *("is_floating_point", "is_complex", "is_contiguous", "__len__", "__hash__"),
}
_PROPERTIES = {
    "shape",
    "ndim",
    "dtype",
    "device",
    "is_cuda",
    "layout",
    "requires_grad",
    "is_sparse",
}


@dataclass(frozen=True)
class _Rule:
    run: Callable[..., Any]
    view: bool  # the result may share memory with an input
    linear: bool  # in the intervals among its arguments


_RULES: dict[Any, _Rule] = {}
_IN_PLACE: set[Any] = set()


class Read(NamedTuple):
    """What a function that is not linear has read: its name, and the interval."""

    function: str
    input: Interval


@dataclass
class Head:
    """The linear layer that gave an interval: its input, weight (classes, n) and bias (classes,).

    With it the margin of two classes is bounded by the difference of their rows.
    """

    input: Interval
    weight: Tensor
    bias: Tensor | None


class Interval(Tensor):
    """All tensors between two, elementwise.

    Args:
        lower: the lower ends, of any shape.
        upper: the upper ends, of the same shape.
        error: how far what float32 computes may lie from the exact value, elementwise; None where
            rounding is left out of account.
        nominal: one tensor of the box, which goes through the network with it; None for none.
            Batch norm in training mode takes its statistics from it.
        journal: receives what functions read that are not linear, in the order of the calls.
    """

    lower: Tensor
    upper: Tensor
    error: Tensor | None
    nominal: Tensor | None
    journal: list[Read] | None
    head: Head | None
    shared: bool  # with other tensors: not to be changed in place

    @staticmethod
    def __new__(
        cls,
        lower: Tensor,
        upper: Tensor,
        error: Tensor | None = None,
        nominal: Tensor | None = None,
        journal: list[Read] | None = None,
    ) -> Interval:
        """A tensor without storage of its own."""
        make: Callable[..., Interval] = Tensor._make_wrapper_subclass
        kind = lower.dtype if error is None else torch.float32
        return make(cls, lower.shape, dtype=kind, device=lower.device)

    def __init__(
        self,
        lower: Tensor,
        upper: Tensor,
        error: Tensor | None = None,
        nominal: Tensor | None = None,
        journal: list[Read] | None = None,
    ) -> None:
        self._set(lower, upper, error)
        self.nominal = nominal
        self.journal = journal
        self.shared = False

    def _set(self, lower: Tensor, upper: Tensor, error: Tensor | None) -> None:
        self.lower, self.upper, self.error = lower, upper, error
        self.head = None

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Interval({tuple(self.shape)}, {self.dtype})"

    @property
    def centre(self) -> Tensor:
        """The middle of the box."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width of the box, elementwise."""
        return (self.upper - self.lower) / 2

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value that float32 may compute, elementwise."""
        largest = torch.maximum(self.lower.abs(), self.upper.abs())
        return largest if self.error is None else largest + self.error

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own is declared as no method
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Refuse what torch does below its functions."""
        raise NoRuleError(str(func))

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Bound the results of a function of torch by its rule."""
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is None:
            if _is_metadata(func):
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            raise NoRuleError(_name(func))
        intervals = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Interval)]
        if kwargs.get("out") is not None:
            raise NoRuleError(f"{_name(func)} with out")
        if intervals[0].error is not None and torch.is_autocast_enabled(intervals[0].device.type):
            raise NoRuleError(f"{_name(func)} under autocast")
        in_place = func in _IN_PLACE or bool(kwargs.get("inplace"))
        journal = next((each.journal for each in intervals if each.journal is not None), None)
        if journal is not None and not rule.linear:
            before = intervals[0]
            journal.append(Read(_name(func), Interval(before.lower, before.upper, before.error)))
        result = rule.run(*args, **kwargs)
        if in_place and result is not args[0] and getattr(args[0], "shared", True):
            # Which other tensors see the change is not known.
            raise NoRuleError(f"{_name(func)} in place on a view, or on a tensor with views")
        if in_place and result.shape != args[0].shape:
            raise NoRuleError(f"{_name(func)} in place, which changes the shape")
        results = [each for each in tree_leaves(result) if isinstance(each, Interval)]
        if not results:
            return result  # a constant
        if any(each.nominal is not None for each in intervals) and results[0].nominal is None:
            nominal = tree_leaves(func(*tree_map(_nominal, args), **tree_map(_nominal, kwargs)))
            for each, value in zip(results, nominal, strict=True):
                each.nominal = value
        for each in results:
            each.journal = journal
            each.shared = each.shared or rule.view
        if rule.view:
            for each in intervals:
                each.shared = True
        if in_place:
            changed: Interval = args[0]
            changed._set(result.lower, result.upper, result.error)
            changed.nominal = result.nominal
            return changed
        return result


class NoRuleError(CertificationError):
    """A function that has no sound rule. Its first argument is the name of the function."""


def _nominal(value: Any) -> Any:
    if not isinstance(value, Interval):
        return value
    return value.centre if value.nominal is None else value.nominal


def _is_metadata(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(func.__self__, "__name__", "") in _PROPERTIES
    return name in _METADATA and getattr(Tensor, name, None) is func


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return func.__self__.__name__ if name == "__get__" else str(name)


def rule(*names: str, view: bool = False, linear: bool = False) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of functions of torch with these names.

    That is of ``Tensor``, ``torch`` and ``torch.nn.functional``, and of their in-place forms.

    Args:
        names: as in ``"relu"``, which stands for ``"relu_"`` too, or ``"__getitem__"``.
        view: whether the result may be a view of an input.
        linear: whether the function is linear, or affine, in the intervals among its arguments.
    """

    def decorate(run: Rule) -> Rule:
        for name in names:
            for place in _PLACES:
                for form in (name, f"{name}_"):
                    func = getattr(place, form, None)
                    if func is not None and not isinstance(func, type):
                        _RULES[func] = _Rule(run, view, linear)
                        if form != name:
                            _IN_PLACE.add(func)
        return run

    return decorate


def as_interval(value: Tensor | float, like: Interval) -> Interval:
    """A tensor or a number as the interval that contains it alone, of the type of ``like``."""
    if isinstance(value, Interval):
        return value
    exact = torch.as_tensor(value, device=like.device).to(like.lower.dtype)
    return Interval(exact, exact, None if like.error is None else torch.zeros_like(exact))


def rounding(terms: int, magnitude: Any) -> Any:
    """A bound of the rounding of ``terms`` float32 operations on values of that magnitude.

    Args:
        terms: operations that an element takes part in, one after the other.
        magnitude: the sum of the absolute values that they combine, a tensor or a number.

    Returns:
        The bound, like ``magnitude``; infinite where float32 may overflow, or where there are so
        many terms that nothing is known.
    """
    terms += 1  # for the rounding of float64
    if terms * _UNIT >= 0.5:
        return magnitude * math.inf
    bound = terms * _UNIT / (1 - terms * _UNIT) * magnitude + terms * _SMALLEST
    if isinstance(magnitude, Tensor):
        return torch.where(magnitude < _LARGEST, bound, math.inf)  # NaN is not below it either
    return bound if magnitude < _LARGEST else math.inf


def first_tensor(values: Sequence[Any]) -> Interval:
    """The first interval among arguments."""
    return next(each for each in tree_leaves(values) if isinstance(each, Interval))
