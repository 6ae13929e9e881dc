"""The model zoo: every model by name, inputs in [0, 1] and of shape (N, C, H, W)."""

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from atmc.models.digits import digits_cnn
from atmc.models.lenet import lenet5, lenet5_relu
from atmc.models.lenet_w import cifar_lenet_w, lenet_w
from atmc.models.normalize import Normalize
from atmc.models.resnet import resnet18, resnet18_w, resnet34
from atmc.models.vgg import vgg16_w
from atmc.models.wide_resnet import wrn_16_8

__all__ = ["ModelInfo", "Normalize", "create", "info", "names"]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is built.

    Attributes:
        name: the name `create` takes.
        build: the function that builds it from keyword arguments.
        input_shape: (C, H, W) of one input.
        dataset: the name of the data set it is for, None where none of ours is.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    dataset: str | None

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments `create` accepts for this model, with their defaults."""
        parameters = inspect.signature(self.build).parameters
        return {name: parameter.default for name, parameter in parameters.items()}


def _scaled(
    family: str, build: Callable[..., nn.Module], shape: tuple[int, int, int], dataset: str | None
) -> list[ModelInfo]:
    """A family at the widths of Ye et al. (ICCV 2019, table 1): `lenet-w4` and the like."""
    return [
        ModelInfo(f"{family}-w{width}", functools.partial(build, width), shape, dataset)
        for width in (1, 2, 4, 8, 16)
    ]


_MODELS = {
    model.name: model
    for model in (
        ModelInfo("digits-cnn", digits_cnn, (1, 8, 8), "digits"),
        ModelInfo("lenet5", lenet5, (1, 28, 28), "mnist"),
        ModelInfo("lenet5-relu", lenet5_relu, (1, 28, 28), "mnist"),
        ModelInfo("resnet18", resnet18, (3, 32, 32), None),
        ModelInfo("resnet34", resnet34, (3, 32, 32), None),
        ModelInfo("wrn-16-8", wrn_16_8, (3, 32, 32), None),
        *_scaled("lenet", lenet_w, (1, 28, 28), "mnist"),
        *_scaled("cifar-lenet", cifar_lenet_w, (3, 32, 32), None),
        *_scaled("vgg16", vgg16_w, (3, 32, 32), None),
        *_scaled("resnet18", resnet18_w, (3, 32, 32), None),
    )
}


def names() -> tuple[str, ...]:
    """Return the names of all models, in alphabetical order."""
    return tuple(sorted(_MODELS))


def info(name: str) -> ModelInfo:
    """Return what is known of the model `name`.

    Raises:
        ValueError: there is no model of that name; the message gives the nearest one.
    """
    if name not in _MODELS:
        nearest = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown model {name!r}; did you mean {nearest!r}? (known: {', '.join(names())})"
        )
    return _MODELS[name]


def create(name: str, **kwargs: Any) -> nn.Module:
    """Build the model `name` with fresh weights, drawn from torch's global generator.

    Args:
        name: one of `names()`.
        **kwargs: all models take `num_classes` (default 10); those for colour images also take
            `mean` and `std` of the normalization inside them.

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
    return model.build(**kwargs)
