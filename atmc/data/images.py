"""Image files in class folders: listed, read as RGB and brought to one size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from atmc.data.splits import hold_out, interleaved
from atmc.data.streamed import for_each
from atmc.errors import DataError, one_line
from atmc.messages import argument

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")

Transform = Callable[[Image.Image], Image.Image]


def center_square(image: Image.Image, shorter: int, side: int) -> Image.Image:
    """Scale the shorter side to `shorter` pixels; cut out the middle square of `side` pixels."""
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(length * scale)) for length in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def class_names(folder: Path) -> list[str]:
    """The names of the class folders in a folder, in order; an error where there are none."""
    entries = (entry for entry in os.scandir(folder) if entry.is_dir())
    names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    if not names:
        raise DataError(f"there are no class folders in {folder}: sort the images into one a class")
    return names


class ImageFiles:
    """Pairs of a uint8 tensor (3, H, W) and a label, read from files; grey images become RGB.

    Attributes:
        paths: as bytes, of shape (N,).
        labels: integers of shape (N,).
        transform: applied to each image; None for none.
        size: the (width, height) that each file must have; None for any.
    """

    def __init__(
        self, paths: NDArray[np.bytes_], labels: NDArray[np.int64], transform: Transform | None
    ) -> None:
        # Arrays, because each worker process would copy the pages of a million Python objects.
        self.paths, self.labels, self.transform = paths, labels, transform
        self.size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls, folder: Path, classes: Sequence[str], transform: Transform | None = None
    ) -> ImageFiles:
        """All images below the class folders of a folder, class by class, in order of their paths.

        Raises:
            DataError: the folders are not named as the classes, or one has no image.
        """
        names = class_names(folder)
        for name in sorted(set(names) ^ set(classes)):
            what = "has a class folder" if name in names else "lacks the class folder"
            raise DataError(
                f"{folder} {what} {name!r}, unlike the training images: give all parts the same "
                "ones"
            )
        paths, labels = list[bytes](), list[int]()
        for label, name in enumerate(names):
            images = sorted(
                os.path.join(inner, file)
                for inner, _, files in os.walk(folder / name, followlinks=True)
                for file in files
                if file.lower().endswith(SUFFIXES) and not file.startswith(".")
            )
            if not images:
                raise DataError(
                    f"the class folder {folder / name} has no image ({', '.join(SUFFIXES)}): fill "
                    "or remove it"
                )
            paths += map(os.fsencode, images)
            labels += [label] * len(images)
        return cls(np.array(paths), np.array(labels), transform)

    def interleaved(self) -> ImageFiles:
        """The same files in an order in which the first ones have of each class its share."""
        order = interleaved(self.labels)
        files = ImageFiles(self.paths[order], self.labels[order], self.transform)
        files.size = self.size
        return files

    def split(self, count: int | None = None) -> tuple[ImageFiles, ImageFiles]:
        """All but `count` files, and those, of every class its share; a tenth where None."""
        indices = [part.numpy() for part in hold_out(len(self), self.labels, count)]
        rest, part = (ImageFiles(self.paths[i], self.labels[i], self.transform) for i in indices)
        return rest, part

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._open(index, lambda opened: opened.convert("RGB"))
        pixels = np.asarray(image if self.transform is None else self.transform(image))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), int(self.labels[index])

    def check(self) -> None:
        """Read the header of every file, to refuse what is no image or has another size."""
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
        except Exception as error:  # Pillow raises anything on a damaged file
            raise DataError(
                f"the image {path} cannot be read ({one_line(error)}): replace or remove it"
            ) from error
