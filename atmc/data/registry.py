"""The registry of data sets: a function under :func:`register` is all that a data set needs."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atmc.data.base import DEFAULT_EPS, DEFAULT_EVAL_STEPS, Dataset, Examples
from atmc.errors import DataError
from atmc.messages import argument
from atmc.parsing import nearest

_FUNCTION = "MODULE:FUNCTION"  # the form of every other name with a colon


class Parts(NamedTuple):
    """The examples of a data set; see :class:`atmc.data.Dataset`."""

    train: Examples
    val: Examples
    test: Examples
    num_classes: int
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Entry:
    """A registered data set.

    Attributes:
        load: returns its parts; or a whole data set, which then has its own default settings. It
            may take, by name: ``name``, as the user wrote it; ``path``, what follows the colon of
            the name; ``folder``, the absolute path of `data_root`; ``download``; ``image_size``.
        epochs: default lengths of the stages: dense, compression, levels.
        model: the name of the default model; None for none.
        eps: the default attack radius in pixels of [0, 1], in the infinity norm.
        eval_steps: the default number of PGD steps when robust accuracy is measured.
        runs_code: whether `load` runs code of the user.
    """

    load: Callable[..., Parts | Dataset]
    epochs: tuple[int, int, int] = (30, 20, 2)
    model: str | None = None
    eps: float = DEFAULT_EPS
    eval_steps: int = DEFAULT_EVAL_STEPS
    runs_code: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The default settings of a run that are known before the data are loaded."""
        names = ("dense_epochs", "epochs", "level_epochs")
        lengths = dict(zip(names, self.epochs, strict=True))
        if self.runs_code:  # which may return a data set with other defaults
            return lengths
        return {**lengths, "model": self.model, "eps": self.eps, "eval_steps": self.eval_steps}


_Load = Callable[..., "Parts | Dataset"]
_ENTRIES: dict[str, Entry] = {}


def register(*keys: str, **traits: Any) -> Callable[[_Load], _Load]:
    """Make the decorated function load a data set.

    >>> @register("twins", eps=0.1)
    ... def load_twins(folder):
    ...     return Parts(train, val, test, num_classes=2)
    >>> find("twins").eval_steps
    20
    >>> del _ENTRIES["twins"]

    Args:
        keys: its name, or the forms of its names, such as ``npz:FILE``.
        traits: of :class:`Entry`, but `load`.
    """

    def decorate(load: _Load) -> _Load:
        _ENTRIES.update(dict.fromkeys(keys, Entry(load, **traits)))
        return load

    return decorate


def names() -> tuple[str, ...]:
    """The names of all data sets, in alphabetical order."""
    return tuple(sorted(key for key in _ENTRIES if ":" not in key))


def choices() -> tuple[str, ...]:
    """The names of all data sets, then the forms of names with a path, such as ``npz:FILE``."""
    return (*names(), *(key for key in _ENTRIES if ":" in key))


def find(name: str) -> Entry | None:
    """The entry of a name as users write it; None for an unknown name."""
    if ":" not in name:
        return _ENTRIES.get(name)
    before, _, after = name.rpartition(":")
    if not before or not after:
        return None
    prefix = name.partition(":")[0] + ":"
    return _ENTRIES[next((form for form in choices() if form.startswith(prefix)), _FUNCTION)]


def load(
    name: str,
    data_root: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    image_size: int | None = None,
) -> Dataset:
    """Load the data set `name`; its parts and their order are always the same.

    Args:
        name: one of `names()`, ``imagefolder:DIR``, ``npz:FILE``, or the Python path of a function
            that returns a data set, ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``.
        data_root: the folder with the files of named data sets; None for the folder `data`.
        download: whether to download missing files, where torchvision can.
        image_size: the side in pixels of the squares that images of ``imagefolder:DIR`` and of
            `imagenet` become. None for the size of the images, which must be the same for all, or
            for 224 of `imagenet`.

    Raises:
        ValueError: there is no data set of that name; the message gives the nearest one.
        DataError: its files are missing or damaged, its examples are not valid, or it cannot use
            `download` or `image_size`.
    """
    entry = find(name)
    if entry is None:
        raise ValueError(f"unknown data set {name!r}{nearest(name, choices())}")
    takes = inspect.signature(entry.load).parameters
    if download and "download" not in takes:
        raise DataError(
            f"there is nothing to download of {name!r}: leave out {argument('download')}"
        )
    if image_size is not None and "image_size" not in takes:
        raise DataError(
            f"the images of {name!r} have their size: leave out {argument('image_size')}"
        )
    arguments = {
        "name": name,
        "path": Path(name.partition(":")[2]).expanduser(),
        "folder": Path("data" if data_root is None else data_root).expanduser().absolute(),
        "download": download,
        "image_size": image_size,
    }
    parts = entry.load(**{key: arguments[key] for key in takes})
    if isinstance(parts, Dataset):
        return parts
    return Dataset(
        name, *parts[:4], entry.eps, entry.eval_steps, entry.model, class_names=parts.class_names
    )
