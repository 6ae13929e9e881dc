"""Small convolutional networks for 28x28 and 32x32 images, and one for 8x8 digits."""

import torch.nn.functional as F
from torch import Tensor, nn

from atmc.models.normalize import Channels, Normalize
from atmc.models.registry import WIDTHS, register


class LeNet(nn.Module):
    """Two 5x5 convolutions, each max-pooled by 2, and one hidden layer, for 28x28 grey images.

    Args:
        filters: of the two convolutions.
        units: of the hidden layer.
        padding: of the convolutions, 0 or 2, which preserves the size of their maps.
        num_classes: the number of logits.
        relu: whether a ReLU follows each convolution.
    """

    def __init__(
        self,
        filters: tuple[int, int],
        units: int,
        padding: int,
        num_classes: int,
        relu: bool = True,
    ) -> None:
        super().__init__()
        first, second = filters
        side = 7 if padding else 4  # of the last map
        self.relu = relu
        self.conv1 = nn.Conv2d(1, first, 5, padding=padding)
        self.conv2 = nn.Conv2d(first, second, 5, padding=padding)
        self.fc1 = nn.Linear(second * side * side, units)
        self.fc2 = nn.Linear(units, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 1, 28, 28)."""
        # max-pooling commutes with the ReLU, which is cheaper on the smaller map
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.relu(x) if self.relu else x
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(x) if self.relu else x
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


@register("lenet5", input_shape=(1, 28, 28), dataset="mnist")
def lenet5(num_classes: int = 10) -> LeNet:
    """LeNet of Gui et al. (NeurIPS 2019): no ReLU after the convolutions; 430,500 weights."""
    return LeNet((20, 50), 500, 0, num_classes, relu=False)


@register("lenet5-relu", input_shape=(1, 28, 28), dataset="mnist")
def lenet5_relu(num_classes: int = 10) -> LeNet:
    """LeNet of Gui et al. (NeurIPS 2019) with a ReLU after each convolution."""
    return LeNet((20, 50), 500, 0, num_classes)


@register(
    "lenet-w{width}",
    input_shape=(1, 28, 28),
    dataset="mnist",
    listed=(f"lenet-w{width}" for width in WIDTHS),
)
def lenet_w(width: int, num_classes: int = 10) -> LeNet:
    """LeNet of Ye et al. (ICCV 2019, table 1); at width 16 that of Madry et al. (ICLR 2018)."""
    return LeNet((2 * width, 4 * width), 64 * width, 2, num_classes)


@register(
    "cifar-lenet-w{width}",
    input_shape=(3, 32, 32),
    listed=(f"cifar-lenet-w{width}" for width in WIDTHS),
)
class CifarLeNetW(nn.Module):
    """LeNet of Ye et al. (ICCV 2019, table 1) for colour images."""

    def __init__(
        self, width: int, num_classes: int = 10, mean: Channels = 0.5, std: Channels = 0.25
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
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


class CNN4(nn.Module):
    """Two strided 5x5 convolutions and a hidden layer, each with batch norm, and a last layer.

    A small relative of CNN-7 (Shi et al., NeurIPS 2021): strides in place of pools, and norms, from
    which training on interval bounds gains much.

    Args:
        channels: of the images.
        side: of the images, in pixels; a multiple of 4.
        width: 16 and 32 filters and 50 hidden units for each.
        num_classes: the number of logits.
    """

    def __init__(self, channels: int, side: int, width: int, num_classes: int) -> None:
        super().__init__()
        first, second, units = 16 * width, 32 * width, 50 * width
        self.conv1 = nn.Conv2d(channels, first, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 5, stride=2, padding=2, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.fc1 = nn.Linear(second * (side // 4) ** 2, units, bias=False)
        self.bn3 = nn.BatchNorm1d(units)
        self.fc2 = nn.Linear(units, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images x (N, channels, side, side)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.fc1(x.flatten(1))))
        logits: Tensor = self.fc2(x)
        return logits


@register(
    "cnn4-w{width}",
    input_shape=(1, 28, 28),
    dataset="mnist",
    listed=(f"cnn4-w{width}" for width in WIDTHS),
)
def cnn4_w(width: int, num_classes: int = 10) -> CNN4:
    """Two strided convolutions and a hidden layer with batch norm, for training on bounds."""
    return CNN4(1, 28, width, num_classes)


@register(
    "cifar-cnn4-w{width}",
    input_shape=(3, 32, 32),
    listed=(f"cifar-cnn4-w{width}" for width in WIDTHS),
)
class CifarCNN4(CNN4):
    """Two strided convolutions and a hidden layer with batch norm, for bounds, in colour."""

    def __init__(
        self, width: int, num_classes: int = 10, mean: Channels = 0.5, std: Channels = 0.25
    ) -> None:
        super().__init__(3, 32, width, num_classes)
        self.normalize = Normalize(mean, std)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, 32, 32)."""
        return super().forward(self.normalize(x))


@register("digits-cnn", input_shape=(1, 8, 8), dataset="digits")
class DigitsCNN(nn.Module):
    """Two convolutions and one hidden layer, for scikit-learn's digits."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 1, 8, 8)."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits
