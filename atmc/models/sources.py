"""Where a model comes from: a name of the library, or the Python path of a user's function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from atmc import models, python_path
from atmc.errors import PythonPathError, one_line
from atmc.models.from_torchvision import PREFIX
from atmc.models.preparation import copy_model, make_plain

Model = nn.Module | Callable[[], nn.Module]


def is_python_path(name: str) -> bool:
    """Whether a model's name is a Python path, as ``file.py:function``, and none of our names."""
    return ":" in name and not name.startswith(PREFIX)


def build(name: str, num_classes: int | None = None) -> nn.Module:
    """Build a model.

    Args:
        name: as :func:`atmc.models.create` takes it, or the Python path of a function, or class,
            that needs no arguments and returns an ``nn.Module``.
        num_classes: of a model of ours; None for its default.

    Raises:
        PythonPathError: there is no such function, it fails, or what it returns is no module.
        ValueError: there is no model of that name.
    """
    if is_python_path(name):
        return instantiate(python_path.load(name), name)
    return models.create(name, **_kwargs(name, num_classes))


def instantiate(source: Model, what: str = "the model given") -> nn.Module:
    """A model to be changed: a copy of a module, or what a function or class returns.

    Args:
        source: a module, or what needs no arguments and returns one.
        what: names it in messages.

    Raises:
        PythonPathError: it is neither, it fails, or returns something else.
    """
    if isinstance(source, nn.Module):
        return make_plain(copy_model(source))
    if not callable(source):
        raise PythonPathError(
            f"{what} is of type {type(source).__name__}: give an nn.Module, or a function that "
            "makes one"
        )
    try:
        model = source()
    except Exception as error:  # of any kind, from a user's code
        raise PythonPathError(
            f"{what} fails when it is called ({type(error).__name__}: {one_line(error)}): it must "
            "need no arguments and return an nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise PythonPathError(
            f"{what} returns an object of type {type(model).__name__}: let it return an nn.Module"
        )
    return make_plain(copy_model(model))  # it may return the same one every time


def meta(name: str, num_classes: int | None = None) -> dict[str, object] | None:
    """How an artifact names a model, so that it can be built again; None for a Python path."""
    if is_python_path(name):
        return None
    kwargs = _kwargs(name, num_classes)
    return {"model": name, **({"kwargs": kwargs} if kwargs else {})}


def created_as(model: object) -> dict[str, object] | None:
    """How an artifact names a module that :func:`atmc.models.create` built; None for others.

    None too for one whose layers, or the way through them, were changed since.
    """
    source = getattr(model, "_created_as", None)
    if not isinstance(model, nn.Module) or source is None:
        return None
    changed = any(
        "forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules()
    )
    same = repr(model) == repr(models.shapes(source["model"], **source.get("kwargs", {})))
    return source if same and not changed else None


def _kwargs(name: str, num_classes: int | None) -> dict[str, int]:
    """The number of classes, where it is not the model's default."""
    default = models.info(name).kwargs.get("num_classes")
    if num_classes is None or default in (None, num_classes):
        return {}
    return {"num_classes": num_classes}


def channels_last(model: nn.Module) -> nn.Module:
    """Lay convolutions out as processors and GPUs run them fastest, in place; values stay."""
    return model.to(memory_format=torch.channels_last)
