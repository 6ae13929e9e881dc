"""Codebooks of 400,000 values and of ten million values, on one core.

    python benchmarks/codebook.py [--json FILE]

Needs kmeans1d (the exact optimum by dynamic programming), which `atmc[test]` installs.
"""

from __future__ import annotations

import time

import kmeans1d
import numpy as np
import torch
from sklearn.cluster import KMeans
from table import arguments, least, row, show

from atmc.quantization.codebooks import codebook

VALUES = 400_000
MANY = 10_000_000


def error(values: np.ndarray, levels: np.ndarray) -> float:
    """Squared error of the nearest levels."""
    levels = np.sort(levels)
    middles = (levels[:-1] + levels[1:]) / 2
    gaps: np.ndarray = values - levels[np.searchsorted(middles, values)]
    return float(np.square(gaps).sum())


def main() -> None:
    """Time and error for 16 and 256 levels."""
    given = arguments(__doc__, threads=1)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(VALUES, generator=generator)
    exact = values.double().numpy()
    moved = values + 0.01 * torch.randn(VALUES, generator=generator)
    many = torch.randn(MANY, generator=generator)
    rows = []
    for count in (16, 256):
        levels, _ = codebook(values, count)
        seconds = least(
            {
                "ours": lambda count=count: codebook(values, count),  # type: ignore[misc]
                "warm": lambda count=count, levels=levels: codebook(moved, count, init=levels),  # type: ignore[misc]
                "many": lambda count=count: codebook(many, count),  # type: ignore[misc]
            },
            given.repeat,
        )
        started = time.perf_counter()
        peer = KMeans(count, n_init=1, random_state=0).fit(exact[:, None])
        peer_ms = 1000 * (time.perf_counter() - started)
        _, best = kmeans1d.cluster(exact, count)
        ms = {name: 1000 * value for name, value in seconds.items()}
        rows += [
            row(f"codebook-{count}", ms["ours"], peer_ms, "scikit-learn", "ms"),
            row(
                f"codebook-{count}-error",
                error(exact, levels.double().numpy()),
                error(exact, np.array(best)),
                "exact optimum",
                "error",
            ),
            row(f"codebook-{count}-warm", ms["warm"], ms["ours"], "from a cold start", "ms"),
            row(f"codebook-{count}-10M", ms["many"], ms["ours"], "400,000 values", "ms"),
        ]
        print(f"{count} levels: error of scikit-learn {error(exact, peer.cluster_centers_[:, 0])}")
    show(rows, given.json)


if __name__ == "__main__":
    main()
