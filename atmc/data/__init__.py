"""Data sets by name, split into a training, a validation and a test part.

A file that defines a data set is imported here, so that the registry knows it.
"""

from atmc.data import (  # noqa: F401
    digits,
    image_folder,
    imagenet,
    npz,
    torchvision_sets,
    user_function,
)
from atmc.data.base import DEFAULT_EPS, DEFAULT_EVAL_STEPS, Dataset, Examples, Loader
from atmc.data.in_memory import Batches, InMemory
from atmc.data.loaded import Loaded, from_loaders
from atmc.data.pixels import Augmentation
from atmc.data.registry import Entry, Parts, choices, find, load, names, register
from atmc.data.streamed import Streamed
from atmc.errors import DataError

__all__ = [
    "DEFAULT_EPS",
    "DEFAULT_EVAL_STEPS",
    "Augmentation",
    "Batches",
    "DataError",
    "Dataset",
    "Entry",
    "Examples",
    "InMemory",
    "Loaded",
    "Loader",
    "Parts",
    "Streamed",
    "choices",
    "find",
    "from_loaders",
    "load",
    "names",
    "register",
]
