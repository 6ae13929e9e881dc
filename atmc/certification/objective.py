"""What training on interval bounds minimizes besides while ε grows.

Shi et al., "Fast certified robust training with short warmup", NeurIPS 2021, section 4.3. The
initialization of section 4.2 is "interval" of :mod:`atmc.models.initialize`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from atmc.certification.interval import Interval, Read

_TOLERANCE = 0.5  # τ of the paper
_TINY = 1e-12


def warmup_penalty(box: Interval, read: Sequence[Read]) -> Tensor:
    """How far the ReLUs' inputs are too wide, or on one side of zero (equations 9 to 11 there).

    Args:
        box: the inputs of the network. Where it is a point, nothing is too wide.
        read: the journal of the network's pass.

    Returns:
        A scalar; 0 for a network without ReLUs.
    """
    total = box.lower.new_zeros(())
    width = box.radius.mean()
    wide = bool(width > 0)
    reads = [each.input for each in read if each.function == "relu"]
    for each in reads:
        centre = each.centre
        ratios = [width / each.radius.mean().clamp(min=_TINY)] if wide else []
        active, inactive = each.lower > 0, each.upper < 0
        if bool(active.any()) and bool(inactive.any()):
            spread = (centre - centre.mean()).square()
            for part, other in (
                ((centre * active).sum(), -(centre * inactive).sum()),
                ((spread * active).sum(), (spread * inactive).sum()),
            ):
                ratio = part / other.clamp(min=_TINY)
                ratios.append(torch.minimum(ratio, 1 / ratio.clamp(min=_TINY)))
        total = total + sum(F.relu(_TOLERANCE - ratio) for ratio in ratios)
    return total / (_TOLERANCE * max(1, len(reads)))
