"""LeNets of scaled width, as in Ye et al. (ICCV 2019, table 1), for MNIST and for CIFAR.

The one for MNIST is that of Madry et al. (ICLR 2018) at w = 16: two 5x5 convolutions that keep the
size, each with a ReLU and max-pooled by 2, then one hidden layer.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from atmc.models.normalize import rgb_normalize


class LeNetW(nn.Module):
    """2w and 4w filters, 64w units, for 28x28 images of one channel.

    Args:
        width: w.
        num_classes: the number of logits.
    """

    def __init__(self, width: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2 * width, 5, padding=2)
        self.conv2 = nn.Conv2d(2 * width, 4 * width, 5, padding=2)
        self.fc1 = nn.Linear(196 * width, 64 * width)
        self.fc2 = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 1, 28, 28)."""
        # max-pooling commutes with the ReLU, which is cheaper on the smaller map
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


class CifarLeNetW(nn.Module):
    """6w and 16w filters of 5x5 without padding, 120w and 84w units, for 32x32 colour images.

    Args:
        width: w.
        num_classes: the number of logits.
        mean: of the normalization inside the model, one value or three.
        std: the same.
    """

    def __init__(
        self,
        width: int,
        num_classes: int = 10,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
    ) -> None:
        super().__init__()
        self.normalize = rgb_normalize(mean, std)
        self.conv1 = nn.Conv2d(3, 6 * width, 5)
        self.conv2 = nn.Conv2d(6 * width, 16 * width, 5)
        self.fc1 = nn.Linear(400 * width, 120 * width)
        self.fc2 = nn.Linear(120 * width, 84 * width)
        self.fc3 = nn.Linear(84 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, 32, 32)."""
        x = F.relu(F.max_pool2d(self.conv1(self.normalize(x)), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))
        logits: Tensor = self.fc3(x)
        return logits


def lenet_w(width: int, num_classes: int = 10) -> LeNetW:
    """Build LeNet(w) for MNIST."""
    return LeNetW(width, num_classes)


def cifar_lenet_w(
    width: int,
    num_classes: int = 10,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> CifarLeNetW:
    """Build LeNet(w) for CIFAR."""
    return CifarLeNetW(width, num_classes, mean, std)
