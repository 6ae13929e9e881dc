"""The optimizer in your own training loop.

    python examples/own_loop.py --epochs 20

It trains a small network on attacked digits while ATMC reduces it to k nonzeros and 2^4 levels per
factor. Then it saves the network under a hard budget and loads it as a plain module.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.nn.functional as F
from torch import nn

import atmc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", default="own_loop.atmc")
    options = parser.parse_args()

    torch.manual_seed(0)
    digits = atmc.data.load("digits")
    batches = digits.train.batches(64, shuffle=True)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )

    atmc.factorize(model)  # W = U V + C everywhere; the optimizer comes after it
    steps = options.epochs * len(batches)
    optimizer = atmc.optim.ATMC(
        model,
        torch.optim.Adam(model.parameters(), 2e-3),
        k=atmc.optim.cubic(38_000, 2_500, steps // 2),  # shrinks over the first half
        bits=4,
        importance="effect",
    )
    for epoch in range(options.epochs):
        eps = 0.1 * min(1, (epoch + 1) / (0.4 * options.epochs))  # warmed up
        for x, y in batches:
            attacked = atmc.attacks.pgd(model, x, y, eps=eps, steps=5)
            loss = F.cross_entropy(model(attacked), y) + optimizer.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss:.3f}, {optimizer.nonzeros:,} nonzeros")
    optimizer.finalize()  # the quantized duplicate becomes the model

    budget = 24_000
    sizes = atmc.save(model, options.output, budget_bits=budget)  # or says by how much it is over
    assert 8 * os.path.getsize(options.output) == sizes.file_bits <= budget
    plain = atmc.load(options.output, model=atmc.defactorize(model))
    evaluation = atmc.evaluation.evaluate(
        plain, digits.test.batches(500), [atmc.evaluation.attack("pgd-20", eps=0.1)]
    )
    print(f"{sizes.file_bits:,} bits: {evaluation['accuracy']}")


if __name__ == "__main__":
    main()
