"""The model zoo: every model by name, inputs in [0, 1] and of shape (N, C, H, W).

Beside the models that are listed there are families, of any width and, for wide ResNets, depth; and
the classifiers of torchvision.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from atmc.models import from_torchvision
from atmc.models.digits import digits_cnn
from atmc.models.lenet import lenet5, lenet5_relu
from atmc.models.lenet_w import cifar_lenet_w, lenet_w
from atmc.models.normalize import Normalize
from atmc.models.resnet import resnet18, resnet18_w, resnet34
from atmc.models.vgg import vgg16_w
from atmc.models.wide_resnet import wrn

__all__ = ["ModelInfo", "Normalize", "create", "info", "known", "names", "shapes"]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is built.

    Attributes:
        name: the name `create` takes.
        build: the function that builds it from keyword arguments.
        input_shape: (C, H, W) of one input; None where it takes images of many sizes.
        dataset: the name of the data set it is for, None where none of ours is.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int] | None
    dataset: str | None

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments `create` accepts for this model, with their defaults."""
        parameters = inspect.signature(self.build).parameters
        return {name: parameter.default for name, parameter in parameters.items()}


@dataclass(frozen=True)
class _Family:
    """Models that differ in numbers, which their names hold.

    Attributes:
        form: of the names; each {} is a number, and they are the first arguments of `build`.
        build: the function that builds a member from its numbers and keyword arguments.
        input_shape: as in `ModelInfo`.
        dataset: likewise.
        usual: the numbers of the members that `names` lists.
    """

    form: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    dataset: str | None
    usual: tuple[tuple[int, ...], ...]

    def member(self, name: str) -> ModelInfo | None:
        """Return the member of this name, None where it is none of the family's."""
        match = re.fullmatch(self.form.replace("{}", r"([1-9]\d{0,2})"), name, re.ASCII)
        if match is None:
            return None
        build = functools.partial(self.build, *map(int, match.groups()))
        return ModelInfo(name, build, self.input_shape, self.dataset)

    def names(self) -> list[str]:
        """Return the names of the usual members."""
        return [self.form.format(*numbers) for numbers in self.usual]


_WIDTHS = ((1,), (2,), (4,), (8,), (16,))  # of Ye et al. (ICCV 2019, table 1)
_FAMILIES = (
    _Family("lenet-w{}", lenet_w, (1, 28, 28), "mnist", _WIDTHS),
    _Family("cifar-lenet-w{}", cifar_lenet_w, (3, 32, 32), None, _WIDTHS),
    _Family("vgg16-w{}", vgg16_w, (3, 32, 32), None, _WIDTHS),
    _Family("resnet18-w{}", resnet18_w, (3, 32, 32), None, _WIDTHS),
    _Family("wrn-{}-{}", wrn, (3, 32, 32), None, ((16, 8), (28, 4))),
)
_MODELS = {
    model.name: model
    for model in (
        ModelInfo("digits-cnn", digits_cnn, (1, 8, 8), "digits"),
        ModelInfo("lenet5", lenet5, (1, 28, 28), "mnist"),
        ModelInfo("lenet5-relu", lenet5_relu, (1, 28, 28), "mnist"),
        ModelInfo("resnet18", resnet18, (3, 32, 32), None),
        ModelInfo("resnet34", resnet34, (3, 32, 32), None),
    )
}


def names() -> tuple[str, ...]:
    """Return the names of the zoo, in alphabetical order; of a family the usual members."""
    return tuple(sorted([*_MODELS, *(name for family in _FAMILIES for name in family.names())]))


def known(name: str) -> bool:
    """Whether `create` knows a model of this name."""
    return _of_zoo(name) is not None or from_torchvision.known(name)


def _of_zoo(name: str) -> ModelInfo | None:
    members = (family.member(name) for family in _FAMILIES)
    return _MODELS.get(name) or next((member for member in members if member), None)


def info(name: str) -> ModelInfo:
    """Return what is known of the model `name`.

    Args:
        name: of the zoo, as in `names()` or another member of a family (`lenet-w3`, `wrn-40-2`), or
            of a classifier of torchvision (`mobilenet_v2`); `torchvision:resnet18` where the zoo
            has a model of that name, too.

    Raises:
        ValueError: there is no model of that name; the message gives the nearest one.
    """
    found = _of_zoo(name)
    if found is not None:
        return found
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
    built = model.build(**kwargs)
    vars(built)["_created_as"] = {"model": name, **({"kwargs": kwargs} if kwargs else {})}
    return built


def shapes(name: str, **kwargs: Any) -> nn.Module:
    """The model `name` without its values: parameters and buffers are on the device "meta".

    It takes no memory, however large the model is.

    Args:
        name: as `info` takes it.
        **kwargs: as `create` takes them.

    Raises:
        ValueError: as `create` does.
    """
    with _Meta():
        return create(name, **kwargs)


class _Meta(TorchFunctionMode):
    """Tensors that are made of a size alone are made on the device "meta".

    ``torch.device("meta")`` would put there what constructors compute with, too, such as the widths
    of RegNet's stages.
    """

    _SIZED = frozenset(
        {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
        | {torch.empty_strided}
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._SIZED and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
