"""scikit-learn's digits: 1,797 images of 8x8, part of scikit-learn itself."""

import numpy as np
import torch

from atmc.data.in_memory import InMemory
from atmc.data.registry import Parts, register
from atmc.data.splits import stratified

_TEST, _VALIDATION = 497, 200


@register("digits", model="digits-cnn", eps=0.1, epochs=(30, 30, 10))
def load_digits() -> Parts:
    """Load the digits: 1,100 training, 200 validation and 497 test images, stratified by class."""
    # imported here, so that other data sets do not wait for scikit-learn
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.from_numpy((images / 16).astype(np.float32)).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    rest, test = stratified(np.arange(len(labels)), labels, _TEST)
    train, val = stratified(rest, labels, _VALIDATION)
    parts = [InMemory(x[indices], y[indices]) for indices in (train, val, test)]
    return Parts(parts[0], parts[1], parts[2], num_classes=10)
