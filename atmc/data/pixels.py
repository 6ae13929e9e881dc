"""Images as tensors: what they may hold, and how bytes become pixels of [0, 1]."""

import torch
from torch import Tensor

from atmc.errors import DataError


def as_float(x: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; anything else as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def check_pixels(x: Tensor, what: str) -> None:
    """Refuse inputs in which an attack has no meaning.

    Args:
        x: what should be pixels, of shape (N, ...).
        what: gives them, for the message.

    Raises:
        ValueError: they are not floating point numbers in [0, 1].
    """
    if not x.is_floating_point():
        raise ValueError(f"{what} gives inputs of {x.dtype}: give float32 in [0, 1]")
    outside = _values_outside(x)
    if outside:
        raise ValueError(f"{what} gives {outside}")


def check_numbers(x: Tensor, what: str) -> None:
    """Refuse inputs that are NaN or infinite.

    Args:
        x: inputs of any type, of shape (N, ...).
        what: gives them, for the message.

    Raises:
        ValueError: some are.
    """
    lost = _lost(x)
    if lost:
        raise ValueError(f"{what} gives {lost}")


def _lost(x: Tensor) -> str | None:
    """Which example holds NaN or infinity, and what to do; None where none does."""
    if not x.is_floating_point() or bool(torch.isfinite(torch.stack(x.aminmax())).all()):
        return None
    bad = (~x.isfinite()).flatten(1).any(1) if x.dim() > 1 else ~x.isfinite()
    first = int(bad.nonzero()[0, 0])
    value = "NaN" if bool(x[first].isnan().any()) else "infinity"
    more = f", and {int(bad.sum()) - 1} more like it" if int(bad.sum()) > 1 else ""
    return f"{value} in example {first}{more}: mend or leave out such examples"


def _values_outside(x: Tensor) -> str | None:
    """Which floating point values are not in [0, 1], and what to give instead; None if all are."""
    if not x.is_floating_point():
        return None
    low, high = (float(bound) for bound in x.aminmax())
    if low >= 0 and high <= 1:  # NaN is neither
        return None
    return _lost(x) or (
        f"values from {low:.8g} to {high:.8g}, outside [0, 1]: give pixels in [0, 1], not "
        "normalized (the model does that)"
    )


def check(x: Tensor, y: Tensor, classes: int, where: str) -> None:
    """Refuse images and labels that training cannot use.

    Args:
        x: what should be images: float32 in [0, 1] or uint8, of shape (N, C, H, W).
        y: what should be labels: int64 from 0 to `classes` - 1, of shape (N,).
        classes: the number of classes.
        where: what they are, for the message.

    Raises:
        DataError: saying what is wrong, and what to give instead.
    """
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise DataError(f"{where} has images of shape {tuple(x.shape)}: give (N, C, H, W)")
    if x.dtype not in (torch.float32, torch.uint8):
        raise DataError(
            f"{where} has images of {_name(x)}: give float32 in [0, 1], or uint8 from 0 to 255"
        )
    if y.dim() != 1 or len(y) != len(x):
        labels = f"{len(y)} labels" if y.dim() == 1 else f"labels of shape {tuple(y.shape)}"
        raise DataError(f"{where} has {len(x)} images with {labels}: give one label an image")
    if y.dtype != torch.int64:
        raise DataError(f"{where} has labels of {_name(y)}: give int64")
    if len(y) == 0:
        return
    low, high = (int(bound) for bound in y.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(f"{where} has a label out of range, {wrong}: give 0 to {classes - 1}")
    outside = _values_outside(x)
    if outside:
        raise DataError(f"{where} has {outside}")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
