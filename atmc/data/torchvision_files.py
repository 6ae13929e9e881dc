"""What the data sets that torchvision reads have in common: their files, and how they are cut."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from atmc.data.augmentation import Augmentation
from atmc.data.base import Dataset
from atmc.data.in_memory import InMemory
from atmc.data.usual import USUAL
from atmc.errors import DataError, one_line
from atmc.messages import argument

VALIDATION = 5000

T = TypeVar("T")


def root_folder(root: str | os.PathLike[str] | None) -> Path:
    """The folder that holds data sets: that given, or ``data``."""
    return Path("data" if root is None else root).expanduser().absolute()


def read(
    title: str, folder: Path, files: Sequence[str], make: Callable[[bool], T], fetch: bool
) -> T:
    """What torchvision makes of the files of a data set.

    Args:
        title: the name of the data set, for messages.
        folder: where its files lie.
        files: their names.
        make: makes it; told whether to download what is missing.
        fetch: whether to.

    Raises:
        DataError: files are missing, damaged, or cannot be downloaded.
    """
    missing = next((file for file in files if not (folder / file).is_file()), None)
    if missing is not None and not fetch:
        raise DataError(
            f"{title} not found: no {missing} in {folder}; name another folder as "
            f"{argument('data_root')}, or get the files with {argument('download', True)}"
        )
    try:
        # It talks on stdout, where a command's own result goes.
        with contextlib.redirect_stdout(sys.stderr):
            return make(fetch)
    except Exception as error:  # damage is reported by whatever its parser ran into
        reason = one_line(error)
        if any(not (folder / file).is_file() for file in files):
            raise DataError(
                f"{title} cannot be downloaded into {folder} ({reason}): check the network, or put "
                "its files there"
            ) from error
        raise DataError(
            f"{title} in {folder} cannot be read ({reason}); get its files again"
        ) from error


def dataset(
    name: str,
    title: str,
    folder: Path,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    shape: tuple[int, int, int],
    *,
    num_classes: int = 10,
    augmentation: Augmentation | None = None,
) -> Dataset:
    """A data set of its two original parts; the last 5,000 training images are the validation part.

    Args:
        name: the name `load` takes.
        title: its name, for messages.
        folder: where its files lie, for messages.
        train: bytes of shape (N, C, H, W) and labels (N,), as arrays or tensors.
        test: the same.
        shape: the (C, H, W) that its images must have.
        num_classes: the number of classes.
        augmentation: that of the training part.

    Raises:
        DataError: the arrays are not those of the data set.
    """
    x, y = _part(title, folder, "training", train, shape)
    if len(y) <= VALIDATION:
        raise DataError(
            f"{title} in {folder} has only {len(y)} training images: "
            "its files are cut short; get them again"
        )
    return Dataset(
        name=name,
        train=InMemory(x[:-VALIDATION], y[:-VALIDATION], augmentation),
        val=InMemory(x[-VALIDATION:], y[-VALIDATION:]),
        test=InMemory(*_part(title, folder, "test", test, shape)),
        num_classes=num_classes,
        **USUAL[name],
    )


def _part(
    title: str, folder: Path, part: str, given: tuple[Any, Any], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    x, y = torch.as_tensor(given[0]), torch.as_tensor(given[1])
    if x.dtype != torch.uint8 or tuple(x.shape[1:]) != shape or len(x) != len(y) or not len(y):
        raise DataError(
            f"{title} in {folder} is damaged: {part} images of shape {tuple(x.shape)} "
            f"with {len(y)} labels; get its files again"
        )
    return x.contiguous(), y.long()
