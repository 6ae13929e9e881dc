"""Streamed examples: the same ones, whoever reads them."""

import multiprocessing
import os
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from atmc.data import Augmentation, DataError, InMemory, Streamed, streamed


@pytest.fixture(params=[0, 2], ids=["here", "two processes"])
def workers(request, monkeypatch):
    monkeypatch.setattr(streamed, "_workers", lambda count: request.param)
    return request.param


def tensors(count=13, dtype=torch.uint8):
    x = torch.randint(0, 256, (count, 3, 5, 5), dtype=torch.uint8)
    return x if dtype == torch.uint8 else x / 255, torch.arange(count) % 3


class Noise:
    """Examples that are drawn anew whenever they are asked for, by all the usual generators."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        drawn = torch.rand(1, 2, 2) * (0.5 + 0.5 * np.random.random())
        return drawn * (0.5 + 0.5 * random.random()), index % 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(("workers", "cache"), [(0, False), (2, False), (0, True), (2, True)])
def test_the_same_batches_as_from_memory(monkeypatch, dtype, shuffle, augment, workers, cache):
    monkeypatch.setattr(streamed, "_workers", lambda count: workers)
    x, y = tensors(dtype=dtype)
    augmentation = Augmentation(1, True)
    examples = Streamed(TensorDataset(x, y), 3, augmentation=augmentation, cache=cache)
    in_memory = InMemory(x, y, augmentation)
    assert (len(examples), examples.shape, examples.augmented) == (13, (3, 5, 5), True)

    def seeded(examples):
        """A pass as the training loop has it: each batch under a seed of its own."""
        torch.manual_seed(1)
        batches = examples.batches(4, shuffle=shuffle, indexed=True, augment=augment)
        order = iter(batches)
        for step in range(len(batches)):
            torch.manual_seed(step)
            yield next(order)
        assert next(order, None) is None

    passed = list(zip(seeded(examples), seeded(in_memory), strict=True))
    assert len(passed) == (3 if shuffle else 4)
    for ours, theirs in passed:
        assert [t.dtype for t in ours] == [torch.float32, torch.int64, torch.int64]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_parts_of_it(workers):
    x, y = tensors()
    examples = Streamed(TensorDataset(x, y), 3)
    some = torch.tensor([9, 2, 4])
    assert torch.equal(examples.take(some).head(None)[0], x[some] / 255)
    assert torch.equal(examples.take(some).first(2).head(None)[1], y[some][:2])
    assert torch.equal(examples.head(3)[0], x[:3] / 255)


def test_examples_in_memory_are_read_once():
    """However often, and as whatever part, all of them are asked for."""
    x, y = tensors()
    read = []

    class Counted(TensorDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    examples = Streamed(Counted(x, y), 3, cache=True, trusted=True)
    examples.batches(4)
    before = len(read)
    for count in (None, 13, 99):
        assert torch.equal(examples.first(count).head(None)[0], x / 255)
    assert len(read) == before


def test_what_is_random_in_an_example_follows_the_seed_alone(monkeypatch):
    examples = Streamed(Noise(), 2)

    def passed(seed, count, shuffle=True):
        monkeypatch.setattr(streamed, "_workers", lambda examples: count)
        torch.manual_seed(seed)
        states = random.getstate()[1], np.random.get_state()[1].tolist()
        batches = [x for x, _ in examples.batches(5, shuffle=shuffle)]
        assert states == (random.getstate()[1], np.random.get_state()[1].tolist())
        return torch.cat(batches), torch.get_rng_state()

    (first, state), (again, state_again) = passed(3, 0), passed(3, 2)
    assert torch.equal(first, again) and torch.equal(state, state_again)
    torch.manual_seed(3)
    torch.randperm(12)  # the order, which is all that is drawn, as it is of examples in memory
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, passed(4, 0)[0])
    # In order, as for an evaluation, there is one version of each, whatever the seed.
    assert torch.equal(passed(3, 0, False)[0], passed(4, 2, False)[0])
    assert len(first.flatten(1).unique(dim=0)) == 10


def test_training_may_see_other_views(workers):
    x, y = tensors()
    examples = Streamed(TensorDataset(x, y), 3, varied=TensorDataset(255 - x, y))
    assert examples.augmented
    (plain, _), *_ = examples.batches(13)
    (varied, _), *_ = examples.batches(13, augment=True)
    assert torch.equal(plain, x / 255) and torch.equal(varied, (255 - x) / 255)


class Wrong:
    """Ten examples, of which number seven is wrong."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index != 7:
            return torch.zeros(1, 4, 4), 1
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


