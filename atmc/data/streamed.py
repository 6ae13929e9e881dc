"""Examples that are made when they are asked for: read from files, or by code of one's own.

A pass is shuffled by one draw from torch's global CPU generator, as examples in memory are, and a
second draw is the seed of whatever is random in making its examples. Each example gets a seed of
its own from that, so that it is the same however many processes make them.
"""

from __future__ import annotations

import operator
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from atmc.data.augmentation import Augmentation
from atmc.data.base import Examples, Loader
from atmc.data.in_memory import InMemory
from atmc.data.pixels import as_float, check
from atmc.data.seeded import seeded
from atmc.data.threads import cores, for_each
from atmc.errors import DataError, one_line

_MOST_WORKERS = 8
_PROBED, _CHECKED_AT_A_TIME = 256, 64
_WORTH_WORKERS = 256  # fewer examples are made sooner than processes

_Item = tuple[Tensor, int]


class Source(Protocol):
    """What makes examples: any torch data set of pairs that knows its length."""

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """An image of shape (C, H, W), float in [0, 1] or uint8, and its label, an integer."""


class Streamed(Examples):
    """Examples of a source, each made when its batch is.

    Args:
        source: what makes them.
        num_classes: labels are below it.
        indices: the examples of the source that these are; None for all.
        varied: a source of the same examples that makes each anew in every pass of training (by
            random crops, say); None for none.
        augmentation: what is done to whole batches besides.
        keep: whether all of them are made once, when batches are first asked for, and kept in
            memory; the source must make them without random numbers then.
        known: whether the source is known to give what it should, so that one example is looked at
            for all; otherwise every one is, the first 256 at once.

    Raises:
        ValueError: examples that are kept should vary.
    """

    def __init__(
        self,
        source: Source,
        num_classes: int,
        *,
        indices: Tensor | None = None,
        varied: Source | None = None,
        augmentation: Augmentation | None = None,
        keep: bool = False,
        known: bool = False,
    ) -> None:
        if keep and varied is not None:
            raise ValueError("examples that are kept in memory cannot vary: leave out one of them")
        self.source, self.num_classes, self.varied = source, num_classes, varied
        self.indices = torch.arange(len(source)) if indices is None else indices
        self.augmentation, self.keep, self.known = augmentation, keep, known

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.indices)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (C, H, W)."""
        item = _Checked(self.source, self.num_classes, 0)[int(self.indices[0])]
        if isinstance(item, DataError):
            raise item
        return tuple(item[0].shape)

    @property
    def augmented(self) -> bool:
        """Whether training sees them otherwise in every pass."""
        return self.augmentation is not None or self.varied is not None

    def take(self, indices: Tensor) -> Streamed:
        """Some of the examples, not made yet."""
        return Streamed(
            self.source,
            self.num_classes,
            indices=self.indices[indices],
            varied=self.varied,
            augmentation=self.augmentation,
            keep=self.keep,
            known=self.known,
        )

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        indexed: bool = False,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> Loader:
        """Batches of the examples, made by processes of their own where there are many."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if self.keep:
            return self._kept.batches(
                batch_size, shuffle=shuffle, indexed=indexed, augment=augment, device=device
            )
        size = max(1, min(batch_size, len(self)))
        return _Batches(self, size, shuffle, indexed, augment, device)

    @cached_property
    def _kept(self) -> InMemory:
        """All examples, made by threads, which reading files leaves to run side by side."""
        made = _Checked(self.source, self.num_classes, 0, self.shape)
        first = made.make(int(self.indices[0]))[0]
        x = torch.empty((len(self), *self.shape), dtype=first.dtype)
        y = torch.empty(len(self), dtype=torch.int64)

        def fill(position: int) -> None:
            x[position], y[position] = made.make(int(self.indices[position]))

        for_each(fill, len(self))
        return InMemory(x, y, self.augmentation)

    def check(self, where: str, classes: int) -> None:
        """Refuse what the first examples show to be unfit."""
        if self.num_classes != classes:
            raise DataError(f"{where} is of {self.num_classes} classes, not of {classes}")
        made = _Checked(self.source, classes, 0)
        for index in self.indices[: 1 if self.known else _PROBED].tolist():
            item = made[index]
            if isinstance(item, DataError):
                raise DataError(f"{where}: {item}") from item.__cause__
            made.shape = tuple(item[0].shape)

    def check_rest(self, where: str) -> None:
        """Make every example once, if the source is not known."""
        if self.known or len(self) <= _PROBED:
            return
        try:
            for _ in self.take(torch.arange(_PROBED, len(self))).batches(_CHECKED_AT_A_TIME):
                pass
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


