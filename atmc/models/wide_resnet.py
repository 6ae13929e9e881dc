"""Wide residual network of depth 16 and width 8 (Zagoruyko & Komodakis, BMVC 2016)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from atmc.models.initialize import kaiming
from atmc.models.normalize import rgb_normalize


class PreActBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice; a 1x1 convolution where the widths differ.

    The 1x1 convolution reads the activated input, so that it shares the first norm and ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet16x8(nn.Module):
    """Three groups of two pre-activation blocks with 128, 256 and 512 channels.

    Args:
        num_classes: the number of logits.
        mean: of the normalization inside the model, one value or three.
        std: the same.
    """

    def __init__(
        self,
        num_classes: int = 10,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
    ) -> None:
        super().__init__()
        self.normalize = rgb_normalize(mean, std)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.group1 = _group(16, 128, stride=1)
        self.group2 = _group(128, 256, stride=2)
        self.group3 = _group(256, 512, stride=2)
        self.bn = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, H, W)."""
        x = self.conv1(self.normalize(x))
        x = F.relu(self.bn(self.group3(self.group2(self.group1(x)))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _group(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        PreActBlock(in_channels, out_channels, stride), PreActBlock(out_channels, out_channels, 1)
    )


def wrn_16_8(
    num_classes: int = 10,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> WideResNet16x8:
    """Build WRN-16-8."""
    return WideResNet16x8(num_classes, mean, std)