GOOD = torch.zeros(1, 4, 4)
WRONG = {
    "no pair": (GOOD, "example 7 is no pair: give (image, label)"),
    "no tensor": ((np.zeros((1, 4, 4)), 1), "of example 7 is of type ndarray: give a tensor"),
    "flat": ((GOOD[0], 1), "example 7 has images of shape (1, 4, 4): give (N, C, H, W)"),
    "other shape": ((torch.zeros(1, 4, 5), 1), "shape (1, 4, 5), others of (1, 4, 4): bring"),
    "bright": ((GOOD + 2, 1), "example 7 has values from 2 to 2, outside [0, 1]"),
    "integers": ((GOOD.long(), 1), "example 7 has images of int64"),
    "label": ((GOOD, 3), "example 7 has a label out of range, 3: give 0 to 2"),
    "label type": ((GOOD, 1.0), "the label of example 7 is 1.0: give an integer"),
    "its own": (DataError("the image a.png is torn"), "the image a.png is torn"),
    "exception": (
        KeyError("two\nlines"),
        "example 7 cannot be read (KeyError: 'two\\nlines'): mend its source",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_example_is_named(workers, case):
    item, expected = WRONG[case]
    examples = Streamed(Wrong(item), 3)
    with pytest.raises(DataError) as caught:
        examples.check("data set 'own': its test part", 3)  # before any training
    assert str(caught.value).startswith("data set 'own': its test part: ")
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        list(examples.batches(4))
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert len(list(examples.first(7).batches(4))) == 2
    Streamed(Wrong(item), 3, trusted=True).check("", 3)  # for which one is enough


def test_all_of_an_unknown_source_is_looked_at(monkeypatch, workers):
    examples = Streamed(Wrong((GOOD + 2, 1)), 3)
    examples.check_rest("the part")  # which its check has done
    monkeypatch.setattr(streamed, "_PROBED", 5)
    examples.check("the part", 3)
    with pytest.raises(DataError, match=r"^the part: example 7 has values from 2 to 2"):
        examples.check_rest("the part")
    examples.first(7).check_rest("the part")
    Streamed(Wrong((GOOD + 2, 1)), 3, trusted=True).check_rest("the part")


def test_labels_of_other_integers_and_halves_are_taken():
    class Narrow(Wrong):
        def __getitem__(self, index):
            return GOOD.half() + 0.5, (np.uint8(2), torch.tensor(1), 0)[index % 3]

    x, y = Streamed(Narrow(None), 3).head(None)
    assert x.dtype == torch.float32 and x.unique().tolist() == [0.5]
    assert y.tolist() == [2, 1, 0, 2, 1, 0, 2, 1, 0, 2]


def test_what_cannot_be():
    in_memory = TensorDataset(*tensors())
    with pytest.raises(ValueError, match="examples in memory cannot vary"):
        Streamed(in_memory, 3, varied=in_memory, cache=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        Streamed(TensorDataset(*tensors()), 3).batches(0)
    with pytest.raises(DataError, match="is of 3 classes, not of 5"):
        Streamed(TensorDataset(*tensors()), 3).check("the part", 5)


@pytest.mark.parametrize("count", [0, 1, 64, 65, 300])
def test_every_call_is_made_once(workers, count):
    calls = streamed._shared((count,), torch.int64)
    who = streamed._shared((count,), torch.int64)

    def note(index):
        calls[index] += 1
        who[index] = os.getpid()

    streamed.for_each(note, count)
    assert calls.tolist() == [1] * count
    assert (os.getpid() in who.tolist()) == (count > 0 and workers == 0)


def test_the_first_error_is_raised(workers):
    late = streamed._shared((1,), torch.int64)

    def fail(index):
        if index >= 70:
            raise DataError(f"number {index}")
        late[0] += index >= 5000

    with pytest.raises(DataError, match=r"^number 70$"):
        streamed.for_each(fail, 10_000)
    assert late.item() == 0


def test_few_examples_are_read_without_processes(monkeypatch):
    assert streamed._workers(streamed._FEW) == 0
    assert streamed._cores() >= 1
    if sys.platform == "linux":
        assert streamed._workers(10**6) == min(streamed._cores(), streamed._MOST_WORKERS)
    # of a pool: it may not have processes below it
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    assert streamed._workers(10**6) == 0


def test_several_fill_one_tensor(workers):
    """Of the size of the examples, which is all that there is of them."""
    x, y = tensors(count=1000)
    examples = Streamed(TensorDataset(x, y), 3, cache=True)
    (batch, labels), *_ = examples.batches(len(x))
    assert torch.equal(batch, x / 255) and torch.equal(labels, y)
    ours = examples._in_memory.x
    assert ours.dtype == torch.uint8 and ours.untyped_storage().nbytes() == x.nbytes
    assert ours.data_ptr() == examples.batches(4).x.data_ptr()
