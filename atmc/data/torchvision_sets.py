"""The data sets that torchvision reads: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from atmc.data.in_memory import InMemory
from atmc.data.pixels import Augmentation
from atmc.data.registry import Parts, register
from atmc.errors import DataError, one_line
from atmc.messages import argument

VALIDATION = 5000  # the last training images
_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
_CROPS = Augmentation(padding=4, flip=True)
_IDX = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_PICKLES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

T = TypeVar("T")


def read(
    title: str, folder: Path, files: Sequence[str], open_: Callable[[], T], download: bool
) -> T:
    """Read the files of a data set in a folder by torchvision.

    Args:
        title: the data set, for messages.
        folder: where `files` lie.
        files: the names of what must be there, or be downloaded.
        open_: reads them.
        download: whether `open_` downloads missing files.

    Raises:
        DataError: files are missing, damaged, or cannot be downloaded.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing and not download:
        raise DataError(
            f"{title} not found: no {missing[0]} in {folder}; name another folder as "
            f"{argument('data_root')}, or get the files with {argument('download', True)}"
        )
    try:
        # torchvision prints to stdout, where a command's own result goes.
        with contextlib.redirect_stdout(sys.stderr):
            return open_()
    except Exception as error:  # the parsers raise anything on a damaged file
        reason = one_line(error)
        if all((folder / file).is_file() for file in files):
            raise DataError(
                f"{title} in {folder} cannot be read ({reason}); get its files again"
            ) from error
        raise DataError(
            f"{title} cannot be downloaded into {folder} ({reason}): check the network, or put its "
            "files there"
        ) from error


@dataclass(frozen=True)
class _Layout:
    """How torchvision reads a data set."""

    title: str
    kind: str  # in torchvision.datasets
    inner: str  # where `files` lie below the folder of data sets
    files: tuple[str, ...]
    shape: tuple[int, int, int]
    augmentation: Augmentation | None = None
    num_classes: int = 10
    labels: str = "targets"  # an attribute of `kind`
    splits: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})

    def load(self, folder: Path, download: bool) -> Parts:
        """All parts; the last training images are the validation part."""
        train, test = (self._read(folder, download, split) for split in self.splits)
        where = f"{self.title} in {folder / self.inner}"
        for part, (x, y) in (("training", train), ("test", test)):
            valid = x.dtype == torch.uint8 and tuple(x.shape[1:]) == self.shape
            if not valid or len(x) != len(y) or not len(y):
                raise DataError(
                    f"{where} is damaged: {part} images of shape {tuple(x.shape)} with {len(y)} "
                    "labels; get its files again"
                )
        x, y = train
        if len(y) <= VALIDATION:
            raise DataError(
                f"{where} has only {len(y)} training images: its files are cut short; get them "
                "again"
            )
        return Parts(
            train=InMemory(x[:-VALIDATION], y[:-VALIDATION], self.augmentation),
            val=InMemory(x[-VALIDATION:], y[-VALIDATION:]),
            test=InMemory(*test),
            num_classes=self.num_classes,
        )

    def _read(self, folder: Path, download: bool, split: dict[str, Any]) -> tuple[Tensor, Tensor]:
        # Each part of SVHN has its own file.
        files = [f for f in self.files if "split" not in split or f.startswith(split["split"])]

        def open_() -> tuple[Tensor, Tensor]:
            # imported here, so that nothing else needs torchvision
            from torchvision import datasets

            part = getattr(datasets, self.kind)(str(folder), download=download, **split)
            x, y = torch.as_tensor(part.data), torch.as_tensor(getattr(part, self.labels))
            if x.dim() == 3:
                x = x.unsqueeze(1)
            elif x.shape[-1] == self.shape[0]:  # channels come last
                x = x.permute(0, 3, 1, 2)
            return x.contiguous(), y.long()

        return read(self.title, folder / self.inner, files, open_, download)


@register("mnist", model="lenet5-relu", eps=0.3, eval_steps=40, epochs=(12, 8, 2))
def load_mnist(folder: Path, download: bool) -> Parts:
    """MNIST (LeCun et al., 1998): digits in grey."""
    return _Layout("MNIST", "MNIST", "MNIST/raw", _IDX, _GREY).load(folder, download)


@register("fashion-mnist", model="lenet5-relu", eps=0.1, eval_steps=40, epochs=(12, 8, 2))
def load_fashion_mnist(folder: Path, download: bool) -> Parts:
    """Fashion-MNIST (Xiao et al., 2017): clothes in grey."""
    layout = _Layout("Fashion-MNIST", "FashionMNIST", "FashionMNIST/raw", _IDX, _GREY)
    return layout.load(folder, download)


@register("cifar10", model="resnet18")
def load_cifar10(folder: Path, download: bool) -> Parts:
    """CIFAR-10 (Krizhevsky, 2009): colour images of 10 classes."""
    layout = _Layout("CIFAR-10", "CIFAR10", "cifar-10-batches-py", _PICKLES, _COLOUR, _CROPS)
    return layout.load(folder, download)


@register("cifar100", model="resnet18")
def load_cifar100(folder: Path, download: bool) -> Parts:
    """CIFAR-100 (Krizhevsky, 2009): colour images of 100 classes."""
    files = ("train", "test", "meta")
    layout = _Layout("CIFAR-100", "CIFAR100", "cifar-100-python", files, _COLOUR, _CROPS, 100)
    return layout.load(folder, download)


@register("svhn", model="resnet18", epochs=(20, 12, 2))
def load_svhn(folder: Path, download: bool) -> Parts:
    """SVHN (Netzer et al., 2011): house numbers in colour, without the extra images."""
    files = ("train_32x32.mat", "test_32x32.mat")
    crops = Augmentation(padding=4)  # without mirror images, which are no digits
    splits = ({"split": "train"}, {"split": "test"})
    layout = _Layout("SVHN", "SVHN", ".", files, _COLOUR, crops, labels="labels", splits=splits)
    return layout.load(folder, download)
