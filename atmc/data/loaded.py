"""Examples that come from loaders of one's own, in their batches and their order."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from atmc.data.base import Dataset, Examples
from atmc.data.in_memory import InMemory
from atmc.data.pixels import check_numbers, check_pixels
from atmc.data.seeded import seeded
from atmc.data.usual import USUAL
from atmc.errors import DataError

AnyLoader = Iterable[Sequence[Tensor] | Mapping[str, Tensor]]
# What the parts of a batch are called, where it is a mapping.
_INPUTS = ("image", "images", "pixel_values", "x", "input", "inputs")
_LABELS = ("label", "labels", "y", "target", "targets")
_MOST_INDEX = 2**28  # of an example: memory is taken for the largest


def as_batch(batch: object, what: str) -> tuple[Tensor, ...]:
    """A loader's batch as (x, y), or (x, y, index) where it says which examples it holds.

    Floating point inputs of any width become float32, whole numbers as labels int64.

    Args:
        batch: (x, y), maybe with more; or a mapping that has them under the usual names, such as
            ``image`` or ``pixel_values``, ``label`` or ``labels``, and ``index``.
        what: what gives it, for the message.

    Raises:
        ValueError: it is something else, or has not one label from 0 on for each input.
    """
    if isinstance(batch, Mapping):
        batch = _of_mapping(batch, what)
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


def _of_mapping(batch: Mapping[Any, Any], what: str) -> tuple[Any, ...]:
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


def check_index(batch: Sequence[object], what: str, most: int | None = None) -> None:
    """Refuse a batch that does not say which examples it holds.

    Args:
        batch: should be (x, y, index), index int64 of shape (N,) from 0 on.
        what: what gives it, for the message.
        most: what no index should reach; memory is taken for the largest.

    Raises:
        ValueError: it is something else.
    """
    index, y = batch[2] if len(batch) > 2 else None, batch[1]
    assert isinstance(y, Tensor)
    if (
        not isinstance(index, Tensor)
        or index.dtype != torch.int64
        or index.shape != y.shape
        or int(index.min()) < 0
        or (most is not None and int(index.max()) >= most)
    ):
        raise ValueError(
            f"{what} does not say which examples a batch holds, as atta must know: let it give "
            "(x, y, index), index int64 from 0 on, or use another train_attack"
        )


class Checked:
    """The batches of a loader as :func:`as_batch` reads them, each looked at as it comes.

    Args:
        loader: gives batches, in every pass anew.
        what: what it is, for messages.
        pixels: whether inputs must be in [0, 1]; else floating point ones must be finite.
        indexed: whether a batch must say which examples it holds.
        steps: batches in a pass, where the loader's own length is not to count: its passes then
            follow one another.

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
        """The first batch of a pass.

        Raises:
            ValueError: the loader gives nothing, or something else than it should.
        """
        refuse_iterator(self.loader, self.what)
        with torch.random.fork_rng():
            batch = next(iter(self.loader), None)
        if batch is None:
            raise ValueError(f"{self.what} is empty: give batches (x, y)")
        return self._look(batch, self.what)

    def __len__(self) -> int:
        """The number of batches in a pass.

        Raises:
            ValueError: the loader has no length.
        """
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
        """Start a pass."""
        return self._pass(iter(self.loader))  # now: a loader may draw its order here

    def _pass(self, batches: Iterator[Any]) -> Iterator[tuple[Tensor, ...]]:
        count = 0
        while self.steps is None or count < self.steps:
            batch = next(batches, None)
            if batch is None and self.steps is not None and count > 0:
                batches = iter(self.loader)
                batch = next(batches, None)
            if batch is None:
                return
            count += 1
            where = self.what if count == 1 else f"{self.what}, in batch {count},"
            yield self._look(batch, where)

    def _look(self, batch: object, what: str) -> tuple[Tensor, ...]:
        found = as_batch(batch, what)
        x, y = found[:2]
        (check_pixels if self.pixels else check_numbers)(x, what)
        self.check_labels(y, what)
        if self.indexed:
            check_index(found, what)
        return found

    def check_labels(self, y: Tensor, what: str) -> None:
        """Refuse labels of more classes than are known of.

        Raises:
            ValueError: one is too high.
        """
        if self.classes is not None and (high := int(y.max())) >= self.classes:
            raise ValueError(
                f"{what} gives the label {high}: give labels from 0 to {self.classes - 1}, or "
                "another model"
            )


def refuse_iterator(loader: object, what: str) -> None:
    """Refuse what gives its batches once.

    Raises:
        ValueError: it does, or nothing at all can be taken from it.
    """
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise ValueError(f"{what} is of type {type(loader).__name__}: give one of batches (x, y)")
    if isinstance(loader, Iterator):
        raise ValueError(f"{what} is gone after one pass: give a DataLoader, or a list of batches")


