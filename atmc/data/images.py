"""Image files in class folders: listed, split, read as RGB and brought to one size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atmc.data.splits import hold_out
from atmc.data.streamed import for_each
from atmc.errors import DataError, one_line
from atmc.messages import argument

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")

Transform = Callable[[Image.Image], Image.Image]
Files = tuple[list[str], list[int]]  # paths, and their labels


def class_names(folder: Path) -> list[str]:
    """The names of the folders in a folder, in order.

    Raises:
        DataError: there are none.
    """
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise DataError(f"there are no class folders in {folder}: sort the images into one a class")
    return names


def list_files(folder: Path, classes: Sequence[str]) -> Files:
    """All images below the class folders of a folder, class by class, in the order of their paths.

    Args:
        folder: with a folder a class.
        classes: the names that the folders must have, in order.

    Raises:
        DataError: the folders have other names, or one has no image.
    """
    names = class_names(folder)
    for name in sorted(set(names) ^ set(classes)):
        what = "has a class folder" if name in names else "lacks the class folder"
        raise DataError(
            f"{folder} {what} {name!r}, unlike the training images: give all parts the same ones"
        )
    paths, labels = list[str](), list[int]()
    for label, name in enumerate(names):
        images = sorted(
            os.path.join(inner, file)
            for inner, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        if not images:
            raise DataError(
                f"the class folder {folder / name} has no image ({', '.join(SUFFIXES)}): fill or "
                "remove it"
            )
        paths += images
        labels += [label] * len(images)
    return paths, labels


def split_files(files: Files, count: int | None = None) -> tuple[Files, Files]:
    """Hold out `count` files, a tenth where None, in proportion to the classes.

    Returns:
        The other files, and those that are held out.
    """
    paths, labels = files

    def select(indices: Tensor) -> Files:
        chosen = indices.tolist()
        return [paths[i] for i in chosen], [labels[i] for i in chosen]

    rest, part = hold_out(len(paths), np.array(labels), count)
    return select(rest), select(part)


def center_square(image: Image.Image, shorter: int, side: int) -> Image.Image:
    """Scale the shorter side to `shorter` pixels; cut out the middle square of `side` pixels."""
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(length * scale)) for length in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


class ImageFiles:
    """Pairs of a uint8 tensor (3, H, W) and a label, read from files; grey images become RGB.

    Args:
        paths: the files.
        labels: one for each.
        transform: applied to each image; None for none.
        size: the (width, height) that each file must have; None for any.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        transform: Transform | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        # As arrays: worker processes would each copy the pages of a million Python objects.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels)
        self.transform, self.size = transform, size

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read one file.

        Raises:
            DataError: it cannot be read, or has another size; the message names it.
        """
        image = self._open(index, lambda opened: opened.convert("RGB"))
        pixels = np.array(image if self.transform is None else self.transform(image))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), int(self.labels[index])

    def check(self) -> None:
        """Read the header of every file, without its pixels.

        Raises:
            DataError: a file is no image, or has another size; the message names it.
        """
        for_each(self.size_of, len(self))

    def size_of(self, index: int) -> tuple[int, int]:
        """The (width, height) in the header of a file."""
        return self._open(index, lambda opened: opened).size

    def _open(self, index: int, use: Transform) -> Image.Image:
        path = os.fsdecode(self.paths[index])
        try:
            with Image.open(path) as image:
                if self.size is not None and image.size != self.size:
                    raise DataError(
                        f"the image {path} is {image.width}x{image.height} pixels, others are "
                        f"{self.size[0]}x{self.size[1]}: give {argument('image_size')} N for "
                        "squares of N"
                    )
                if image.mode in ("I", "F") or image.mode.startswith("I;"):
                    raise DataError(
                        f"the image {path} has more than 8 bits a colour ({image.mode}): "
                        "convert it to 8 bits"
                    )
                return use(image)
        except DataError:
            raise
        except Exception as error:  # Pillow's parsers raise anything on a damaged file
            reason = one_line(error)
            raise DataError(
                f"the image {path} cannot be read ({reason}): replace or remove it"
            ) from error
