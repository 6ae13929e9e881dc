"""ImageNet (Russakovsky et al., 2015) from its files: 1,000 classes, read as they are needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from atmc.data.images import ImageFiles, center_square, class_names, list_files, split_files
from atmc.data.pixels import Augmentation
from atmc.data.registry import Parts, register
from atmc.data.streamed import Streamed
from atmc.data.torchvision_sets import read
from atmc.errors import DataError
from atmc.messages import argument

_SIDE, _SHORTER = 224, 256
_VALIDATION_PER_CLASS = 10


@register("imagenet", eps=4 / 255, epochs=(15, 10, 1))
def load_imagenet(folder: Path, download: bool, image_size: int | None) -> Parts:
    """Load ImageNet from the class folders in `train` and `val`; nothing can be downloaded.

    Where there are none, torchvision unpacks the archives in the same folder (which takes a while,
    once). The images in `val` are the test part here; the validation part is held out from the
    training images, 10 a class, and always the same ones. Images have their shorter side scaled to
    256 pixels and the middle square of 224 cut out; training crops at random, and mirrors. Another
    image size is another side of the square; the shorter side is 8/7 of it.

    Raises:
        DataError: the folders and archives are missing, or the class folders do not agree.
    """
    # imported here, so that nothing else needs torchvision
    from torchvision.transforms import RandomResizedCrop

    if download:
        raise DataError(
            "ImageNet cannot be downloaded from here: get its archives from image-net.org into the "
            f"folder {argument('data_root')}, and leave out {argument('download')}"
        )
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            _unpack(folder, split)
    side = _SIDE if image_size is None else image_size
    center = partial(center_square, shorter=round(side * _SHORTER / _SIDE), side=side)
    classes = class_names(folder / "train")
    count = len(classes)
    files = list_files(folder / "train", classes)
    train, val = split_files(files, min(_VALIDATION_PER_CLASS * count, max(1, len(files[0]) // 10)))
    test = list_files(folder / "val", classes)
    return Parts(
        train=Streamed(
            ImageFiles(*train, center),
            count,
            varied=ImageFiles(*train, RandomResizedCrop(side)),
            augmentation=Augmentation(flip=True),
            trusted=True,
        ),
        val=Streamed(ImageFiles(*val, center), count, trusted=True),
        test=Streamed(ImageFiles(*test, center), count, trusted=True),
        num_classes=count,
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

    def unpack(download: bool) -> object:
        from torchvision.datasets import ImageNet

        return ImageNet(str(folder), split=split)

    read("ImageNet", folder, archives, unpack, download=False)
