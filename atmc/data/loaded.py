"""Loaders of the user: their batches, checked as they come, and data sets of three loaders."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from atmc.data.base import Dataset, Examples, Plan
from atmc.data.in_memory import InMemory
from atmc.data.pixels import check_pixels, not_finite
from atmc.data.streamed import seeded
from atmc.errors import DataError
from atmc.hardware import forked_generators

AnyLoader = Iterable[Sequence[Tensor] | Mapping[str, Tensor]]
# The names of the parts of a batch that is a mapping.
_INPUTS = ("image", "images", "pixel_values", "x", "input", "inputs")
_LABELS = ("label", "labels", "y", "target", "targets")
_MOST_INDEX = 2**28  # of an example: ATTA's memory grows with the largest index


def as_batch(batch: object, what: str) -> tuple[Tensor, ...]:
    """A loader's batch as float32 x, int64 y, and a third element where it has one.

    Args:
        batch: (x, y), maybe with more; or a mapping that has them under the usual names, such as
            ``image`` or ``pixel_values``, ``label`` or ``labels``, and ``index``. Labels are whole
            numbers from 0 on, one for each input.
        what: the loader, for the message.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(batch, Mapping):
        batch = _from_mapping(batch, what)
    if not isinstance(batch, (tuple, list)) or not all(isinstance(t, Tensor) for t in batch[:2]):
        raise ValueError(
            f"{what} gives batches of type {type(batch).__name__}: give tensors (x, y)"
        )
    if len(batch) < 2:
        raise ValueError(f"{what} gives inputs alone: give batches (x, y), y the labels")
    x, y, *rest = batch
    if y.dim() == 0:
        raise ValueError(f"{what} gives single examples: make batches of them, by a DataLoader")
    whole = not (y.is_floating_point() or y.is_complex())
    if y.shape != x.shape[:1] or len(y) == 0 or not whole:
        raise ValueError(
            f"{what} gives {y.dtype} labels of shape {tuple(y.shape)} for inputs of shape "
            f"{tuple(x.shape)}: give one an input, a whole number"
        )
    y = y.long()
    if (low := int(y.min())) < 0:
        raise ValueError(f"{what} gives the label {low}: give labels from 0 on")
    return (x.float() if x.is_floating_point() else x, y, *rest[:1])


def _from_mapping(batch: Mapping[Any, Any], what: str) -> tuple[Any, ...]:
    """The inputs and labels of a mapping, by the first usual name that it has for each."""
    names = [next((n for n in known if n in batch), None) for known in (_INPUTS, _LABELS)]
    if None in names:
        keys = ", ".join(map(str, batch)) or "no keys"
        raise ValueError(
            f"{what} gives mappings of {keys}: give batches (x, y), or mappings of "
            f"{_INPUTS[0]} and {_LABELS[0]}"
        )
    values = tuple(batch[name] for name in names)
    return (*values, batch["index"]) if "index" in batch else values


def _index_error(batch: Sequence[object], what: str, limit: int | None = None) -> str | None:
    """Why ATTA cannot use a batch, which should be (x, y, index) with index below `limit`."""
    index, y = batch[2] if len(batch) > 2 else None, cast(Tensor, batch[1])
    valid = (
        isinstance(index, Tensor)
        and index.dtype == torch.int64
        and index.shape == y.shape
        and int(index.min()) >= 0
        and (limit is None or int(index.max()) < limit)
    )
    if valid:
        return None
    return (
        f"{what} does not say which examples a batch holds, as atta must know: let it give "
        "(x, y, index), index int64 from 0 on, or use another train_attack"
    )


def refuse_iterator(loader: object, what: str) -> None:
    """Raise a ValueError on what is not iterable, or only once."""
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise ValueError(f"{what} is of type {type(loader).__name__}: give one of batches (x, y)")
    if isinstance(loader, Iterator):
        raise ValueError(f"{what} is gone after one pass: give a DataLoader, or a list of batches")
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        raise ValueError(
            f"{what} has a DistributedSampler: leave it out, and give all processes the same whole "
            "batches, of which each takes its share"
        )


