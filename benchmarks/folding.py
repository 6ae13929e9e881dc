"""The attack of training with batch norms folded into the layers before them, and without.

    python benchmarks/folding.py [--json FILE]

PGD-3 on a batch of 64 in channels_last. Rows in bfloat16 are under autocast. On a GPU, batches of
512 and PGD-10.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from table import arguments, least, row, show

import atmc
from atmc.attacks import folded, pgd
from atmc.models.sources import channels_last

NETS = ("resnet18-w4", "wrn-16-2", "vgg16-w4")
KINDS = {"fp32": None, "bf16": torch.bfloat16}
EPS = 8 / 255


def attack(name: str, precision: torch.dtype | None, fold: bool) -> Callable[[], None]:
    """One attack on a network with norms."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, steps = (512, 10) if device == "cuda" else (64, 3)
    model = channels_last(atmc.models.create(name).to(device))
    x = torch.rand(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,), device=device)

    def run() -> None:
        with folded(model, x, precision) if fold else nullcontext():
            pgd(model, x, y, EPS, steps, precision=precision)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> None:
    """Each network in each precision, with and without folding, in the same rounds."""
    given = arguments(__doc__, threads=1)
    torch.manual_seed(0)
    routines = {
        f"{net}-{kind}{' folded' * fold}": attack(net, precision, fold)
        for net in NETS
        for kind, precision in KINDS.items()
        for fold in (False, True)
    }
    seconds = least(routines, given.repeat)
    names = [name for name in routines if f"{name} folded" in routines]
    show(
        [
            row(name, seconds[f"{name} folded"], seconds[name], "norms not folded", "s")
            for name in names
        ],
        given.json,
    )


if __name__ == "__main__":
    main()
