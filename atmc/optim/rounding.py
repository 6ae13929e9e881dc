"""Factors rounded to codebooks: b bits a value, fixed or chosen by rate and distortion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atmc.factorization.importance import scores
from atmc.factorization.layers import FactorizedWeight
from atmc.quantization.codebooks import quantized_codebook
from atmc.quantization.rates import FLOAT_BITS, RateDistortion, level_bits

# The squared error of quantization that chosen bits may leave, as a share of all.
DISTORTION = 0.003


def rounded(
    values: Tensor,
    bits: int,
    init: Tensor | None = None,
    *,
    rdo: bool = False,
    levels: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A tensor near by of at most 2^bits levels, and centroids to start the next search from.

    Zeros stay. With 32 bits there is no codebook: a copy, and None. With ``rdo`` it is not the
    nearest, but the best for the error and the length of the codes. ``levels``: fewer than 2^bits.
    """
    values = values.detach()
    if bits == FLOAT_BITS:
        return values.clone(), None
    positions = values.reshape(-1).nonzero()[:, 0]
    nonzeros = values.reshape(-1)[positions]
    most = 2**bits if levels is None else min(levels, 2**bits)
    book = quantized_codebook(nonzeros, most, level_bits(bits, len(nonzeros)), init, rdo=rdo)
    coded = values.new_zeros(values.shape)
    coded.view(-1)[positions] = book.levels.to(values)[book.codes]
    return coded, book.centroids


@torch.no_grad()
def rate_distortion(
    weights: Sequence[FactorizedWeight], factors: Mapping[str, Tensor], *, rdo: bool = False
) -> RateDistortion:
    """The error and the size of factors at any b; the error of a layer is relative to the layer.

    Args:
        weights: of the model; they weigh the errors of its factors.
        factors: the factors by name, zeros where they are (to be) pruned.
        rdo: how they will be rounded, as of :func:`rounded`.
    """
    sensitivity: dict[str, float] = {}
    for weight in weights:
        now = {name: factor for name, factor in weight.factors.items() if name in factors}
        out = {name: torch.empty_like(factor) for name, factor in now.items()}
        ranks = scores([weight], "effect", out)
        effects = {name: float(rank.square().sum()) for name, rank in ranks.items()}
        for name, total in effects.items():
            energy = float(now[name].square().sum())
            sensitivity[name] = total / energy / sum(effects.values()) if total > 0 else 0.0
    return RateDistortion.of(factors, sensitivity, rdo=rdo)
