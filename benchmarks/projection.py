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
    """Time selections whose scores move by a percent a step, as they do in training."""
    given = arguments(__doc__)
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 0.5, 0.8, 0.2)  # layers are of different scale
    scores = [
        torch.randn(ENTRIES // len(scales), generator=generator).abs_() * scale for scale in scales
    ]
    whole = torch.cat(scores)
    k = int(DENSITY * whole.numel())
    last = select(scores, k)
    moved = [score * 1.01 for score in scores]

    expected = torch.zeros(whole.numel(), dtype=torch.bool)
    expected[torch.topk(torch.cat(moved), k).indices] = True
    found = torch.cat(select(moved, k, near=last.threshold).masks)
    assert int(found.sum()) == k and int((found ^ expected).sum()) <= 2  # ties apart

    seconds = least(
        {
            "warm": lambda: select(moved, k, near=last.threshold, out=last.masks),
            "cold": lambda: select(moved, k, out=last.masks),
            "topk": lambda: torch.topk(whole, k),
            "sum": lambda: [score.sum() for score in moved],
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
