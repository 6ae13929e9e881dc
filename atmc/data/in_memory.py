"""Examples that are tensors in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from atmc.data.augmentation import Augmentation
from atmc.data.base import Examples
from atmc.data.batches import Batches
from atmc.data.pixels import as_float, check


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
