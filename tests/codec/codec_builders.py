"""Artifacts for the tests: random ones for hypothesis, and a network as training leaves it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from atmc import codec
from atmc.codec.tensors import Factor


def gaussian_factor(
    rng: np.random.Generator, shape: tuple[int, ...], density: float, levels: int = 16
) -> codec.SparseTensor:
    """Random positions; Gaussian values rounded to the nearest of evenly spread quantiles."""
    positions = np.flatnonzero(rng.random(math.prod(shape)) < density)
    grid = np.unique(np.rint(40 * np.sort(rng.normal(size=4 * levels))[::4])).astype(np.int32)
    grid = grid[grid != 0]
    values = 40 * rng.normal(size=positions.size)
    codes = np.searchsorted((grid[1:] + grid[:-1]) / 2, values)
    return codec.SparseTensor(shape, positions, codes, grid, -9, 9)


def empty_factor(shape: tuple[int, ...]) -> codec.SparseTensor:
    """A factor of zeros."""
    return codec.SparseTensor(shape, [], [], [], 0, 2)


def lenet(rng: np.random.Generator, density: float) -> codec.Artifact:
    """A LeNet whose V are of the given density, U and C of a tenth, and its biases at 8 bits."""
    entries = []
    for shape in ((20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)):
        rows, rest = shape[0], math.prod(shape[1:])
        factors = (
            gaussian_factor(rng, (rows, rows), density / 10),
            gaussian_factor(rng, (rows, rest), density),
            gaussian_factor(rng, (rows, rest), density / 10),
        )
        weight = codec.FactorizedWeight(shape, 1, False, "left", *factors)
        entries.append(codec.Entry(None, weight))
        bias = rng.normal(size=rows).astype(np.float32)
        entries.append(codec.Entry(None, codec.quantize_dense(bias, 8)))
    return codec.Artifact({}, tuple(entries))


def uneven(rng: np.random.Generator, density: float) -> codec.Artifact:
    """A small net as pruning leaves it: uneven rows and columns, dead units that nothing reads."""
    entries: list[codec.Entry] = []
    live = np.ones(1, dtype=bool)
    for shape in ((16, 1, 5, 5), (24, 16, 5, 5), (90, 216), (10, 90)):
        rows, rest = shape[0], math.prod(shape[1:])
        by_row, by_column = np.exp(rng.normal(size=(rows, 1))), np.exp(rng.normal(size=rest))
        by_row[rng.random(rows) < 0.3] = 0
        by_column *= np.repeat(live, rest // live.size)
        shares = by_row * by_column
        mask = rng.random((rows, rest)) < np.minimum(shares / shares.mean() * density, 0.9)
        v = gaussian_factor(rng, (rows, rest), 1.0)
        chosen = mask.ravel()[v.positions]
        v = codec.SparseTensor(
            v.shape, v.positions[chosen], v.codes[chosen], v.levels, v.exponent, v.level_bits
        )
        u, c = empty_factor((rows, rows)), empty_factor((rows, rest))
        weight = codec.FactorizedWeight(shape, 1, False, "left", u, v, c)
        live = mask.any(axis=1)
        bias = np.where(live, rng.normal(size=rows), 0).astype(np.float32)
        entries.append(codec.Entry(None, weight))
        entries.append(codec.Entry(None, codec.quantize_dense(bias, 6)))
    return codec.Artifact({}, tuple(entries))


def ordered(artifact: codec.Artifact, ties: bool = True) -> codec.Artifact:
    """The same network with the units of the fullest rows first; nothing but V may be filled.

    ``ties``: equally full ones in the order of their columns too.
    """
    entries = []
    order: np.ndarray[Any, Any] = np.zeros(1, dtype=np.int64)  # of the units before
    weights = [e.value for e in artifact.entries if isinstance(e.value, codec.FactorizedWeight)]
    for entry in artifact.entries:
        value = entry.value
        if isinstance(value, codec.FactorizedWeight):
            v = value.v
            assert isinstance(v, codec.SparseTensor)
            codes = np.full(v.elements, -1)
            codes[v.positions] = v.codes
            codes = codes.reshape(len(codes) // v.shape[-1], order.size, -1)[:, order]
            order = np.arange(len(codes))
            if value is not weights[-1]:
                mask = (codes >= 0).reshape(len(codes), -1)
                keys = [(-row.sum(), *np.flatnonzero(row)) for row in mask]
                order = np.array(sorted(order, key=lambda i: keys[i] if ties else keys[i][0]))
            codes = codes[order].ravel()
            places = np.flatnonzero(codes >= 0)
            v = codec.SparseTensor(
                v.shape, places, codes[places], v.levels, v.exponent, v.level_bits
            )
            value = replace(value, v=v)
        elif isinstance(value, codec.DenseTensor):
            value = replace(value, codes=value.codes[order])
        entries.append(codec.Entry(entry.name, value))
    return codec.Artifact(artifact.meta, tuple(entries))


def two_layers(seed: int) -> codec.Artifact:
    """Rows and columns that are uneven or empty to varying degrees, after another such layer."""
    rng = np.random.default_rng(seed)
    entries: list[codec.Entry] = []
    live = np.ones(1, dtype=bool)
    outputs = int(rng.integers(1, 20))
    for inputs in (3, outputs * int(rng.choice([1, 1, 4])) + int(rng.choice([0, 0, 1]))):
        kernel = [(), (1,), (2, 2), (3, 3)][int(rng.integers(4))]
        rows = outputs if not entries else int(rng.integers(2, 60))
        rest = inputs * math.prod(kernel)
        shares = np.exp(rng.choice([0, 1, 2, 3]) * rng.normal(size=(rows, 1)))
        shares = shares * np.exp(rng.choice([0, 0.5, 1.5, 3]) * rng.normal(size=rest))
        shares *= rng.choice([0.02, 0.1, 0.5, 1]) / shares.mean()
        shares[rng.random(rows) < rng.choice([0, 0.3, 0.8])] = 0
        shares[:, rng.random(rest) < rng.choice([0, 0.3, 0.8])] = 0
        if rows < 40 and rest % live.size == 0:
            shares *= np.repeat(live, rest // live.size)
        mask = rng.random((rows, rest)) < np.minimum(shares, 0.95)
        if rng.random() < 0.6:  # the fullest rows first, some of them in the order that is free
            free = rng.random() < 0.7
            keys = [(-row.sum(), *(np.flatnonzero(row) if free else ())) for row in mask]
            mask = mask[sorted(range(rows), key=keys.__getitem__)]
        live = mask.any(axis=1)
        places = np.flatnonzero(mask)
        c = codec.SparseTensor((rows, rest), places, 0 * places, [1], 0, 2)
        u, v = empty_factor((rows, 0)), empty_factor((0, rest))
        shape = (rows, inputs, *kernel)
        weight = codec.FactorizedWeight(shape, 1, False, "none", u, v, c)
        entries.append(codec.Entry(None, weight))
    return codec.Artifact({}, tuple(entries))


@st.composite
def factors(draw: Any, shape: tuple[int, ...]) -> Factor:
    size = math.prod(shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.sampled_from([0, 1, size // 20, size // 2, size - 1, size]))
    count = min(max(count, 0), size)
    positions = np.sort(rng.choice(size, count, replace=False)) if size else np.zeros(0, np.int64)
    if draw(st.booleans()):
        values = rng.normal(size=count).astype(np.float32)
        values[values == 0] = 1.0
        return codec.FloatSparseTensor(shape, positions, values)
    level_bits = draw(st.integers(2, 16))
    limit = 2 ** (level_bits - 1) - 1
    most = min(256, 2 * limit)
    number = draw(st.sampled_from([1, 2, min(16, most), most]))
    levels = np.sort(rng.choice(2 * limit, number, replace=False)) - limit
    levels = (levels + (levels >= 0)).astype(np.int32)
    exponent = draw(st.integers(-128, 128 - int(np.abs(levels).max()).bit_length()))
    exponent = min(exponent, 127)
    skew = draw(st.sampled_from([0.2, 1.0, 5.0]))
    codes = (number * rng.random(count) ** skew).astype(np.int64)
    return codec.SparseTensor(shape, positions, codes, levels, exponent, level_bits)


@st.composite
def weights(draw: Any) -> codec.FactorizedWeight:
    groups = draw(st.integers(1, 3))
    rows, inputs = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    kernel = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    transposed = bool(kernel) and draw(st.booleans())
    shape = (groups * inputs, rows, *kernel) if transposed else (groups * rows, inputs, *kernel)
    rest = inputs * math.prod(kernel)
    identity = draw(st.sampled_from(["none", "left" if rows <= rest else "right"]))
    rank = min(rows, rest) if identity != "none" else draw(st.integers(0, min(rows, rest)))
    lead = (groups,) if groups > 1 else ()
    u = draw(factors((*lead, rows, rank)))
    v = draw(factors((*lead, rank, rest)))
    c = draw(factors((*lead, rows, rest)))
    return codec.FactorizedWeight(shape, groups, transposed, identity, u, v, c)


@st.composite
def dense_tensors(draw: Any) -> codec.DenseTensor:
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.normal(size=shape) * (rng.random(shape) < draw(st.sampled_from([0.1, 1.0])))
    if draw(st.booleans()):
        values = np.exp(4 * values)
    values = np.ldexp(np.asarray(values, np.float32), draw(st.integers(-90, 90)))
    return codec.quantize_dense(values, draw(st.integers(2, 8)))


@st.composite
def integer_tensors(draw: Any) -> codec.IntegerTensor:
    low = draw(st.sampled_from([-(2**63), -300, 0, 1, 2**62]))
    high = draw(st.sampled_from([low, low + 1, low + 70_000, 2**63 - 1]))
    values = draw(st.lists(st.integers(low, high), max_size=6))
    scalar = len(values) == 1 and draw(st.booleans())
    return codec.IntegerTensor(() if scalar else (len(values),), np.array(values, np.int64))


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(-1e9, 1e9)
    | st.text("aé☃"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("kü"), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def artifacts(draw: Any) -> codec.Artifact:
    values = draw(st.lists(weights() | dense_tensors() | integer_tensors(), max_size=4))
    named = draw(st.booleans())
    entries = tuple(
        codec.Entry(f"layer{i}.wäight" if named else None, v) for i, v in enumerate(values)
    )
    return codec.Artifact(draw(st.dictionaries(st.text("mö"), _json, max_size=2)), entries)
