"""Examples that are read from files, or computed by code of the user, when a batch needs them.

A pass is shuffled by one draw from torch's global CPU generator, as examples in memory are.
Whatever is random in the examples themselves has a seed for each of them, derived from the state of
that generator, so that it is the same for any number of worker processes.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import operator
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from atmc.data.base import Examples, Loader, Plan
from atmc.data.in_memory import InMemory, NumberedBatches
from atmc.data.pixels import Augmentation, check_images
from atmc.errors import DataError, one_line
from atmc.hardware import local_processes

_MOST_WORKERS = 8
_PROBED, _CHECKED_AT_A_TIME = 256, 64
_FEW = 256  # examples, which are read before worker processes would have started
_TASK = 64  # calls at a time of a process, or of a thread

_Item = tuple[Tensor, int]


class Source(Protocol):
    """Any torch data set of pairs that has a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """An image of shape (C, H, W), float in [0, 1] or uint8, and its label, an integer."""


@dataclass(eq=False, repr=False)
class Streamed(Examples):
    """Examples of a source, each read when its batch is.

    Args:
        source: gives the examples.
        num_classes: labels are below it.
        indices: the examples of the source that belong to this part; None for all.
        varied: a source of the same examples that gives each anew in every pass of training, by
            random crops for instance; None for none.
        augmentation: applied to whole batches besides.
        cache: whether all examples are read once, when batches are first asked for, into memory
            (:class:`InMemory`); nothing in `source` may be random then.
        trusted: whether one example is checked for all of them; otherwise every one is, and the
            first 256 before training.

    Raises:
        ValueError: `cache` and `varied` exclude each other.
    """

    source: Source
    num_classes: int
    _: KW_ONLY
    indices: Tensor | None = None
    varied: Source | None = None
    augmentation: Augmentation | None = None
    cache: bool = False
    trusted: bool = False

    def __post_init__(self) -> None:
        if self.cache and self.varied is not None:
            raise ValueError("examples in memory cannot vary: leave out cache or varied")
        self.augmented = self.augmentation is not None or self.varied is not None
        self._numbers = torch.arange(len(self.source)) if self.indices is None else self.indices

    def __len__(self) -> int:
        return len(self._numbers)

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of one image, (C, H, W)."""
        item = _CheckedSource(self.source, self.num_classes)[int(self._numbers[0])]
        if isinstance(item, DataError):
            raise item
        return tuple(item[0].shape)

    def take(self, indices: Tensor | slice) -> Streamed:
        """Some of the examples, not read yet."""
        return replace(self, indices=self._numbers[indices])

    def check(self, where: str, classes: int) -> None:
        """Read the first examples once, to refuse invalid ones."""
        if self.num_classes != classes:
            raise DataError(f"{where} is of {self.num_classes} classes, not of {classes}")
        self._check(where, slice(1 if self.trusted else _PROBED))

    def check_rest(self, where: str) -> None:
        """Read the other examples once, unless the source is trusted."""
        if not self.trusted:
            self._check(where, slice(_PROBED, None))

    def _check(self, where: str, part: slice) -> None:
        try:
            for _ in self.take(part).batches(_CHECKED_AT_A_TIME):
                pass
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def _batches(self, plan: Plan) -> Loader:
        return self._in_memory._batches(plan) if self.cache else _Batches(self, plan)

    def _checked(self, source: Source, seed: int = 0) -> _CheckedSource:
        return _CheckedSource(source, self.num_classes, seed, self.shape, self.trusted)

    @cached_property
    def _in_memory(self) -> InMemory:
        """All examples, read into place by as many processes as may be."""
        checked = self._checked(self.source)
        dtype = checked.read(int(self._numbers[0]))[0].dtype
        x = _shared((len(self), *self.shape), dtype)
        y = _shared((len(self),), torch.int64)

        def fill(position: int) -> None:
            x[position], y[position] = checked.read(int(self._numbers[position]))

        for_each(fill, len(self))
        return InMemory(x, y, self.augmentation)


class _Batches(NumberedBatches):
    """Batches of streamed examples, read by worker processes where there are many."""

    def __init__(self, examples: Streamed, plan: Plan) -> None:
        super().__init__(len(examples), plan, examples.augmentation)
        self.examples = examples
        varied = examples.varied if plan.augment else None
        self.source = examples.source if varied is None else varied

    def _read(self, parts: Sequence[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
        if not self.shuffle:
            return self._load(parts, 0)
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())  # a copy, from which it may draw
        return self._load(parts, int(torch.randint(2**62, (), generator=generator)))

    def _load(self, parts: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        if not parts:
            return
        examples = self.examples
        workers = _workers(sum(map(len, parts)))
        loader = DataLoader(
            examples._checked(self.source, seed),
            batch_sampler=[examples._numbers[part].tolist() for part in parts],
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            **_processes(workers),
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            x, y = batch
            yield x, y


@dataclass(eq=False)
class _CheckedSource(TorchDataset[Any]):
    """A source, each example of which is read under its own seed, and checked.

    An error is returned, not raised, because the text of an exception that comes out of another
    process is a whole traceback.
    """

    source: Source
    num_classes: int
    seed: int = 0
    shape: tuple[int, ...] | None = None
    trusted: bool = False  # so that only the shape is checked

    def __getitem__(self, index: int) -> _Item | DataError:
        entropy = np.random.SeedSequence((self.seed, index))
        seed = int(entropy.generate_state(1, np.uint32)[0])
        with torch.random.fork_rng(devices=()), seeded(seed):
            torch.default_generator.manual_seed(seed)
            try:
                return self.read(index)
            except DataError as error:
                return error

    def read(self, index: int) -> _Item:
        """One example, by the generators as they are.

        Raises:
            DataError: it cannot be read, or is not valid.
        """
        try:
            item = self.source[index]
        except DataError:
            raise
        except Exception as error:  # code of the user may raise anything
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise DataError(
                f"example {index} cannot be read ({reason}): mend its source"
            ) from error
        if not isinstance(item, Sequence) or len(item) != 2:
            raise DataError(f"example {index} is no pair: give (image, label)")
        image, label = item
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
        if not self.trusted:
            check_images(image[None], torch.tensor([label]), self.num_classes, f"example {index}")
        if self.shape is not None and tuple(image.shape) != self.shape:
            raise DataError(
                f"example {index} has an image of shape {tuple(image.shape)}, others of "
                f"{self.shape}: bring all to one shape"
            )
        return image, label


def _collate(items: list[_Item | DataError]) -> Any:
    """A batch, or the first error among its examples."""
    error = next((item for item in items if isinstance(item, DataError)), None)
    return default_collate(items) if error is None else error


def _ignore_ctrl_c(worker: int) -> None:
    """The process that trains decides what Ctrl-C means, and needs batches until it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python and numpy with a number below 2^32, and restore them after."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _workers(count: int) -> int:
    """The number of processes that read `count` examples.

    They are forked, because a source of the user need not be picklable; so there are none on
    systems where a fork is not safe, nor below a process that may have none (of a pool, say).
    """
    if count <= _FEW or sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 0
    return min(_MOST_WORKERS, max(1, _cores() // local_processes()))


def _cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processes(workers: int) -> dict[str, Any]:
    """The arguments of a `DataLoader` with that many processes."""
    return {
        "num_workers": workers,
        # Explicit, because a run that is itself a spawned process would spawn.
        "multiprocessing_context": "fork" if workers else None,
        "worker_init_fn": _ignore_ctrl_c,
        "generator": torch.Generator(),  # so that it draws nothing from the global one
    }


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros that forked processes share; /dev/shm, small in containers, is not used."""
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count) * dtype.itemsize)  # which cannot be empty
    return torch.frombuffer(memory, dtype=dtype)[:count].view(shape)


def for_each(function: Callable[[int], object], count: int) -> None:
    """Call `function` with 0 to `count` - 1, in any order, by several processes.

    There are threads instead where there are few calls, or processes cannot be forked. Small
    pictures keep Python busy, which one thread at a time can be.

    Args:
        function: writes to files, or to memory that forked processes share.
        count: the number of calls.

    Raises:
        DataError: the first that a call raises, in order; calls that have not begun are left out.
    """
    starts = range(0, count, _TASK)

    def call(start: Any) -> DataError | None:
        try:
            for index in range(start, min(start + _TASK, count)):
                function(index)
        except DataError as error:  # raised here, it would be a whole traceback there
            return error
        return None

    def refuse(results: Iterable[DataError | None]) -> None:
        if error := next(filter(None, results), None):
            raise error

    if workers := _workers(count):
        tasks = cast("TorchDataset[int]", starts)
        refuse(DataLoader(tasks, batch_size=None, collate_fn=call, **_processes(workers)))
        return
    pool = ThreadPoolExecutor(_cores())
    try:
        refuse(pool.map(call, starts))
    finally:
        pool.shutdown(cancel_futures=True)
