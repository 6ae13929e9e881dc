"""The parts of a training step on a GPU, for benchmarks/gpu.py.

A step of PGD-10 in the autocast of training, plain or by ATMC; its arithmetic is that of the plain
step, the machine's rate that of a product of square bfloat16 matrices in the same rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from step import EVERY, constrained, step
from table import busiest
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import atmc
from atmc.accounting import dense_bits
from atmc.engine.settings import Settings
from atmc.factorization.layers import plain_weights
from atmc.methods import Target
from atmc.methods.atmc import CompressStage
from atmc.models.sources import channels_last
from atmc.optim.atmc import ATMC
from atmc.training.inner_attack import InnerAttack
from atmc.training.objective import Objective

BATCH, SIDE = 512, 8192  # images of a step; rows of the matrices
ATTACK_STEPS, EPS = 10, 8 / 255
ROUNDS = 3  # that are timed, after one that is not
PART_CALLS = 3  # of a part of the step in a round
PROFILED, TOP = 3, 15  # steps; kernels that are listed


@dataclass
class Loop:
    """A model in training on one random batch; called for one step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    attack: InnerAttack
    x: Tensor
    y: Tensor

    def __call__(self) -> None:
        """Attack, loss, backward, update."""
        step(self.model, self.optimizer, self.attack, self.x, self.y)


def loop(
    name: str, x: Tensor, y: Tensor, objective: Objective, *, compressed: bool = False
) -> Loop:
    """A network of the zoo in training by SGD, under ATMC at 1 % of the weights if compressed."""
    torch.manual_seed(0)
    model = channels_last(atmc.models.create(name).to(x.device))
    weights = dense_bits(model) // 32

    def sgd() -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    optimizer = constrained(model, sgd, weights // 100, EVERY) if compressed else sgd()
    return Loop(model, optimizer, InnerAttack(objective), x, y)


def batch(count: int, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images and labels, channels last."""
    torch.manual_seed(0)
    x = torch.rand(count, *shape, device=device)
    return x.to(memory_format=torch.channels_last), torch.randint(0, 10, (count,), device=device)


def autocast() -> torch.dtype | None:
    """The precision that training takes by default on this machine."""
    return Settings.of({}).training.autocast


def milliseconds(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Milliseconds of one of so many calls, by the GPU's events where there is one."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(calls):
            run()
        return 1000 * (time.perf_counter() - started) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / calls


def measure(
    routines: Mapping[str, Callable[[], object]], device: torch.device, calls: int | None = None
) -> dict[str, dict[str, float]]:
    """Of each routine the least and the median ms a call, and seconds that its warm-up took.

    Every round runs all of them, so that a slow phase of the machine affects all.

    Args:
        routines: by name.
        device: where they run.
        calls: of each in a round; None for the steps to a duplicate.
    """
    calls = EVERY if calls is None else calls
    rounds: dict[str, list[float]] = {name: [] for name in routines}
    for _ in range(ROUNDS + 1):
        for name, routine in routines.items():
            rounds[name].append(milliseconds(routine, device, calls))
    return {
        name: {
            "ms": min(times),
            "median_ms": statistics.median(times),
            "warmup_s": max(0.0, calls * (warmup - min(times)) / 1000),
        }
        for name, (warmup, *times) in rounds.items()
    }


def table(
    name: str, shape: tuple[int, ...], device: torch.device, *, compiled: bool
) -> dict[str, Any]:
    """The plain and the ATMC step, the matrix rate, the parts, and where the time goes.

    Args:
        name: of the network, in the zoo.
        shape: of an image.
        device: where to run.
        compiled: the setting of the attack; the parts are left out with it.
    """
    x, y = batch(BATCH, shape, device)
    objective = Objective(EPS, ATTACK_STEPS, precision=autocast(), compiled=compiled)
    matrix = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    suffix = "compiled" if compiled else "eager"
    loops = {
        f"plain-{suffix}": loop(name, x, y, objective),
        f"atmc-{suffix}": loop(name, x, y, objective, compressed=True),
    }
    timed = measure({"matrix": lambda: matrix @ matrix, **loops}, device)
    rate = 2 * SIDE**3 / (timed["matrix"]["ms"] / 1000)
    flop = arithmetic(name, x)
    rows = {each: timed[each] | {"share": flop / rate / timed[each]["ms"] * 1000} for each in loops}
    result: dict[str, Any] = {
        "batch": BATCH,
        "attack": f"pgd-{ATTACK_STEPS}",
        "precision": str(objective.precision or torch.float32),
        "tflop_a_step": flop / 1e12,
        "matrix": {"side": SIDE, **timed["matrix"], "tflop_a_second": rate / 1e12},
        "rows": rows,
    }
    if not compiled:
        result["parts"] = parts(name, loops["atmc-eager"], device)
    result["profile"] = {
        each: busiest(lambda run=run: [run() for _ in range(PROFILED)], PROFILED, TOP)
        for each, run in loops.items()
    }
    return result


def arithmetic(name: str, x: Tensor) -> float:
    """Floating-point operations of one plain step.

    One forward and one backward pass per attack step; one forward and two backward in training.
    """
    with FlopCounterMode(display=False) as counter:
        atmc.models.create(name).to(x.device).eval()(x)
    return float(counter.get_total_flops() * (2 * ATTACK_STEPS + 3))


def parts(name: str, trained: Loop, device: torch.device) -> dict[str, float]:
    """Milliseconds of the parts of an ATMC step, and of what a stage does between steps.

    The duplicate is the difference of an update with one and an update without. The start and the
    aim are those of a whole stage at 1 % of the dense bits.
    """
    optimizer = trained.optimizer
    assert isinstance(optimizer, ATMC)

    def form() -> None:
        with plain_weights(trained.model):
            pass

    def update(duplicate_every: int) -> dict[str, float]:
        optimizer.duplicate_every = duplicate_every
        return measure({"update": optimizer.step}, device, PART_CALLS)["update"]

    never, always = update(10**9), update(1)
    model = channels_last(atmc.models.create(name).to(device))
    stage = CompressStage(1, 1e-3, Target.of(model, dense_bits(model) // 100, "auto", None))
    stage.total_steps, stage.example, stage.batch_size = 1000, trained.x[:8], BATCH
    stage.gradients = trained.attack.objective.gradients
    stage.reshape(model)
    start = milliseconds(lambda: stage.start(model), device)
    return {
        "forming_w_ms": measure({"form": form}, device, PART_CALLS)["form"]["ms"],
        "update_ms": never["ms"],
        "duplicate_ms": always["ms"] - never["ms"],
        "stage_start_ms": start,
        "aim_ms": min(milliseconds(lambda: stage.after_step(0), device) for _ in range(3)),
    }
