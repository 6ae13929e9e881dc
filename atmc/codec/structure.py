"""What a file says first: what its tensors are, and where the nonzeros of factors lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from atmc.codec.densities import Layout
from atmc.codec.positions import DecodedPositions, PlannedPositions, decode_positions
from atmc.codec.stream import Reader, Writer
from atmc.codec.tensors import (
    IDENTITIES,
    DenseTensor,
    FactorizedWeight,
    FloatSparseTensor,
    IntegerTensor,
    Support,
    Value,
    factor_shapes,
    matrix_shape,
)
from atmc.errors import AtmcFormatError

BoolArray = NDArray[np.bool_]
KINDS_OF_ENTRIES = (FactorizedWeight, DenseTensor, IntegerTensor)
# Orders of the exp-Golomb codes: near the usual sizes of what they count.
_NDIM_ORDER, _DIM_ORDER = 2, 3


@dataclass(frozen=True)
class WeightStructure:
    """A weight without the values of its factors."""

    shape: tuple[int, ...]
    groups: int
    transposed: bool
    identity: str
    floats: tuple[bool, ...]
    factors: tuple[Support, ...]
    orders: tuple[DecodedPositions, ...]


@dataclass(frozen=True)
class TensorStructure:
    """A tensor that is not factorized; ``live``: which of its values may differ from zero."""

    kind: type[Value]
    shape: tuple[int, ...]
    live: BoolArray | None


class Budget:
    """Refuses shapes before anything of their size is allocated."""

    def __init__(self, max_elements: int) -> None:
        self._max, self._left = max_elements, max_elements

    def spend(self, shape: tuple[int, ...]) -> None:
        """Count a tensor of this shape; ``AtmcFormatError`` where that is too much."""
        # An empty dimension does not excuse the others: numpy refuses such shapes too.
        self._left -= math.prod(max(dim, 1) for dim in shape)
        if self._left < 0:
            raise AtmcFormatError(
                f"file holds over {self._max} elements, the limit here: it is of a larger model"
            )


class Plan:
    """How the structure of entries is written.

    Attributes:
        lives: of each entry, as in :class:`TensorStructure`.
        spare: bits of something else that orders of rows tell.
    """

    def __init__(self, values: Sequence[Value]) -> None:
        self._values = values
        self._positions: list[PlannedPositions] = []
        self.lives: list[BoolArray | None] = []
        live: BoolArray | None = None
        for value in values:
            self.lives.append(live if live is not None and value.shape == live.shape else None)
            if isinstance(value, FactorizedWeight):
                rank = value.rank
                layouts = _layouts(
                    value.shape, value.groups, value.identity, value.transposed, rank, live
                )
                factors = (value.u, value.v, value.c)
                for factor, layout in zip(factors, layouts, strict=True):
                    self._positions.append(PlannedPositions(factor.positions, layout))
                live = live_outputs(value.identity, factors, value.out)
        self.spare = sum(each.spare for each in self._positions)

    def write(self, writer: Writer, number: int, used: int) -> None:
        """Write it; orders tell ``number``, of which the first ``used`` bits are worth a thing."""
        positions = iter(self._positions)
        weights = row = 0
        for value, live in zip(self._values, self.lives, strict=True):
            writer.symbol(KINDS_OF_ENTRIES.index(type(value)), len(KINDS_OF_ENTRIES))
            if isinstance(value, FactorizedWeight):
                _write_weight(writer, value)
                for factor in (value.u, value.v, value.c):
                    planned = next(positions)
                    writer.row = row
                    writer.symbol(int(isinstance(factor, FloatSparseTensor)), 2)
                    planned.write(writer, number & (1 << planned.spare) - 1)
                    number >>= planned.spare
                    told = min(planned.spare, used)
                    used -= told
                    writer.costs[row, "positions"] -= told
                    writer.row, writer.part = -1, "header"
                    row += 1
                weights += 1
            else:
                if weights:
                    writer.symbol(int(live is not None), 2)
                if live is None:
                    _write_shape(writer, value.shape)
                row += 1


def read_structure(
    reader: Reader, count: int, budget: Budget
) -> list[WeightStructure | TensorStructure]:
    """The inverse of :meth:`Plan.write`, for ``count`` entries."""
    live: BoolArray | None = None
    found: list[WeightStructure | TensorStructure] = []
    while len(found) < count:
        kind = KINDS_OF_ENTRIES[reader.symbol(len(KINDS_OF_ENTRIES))]
        if kind is FactorizedWeight:
            weight = _read_weight(reader, budget, live)
            rows = math.prod(weight.factors[2].shape[:-1])
            live = live_outputs(weight.identity, weight.factors, rows)
            found.append(weight)
        else:
            repeat = live is not None and reader.symbol(2)
            shape = live.shape if repeat and live is not None else _read_shape(reader)
            budget.spend(shape)
            found.append(TensorStructure(kind, shape, live if repeat else None))
    return found


def live_outputs(identity: str, factors: Sequence[Support], out: int) -> BoolArray:
    """The outputs of a weight, ``out`` of them, whose row of W is not known to be zero."""
    u, v, c = factors
    live = np.zeros(out, dtype=bool)
    for factor in (u, c, *((v,) if identity == "left" else ())):
        if factor.nonzeros:
            live[factor.positions // factor.shape[-1]] = True
    return live


def _write_shape(writer: Writer, shape: tuple[int, ...]) -> None:
    writer.golomb(len(shape), _NDIM_ORDER)
    for dim in shape:
        writer.golomb(dim, _DIM_ORDER)


def _read_shape(reader: Reader) -> tuple[int, ...]:
    ndim = reader.golomb(_NDIM_ORDER)
    if ndim > 32:
        raise AtmcFormatError(f"damaged file: a tensor of {ndim} dimensions")
    return tuple(reader.golomb(_DIM_ORDER) for _ in range(ndim))


def _write_weight(writer: Writer, weight: FactorizedWeight) -> None:
    _write_shape(writer, weight.shape)
    writer.golomb(weight.groups - 1, 0)
    if len(weight.shape) > 2:
        writer.symbol(int(weight.transposed), 2)
    writer.symbol(IDENTITIES.index(weight.identity), len(IDENTITIES))
    if weight.identity == "none":
        writer.bounded(weight.rank, min(weight.c.shape[-2:]))


def _read_weight(reader: Reader, budget: Budget, live: BoolArray | None) -> WeightStructure:
    shape = _read_shape(reader)
    budget.spend(shape)
    groups = reader.golomb(0) + 1
    transposed = len(shape) > 2 and bool(reader.symbol(2))
    rows, rest = matrix_shape(shape, groups, transposed)
    identity = IDENTITIES[reader.symbol(len(IDENTITIES))]
    if identity == "none":
        rank = reader.bounded(min(rows, rest))
    else:
        rank = rows if identity == "left" else rest
        if rank > min(rows, rest):
            raise AtmcFormatError("damaged file: the identity on the larger side")
    shapes = factor_shapes(rows, rest, groups, rank)
    budget.spend(shapes[0])
    budget.spend(shapes[1])
    layouts = _layouts(shape, groups, identity, transposed, rank, live)
    floats, orders = [], []
    for layout in layouts:
        floats.append(bool(reader.symbol(2)))
        orders.append(decode_positions(reader, layout))
    factors = tuple(Support(s, o.positions) for s, o in zip(shapes, orders, strict=True))
    return WeightStructure(
        shape, groups, transposed, identity, tuple(floats), factors, tuple(orders)
    )


def _layouts(
    shape: tuple[int, ...],
    groups: int,
    identity: str,
    transposed: bool,
    rank: int,
    live: BoolArray | None,
) -> tuple[Layout, Layout, Layout]:
    """How U, V and C lie; ``live``: which outputs of the weight before are not always zero."""
    rows, rest = matrix_shape(shape, groups, transposed)
    inputs = shape[0] // groups if transposed else shape[1]
    block = rest // inputs if inputs else 1
    spatial = len(shape) > 2
    columns = None
    if live is not None and groups == 1 and live.size and inputs and inputs % live.size == 0:
        # A linear layer behind a flattened map reads several places of a channel.
        spatial = spatial and inputs == live.size
        block = rest // live.size
        if not live.all():
            columns = np.repeat(live, block)
    outer = Layout(groups * rows, rest, block, spatial, columns)
    u = outer if identity == "right" else Layout(groups * rows, rank)
    return u, replace(outer, rows=groups * rank), outer
