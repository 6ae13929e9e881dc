"""How a part is cut from another: always the same examples, of every class its share."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def stratified(
    indices: NDArray[np.int64], labels: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take `count` of the indices, in every class its share to within one; both parts ascend.

    With the classes one after the other, every (n / count)-th index is taken: no random numbers,
    so the split depends on no generator and no version of one.

    Args:
        indices: of examples, of shape (n,).
        labels: of all examples: that of index i is ``labels[i]``.
        count: how many, up to n.

    Returns:
        What is left, and what was taken.
    """
    by_class = indices[np.argsort(labels[indices], kind="stable")]
    taken = np.arange(count) * len(indices) // count
    return np.sort(np.delete(by_class, taken)), np.sort(by_class[taken])


def hold_out(
    total: int, labels: NDArray[np.int64] | None = None, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cut examples at random, the same ones every time.

    Args:
        total: how many examples there are.
        labels: theirs, where they are known: then each class gives its share, to within one.
        count: how many are cut; None for a tenth, but one at least.

    Returns:
        The indices that are left and those that were cut, int64, ascending.
    """
    count = min(total, max(1, total // 10) if count is None else count)
    # The generator whose numbers numpy promises to keep.
    order = np.random.RandomState(0).permutation(total)
    known = np.zeros(total, np.int64) if labels is None else labels
    # In a random order, so that what lies side by side in a class is not taken in step with it.
    left, taken = stratified(np.arange(total), known[order], count)
    rest, cut = (torch.from_numpy(np.sort(order[part])) for part in (left, taken))
    return rest, cut
