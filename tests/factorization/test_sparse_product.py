"""The sparse way to U V against the dense one, forward and back, at every density."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from atmc.factorization.sparse_product import _Product, _sparse, product

SHAPES = [(200, 150, 300), (150, 200, 200), (512, 128, 64)]
DENSITIES = [0.0, 0.001, 0.015, 0.5]


def _factors(shape: tuple[int, int, int], left: float, right: float) -> tuple[Tensor, Tensor]:
    n, r, m = shape
    generator = torch.Generator().manual_seed(n)
    U = torch.randn(n, r, generator=generator) * (torch.rand(n, r, generator=generator) < left)
    V = torch.randn(r, m, generator=generator) * (torch.rand(r, m, generator=generator) < right)
    return U, V


@pytest.mark.parametrize("right", DENSITIES)
@pytest.mark.parametrize("left", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_gradients_are_the_dense_ones(
    shape: tuple[int, int, int], left: float, right: float
) -> None:
    results = []
    for function in (product, torch.matmul):
        U, V = (factor.requires_grad_() for factor in _factors(shape, left, right))
        W = function(U, V)
        G = torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
        (W * G).sum().backward()
        assert W.is_contiguous()
        results.append((W, U.grad, V.grad))
    for ours, dense in zip(*results, strict=True):
        assert isinstance(ours, Tensor) and isinstance(dense, Tensor)
        torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-4)


def test_gradients_off_the_support_are_there() -> None:
    """An entry that is zero must feel its gradient, or nothing cut could come back."""
    U, V = (factor.requires_grad_() for factor in _factors(SHAPES[0], 0.0, 0.5))
    product(U, V).sum().backward()
    assert U.grad is not None and bool((U.grad != 0).all())


def test_the_sparse_way_is_taken_where_it_pays() -> None:
    few, many = _factors(SHAPES[0], 0.01, 0.5)
    assert _sparse(few) is not None and _sparse(many) is None
    W = product(few.requires_grad_(), many)
    assert type(W.grad_fn).__name__ == f"{_Product.__name__}Backward"


def test_only_asked_gradients_are_formed() -> None:
    U, V = _factors(SHAPES[0], 0.01, 0.01)
    V.requires_grad_()
    product(U, V).sum().backward()
    assert U.grad is None and V.grad is not None


def test_function_transforms_and_other_types_work() -> None:
    U, V = _factors(SHAPES[0], 0.01, 0.5)
    found = torch.func.grad(lambda u: product(u, V).square().sum())(U)
    expected = torch.func.grad(lambda u: (u @ V).square().sum())(U)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(product(U.double(), V.double()), U.double() @ V.double())
    batch = torch.stack([U, U])
    torch.testing.assert_close(product(batch, torch.stack([V, V])), batch @ V)


def test_no_warning_reaches_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product(*_factors(SHAPES[0], 0.01, 0.5))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError):
        product(torch.zeros(300, 200), torch.zeros(201, 300))


def test_a_gradient_of_the_gradient_is_the_dense_one() -> None:
    results = []
    for function in (product, torch.matmul):
        U, V = (factor.requires_grad_() for factor in _factors(SHAPES[0], 0.0005, 0.01))
        (first,) = torch.autograd.grad(function(U, V).square().sum(), V, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), (U, V)))
    for ours, dense in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-2)
