"""What a function of one's own returns: ``path/to/file.py:function``."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch.utils.data import TensorDataset

from atmc.data.base import Dataset, Examples
from atmc.data.in_memory import InMemory
from atmc.data.splits import hold_out
from atmc.data.streamed import Streamed
from atmc.data.usual import USUAL
from atmc.errors import DataError, PythonPathError, one_line
from atmc.python_path import load

_KEYS = ("train", "test", "val", "num_classes")
_ANY_CLASSES, _COUNTED_AT_A_TIME = 2**62, 256


def load_own(path: str) -> Dataset:
    """Call a function and make a data set of what it returns.

    It takes no arguments and returns an :class:`atmc.data.Dataset`, or torch data sets of pairs
    (image, label): a tuple (train, test) or (train, test, val), or a mapping with those keys and,
    where it is known, "num_classes". A ``TensorDataset`` is taken as it lies in memory; examples of
    any other are made batch by batch, under seeds of their own, so that random transforms repeat.
    Without `val` a tenth of `train` is the validation part, the same every time. The number of
    classes, where it is not given, is that of ``train.classes``, one more than the largest of
    ``train.targets``, or else than the largest label in a whole pass over `train`. They have the
    names in ``train.classes``, where each has one.

    Args:
        path: as :func:`atmc.python_path.load` takes it.

    Raises:
        DataError: there is no such function, it fails, or returns something else.
    """
    try:
        made = load(path)()
    except PythonPathError as error:
        raise DataError(f"data set {path!r}: {error}") from error
    except DataError:
        raise
    except Exception as error:  # whatever the code of a stranger runs into
        said = one_line(error)
        raise DataError(
            f"{path} fails when called ({type(error).__name__}: {said}): mend it"
        ) from error
    if isinstance(made, Dataset):
        return made
    given = _given(path, made)
    classes = given.pop("num_classes", None)
    for part, source in given.items():
        if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
            raise DataError(
                f"the {part} part that {path} returns, of type {type(source).__name__}, has no "
                "length or index: give a torch data set of the map style"
            )
    if classes is None:
        classes = _count_classes(given["train"])
    elif not isinstance(classes, int) or isinstance(classes, bool):
        raise DataError(f"{path} returns {classes!r} as num_classes: give an integer")
    parts = {part: _examples(path, source, classes) for part, source in given.items()}
    if "val" not in parts:
        whole = parts["train"]
        labels = whole.y.numpy() if isinstance(whole, InMemory) else None
        parts["train"], parts["val"] = map(whole.take, hold_out(len(whole), labels))
    return Dataset(
        name=path,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        num_classes=classes,
        class_names=_names(given["train"], classes),
        **USUAL["own"],
    )


def _given(path: str, made: object) -> dict[str, Any]:
    """The parts by name."""
    if isinstance(made, (tuple, list)) and len(made) in (2, 3):
        return dict(zip(_KEYS, made, strict=False))
    if isinstance(made, Mapping) and {"train", "test"} <= set(made) <= set(_KEYS):
        return dict(made)
    what = f"a value of type {type(made).__name__}"
    if isinstance(made, Mapping):
        what = f"a mapping of {', '.join(map(str, made))}"
    raise DataError(
        f"{path} returns {what}: return an atmc.data.Dataset, or torch data sets as (train, test), "
        "(train, test, val) or a mapping with those keys and maybe num_classes"
    )


def _count_classes(train: Any) -> int:
    """The number of classes, by what the training part tells of itself."""
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


def _names(train: Any, classes: int) -> tuple[str, ...] | None:
    """What the training part calls its classes; None where it does not name each."""
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
    return InMemory(x.float() if x.is_floating_point() else x, _integers(y))


def _integers(y: torch.Tensor) -> torch.Tensor:
    """Labels of any width of integer as int64; anything else is left to be refused."""
    return y if y.is_floating_point() or y.is_complex() else y.long()