class Repeated:
    """The batches of a loader, `steps` in a pass; the loader's passes follow one another."""

    def __init__(self, loader: Iterable[Any], steps: int) -> None:
        self.loader, self.steps = loader, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return self._pass(iter(self.loader))  # now: a loader may draw its order here

    def _pass(self, batches: Iterator[Any]) -> Iterator[Any]:
        for step in range(self.steps):
            batch = next(batches, None)
            if batch is None and step > 0:
                batches = iter(self.loader)
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class Checked:
    """The batches of a loader as :func:`as_batch` reads them, each checked as it comes.

    Args:
        loader: gives batches, in every pass anew.
        what: its name, for messages.
        pixels: whether inputs must be in [0, 1]; else floating point ones must be finite.
        indexed: whether a batch must have the indices of its examples.
        steps: batches in a pass, as :class:`Repeated` has them; None for the loader's length.

    Attributes:
        classes: labels must be below it; None where that is not known.
    """

    def __init__(
        self,
        loader: AnyLoader,
        what: str,
        *,
        pixels: bool,
        indexed: bool = False,
        steps: int | None = None,
    ) -> None:
        self.loader, self.what, self.pixels = loader, what, pixels
        self.indexed, self.steps = indexed, steps
        self.classes: int | None = None

    @cached_property
    def first(self) -> tuple[Tensor, ...]:
        """The first batch of a pass; a ValueError where there is none, or it is not valid."""
        refuse_iterator(self.loader, self.what)
        with forked_generators():
            batch = next(iter(self.loader), None)
        if batch is None:
            raise ValueError(f"{self.what} is empty: give batches (x, y)")
        return self._checked(batch, self.what)

    def __len__(self) -> int:
        if self.steps is not None:
            return self.steps
        try:
            return len(cast(Sized, self.loader))
        except TypeError:  # a DataLoader of an iterable data set has the method, but no answer
            raise ValueError(
                f"{self.what} has no length: say by steps_per_epoch how many batches an epoch has, "
                "or give a DataLoader of a data set with a length"
            ) from None

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        loader = self.loader if self.steps is None else Repeated(self.loader, self.steps)
        return self._pass(iter(loader))  # now: see there

    def _pass(self, batches: Iterator[Any]) -> Iterator[tuple[Tensor, ...]]:
        for count, batch in enumerate(batches, 1):
            where = self.what if count == 1 else f"{self.what}, in batch {count},"
            yield self._checked(batch, where)

    def _checked(self, batch: object, what: str) -> tuple[Tensor, ...]:
        tensors = as_batch(batch, what)
        if self.pixels:
            check_pixels(tensors[0], what)
        elif problem := not_finite(tensors[0]):
            raise ValueError(f"{what} gives {problem}")
        self.check_labels(tensors[1], what)
        if self.indexed and (problem := _index_error(tensors, what)):
            raise ValueError(problem)
        return tensors

    def check_labels(self, y: Tensor, what: str) -> None:
        """Raise a ValueError on labels from `classes` on."""
        if self.classes is not None and (high := int(y.max())) >= self.classes:
            raise ValueError(
                f"{what} gives the label {high}: give labels from 0 to {self.classes - 1}, or "
                "another model"
            )


def from_loaders(
    name: str,
    train: AnyLoader,
    val: AnyLoader,
    test: AnyLoader,
    *,
    num_classes: int | None = None,
) -> Dataset:
    """A data set of three loaders: batches (x, y) with x in [0, 1] and y whole numbers.

    A batch may be a mapping, see :func:`as_batch`. Every batch is checked once, here. The loaders
    decide the size and order of their batches and any augmentation, and the settings of a run for
    these do not apply; `val` and `test` should have a fixed order. For ``train_attack="atta"``
    `train` gives (x, y, index).

    Passes repeat: the generators of torch, numpy and Python are seeded for each batch, and a
    generator that belongs to the loader for each pass.

    Args:
        name: for reports.
        train: one pass is an epoch of training.
        val: 500 examples of it are evaluated after each epoch.
        test: the compressed file is evaluated on it.
        num_classes: None for one more than the largest label.

    Raises:
        DataError: a loader is empty, or a batch is not valid.
    """
    if not isinstance(name, str) or not name.strip(" :"):
        raise DataError(f"{name!r} is no name of a data set: give one first, then the loaders")
    loaders = {"train": train, "validation": val, "test": test}
    parts = {title: Loaded(loader, f"the {title} loader") for title, loader in loaders.items()}
    if num_classes is None:
        num_classes = 1 + max(part.highest for part in parts.values())
    return Dataset(name, parts["train"], parts["validation"], parts["test"], num_classes)


