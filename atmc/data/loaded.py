"""Examples that come from loaders of one's own, in their batches and their order."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from atmc.data.base import DataError, Dataset, Examples
from atmc.data.in_memory import InMemory
from atmc.data.pixels import check_pixels
from atmc.data.usual import USUAL

AnyLoader = Iterable[Sequence[Tensor]]


def check_batch(batch: object, what: str, *, pixels: bool = True) -> tuple[Tensor, Tensor]:
    """The x and y of a loader's batch.

    Args:
        batch: should be (x, y), maybe with more: x of shape (N, ...), y int64 of shape (N,).
        what: what gives it, for the message.
        pixels: whether x must be in [0, 1].

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(batch, (tuple, list)) or not all(isinstance(t, Tensor) for t in batch[:2]):
        raise ValueError(f"{what} gives batches that are no tensors (x, y): give those")
    if len(batch) < 2:
        raise ValueError(f"{what} gives inputs alone: give batches (x, y), y the labels")
    x, y = batch[:2]
    if y.shape != x.shape[:1] or len(y) == 0 or y.dtype != torch.int64:
        raise ValueError(
            f"{what} gives {y.dtype} labels of shape {tuple(y.shape)} for inputs of shape "
            f"{tuple(x.shape)}: give one an input, int64"
        )
    if (low := int(y.min())) < 0:
        raise ValueError(f"{what} gives the label {low}: give labels from 0 on")
    if pixels:
        check_pixels(x, what)
    return x, y


def from_loaders(
    name: str,
    train: AnyLoader,
    val: AnyLoader,
    test: AnyLoader,
    *,
    num_classes: int | None = None,
) -> Dataset:
    """A data set of three loaders: batches (x, y) with x in [0, 1] and y int64.

    The size of its batches, their order and any augmentation are the loaders' own affair, and the
    settings of a run for these do not apply; those of `val` and `test` should be in a fixed order.
    For ``train_attack="atta"`` `train` gives (x, y, index). Every batch is looked at once, here.

    Args:
        name: what reports call it.
        train: what is trained on; one pass is an epoch.
        val: looked at after each epoch, 500 examples of it.
        test: what the file is evaluated on in the end.
        num_classes: None for one more than the largest label.

    Raises:
        DataError: a loader is empty, or a batch is not what it should be.
    """
    given = {"train": train, "validation": val, "test": test}
    parts = [Loaded(loader, f"the {title} loader") for title, loader in given.items()]
    classes = 1 + max(part.highest for part in parts) if num_classes is None else num_classes
    first, second, third = parts
    return Dataset(name, first, second, third, num_classes=classes, **USUAL["own"])


class Loaded(Examples):
    """The examples of a loader, all of them looked at in one pass.

    Args:
        loader: gives (x, y), or (x, y, index), in every pass as many.
        what: what it is, for messages.

    Attributes:
        highest: the largest label.

    Raises:
        DataError: it gives nothing, inputs of several shapes, or what `check_batch` refuses.
    """

    def __init__(self, loader: AnyLoader, what: str) -> None:
        self.loader = loader
        shapes: dict[tuple[int, ...], None] = {}
        self._sizes: list[int] = []
        self.highest = -1
        with torch.random.fork_rng():
            for batch in loader:
                try:
                    x, y = check_batch(batch, what)
                except ValueError as error:
                    raise DataError(str(error)) from error
                shapes[tuple(x.shape[1:])] = None
                self._sizes.append(len(y))
                self.highest = max(self.highest, int(y.max()))
        if not shapes:
            raise DataError(f"{what} is empty: give batches (x, y)")
        if len(shapes) > 1:
            one, other = list(shapes)[:2]
            raise DataError(f"{what} gives inputs of {one} and of {other}: bring all to one shape")
        (self._shape,) = shapes
        self._count = sum(self._sizes)

    def __len__(self) -> int:
        """The number of examples in a pass."""
        return self._count

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self._shape

    @property
    def augmented(self) -> bool:
        """Never; what the loader does is not known."""
        return False

    def take(self, indices: Tensor) -> InMemory:
        """Some of the examples of a pass, in memory."""
        x, y = self.head(None)
        return InMemory(x[indices], y[indices])

    def first(self, count: int | None) -> Loaded:
        """The first examples of each pass."""
        part = copy.copy(self)
        part._count = min(len(self), len(self) if count is None else count)
        return part

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        indexed: bool = False,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> _Batches:
        """The loader's batches, whatever size and order are asked for."""
        starts = accumulate(self._sizes, initial=0)
        length = sum(start < self._count for start in starts)
        return _Batches(self.loader, length, self._count, indexed, device)

    def check(self, where: str, classes: int) -> None:
        """Refuse labels out of range; the rest is known."""
        if self.highest >= classes:
            raise DataError(
                f"{where} has a label out of range, {self.highest}: give 0 to {classes - 1}"
            )

    def check_rest(self, where: str) -> None:
        """Nothing: all of them were looked at."""


class _Batches:
    """A pass over a loader, cut after `count` examples, brought to a device."""

    def __init__(
        self,
        loader: AnyLoader,
        length: int,
        count: int,
        indexed: bool,
        device: torch.device | str | None,
    ) -> None:
        self.loader, self.length, self.count = loader, length, count
        self.used = 3 if indexed else 2
        self.device = device

    def __len__(self) -> int:
        """The number of batches."""
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Start a pass."""
        # drawn here: a generator's body only runs at the first next()
        return self._pass(iter(self.loader))

    def _pass(self, batches: Iterator[Sequence[Tensor]]) -> Iterator[tuple[Tensor, ...]]:
        left = self.count
        for batch in batches:
            part = (t[:left] for t in batch[: self.used])
            yield tuple(t if self.device is None else t.to(self.device) for t in part)
            left -= len(batch[0])
            if left <= 0:
                return
