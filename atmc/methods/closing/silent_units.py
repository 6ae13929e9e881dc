"""Units that no input can wake are emptied: interval bounds over all inputs in [0, 1] prove it.

Training on bounds silences many units of the first layers. A unit whose upper bound is not above
zero outputs zero behind a ReLU whatever its weights are, and so neither they nor those that read
it need to be stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atmc.certification.bounds import propagate
from atmc.certification.interval import Interval
from atmc.factorization.layers import factorized_weights, plain_weights
from atmc.hardware import out_of_memory
from atmc.inference import in_mode
from atmc.methods.closing.unit_order import UnitOrder


@torch.no_grad()
def empty_silent_units(model: nn.Module, x: Tensor, order: UnitOrder) -> None:
    """Zero the rows and biases of units whose one reader gets zero from them for every input.

    In place; the output is the same. Nothing is changed where there are no bounds.

    Args:
        model: factorized.
        x: inputs (n, ...); their shape alone counts.
        order: of the model; its pairs say which layer reads which units.
    """
    weights = {weight.name: weight for weight in factorized_weights(model)}
    modules = dict(model.named_modules())
    readers = {second: modules[second.rpartition(".")[0]] for _, second in order.pairs}
    try:
        bounds = _read(model, x, readers)
        for first, second in order.pairs:
            weight = weights[first]
            bias = getattr(modules[first.rpartition(".")[0]], "bias", None)
            tensors = [weight.U, weight.C, *([] if bias is None else [bias])]
            silent = _silent(bounds[second], weight.parametrization.layout.rows)
            rows = [tensor.reshape(len(silent), -1).any(1) for tensor in tensors]
            used = torch.stack(rows).any(0)
            if weight.parametrization.identity != "none" or not bool((silent & used).any()):
                continue
            backup = [tensor.clone() for tensor in tensors]
            for tensor in tensors:
                tensor[silent] = 0
            # A norm between the two may wake what is empty.
            after = _read(model, x, readers)
            if bool((_silent(after[second], len(silent)) | ~silent).all()):
                bounds = after
                continue
            for tensor, value in zip(tensors, backup, strict=True):
                tensor.copy_(value)
    except Exception as error:  # a function without a rule, or a model that refuses intervals
        if out_of_memory(error):
            raise


def _read(
    model: nn.Module, x: Tensor, readers: Mapping[str, nn.Module]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The bounds of what each reader reads, over all inputs in [0, 1]."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: found.update({name: (inputs[0].lower, inputs[0].upper)})
        )
        for name, module in readers.items()
    ]
    try:
        with in_mode(model, training=False), plain_weights(model):
            propagate(model, Interval(torch.zeros_like(x[:1]), torch.ones_like(x[:1])))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _silent(bounds: tuple[Tensor, Tensor], units: int) -> Tensor:
    """Which units are zero at all places, (units,)."""
    zero = torch.stack([(end == 0).reshape(units, -1).all(1) for end in bounds])
    return zero.all(0)
