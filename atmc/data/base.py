"""What every data set is: labelled images in three parts, checked, and what is usual on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from atmc.errors import DataError


class Loader(Protocol):
    """Batches (x, y), or (x, y, index); a pass over it is an epoch."""

    def __len__(self) -> int:
        """The number of batches in a pass."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Start a pass."""


class Examples(ABC):
    """Labelled images of one size, always the same ones in the same order."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (C, H, W)."""

    @property
    @abstractmethod
    def augmented(self) -> bool:
        """Whether there is an augmentation that `batches` can apply."""

    @abstractmethod
    def take(self, indices: Tensor) -> Examples:
        """Some of the examples, in the order of `indices`, int64 of shape (n,)."""

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        indexed: bool = False,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> Loader:
        """Batches of x, float32 in [0, 1] of shape (n, C, H, W), and y, int64 of shape (n,).

        Args:
            batch_size: examples in a batch, at least 1.
            shuffle: whether each pass has an order of its own, drawn from torch's global CPU
                generator when the pass starts; what is left over is dropped then, so that all
                batches have the same size.
            indexed: whether each batch says which examples it holds, as int64 of shape (n,).
            augment: whether the examples are augmented, anew in each pass.
            device: where the batches are; None for where the examples lie.

        Raises:
            DataError: an example cannot be read, or is not what it should be.
            ValueError: `batch_size` is below 1.
        """

    @abstractmethod
    def check(self, where: str, classes: int) -> None:
        """Refuse examples that training cannot use.

        Args:
            where: what they are, for the message.
            classes: labels must be below it.

        Raises:
            DataError: saying what is wrong with which of them.
        """

    @abstractmethod
    def check_rest(self, where: str) -> None:
        """Refuse what `check`, which is quick, has not looked at; nothing where it sees all.

        Args:
            where: what they are, for the message.

        Raises:
            DataError: saying what is wrong with which of them.
        """

    def first(self, count: int | None) -> Examples:
        """The first `count` examples; all of them where there are fewer, or `count` is None."""
        if count is None or count >= len(self):
            return self
        return self.take(torch.arange(count))

    def head(self, count: int | None) -> tuple[Tensor, Tensor]:
        """The x and y of :meth:`first`, in memory, as :meth:`batches` gives them."""
        part = self.first(count)
        found = list(part.batches(max(1, len(part))))
        return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


@dataclass(frozen=True)
class Dataset:
    """A classification data set, with the settings that are usual on it.

    It checks itself: an instance has images of one shape in [0, 1], a label in range for each,
    and no empty part. Of examples that are made as they are needed it looks at the first, until
    :meth:`check_rest` looks at all.

    Attributes:
        name: the name `load` takes.
        train: training examples, the validation part left out.
        val: validation examples; where the data bring none, cut from their training split.
        test: test examples.
        num_classes: the number of classes.
        eps: the usual attack radius, in the infinity norm.
        eval_steps: the usual number of PGD steps when robust accuracy is measured.
        model: the name of the usual model; None where none of ours is.
        class_names: what the classes are called, in the order of their numbers; None where they
            have no names.

    Raises:
        DataError: something of that does not hold.
    """

    name: str
    train: Examples
    val: Examples
    test: Examples
    num_classes: int
    eps: float
    eval_steps: int
    model: str | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what training cannot use."""
        where = f"data set {self.name!r}"
        for title, part in self._parts.items():
            if len(part) == 0:
                raise DataError(f"{where}: its {title} part is empty: give examples of it")
        if self.num_classes < 2:
            raise DataError(f"{where} has fewer than two classes: give two or more")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise DataError(
                f"{where} has {self.num_classes} classes, but names {len(self.class_names)}: name "
                "each of them, or none"
            )
        for title, part in self._parts.items():
            part.check(f"{where}: its {title} part", self.num_classes)
            if part.shape != self.train.shape:
                raise DataError(
                    f"{where}: its {title} images are {part.shape}, its training images "
                    f"{self.train.shape}: bring all to one shape"
                )

    def check_rest(self) -> None:
        """Look at every example that was not looked at yet: a pass over them, before training.

        Raises:
            DataError: one is not what it should be.
        """
        for title, part in self._parts.items():
            part.check_rest(f"data set {self.name!r}: its {title} part")

    @property
    def _parts(self) -> dict[str, Examples]:
        return {"training": self.train, "validation": self.val, "test": self.test}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of one image."""
        return self.train.shape

    @property
    def augmented(self) -> bool:
        """Whether its training examples are augmented, unless one says otherwise."""
        return self.train.augmented

    @property
    def x_train(self) -> Tensor:
        """All training images at once: float32 in [0, 1], of shape (N, C, H, W)."""
        return self.train.head(None)[0]

    @property
    def y_train(self) -> Tensor:
        """Their labels: int64, of shape (N,)."""
        return self.train.head(None)[1]

    @property
    def x_val(self) -> Tensor:
        """All validation images, likewise."""
        return self.val.head(None)[0]

    @property
    def y_val(self) -> Tensor:
        """Their labels."""
        return self.val.head(None)[1]

    @property
    def x_test(self) -> Tensor:
        """All test images, likewise."""
        return self.test.head(None)[0]

    @property
    def y_test(self) -> Tensor:
        """Their labels."""
        return self.test.head(None)[1]
