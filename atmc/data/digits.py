"""scikit-learn's digits: 1,797 images of 8x8, part of scikit-learn itself."""

import numpy as np
import torch

from atmc.data.base import Dataset
from atmc.data.in_memory import InMemory
from atmc.data.splits import stratified
from atmc.data.usual import USUAL

_TEST, _VALIDATION = 497, 200


def load_digits() -> Dataset:
    """Load the digits: 1,100 training, 200 validation and 497 test images, stratified by class."""
    # imported here, so that other data sets do not wait for scikit-learn
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.from_numpy((images / 16).astype(np.float32)).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    rest, test = stratified(np.arange(len(labels)), labels, _TEST)
    train, validation = stratified(rest, labels, _VALIDATION)
    return Dataset(
        name="digits",
        train=InMemory(x[train], y[train]),
        val=InMemory(x[validation], y[validation]),
        test=InMemory(x[test], y[test]),
        num_classes=10,
        **USUAL["digits"],
    )
