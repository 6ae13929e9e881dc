"""Constant units are folded into the bias of the layer that reads them.

A unit whose row of W is empty outputs a constant, whatever activation, norm or pooling follows. The
next layer's bias can hold that constant, so the unit's own bias need not be stored.
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
    """Zero the biases of units without inputs, in place, and add their effect to the next bias.

    A layer is changed only where that is exact: the next layer has a bias, is the only reader of
    the units, no batch norm lies between, and it reads the same constant at all places (not so
    where a map is padded with zeros). The change is undone where the output on ``x`` differs.

    Args:
        model: factorized.
        x: a few inputs, (n, ...), as in training.
        order: of the model; its pairs say which layer reads which units.
    """
    weights = {weight.name: weight for weight in factorized_weights(model)}
    modules = dict(model.named_modules())
    names = list(modules)
    for first, second in order.pairs:
        layer, reader = first.rpartition(".")[0], second.rpartition(".")[0]
        bias, next_bias = (getattr(modules[name], "bias", None) for name in (layer, reader))
        if not isinstance(bias, Tensor) or not isinstance(next_bias, Tensor):
            continue
        between = [modules[name] for name in names[names.index(layer) : names.index(reader)]]
        # A batch norm removes constants in training and applies them in evaluation.
        if any(getattr(module, "running_mean", None) is not None for module in between):
            continue
        backup = bias.clone(), next_bias.clone()
        try:
            biases = bias, next_bias
            exact = _fold(model, weights[first], weights[second], biases, modules[reader], x)
        except Exception as error:  # a user's model may call its layers in any way
            if out_of_memory(error):
                raise
            exact = False
        if not exact:
            bias.copy_(backup[0])
            next_bias.copy_(backup[1])


def _fold(
    model: nn.Module,
    first: FactorizedWeight,
    second: FactorizedWeight,
    biases: tuple[Tensor, Tensor],
    reader: nn.Module,
    x: Tensor,
) -> bool:
    """Fold the constants of one layer into the next; whether the output is the same."""
    bias, next_bias = biases
    constant = ~_matrix(first).any(-1) & (bias != 0)
    if not bool(constant.any()):
        return True
    inputs, before = _run(model, reader, x)
    bias.masked_fill_(constant, 0)
    inputs_without, _ = _run(model, reader, x)
    change = _per_unit(reader, inputs, len(bias)) - _per_unit(reader, inputs_without, len(bias))
    columns = _matrix(second).reshape(len(next_bias), len(bias), -1).sum(-1)
    # Where the change is not the same in every example and place, the output differs.
    next_bias += columns @ (change.to(columns) * constant)
    return same(before, outputs(model, x))


def _matrix(weight: FactorizedWeight) -> Tensor:
    return weight.parametrization.matrix(weight.U, weight.V, weight.C).detach()


def _per_unit(reader: nn.Module, inputs: Tensor, units: int) -> Tensor:
    """What a layer reads of each unit, at one place of one example."""
    one = inputs.flatten(0, -2) if isinstance(reader, nn.Linear) else inputs
    return one[0].reshape(units, -1)[:, 0]


def _run(model: nn.Module, reader: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of ``reader``, and the outputs of the model."""
    seen: list[Tensor] = []
    handle = reader.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = outputs(model, x)
    finally:
        handle.remove()
    return seen[0], logits
