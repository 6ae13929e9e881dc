"""A small net that starts from the initial weights of a larger one: the lottery ticket.

Frankle & Carbin (ICLR 2019), as Ye et al. (ICCV 2019, section 4.2) put it to the test: of every
layer of the larger net the filters of largest norm *after* training are the ticket, and the small
net starts from what those filters were *before* training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LAYERS = (nn.Conv2d, nn.Linear)


def _layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, _LAYERS)}


@torch.no_grad()
def inherit(small: nn.Module, initial: nn.Module, trained: nn.Module) -> None:
    """Write the ticket's initial weights into ``small``, in place.

    Args:
        small: a chain of Conv2d and Linear layers, with the layer names of the larger net.
        initial: the larger net before training.
        trained: the larger net after training, or after pruning: then the filters that are left
            are those of largest norm.

    Raises:
        ValueError: the nets are not two sizes of one chain.
    """
    ours, before, after = _layers(small), _layers(initial), _layers(trained)
    if not list(ours) == list(before) == list(after):
        raise ValueError("the two nets have not the same layers: inherit from a wider one")
    inputs: Tensor | None = None  # the units of the layer before that were taken
    for name, layer in ours.items():
        weight, first = layer.weight, before[name].weight
        if after[name].weight.shape != first.shape:
            raise ValueError(
                f"{name} is of another shape there: inherit from a net of as many classes"
            )
        norms = after[name].weight.flatten(1).norm(dim=1)
        units = norms.argsort(descending=True, stable=True)[: len(weight)].sort().values
        columns = _columns(inputs, weight.shape[1], first.shape[1], name)
        if len(weight) > len(first) or weight.shape[2:] != first.shape[2:]:
            raise ValueError(f"{name} is larger here than there: inherit from a wider net")
        weight.copy_(first[units][:, columns])
        bias, first_bias = layer.bias, before[name].bias
        if bias is not None and first_bias is not None:
            bias.copy_(first_bias[units])
        inputs = units


def _columns(inputs: Tensor | None, ours: int, theirs: int, name: str) -> Tensor:
    """Which inputs of the larger layer the small one's are; several for each channel if flat."""
    if inputs is None:
        if ours != theirs:
            raise ValueError(f"{name} takes {ours} inputs here and {theirs} there")
        return torch.arange(ours)
    each, rest = divmod(ours, len(inputs))
    if rest or theirs % each:
        raise ValueError(f"{name} does not read the layer before it: only chains can inherit")
    return (inputs[:, None] * each + torch.arange(each)).flatten()
