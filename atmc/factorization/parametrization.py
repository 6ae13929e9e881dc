"""W = U V + C as a torch parametrization, on any module.

The weight of a layer is seen as a matrix whose rows are the layer's outputs, shape
(out, in·kh·kw); with groups, one such matrix a group. Each matrix is written as

    W = U V + C        U: (out, r)   V: (r, rest)   C: (out, rest)

(Gui et al., NeurIPS 2019, eq. 2). With the identity start r = min(out, rest) and the
factor on the smaller side is stored as its deviation from the identity, so that it costs
nothing until it earns something: W = (I + U) V + C, or W = U (I + V) + C where rest < out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from atmc.factorization.sparse_product import product

Identity = Literal["left", "right", "none"]


# Of factors that are not trained: their version when they were last looked at, and what was seen.
_looked_at: MutableMapping[Tensor, tuple[int, bool]] = WeakIdKeyDictionary()


def adds_nothing(factor: Tensor) -> bool:
    """Whether a factor is not trained and holds zeros alone, so that no product needs it.

    Its values are looked at again only when they have been written to in place.
    """
    if factor.requires_grad or factor.is_meta or torch.compiler.is_compiling():
        return False
    if factor.is_inference():  # without a version
        return not bool(torch.count_nonzero(factor))
    version, zero = _looked_at.get(factor, (-1, False))
    if version != factor._version:
        zero = not bool(torch.count_nonzero(factor))
        _looked_at[factor] = factor._version, zero
    return zero


def look_again(factor: Tensor) -> None:
    """Let :func:`adds_nothing` look at the values: some optimizers write without a trace."""
    _looked_at.pop(factor, None)


@dataclass(frozen=True)
class Layout:
    """How a weight of ``shape`` is read as one matrix a group, whose rows are outputs.

    A transposed convolution stores (in, out/groups, kernel...); every other layer stores
    (out, in/groups, kernel...).
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def rows(self) -> int:
        """Outputs of one group."""
        return self.shape[1] if self.transposed else self.shape[0] // self.groups

    @property
    def rest(self) -> int:
        """Entries of one row."""
        return math.prod(self.shape) // max(1, self.groups * self.rows)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """``weight`` as (rows, rest), or (groups, rows, rest) with more than one group."""
        if self.transposed:
            weight = weight.reshape(self.groups, -1, *self.shape[1:]).transpose(1, 2)
        matrix = weight.reshape(self.groups, self.rows, self.rest)
        return matrix[0] if self.groups == 1 else matrix

    def to_weight(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`to_matrix`."""
        if not self.transposed:
            return matrix.reshape(self.shape)
        inputs = self.shape[0] // self.groups
        blocks = matrix.reshape(self.groups, self.rows, inputs, *self.shape[2:])
        return blocks.transpose(1, 2).reshape(self.shape)


class Factorization(nn.Module):
    """The parametrization (U, V, C) -> W of one weight.

    Args:
        layout: how the weight is read as a matrix.
        rank: None starts from the identity on the smaller side; a number starts from the
            truncated SVD of that rank, with C the residual.
        memory_format: of W.
        identity: False starts without one: C is W, and U V is empty, of full inner size.
    """

    def __init__(
        self,
        layout: Layout,
        rank: int | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        identity: bool = True,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.rank = rank
        self.memory_format = memory_format
        self.identity: Identity = "none"
        if rank is None and identity:
            self.identity = "left" if layout.rows <= layout.rest else "right"

    def matrix(self, U: Tensor, V: Tensor, C: Tensor) -> Tensor:
        """W as (rows, rest), or (groups, rows, rest); it may share memory with a factor."""
        carrier = {"left": V, "right": U, "none": None}[self.identity]
        terms = [] if carrier is None else [carrier]
        if not (adds_nothing(U) or adds_nothing(V)):
            terms.append(product(U, V))
        if not terms or not adds_nothing(C):
            terms.append(C)
        return functools.reduce(torch.add, terms)

    def forward(self, U: Tensor, V: Tensor, C: Tensor) -> Tensor:
        """W in the layer's own shape, formed in the factors' own precision under autocast too.

        It is not to be written to: where a factor is W as it stands, both share their memory.
        """
        kind = U.device.type if torch.amp.is_autocast_available(U.device.type) else "cpu"
        with torch.autocast(kind, enabled=False):
            W = self.layout.to_weight(self.matrix(U, V, C))
        if self.memory_format == torch.contiguous_format:
            return W.contiguous()
        # Not contiguous(): it leaves the strides of one input channel, which fit either format, as
        # they are, and the convolution takes the slower one for everything that follows.
        return W.clone(memory_format=self.memory_format)

    @torch.no_grad()
    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of ``W``: to the bit from the identity start, rounded from the SVD start."""
        M = self.layout.to_matrix(W).contiguous()
        square = min(self.layout.rows, self.layout.rest)
        if self.rank is None and self.identity == "none":
            empty = (
                M.new_zeros(*M.shape[:-1], square),
                M.new_zeros(*M.shape[:-2], square, M.shape[-1]),
            )
            return *empty, M.clone()
        if self.rank is None:
            deviation = M.new_zeros(*M.shape[:-2], square, square)
            U, V = (deviation, M.clone()) if self.identity == "left" else (M.clone(), deviation)
            return U, V, torch.zeros_like(M)
        rank = min(self.rank, square)
        left, singular, right = torch.linalg.svd(M.double(), full_matrices=False)
        root = singular[..., :rank].sqrt()
        U = (left[..., :, :rank] * root[..., None, :]).to(W.dtype)
        V = (root[..., :, None] * right[..., :rank, :]).to(W.dtype)
        return U.contiguous(), V.contiguous(), M - U @ V

    def extra_repr(self) -> str:
        """The layout, the rank and the side of the identity."""
        return f"{tuple(self.layout.shape)}, rank={self.rank}, identity={self.identity!r}"
