"""How a part is cut from another: always the same examples, of every class its share."""

import numpy as np
from numpy.typing import NDArray


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
