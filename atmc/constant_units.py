"""Units without inputs say the same to every picture: what they say moves into the next bias.

A unit whose row of W is empty is a constant, whatever activation, norm or pooling follows. Its own
bias is then no more than a detour to the next layer's, and need not be stored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atmc.factorization import FactorizedWeight, factorized_weights
from atmc.probing import outputs, same
from atmc.unit_order import UnitOrder


@torch.no_grad()
def fold_constant_units(model: nn.Module, x: Tensor, order: UnitOrder) -> None:
    """Zero the biases of units without inputs, in place, and let the next layer say it for them.

    That is done where it is exact: the next layer has a bias, alone reads the units, and sees
    constants on all inputs and at all places (not so where it pads a map with zeros). It is tried
    on ``x`` and undone where the output would not stay. Other biases are left as they are.

    Args:
        model: factorized.
        x: a few inputs, (n, ...), as the model is given them in training.
        order: of the model: whose outputs are read by whom.
    """
    weights = {weight.name: weight for weight in factorized_weights(model)}
    modules = dict(model.named_modules())
    for one, other in order.pairs:
        bias = getattr(modules[one.rpartition(".")[0]], "bias", None)
        reader = modules[other.rpartition(".")[0]]
        next_bias = getattr(reader, "bias", None)
        if not isinstance(bias, Tensor) or not isinstance(next_bias, Tensor):
            continue
        constant = ~_matrix(weights[one]).any(-1) & (bias != 0)
        if not bool(constant.any()):
            continue
        held = bias.clone(), next_bias.clone()
        said, before = _run(model, reader, x)
        bias.masked_fill_(constant, 0)
        left, _ = _run(model, reader, x)
        change = _per_unit(reader, said, len(bias)) - _per_unit(reader, left, len(bias))
        columns = _matrix(weights[other]).reshape(len(next_bias), len(bias), -1)
        # The same in every example and place; where it is not, the check below says so.
        next_bias += columns.sum(-1) @ (change * constant)
        _, after = _run(model, reader, x)
        if not same(before, after):
            bias.copy_(held[0])
            next_bias.copy_(held[1])


def _matrix(weight: FactorizedWeight) -> Tensor:
    return weight.parametrization.matrix(weight.U, weight.V, weight.C).detach()


def _per_unit(reader: nn.Module, inputs: Tensor, units: int) -> Tensor:
    """What a layer reads of each unit, at one place of one example."""
    one = inputs.flatten(0, -2) if isinstance(reader, nn.Linear) else inputs
    return one[0].reshape(units, -1)[:, 0]


def _run(model: nn.Module, reader: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What ``reader`` is given, and what the model says."""
    seen: list[Tensor] = []
    handle = reader.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        said = outputs(model, x)
    finally:
        handle.remove()
    return seen[0], said
