"""LeNet for 28x28 images of one channel, as in Gui et al. (NeurIPS 2019): 430,500 weights."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet5(nn.Module):
    """Two 5x5 convolutions of 20 and 50 filters, each max-pooled by 2, then 500 units.

    Args:
        num_classes: the number of logits.
        relu: whether a ReLU follows each convolution; the paper's network has none there.
    """

    def __init__(self, num_classes: int = 10, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 1, 28, 28)."""
        # max-pooling commutes with the ReLU, which is cheaper on the smaller map
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.relu(x) if self.relu else x
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(x) if self.relu else x
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits


def lenet5(num_classes: int = 10) -> LeNet5:
    """Build the paper's network, without a ReLU after the convolutions."""
    return LeNet5(num_classes)


def lenet5_relu(num_classes: int = 10) -> LeNet5:
    """Build the same network with a ReLU after each convolution."""
    return LeNet5(num_classes, relu=True)
