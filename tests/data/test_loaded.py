"""Data sets of loaders: what a pass gives, and what is refused before any training."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from atmc.data import DataError, Dataset, Loaded, from_loaders

X = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3


def loader(count: int = 10, size: int = 4, **more: Any) -> Any:
    return DataLoader(TensorDataset(X[:count], Y[:count]), batch_size=size, **more)


def build(train: Any = None, val: Any = None, test: Any = None, **more: Any) -> Dataset:
    parts = ((train, 10), (val, 5), (test, 7))
    train, val, test = (loader(count) if part is None else part for part, count in parts)
    return from_loaders("mine", train, val, test, **more)


def test_three_loaders_are_a_data_set() -> None:
    dataset = build()
    assert (dataset.name, dataset.num_classes, dataset.input_shape) == ("mine", 3, (1, 4, 4))
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [10, 5, 7]
    assert (dataset.model, dataset.augmented) == (None, False)
    assert torch.equal(dataset.x_test, X[:7]) and torch.equal(dataset.y_train, Y)
    assert build(num_classes=9).num_classes == 9
    dataset.check_rest()


def test_batches_are_those_of_the_loader() -> None:
    batches = build().train.batches(99, shuffle=True, augment=True, device="cpu")
    assert len(batches) == 3
    for _ in range(2):  # every pass
        assert [len(y) for _, y in batches] == [4, 4, 2]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9, 10, 11, None])
def test_the_first_examples(count: int | None) -> None:
    """The same as of examples in memory, whatever lies at the borders of batches."""
    part = build().train.first(count)
    expected = X[:count]
    batches = part.batches(4)
    assert len(part) == len(expected)
    assert len(batches) == len(list(batches)) == -(-len(expected) // 4)
    x, y = part.head(None)
    assert torch.equal(x, expected) and torch.equal(y, Y[:count])
    assert torch.equal(part.first(2).head(None)[1], Y[: len(expected)][:2])


def test_some_of_the_examples() -> None:
    x, y = build().train.take(torch.tensor([9, 0, 4])).head(None)
    assert torch.equal(x, X[[9, 0, 4]]) and torch.equal(y, Y[[9, 0, 4]])


def test_the_seed_decides_an_order_of_its_own() -> None:
    """Looking at the loader draws nothing from the global generator; a pass does."""
    state = torch.get_rng_state()
    dataset = build(train=loader(shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)
    batches = dataset.train.batches(4, shuffle=True)
    passes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        passes.append(torch.cat([y for _, y in batches]))
    assert torch.equal(passes[0], passes[1]) and not torch.equal(passes[0], passes[2])


def test_indices_pass_where_they_are_asked_for() -> None:
    indexed = DataLoader(TensorDataset(X, Y, torch.arange(10)), batch_size=4)
    train = build(train=indexed).train
    assert [len(batch) for batch in train.batches(4)] == [2, 2, 2]
    assert torch.cat([i for _, _, i in train.batches(4, indexed=True)]).tolist() == [*range(10)]
    assert [len(batch) for batch in build().train.batches(4, indexed=True)] == [2, 2, 2]


@pytest.mark.parametrize(
    "third",
    [
        *(["a.png"] * 5, torch.tensor(3), torch.arange(5.0), torch.arange(4)),
        *(torch.arange(5) - 1, torch.full((5,), 2**62)),
    ],
    ids=str,
)
def test_what_is_no_index_is_left_out(third: Any) -> None:
    """It stands in no one's way, but where ATTA needs an index it is expected to be none."""
    train = build(train=[(X[:5], Y[:5], torch.arange(5)), (X[5:], Y[5:], third)]).train
    assert isinstance(train, Loaded)
    assert [len(batch) for batch in train.batches(5)] == [2, 2]
    assert "does not say which examples a batch holds, as atta must know" in train.index_error
    assert build(train=[(X, Y, torch.arange(10))]).train.index_error == ""  # type: ignore[attr-defined]


