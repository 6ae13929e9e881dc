"""Where a model comes from: a name of ours, or the Python path of a function of one's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from atmc import models, python_path
from atmc.errors import PythonPathError, one_line
from atmc.models.from_torchvision import PREFIX
from atmc.models.preparation import copy_model, make_plain

Model = nn.Module | Callable[[], nn.Module]


def is_own(name: str) -> bool:
    """Whether a model's name is a Python path, as ``file.py:function``, and none of our names."""
    return ":" in name and not name.startswith(PREFIX)


def build(name: str, num_classes: int | None = None) -> nn.Module:
    """Build a model.

    Args:
        name: as :func:`atmc.models.create` takes it, or the Python path of a function, or class,
            that needs no arguments and returns an ``nn.Module``.
        num_classes: of a model of ours; None for its usual number.

    Raises:
        PythonPathError: there is no such function, it fails, or what it returns is no module.
        ValueError: there is no model of that name.
    """
    if not is_own(name):
        return models.create(name, **_kwargs(name, num_classes))
    return made(python_path.load(name), name)


def made(source: Model, what: str = "the model given") -> nn.Module:
    """A model to be changed: a copy of a module, or what a function or class makes.

    Args:
        source: a module, or what needs no arguments and returns one.
        what: it is, for the message.

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
    except Exception as error:  # whatever the code of a stranger runs into
        said = one_line(error)
        raise PythonPathError(
            f"{what} fails when it is called ({type(error).__name__}: {said}): it must need no "
            "arguments and return an nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise PythonPathError(
            f"{what} returns an object of type {type(model).__name__}: let it return an nn.Module"
        )
    return make_plain(copy_model(model))  # it may return the same one every time


def meta(name: str, num_classes: int | None = None) -> dict[str, object] | None:
    """What an artifact says of a model, so that it can be built again; None for one's own."""
    if is_own(name):
        return None
    kwargs = _kwargs(name, num_classes)
    return {"model": name, **({"kwargs": kwargs} if kwargs else {})}


def created_as(model: object) -> dict[str, object] | None:
    """What an artifact says of a module that :func:`atmc.models.create` made; None for others.

    So too for one that has other layers by now, or another way through them.
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
    """The number of classes, where it is not the model's usual one."""
    usual = models.info(name).kwargs.get("num_classes")
    return (
        {} if num_classes is None or usual in (None, num_classes) else {"num_classes": num_classes}
    )


def channels_last(model: nn.Module) -> nn.Module:
    """Lay convolutions out as processors and GPUs run them fastest, in place; values stay."""
    return model.to(memory_format=torch.channels_last)
