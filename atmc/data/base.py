"""The shape of every data set: three parts, each of labelled images that come in batches.

A part is an :class:`Examples`, of which there are three kinds: tensors in memory (`in_memory.py`),
examples that are read or computed one by one (`streamed.py`), and a loader of the user
(`loaded.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from atmc.errors import DataError

DEFAULT_EPS, DEFAULT_EVAL_STEPS = 8 / 255, 20  # common on small colour images


class Loader(Protocol):
    """Batches (x, y), or (x, y, index); a pass over it is an epoch."""

    def __len__(self) -> int:
        """The number of batches in a pass."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Start a pass."""


@dataclass(frozen=True)
class Plan:
    """The arguments of :meth:`Examples.batches`."""

    batch_size: int
    shuffle: bool
    indexed: bool
    augment: bool
    device: torch.device | str | None


class Examples(ABC):
    """Labelled images of one size, always the same ones in the same order.

    Attributes:
        shape: of one image, (C, H, W).
        augmented: whether there is an augmentation that `batches` can apply.
    """

    shape: tuple[int, ...]
    augmented: bool

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abstractmethod
    def take(self, indices: Tensor | slice) -> Examples:
        """Some of the examples, in the order of `indices`, int64 of shape (n,)."""

    @abstractmethod
    def check(self, where: str, classes: int) -> None:
        """Refuse examples that training cannot use; a quick check, which may leave some out.

        Args:
            where: the part of the data set, for the message.
            classes: labels must be below it.

        Raises:
            DataError: saying what is wrong with which of them.
        """

    def check_rest(self, where: str) -> None:  # noqa: B027 (most leave nothing out)
        """Refuse likewise the examples that :meth:`check` leaves out."""

    @abstractmethod
    def _batches(self, plan: Plan) -> Loader:
        """See :meth:`batches`."""

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
            shuffle: whether each pass has a new order, drawn from torch's global CPU generator
                when the pass starts. All batches have the same size then: the remainder is dropped.
            indexed: whether each batch ends with the numbers of its examples, int64 of shape (n,).
            augment: whether the examples are augmented, anew in each pass, by random numbers of the
                global generator of the device.
            device: of the batches; None for that of the examples.

        Raises:
            DataError: an example cannot be read, or is not valid.
            ValueError: `batch_size` is below 1.
        """
        return self._batches(Plan(batch_size, shuffle, indexed, augment, device))

    def first(self, count: int | None) -> Examples:
        """The first `count` examples; all of them where there are fewer, or `count` is None."""
        return self if count is None or count >= len(self) else self.take(slice(count))

    def sample(self, count: int) -> Examples:
        """`count` examples from all over, always the same ones; all where there are fewer."""
        if count >= len(self):
            return self
        order = np.random.RandomState(0).permutation(len(self))  # whatever the version of torch
        return self.take(torch.from_numpy(np.sort(order[:count])))

    def head(self, count: int | None) -> tuple[Tensor, Tensor]:
        """The x and y of :meth:`first`, in memory, as :meth:`batches` gives them."""
        part = self.first(count)
        batches = list(part.batches(max(1, len(part))))
        if len(batches) == 1:
            return batches[0][0], batches[0][1]
        return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@dataclass(frozen=True)
class Dataset:
    """A classification data set, with its default settings.

    It checks itself: an instance has images of one shape in [0, 1], a label in range for each,
    and no empty part. Of streamed examples it checks the first ones, until :meth:`check_rest`
    checks all.

    Attributes:
        name: the name `load` takes.
        train: training examples, without the validation part.
        val: validation examples; where the source has none, cut from its training examples.
        test: test examples.
        num_classes: the number of classes.
        eps: the default attack radius, in the infinity norm.
        eval_steps: the default number of PGD steps when robust accuracy is measured.
        model: the name of the default model; None for none.
        class_names: the names of the classes, in the order of their numbers; None for no names.

    Raises:
        DataError: one of these does not hold.
    """

    name: str
    train: Examples
    val: Examples
    test: Examples
    num_classes: int
    eps: float = DEFAULT_EPS
    eval_steps: int = DEFAULT_EVAL_STEPS
    model: str | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
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
        """Check every example that was not checked yet, in a pass over them.

        Raises:
            DataError: one is not valid.
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
        """Whether training augments its examples by default."""
        return self.train.augmented

    @property
    def x_train(self) -> Tensor:
        """All training images at once: float32 in [0, 1], of shape (N, C, H, W)."""
        return self.train.head(None)[0]

    @property
    def y_train(self) -> Tensor:
        """All training labels: int64, of shape (N,)."""
        return self.train.head(None)[1]

    @property
    def x_val(self) -> Tensor:
        """All validation images."""
        return self.val.head(None)[0]

    @property
    def y_val(self) -> Tensor:
        """All validation labels."""
        return self.val.head(None)[1]

    @property
    def x_test(self) -> Tensor:
        """All test images."""
        return self.test.head(None)[0]

    @property
    def y_test(self) -> Tensor:
        """All test labels."""
        return self.test.head(None)[1]
