"""What a file says first: what its tensors are, and where the nonzeros of factors lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from atmc.codec.contents import read_dense, read_factor, read_integers
from atmc.codec.densities import Layout
from atmc.codec.positions import DecodedPositions, PlannedPositions, decode_positions
from atmc.codec.stream import BoolArray, Int64Array, Reader, Writer
from atmc.codec.tensors import (
    IDENTITIES,
    DenseTensor,
    FactorizedWeight,
    FloatSparseTensor,
    IntegerTensor,
    Value,
    factor_shapes,
    matrix_shape,
)
from atmc.errors import AtmcFormatError

# Reads the contents of an entry of which the structure is known.
ReadContents: TypeAlias = Callable[[Reader], Value]

_KINDS = (FactorizedWeight, DenseTensor, IntegerTensor)
# Orders of the exp-Golomb codes: near the typical sizes of what they count.
_NDIM_ORDER, _DIM_ORDER = 2, 3


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
        live: for each entry, which of its values may differ from zero, where that is known.
        capacity: bits of other data that the orders of rows carry.
    """

    def __init__(self, values: Sequence[Value]) -> None:
        self._values = values
        self._positions: list[PlannedPositions] = []
        self.live: list[BoolArray | None] = []
        live: BoolArray | None = None
        for value in values:
            self.live.append(live if live is not None and value.shape == live.shape else None)
            if isinstance(value, FactorizedWeight):
                layouts = _layouts(
                    value.shape, value.groups, value.transposed, value.identity, value.rank, live
                )
                positions = [factor.positions for factor in value.factors.values()]
                self._positions += map(PlannedPositions, positions, layouts)
                live = _live_outputs(value.identity, layouts, positions)
        self.capacity = sum(planned.capacity for planned in self._positions)

    def write(self, writer: Writer, payload: int = 0, used: int = 0) -> None:
        """Write the structure.

        Args:
            writer: of the stream.
            payload: the number that the orders of rows carry.
            used: how many of its bits are needed; positions are charged so much less.
        """
        positions = iter(self._positions)
        after_weight = False
        for index, (value, live) in enumerate(zip(self._values, self.live, strict=True)):
            writer.symbol(_KINDS.index(type(value)), len(_KINDS))
            if isinstance(value, FactorizedWeight):
                _write_weight(writer, value)
                for letter, factor in value.factors.items():
                    writer.symbol(isinstance(factor, FloatSparseTensor), 2)
                    planned = next(positions)
                    writer.tensor = index, letter
                    planned.write(writer, payload & (1 << planned.capacity) - 1)
                    payload >>= planned.capacity
                    carried = min(planned.capacity, used)
                    used -= carried
                    writer.costs[writer.tensor, "positions"] -= carried
                    writer.tensor, writer.part = None, "header"
                after_weight = True
            else:
                if after_weight:
                    writer.symbol(live is not None, 2)
                if live is None:
                    _write_shape(writer, value.shape)


def read_structure(
    reader: Reader, count: int, max_elements: int
) -> tuple[list[ReadContents], int, int]:
    """The inverse of :meth:`Plan.write`, for ``count`` entries.

    Returns:
        What reads the contents of each entry, the number that the orders of rows carry, and the
        bits of that number.
    """
    budget = Budget(max_elements)
    live: BoolArray | None = None
    readers: list[ReadContents] = []
    payload = capacity = 0
    for _ in range(count):
        kind = _KINDS[reader.symbol(len(_KINDS))]
        if kind is FactorizedWeight:
            contents, orders, live = _read_weight(reader, budget, live)
            for order in orders:
                payload |= order.payload << capacity
                capacity += order.capacity
        else:
            known = live if live is not None and reader.symbol(2) else None
            shape = _read_shape(reader) if known is None else known.shape
            budget.spend(shape)
            if kind is DenseTensor:
                contents = partial(read_dense, shape=shape, live=known)
            else:
                contents = partial(read_integers, shape=shape)
        readers.append(contents)
    return readers, payload, capacity


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
        writer.symbol(weight.transposed, 2)
    writer.symbol(IDENTITIES.index(weight.identity), len(IDENTITIES))
    if weight.identity == "none":
        writer.bounded(weight.rank, min(weight.c.shape[-2:]))


def _read_weight(
    reader: Reader, budget: Budget, live: BoolArray | None
) -> tuple[ReadContents, list[DecodedPositions], BoolArray]:
    """What reads the contents, the positions in U, V and C, and which outputs are live."""
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
    layouts = _layouts(shape, groups, transposed, identity, rank, live)
    floats, orders = [], []
    for layout in layouts:
        floats.append(bool(reader.symbol(2)))
        orders.append(decode_positions(reader, layout))
    positions = [order.positions for order in orders]

    def contents(reader: Reader) -> FactorizedWeight:
        factors = map(partial(read_factor, reader), shapes, positions, floats)
        return FactorizedWeight(shape, groups, transposed, identity, *factors)

    return contents, orders, _live_outputs(identity, layouts, positions)


def _layouts(
    shape: tuple[int, ...],
    groups: int,
    transposed: bool,
    identity: str,
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


def _live_outputs(
    identity: str, layouts: Sequence[Layout], positions: Sequence[Int64Array]
) -> BoolArray:
    """The outputs of a weight whose row of W is not known to be zero."""
    u, v, c = zip(layouts, positions, strict=True)
    live = np.zeros(layouts[2].rows, dtype=bool)
    for layout, nonzeros in (u, c, v) if identity == "left" else (u, c):
        if nonzeros.size:
            live[nonzeros // layout.columns] = True
    return live
