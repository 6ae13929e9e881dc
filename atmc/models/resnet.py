"""ResNets (He et al., CVPR 2016) and wide ResNets (Zagoruyko & Komodakis, BMVC 2016) for CIFAR."""

import torch.nn.functional as F
from torch import Tensor, nn

from atmc.models.initialize import kaiming
from atmc.models.normalize import Channels, Normalize
from atmc.models.registry import WIDTHS, register


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


Block = type[BasicBlock] | type[PreActBlock]


def _stage(
    block: Block, in_channels: int, channels: int, blocks: int, stride: int = 2
) -> nn.Module:
    others = (block(channels, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(in_channels, channels, stride), *others)


class ResNet(nn.Module):
    """Four stages of basic blocks, each with twice the channels of the one before.

    Args:
        blocks: of each stage.
        channels: of the first stage.
        num_classes: the number of logits.
        mean: of the normalization inside the model, one value or three.
        std: the same.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        channels: int,
        num_classes: int,
        mean: Channels,
        std: Channels,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = _stage(BasicBlock, channels, channels, blocks[0], stride=1)
        self.layer2 = _stage(BasicBlock, channels, 2 * channels, blocks[1])
        self.layer3 = _stage(BasicBlock, 2 * channels, 4 * channels, blocks[2])
        self.layer4 = _stage(BasicBlock, 4 * channels, 8 * channels, blocks[3])
        self.fc = nn.Linear(8 * channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(self.normalize(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


@register("resnet18", input_shape=(3, 32, 32))
def resnet18(num_classes: int = 10, mean: Channels = 0.5, std: Channels = 0.25) -> ResNet:
    """ResNet-18 with a 3x3 stem."""
    return ResNet((2, 2, 2, 2), 64, num_classes, mean, std)


@register("resnet34", input_shape=(3, 32, 32))
def resnet34(num_classes: int = 10, mean: Channels = 0.5, std: Channels = 0.25) -> ResNet:
    """ResNet-34 with a 3x3 stem."""
    return ResNet((3, 4, 6, 3), 64, num_classes, mean, std)


@register(
    "resnet18-w{width}",
    input_shape=(3, 32, 32),
    listed=(f"resnet18-w{width}" for width in WIDTHS),
)
def resnet18_w(
    width: int, num_classes: int = 10, mean: Channels = 0.5, std: Channels = 0.25
) -> ResNet:
    """ResNet-18 with width / 16 of its channels (Ye et al., ICCV 2019, table 1)."""
    return ResNet((2, 2, 2, 2), 4 * width, num_classes, mean, std)


@register("wrn-{depth}-{width}", input_shape=(3, 32, 32), listed=("wrn-16-8", "wrn-28-4"))
class WideResNet(nn.Module):
    """Wide ResNet of 6 n + 4 layers, with n pre-activation blocks in each of three groups.

    The groups have 16, 32 and 64 times width channels.

    Raises:
        ValueError: no such depth.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        mean: Channels = 0.5,
        std: Channels = 0.25,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"no wide ResNet has depth {depth}: give 10, 16, 22, 28, 34, ...")
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.group1 = _stage(PreActBlock, 16, 16 * width, blocks, stride=1)
        self.group2 = _stage(PreActBlock, 16 * width, 32 * width, blocks)
        self.group3 = _stage(PreActBlock, 32 * width, 64 * width, blocks)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, H, W)."""
        x = self.conv1(self.normalize(x))
        x = F.relu(self.bn(self.group3(self.group2(self.group1(x)))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