class _Checked(TorchDataset[Any]):
    """Makes examples under seeds of their own, and looks at each.

    What is wrong with an example is given back, not raised, because an exception would come out of
    another process as the text of a whole traceback.
    """

    def __init__(
        self, source: Source, classes: int, seed: int, shape: tuple[int, ...] | None = None
    ) -> None:
        self.source, self.classes, self.seed, self.shape = source, classes, seed, shape

    def __getitem__(self, index: int) -> _Item | DataError:
        with _seeded(self.seed, index):
            try:
                return self.make(index)
            except DataError as error:
                return error

    def make(self, index: int) -> _Item:
        """One example, under the seed that is set.

        Raises:
            DataError: it cannot be made, or is not what it should be.
        """
        try:
            made = self.source[index]
        except DataError:
            raise
        except Exception as error:  # whatever the code of a stranger runs into
            said = one_line(error)
            raise DataError(
                f"example {index} cannot be read ({type(error).__name__}: {said}): mend its source"
            ) from error
        if not isinstance(made, Sequence) or len(made) != 2:
            raise DataError(f"example {index} is no pair: give (image, label)")
        image, label = made
        if not isinstance(image, Tensor):
            raise DataError(
                f"the image of example {index} is of type {type(image).__name__}: give a tensor "
                "(C, H, W) in [0, 1], as torchvision's ToTensor makes it"
            )
        try:
            label = operator.index(label)
        except TypeError:
            raise DataError(f"the label of example {index} is {label!r}: give an integer") from None
        image = image.detach().float() if image.is_floating_point() else image.detach()
        check(image[None], torch.tensor([label]), self.classes, f"example {index}")
        if self.shape is not None and tuple(image.shape) != self.shape:
            raise DataError(
                f"example {index} has an image of shape {tuple(image.shape)}, others of "
                f"{self.shape}: bring all to one shape"
            )
        return image, label


@contextmanager
def _seeded(*parts: int) -> Iterator[None]:
    """Seed every usual generator of random numbers from `parts`, for a while."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
    with torch.random.fork_rng(devices=()), seeded(seed):
        torch.default_generator.manual_seed(seed)
        yield


class _Batches:
    """Batches of streamed examples, for passes like those of :class:`atmc.data.Batches`."""

    def __init__(
        self,
        examples: Streamed,
        batch_size: int,
        shuffle: bool,
        indexed: bool,
        augment: bool,
        device: torch.device | str | None,
    ) -> None:
        self.examples, self.batch_size = examples, batch_size
        self.shuffle, self.indexed, self.augment = shuffle, indexed, augment
        self.device = torch.device("cpu" if device is None else device)

    def __len__(self) -> int:
        """The number of batches in a pass."""
        full, left = divmod(len(self.examples), self.batch_size)
        return full if self.shuffle or not left else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Start a pass."""
        # drawn here, not in the generator below, whose body only runs at the first next()
        count = len(self.examples)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        seed = int(torch.randint(2**62, ())) if self.shuffle else 0
        return self._pass(torch.split(order, self.batch_size)[: len(self)], seed)

    def _pass(self, parts: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, ...]]:
        held = self.examples
        if not parts:
            return
        source = held.varied if self.augment and held.varied is not None else held.source
        augmentation = held.augmentation if self.augment else None
        workers = _workers(sum(map(len, parts)))
        made = DataLoader(
            _Checked(source, held.num_classes, seed, held.shape),
            batch_sampler=[held.indices[part].tolist() for part in parts],
            num_workers=workers,
            # Said here, because a run that is itself a spawned process would spawn.
            multiprocessing_context="fork" if workers else None,
            collate_fn=_collate,
            worker_init_fn=_leave_ctrl_c,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its seeds are not ours, and must not disturb ours
        )
        for part, batch in zip(parts, made, strict=True):
            if isinstance(batch, DataError):
                raise batch
            x, y = (t.to(self.device, non_blocking=True) for t in batch)
            pair = as_float(x if augmentation is None else augmentation(x)), y
            yield (*pair, part.to(self.device)) if self.indexed else pair


def _collate(items: list[_Item | DataError]) -> tuple[Tensor, Tensor] | DataError:
    """A batch, or what is wrong with an example of it."""
    pairs: list[_Item] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        pairs.append(item)
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def _leave_ctrl_c(worker: int) -> None:
    """Let the process that trains decide what Ctrl-C means: it still needs its batches then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _workers(count: int) -> int:
    """How many processes make `count` examples.

    They start as copies of this process, because a source of one's own could not follow them
    elsewhere; so there are none on systems where that is not sound.
    """
    if count < _WORTH_WORKERS or sys.platform != "linux":
        return 0
    return min(_MOST_WORKERS, cores())
