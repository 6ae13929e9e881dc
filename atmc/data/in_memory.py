"""Batches of numbered examples, and examples that are tensors in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from atmc.data.base import Examples, Plan
from atmc.data.pixels import Augmentation, as_float, check_images
from atmc.hardware import room_for_data


class NumberedBatches(ABC):
    """Passes over examples 0 to `count` - 1, which a subclass reads.

    A set smaller than the batch size is one batch.

    Attributes:
        device: of the batches.
        home: the device of the examples before they are in a batch.
    """

    home = torch.device("cpu")

    def __init__(self, count: int, plan: Plan, augmentation: Augmentation | None) -> None:
        if plan.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {plan.batch_size}")
        self.count, self.batch_size = count, max(1, min(plan.batch_size, count))
        self.shuffle, self.indexed = plan.shuffle, plan.indexed
        self.device = torch.device("cpu" if plan.device is None else plan.device)
        self.augmentation = augmentation if plan.augment else None

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        return full if self.shuffle or not rest else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # drawn here, not in the generator below, whose body only runs at the first next()
        order = torch.randperm(self.count) if self.shuffle else torch.arange(self.count)
        at_home, parts = (
            torch.split(order.to(device), self.batch_size)[: len(self)]
            for device in (self.home, self.device)
        )
        return self._pass(parts, self._read(at_home))

    def _pass(
        self, parts: Sequence[Tensor], pairs: Iterable[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, ...]]:
        for index, pair in zip(parts, pairs, strict=True):
            x, y = map(self._moved, pair)
            batch = as_float(x if self.augmentation is None else self.augmentation(x)), y
            yield (*batch, index) if self.indexed else batch

    def _moved(self, tensor: Tensor) -> Tensor:
        """A tensor on the device of the batches; a copy to a GPU is not waited for."""
        if self.device.type != "cuda" or tensor.device.type != "cpu":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    @abstractmethod
    def _read(self, parts: Sequence[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
        """The images and labels of each part, numbers on the device `home`.

        It takes no numbers from the global generators, so that they are the same for all kinds.
        """


class Batches(NumberedBatches):
    """An iterable over (x, y), or (x, y, index), as :meth:`Examples.batches` has it.

    >>> batches = Batches(torch.zeros(5, 1, 2, 2), torch.arange(5), 2)
    >>> [y.tolist() for x, y in batches]
    [[0, 1], [2, 3], [4]]

    Args:
        x: examples, of shape (N, ...); uint8 becomes float32 in [0, 1].
        y: labels, of shape (N, ...), on the same device.
        batch_size, shuffle, indexed: as there.
        augmentation: applied to each batch.
        device: of the batches; None for that of x. Elsewhere they are copied one by one.

    Raises:
        ValueError: there is no example, x and y differ in length, or `batch_size` is below 1.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        shuffle: bool = False,
        indexed: bool = False,
        augmentation: Augmentation | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} examples but {len(y)} labels: give as many of each")
        if len(x) == 0:
            raise ValueError("no examples to make batches of")
        device = x.device if device is None else device
        super().__init__(len(x), Plan(batch_size, shuffle, indexed, True, device), augmentation)
        self.x, self.y, self.home = x, y, x.device

    def _read(self, parts: Sequence[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
        if self.shuffle:
            return ((self.x[part], self.y[part]) for part in parts)
        x, y = (torch.split(tensor, self.batch_size) for tensor in (self.x, self.y))
        return zip(x, y, strict=True)


class InMemory(Examples):
    """Examples as two tensors.

    Args:
        x: images of shape (N, C, H, W): float32 in [0, 1], or uint8, which takes a quarter of the
            memory and becomes float32 batch by batch.
        y: labels, int64 of shape (N,).
        augmentation: applied where `batches` is asked to augment.
    """

    def __init__(self, x: Tensor, y: Tensor, augmentation: Augmentation | None = None) -> None:
        self.x, self.y, self.augmentation = x, y, augmentation
        self.shape, self.augmented = tuple(x.shape[1:]), augmentation is not None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Tensor | slice) -> InMemory:
        """Some of the examples; those of a slice are not copied."""
        return InMemory(self.x[indices], self.y[indices], self.augmentation)

    def check(self, where: str, classes: int) -> None:
        """Refuse examples that training cannot use; all are checked."""
        check_images(self.x, self.y, classes, where)

    def _batches(self, plan: Plan) -> Batches:
        device = self.x.device if plan.device is None else torch.device(plan.device)
        x, y = self.x, self.y
        if x.device.type == device.type or x.nbytes <= room_for_data(device):
            # All at once: a copy a step would take the host's time, and memory that is pinned.
            x, y = x.to(device), y.to(device)
        augmentation = self.augmentation if plan.augment else None
        return Batches(x, y, plan.batch_size, plan.shuffle, plan.indexed, augmentation, device)
