"""MNIST (LeCun et al., 1998) from files in torchvision's layout; nothing is downloaded."""

import os
from pathlib import Path

import torch
from torch import Tensor

from atmc.data.base import DataError, Dataset
from atmc.data.in_memory import InMemory
from atmc.data.usual import USUAL

_VALIDATION = 5000
_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def load_mnist(root: str | os.PathLike[str] | None = None) -> Dataset:
    """Load MNIST from `root`/MNIST/raw; the last 5,000 training images are the validation part.

    Args:
        root: the folder that holds `MNIST`; the folder `data` where it is None.

    Raises:
        DataError: the files are missing, unreadable or not MNIST.
    """
    folder = Path("data" if root is None else root).absolute()
    raw = folder / "MNIST" / "raw"
    for file in _FILES:
        if not (raw / file).is_file():
            raise DataError(
                f"MNIST not found: no {file} in {raw}; name another folder with --data-root, "
                "or get the files with: python -c 'from torchvision.datasets import MNIST; "
                f'MNIST("{folder}", download=True)\''
            )
    x, y = _part(folder, train=True)
    x_test, y_test = _part(folder, train=False)
    if len(y) <= _VALIDATION:
        raise DataError(
            f"MNIST in {raw} has only {len(y)} training images: "
            "its files are cut short; get them again"
        )
    return Dataset(
        name="mnist",
        train=InMemory(x[:-_VALIDATION], y[:-_VALIDATION]),
        val=InMemory(x[-_VALIDATION:], y[-_VALIDATION:]),
        test=InMemory(x_test, y_test),
        num_classes=10,
        **USUAL["mnist"],
    )


def _part(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    # imported here, so that nothing else needs torchvision
    from torchvision.datasets import MNIST

    raw = root / "MNIST" / "raw"
    try:
        part = MNIST(str(root), train=train, download=False)
    except Exception as error:  # torchvision reports damage by whatever its parser ran into
        reason = " ".join(str(error).split())
        raise DataError(f"MNIST in {raw} cannot be read ({reason}); get its files again") from error
    images, labels = part.data, part.targets
    stem = "train" if train else "t10k"
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(labels):
        raise DataError(
            f"MNIST in {raw} is damaged: {stem} images of shape {tuple(images.shape)} "
            f"with {len(labels)} labels; get its files again"
        )
    if images.dtype != torch.uint8 or int(labels.min()) < 0 or int(labels.max()) > 9:
        raise DataError(f"MNIST in {raw} is damaged: {stem} values out of range; get it again")
    return images.unsqueeze(1), labels.long()
