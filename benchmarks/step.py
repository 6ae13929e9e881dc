"""One training step of lenet5: batch 256, half clean and half adversarial loss, PGD-16.

    python benchmarks/step.py [--json FILE]

The arithmetic is that of the plain step with dense weights; the machine's rate is that of a
float32 matrix product of 2048 x 2048 with the same threads, in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from table import arguments, busiest, least, row, show
from torch import Tensor, nn

import atmc
from atmc.factorization.layers import plain_weights, train_factors
from atmc.hardware import keep_freed
from atmc.methods.atmc import CompressStage
from atmc.models.sources import channels_last
from atmc.optim.atmc import ATMC
from atmc.optim.pruning import PruningADMM
from atmc.optim.splitting import Splitting
from atmc.projection import project_topk
from atmc.training.inner_attack import CHECK_EVERY, InnerAttack
from atmc.training.objective import Objective
from atmc.training.optimization import adam

BATCH, STEPS, EPS = 256, 16, 76 / 255
K = 4305  # 1 % of the weights
EVERY = 10  # steps to a duplicate: as many are timed together
SIDE = 2048


def half_clean(precision: torch.dtype | None, fast: bool = True) -> InnerAttack:
    """PGD-16, for a loss of which half is clean."""
    return InnerAttack(Objective(EPS, STEPS, clean_weight=0.5, precision=precision, fast=fast))


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, attack: InnerAttack, x: Tensor, y: Tensor
) -> None:
    """Attack, loss, backward, step, as in the training loop; without a check for collapse."""
    adv = attack(model, x, y, 1.0, 1)
    model.train()
    optimizer.zero_grad()
    with plain_weights(model, graph=True):
        loss, _ = attack.objective.loss(model, x, adv, y)
        if isinstance(optimizer, Splitting):
            loss = loss + optimizer.penalty()
        loss.backward()
    optimizer.step()


def constrained(
    model: nn.Module, build: Callable[[], torch.optim.Optimizer], k: int, every: int = EVERY
) -> ATMC:
    """The optimizer by which the method `atmc` trains a model, which is factorized in place.

    Args:
        model: a dense one.
        build: makes the inner optimizer, once the factors are there.
        k: nonzeros.
        every: steps between duplicates.
    """
    atmc.factorize(model, identity=False)
    factors = train_factors(model)
    return ATMC(
        model,
        build(),
        k=k,
        duplicate_every=every,
        importance=CompressStage.importance,
        factors=factors,
        floor=CompressStage.floors[0],
    )


def plain(
    precision: torch.dtype | None, x: Tensor, y: Tensor, fast: bool = True
) -> Callable[[], None]:
    """EVERY adversarial steps of the dense model, in plain PyTorch or by the fast path."""
    model = atmc.models.create("lenet5")
    optimizer = adam(channels_last(model).parameters() if fast else model.parameters(), 1e-4)
    attack = half_clean(precision, fast)
    return lambda: [step(model, optimizer, attack, x, y) for _ in range(EVERY)] and None


def compressed(precision: torch.dtype | None, x: Tensor, y: Tensor) -> Callable[[], None]:
    """EVERY steps of ATMC, one duplicate among them."""
    model = channels_last(atmc.models.create("lenet5"))
    optimizer = constrained(model, lambda: adam(model.parameters(), 1e-4), K)
    attack = half_clean(precision)
    return lambda: [step(model, optimizer, attack, x, y) for _ in range(EVERY)] and None


def pruned(precision: torch.dtype | None, x: Tensor, y: Tensor) -> Callable[[], None]:
    """EVERY steps of pruning ADMM, each with its duplicate, as in the paper's algorithm."""
    model = channels_last(atmc.models.create("lenet5"))
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}

    def projection(kept: int) -> Callable[[Tensor], Tensor]:
        return lambda weight: project_topk([weight], kept)[0]

    projections = {name: projection(weight.numel() // 100) for name, weight in weights.items()}
    optimizer = PruningADMM(weights, adam(model.parameters(), 1e-4), projections)
    attack = half_clean(precision)
    return lambda: [step(model, optimizer, attack, x, y) for _ in range(EVERY)] and None


def arithmetic() -> float:
    """Floating-point operations of one plain step.

    The backward pass costs as much as the forward pass for the input, and again for the weights:
    two passes per attack step, three for each of the two training batches.
    """
    positions = {"conv1": 24 * 24, "conv2": 8 * 8, "fc1": 1, "fc2": 1}  # of the outputs
    weights = dict(atmc.models.create("lenet5").named_parameters())
    products = sum(weights[f"{layer}.weight"].numel() * count for layer, count in positions.items())
    return 2.0 * products * BATCH * (2 * STEPS + 2 * 3)


def trained(
    attack: str,
    steps: int,
    clean: float,
    x: Tensor,
    y: Tensor,
    precision: torch.dtype | None = torch.bfloat16,
) -> Callable[[], None]:
    """CHECK_EVERY steps under a training-time attack, one check for collapse among them."""
    model = channels_last(atmc.models.create("lenet5"))
    optimizer = adam(model.parameters(), 1e-4)
    goal = Objective(EPS, steps, clean_weight=clean, precision=precision, train_attack=attack)
    attacked, index = InnerAttack(goal), torch.arange(len(y))

    def run() -> None:
        for count in range(CHECK_EVERY):
            adv = attacked(model, x, y, 1.0, count, index)
            model.train()
            optimizer.zero_grad()
            goal.loss(model, x, adv, y)[0].backward()
            optimizer.step()

    return run


def show_profile(precision: torch.dtype | None, x: Tensor, y: Tensor) -> None:
    """Print the operations that take most of the ATMC step, by self time."""
    run = compressed(precision, x, y)
    run()
    recorded = busiest(run, EVERY, 10)
    print(f"{precision or torch.float32}: {recorded['ms']:.0f} ms a step, of which")
    for each in recorded["top"]:
        print(f"  {each['name']:42} {each['ms'] / recorded['ms']:6.1%}")


def main() -> None:
    """The step against the machine's rate, and the compression against the plain step."""
    given = arguments(__doc__, profile=True)
    keep_freed()
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    flops = arithmetic()
    matrix = torch.randn(SIDE, SIDE)
    kinds = {"fp32": None, "bf16": torch.bfloat16}
    if given.profile:
        for precision in kinds.values():
            show_profile(precision, x, y)
        return
    routines: dict[str, Callable[[], object]] = {
        "sgemm": lambda: [matrix @ matrix for _ in range(EVERY)]
    }
    small = x[:128], y[:128]
    cheap, dear = ("atta", "atta-half", "n-fgsm-half"), "pgd-10-half"
    routines["atta"] = trained("atta", 1, 0.0, *small)
    routines["atta-half"] = trained("atta", 1, 0.5, *small)
    routines["n-fgsm-half"] = trained("n-fgsm", 7, 0.5, *small)
    routines[dear] = trained("pgd", 10, 0.5, *small)
    bounds = ("none", "interval", "pgd-7")
    for name in bounds:
        attack, _, steps = name.partition("-")
        routines[name] = trained(attack, int(steps or 1), 0.0, *small, precision=None)
    for name, precision in kinds.items():
        routines[f"library-{name}"] = plain(precision, x, y, fast=False)
        routines[f"plain-{name}"] = plain(precision, x, y)
        routines[f"atmc-{name}"] = compressed(precision, x, y)
        routines[f"admm-{name}"] = pruned(precision, x, y)
    seconds = {name: value / EVERY for name, value in least(routines, given.repeat).items()}
    checked = CHECK_EVERY / EVERY
    named = (*cheap, dear, *bounds)
    training = {name: seconds[name] / checked for name in seconds if name in named}
    rate = 2 * SIDE**3 / seconds["sgemm"]
    print(f"{flops / 1e9:.1f} GFLOP a step, sgemm at {rate / 1e9:.0f} GFLOP/s")
    rows = [
        row(f"{what}-{name}", seconds[f"{of}-{name}"], flops / rate, "arithmetic / sgemm rate", "s")
        for what, of in (("step", "atmc"), ("plain-pytorch", "library"))
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
    peer = "PGD-10, half clean, batch 128, bf16"
    rows += [row(f"train-{name}", training[name], training[dear], peer, "s") for name in cheap]
    peer = "step without an attack, batch 128, fp32"
    rows += [
        row(f"train-{name}", training[name], training["none"], peer, "s") for name in bounds[1:]
    ]
    show(rows, given.json)


if __name__ == "__main__":
    main()
