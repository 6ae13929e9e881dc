"""What an attack ascends: cross-entropy, the margin, the DLR loss, and the divergence of TRADES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["ce", "margin", "dlr"]
# Of logits (n, classes) and labels (n,), for "kl" log-probabilities (n, classes): (n,).
ExampleLoss = Callable[[Tensor, Tensor], Tensor]


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Per example, the best wrong logit less the true one (Carlini & Wagner, 2017): (n,)."""
    true = logits.gather(1, y[:, None])[:, 0]
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return wrong - true


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Per example, the difference of logits ratio (Croce & Hein, ICML 2020, equation 6): (n,).

    The margin over the distance from the largest logit to the third largest,
    ``(max_{i≠y} z_i − z_y) / (z_π1 − z_π3)``: logits scaled or shifted change nothing. Where the
    three largest are equal, 1e-12 stands for the distance.

    Args:
        logits: (n, classes).
        y: labels (n,), int64.

    Raises:
        ValueError: fewer than 3 classes, so that there is no third logit.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"the loss dlr needs at least 3 classes, the model has {logits.shape[1]}: "
            "use ce or margin"
        )
    top = logits.topk(3, dim=1).values
    return margin_loss(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, KL(p || q): from the distribution p of a target to q, that of logits: (n,).

    Args:
        logits: (n, classes).
        target: log-probabilities (n, classes).
    """
    return F.kl_div(logits.log_softmax(1), target, reduction="none", log_target=True).sum(1)


def example_loss(name: Loss | Literal["kl"]) -> ExampleLoss:
    """The loss of that name, of each example.

    Raises:
        ValueError: no such loss.
    """
    losses = {"ce": _cross_entropy, "margin": margin_loss, "dlr": dlr_loss, "kl": divergence}
    if name not in losses:
        raise ValueError(f"unknown attack loss {name!r}: use 'ce', 'margin' or 'dlr'")
    return losses[name]
