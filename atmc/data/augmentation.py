"""Random crops and mirror images of a batch, every example by itself."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Move each image by a few pixels, black coming in at the border, and mirror every other one.

    All that is random is drawn from torch's global CPU generator, whatever device the batch is
    on, so that the same seed makes the same batch.

    Attributes:
        padding: how far, in pixels, an image may move along either side.
        flip: whether an image is mirrored, left to right, with probability 1/2.
    """

    padding: int = 0
    flip: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Augment a batch of shape (N, C, H, W) and any type, into a new one."""
        count, height, width = len(x), x.shape[2], x.shape[3]
        if self.flip:
            mirrored = (torch.rand(count) < 0.5).to(x.device)
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if self.padding:
            top, left = torch.randint(2 * self.padding + 1, (2, count)).to(x.device)
            padded = F.pad(x, (self.padding,) * 4)
            # Every window of the padded batch as a view, and of each example one of them copied.
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            x = windows[torch.arange(count, device=x.device), :, top, left]
        return x
