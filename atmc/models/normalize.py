"""Input normalization as the first layer of a model, so that attacks see inputs in [0, 1]."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Compute (x - mean) / std for each channel of x, of shape (N, C, H, W).

    The constants are non-persistent buffers: they move with the module and are no part of its
    state dict, because whoever builds the model gives them.

    Args:
        mean: one value for all channels, or one for each.
        std: the same, positive.

    Raises:
        ValueError: a value is no finite number, an std is not positive, or the lengths differ.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        means, stds = _values(mean), _values(std)
        if not means or not stds:
            raise ValueError("mean and std of a normalization need at least one value each")
        if not all(map(math.isfinite, means + stds)):
            raise ValueError(f"mean and std must be finite, not {mean} and {std}")
        if min(stds) <= 0:
            raise ValueError(f"std must be positive, not {std}")
        if 1 not in (len(means), len(stds)) and len(means) != len(stds):
            raise ValueError(f"{len(means)} means but {len(stds)} stds: give as many of each")
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1), persistent=False)

    @property
    def channels(self) -> int | None:
        """The number of channels the constants are for; None where one value serves all."""
        count = max(self.mean.numel(), self.std.numel())
        return None if count == 1 else count

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x of shape (N, C, H, W)."""
        return (x - self.mean) / self.std


def _values(value: float | Sequence[float]) -> list[float]:
    try:
        return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    except (TypeError, ValueError):
        raise ValueError(f"mean and std must be numbers, not {value!r}") from None


def rgb_normalize(mean: float | Sequence[float], std: float | Sequence[float]) -> Normalize:
    """Return a `Normalize` for three channels.

    Raises:
        ValueError: as `Normalize`, or the constants are for another number of channels.
    """
    normalize = Normalize(mean, std)
    if normalize.channels not in (None, 3):
        raise ValueError(f"mean and std need 1 or 3 values, not {normalize.channels}")
    return normalize
