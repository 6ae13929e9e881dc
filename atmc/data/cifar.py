"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 32x32 in colour, 10 and 100 classes."""

from __future__ import annotations

import os

from atmc.data.augmentation import Augmentation
from atmc.data.base import Dataset
from atmc.data.torchvision_files import dataset, read, root_folder

_AUGMENTATION = Augmentation(padding=4, flip=True)


def load_cifar10(root: str | os.PathLike[str] | None = None, download: bool = False) -> Dataset:
    """Load CIFAR-10 from `root`/cifar-10-batches-py.

    The last 5,000 training images are the validation part. Training crops at random from images
    padded by 4 pixels, and mirrors.

    Args:
        root: the folder that holds `cifar-10-batches-py`; the folder `data` where it is None.
        download: whether to get what is missing.

    Raises:
        DataError: the files are missing, unreadable or not CIFAR-10.
    """
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    return _load(10, "cifar-10-batches-py", files, root, download)


def load_cifar100(root: str | os.PathLike[str] | None = None, download: bool = False) -> Dataset:
    """Load CIFAR-100 from `root`/cifar-100-python, by its fine labels; see :func:`load_cifar10`."""
    return _load(100, "cifar-100-python", ("train", "test", "meta"), root, download)


def _load(
    classes: int,
    inner: str,
    files: tuple[str, ...],
    root: str | os.PathLike[str] | None,
    download: bool,
) -> Dataset:
    folder = root_folder(root)
    title, kind = f"CIFAR-{classes}", f"CIFAR{classes}"

    def part(train: bool) -> tuple[object, object]:
        def make(fetch: bool) -> tuple[object, object]:
            # imported here, so that nothing else needs torchvision
            from torchvision import datasets

            made = getattr(datasets, kind)(str(folder), train=train, download=fetch)
            return made.data.transpose(0, 3, 1, 2), made.targets

        return read(title, folder / inner, files, make, download)

    return dataset(
        f"cifar{classes}",
        title,
        folder / inner,
        part(True),
        part(False),
        (3, 32, 32),
        num_classes=classes,
        augmentation=_AUGMENTATION,
    )
