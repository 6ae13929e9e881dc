"""Examples that are tensors in memory, and their batches, without the cost of a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from atmc.data.augmentation import Augmentation
from atmc.data.base import Examples
from atmc.data.pixels import as_float, check


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


class InMemory(Examples):
    """Examples as two tensors.

    Args:
        x: images of shape (N, C, H, W): float32 in [0, 1], or uint8, which takes a quarter of the
            memory and becomes float32 batch by batch.
        y: labels, int64 of shape (N,).
        augmentation: what `batches` does to them on demand.
    """

    def __init__(self, x: Tensor, y: Tensor, augmentation: Augmentation | None = None) -> None:
        self.x, self.y, self.augmentation = x, y, augmentation

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (C, H, W)."""
        return tuple(self.x.shape[1:])

    @property
    def augmented(self) -> bool:
        """Whether there is an augmentation."""
        return self.augmentation is not None

    def take(self, indices: Tensor) -> InMemory:
        """Some of the examples, copied."""
        return InMemory(self.x[indices], self.y[indices], self.augmentation)

    def first(self, count: int | None) -> InMemory:
        """The first `count` examples, without a copy."""
        return InMemory(self.x[:count], self.y[:count], self.augmentation)

    def head(self, count: int | None) -> tuple[Tensor, Tensor]:
        """The x and y of the first examples; without a copy where x is float32."""
        return as_float(self.x[:count]), self.y[:count]

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        indexed: bool = False,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> Batches:
        """Batches of the examples, all of which are brought to the device at once."""
        where = self.x.device if device is None else device
        return Batches(  # a copy a step would wait for the attack before it
            self.x.to(where),
            self.y.to(where),
            batch_size,
            shuffle,
            indexed,
            self.augmentation if augment else None,
        )

    def check(self, where: str, classes: int) -> None:
        """Refuse examples that training cannot use."""
        check(self.x, self.y, classes, where)

    def check_rest(self, where: str) -> None:
        """Nothing: `check` looks at all of them."""
