"""Global top-k over the entries of a ResNet-34 in U, V and C (43 M), on the CPU.

python benchmarks/projection.py [--json FILE]
"""

from __future__ import annotations

import torch
from table import arguments, least, row, show

from atmc.projection import select

ENTRIES = 43_000_000
DENSITY = 0.01


def main() -> None:
    """Time selections whose scores move by a percent per step, as in training."""
    given = arguments(__doc__)
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 0.5, 0.8, 0.2)  # layers are of different scale
    parts = [torch.randn(ENTRIES // len(scales), generator=generator).abs_() for _ in scales]
    scores = torch.cat([part * scale for part, scale in zip(parts, scales, strict=True)])
    k = int(DENSITY * scores.numel())
    last = select(scores, k)
    moved = scores * 1.01

    expected = torch.zeros(scores.numel(), dtype=torch.bool)
    expected[torch.topk(moved, k).indices] = True
    warm = select(moved, k, near=last.threshold).mask
    assert int(warm.sum()) == k and int((warm ^ expected).sum()) <= 2  # ties apart

    seconds = least(
        {
            "warm": lambda: select(moved, k, near=last.threshold, out=last.mask),
            "cold": lambda: select(moved, k, out=last.mask),
            "topk": lambda: torch.topk(moved, k),
            "sum": lambda: moved.sum(),
        },
        given.repeat,
    )
    ms = {name: 1000 * value for name, value in seconds.items()}
    show(
        [
            row("topk-torch", ms["warm"], ms["topk"], "torch.topk", "ms"),
            row("topk-read", ms["warm"], ms["sum"], "one sum over the entries", "ms"),
            row("topk-torch-cold", ms["cold"], ms["topk"], "torch.topk", "ms"),
        ],
        given.json,
    )


if __name__ == "__main__":
    main()
