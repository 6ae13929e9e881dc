import numpy as np
import pytest

from atmc.data.splits import interleaved


@pytest.mark.parametrize("counts", [(5,), (7, 7), (100, 10, 1), (3, 50, 20, 20)])
def test_every_prefix_has_of_each_class_its_share(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = interleaved(labels)
    assert sorted(order) == list(range(len(labels)))
    assert np.array_equal(order, interleaved(labels))
    for n in range(1, len(labels) + 1):
        taken = np.bincount(labels[order[:n]], minlength=len(counts))
        assert np.abs(taken - n * np.array(counts) / len(labels)).max() <= 1.5


def test_neighbours_within_a_class_are_apart() -> None:
    order = interleaved(np.zeros(1000, np.int64))
    assert np.abs(np.diff(order)).mean() > 200
