"""Images in folders, a folder a class: ``imagefolder:DIR``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from atmc.data.augmentation import Augmentation
from atmc.data.base import Dataset, Examples
from atmc.data.images import ImageFiles, Middle
from atmc.data.splits import hold_out
from atmc.data.streamed import Streamed
from atmc.data.usual import USUAL
from atmc.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_MOST_BYTES = 2**30

Files = tuple[list[str], list[int]]  # paths, and their labels


def load_image_folder(name: str, folder: Path, image_size: int | None = None) -> Dataset:
    """Load a folder of images.

    It holds the folders `train` and `test` (or `val` in its place), and may hold `val` beside
    `test`, each with a folder a class; or the folders of the classes alone, of which a tenth is
    cut for the test part, the same tenth every time. So is the validation part cut from the
    training images where there is none. Classes are numbered by the order of their names. Images
    are in colour; grey ones become so. Where all of them as bytes fit into 1 GiB they are kept in
    memory once they are read, and are read again in every pass otherwise. Training moves each image
    by up to an eighth of its side, and mirrors.

    Args:
        name: of the data set.
        folder: as above.
        image_size: the side of the square that is made of each image, in pixels, its shorter side
            brought to it; None where all have one size.

    Raises:
        DataError: folders are missing or do not agree, or a file is no image, or none of the size.
    """
    classes, parts = _parts(folder)
    if image_size is None:
        view, size = None, ImageFiles(*parts["train"]).size_of(0)
        width, height = size
    else:
        view, size = Middle(image_size, image_size), None
        width = height = image_size
    count = sum(len(paths) for paths, _ in parts.values())
    keep = 3 * width * height * count <= _MOST_BYTES
    augmentation = Augmentation(padding=min(width, height) // 8, flip=True)

    def examples(part: str, augmented: Augmentation | None = None) -> Examples:
        files = ImageFiles(*parts[part], view, size)
        files.check()
        return Streamed(files, len(classes), augmentation=augmented, keep=keep, known=True)

    return Dataset(
        name=name,
        train=examples("train", augmentation),
        val=examples("val"),
        test=examples("test"),
        num_classes=len(classes),
        class_names=tuple(map(_text, classes)),
        **USUAL["imagefolder"],
    )


def _text(name: str) -> str:
    """A folder's name as text, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


def _parts(folder: Path) -> tuple[list[str], dict[str, Files]]:
    """The names of the classes, and the files of the three parts."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: give imagefolder:DIR with the images")
    given = {part: folder / part for part in ("train", "val", "test") if (folder / part).is_dir()}
    if not given:
        classes, found = class_names(folder), dict[str, Files]()
        rest, found["test"] = cut(list_files(folder, classes))
        found["train"], found["val"] = cut(rest, len(found["test"][0]))
    else:
        for part in ("train", "test"):
            if part not in given and (part == "train" or "val" not in given):
                raise DataError(
                    f"{folder} has a folder {next(iter(given))}, but no {part}: add it, with the "
                    "same class folders"
                )
        if "test" not in given:
            given["test"] = given.pop("val")
        classes = class_names(given["train"])
        found = {part: list_files(inner, classes) for part, inner in given.items()}
        if "val" not in found:
            found["train"], found["val"] = cut(found["train"])
    if not found["train"][0]:
        raise DataError(f"{folder} has too few images to be split: give some of each class")
    return classes, found


def class_names(folder: Path) -> list[str]:
    """The names of the folders in a folder, in order.

    Raises:
        DataError: there are none.
    """
    found = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not found:
        raise DataError(f"there are no class folders in {folder}: sort the images into one a class")
    return found


def list_files(folder: Path, classes: Sequence[str]) -> Files:
    """All images below the class folders of a folder, class by class, in the order of their paths.

    Args:
        folder: with a folder a class.
        classes: the names that the folders must have, in order.

    Raises:
        DataError: the folders are not those, or one has no image.
    """
    names = class_names(folder)
    for name in sorted(set(names) ^ set(classes)):
        what = "has a class folder" if name in names else "lacks the class folder"
        raise DataError(
            f"{folder} {what} {name!r}, unlike the training images: give all parts the same ones"
        )
    paths, labels = list[str](), list[int]()
    for label, name in enumerate(names):
        found = sorted(
            os.path.join(inner, file)
            for inner, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        if not found:
            raise DataError(
                f"the class folder {folder / name} has no image ({', '.join(SUFFIXES)}): fill or "
                "remove it"
            )
        paths += found
        labels += [label] * len(found)
    return paths, labels


def cut(files: Files, count: int | None = None) -> tuple[Files, Files]:
    """What is left of files, and `count` of them (a tenth where None), of every class its share."""
    paths, labels = files
    left, taken = hold_out(len(paths), np.array(labels), count)

    def some(indices: Tensor) -> Files:
        chosen = indices.tolist()
        return [paths[i] for i in chosen], [labels[i] for i in chosen]

    return some(left), some(taken)
