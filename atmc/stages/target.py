"""What the file must be, and the closing loop that makes it so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atmc import codec
from atmc.accounting import FLOAT_BITS, dense_width
from atmc.artifact import to_artifact
from atmc.factorization import factorized_weights, named_factors
from atmc.importance import scores
from atmc.projection import topk_masks

UNBOUNDED = 2**62  # bits that no file reaches


@dataclass(frozen=True)
class Target:
    """What the file must be: its budget, and what is known of it beforehand.

    Args:
        budget_bits: the ceiling, in bits.
        bits: b, or "auto".
        width: bits a value of the dense part.
        meta: what the artifact says of the model, None for a model of one's own.
        rdo: whether factors are rounded with an eye to the length of their codes.
    """

    budget_bits: int
    bits: int | str
    width: int
    meta: dict[str, Any] | None = None
    rdo: bool = False

    def __post_init__(self) -> None:
        """Refuse bits that cannot be, before any training."""
        if self.bits not in ("auto", *range(1, 9), FLOAT_BITS):
            raise ValueError(f"bits is {self.bits!r}: use 'auto', 1 to 8, or 32")

    @classmethod
    def of(
        cls,
        model: nn.Module,
        budget_bits: int | None,
        bits: int | str,
        meta: dict[str, Any] | None,
        *,
        rdo: bool = False,
    ) -> Target:
        """The target of a model; None for no ceiling.

        Raises:
            BudgetError: no file can keep the budget.
            ValueError: bits that cannot be, or a model without a weight to factorize.
        """
        if budget_bits is None:
            budget_bits = UNBOUNDED
        return cls(budget_bits, bits, dense_width(model, budget_bits, meta=meta), meta, rdo)


@torch.no_grad()
def encoded_bits(model: nn.Module, target: Target, values: Mapping[str, Tensor]) -> int:
    """The real size of the file if the factors held ``values``, by name; changes nothing."""
    factors = named_factors(model)
    held = {name: factors[name].clone() for name in values}
    for name, value in values.items():
        factors[name].copy_(value)
    artifact = to_artifact(model, width=target.width, meta=target.meta)
    for name, value in held.items():
        factors[name].copy_(value)
    return 8 * len(codec.encode(artifact))


def fit(model: nn.Module, target: Target, sort: Callable[[nn.Module], None] | None = None) -> bytes:
    """The closing loop: encode, measure, and drop the least entries until the file fits.

    Changes ``model`` only where the file is over: zeroes entries of its factors.

    Args:
        model: factorized and rounded.
        target: the budget.
        sort: brings hidden units in the order that files profit from, in place; a factor loses what
            that is worth with the first entry that goes, until it is sorted again.
    """
    weights = factorized_weights(model)
    factors = named_factors(model)
    for attempt in range(64):
        data = codec.encode(to_artifact(model, width=target.width, meta=target.meta))
        if 8 * len(data) > target.budget_bits and sort is not None:
            sort(model)
            data = codec.encode(to_artifact(model, width=target.width, meta=target.meta))
        over = 8 * len(data) - target.budget_bits
        if over <= 0:
            return data
        ranks = scores(weights, "effect")
        nonzeros = sum(int((factor != 0).sum()) for factor in factors.values())
        bits_each = max(1.0, 8 * len(data) / max(1, nonzeros))
        # Later rounds take more at once, so that the loop ends whatever the estimate is worth.
        drop = math.ceil(max(1.0, over / bits_each) * 1.5**attempt)
        keep = max(0, nonzeros - drop)
        masks = _nonzero_masks(ranks, list(factors.values()), keep)
        with torch.no_grad():
            for factor, mask in zip(factors.values(), masks, strict=True):
                factor.mul_(mask)
    raise AssertionError("the empty file is over the budget that was accepted")


def _nonzero_masks(ranks: list[Tensor], factors: list[nn.Parameter], keep: int) -> list[Tensor]:
    alive = [rank * (factor != 0) for rank, factor in zip(ranks, factors, strict=True)]
    return topk_masks(alive, keep)
