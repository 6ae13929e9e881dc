"""VGG-16 with batch norms, of scaled width, for 32x32 colour images."""

import torch.nn.functional as F
from torch import Tensor, nn

from atmc.models.initialize import kaiming
from atmc.models.normalize import Channels, Normalize
from atmc.models.registry import WIDTHS, register

_STAGES = ((4, 2), (8, 2), (16, 3), (32, 3), (32, 3))  # channels over width, convolutions


@register("vgg16-w{width}", input_shape=(3, 32, 32), listed=(f"vgg16-w{width}" for width in WIDTHS))
class Vgg16W(nn.Module):
    """VGG-16 with batch norms and one linear layer (Ye et al., ICCV 2019, table 1).

    Five stages of 3x3 convolutions, norms and ReLUs, each max-pooled by 2; at width 16 with the
    channels of Simonyan & Zisserman (ICLR 2015).
    """

    def __init__(
        self, width: int, num_classes: int = 10, mean: Channels = 0.5, std: Channels = 0.25
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        layers: list[nn.Module] = []
        in_channels = 3
        for scale, count in _STAGES:
            channels = scale * width
            for _ in range(count):
                convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(in_channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, 32, 32)."""
        x = self.features(self.normalize(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
