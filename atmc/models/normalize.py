"""Input normalization as the first layer of a model, so that attacks see inputs in [0, 1]."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Channels = float | Sequence[float]  # one value for all channels, or one for each


class Normalize(nn.Module):
    """Compute (x - mean) / std for each channel of x, of shape (N, channels, H, W).

    The constants are non-persistent buffers: they move with the module and are no part of its
    state dict, because whoever builds the model passes them.

    Args:
        mean: one value for all channels, or one for each.
        std: the same, positive.
        channels: of the inputs.

    Raises:
        ValueError: a value is no finite number, an std is not positive, or there are too few or
            too many.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Channels, std: Channels, channels: int = 3) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            try:
                values = [float(v) for v in (value if isinstance(value, Sequence) else [value])]
            except (TypeError, ValueError):
                raise ValueError(f"mean and std must be numbers, not {value!r}") from None
            if len(values) not in (1, channels):
                raise ValueError(
                    f"mean and std need 1 or {channels} values each, not {len(values)}"
                )
            if not all(map(math.isfinite, values)):
                raise ValueError(f"mean and std must be finite, not {value}")
            if name == "std" and min(values) <= 0:
                raise ValueError(f"std must be positive, not {std}")
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x of shape (N, channels, H, W)."""
        return (x - self.mean) / self.std
