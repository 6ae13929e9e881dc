"""Images as tensors: valid values, bytes as pixels of [0, 1], random crops and mirror images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atmc.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """Move each image by a few pixels, black coming in at the border, and mirror every other one.

    Random numbers come from torch's global generator of the device of the batch, which therefore
    does not wait for the host.

    Attributes:
        padding: the largest move along either side, in pixels.
        flip: whether an image is mirrored, left to right, with probability 1/2.
    """

    padding: int = 0
    flip: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Augment a batch of shape (N, C, H, W) and any type; the result is a new tensor."""
        count, height, width = len(x), x.shape[2], x.shape[3]
        if self.flip:
            mirrored = torch.rand(count, device=x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if self.padding:
            top, left = torch.randint(2 * self.padding + 1, (2, count), device=x.device)
            padded = F.pad(x, (self.padding,) * 4)
            # Every window of the padded batch as a view; one of them is copied for each example.
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            x = windows[torch.arange(count, device=x.device), :, top, left]
        return x


def as_float(x: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; anything else unchanged."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def check_pixels(x: Tensor, what: str) -> None:
    """Refuse inputs that an attack on pixels cannot use.

    Args:
        x: inputs of shape (N, ...).
        what: their source, for the message.

    Raises:
        ValueError: they are not floating point numbers in [0, 1].
    """
    if not x.is_floating_point():
        raise ValueError(f"{what} gives inputs of {x.dtype}: give float32 in [0, 1]")
    if problem := _outside_unit_interval(x):
        raise ValueError(f"{what} gives {problem}")


def check_images(x: Tensor, y: Tensor, classes: int, where: str) -> None:
    """Refuse images and labels that training cannot use.

    Args:
        x: images, float32 in [0, 1] or uint8, of shape (N, C, H, W).
        y: labels, int64 from 0 to `classes` - 1, of shape (N,).
        classes: the number of classes.
        where: the part of the data, for the message.

    Raises:
        DataError: saying what is wrong, and what to give instead.
    """
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise DataError(f"{where} has images of shape {tuple(x.shape)}: give (N, C, H, W)")
    if x.dtype not in (torch.float32, torch.uint8):
        raise DataError(
            f"{where} has images of {_name(x.dtype)}: give float32 in [0, 1], or uint8 from 0 to "
            "255"
        )
    if y.dim() != 1 or len(y) != len(x):
        labels = f"{len(y)} labels" if y.dim() == 1 else f"labels of shape {tuple(y.shape)}"
        raise DataError(f"{where} has {len(x)} images with {labels}: give one label an image")
    if y.dtype != torch.int64:
        raise DataError(f"{where} has labels of {_name(y.dtype)}: give int64")
    if len(y) == 0:
        return
    low, high = (int(bound) for bound in y.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(f"{where} has a label out of range, {wrong}: give 0 to {classes - 1}")
    if problem := _outside_unit_interval(x):
        raise DataError(f"{where} has {problem}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def not_finite(x: Tensor) -> str | None:
    """The first of N examples with NaN or infinity, and what to do; None where all are finite."""
    if not x.is_floating_point() or bool(torch.isfinite(torch.stack(x.aminmax())).all()):
        return None
    bad = (~x.isfinite()).flatten(1).any(1) if x.dim() > 1 else ~x.isfinite()
    count, first = int(bad.sum()), int(bad.nonzero()[0, 0])
    value = "NaN" if bool(x[first].isnan().any()) else "infinity"
    more = f", and {count - 1} more like it" if count > 1 else ""
    return f"{value} in example {first}{more}: mend or leave out such examples"


def _outside_unit_interval(x: Tensor) -> str | None:
    """The range of floating point values outside [0, 1], and what to do; None if there are none."""
    if not x.is_floating_point():
        return None
    low, high = (float(bound) for bound in x.aminmax())
    if low >= 0 and high <= 1:  # NaN is neither
        return None
    return not_finite(x) or (
        f"values from {low:.8g} to {high:.8g}, outside [0, 1]: give pixels in [0, 1], not "
        "normalized (the model does that)"
    )
