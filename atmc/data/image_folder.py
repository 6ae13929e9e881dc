"""Images in folders, a folder a class: ``imagefolder:DIR``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from atmc.data.images import ImageFiles, center_square, class_names
from atmc.data.pixels import Augmentation
from atmc.data.registry import Parts, register
from atmc.data.streamed import Streamed
from atmc.errors import DataError
from atmc.hardware import room_for_data


@register("imagefolder:DIR")
def load_image_folder(path: Path, image_size: int | None) -> Parts:
    """Load a folder of images.

    It has the folders `train` and `test` (or `val` in its place), and may have `val` beside `test`,
    each with a folder a class. Or it has the folders of the classes alone, of which a tenth is held
    out as the test part. The validation part is held out from the training images likewise where it
    has no folder. Classes are numbered by the order of their names. The validation and test parts
    have their classes mixed, so that the first images have of each its share.

    With an image size the shorter side of each image is scaled to it and the middle square cut out;
    without one all must have the same size. Where all images as bytes fit into a quarter of the
    memory, each is decoded once and they stay there, and on the GPU where they fit into a quarter
    of what is free on it. Otherwise they are read again in every pass; the batches are the same.
    Training moves each image by up to an eighth of its side, and mirrors.
    """
    classes, parts = _parts(path)
    size = transform = None
    if image_size is None:
        size = width, height = parts["train"].size_of(0)
    else:
        width = height = image_size
        transform = partial(center_square, shorter=image_size, side=image_size)
    size_in_bytes = 3 * width * height * sum(map(len, parts.values()))
    cache = size_in_bytes <= room_for_data(torch.device("cpu"))
    augmentation = Augmentation(padding=min(width, height) // 8, flip=True)

    def examples(part: str, augmentation: Augmentation | None = None) -> Streamed:
        images = parts[part]
        images.transform, images.size = transform, size
        images.check()
        if part != "train":
            images = images.interleaved()
        return Streamed(images, len(classes), augmentation=augmentation, cache=cache, trusted=True)

    return Parts(
        train=examples("train", augmentation),
        val=examples("val"),
        test=examples("test"),
        num_classes=len(classes),
        # As text, whatever the bytes of a folder's name.
        class_names=tuple(os.fsencode(name).decode("utf-8", "replace") for name in classes),
    )


def _parts(folder: Path) -> tuple[list[str], dict[str, ImageFiles]]:
    """The names of the classes, and the files of the three parts."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: give imagefolder:DIR with the images")
    folders = {part: folder / part for part in ("train", "val", "test") if (folder / part).is_dir()}
    if not folders:
        classes, parts = class_names(folder), dict[str, ImageFiles]()
        rest, parts["test"] = ImageFiles.of(folder, classes).split()
        parts["train"], parts["val"] = rest.split(len(parts["test"]))
    else:
        for part in ("train", "test"):
            if part not in folders and (part == "train" or "val" not in folders):
                raise DataError(
                    f"{folder} has a folder {next(iter(folders))}, but no {part}: add it, with the "
                    "same class folders"
                )
        if "test" not in folders:
            folders["test"] = folders.pop("val")
        classes = class_names(folders["train"])
        parts = {part: ImageFiles.of(inner, classes) for part, inner in folders.items()}
        if "val" not in parts:
            parts["train"], parts["val"] = parts["train"].split()
    if not len(parts["train"]):
        raise DataError(f"{folder} has too few images to be split: give some of each class")
    return classes, parts
