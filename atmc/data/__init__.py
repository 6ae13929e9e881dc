"""Data sets by name, split into a training, a validation and a test part."""

import os
from pathlib import Path

from atmc.data.augmentation import Augmentation
from atmc.data.base import Dataset, Examples, Loader
from atmc.data.digits import load_digits
from atmc.data.image_folder import load_image_folder
from atmc.data.imagenet import load_imagenet
from atmc.data.in_memory import Batches, InMemory
from atmc.data.loaded import Loaded, from_loaders
from atmc.data.npz import load_npz
from atmc.data.own import load_own
from atmc.data.streamed import Streamed
from atmc.data.torchvision_sets import SETS, load_torchvision
from atmc.data.usual import USUAL
from atmc.errors import DataError
from atmc.messages import argument
from atmc.parsing import nearest

__all__ = [
    "FORMS",
    "USUAL",
    "Augmentation",
    "Batches",
    "DataError",
    "Dataset",
    "Examples",
    "InMemory",
    "Loaded",
    "Loader",
    "Streamed",
    "from_loaders",
    "kind",
    "load",
    "names",
]

FORMS = ("imagefolder:DIR", "npz:FILE", "FILE.py:FUNCTION", "MODULE:FUNCTION")

_NAMED = (*SETS, "digits", "imagenet")
_RESIZED = ("imagefolder", "imagenet")


def names() -> tuple[str, ...]:
    """Return the names of all data sets, in alphabetical order."""
    return tuple(sorted(_NAMED))


def kind(name: str) -> str | None:
    """What a name says, as a key of `USUAL`: itself, "imagefolder", "npz" or "own"; or None."""
    if name in _NAMED:
        return name
    before, _, after = name.rpartition(":")
    if not before or not after:
        return None
    prefix = name.partition(":")[0]
    return prefix if prefix in ("imagefolder", "npz") else "own"


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
        data_root: the folder that holds data sets which are files and have a name of ours; the
            folder `data` where it is None.
        download: whether to get what is missing, where torchvision can.
        image_size: the side of the squares that images of ``imagefolder:DIR`` and of `imagenet`
            are brought to, in pixels; None for images that have one size, and for 224 of
            `imagenet`.

    Raises:
        ValueError: there is no data set of that name; the message gives the nearest one.
        DataError: its files are missing or damaged, its examples are not what they should be, or
            it is not for `download` or `image_size`.
    """
    found = kind(name)
    if found is None:
        known = (*names(), *FORMS)
        raise ValueError(f"unknown data set {name!r}{nearest(name, known)}")
    if download and found == "imagenet":
        raise DataError(
            "ImageNet cannot be downloaded from here: get its archives from image-net.org into the "
            f"folder {argument('data_root')}, and leave out {argument('download')}"
        )
    if download and found not in SETS:
        raise DataError(
            f"there is nothing to download of {name!r}: leave out {argument('download')}"
        )
    if image_size is not None and found not in _RESIZED:
        raise DataError(
            f"the images of {name!r} have their size: leave out {argument('image_size')}"
        )
    if found in SETS:
        return load_torchvision(found, data_root, download)
    if found == "digits":
        return load_digits()
    if found == "imagenet":
        return load_imagenet(data_root, image_size)
    if found == "own":
        return load_own(name)
    path = Path(name.partition(":")[2]).expanduser()
    return load_npz(name, path) if found == "npz" else load_image_folder(name, path, image_size)
