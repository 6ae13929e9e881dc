"""ImageNet (Russakovsky et al., 2015) from its files: 1,000 classes, read as they are needed."""

from __future__ import annotations

import os
from pathlib import Path

from atmc.data.augmentation import Augmentation
from atmc.data.base import Dataset
from atmc.data.image_folder import class_names, cut, list_files
from atmc.data.images import ImageFiles, Middle, Somewhere
from atmc.data.streamed import Streamed
from atmc.data.torchvision_sets import read, root_folder
from atmc.data.usual import USUAL
from atmc.errors import DataError
from atmc.messages import argument

_SIDE, _SHORTER = 224, 256
_A_CLASS = 10  # validation images


def load_imagenet(
    root: str | os.PathLike[str] | None = None, image_size: int | None = None
) -> Dataset:
    """Load ImageNet from the class folders in `root`/train and `root`/val.

    Where there are none, torchvision unpacks the archives in `root` (which takes a while, once).
    Its validation images are the test part here; the validation part is cut from the training
    images, 10 a class, and the same ones every time. Images have their shorter side brought to 256
    pixels and the middle square of 224 cut out; training crops at random, and mirrors.

    Args:
        root: the folder that holds `train` and `val`; the folder `data` where it is None.
        image_size: another side of the square; the shorter side is 8/7 of it.

    Raises:
        DataError: the folders and archives are missing, or no class folders of ImageNet.
    """
    folder = root_folder(root)
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            _unpack(folder, split)
    side = _SIDE if image_size is None else image_size
    middle = Middle(round(side * _SHORTER / _SIDE), side)
    classes = class_names(folder / "train")
    files = list_files(folder / "train", classes)
    train, val = cut(files, min(_A_CLASS * len(classes), max(1, len(files[0]) // 10)))
    test = list_files(folder / "val", classes)
    count = len(classes)
    return Dataset(
        name="imagenet",
        train=Streamed(
            ImageFiles(*train, middle),
            count,
            varied=ImageFiles(*train, Somewhere(side)),
            augmentation=Augmentation(flip=True),
            known=True,
        ),
        val=Streamed(ImageFiles(*val, middle), count, known=True),
        test=Streamed(ImageFiles(*test, middle), count, known=True),
        num_classes=count,
        **USUAL["imagenet"],
    )


def _unpack(folder: Path, split: str) -> None:
    """Let torchvision unpack the archive of a split."""
    archives = ("ILSVRC2012_devkit_t12.tar.gz", f"ILSVRC2012_img_{split}.tar")
    missing = next((name for name in archives if not (folder / name).is_file()), None)
    if missing is not None:
        raise DataError(
            f"ImageNet not found: no folder {split} in {folder}, and no {missing} to unpack; name "
            f"another folder as {argument('data_root')}, or get the archives from image-net.org, "
            "as they cannot be downloaded from here"
        )

    def make(fetch: bool) -> object:
        # imported here, so that nothing else needs torchvision
        from torchvision.datasets import ImageNet

        return ImageNet(str(folder), split=split)

    read("ImageNet", folder, archives, make, fetch=False)