def from_loaders(
    name: str,
    train: AnyLoader,
    val: AnyLoader,
    test: AnyLoader,
    *,
    num_classes: int | None = None,
) -> Dataset:
    """A data set of three loaders: batches (x, y) with x in [0, 1] and y whole numbers.

    A batch may be a mapping, see :func:`as_batch`.

    The size of its batches, their order and any augmentation are the loaders' own affair, and the
    settings of a run for these do not apply; those of `val` and `test` should be in a fixed order.
    For ``train_attack="atta"`` `train` gives (x, y, index). Every batch is looked at once, here.

    Passes repeat: what is random in a loader is drawn from the generators of torch, numpy and
    Python, which are seeded for each batch; a generator of its own, as a DataLoader may have, is
    seeded for each pass.

    Args:
        name: what reports call it.
        train: what is trained on; one pass is an epoch.
        val: looked at after each epoch, 500 examples of it.
        test: what the file is evaluated on in the end.
        num_classes: None for one more than the largest label.

    Raises:
        DataError: a loader is empty, or a batch is not what it should be.
    """
    if not isinstance(name, str) or not name.strip(" :"):
        raise DataError(f"{name!r} is no name of a data set: give one first, then the loaders")
    given = {"train": train, "validation": val, "test": test}
    parts = [Loaded(loader, f"the {title} loader") for title, loader in given.items()]
    classes = 1 + max(part.highest for part in parts) if num_classes is None else num_classes
    first, second, third = parts
    return Dataset(name, first, second, third, num_classes=classes, **USUAL["own"])


class Loaded(Examples):
    """The examples of a loader, all of them looked at in one pass.

    Args:
        loader: gives (x, y), or (x, y, index), in every pass as many.
        what: what it is, for messages.

    Attributes:
        highest: the largest label.
        unnamed: why ATTA cannot be trained on it; empty where it can.

    Raises:
        DataError: it gives nothing, inputs of several shapes, or what `check_batch` refuses.
    """

    def __init__(self, loader: AnyLoader, what: str) -> None:
        self.loader = loader
        shapes: dict[tuple[int, ...], None] = {}
        self._sizes: list[int] = []
        self.highest, self.unnamed = -1, ""
        try:
            refuse_iterator(loader, what)
            with torch.random.fork_rng(), seeded(_seed()):
                for batch in Checked(loader, what, pixels=True):
                    x, y = batch[:2]
                    shapes[tuple(x.shape[1:])] = None
                    self._sizes.append(len(y))
                    self.highest = max(self.highest, int(y.max()))
                    self._look_for_index(batch, what)
        except ValueError as error:
            raise DataError(str(error)) from error
        if not shapes:
            raise DataError(f"{what} is empty: give batches (x, y)")
        if len(shapes) > 1:
            one, other = list(shapes)[:2]
            raise DataError(f"{what} gives inputs of {one} and of {other}: bring all to one shape")
        (self._shape,) = shapes
        self.what = what
        self._count = sum(self._sizes)

    def _look_for_index(self, batch: Sequence[Tensor], what: str) -> None:
        try:
            check_index(batch, what, _MOST_INDEX)
        except ValueError as error:
            self.unnamed = str(error)

    def __len__(self) -> int:
        """The number of examples in a pass."""
        return self._count

    @property
    def batch_size(self) -> int:
        """The examples in its first batch."""
        return self._sizes[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self._shape

    @property
    def augmented(self) -> bool:
        """Never; what the loader does is not known."""
        return False

    def take(self, indices: Tensor) -> InMemory:
        """Some of the examples of a pass, in memory."""
        x, y = self.head(None)
        return InMemory(x[indices], y[indices])

    def first(self, count: int | None) -> Loaded:
        """The first examples of each pass."""
        part = copy.copy(self)
        part._count = min(len(self), len(self) if count is None else count)
        return part

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        indexed: bool = False,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> _Batches:
        """The loader's batches, whatever size and order are asked for."""
        starts = accumulate(self._sizes, initial=0)
        length = sum(start < self._count for start in starts)
        loader = Checked(self.loader, self.what, pixels=True)
        return _Batches(loader, length, self._count, indexed, device)

    def check(self, where: str, classes: int) -> None:
        """Refuse labels out of range; the rest is known."""
        if self.highest >= classes:
            raise DataError(
                f"{where} has a label out of range, {self.highest}: give 0 to {classes - 1}"
            )

    def check_rest(self, where: str) -> None:
        """Nothing: all of them were looked at."""


class _Batches:
    """A pass over a loader, cut after `count` examples, brought to a device."""

    def __init__(
        self,
        loader: Checked,
        length: int,
        count: int,
        indexed: bool,
        device: torch.device | str | None,
    ) -> None:
        self.loader, self.length, self.count = loader, length, count
        self.used = 3 if indexed else 2
        self.device = device

    def __len__(self) -> int:
        """The number of batches."""
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Start a pass."""
        # drawn here: a generator's body only runs at the first next()
        for generator in self._generators():
            generator.manual_seed(int(torch.randint(2**62, ())))
        with seeded(_seed()):
            batches = iter(self.loader)
        return self._pass(batches)

    def _generators(self) -> list[torch.Generator]:
        """Those of the loader's own, so that a pass depends on no pass before it."""
        loader = self.loader.loader
        sampler = getattr(loader, "sampler", None)
        held = (getattr(each, "generator", None) for each in (loader, sampler))
        return [each for each in dict.fromkeys(held) if isinstance(each, torch.Generator)]

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
            part = (t[:left] for t in batch[: self.used])
            yield tuple(t if self.device is None else t.to(self.device) for t in part)
            left -= len(batch[0])


def _seed() -> int:
    """For the generators that are not torch's, drawn from torch's."""
    return int(torch.randint(2**32, ()))
