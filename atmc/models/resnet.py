"""ResNet-18 and ResNet-34 for small colour images (He et al., CVPR 2016; 3x3 stem as on CIFAR)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from atmc.models.initialize import kaiming
from atmc.models.normalize import rgb_normalize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a 1x1 convolution where the shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of basic blocks with 64, 128, 256 and 512 channels, or in that proportion.

    Args:
        blocks: of each stage.
        num_classes: the number of logits.
        mean: of the normalization inside the model, one value or three.
        std: the same.
        channels: of the first stage.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int = 10,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        channels: int = 64,
    ) -> None:
        super().__init__()
        self.normalize = rgb_normalize(mean, std)
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = _stage(channels, channels, blocks[0], stride=1)
        self.layer2 = _stage(channels, 2 * channels, blocks[1], stride=2)
        self.layer3 = _stage(2 * channels, 4 * channels, blocks[2], stride=2)
        self.layer4 = _stage(4 * channels, 8 * channels, blocks[3], stride=2)
        self.fc = nn.Linear(8 * channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(self.normalize(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(
        first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    )


def resnet18(
    num_classes: int = 10,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> ResNet:
    """Build ResNet-18 with a CIFAR stem."""
    return ResNet((2, 2, 2, 2), num_classes, mean, std)


def resnet34(
    num_classes: int = 10,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> ResNet:
    """Build ResNet-34 with a CIFAR stem."""
    return ResNet((3, 4, 6, 3), num_classes, mean, std)


def resnet18_w(
    width: int,
    num_classes: int = 10,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> ResNet:
    """Build ResNet-18(w): w sixteenths of its channels (Ye et al., ICCV 2019, table 1)."""
    return ResNet((2, 2, 2, 2), num_classes, mean, std, 4 * width)
