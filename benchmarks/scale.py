"""What a stage takes besides its steps, for the networks that the papers are about.

    python benchmarks/scale.py [--json FILE] [--before FILE] [--steps N] [--net NAME] [--method M]
                               [--factors uvc]

The first stage of a method, as a whole, at 1 % of the dense bits, from random weights, on random
pictures, N-FGSM and batch 128 for resnet18 (3 x 32 x 32), batch 32 for convnext-tiny and swin-t
(3 x 64 x 64). An aim is all that follows a step for its sake: dead paths, k or ranks, the real
file. The peer of a row is the same part in the run that --before names (of an earlier version,
say), else its bar. With --factors uvc (or uv) `atmc` has the data-aware start, whose bar is 60 s.

    python benchmarks/scale.py --whole [--net NAME]

The whole of `atmc.compress` instead: 32 random pictures, batch 16, an epoch of each stage.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from table import Row, row, show
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import convnext_tiny, swin_t

import atmc
from atmc import models
from atmc.accounting import dense_bits
from atmc.factorization.start import Factors
from atmc.hardware import keep_freed
from atmc.methods import Schedule, Target, get
from atmc.training.loop import Trainer
from atmc.training.objective import Objective

NETS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # and the batch, and the side
    "resnet18": (lambda: models.create("resnet18"), 128, 32),
    "convnext-tiny": (lambda: convnext_tiny(num_classes=10), 32, 64),
    "swin-t": (lambda: swin_t(num_classes=10), 32, 64),
}
METHODS = ("atmc", "l0", "admm-irregular", "admm-column", "admm-filter", "hydra", "low-rank")
BARS = {"start": 5.0, "aim": 0.5, "duplicate": 0.3}  # s
DATA_AWARE = 60.0  # s, of a start that measures the layers' inputs
SHARE, WHOLE = 0.1, 60.0
_AIMS = ("_aim", "_decompose", "aim")  # what a stage calls its aim


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

    def run(*inputs: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        output = part(*inputs, **settings)
        seconds[name].append(time.perf_counter() - started)
        return output

    return run


def stage_seconds(
    build: Callable[[], nn.Module],
    batch: int,
    side: int,
    steps: int,
    method: str,
    factors: Factors,
) -> dict[str, float]:
    """Mean seconds of each part of a method's first stage, and the share of it that is no step."""
    torch.manual_seed(0)
    model = build().to(memory_format=torch.channels_last)
    target = Target.of(model, dense_bits(model) // 100, "auto", None)
    schedule = Schedule(epochs=1, level_epochs=0, lr=1e-3, factors=factors)
    stage = get(method).stages(target, schedule)[0]
    seconds: dict[str, list[float]] = defaultdict(list)
    start = stage.start

    def started(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = start(model)
        if hasattr(optimizer, "_duplicate"):
            optimizer._duplicate = timed(seconds, "duplicate", optimizer._duplicate)
        optimizer.step = timed(seconds, "update", optimizer.step)  # type: ignore[method-assign]
        aim = next(name for name in _AIMS if hasattr(stage, name))
        setattr(stage, aim, timed(seconds, "aim", getattr(stage, aim)))
        return optimizer

    def finished(model: nn.Module) -> None:
        aims.append(len(seconds["aim"]))
        finish(model)

    aims: list[int] = []  # after steps
    finish = stage.finish
    stage.start = timed(seconds, "start", started)  # type: ignore[method-assign]
    stage.after_step = timed(seconds, "after", stage.after_step)  # type: ignore[method-assign]
    stage.finish = timed(seconds, "closing", finished)  # type: ignore[method-assign]
    trainer = Trainer(
        model, Batches(batch, side, steps), [stage], Objective(8 / 255, train_attack="n-fgsm")
    )
    trainer._backward = timed(seconds, "passes", trainer._backward)  # type: ignore[method-assign]
    trainer.run()
    sums = {name: sum(each) for name, each in seconds.items()}
    duplicates = sums.get("duplicate", 0.0)
    other = sums["start"] + sums["after"] + sums["closing"] + duplicates
    step = sums["passes"] + sums["update"] - duplicates
    parts = {"start": sums["start"]}
    if aims[0]:
        parts["aim"] = sums["after"] / aims[0]
    if duplicates:
        parts["duplicate"] = duplicates / len(seconds["duplicate"])
    parts |= {"closing": sums["closing"], "step": step / steps}
    return parts | {"share": other / (other + step)}


def whole_seconds(build: Callable[[], nn.Module], side: int) -> float:
    """Seconds of `atmc.compress` of few pictures."""
    torch.manual_seed(0)
    pictures = TensorDataset(torch.rand(32, 3, side, side), torch.arange(32) % 10)
    model = build()
    started = time.perf_counter()
    atmc.compress(
        model,
        DataLoader(pictures, batch_size=16),
        budget_bits=dense_bits(model) // 100,
        eps=8 / 255,
        dense_epochs=1,
        epochs=1,
        level_epochs=1,
        train_attack="n-fgsm",
    )
    return time.perf_counter() - started


def main() -> None:
    """One stage of each net."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--before", type=Path, help="rows of an earlier run, as peers")
    parser.add_argument("--steps", type=int, default=40, help="of the stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--net", choices=NETS, action="append", help="one of them, or more")
    parser.add_argument("--method", choices=METHODS, action="append", help="one of them, or more")
    parser.add_argument("--factors", choices=get_args(Factors), default="c", help="of atmc")
    parser.add_argument("--whole", action="store_true", help="time atmc.compress")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed()
    before = json.loads(options.before.read_text()) if options.before else []
    earlier = {each["name"]: each["ours"] for each in before}
    rows: list[Row] = []
    for net in options.net or NETS:
        build, batch, side = NETS[net]
        if options.whole:
            rows.append(row(f"whole-{net}", whole_seconds(build, side), WHOLE, "its bar", "s"))
            continue
        for method in options.method or ["atmc"]:
            parts = stage_seconds(build, batch, side, options.steps, method, options.factors)
            data_aware = method == "atmc" and options.factors != "c"
            bars = BARS | {"start": DATA_AWARE} if data_aware else BARS
            variant = options.factors if data_aware else "" if method == "atmc" else method
            for part, measured in parts.items():
                name = "-".join(filter(None, (part, net, variant)))
                bar = SHARE if part == "share" else bars.get(part, measured)
                title = "before" if name in earlier else "its bar" if bar != measured else "–"
                unit = "of 1" if part == "share" else "s"
                rows.append(row(name, measured, earlier.get(name, bar), title, unit))
    show(rows, options.json)


if __name__ == "__main__":
    main()
