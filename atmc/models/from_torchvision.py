"""torchvision's classifiers by name, with their normalization inside.

They come with fresh weights; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from atmc.models.normalize import Normalize, rgb_normalize

PREFIX = "torchvision:"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What else a builder is told, so that it returns logits alone and draws its weights once.
_OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class Normalized(nn.Module):
    """A model whose inputs are normalized first.

    Args:
        normalize: applied to the inputs, in [0, 1].
        model: what follows. Its weights keep their names, behind ``model.``
    """

    def __init__(self, normalize: Normalize, model: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, H, W)."""
        return cast(Tensor, self.model(self.normalize(x)))


def known(name: str) -> bool:
    """Whether torchvision has a classifier of this name, with or without the prefix."""
    return name.removeprefix(PREFIX) in names()


def names() -> tuple[str, ...]:
    """Return the names of torchvision's classifiers, in alphabetical order."""
    # Imported here, as it takes seconds and models of the zoo do without.
    import torchvision.models

    return tuple(torchvision.models.list_models(module=torchvision.models))


def build(
    name: str,
    num_classes: int = 1000,
    mean: float | Sequence[float] = _MEAN,
    std: float | Sequence[float] = _STD,
) -> Normalized:
    """Build torchvision's classifier ``name``.

    Args:
        name: as torchvision lists it, with or without the prefix.
        num_classes: the number of logits.
        mean: of the normalization inside the model, one value or three; that of ImageNet.
        std: the same.
    """
    import torchvision.models

    plain = name.removeprefix(PREFIX)
    options = _OPTIONS.get(plain, {})
    inner = torchvision.models.get_model(plain, weights=None, num_classes=num_classes, **options)
    return Normalized(rgb_normalize(mean, std), inner)
