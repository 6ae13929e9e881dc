"""What an entry of a factor is worth to W: scores by which the projection ranks entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from atmc.factorization.layers import FactorizedWeight
from atmc.factorization.parametrization import adds_nothing

Importance = Literal["effect", "effect-per-bit", "magnitude", "saliency-per-bit"]
# Of a factor's name, √κ as (..., rows, 1) and (..., 1, columns); κ is how the loss is curved in it.
Roots = Callable[[str], tuple[Tensor, Tensor]]

_VALUE_BITS = 4.0  # of a nonzero, its sign included
# κ counts by this power: estimated under attack it is noisy, and what a network has not needed yet
# has little of it. Chosen among 0, 1/4, 1/2 and 1 (docs/RESULTS.md, "What was tried").
_TEMPER = 0.25


def magnitude(weight: FactorizedWeight, out: Mapping[str, Tensor]) -> None:
    """|θ| for U, V, C: the projection of the ATMC paper, the nearest k-sparse point."""
    for name, factor in weight.factors.items():
        if name in out:
            torch.abs(factor.to(out[name].dtype), out=out[name])


def effect(weight: FactorizedWeight, out: Mapping[str, Tensor]) -> None:
    """By how much W changes, in Frobenius norm, when the entry goes to zero.

    |U_ij| · ‖V_j·‖, |V_jk| · ‖U_·j‖ and |C_ij|, with U or V taken whole, identity included:
    the same change of W is worth the same in whichever factor it is written.
    """
    magnitude(weight, out)
    U, V = weight.U.detach(), weight.V.detach()
    left, right, _ = weight.factors
    identity = weight.parametrization.identity
    # Beside an empty deviation from the identity all norms are 1.
    if right in out and not (identity == "left" and adds_nothing(weight.U)):
        columns = torch.linalg.vector_norm(U, dim=-2).square()
        if identity == "left":  # ‖e_j + U_·j‖² = ‖U_·j‖² + 2 U_jj + 1
            columns = columns + 2 * U.diagonal(dim1=-2, dim2=-1) + 1
        # The two extra terms can leave a rounding error below zero.
        out[right].mul_(columns.clamp(min=0).sqrt()[..., :, None])
    if left in out and not (identity == "right" and adds_nothing(weight.V)):
        rows = torch.linalg.vector_norm(V, dim=-1).square()
        if identity == "right":
            rows = rows + 2 * V.diagonal(dim1=-2, dim2=-1) + 1
        out[left].mul_(rows.clamp(min=0).sqrt()[..., None, :])


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


def effect_per_bit(weight: FactorizedWeight, out: Mapping[str, Tensor]) -> None:
    """Effect over the square root of what an entry costs in the file: squared error for each bit.

    That is the order in which a budget of bits is best spent. Entries in full rows and columns are
    cheap, those in empty ones dear: so nonzeros gather.
    """
    effect(weight, out)
    _per_bit(weight, out)


def saliency_per_bit(
    weight: FactorizedWeight, out: Mapping[str, Tensor], roots: Roots | None
) -> None:
    """|θ| √κ over the square root of what an entry costs in the file: loss for each bit.

    κ is tempered: its fourth root takes its place, between that and the size of θ alone.

    Args:
        weight: whose entries are ranked.
        out: for the scores.
        roots: √κ; None, before any gradient is there, for the effect per bit.
    """
    if roots is None:
        effect_per_bit(weight, out)
        return
    magnitude(weight, out)
    for name in weight.factors:
        if name in out:
            rows, columns = roots(name)
            out[name].mul_(rows.pow(_TEMPER)).mul_(columns.pow(_TEMPER))
    _per_bit(weight, out)


def _per_bit(weight: FactorizedWeight, out: Mapping[str, Tensor]) -> None:
    for name, factor in weight.factors.items():
        if name in out:
            rows, columns = place_bits(factor.detach())
            # No place is cheaper than nothing.
            out[name].mul_((rows + columns).clamp_(min=0).add_(_VALUE_BITS).rsqrt_())


_SCORES: dict[Importance, Callable[[FactorizedWeight, Mapping[str, Tensor]], None]] = {
    "effect": effect,
    "effect-per-bit": effect_per_bit,
    "magnitude": magnitude,
}


@torch.no_grad()
def scores(
    weights: Sequence[FactorizedWeight],
    importance: Importance,
    out: Mapping[str, Tensor] | None = None,
    roots: Roots | None = None,
) -> dict[str, Tensor]:
    """Scores of the entries of factors, by the factors' names.

    Args:
        weights: of a model.
        importance: "magnitude", "effect", "effect-per-bit" or "saliency-per-bit".
        out: tensors to write the scores into, of the factors' shapes: of these factors alone;
            None for new tensors, of all factors.
        roots: √κ of the factors, for "saliency-per-bit".
    """
    if out is None:
        factors = {name: f for weight in weights for name, f in weight.factors.items()}
        out = {name: torch.empty_like(factor) for name, factor in factors.items()}
    for weight in weights:
        if importance == "saliency-per-bit":
            saliency_per_bit(weight, out, roots)
        else:
            _SCORES[importance](weight, out)
    return dict(out)
