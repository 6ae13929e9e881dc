"""Batches of tensors that are already in memory, without the cost of a data loader."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from atmc.data.pixels import as_float


class Batches:
    """An iterable over (x, y), or (x, y, index), of at most `batch_size` examples.

    Shuffled, each pass has a new order, drawn from torch's global CPU generator at the moment
    `iter()` is called, and all batches have the same size: what is left over at the end of a
    pass is dropped, and a set smaller than `batch_size` is one batch. Not shuffled, every example
    comes in order and the last batch may be smaller.

    Args:
        x: examples, of shape (N, ...); uint8 is given out as float32 in [0, 1].
        y: labels, of shape (N, ...), on the same device.
        batch_size: examples in a batch, at least 1.
        shuffle: whether each pass has an order of its own.
        indexed: whether each batch says which examples it holds, as int64 of shape (n,).
        augmentation: what is done to the examples of each batch, when it is asked for.

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
        augmentation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} examples but {len(y)} labels: give as many of each")
        if len(x) == 0:
            raise ValueError("no examples to make batches of")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.x, self.y, self.shuffle, self.indexed = x, y, shuffle, indexed
        self.augmentation = augmentation
        self.batch_size = min(batch_size, len(x))

    def __len__(self) -> int:
        """Return the number of batches in a pass."""
        full, left = divmod(len(self.x), self.batch_size)
        return full if self.shuffle or not left else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Start a pass."""
        # drawn here, not in the generator below, whose body only runs at the first next()
        count = len(self.x)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        return self._pass(order.to(self.x.device))

    def _pass(self, order: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for i in range(len(self)):
            part = slice(i * self.batch_size, (i + 1) * self.batch_size)
            index = order[part]
            x, y = (self.x[index], self.y[index]) if self.shuffle else (self.x[part], self.y[part])
            pair = as_float(x if self.augmentation is None else self.augmentation(x)), y
            yield (*pair, index) if self.indexed else pair