class Noisy(TensorDataset):
    """Noise from all three generators."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        return x * noise / 3, y


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_random_in_a_loader_follows_the_seed(workers: int) -> None:
    """Noise and order, of the global generators or one of its own; a pass as any other before."""
    state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]

    def noisy() -> Any:
        generator = torch.Generator().manual_seed(5) if workers == 0 else None
        more = {"shuffle": True, "generator": generator, "num_workers": workers}
        return build(train=DataLoader(Noisy(X, Y), batch_size=4, **more)).train.batches(4)

    def passed(batches: Any, seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        pairs = list(batches)
        return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])

    one, other = noisy(), noisy()
    x, y = passed(one, 1)
    for batches, seed in ((one, 2), (one, 1), (other, 1)):
        again = passed(batches, seed)
        assert torch.equal(again[1], y) == (seed == 1)
        assert torch.equal(again[0], x) == (seed == 1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # type: ignore[union-attr,index]


def test_a_loader_without_a_length() -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(zip(X, Y, strict=True))

    dataset = build(train=DataLoader(Stream(), batch_size=4))
    assert len(dataset.train.batches(1)) == 3


def test_batches_of_other_types_and_names() -> None:
    for x, y in ((X.double(), Y.int()), (X.half(), Y.to(torch.uint8))):
        dataset = build(val=[(x, y)], test=[{"pixel_values": x, "labels": y}])
        for part in (dataset.val, dataset.test):
            ((one, label),) = part.batches(1)
            assert (one.dtype, label.dtype) == (torch.float32, torch.int64)
            assert torch.equal(one, x.float()) and torch.equal(label, Y)


def test_what_changes_after_the_first_pass_is_told() -> None:
    batches = list(loader())
    dataset = build(train=batches)
    batches[1] = (batches[1][0] + torch.nan, batches[1][1])
    with pytest.raises(DataError, match="the train loader, in batch 2, gives NaN in example 0"):
        list(dataset.train.batches(1))


def test_inputs_of_any_shape() -> None:
    flat = [(X.flatten(1), Y)]
    assert from_loaders("mine", flat, flat, flat).input_shape == (16,)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x, y: (x - 0.5, y), "the {} loader, in batch 4, gives values from .* outside"),
        (
            lambda x, y: ((255 * x).byte(), y),
            "the {} loader, in batch 4, gives inputs of torch.uint8",
        ),
        (lambda x, y: (torch.full_like(x, torch.nan), y), "batch 4, gives NaN in example 0, and 3"),
        (lambda x, y: (x, y.double()), "the {} loader, in batch 4, gives torch.float64 labels"),
        (
            lambda x, y: (x, y - 1),
            "the {} loader, in batch 4, gives the label -1: give labels from 0 on",
        ),
        (lambda x, y: (x, y[:1]), r"the {} loader, in batch 4, gives .* labels of shape \(1,\)"),
        (
            lambda x, y: (x[:0], y[:0]),
            r"the {} loader, in batch 4, gives .* labels of shape \(0,\)",
        ),
        (lambda x, y: (x[:, :, : 1 + int(y[0])], y), "the {} loader gives inputs of .* and of .*:"),
        (lambda x, y: (x,), "the {} loader, in batch 4, gives inputs alone"),
        (
            lambda x, y: "batch",
            "the {} loader, in batch 4, gives batches of type str: give tensors",
        ),
        (lambda x, y: {"x": x}, "the {} loader, in batch 4, gives mappings of x: give batches"),
        (
            lambda x, y: (x[0], y[0]),
            "the {} loader, in batch 4, gives single examples: make batches of them",
        ),
    ],
)
@pytest.mark.parametrize("which", ["train", "validation", "test"])
def test_batches_that_are_refused(which: str, change: Callable[..., Any], expected: str) -> None:
    """Wherever in the pass they are; and the examples of a later loader are looked at, too."""
    batches = [*loader(), change(X[4:8], Y[4:8])]
    key = {"validation": "val"}.get(which, which)
    with pytest.raises(DataError, match=expected.format(which)) as caught:
        build(**{key: batches})
    assert "\n" not in str(caught.value)


def test_what_three_good_loaders_may_lack() -> None:
    with pytest.raises(DataError, match="the validation loader is empty: give batches"):
        build(val=[])
    with pytest.raises(DataError, match="the validation loader is gone after one pass: give a"):
        build(val=iter(loader()))
    with pytest.raises(DataError, match="the test loader is of type NoneType: give one of batch"):
        from_loaders("mine", loader(), loader(), None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is no name of a data set: give one first"):
        from_loaders(loader(), loader(), loader(), loader())
    with pytest.raises(DataError, match=r"its test part has a label out of range, 2: give 0 to 1"):
        build(train=loader(2), val=loader(2), num_classes=2)
    with pytest.raises(DataError, match="bring all to one shape"):
        build(val=[(X[:, :, 1:], Y)])
    with pytest.raises(DataError, match="fewer than two classes"):
        from_loaders("mine", *3 * [[(X, torch.zeros_like(Y))]])


def test_what_it_is_made_of() -> None:
    part = build().val
    assert isinstance(part, Loaded) and (part.highest, part.shape) == (2, (1, 4, 4))
