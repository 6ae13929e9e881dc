import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from atmc.factorization.approximation import low_rank, refit, refit_left, sparse
from atmc.factorization.covariance import Covariance


def covariance(rest: int, groups: int = 1, seed: int = 0) -> Covariance:
    """Of inputs that vary together, as pixels do."""
    torch.manual_seed(seed)
    mixed = torch.randn(groups, rest, rest) + 2 * torch.ones(rest)
    matrix = mixed @ mixed.mT / rest + 0.05 * torch.eye(rest)
    return Covariance(matrix.diagonal(dim1=1, dim2=2).clone(), matrix, torch.zeros(groups, rest))


def least_squares(W: Tensor, support: Tensor, S: Covariance) -> Tensor:
    """The slow, obvious refit: each row by numpy, through the root of S."""
    C = torch.zeros_like(W)
    assert S.matrix is not None
    for group, row in itertools.product(range(W.shape[0]), range(W.shape[1])):
        root = np.linalg.cholesky(S.matrix[group].double().numpy()).T
        places = support[group, row].nonzero()[:, 0]
        solution, *_ = np.linalg.lstsq(
            root[:, places.numpy()], root @ W[group, row].double().numpy(), rcond=None
        )
        C[group, row, places] = torch.from_numpy(solution).float()
    return C


@pytest.mark.parametrize("gathered", [2**26, 30])
def test_refit_is_least_squares(gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atmc.factorization.approximation._GATHERED", gathered)
    S = covariance(12, groups=2)
    W = torch.randn(2, 7, 12)
    support = torch.rand_like(W) < 0.4
    support[0, 3] = False
    support[1, 2] = True
    C = refit(W, support, S)
    assert torch.allclose(C, least_squares(W, support, S), atol=1e-4)
    assert not C[~support].any()
    assert torch.allclose(C[1, 2], W[1, 2], atol=1e-4)


def test_refit_under_a_diagonal_leaves_the_values() -> None:
    S = Covariance(torch.rand(1, 6) + 0.1, None, torch.zeros(1, 6))
    W = torch.randn(1, 4, 6)
    support = torch.rand_like(W) < 0.5
    assert torch.equal(refit(W, support, S), W * support)


def test_sparse_is_near_the_best_support() -> None:
    errors = []
    for seed in range(20):
        S = covariance(8, seed=seed)
        W = torch.randn(1, 1, 8)
        supports = (set_to_true(t) for t in itertools.combinations(range(8), 3))
        best = min(S.error(W - refit(W, support, S)) for support in supports)
        first = (W.square() * S.diagonal).flatten().topk(3).indices
        naive = S.error(W - refit(W, set_to_true(tuple(first.tolist())), S))
        C = sparse(W, S, 3)
        assert int(torch.count_nonzero(C)) == 3
        errors.append((best, S.error(W - C), naive))
    best_sum, sparse_sum, naive_sum = (sum(column) for column in zip(*errors, strict=True))
    # Most of the way from the first support to the best of all.
    assert sparse_sum - best_sum < 0.5 * (naive_sum - best_sum)


def set_to_true(places: tuple[int, ...]) -> Tensor:
    support = torch.zeros(1, 1, 8, dtype=torch.bool)
    support[0, 0, list(places)] = True
    return support


def test_exchanges_improve_on_the_first_support_by_far() -> None:
    S = covariance(60)
    W = torch.randn(1, 20, 60)
    first = torch.zeros(W.numel(), dtype=torch.bool)
    first[(W.square() * S.diagonal).flatten().topk(150).indices] = True
    before = S.error(W - refit(W, first.view_as(W), S))
    assert S.error(W - sparse(W, S, 150)) < 0.8 * before


@pytest.mark.parametrize("k", [0, 1, 17, 71, 72, 100])
def test_sparse_has_at_most_k_nonzeros(k: int) -> None:
    W, S = torch.randn(2, 6, 6), covariance(6, groups=2)
    C = sparse(W, S, k)
    assert int(torch.count_nonzero(C)) <= k
    if k >= W.numel():
        assert torch.allclose(C, W, atol=1e-4)
    if k == 0:
        assert not C.any()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_low_rank_is_the_truncation_of_the_whitened_weight(shape: tuple[int, int]) -> None:
    rows, rest = shape
    S = covariance(rest, groups=2)
    W = torch.randn(2, rows, rest)
    assert S.matrix is not None
    singular = torch.linalg.svdvals(W.double() @ torch.linalg.cholesky(S.matrix.double()))
    for rank in (1, 3, 6):
        U, V = low_rank(W, S, rank)
        assert U.shape == (2, rows, rank) and V.shape == (2, rank, rest)
        expected = float(singular[:, rank:].square().sum())
        assert S.error(W - U @ V) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_left_factor_for_a_given_right_one() -> None:
    S = covariance(10)
    W, V = torch.randn(1, 6, 10), torch.randn(1, 3, 10)
    U = refit_left(W, V, S)
    error = S.error(W - U @ V)
    for _ in range(20):
        assert error <= S.error(W - (U + 0.01 * torch.randn_like(U)) @ V) * (1 + 1e-5)
