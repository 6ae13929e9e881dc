"""U V where U or V is nearly empty: the work of the few nonzeros, forward and back.

Under a budget most entries of both factors are zero, and the dense products of W = U V + C (one
forward, two back) would be most of what compression costs a step. Gradients stay dense: they
are what an entry that was cut comes back by.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

# Below this share of nonzeros a sparse product is faster than a dense one, the search for the
# nonzeros included; below _SMALL multiplications neither is worth a thought.
_DENSITY = 0.02
_SMALL = 2**22


def product(U: Tensor, V: Tensor) -> Tensor:
    """U V, for U (n, r) and V (r, m).

    Batches of matrices, small ones, other types than float32 and other devices than the CPU take
    the dense way, as does whatever is being compiled.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    fit = U.dim() == 2 and V.dim() == 2 and U.shape[1] == V.shape[0]
    large = fit and U.shape[0] * U.shape[1] * V.shape[1] >= _SMALL
    eligible = U.device.type == "cpu" and U.dtype == V.dtype == torch.float32
    if large and eligible and not torch.compiler.is_compiling():
        W: Tensor = _Product.apply(U, V, _sparse(U), _sparse(V))
        return W
    return U @ V


class _Product(torch.autograd.Function):
    """U V; where the few nonzeros of a factor are passed as well, those do the work."""

    @staticmethod
    def forward(U: Tensor, V: Tensor, few_U: _Rows | None, few_V: _Rows | None) -> Tensor:
        if few_U is not None:
            return few_U.times(V)
        if few_V is not None:
            return few_V.transposed().times(U.t()).t().contiguous()
        return U @ V

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        U, V, ctx.few_U, ctx.few_V = inputs
        ctx.save_for_backward(U, V)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (G,) = gradients
        U, V = ctx.saved_tensors
        dU = dV = None
        # A gradient of the gradient is wanted: that of the sparse way would miss the nonzeros.
        twice = torch.is_grad_enabled()
        if ctx.needs_input_grad[0]:
            few = None if twice else ctx.few_V
            dU = G @ V.t() if few is None else few.times(G.t()).t().contiguous()
        if ctx.needs_input_grad[1]:
            few = None if twice else ctx.few_U
            dV = U.t() @ G if few is None else few.transposed().times(G)
        return dU, dV, None, None


def _sparse(M: Tensor) -> _Rows | None:
    """The nonzeros of ``M``, where they are few."""
    M = M.detach()
    if int(torch.count_nonzero(M)) > _DENSITY * M.numel():
        return None
    rows, columns = M.nonzero(as_tuple=True)
    return _Rows(rows, columns, M[rows, columns], M.shape[0], M.shape[1])


class _Rows:
    """A sparse matrix of shape (height, width), its nonzeros in the order of their rows."""

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, height: int, width: int):
        self.rows, self.columns, self.values = rows, columns, values
        self.height, self.width = height, width

    def transposed(self) -> _Rows:
        """The transpose."""
        order = self.columns.argsort(stable=True)
        return _Rows(
            self.columns[order], self.rows[order], self.values[order], self.width, self.height
        )

    def times(self, D: Tensor) -> Tensor:
        """This matrix times a dense one (width, m): (height, m), contiguous."""
        if self.values.numel() == 0:
            return D.new_zeros(self.height, D.shape[1])
        starts = torch.bincount(self.rows, minlength=self.height).cumsum(0)
        pointers = torch.cat((starts.new_zeros(1), starts))
        _be_silent()
        compressed = torch.sparse_csr_tensor(
            pointers, self.columns, self.values, (self.height, self.width), check_invariants=False
        )
        result: Tensor = compressed @ D
        return result


@functools.cache
def _be_silent() -> None:
    """Use up torch's only warning that compressed rows are a beta, before a user sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
