"""SVHN (Netzer et al., 2011): house numbers, 32x32 in colour, 10 classes."""

from __future__ import annotations

import os

from atmc.data.augmentation import Augmentation
from atmc.data.base import Dataset
from atmc.data.torchvision_files import dataset, read, root_folder


def load_svhn(root: str | os.PathLike[str] | None = None, download: bool = False) -> Dataset:
    """Load SVHN from `root`/train_32x32.mat and `root`/test_32x32.mat, the digit 0 as label 0.

    The last 5,000 training images are the validation part; the extra images are left out.
    Training crops at random from images padded by 4 pixels; it does not mirror, which digits do
    not survive.

    Args:
        root: the folder that holds the two files; the folder `data` where it is None.
        download: whether to get what is missing.

    Raises:
        DataError: the files are missing, unreadable or not SVHN.
    """
    folder = root_folder(root)

    def part(split: str) -> tuple[object, object]:
        def make(fetch: bool) -> tuple[object, object]:
            # imported here, so that nothing else needs torchvision
            from torchvision.datasets import SVHN

            made = SVHN(str(folder), split=split, download=fetch)
            return made.data, made.labels

        return read("SVHN", folder, (f"{split}_32x32.mat",), make, download)

    train, test = part("train"), part("test")
    return dataset(
        "svhn", "SVHN", folder, train, test, (3, 32, 32), augmentation=Augmentation(padding=4)
    )
