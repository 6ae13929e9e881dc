"""What an entry of a factor is worth to W: scores by which the projection ranks entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from atmc.factorization.layers import FactorizedWeight

Importance = Literal["effect", "effect-per-bit", "magnitude"]

_VALUE_BITS = 4.0  # of a nonzero, its sign included


def magnitude(weight: FactorizedWeight, out: Sequence[Tensor]) -> None:
    """|θ| for U, V, C: the projection of the ATMC paper, the nearest k-sparse point."""
    for factor, scores in zip(weight.factors.values(), out, strict=True):
        torch.abs(factor.to(scores.dtype), out=scores)


def effect(weight: FactorizedWeight, out: Sequence[Tensor]) -> None:
    """By how much W changes, in Frobenius norm, when the entry goes to zero.

    |U_ij| · ‖V_j·‖, |V_jk| · ‖U_·j‖ and |C_ij|, with U or V taken whole, identity included:
    the same change of W is worth the same in whichever factor it is written.
    """
    U, V = weight.U.detach(), weight.V.detach()
    identity = weight.parametrization.identity
    columns = torch.linalg.vector_norm(U, dim=-2).square()
    rows = torch.linalg.vector_norm(V, dim=-1).square()
    if identity == "left":  # ‖e_j + U_·j‖² = ‖U_·j‖² + 2 U_jj + 1
        columns = columns + 2 * U.diagonal(dim1=-2, dim2=-1) + 1
    elif identity == "right":
        rows = rows + 2 * V.diagonal(dim1=-2, dim2=-1) + 1
    # The two extra terms can leave a rounding error below zero.
    columns, rows = columns.clamp(min=0).sqrt(), rows.clamp(min=0).sqrt()
    magnitude(weight, out)
    out[0].mul_(rows[..., None, :])
    out[1].mul_(columns[..., :, None])


def place_bits(factor: Tensor) -> tuple[Tensor, Tensor]:
    """What the place of a nonzero costs in the file, as (rows, columns) to be added up.

    The codec knows how full rows and columns are: in row i, column j of a matrix with n nonzeros,
    r_i and c_j of them there, about r_i c_j / n nonzeros are expected, and one costs
    -log2(r_i c_j / n) bits. One more in each keeps empty rows and columns in the game.

    Args:
        factor: (..., rows, columns); zeros are what is pruned.

    Returns:
        (..., rows, 1) and (..., 1, columns), in bits.
    """
    support = (factor != 0).to(torch.float32)
    rows = support.sum(-1, keepdim=True) + 1
    columns = support.sum(-2, keepdim=True) + 1
    total = rows.sum(-2, keepdim=True)
    return total.log2() - rows.log2(), -columns.log2()


def effect_per_bit(weight: FactorizedWeight, out: Sequence[Tensor]) -> None:
    """Effect over the square root of what an entry costs in the file: squared error for each bit.

    That is the order in which a budget of bits is best spent. Entries in full rows and columns are
    cheap, those in empty ones dear: so nonzeros gather.
    """
    effect(weight, out)
    for factor, scores in zip(weight.factors.values(), out, strict=True):
        rows, columns = place_bits(factor.detach())
        # No place is cheaper than nothing.
        scores.mul_((rows + columns).clamp_(min=0).add_(_VALUE_BITS).rsqrt_())


_SCORES: dict[Importance, Callable[[FactorizedWeight, Sequence[Tensor]], None]] = {
    "effect": effect,
    "effect-per-bit": effect_per_bit,
    "magnitude": magnitude,
}


@torch.no_grad()
def scores(
    weights: Sequence[FactorizedWeight],
    importance: Importance,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Scores of all U, V, C in the order of :func:`atmc.factorization.named_factors`.

    Args:
        weights: of a model.
        importance: "magnitude", "effect" or "effect-per-bit".
        out: tensors of the factors' shapes to write the scores into.
    """
    factors = [factor for weight in weights for factor in weight.factors.values()]
    ranks = [torch.empty_like(factor) for factor in factors] if out is None else list(out)
    for index, weight in enumerate(weights):
        _SCORES[importance](weight, ranks[3 * index : 3 * index + 3])
    return ranks
