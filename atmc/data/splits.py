"""Splits that are always the same, and in proportion to the classes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def stratified(
    indices: NDArray[np.int64], labels: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take `count` of the indices, of every class its share to within one; both results ascend.

    With the classes one after the other, every (n / count)-th index is taken: no random numbers,
    so the split depends on no generator and no version of one.

    >>> stratified(np.arange(6), np.array([0, 0, 1, 1, 0, 1]), 2)
    (array([1, 3, 4, 5]), array([0, 2]))

    Args:
        indices: of examples, of shape (n,).
        labels: of all examples: that of index i is ``labels[i]``.
        count: at most n.

    Returns:
        The other indices, and those that were taken.
    """
    by_class = indices[np.argsort(labels[indices], kind="stable")]
    taken = np.arange(count) * len(indices) // count
    return np.sort(np.delete(by_class, taken)), np.sort(by_class[taken])


def interleaved(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order, always the same, in which the first n examples have of each class its share.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> labels[interleaved(labels)].tolist()
    [0, 1, 0, 0, 1, 0]

    Args:
        labels: of shape (n,).

    Returns:
        The indices 0 to n - 1, each once.
    """
    order = np.random.RandomState(0).permutation(len(labels))
    mixed = labels[order]
    place = np.empty(len(labels))
    for label in np.unique(mixed):
        members = np.flatnonzero(mixed == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]


def hold_out(
    total: int, labels: NDArray[np.int64] | None = None, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Hold out examples at random, always the same ones.

    Args:
        total: the number of examples.
        labels: theirs, where they are known; then of each class its share, to within one.
        count: how many to hold out; None for a tenth, but one at least.

    Returns:
        The indices of the other examples, and of those that are held out, int64, ascending.
    """
    count = min(total, max(1, total // 10) if count is None else count)
    # The generator whose numbers numpy promises to keep.
    order = np.random.RandomState(0).permutation(total)
    known = np.zeros(total, np.int64) if labels is None else labels
    # In a random order, because neighbours within a class may resemble each other in steps.
    rest, taken = stratified(np.arange(total), known[order], count)
    return torch.from_numpy(np.sort(order[rest])), torch.from_numpy(np.sort(order[taken]))
