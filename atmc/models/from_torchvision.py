"""torchvision's classifiers by name, with fresh weights and their normalization inside."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from atmc.models.normalize import Channels, Normalize

PREFIX = "torchvision:"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
# Further arguments of a builder, so that it returns logits alone and draws its weights once.
_OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class Normalized(nn.Module):
    """A model behind its normalization of inputs in [0, 1]; its weights are named ``model.*``."""

    def __init__(self, normalize: Normalize, model: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, num_classes), for x of shape (N, 3, H, W)."""
        return cast(Tensor, self.model(self.normalize(x)))


def names() -> tuple[str, ...]:
    """The names of torchvision's classifiers, in alphabetical order."""
    # Imported here, as it takes seconds and models of the zoo do without.
    import torchvision.models

    return tuple(torchvision.models.list_models(module=torchvision.models))


def known(name: str) -> bool:
    """Whether torchvision has a classifier of this name, with or without the prefix."""
    return name.removeprefix(PREFIX) in names()


def build(
    name: str, num_classes: int = 1000, mean: Channels = _MEAN, std: Channels = _STD
) -> Normalized:
    """Build torchvision's classifier ``name``, with or without the prefix.

    The other arguments are those of :func:`atmc.models.create`.
    """
    import torchvision.models

    plain = name.removeprefix(PREFIX)
    options = _OPTIONS.get(plain, {})
    model = torchvision.models.get_model(plain, weights=None, num_classes=num_classes, **options)
    return Normalized(Normalize(mean, std), model)
