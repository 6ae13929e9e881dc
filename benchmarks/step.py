"""One training step of lenet5: batch 256, half clean and half adversarial loss, PGD-16.

    python benchmarks/step.py [--json FILE]

The arithmetic is that of the plain step with dense weights; the machine's rate is that of a
float32 matrix product of 2048 x 2048 with the same threads, in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from table import arguments, least, row, show
from torch import Tensor, nn

import atmc
from atmc.compression import channels_last
from atmc.memory import keep_freed
from atmc.objective import Objective
from atmc.optim import ATMC
from atmc.projection import project_per_layer
from atmc.pruning import PruningADMM
from atmc.splitting import Splitting
from atmc.training import adam

BATCH, STEPS, EPS = 256, 16, 76 / 255
K = 4305  # 1 % of the weights
EVERY = 10  # steps to a duplicate: as many are timed together
SIDE = 2048


def objective(precision: torch.dtype | None) -> Objective:
    """Half clean, half attacked by PGD-16."""
    return Objective(EPS, STEPS, clean_weight=0.5, precision=precision)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, goal: Objective, x: Tensor, y: Tensor
) -> None:
    """Attack, loss, backward, step: what the training loop does."""
    adv = goal.attack(model, x, y, 1.0)
    model.train()
    optimizer.zero_grad()
    loss, _ = goal.loss(model, x, adv, y)
    if isinstance(optimizer, Splitting):
        loss = loss + optimizer.penalty()
    loss.backward()
    optimizer.step()


def plain(precision: torch.dtype | None, x: Tensor, y: Tensor) -> Callable[[], None]:
    """EVERY adversarial steps of the dense model."""
    model = channels_last(atmc.models.create("lenet5"))
    optimizer = adam(model.parameters(), 1e-4)
    goal = objective(precision)
    return lambda: [step(model, optimizer, goal, x, y) for _ in range(EVERY)] and None


def compressed(precision: torch.dtype | None, x: Tensor, y: Tensor) -> Callable[[], None]:
    """EVERY steps of ATMC, one duplicate among them."""
    model = channels_last(atmc.models.create("lenet5"))
    atmc.factorize(model)
    optimizer = ATMC(
        model,
        adam(model.parameters(), 1e-4),
        k=K,
        bits=4,
        duplicate_every=EVERY,
        importance="effect",
    )
    goal = objective(precision)
    return lambda: [step(model, optimizer, goal, x, y) for _ in range(EVERY)] and None


def pruned(precision: torch.dtype | None, x: Tensor, y: Tensor) -> Callable[[], None]:
    """EVERY steps of pruning ADMM, each with its duplicate, as in the paper's algorithm."""
    model = channels_last(atmc.models.create("lenet5"))
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}

    def projection(kept: int) -> Callable[[Tensor], Tensor]:
        return lambda weight: project_per_layer([weight], [kept])[0]

    projections = {name: projection(weight.numel() // 100) for name, weight in weights.items()}
    optimizer = PruningADMM(weights, adam(model.parameters(), 1e-4), projections)
    goal = objective(precision)
    return lambda: [step(model, optimizer, goal, x, y) for _ in range(EVERY)] and None


def arithmetic() -> float:
    """Floating-point operations of one plain step.

    A pass back costs what a pass forward does, once for the input and once for the weights: two
    passes an attack step, three for each of the two training batches.
    """
    positions = {"conv1": 24 * 24, "conv2": 8 * 8, "fc1": 1, "fc2": 1}  # of the outputs
    weights = dict(atmc.models.create("lenet5").named_parameters())
    products = sum(weights[f"{layer}.weight"].numel() * count for layer, count in positions.items())
    return 2.0 * products * BATCH * (2 * STEPS + 2 * 3)


def main() -> None:
    """The step against the machine's rate, and the compression against the plain step."""
    given = arguments(__doc__)
    keep_freed()
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    flops = arithmetic()
    matrix = torch.randn(SIDE, SIDE)
    kinds = {"fp32": None, "bf16": torch.bfloat16}
    routines: dict[str, Callable[[], object]] = {
        "sgemm": lambda: [matrix @ matrix for _ in range(EVERY)]
    }
    for name, precision in kinds.items():
        routines[f"plain-{name}"] = plain(precision, x, y)
        routines[f"atmc-{name}"] = compressed(precision, x, y)
        routines[f"admm-{name}"] = pruned(precision, x, y)
    seconds = {name: value / EVERY for name, value in least(routines, given.repeat).items()}
    rate = 2 * SIDE**3 / seconds["sgemm"]
    print(f"{flops / 1e9:.1f} GFLOP a step, sgemm at {rate / 1e9:.0f} GFLOP/s")
    rows = [
        row(f"step-{name}", seconds[f"atmc-{name}"], flops / rate, "arithmetic / sgemm rate", "s")
        for name in kinds
    ]
    fastest = min(kinds, key=lambda name: seconds[f"plain-{name}"])
    rows += [
        row(
            f"overhead-{method}",
            seconds[f"{method}-{fastest}"],
            seconds[f"plain-{fastest}"],
            f"plain adversarial step, {fastest}",
            "s",
        )
        for method in ("atmc", "admm")
    ]
    rows += [
        row(
            f"overhead-{method}-fp32",
            seconds[f"{method}-fp32"],
            seconds["plain-fp32"],
            "plain adversarial step, fp32",
            "s",
        )
        for method in ("atmc", "admm")
    ]
    show(rows, given.json)


if __name__ == "__main__":
    main()
