"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017): 28x28 in grey, 10 classes."""

from __future__ import annotations

import os

from atmc.data.base import Dataset
from atmc.data.torchvision_files import dataset, read, root_folder

_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def load_mnist(root: str | os.PathLike[str] | None = None, download: bool = False) -> Dataset:
    """Load MNIST from `root`/MNIST/raw; the last 5,000 training images are the validation part.

    Args:
        root: the folder that holds `MNIST`; the folder `data` where it is None.
        download: whether to get what is missing.

    Raises:
        DataError: the files are missing, unreadable or not MNIST.
    """
    return _load("mnist", "MNIST", "MNIST", root, download)


def load_fashion_mnist(
    root: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Load Fashion-MNIST from `root`/FashionMNIST/raw; see :func:`load_mnist`."""
    return _load("fashion-mnist", "Fashion-MNIST", "FashionMNIST", root, download)


def _load(
    name: str, title: str, kind: str, root: str | os.PathLike[str] | None, download: bool
) -> Dataset:
    folder = root_folder(root)
    raw = folder / kind / "raw"

    def part(train: bool) -> tuple[object, object]:
        def make(fetch: bool) -> tuple[object, object]:
            # imported here, so that nothing else needs torchvision
            from torchvision import datasets

            made = getattr(datasets, kind)(str(folder), train=train, download=fetch)
            return made.data.unsqueeze(1), made.targets

        return read(title, raw, _FILES, make, download)

    return dataset(name, title, raw, part(True), part(False), (1, 28, 28))
