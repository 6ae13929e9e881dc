"""Data sets by name, split into a training, a validation and a test part."""

import difflib
import os
from collections.abc import Callable

from atmc.data.augmentation import Augmentation
from atmc.data.base import DataError, Dataset, Examples, Loader
from atmc.data.batches import Batches
from atmc.data.digits import load_digits
from atmc.data.in_memory import InMemory
from atmc.data.mnist import load_mnist
from atmc.data.usual import USUAL

__all__ = [
    "USUAL",
    "Augmentation",
    "Batches",
    "DataError",
    "Dataset",
    "Examples",
    "InMemory",
    "Loader",
    "load",
    "names",
]

_LOADERS: dict[str, Callable[[str | os.PathLike[str] | None], Dataset]] = {
    "digits": lambda root: load_digits(),
    "mnist": load_mnist,
}


def names() -> tuple[str, ...]:
    """Return the names of all data sets, in alphabetical order."""
    return tuple(sorted(_LOADERS))


def load(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Load the data set `name`; its parts and their order are always the same.

    Args:
        name: one of `names()`.
        root: the folder that holds data sets which are files (`mnist`); the folder `data` where
            it is None.

    Raises:
        ValueError: there is no data set of that name; the message gives the nearest one.
        DataError: its files are missing or damaged.
    """
    if name not in _LOADERS:
        nearest = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown data set {name!r}; did you mean {nearest!r}? (known: {', '.join(names())})"
        )
    return _LOADERS[name](root)
