"""scikit-learn's digits: 1,797 images of 8x8, part of scikit-learn itself."""

import numpy as np
import torch
from numpy.typing import NDArray

from atmc.data.base import Dataset

_TEST, _VALIDATION = 497, 200


def load_digits() -> Dataset:
    """Load the digits: 1,100 training, 200 validation and 497 test images, stratified by class."""
    # imported here, so that other data sets do not wait for scikit-learn
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.from_numpy((images / 16).astype(np.float32)).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    rest, test = _split(np.arange(len(labels)), labels, _TEST)
    train, validation = _split(rest, labels, _VALIDATION)
    return Dataset(
        name="digits",
        x_train=x[train],
        y_train=y[train],
        x_val=x[validation],
        y_val=y[validation],
        x_test=x[test],
        y_test=y[test],
        num_classes=10,
        eps=0.1,
        eval_steps=20,
        model="digits-cnn",
    )


def _split(
    indices: NDArray[np.int64], labels: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take `count` of the indices, in every class its share to within one; both parts ascend.

    With the classes one after the other, every (n / count)-th index is taken: no random numbers,
    so the split depends on no generator and no version of one.
    """
    by_class = indices[np.argsort(labels[indices], kind="stable")]
    taken = np.arange(count) * len(indices) // count
    return np.sort(np.delete(by_class, taken)), np.sort(by_class[taken])