class Loaded(Examples):
    """The examples of a loader, all of which are checked in one pass when it is created.

    Attributes:
        batch_size: of its first batch.
        highest: the largest label.
        index_error: why ATTA cannot be trained on it; empty where it can.

    Raises:
        DataError: it is empty, has inputs of several shapes, or a batch is not valid.
    """

    augmented = False  # so far as is known

    def __init__(self, loader: AnyLoader, what: str) -> None:
        self._loader = Checked(loader, what, pixels=True)
        self._sizes: list[int] = []
        self.highest, self.index_error = -1, ""
        shapes: dict[tuple[int, ...], None] = {}
        try:
            refuse_iterator(loader, what)
            with forked_generators(), seeded(_seed()):
                for batch in self._loader:
                    x, y = batch[:2]
                    shapes[tuple(x.shape[1:])] = None
                    self._sizes.append(len(y))
                    self.highest = max(self.highest, int(y.max()))
                    self.index_error = self.index_error or (
                        _index_error(batch, what, _MOST_INDEX) or ""
                    )
        except ValueError as error:
            raise DataError(str(error)) from error
        if not shapes:
            raise DataError(f"{what} is empty: give batches (x, y)")
        self.shape, *others = shapes
        if others:
            raise DataError(
                f"{what} gives inputs of {self.shape} and of {others[0]}: bring all to one shape"
            )
        self.batch_size, self._count = self._sizes[0], sum(self._sizes)

    def __len__(self) -> int:
        return self._count

    def take(self, indices: Tensor | slice) -> InMemory:
        """Some of the examples of a pass, in memory."""
        x, y = self.head(None)
        return InMemory(x[indices], y[indices])

    def first(self, count: int | None) -> Loaded:
        """The first examples of each pass, not in memory."""
        part = copy.copy(self)
        part._count = len(self) if count is None else min(len(self), count)
        return part

    def sample(self, count: int) -> Loaded:
        """The same as :meth:`first`: the others would have to be read."""
        return self.first(count)

    def check(self, where: str, classes: int) -> None:
        """Refuse labels out of range; the rest is checked when the instance is created."""
        if self.highest >= classes:
            raise DataError(
                f"{where} has a label out of range, {self.highest}: give 0 to {classes - 1}"
            )

    def _batches(self, plan: Plan) -> _Batches:
        starts = accumulate(self._sizes, initial=0)
        return _Batches(self._loader, len(self), sum(start < len(self) for start in starts), plan)


class _Batches:
    """Passes over a loader, cut after `count` examples; its own batch size and order apply."""

    def __init__(self, loader: Checked, count: int, length: int, plan: Plan) -> None:
        self.loader, self.count, self.length = loader, count, length
        self.tensors, self.device = 3 if plan.indexed else 2, plan.device

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # Drawn here: a generator's body only runs at the first next(). The generators that belong
        # to the loader are seeded, so that a pass does not depend on those before it.
        owners = (self.loader.loader, getattr(self.loader.loader, "sampler", None))
        generators = [getattr(owner, "generator", None) for owner in owners]
        for each in dict.fromkeys(g for g in generators if isinstance(g, torch.Generator)):
            each.manual_seed(int(torch.randint(2**62, ())))
        with seeded(_seed()):
            batches = iter(self.loader)
        return self._pass(batches)

    def _pass(self, batches: Iterator[Sequence[Tensor]]) -> Iterator[tuple[Tensor, ...]]:
        left = self.count
        while left > 0:
            try:
                with seeded(_seed()):
                    batch = next(batches, None)
            except ValueError as error:
                raise DataError(str(error)) from error
            if batch is None:
                return
            tensors = (tensor[:left] for tensor in batch[: self.tensors])
            yield tuple(t if self.device is None else t.to(self.device) for t in tensors)
            left -= len(batch[0])


def _seed() -> int:
    """A seed for the generators that are not torch's, drawn from torch's."""
    return int(torch.randint(2**32, ()))
