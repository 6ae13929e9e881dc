"""Wide residual networks of any depth and width (Zagoruyko & Komodakis, BMVC 2016)."""

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


class WideResNet(nn.Module):
    """Three groups of (depth - 4) / 6 pre-activation blocks, of 16, 32 and 64 times width channels.

    Args:
        depth: number of layers, 6 n + 4.
        width: how many times wider than the plain network.
        num_classes: the number of logits.
        mean: of the normalization inside the model, one value or three.
        std: the same.

    Raises:
        ValueError: no such depth.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"no wide ResNet has depth {depth}: give 10, 16, 22, 28, 34, ...")
        self.normalize = rgb_normalize(mean, std)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.group1 = _group(16, 16 * width, blocks, stride=1)
        self.group2 = _group(16 * width, 32 * width, blocks, stride=2)
        self.group3 = _group(32 * width, 64 * width, blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, H, W)."""
        x = self.conv1(self.normalize(x))
        x = F.relu(self.bn(self.group3(self.group2(self.group1(x)))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _group(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActBlock(in_channels, out_channels, stride)
    others = (PreActBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def wrn(
    depth: int,
    width: int,
    num_classes: int = 10,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> WideResNet:
    """Build WRN-depth-width."""
    return WideResNet(depth, width, num_classes, mean, std)
