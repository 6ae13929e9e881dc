"""ImageNet (Russakovsky et al., 2015) from its files: 1,000 classes, read as they are needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from atmc.data.images import ImageFiles, center_square, class_names
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
    """Load ImageNet from the class folders in `train` and `val`.

    Where there are none, torchvision unpacks the archives beside them (which takes a while, once).
    The images in `val` are the test part; the validation part is held out from the training images,
    10 a class; both have their classes mixed. Images have their shorter side scaled to 8/7 of the
    image size, which is 224 by default, and the middle square cut out; training crops at random,
    and mirrors.
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
    images = ImageFiles.of(folder / "train", classes, center)
    train, val = images.split(min(_VALIDATION_PER_CLASS * count, max(1, len(images) // 10)))
    test = ImageFiles.of(folder / "val", classes, center)
    return Parts(
        train=Streamed(
            train,
            count,
            varied=ImageFiles(train.paths, train.labels, RandomResizedCrop(side)),
            augmentation=Augmentation(flip=True),
            trusted=True,
        ),
        val=Streamed(val.interleaved(), count, trusted=True),
        test=Streamed(test.interleaved(), count, trusted=True),
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

    def unpack() -> object:
        from torchvision.datasets import ImageNet

        return ImageNet(str(folder), split=split)

    read("ImageNet", folder, archives, unpack, download=False)
