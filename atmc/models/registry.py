"""Models by name: how a family of models is registered, and how one of them is created."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from atmc.models import from_torchvision

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

# The scaled widths that `names` lists: those of Ye et al. (ICCV 2019, table 1).
WIDTHS = (1, 2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known of a model, or of a family of them, before one is built.

    Attributes:
        name: the name `create` takes; of a family as ``wrn-{depth}-{width}``.
        build: the function that builds it from keyword arguments; of a family it takes the numbers
            of the name before them.
        input_shape: (C, H, W) of one input; None where it takes images of many sizes.
        dataset: the name of the data set it is for, None where none of ours is.
        listed: the names that `names` lists for it.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int] | None
    dataset: str | None
    listed: tuple[str, ...] = ()

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments `create` accepts for this model, with their defaults."""
        parameters = inspect.signature(self.build).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    @property
    def description(self) -> str:
        """What it is, in a line: the first of the builder's docstring."""
        build = self.build.func if isinstance(self.build, functools.partial) else self.build
        return (inspect.getdoc(build) or "").partition("\n")[0]

    def member(self, name: str) -> ModelInfo | None:
        """The member of this name; None where the family has none."""
        numbers = re.fullmatch(re.sub(r"{\w+}", r"([1-9]\\d{0,2})", self.name), name, re.ASCII)
        if numbers is None:
            return None
        build = functools.partial(self.build, *map(int, numbers.groups()))
        return dataclasses.replace(self, name=name, build=build, listed=(name,))


_ZOO: dict[str, ModelInfo] = {}


def register(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    dataset: str | None = None,
    listed: Iterable[str] = (),
) -> Callable[[Builder], Builder]:
    """Make the class or function that it decorates the builder of a model, or of a family.

    The first line of its docstring is the model's description. Its keyword arguments are those of
    `create`: `num_classes` (default 10), for colour images also `mean` and `std`.

    Args:
        name: of the model; of a family with a field for each number from 1 to 999, which the
            builder takes as its first arguments.
        input_shape: (C, H, W) of one input.
        dataset: the data set it is for, None where none of ours is.
        listed: the members of a family that `names` lists.

    Then ``create("one-layer-3", num_classes=4)`` and the setting ``model`` know this one::

        @register("one-layer-{width}", input_shape=(1, 8, 8), listed=("one-layer-16",))
        def one_layer(width: int, num_classes: int = 10) -> nn.Module:
            layers = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))
            return nn.Sequential(nn.Flatten(), *layers)
    """
    members = tuple(listed) if "{" in name else (name,)

    def decorate(build: Builder) -> Builder:
        _ZOO[name] = ModelInfo(name, build, input_shape, dataset, members)
        return build

    return decorate


def families() -> tuple[ModelInfo, ...]:
    """The zoo as it is registered, in alphabetical order; a family is one of them."""
    return tuple(_ZOO[name] for name in sorted(_ZOO))


def names() -> tuple[str, ...]:
    """The names of the zoo, in alphabetical order; of a family the members that it lists."""
    return tuple(sorted(name for family in _ZOO.values() for name in family.listed))


def _of_zoo(name: str) -> ModelInfo | None:
    return next(filter(None, (family.member(name) for family in _ZOO.values())), None)


def known(name: str) -> bool:
    """Whether `create` knows a model of this name."""
    return _of_zoo(name) is not None or from_torchvision.known(name)


def info(name: str) -> ModelInfo:
    """What is known of the model `name`.

    Args:
        name: of the zoo, as in `names()` or another member of a family (`lenet-w3`, `wrn-40-2`), or
            of a classifier of torchvision (`mobilenet_v2`); `torchvision:resnet18` where the zoo
            has a model of that name, too.

    Raises:
        ValueError: there is no model of that name; the message gives the nearest one.
    """
    model = _of_zoo(name)
    if model is not None:
        return model
    if from_torchvision.known(name):
        return ModelInfo(name, functools.partial(from_torchvision.build, name), None, None)
    everything = (*names(), *from_torchvision.names())
    nearest = difflib.get_close_matches(name, everything, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"unknown model {name!r}: did you mean {nearest!r}? (known: {', '.join(names())}, and "
        "torchvision's classifiers)"
    )


def create(name: str, **kwargs: Any) -> nn.Module:
    """Build the model `name` with fresh weights, drawn from torch's global generator.

    Args:
        name: as `info` takes it.
        **kwargs: all models take `num_classes` (default 10, of torchvision's 1000); those for
            colour images also take `mean` and `std` of the normalization inside them.

    Raises:
        ValueError: the name is unknown, or an argument is unknown or out of range.
    """
    model = info(name)
    for key in kwargs:
        if key not in model.kwargs:
            accepted = ", ".join(model.kwargs)
            raise ValueError(f"model {name!r} takes no argument {key!r}; it takes: {accepted}")
    classes = kwargs.get("num_classes", 10)
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 2:
        raise ValueError(f"num_classes must be an integer of at least 2, not {classes!r}")
    created = model.build(**kwargs)
    vars(created)["_created_as"] = {"model": name, **({"kwargs": kwargs} if kwargs else {})}
    return created


def shapes(name: str, **kwargs: Any) -> nn.Module:
    """The model `name` without its values: parameters and buffers are on the device "meta".

    It takes no memory, however large the model is. Arguments and errors are those of `create`.
    """
    with _Meta():
        return create(name, **kwargs)


class _Meta(TorchFunctionMode):
    """Creates tensors of which only a size is specified on the device "meta".

    ``torch.device("meta")`` would also put there what constructors compute with, such as the widths
    of RegNet's stages.
    """

    _SIZED = frozenset(
        {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
        | {torch.empty_strided}
    )
    # Of a tensor without values they change nothing, and take seconds for a large model.
    _FILLS = frozenset(
        {nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.kaiming_uniform_}
        | {nn.init.kaiming_normal_, Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_}
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FILLS:
            filled: Tensor = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        if func in self._SIZED and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
