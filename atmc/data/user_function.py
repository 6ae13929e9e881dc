"""Data sets that a function of the user returns: ``path/to/file.py:function``."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch.utils.data import TensorDataset

from atmc.data.base import Dataset, Examples
from atmc.data.in_memory import InMemory
from atmc.data.registry import Parts, register
from atmc.data.splits import hold_out
from atmc.data.streamed import Streamed
from atmc.errors import DataError, PythonPathError, one_line
from atmc.python_path import load

_KEYS = ("train", "test", "val", "num_classes")
_ANY_CLASSES, _COUNTED_AT_A_TIME = 2**62, 256


@register("FILE.py:FUNCTION", "MODULE:FUNCTION", runs_code=True)
def load_function(name: str) -> Parts | Dataset:
    """Call a function and make a data set of what it returns.

    It takes no arguments and returns an :class:`atmc.data.Dataset`, or torch data sets of pairs
    (image, label): a tuple (train, test) or (train, test, val), or a mapping with those keys and,
    where it is known, "num_classes". The tensors of a ``TensorDataset`` are used as they are;
    examples of any other are read batch by batch, each under its own seed, so that random
    transforms repeat. Without `val` a tenth of `train` is the validation part, always the same.

    Without "num_classes" the number of classes is the length of ``train.classes``, one more than
    the largest of ``train.targets``, or else than the largest label in a whole pass over `train`.
    ``train.classes`` names the classes, where it has a name for each.
    """
    result = _call(name)
    if isinstance(result, Dataset):
        return result
    sources = _sources(name, result)
    classes = sources.pop("num_classes", None)
    for part, source in sources.items():
        if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
            raise DataError(
                f"the {part} part that {name} returns, of type {type(source).__name__}, has no "
                "length or index: give a torch data set of the map style"
            )
    if classes is None:
        classes = _count_classes(sources["train"])
    elif not isinstance(classes, int) or isinstance(classes, bool):
        raise DataError(f"{name} returns {classes!r} as num_classes: give an integer")
    parts = {part: _examples(name, source, classes) for part, source in sources.items()}
    if "val" not in parts:
        whole = parts["train"]
        labels = whole.y.numpy() if isinstance(whole, InMemory) else None
        parts["train"], parts["val"] = map(whole.take, hold_out(len(whole), labels))
    names = _class_names(sources["train"], classes)
    return Parts(parts["train"], parts["val"], parts["test"], classes, names)


def _call(path: str) -> Any:
    """The result of the function at a Python path."""
    try:
        return load(path)()
    except PythonPathError as error:
        raise DataError(f"data set {path!r}: {error}") from error
    except DataError:
        raise
    except Exception as error:  # code of the user may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise DataError(f"{path} fails when called ({reason}): mend it") from error


def _sources(path: str, result: object) -> dict[str, Any]:
    """The torch data sets by the names of their parts."""
    if isinstance(result, (tuple, list)) and len(result) in (2, 3):
        return dict(zip(_KEYS, result, strict=False))
    if isinstance(result, Mapping) and {"train", "test"} <= set(result) <= set(_KEYS):
        return dict(result)
    what = f"a value of type {type(result).__name__}"
    if isinstance(result, Mapping):
        what = f"a mapping of {', '.join(map(str, result))}"
    raise DataError(
        f"{path} returns {what}: return an atmc.data.Dataset, or torch data sets as (train, test), "
        "(train, test, val) or a mapping with those keys and maybe num_classes"
    )


def _count_classes(train: Any) -> int:
    """The number of classes, by the attributes of the training part, or by its labels."""
    if isinstance(train, TensorDataset):
        labels = train.tensors[-1]
    elif isinstance(getattr(train, "classes", None), Sized):
        return len(train.classes)
    else:
        try:
            labels = torch.as_tensor(train.targets)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # none, or no numbers
            batches = Streamed(train, _ANY_CLASSES).batches(_COUNTED_AT_A_TIME)
            labels = torch.stack([y.max() for _, y in batches] or [torch.tensor(-1)])
    return int(labels.max()) + 1 if labels.numel() else 0


def _class_names(train: Any, classes: int) -> tuple[str, ...] | None:
    """The names in the training part; None where it does not name each class."""
    names = getattr(train, "classes", None)
    if not isinstance(names, (list, tuple)) or len(names) != classes:
        return None
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def _examples(path: str, source: Any, classes: int) -> Examples:
    if not isinstance(source, TensorDataset):
        return Streamed(source, classes)
    if len(source.tensors) != 2:
        raise DataError(
            f"{path} returns {len(source.tensors)} tensors an example: give (image, label)"
        )
    x, y = source.tensors
    if not (y.is_floating_point() or y.is_complex()):  # which the check refuses
        y = y.long()
    return InMemory(x.float() if x.is_floating_point() else x, y)
