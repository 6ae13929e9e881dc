"""What every data set is, once it is in memory."""

from dataclasses import dataclass

from torch import Tensor


class DataError(Exception):
    """A data set is missing or damaged; the message says where and what to do."""


@dataclass(frozen=True)
class Dataset:
    """A classification data set in memory, with the settings that are usual on it.

    The x are float32 in [0, 1], of shape (N, C, H, W); the y are int64 of shape (N,).

    Attributes:
        name: the name `load` takes.
        x_train: training images, the validation part left out.
        y_train: their labels.
        x_val: validation images, cut from the original training split.
        y_val: their labels.
        x_test: test images.
        y_test: their labels.
        num_classes: the number of classes.
        eps: the usual attack radius, in the infinity norm.
        eval_steps: the usual number of PGD steps when robust accuracy is measured.
        model: the name of the usual model.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    eps: float
    eval_steps: int
    model: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of one image."""
        return tuple(self.x_train.shape[1:])
