"""What a network returns, read as logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PROBABILITIES = (
    "the outputs of the model are probabilities: a softmax or sigmoid inside it hides gradients, "
    "so that robust accuracies flatter it; let the model return logits"
)
_CLOSE = 1e-3  # of a sum of probabilities to 1, in half precision too


def main_output(output: object) -> object:
    """The main output of a network that may have auxiliary heads.

    torchvision's GoogLeNet and Inception v3 give a named tuple in training mode, other libraries a
    mapping, with the main head under ``logits``; a plain tuple or list has it in the first place.

    Args:
        output: what the network returns.
    """
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if isinstance(output, (tuple, list)) and output:
        return getattr(output, "logits", output[0])
    return output


def as_logits(output: object) -> Tensor:
    """Logits of two classes or more, of shape (N, classes).

    A single logit z for each example, of shape (N, 1) or (N,), is read as the two logits 0 and z:
    the softmax over them is the sigmoid of z, and the cross-entropy the binary one.

    Args:
        output: what the network returns, as :func:`main_output` takes it.

    Raises:
        TypeError: the main output is no tensor.
    """
    logits = main_output(output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model returns a {type(logits).__name__}, not a tensor of logits")
    if logits.dim() == 1:
        logits = logits[:, None]
    if logits.dim() == 2 and logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits


def are_probabilities(output: object) -> bool:
    """Whether outputs over a batch are probabilities, so that a softmax is inside the network.

    Every row is non-negative and sums to 1; a single column lies in [0, 1], on both sides of 1/2.

    Args:
        output: what the network returns, as :func:`main_output` takes it.
    """
    rows = main_output(output)
    if not isinstance(rows, Tensor) or rows.dim() not in (1, 2) or rows.numel() == 0:
        return False
    if bool((rows < 0).any()):
        return False
    if rows.dim() == 1 or rows.shape[1] == 1:
        return bool((rows <= 1).all() and (rows < 0.5).any() and (rows > 0.5).any())
    return bool(((rows.float().sum(1) - 1).abs() <= _CLOSE).all())
