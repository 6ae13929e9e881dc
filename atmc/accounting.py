"""Sizes before training: the dense size, the smallest file, and the width of the dense part.

All sizes are in bits. File bits are 8 × the length of the artifact as the codec writes it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from atmc import codec
from atmc.artifact import DENSE_WIDTHS, to_artifact
from atmc.errors import BudgetError
from atmc.factorization.layers import (
    dense_part,
    factorize,
    factorized_weights,
    named_factors,
    named_state,
    plain_weights,
    weight_names,
)
from atmc.factorization.norms import fold_statistics, folded_statistics, statistics_names
from atmc.models.preparation import copy_model
from atmc.quantization.rates import CHOICES, factor_bits


def dense_bits(model: nn.Module) -> int:
    """Weights of Conv and Linear layers × 32 bits, the dense size as the papers count it.

    The projections inside attention and the matrices of recurrent layers are linear layers too. A
    tied weight counts once.

    >>> from atmc import models
    >>> dense_bits(models.create("lenet5"))
    13776000
    """
    weights: dict[int, Tensor] = {}  # by identity
    with plain_weights(model):
        for module in model.modules():
            for name in weight_names(module):
                weight = getattr(module, name)
                if weight is not None:
                    weights[id(weight)] = weight
    return 32 * sum(weight.numel() for weight in weights.values())


def _empty(model: nn.Module) -> nn.Module:
    """A factorized copy with every factor zero."""
    empty = copy_model(model)
    if not factorized_weights(empty):
        factorize(empty, identity=False)
    fold_statistics(empty)
    with torch.no_grad():
        for factor in named_factors(empty).values():
            factor.zero_()
    return empty


def _largest_bits(empty: nn.Module, width: int, meta: dict[str, Any] | None) -> int:
    """The most bits of a file of an empty model, whatever values the dense part has."""
    constant = set(statistics_names(empty))
    places = [i for i, name in enumerate(named_state(empty)) if name in constant]
    artifact = to_artifact(empty, width=width, meta=meta)
    return codec.largest_bits(artifact, [width], places)[width]


def stored_dense_part(model: nn.Module) -> dict[str, Tensor]:
    """What of the dense part takes bits in a file, as it is stored but for rounding, by name."""
    constant = set(statistics_names(model))
    values = dense_part(model)
    folded = {name: v for name, v in folded_statistics(model).items() if name in values}
    return {name: v for name, v in (values | folded).items() if name not in constant}


def empty_artifact(
    model: nn.Module, width: int, meta: dict[str, Any] | None = None
) -> codec.Artifact:
    """The artifact of a model, factorized or not, with every factor zero."""
    return to_artifact(_empty(model), width=width, meta=meta)


def fixed_bits(model: nn.Module, *, width: int, meta: dict[str, Any] | None = None) -> int:
    """Upper bound of the file with every factor zero, whatever values the dense part has."""
    return _largest_bits(_empty(model), width, meta)


def smallest_bits(model: nn.Module, *, meta: dict[str, Any] | None = None) -> int:
    """The smallest budget that any file of the model keeps: see :func:`fixed_bits`.

    Every factor is zero, and the dense part has the fewest bits a value.
    """
    return fixed_bits(model, width=min(DENSE_WIDTHS), meta=meta)


def dense_width(
    model: nn.Module,
    budget_bits: int,
    *,
    bits: int = max(CHOICES),
    meta: dict[str, Any] | None = None,
) -> int:
    """Bits a value of the dense part: the most that leave two thirds of the budget to factors.

    Where all factors with every weight at ``bits`` bits need less than that, they leave the rest.

    Raises:
        BudgetError: no file fits; the message gives the smallest budget that does.
    """
    empty = _empty(model)
    fixed = {width: _largest_bits(empty, width, meta) for width in DENSE_WIDTHS}
    least = fixed[min(DENSE_WIDTHS)]
    if budget_bits < least:
        raise BudgetError(
            f"a budget of {budget_bits} bits is too small: the smallest possible file of this "
            f"model is {least} bits ({math.ceil(least / 8)} bytes)",
            least,
        )
    sizes = [weight.factors[weight.carrier].numel() for weight in factorized_weights(empty)]
    most = sum(factor_bits(size, size, bits) for size in sizes)
    for width in DENSE_WIDTHS:
        if fixed[width] <= max(budget_bits / 3, budget_bits - most):
            return width
    return min(DENSE_WIDTHS)
