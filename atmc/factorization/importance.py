"""What an entry of a factor is worth to W: scores by which the projection ranks entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from atmc.factorization.layers import FactorizedWeight
from atmc.factorization.parametrization import adds_nothing

Importance = Literal["effect", "magnitude", "saliency"]
# Of a factor's name, √κ as (..., rows, 1) and (..., 1, columns); κ is how the loss is curved in it.
Roots = Callable[[str], tuple[Tensor, Tensor]]

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


def saliency(weight: FactorizedWeight, out: Mapping[str, Tensor], roots: Roots | None) -> None:
    """|θ| √κ: the root of what the loss gains where the entry goes to zero.

    κ is tempered: its fourth root takes its place, between that and the size of θ alone.

    Args:
        weight: whose entries are ranked.
        out: for the scores.
        roots: √κ; None, before any gradient is there, for the effect.
    """
    if roots is None:
        effect(weight, out)
        return
    magnitude(weight, out)
    for name in weight.factors:
        if name in out:
            rows, columns = roots(name)
            out[name].mul_(rows.pow(_TEMPER)).mul_(columns.pow(_TEMPER))


_SCORES: dict[Importance, Callable[[FactorizedWeight, Mapping[str, Tensor]], None]] = {
    "effect": effect,
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
        importance: "magnitude", "effect" or "saliency".
        out: tensors to write the scores into, of the factors' shapes: of these factors alone;
            None for new tensors, of all factors.
        roots: √κ of the factors, for "saliency".
    """
    if out is None:
        factors = {name: f for weight in weights for name, f in weight.factors.items()}
        out = {name: torch.empty_like(factor) for name, factor in factors.items()}
    for weight in weights:
        if importance == "saliency":
            saliency(weight, out, roots)
        else:
            _SCORES[importance](weight, out)
    return dict(out)
