"""PGD-40 over MNIST test images, and the cost of AutoAttack.

    python benchmarks/evaluation.py --data-root DIR [--examples N] [--auto N] [--json FILE]

DIR contains MNIST/raw. The models are the artifacts of docs/results. AutoAttack needs `atmc[eval]`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from table import Row, row, show
from torch import Tensor, nn

import atmc
from atmc import data
from atmc.attacks.gradient import pgd
from atmc.data import Batches
from atmc.evaluation import attack, evaluate, predict
from atmc.hardware import keep_freed
from atmc.models.sources import channels_last

ARTIFACTS = Path(__file__).parents[1] / "docs/results/artifacts"
EPS, STEPS, BATCH = 0.3, 40, 500


def plain(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Robust accuracy by a plain loop: every example takes every step."""
    right = 0
    for start in range(0, len(y), BATCH):
        part, labels = x[start : start + BATCH], y[start : start + BATCH]
        adv = pgd(model, part, labels, EPS, STEPS, fast=False)
        right += int((predict(model, adv) == labels).sum())
    return right / len(y)


def main() -> None:
    """One robust and one less robust model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--auto", type=int, default=200, help="examples of AutoAttack")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed()
    mnist = data.load("mnist", given.data_root)
    x, y = mnist.x_test[: given.examples], mnist.y_test[: given.examples]
    rows: list[Row] = []
    for name in ("lenet5-relu-1", "lenet5-1"):
        path = ARTIFACTS / f"{name}.atmc"
        model = channels_last(atmc.load(path))
        seconds = {}
        for kind, count in (("pgd", len(y)), ("pgd", given.auto), ("autoattack", given.auto)):
            batches = Batches(x[:count], y[:count], BATCH)
            started = time.perf_counter()
            found = evaluate(model, batches, [attack(kind, eps=EPS, steps=STEPS)])
            seconds[kind, count] = time.perf_counter() - started
            print(f"{name}: {kind} on {count} images {found['accuracy'][kind]:.4f}")
        started = time.perf_counter()
        print(f"{name}: plain loop {plain(atmc.load(path), x, y):.4f}")
        whole = time.perf_counter() - started
        ours = seconds["pgd", len(y)]
        rows.append(row(f"pgd-40-{name}", ours, whole, "plain loop, every step", "s"))
        peer = seconds["pgd", given.auto]
        costs = seconds["autoattack", given.auto]
        rows.append(row(f"autoattack-{name}", costs, peer, f"PGD-40, {given.auto} images", "s"))
    show(rows, given.json)


if __name__ == "__main__":
    main()
