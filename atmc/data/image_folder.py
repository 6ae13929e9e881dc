"""Images in folders, a folder a class: ``imagefolder:DIR``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from atmc.data.images import (
    Files,
    ImageFiles,
    Transform,
    center_square,
    class_names,
    list_files,
    split_files,
)
from atmc.data.pixels import Augmentation
from atmc.data.registry import Parts, register
from atmc.data.streamed import Streamed
from atmc.errors import DataError

_MOST_BYTES = 2**30


@register("imagefolder:DIR")
def load_image_folder(path: Path, image_size: int | None) -> Parts:
    """Load a folder of images.

    It has the folders `train` and `test` (or `val` in its place), and may have `val` beside `test`,
    each with a folder a class. Or it has the folders of the classes alone, of which a tenth is held
    out as the test part, always the same tenth. The validation part is held out from the training
    images likewise where there is no folder for it. Classes are numbered by the order of their
    names.

    Images are in colour; grey ones become so. Without an image size all must have the same; with
    one, their shorter side is scaled to it and the middle square cut out. Where all images as bytes
    fit into 1 GiB they stay in memory once they are read, and are read again in every pass
    otherwise. Training moves each image by up to an eighth of its side, and mirrors.

    Raises:
        DataError: folders are missing or do not agree, or a file is no image, or has another size.
    """
    classes, files = _parts(path)
    transform: Transform | None = None
    size = None
    if image_size is None:
        size = ImageFiles(*files["train"]).size_of(0)
        width, height = size
    else:
        transform = partial(center_square, shorter=image_size, side=image_size)
        width = height = image_size
    count = sum(len(paths) for paths, _ in files.values())
    cache = 3 * width * height * count <= _MOST_BYTES
    augmentation = Augmentation(padding=min(width, height) // 8, flip=True)

    def examples(part: str) -> Streamed:
        images = ImageFiles(*files[part], transform, size)
        images.check()
        return Streamed(
            images,
            len(classes),
            augmentation=augmentation if part == "train" else None,
            cache=cache,
            trusted=True,
        )

    return Parts(
        examples("train"),
        examples("val"),
        examples("test"),
        num_classes=len(classes),
        # As text, whatever the bytes of a folder's name.
        class_names=tuple(os.fsencode(name).decode("utf-8", "replace") for name in classes),
    )


def _parts(folder: Path) -> tuple[list[str], dict[str, Files]]:
    """The names of the classes, and the files of the three parts."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: give imagefolder:DIR with the images")
    folders = {part: folder / part for part in ("train", "val", "test") if (folder / part).is_dir()}
    if not folders:
        classes, files = class_names(folder), dict[str, Files]()
        rest, files["test"] = split_files(list_files(folder, classes))
        files["train"], files["val"] = split_files(rest, len(files["test"][0]))
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
        files = {part: list_files(inner, classes) for part, inner in folders.items()}
        if "val" not in files:
            files["train"], files["val"] = split_files(files["train"])
    if not files["train"][0]:
        raise DataError(f"{folder} has too few images to be split: give some of each class")
    return classes, files
