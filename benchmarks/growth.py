"""Time of a step and memory against the number of weights and the size of the batch.

    python benchmarks/growth.py [--json FILE]

A net of three nearly square linear layers, PGD-2, k of 1 %, a duplicate at every fifth step. Each
point runs in a separate process, whose peak memory the system reports.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from step import constrained, step
from table import Row, arguments, row, show
from torch import nn

from atmc.hardware import keep_freed
from atmc.optim.atmc import ATMC
from atmc.training.inner_attack import InnerAttack
from atmc.training.objective import Objective
from atmc.training.optimization import adam

WEIGHTS = (10**5, 10**6, 10**7, 5 * 10**7)
BATCHES = (32, 128, 512)
INPUTS, STEPS = 784, 2
EVERY = 5  # steps to a duplicate, and steps that are timed


def net(weights: int) -> nn.Module:
    """784 -> w -> w -> 10 with about that many weights."""
    width = round((math.sqrt((INPUTS + 10) ** 2 + 4 * weights) - INPUTS - 10) / 2)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip


def point(weights: int, batch: int, compressed: bool, threads: int) -> dict[str, float]:
    """Seconds a step, and bytes, of one configuration; run in a separate process."""
    torch.set_num_threads(threads)
    keep_freed()
    torch.manual_seed(0)
    model = net(weights)
    dense = 4 * sum(layer.weight.numel() for layer in model if isinstance(layer, nn.Linear))

    def build() -> torch.optim.Optimizer:
        return adam(model.parameters(), 1e-4)

    optimizer = constrained(model, build, dense // 400, EVERY) if compressed else build()
    attack = InnerAttack(Objective(0.1, STEPS))
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))

    for _ in range(EVERY):
        step(model, optimizer, attack, x, y)
    started = time.perf_counter()
    for _ in range(EVERY):
        step(model, optimizer, attack, x, y)
    seconds = (time.perf_counter() - started) / EVERY
    held = 0
    if isinstance(optimizer, ATMC):
        tensors = [*optimizer.factors.values(), *optimizer.duplicates.values()]
        held = sum(t.numel() * t.element_size() for t in (*tensors, *optimizer.duals.values()))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "dense": dense, "held": held, "peak": peak}


def apart(weights: int, batch: int, compressed: bool, threads: int) -> dict[str, float]:
    """``point`` in a fresh process."""
    point_ = map(str, (weights, batch, int(compressed), threads))
    command = [sys.executable, __file__, "--point", *point_]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """The sweep and its fit."""
    given = arguments(__doc__)
    rows: list[Row] = []
    points = [(weights, 128) for weights in WEIGHTS] + [(10**6, batch) for batch in BATCHES]
    sizes, seconds = [], []
    for weights, batch in dict.fromkeys(points):
        plain, ours = (apart(weights, batch, kind, given.threads) for kind in (False, True))
        name = f"{weights:.0e}-batch-{batch}".replace("+0", "")
        rows.append(
            row(f"step-{name}", ours["seconds"], plain["seconds"], "plain adversarial step", "s")
        )
        rows.append(row(f"held-{name}", ours["held"], ours["dense"], "dense weights", "B"))
        rows.append(row(f"peak-{name}", ours["peak"], plain["peak"], "plain adversarial step", "B"))
        if batch == 128:
            sizes.append(weights)
            seconds.append(ours["seconds"])
    slope = np.polyfit(np.log(sizes[1:]), np.log(seconds[1:]), 1)[0]
    print(f"from {sizes[1]:.0e} weights on, time grows as weights ** {slope:.2f}")
    show(rows, given.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        weights_, batch_, kind_, threads_ = map(int, sys.argv[2:])
        print(json.dumps(point(weights_, batch_, bool(kind_), threads_)))
    else:
        main()
