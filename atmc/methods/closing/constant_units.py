"""Units without inputs say the same to every picture: what they say moves into the next bias.

A unit whose row of W is empty is a constant, whatever activation, norm or pooling follows. Its own
bias is then no more than a detour to the next layer's, and need not be stored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atmc.factorization.layers import FactorizedWeight, factorized_weights
from atmc.hardware import out_of_memory
from atmc.inference import outputs, same
from atmc.methods.closing.unit_order import UnitOrder


@torch.no_grad()
def fold_constant_units(model: nn.Module, x: Tensor, order: UnitOrder) -> None:
    """Zero the biases of units without inputs, in place, and let the next layer say it for them.

    That is done where it is exact: the next layer has a bias, alone reads the units, no batch norm
    lies between, and it sees constants on all inputs and at all places (not so where it pads a map
    with zeros). It is tried on ``x`` and undone where the output would not stay. Other biases are
    left as they are.

    Args:
        model: factorized.
        x: a few inputs, (n, ...), as the model is given them in training.
        order: of the model: whose outputs are read by whom.
    """
    weights = {weight.name: weight for weight in factorized_weights(model)}
    modules = dict(model.named_modules())
    names = list(modules)
    for one, other in order.pairs:
        first, second = one.rpartition(".")[0], other.rpartition(".")[0]
        bias, next_bias = (getattr(modules[name], "bias", None) for name in (first, second))
        if not isinstance(bias, Tensor) or not isinstance(next_bias, Tensor):
            continue
        between = [modules[name] for name in names[names.index(first) : names.index(second)]]
        # A batch norm takes constants away in training, and adds them up in evaluation.
        if any(getattr(module, "running_mean", None) is not None for module in between):
            continue
        held = bias.clone(), next_bias.clone()
        try:
            kept = _fold(model, weights[one], weights[other], (bias, next_bias), modules[second], x)
        except Exception as error:  # a model of one's own may call its layers in any way
            if out_of_memory(error):
                raise
            kept = False
        if not kept:
            bias.copy_(held[0])
            next_bias.copy_(held[1])


def _fold(
    model: nn.Module,
    first: FactorizedWeight,
    second: FactorizedWeight,
    biases: tuple[Tensor, Tensor],
    reader: nn.Module,
    x: Tensor,
) -> bool:
    """Fold the constants of one layer into the next; whether the output has stayed."""
    bias, next_bias = biases
    constant = ~_matrix(first).any(-1) & (bias != 0)
    if not bool(constant.any()):
        return True
    said, before = _run(model, reader, x)
    bias.masked_fill_(constant, 0)
    left, _ = _run(model, reader, x)
    change = _per_unit(reader, said, len(bias)) - _per_unit(reader, left, len(bias))
    columns = _matrix(second).reshape(len(next_bias), len(bias), -1).sum(-1)
    # The same in every example and place; where it is not, the output does not stay.
    next_bias += columns @ (change.to(columns) * constant)
    return same(before, outputs(model, x))


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
