"""Labels of channels: the same label, the same channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """Of one tensor.

    Attributes:
        dim: the dimension along which they lie.
        labels: (size of that dimension,), int64; several places may have one label.
    """

    dim: int
    labels: Tensor


class Labels:
    """The labels of a graph: which of them are one, and which are pinned."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._pinned: set[int] = set()

    def new(self, count: int) -> Tensor:
        """So many new ones."""
        start = len(self._parents)
        self._parents += range(start, start + count)
        return torch.arange(start, start + count)

    def join(self, one: Tensor, other: Tensor) -> None:
        """Make those at the same place one."""
        for first, second in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True):
            self._parents[self._root(first)] = self._root(second)

    def pin(self, labels: Tensor) -> None:
        """Let them stay."""
        self._pinned.update(labels.tolist())

    def roots(self) -> Tensor:
        """For every label the one that stands for all that are one with it."""
        return torch.tensor([self._root(label) for label in range(len(self._parents))]).long()

    def pinned(self) -> Tensor:
        """The labels that were pinned."""
        return torch.tensor(sorted(self._pinned)).long()

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label
