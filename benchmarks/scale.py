"""What the compress stage takes besides its steps, for the networks that the papers are about.

    python benchmarks/scale.py [--json FILE] [--before FILE] [--steps N] [--net NAME]

A whole stage of `atmc` at 1 % of the dense bits, from random weights, on random pictures, N-FGSM
and batch 128 for resnet18 (3 x 32 x 32), batch 32 for convnext_tiny (3 x 64 x 64). The peer of a
row is the same part in the run that --before names (of an earlier version, say), else its bar.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from table import Row, row, show
from torch import Tensor, nn
from torchvision.models import convnext_tiny

from atmc import models
from atmc.accounting import dense_bits
from atmc.hardware import keep_freed
from atmc.methods import Target
from atmc.methods.atmc import CompressStage
from atmc.training.loop import Trainer
from atmc.training.objective import Objective

NETS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # and the batch, and the side
    "resnet18": (lambda: models.create("resnet18"), 128, 32),
    "convnext-tiny": (lambda: convnext_tiny(num_classes=10), 32, 64),
}
BARS = {"start": 5.0, "aim": 0.5, "duplicate": 0.3}  # s
SHARE = 0.1


class Batches:
    """The same random batch, time after time."""

    def __init__(self, batch: int, side: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(batch, 3, side, side, generator=generator)
        self.y = torch.arange(batch) % 10
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(self.x, self.y)] * self.steps)


def timed(
    seconds: dict[str, list[float]], name: str, part: Callable[..., Any]
) -> Callable[..., Any]:
    """A part of the stage that notes how long it takes."""

    def run(*inputs: Any) -> Any:
        started = time.perf_counter()
        output = part(*inputs)
        seconds[name].append(time.perf_counter() - started)
        return output

    return run


def stage_seconds(
    build: Callable[[], nn.Module], batch: int, side: int, steps: int
) -> dict[str, float]:
    """Mean seconds of each part of a stage, and the share of it that is no step."""
    torch.manual_seed(0)
    model = build().to(memory_format=torch.channels_last)
    stage = CompressStage(1, 1e-3, Target.of(model, dense_bits(model) // 100, "auto", None))
    seconds: dict[str, list[float]] = defaultdict(list)
    start = stage.start

    def started(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = start(model)
        optimizer._duplicate = timed(seconds, "duplicate", optimizer._duplicate)
        optimizer.step = timed(seconds, "update", optimizer.step)
        stage._aim = timed(seconds, "aim", stage._aim)
        return optimizer

    stage.start = timed(seconds, "start", started)  # type: ignore[method-assign]
    stage.after_step = timed(seconds, "after", stage.after_step)  # type: ignore[method-assign]
    stage.finish = timed(seconds, "closing", stage.finish)  # type: ignore[method-assign]
    trainer = Trainer(
        model, Batches(batch, side, steps), [stage], Objective(8 / 255, train_attack="n-fgsm")
    )
    trainer._backward = timed(seconds, "passes", trainer._backward)  # type: ignore[method-assign]
    trainer.run()
    other = sum(sum(seconds[name]) for name in ("start", "after", "closing", "duplicate"))
    step = sum(seconds["passes"]) + sum(seconds["update"]) - sum(seconds["duplicate"])
    parts = {name: sum(seconds[name]) / len(seconds[name]) for name in BARS}
    return {
        **parts,
        "closing": seconds["closing"][0],
        "step": step / steps,
        "share": other / (other + step),
    }


def main() -> None:
    """One stage of each net."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--before", type=Path, help="rows of an earlier run, as peers")
    parser.add_argument("--steps", type=int, default=40, help="of the stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--net", choices=NETS, action="append", help="one of them, or more")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed()
    before = json.loads(options.before.read_text()) if options.before else []
    earlier = {each["name"]: each["ours"] for each in before}
    rows: list[Row] = []
    for net, (build, batch, side) in NETS.items():
        if options.net and net not in options.net:
            continue
        for part, measured in stage_seconds(build, batch, side, options.steps).items():
            name, bar = f"{part}-{net}", SHARE if part == "share" else BARS.get(part, measured)
            title = "before" if name in earlier else "its bar" if bar != measured else "–"
            unit = "of 1" if part == "share" else "s"
            rows.append(row(name, measured, earlier.get(name, bar), title, unit))
    show(rows, options.json)


if __name__ == "__main__":
    main()
