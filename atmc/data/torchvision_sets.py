"""The data sets that torchvision reads: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
_CROPS = Augmentation(padding=4, flip=True)

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


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set as torchvision reads it.

    Attributes:
        title: its name, for messages.
        kind: its class in ``torchvision.datasets``.
        inner: where its files lie below the root.
        files: their names.
        shape: (C, H, W) of its images.
        images: what torchvision holds of them, as (N, C, H, W).
        labels: the name of the attribute with the labels.
        num_classes: the number of classes.
        augmentation: that of the training part.
        parts: what torchvision is asked for, for the training and for the test part.
    """

    title: str
    kind: str
    inner: str
    files: tuple[str, ...]
    shape: tuple[int, int, int]
    images: Callable[[Any], Any]
    labels: str = "targets"
    num_classes: int = 10
    augmentation: Augmentation | None = None
    parts: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})

    def read(self, folder: Path, part: dict[str, Any], download: bool) -> tuple[Any, Any]:
        """Images and labels of a part."""
        # Of SVHN each part has a file of its own.
        files = [f for f in self.files if "split" not in part or f.startswith(part["split"])]

        def make(fetch: bool) -> tuple[Any, Any]:
            # imported here, so that nothing else needs torchvision
            from torchvision import datasets

            made = getattr(datasets, self.kind)(str(folder), download=fetch, **part)
            return self.images(made.data), getattr(made, self.labels)

        return read(self.title, folder / self.inner, files, make, download)


_IDX = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def _grey(title: str, kind: str) -> TorchvisionSet:
    return TorchvisionSet(
        title, kind, f"{kind}/raw", _IDX, (1, 28, 28), lambda images: images.unsqueeze(1)
    )


def _cifar(classes: int, inner: str, files: tuple[str, ...]) -> TorchvisionSet:
    return TorchvisionSet(
        f"CIFAR-{classes}",
        f"CIFAR{classes}",
        inner,
        files,
        (3, 32, 32),
        lambda images: images.transpose(0, 3, 1, 2),
        num_classes=classes,
        augmentation=_CROPS,
    )


SETS = {
    "mnist": _grey("MNIST", "MNIST"),
    "fashion-mnist": _grey("Fashion-MNIST", "FashionMNIST"),
    "cifar10": _cifar(10, "cifar-10-batches-py", _BATCHES),
    "cifar100": _cifar(100, "cifar-100-python", ("train", "test", "meta")),
    # Without its extra images. Digits do not survive to be mirrored.
    "svhn": TorchvisionSet(
        "SVHN",
        "SVHN",
        ".",
        ("train_32x32.mat", "test_32x32.mat"),
        (3, 32, 32),
        lambda images: images,
        "labels",
        augmentation=Augmentation(padding=4),
        parts=({"split": "train"}, {"split": "test"}),
    ),
}


def load_torchvision(
    name: str, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Load one of ``SETS``; the last 5,000 training images are the validation part.

    Args:
        name: of the data set.
        root: the folder that holds its files, as torchvision lays them out; the folder `data`
            where it is None.
        download: whether to get what is missing.

    Raises:
        DataError: the files are missing, unreadable or not those of the data set.
    """
    held, folder = SETS[name], root_folder(root)
    train, test = (held.read(folder, part, download) for part in held.parts)
    where = f"{held.title} in {folder / held.inner}"
    x, y = _part(where, "training", train, held.shape)
    if len(y) <= VALIDATION:
        raise DataError(
            f"{where} has only {len(y)} training images: its files are cut short; get them again"
        )
    return Dataset(
        name=name,
        train=InMemory(x[:-VALIDATION], y[:-VALIDATION], held.augmentation),
        val=InMemory(x[-VALIDATION:], y[-VALIDATION:]),
        test=InMemory(*_part(where, "test", test, held.shape)),
        num_classes=held.num_classes,
        **USUAL[name],
    )


def _part(
    where: str, part: str, given: tuple[Any, Any], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    x, y = torch.as_tensor(given[0]), torch.as_tensor(given[1])
    if x.dtype != torch.uint8 or tuple(x.shape[1:]) != shape or len(x) != len(y) or not len(y):
        raise DataError(
            f"{where} is damaged: {part} images of shape {tuple(x.shape)} with {len(y)} labels; "
            "get its files again"
        )
    return x.contiguous(), y.long()
