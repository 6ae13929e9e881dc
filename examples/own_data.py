"""A run on your own data loaders, in a run folder that can be resumed.

    python examples/own_data.py --output runs/stripes

After Ctrl-C the same command resumes the run. For a finished run it prints the figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import atmc


class Stripes(Dataset[tuple[Tensor, int]]):
    """Stripes of four directions under noise, in [0, 1]."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.count:
            raise IndexError(index)
        random = torch.Generator().manual_seed(1_000_000 * self.seed + index)
        label = index % 4
        row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        along = (row, column, row + column, row - column)[label]
        phase = 6.3 * torch.rand((), generator=random)
        noise = 0.15 * torch.randn(16, 16, generator=random)
        return (0.5 + 0.3 * (1.2 * along + phase).sin() + noise).clamp(0, 1)[None], label


def net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/stripes"))
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()

    result = atmc.compress(
        net,  # called under the run's seed
        DataLoader(Stripes(1200, seed=0), batch_size=48, shuffle=True),
        budget_bits="1kB",
        eps=0.1,
        val_loader=DataLoader(Stripes(200, seed=1), batch_size=200),
        test_loader=DataLoader(Stripes(400, seed=2), batch_size=200),
        folder=options.output,
        resume=(options.output / "config.yaml").is_file(),
        dense_epochs=options.epochs,
        epochs=options.epochs,
        level_epochs=1,
        on_epoch=lambda figures: print(figures.stage, figures.epoch + 1, figures.robust),
    )
    print(f"{result.report['size']['file_bits']:,} bits: {result.report['accuracy']}")


if __name__ == "__main__":
    main()
