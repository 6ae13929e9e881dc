"""VGG-16 with batch norms, of scaled width, for 32x32 colour images.

Thirteen 3x3 convolutions and one linear layer, as in Ye et al. (ICCV 2019, table 1); w = 16 has the
channels of Simonyan & Zisserman (ICLR 2015).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from atmc.models.initialize import kaiming
from atmc.models.normalize import rgb_normalize

_STAGES = ((4, 2), (8, 2), (16, 3), (32, 3), (32, 3))  # channels over w, convolutions


class Vgg16W(nn.Module):
    """Five stages of convolutions, norms and ReLUs, each max-pooled by 2.

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
        layers: list[nn.Module] = []
        channels = 3
        for scale, count in _STAGES:
            for _ in range(count):
                wide = scale * width
                layers += [
                    nn.Conv2d(channels, wide, 3, padding=1, bias=False),
                    nn.BatchNorm2d(wide),
                    nn.ReLU(),
                ]
                channels = wide
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, 32, 32)."""
        x = self.features(self.normalize(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def vgg16_w(
    width: int,
    num_classes: int = 10,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> Vgg16W:
    """Build VGG-16(w)."""
    return Vgg16W(width, num_classes, mean, std)
