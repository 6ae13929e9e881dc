"""What the modes have in common that replace functions of torch inside a ``with`` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Replacement(TorchFunctionMode, ABC):
    """Offers each call of a function of torch to :meth:`replace`."""

    @abstractmethod
    def replace(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """The result in place of the call's; None to leave the call to torch."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the replacement where there is one, else the call."""
        kwargs = kwargs or {}
        replaced = self.replace(func, args, kwargs)
        return func(*args, **kwargs) if replaced is None else replaced


Pair = tuple[int, int]  # rows, columns


def pair(value: Any) -> Pair:
    """A setting of a layer in two dimensions, which may be a single number."""
    values = [int(each) for each in value] if isinstance(value, Iterable) else [int(value)]
    return values[0], values[-1]
