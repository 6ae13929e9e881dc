"""Random crops and mirror images, against one image at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atmc.data import Augmentation, Batches, InMemory


def one_by_one(x, padding, flip):
    """The same from the same draws, an image, a row and a pixel at a time."""
    count, channels, height, width = x.shape
    mirrored = torch.rand(count) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    moves = torch.randint(2 * padding + 1, (2, count)) if padding else torch.zeros(2, count).long()
    out = torch.zeros_like(x)
    for n in range(count):
        for i in range(height):
            for j in range(width):
                row, column = i + int(moves[0, n]) - padding, j + int(moves[1, n]) - padding
                if not (0 <= row < height and 0 <= column < width):
                    continue
                column = width - 1 - column if mirrored[n] else column
                for c in range(channels):
                    out[n, c, i, j] = x[n, c, row, column]
    return out


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    bytes_=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_same_as_one_image_at_a_time(shape, padding, flip, bytes_, seed):
    x = torch.randint(1, 256, shape, dtype=torch.uint8)
    x = x if bytes_ else x / 255
    before = x.clone()
    torch.manual_seed(seed)
    augmented_x = Augmentation(padding, flip)(x)
    torch.manual_seed(seed)
    assert torch.equal(augmented_x, one_by_one(x, padding, flip))
    assert augmented_x.dtype == x.dtype and torch.equal(x, before)


def test_every_place_and_both_sides_come_up():
    x = torch.zeros(2000, 1, 5, 5)
    x[:, :, 2, 1] = 1
    augmented_x = Augmentation(padding=1, flip=True)(x)[:, 0]
    seen = (augmented_x.sum(0) > 0).nonzero().tolist()
    # A point at column 1 is mirrored to column 3, and each moves by one in all directions.
    assert seen == [[row, column] for row in (1, 2, 3) for column in range(5)]


def test_the_global_generator_decides_when_the_batch_is_asked_for():
    examples = InMemory(torch.rand(8, 1, 6, 6), torch.zeros(8).long(), Augmentation(2, True))
    assert examples.augmented

    def second_batch(seed):
        torch.manual_seed(0)
        batches = iter(examples.batches(4, shuffle=True, augment=True))
        next(batches)
        torch.manual_seed(seed)
        return next(batches)[0]

    assert torch.equal(second_batch(5), second_batch(5))
    assert not torch.equal(second_batch(5), second_batch(6))


@pytest.mark.parametrize("augmented", [False, True])
def test_only_those_who_ask_get_augmented_batches(augmented):
    examples = InMemory(torch.rand(6, 1, 6, 6), torch.zeros(6).long(), Augmentation(3, True))
    ((x, _),) = examples.batches(6, augment=augmented)
    assert torch.equal(x, examples.x) is not augmented
    assert torch.equal(examples.head(None)[0], examples.x)
    ((x, _),) = Batches(
        examples.x, examples.y, 6, augmentation=examples.augmentation if augmented else None
    )
    assert torch.equal(x, examples.x) is not augmented
