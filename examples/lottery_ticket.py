"""The lottery ticket: small nets that start from the initial weights of a wider one.

    python examples/lottery_ticket.py --data-root DIR --output runs/lottery-ticket

Frankle & Carbin (ICLR 2019), as Ye et al. (ICCV 2019, table 5) put it to the test: the filters of
largest norm after training LeNet(4) are the ticket, and LeNet(1) and LeNet(2) start from what these
filters were before it; under attack from the first step on, and with ε warmed up.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

import atmc

WIDE = "lenet-w4"


@torch.no_grad()
def inherit(small: nn.Module, initial: nn.Module, trained: nn.Module) -> nn.Module:
    """Copy the ticket of a wider chain of layers with the same names into a small one."""
    inputs = None  # the units of the layer before that belong to the ticket
    for name, layer in small.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        before, after = initial.get_submodule(name), trained.get_submodule(name)
        norms = after.weight.flatten(1).norm(dim=1)
        units = norms.argsort(descending=True, stable=True)[: len(layer.weight)].sort().values
        if inputs is None:
            columns = torch.arange(layer.weight.shape[1])
        else:  # a flattened map has several columns for each channel
            pixels = layer.weight.shape[1] // len(inputs)
            columns = (inputs[:, None] * pixels + torch.arange(pixels)).flatten()
        layer.weight.copy_(before.weight[units][:, columns])
        layer.bias.copy_(before.bias[units])
        inputs = units
    return small


def train(model: Any, epochs: int, data_root: str, **settings: Any) -> atmc.Result:
    return atmc.compress(
        model,
        dataset="mnist",
        data_root=data_root,
        method="dense",
        eps=0.3,
        dense_epochs=epochs,
        **settings,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output", type=Path, default=Path("runs/lottery-ticket"))
    parser.add_argument("--wide-epochs", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=12)
    chosen = parser.parse_args()

    initial = []

    def wide() -> nn.Module:  # called under the run's seed; a copy of what it returns is trained
        initial.append(atmc.models.create(WIDE))
        return initial[-1]

    trained = train(wide, chosen.wide_epochs, chosen.data_root, train_attack="atta").dense
    chosen.output.mkdir(parents=True, exist_ok=True)
    for name in ("lenet-w1", "lenet-w2"):
        small = inherit(atmc.models.create(name), initial[-1], trained)
        for warmup in (0.0, 0.4):
            how = {"train_attack": "pgd", "steps": 10, "warmup": warmup}
            result = train(small, chosen.epochs, chosen.data_root, **how)
            result.save(chosen.output / f"{name}-warmup-{warmup}.atmc")
            print(name, warmup, result.report["accuracy"])


if __name__ == "__main__":
    main()
