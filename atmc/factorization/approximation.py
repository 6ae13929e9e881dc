"""A weight by a sparse matrix, or one of low rank, that changes the layer's output the least.

Errors are those of :class:`~atmc.factorization.covariance.Covariance`: Σ d S d' over the rows d of
W - W'. All weights here have a leading axis of groups, (groups, rows, rest).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atmc.factorization.covariance import Covariance

_ROUNDS = 10  # of exchanges
_FIRST, _LAST = 0.4, 0.03  # shares of the entries that a round may exchange
_GATHERED = 2**26  # numbers in the systems that are solved at once
_ALIKE, _FEW = 0.8, 16  # rows of so many entries, next to the longest, are solved with it


def refit(W: Tensor, support: Tensor, covariance: Covariance) -> Tensor:
    """The matrix on a support that is nearest to W in the output: least squares, row by row.

    Args:
        W: (groups, rows, rest).
        support: bool, of the same shape.
        covariance: of the inputs.
    """
    S = covariance.matrix
    if S is None:  # inputs do not make up for one another
        return W * support
    rows = W.shape[1]
    flat, masks = W.flatten(0, 1), support.flatten(0, 1)
    wanted = covariance.times(W).flatten(0, 1)
    C = torch.zeros_like(flat)
    counts, order = masks.sum(1).cpu().sort(descending=True)
    start, filled = 0, int(torch.count_nonzero(counts))
    while start < filled:
        width = int(counts[start])
        alike = int((counts >= min(_ALIKE * width, width - _FEW)).sum())
        stop = min(filled, alike, start + max(1, _GATHERED // width**2))
        part = order[start:stop].to(W.device)
        places = masks[part].byte().topk(width, sorted=False).indices
        real = masks[part].gather(1, places)
        systems = S[(part // rows)[:, None, None], places[:, :, None], places[:, None, :]]
        # Rows of fewer entries are filled up with equations x = 0.
        systems *= real[:, :, None] & real[:, None, :]
        systems.diagonal(dim1=1, dim2=2).add_(~real)
        right = wanted[part].gather(1, places) * real
        factor = torch.linalg.cholesky_ex(systems).L
        solution = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        C[part] = C[part].scatter(1, places, torch.nan_to_num(solution) * real)
        start = stop
    return C.view_as(W)


def sparse(W: Tensor, covariance: Covariance, k: int, *, rounds: int = _ROUNDS) -> Tensor:
    """A matrix of at most ``k`` nonzeros near to W in the output.

    The support starts with the entries w that change the output the most by themselves, w² S_jj.
    Then entries are exchanged, fewer from round to round: those of C of least c² S_jj go, the
    others are refitted, and as many come back of most g² / S_jj, what an entry gains by itself,
    where g is of (W - C) S. Where inputs vary together, such as pixels next to one another, the
    result is several times better than the first support.

    Args:
        W: (groups, rows, rest).
        covariance: of the inputs.
        k: at least 0.
        rounds: of exchanges.
    """
    diagonal = covariance.diagonal[:, None]
    k = min(k, W.numel())
    first = W.square() * diagonal
    chosen = torch.zeros(W.numel(), dtype=torch.bool, device=W.device)
    chosen[first.flatten().topk(k).indices] = True
    wanted = covariance.times(W)
    C = refit(W, chosen.view(W.shape), covariance)
    if covariance.matrix is None or k in (0, W.numel()):
        return C
    for index in range(rounds):
        share = _FIRST * (_LAST / _FIRST) ** (index / max(1, rounds - 1))
        n = min(max(1, int(share * k)), k, W.numel() - k)
        loss = (C.square() * diagonal).flatten().masked_fill(~chosen, math.inf)
        chosen[loss.topk(n, largest=False).indices] = False
        C = refit(W, chosen.view(W.shape), covariance)
        gain = ((wanted - covariance.times(C)).square() / diagonal).flatten()
        chosen[gain.masked_fill(chosen, -1).topk(n).indices] = True
        C = refit(W, chosen.view(W.shape), covariance)
    return C


def low_rank(W: Tensor, covariance: Covariance, rank: int) -> tuple[Tensor, Tensor]:
    """U (groups, rows, rank) and V (groups, rank, rest) with U V nearest to W in the output.

    U V = E E' W, E being the first eigenvectors of W S W'. Both factors take the root of what a
    direction is worth, so that one step of a codebook is about as coarse for all of them.
    """
    values, vectors = spectrum(W, covariance)
    roots = values[:, :rank].sqrt().sqrt().float()
    # Directions that say nothing of the output would get a tiny U and a huge V.
    roots = torch.maximum(roots, 1e-3 * roots[:, :1]).clamp(min=1e-7)
    E = vectors[:, :, :rank].float()
    return E * roots[:, None, :], (E.mT @ W) / roots[:, :, None]


def spectrum(W: Tensor, covariance: Covariance) -> tuple[Tensor, Tensor]:
    """Eigenvalues (groups, rows), descending, and eigenvectors of W S W', in float64."""
    product = covariance.times(W).double() @ W.double().mT
    values, vectors = torch.linalg.eigh((product + product.mT) / 2)
    return values.flip(1).clamp(min=0), vectors.flip(2)


def refit_left(W: Tensor, V: Tensor, covariance: Covariance) -> Tensor:
    """U with U V nearest to W in the output, for a given V (groups, rank, rest)."""
    product = covariance.times(V)
    system = (product @ V.mT).double()
    system.diagonal(dim1=1, dim2=2).add_(1e-6 * system.diagonal(dim1=1, dim2=2).mean() + 1e-30)
    right = (product @ W.mT).double()
    solution: Tensor = torch.linalg.solve(system, right).mT
    return solution.to(W.dtype).contiguous()
