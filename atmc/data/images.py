"""Image files as examples: read, brought to one size, always in three colours."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atmc.data.threads import for_each
from atmc.errors import DataError, one_line
from atmc.messages import argument

View = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Middle:
    """The middle of a picture: the shorter side brought to `shorter` pixels, a square cut out.

    Attributes:
        shorter: the length of the shorter side, in pixels.
        side: the side of the square.
    """

    shorter: int
    side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """The square."""
        scale = self.shorter / min(image.size)
        width, height = (max(self.shorter, round(side * scale)) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        return image.crop((left, top, left + self.side, top + self.side))


@dataclass(frozen=True)
class Somewhere:
    """A random part of a picture, brought to a square: the crops that ImageNet is trained on.

    Attributes:
        side: the side of the square, in pixels.
    """

    side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """The square, by torch's global generator."""
        # imported here, so that nothing else needs torchvision
        from torchvision.transforms import RandomResizedCrop

        cropped: Image.Image = RandomResizedCrop(self.side)(image)
        return cropped


class ImageFiles:
    """Pairs of a uint8 tensor (3, H, W) and a label, read from files; grey becomes colour.

    Args:
        paths: the files.
        labels: one for each.
        view: what is made of each picture; None for the whole, as it is.
        size: the (width, height) that each file must have; None for any.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        view: View | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        # As arrays: processes that read a million Python objects would each copy them.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels)
        self.view, self.size = view, size

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read one file.

        Raises:
            DataError: it cannot be read, naming it, or is not of the size.
        """
        image = self._open(index, lambda opened: opened.convert("RGB"))
        pixels = np.array(image if self.view is None else self.view(image))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), int(self.labels[index])

    def check(self) -> None:
        """Look at the head of every file, without reading its pixels.

        Raises:
            DataError: a file is no image, naming it, or is not of the size.
        """
        for_each(self.size_of, len(self))

    def size_of(self, index: int) -> tuple[int, int]:
        """The (width, height) of a file, by its head."""
        return self._open(index, lambda opened: opened).size

    def _open(self, index: int, use: Callable[[Image.Image], Image.Image]) -> Image.Image:
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
        except Exception as error:  # damage is reported by whatever its parser ran into
            reason = one_line(error)
            raise DataError(
                f"the image {path} cannot be read ({reason}): replace or remove it"
            ) from error
