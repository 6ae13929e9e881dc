"""What an entry of a factor is worth to W: scores by which the projection ranks entries."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from atmc.factorization import FactorizedWeight

Importance = Literal["effect", "magnitude"]


def magnitude(weight: FactorizedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """|θ| for U, V, C: the projection of the ATMC paper, the nearest k-sparse point."""
    return weight.U.abs(), weight.V.abs(), weight.C.abs()


def effect(weight: FactorizedWeight) -> tuple[Tensor, Tensor, Tensor]:
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
    # In place: for large layers each pass over memory counts.
    scores_U, scores_V = U.abs().mul_(rows[..., None, :]), V.abs().mul_(columns[..., :, None])
    return scores_U, scores_V, weight.C.abs()


@torch.no_grad()
def scores(weights: list[FactorizedWeight], importance: Importance) -> list[Tensor]:
    """Scores of all U, V, C in the order of :func:`atmc.factorization.named_factors`."""
    function = {"effect": effect, "magnitude": magnitude}[importance]
    return [score for weight in weights for score in function(weight)]
