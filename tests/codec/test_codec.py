from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_builders import artifacts, empty_factor, gaussian_factor, lenet, ordered, uneven
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atmc import codec
from atmc.files import read, write


def relaxed(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def pack(*values: Any, meta: dict[str, Any] | None = None) -> codec.Artifact:
    return codec.Artifact(meta or {}, tuple(codec.Entry(None, v) for v in values))


def linear(factor: codec.SparseTensor | codec.FloatSparseTensor) -> codec.FactorizedWeight:
    """A weight that is ``factor`` alone (as C) at rank 0."""
    rows, rest = factor.shape
    u, v = empty_factor((rows, 0)), empty_factor((0, rest))
    return codec.FactorizedWeight((rows, rest), 1, False, "none", u, v, factor)


def check(artifact: codec.Artifact) -> bytes:
    data = codec.encode(artifact)
    assert codec.decode(data) == artifact
    assert codec.encode(artifact) == data
    sizes = codec.measure(artifact)
    assert sizes.file_bits == 8 * len(data) == sum(sizes.parts.values())
    for part in ("codebooks", "positions", "values", "dense"):
        assert sizes.parts[part] == sum(t.parts[part] for t in sizes.tensors)
    assert sizes.parts["header"] > 0
    return data


# ---- round trips


def test_empty_artifact_is_nine_bytes_at_most() -> None:
    assert len(check(codec.Artifact({}, ()))) <= 9


@relaxed(150)
@given(artifacts())
def test_round_trip(artifact: codec.Artifact) -> None:
    check(artifact)


@pytest.mark.parametrize("levels", [1, 2, 255, 256])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.6, 1.0])
def test_round_trip_levels(levels: int, density: float) -> None:
    rng = np.random.default_rng(levels)
    positions = np.flatnonzero(rng.random(40 * 50) < density)
    table = np.sort(rng.choice(np.arange(1, 400), levels, replace=False)).astype(np.int32)
    codes = rng.integers(0, levels, positions.size)
    factor = codec.SparseTensor((40, 50), positions, codes, table, -3, 10)
    check(pack(linear(factor)))
    expected = np.zeros(2000, np.float32)
    expected[positions] = table[codes] / np.float32(8)
    np.testing.assert_array_equal(factor.dense().ravel(), expected)


def test_round_trip_one_element_and_no_elements() -> None:
    one = codec.SparseTensor((1, 1), [0], [0], [-7], 2, 4)
    assert one.dense().item() == -28
    check(pack(linear(one)))
    check(pack(linear(empty_factor((0, 5))), linear(empty_factor((0, 0)))))
    check(pack(codec.quantize_dense(np.float32(3.5), 8), codec.IntegerTensor((), 7)))
    check(pack(codec.quantize_dense(np.zeros((0, 4)), 8), codec.IntegerTensor((2, 0), [])))


def test_round_trip_ten_million() -> None:
    factor = gaussian_factor(np.random.default_rng(0), (2500, 4000), 0.01)
    check(pack(linear(factor)))


@pytest.mark.parametrize("values", [[-(2**63), 2**63 - 1], [True, False], [2**63 - 5, 2**63 - 1]])
def test_round_trip_integers(values: list[int]) -> None:
    tensor = codec.IntegerTensor((2, 1), np.array(values))
    check(pack(tensor))
    assert tensor.dense().ravel().tolist() == values


def test_round_trip_extreme_values() -> None:
    floats = np.array([1e-45, -1e-45, 3.4028235e38, -1.5], np.float32)
    check(pack(linear(codec.FloatSparseTensor((2, 2), [0, 1, 2, 3], floats))))
    tiny = codec.SparseTensor((1, 2), [0, 1], [0, 1], [-1, 1], -128, 2)
    huge = codec.SparseTensor((1, 1), [0], [0], [32767], 113, 16)
    check(pack(linear(tiny), linear(huge)))
    assert tiny.dense().tolist() == [[-(2.0**-128), 2.0**-128]]
    assert huge.dense().item() == 32767 * 2.0**113


def test_names_and_metadata() -> None:
    value = codec.IntegerTensor((), 1)
    entries = (codec.Entry("a.b", value), codec.Entry("☃", value))
    meta = {"model": "lenet5", "kwargs": {"x": [1, 2.5, None, True]}, "é": "\n"}
    check(codec.Artifact(meta, entries))
    for other in ({"model": "lenet5"}, {"model": ""}, {"model": "é"}, {"model": 3}, {"a": "b"}, {}):
        check(codec.Artifact(other, entries))
    named = len(codec.encode(codec.Artifact({"model": "lenet5"}, entries)))
    assert named <= len(codec.encode(codec.Artifact({}, entries))) + 6
    shuffled = dict(reversed(list(meta.items())))
    assert codec.encode(codec.Artifact(shuffled, entries)) == codec.encode(
        codec.Artifact(meta, entries)
    )


@pytest.mark.parametrize(
    "meta", [{1: 2}, {"a": (1,)}, {"a": math.nan}, {"a": {1}}, {"a": "\ud800"}]
)
def test_metadata_that_json_would_change_is_refused(meta: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        codec.encode(codec.Artifact(meta, ()))


# ---- tensors


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("identity", ["none", "left", "right"])
def test_weight_is_the_sum_it_says(transposed: bool, groups: int, identity: str) -> None:
    rng = np.random.default_rng(1)
    rows, inputs, kernel = (3, 2, (2, 2)) if identity != "right" else (9, 2, (2, 1))
    rest = inputs * math.prod(kernel)
    rank = {"none": 2, "left": rows, "right": rest}[identity]
    lead = (groups,) if groups > 1 else ()
    u, v, c = (
        gaussian_factor(rng, (*lead, *s), 0.5) for s in ((rows, rank), (rank, rest), (rows, rest))
    )
    shape = (groups * inputs, rows, *kernel) if transposed else (groups * rows, inputs, *kernel)
    weight = codec.FactorizedWeight(shape, groups, transposed, identity, u, v, c)
    check(pack(weight))
    actual = weight.weight()
    assert actual.shape == shape and actual.dtype == np.float32
    for g in range(groups):
        gu, gv, gc = (f.dense().reshape(groups, *f.shape[-2:])[g] for f in (u, v, c))
        left = gu + np.eye(rows, rank) * (identity == "left")
        right = gv + np.eye(rank, rest) * (identity == "right")
        matrix = left @ right + gc
        for o in range(rows):
            for i in range(inputs):
                where = (g * inputs + i, o) if transposed else (g * rows + o, i)
                cell = matrix[o].reshape(inputs, *kernel)[i]
                np.testing.assert_allclose(actual[where], cell, rtol=1e-6, atol=1e-7)


def test_tensors_refuse_what_cannot_be_stored() -> None:
    good: dict[str, Any] = {
        "shape": (2, 3),
        "positions": [0, 4],
        "codes": [0, 1],
        "levels": [-1, 2],
        "exponent": 0,
        "level_bits": 4,
    }
    codec.SparseTensor(**good)
    for wrong in (
        {"shape": (2, -3)},
        {"positions": [4, 0]},
        {"positions": [0, 0]},
        {"positions": [0, 6]},
        {"positions": [-1, 4]},
        {"positions": [0.0, 4.0]},
        {"codes": [0, 2]},
        {"codes": [-1, 0]},
        {"codes": [0]},
        {"levels": [2, -1]},
        {"levels": [0, 2]},
        {"levels": [-8, 2]},
        {"levels": []},
        {"exponent": 128},
        {"exponent": 127},
        {"exponent": -129},
        {"level_bits": 1},
        {"level_bits": 17},
    ):
        with pytest.raises(ValueError):
            codec.SparseTensor(**{**good, **wrong})
    with pytest.raises(ValueError, match="finite"):
        codec.FloatSparseTensor((2,), [0], np.array([math.inf], np.float32))
    with pytest.raises(ValueError, match="not zero"):
        codec.FloatSparseTensor((2,), [0], np.array([0.0], np.float32))
    c = empty_factor((2, 3))
    with pytest.raises(ValueError, match="rank"):
        codec.FactorizedWeight(
            (2, 3), 1, False, "right", empty_factor((2, 3)), empty_factor((3, 3)), c
        )
    with pytest.raises(ValueError, match="shapes"):
        codec.FactorizedWeight(
            (2, 4), 1, False, "left", empty_factor((2, 2)), empty_factor((2, 3)), c
        )
    with pytest.raises(ValueError, match="name"):
        value = codec.IntegerTensor((), 1)
        codec.Artifact({}, (codec.Entry("a", value), codec.Entry(None, value)))


def test_equality_is_by_value() -> None:
    rng = np.random.default_rng(0)
    a, b = gaussian_factor(rng, (5, 5), 0.5), gaussian_factor(rng, (5, 5), 0.5)
    assert a == a and a != b and a != 3
    assert pack(linear(a)) != pack(linear(b))
    with pytest.raises(ValueError):
        a.codes[0] = 1


# ---- the dense part

# Numbers of each code for which a table of frequencies takes as much as it spares.
LITTLE_UNEVEN = [0, 3, 2, 2, 17, 10, 3, 3, 10, 11, 8, 3, 11, 10, 9]


@pytest.mark.parametrize("width", range(2, 9))
def test_quantize_dense_linear(width: int) -> None:
    values = np.random.default_rng(width).normal(size=300).astype(np.float32)
    tensor = codec.quantize_dense(values, width)
    check(pack(tensor))
    high = 2 ** (width - 1) - 1
    step = np.abs(values).max() / high
    plain = np.rint(values / step) * step
    error, plain_error = ((x - values) ** 2 for x in (tensor.dense(), plain))
    assert error.sum() <= plain_error.sum() * (1.05 if width > 5 else 1.0)
    if width > 5:
        assert np.abs(tensor.dense() - values).max() <= 0.51 * step
    assert codec.quantize_dense(values, width) == tensor


@pytest.mark.parametrize("width", [6, 7, 8])
def test_quantize_dense_log(width: int) -> None:
    values = np.exp(np.random.default_rng(width).uniform(-4, 4, 300)).astype(np.float32)
    tensor = codec.quantize_dense(values, width)
    assert tensor.kind == "log"
    check(pack(tensor))
    restored = tensor.dense()
    assert (restored > 0).all()
    assert (np.abs(restored / values - 1) <= 2.0 ** -(width - 3)).all()


@pytest.mark.parametrize("value", [1e-45, 1e-39, 3.4028235e38, -3.4028235e38, 0.0])
@pytest.mark.parametrize("width", range(2, 9))
def test_quantize_dense_at_the_ends_of_float32(value: float, width: int) -> None:
    for values in ([value], [abs(value), 1e-45], [abs(value), abs(value) / 100]):
        tensor = codec.quantize_dense(np.array(values, np.float32), width)
        check(pack(tensor))
        assert np.isfinite(tensor.dense()).all()


def test_quantize_dense_refuses_nan_and_bad_widths() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN"):
            codec.quantize_dense([1.0, bad], 8)
    for width in (1, 9):
        with pytest.raises(ValueError, match="width"):
            codec.quantize_dense([1.0, -2.0], width)


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("size", [0, 1, 7, 100, 5000, 100_000])
def test_dense_bits_never_exceed_their_bound(size: int, width: int) -> None:
    rng = np.random.default_rng(size)
    high = 2 ** (width - 1) - 1
    bound = codec.dense_fixed_bits(size, width)
    bare = 8 * len(codec.encode(pack(codec.DenseTensor((size,), [0] * size, 1.0, width, "linear"))))
    for zeros in (0.0, 0.1, 0.3, 0.99):
        for kind in ("linear", "log")[: 1 + (width >= 6)]:
            low, top = (-high, high) if kind == "linear" else (0, 2**width - 1)
            codes = rng.integers(low, top + 1, size) * (rng.random(size) >= zeros)
            for picked in (codes, np.full(size, top)):
                artifact = pack(codec.DenseTensor((size,), picked, 1.0, width, kind))
                sizes = codec.measure(artifact)
                assert sizes.parts["dense"] <= bound
                assert sizes.file_bits <= bare + bound


@pytest.mark.parametrize("count", [1, 10, 100])
def test_no_dense_part_is_larger_than_the_largest(count: int) -> None:
    """Codes so little uneven that a table of their frequencies just does not pay."""
    rng = np.random.default_rng(count)
    size, width = 102, 4
    zero = linear(empty_factor((size, 1)))

    def net(codes: np.ndarray[Any, Any]) -> codec.Artifact:
        tensor = codec.DenseTensor((size,), codes, 1.0, width, "linear")
        return pack(zero, *[tensor] * count)

    bound = codec.largest_bits(net(np.zeros(size, np.int64)), [width])[width]
    for _ in range(20 // count):
        shares = rng.dirichlet(np.full(15, 2.0))
        codes = rng.choice(np.arange(-7, 8), size, p=shares)
        assert 8 * len(codec.encode(net(codes))) <= bound
    codes = np.repeat(np.arange(-7, 8), LITTLE_UNEVEN)
    assert 8 * len(codec.encode(net(codes))) <= bound


def test_a_sparse_dense_part_is_cheap() -> None:
    codes = np.zeros(1000, np.int64)
    codes[[3, 500]] = 1
    tensor = codec.DenseTensor((1000,), codes, 1.0, 8, "linear")
    assert codec.measure(pack(tensor)).parts["dense"] < 20 + 60


# ---- sizes


def entropy(counts: np.ndarray[Any, Any]) -> float:
    used = counts[counts > 0]
    return float((used * np.log2(counts.sum() / used)).sum())


def code_draws(rng: np.random.Generator, n: int, levels: int) -> dict[str, Any]:
    gaussian = np.clip(np.rint(levels / 2 + levels / 6 * rng.normal(size=n)), 0, levels - 1)
    return {
        "gaussian": gaussian.astype(np.int64),
        "flat": rng.integers(0, levels, n),
        "geometric": np.minimum(rng.geometric(0.5, n) - 1, levels - 1),
        "skewed": (rng.random(n) < 0.01) * rng.integers(0, levels, n),
    }


@pytest.mark.parametrize("levels", [2, 16, 256])
@pytest.mark.parametrize("nonzeros", [5, 20, 100, 150, 300, 1000, 9999, 10_000, 100_000])
def test_entropy_bounds(nonzeros: int, levels: int) -> None:
    rng = np.random.default_rng(nonzeros + levels)
    for density in (0.001, 0.01, 0.3, 0.9):
        elements = int(nonzeros / density)
        if elements > 20_000_000:
            continue
        positions = np.sort(rng.choice(elements, nonzeros, replace=False))
        for name, codes in code_draws(rng, nonzeros, levels).items():
            factor = codec.SparseTensor(
                (1, elements), positions, codes, np.arange(1, levels + 1), 0, 10
            )
            parts = codec.measure(pack(linear(factor))).tensors[2].parts
            places = entropy(np.array([nonzeros, elements - nonzeros]))
            assert parts["positions"] <= 1.01 * places + 32, (density, name)
            # All together: what is known of the values stands in the table or in their lengths.
            ideal = places + entropy(np.bincount(codes))
            percent, slack = (1, 32) if nonzeros >= 10_000 else (3, 0)
            if nonzeros < 100 or ideal < 500:
                slack = 32
            whole = sum(parts.values())
            assert whole <= ideal * (1 + percent / 100) + slack + 60 + levels * 11, (density, name)
            assert parts["codebooks"] <= 60 + levels * 11, (density, name)
            # The levels of this codebook take 53 to 400 bits, and 30 what comes with them.
            book = entropy(np.array([levels, 1022 - levels])) + 30
            value_bits = parts["values"] + parts["codebooks"] - book
            assert value_bits <= nonzeros * math.log2(levels) * 1.001 + 8, (density, name)
            table = 64 + 5 * levels
            assert value_bits <= 1.01 * entropy(np.bincount(codes)) + table, (density, name)


def test_entropy_bound_at_the_file() -> None:
    """500 x 800, 1 % nonzero, 16 levels: the whole file against the entropy of what it holds."""
    rng = np.random.default_rng(0)
    factor = gaussian_factor(rng, (500, 800), 0.01)
    k = factor.nonzeros
    ideal = entropy(np.array([k, 400_000 - k])) + entropy(np.bincount(factor.codes))
    assert 8 * len(codec.encode(pack(linear(factor)))) < ideal + 64 + 320


@pytest.mark.parametrize("density", [0.01, 0.03, 0.1])
def test_uneven_rows_and_columns_pay(density: float) -> None:
    artifact = uneven(np.random.default_rng(0), density)
    sizes = codec.measure(artifact)
    ideal = sum(
        entropy(np.array([t.nonzeros, t.elements - t.nonzeros]))
        for t in sizes.tensors
        if t.nonzeros
    )
    assert sizes.parts["positions"] < 0.85 * ideal


@pytest.mark.parametrize("density", [0.01, 0.05])
def test_rows_in_order_cost_less(density: float) -> None:
    artifact = uneven(np.random.default_rng(0), density)
    sizes = [codec.measure(a) for a in (artifact, ordered(artifact, ties=False), ordered(artifact))]
    assert sizes[0].nonzeros == sizes[1].nonzeros == sizes[2].nonzeros
    assert sizes[1].parts["positions"] < 0.97 * sizes[0].parts["positions"]
    # Nearly log2 of the orders of equally full rows less.
    filled = np.bincount(artifact.entries[4].value.v.positions // 216, minlength=90)
    free = sum(math.lgamma(n + 1) / math.log(2) for n in np.bincount(filled[filled > 0]))
    assert sizes[2].file_bits < sizes[1].file_bits - 0.9 * free
    assert sum(sizes[2].parts.values()) == sizes[2].file_bits


def test_what_reads_a_dead_unit_takes_no_bits() -> None:
    """Dense rows in a few units: the next layer's columns and the biases are known by them."""
    rng = np.random.default_rng(0)
    units = np.sort(rng.choice(300, 20, replace=False))
    rows = np.zeros((300, 50), bool)
    rows[units] = True
    columns = np.zeros((10, 300), bool)
    columns[:, units] = True
    first, second = (
        linear(codec.SparseTensor(m.shape, places, 0 * places, [1], 0, 2))
        for m in (rows, columns)
        for places in [np.flatnonzero(m)]
    )
    bias = codec.DenseTensor((300,), np.where(rows.any(axis=1), 3, 0), 1.0, 4, "linear")
    sizes = codec.measure(pack(first, bias, second))
    subset = entropy(np.array([20, 280]))
    assert sizes.tensors[2].parts["positions"] < subset + 40
    assert sizes.tensors[3].bits < 23 + 20 * 4
    assert sizes.tensors[6].parts["positions"] < 20


def test_structure_of_lenet_takes_under_300_bits() -> None:
    for density in (0.0, 0.001, 0.05):
        sizes = codec.measure(lenet(np.random.default_rng(0), density))
        assert 64 <= sizes.parts["header"] < 300


def test_measure_rows() -> None:
    rng = np.random.default_rng(0)
    factor = gaussian_factor(rng, (30, 40), 0.3)
    floats = codec.FloatSparseTensor((30, 40), [3, 9], np.array([1.5, -2], np.float32))
    entries = (
        codec.Entry("conv1.weight", linear(factor)),
        codec.Entry("conv1.bias", codec.quantize_dense(np.ones(30), 8)),
        codec.Entry("fc.weight", linear(floats)),
    )
    sizes = codec.measure(codec.Artifact({}, entries))
    assert [t.name for t in sizes.tensors] == [
        *(f"conv1.weight.{x}" for x in "UVC"),
        "conv1.bias",
        *(f"fc.weight.{x}" for x in "UVC"),
    ]
    row = sizes.tensors[2]
    assert (row.shape, row.elements, row.nonzeros) == ((30, 40), 1200, factor.nonzeros)
    assert row.levels == factor.levels.size
    assert row.paper_bits == factor.nonzeros * math.ceil(math.log2(row.levels))
    assert sizes.tensors[6].paper_bits == 64 and sizes.tensors[6].parts["values"] == 64
    assert sizes.tensors[3].paper_bits == 0 and sizes.tensors[3].parts["dense"] > 0
    assert sizes.paper_bits == row.paper_bits + 64 and sizes.nonzeros == factor.nonzeros + 2
    assert row.bits == sum(row.parts.values())


# ---- hostile bytes


def small_file() -> bytes:
    rng = np.random.default_rng(5)
    floats = codec.FloatSparseTensor((4, 5), [2, 19], np.array([1.5, -2], np.float32))
    return codec.encode(
        codec.Artifact(
            {"model": "x"},
            (
                codec.Entry("w", linear(gaussian_factor(rng, (8, 9), 0.2, 4))),
                codec.Entry("f", linear(floats)),
                codec.Entry("b", codec.quantize_dense(rng.normal(size=4), 6)),
                codec.Entry("n", codec.IntegerTensor((2,), [-4, 70_000])),
            ),
        )
    )


def seal(head: bytes, stream: bytes) -> bytes:
    """The bytes with the checksum that belongs to them."""
    return head + zlib.crc32(head + stream).to_bytes(4, "little") + stream


def one_line_error(data: bytes) -> str:
    with pytest.raises(codec.AtmcFormatError) as caught:
        codec.decode(data)
    assert type(caught.value) is codec.AtmcFormatError
    assert str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_every_truncation_is_refused() -> None:
    data = small_file()
    for length in range(len(data)):
        one_line_error(data[:length])
    # With its own checksum a shorter file may well be another artifact's.
    for length in range(8, len(data)):
        survives(seal(data[:4], data[8:length]))


def test_every_bit_flip_is_refused() -> None:
    data = small_file()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        one_line_error(bytes(flipped))


def test_trailing_bytes_are_refused_even_with_their_checksum() -> None:
    data = small_file()
    for extra in (b"\0", b"\1", b"\xff", bytes(4), bytes(9), b"abcdefghi"):
        one_line_error(data + extra)
        one_line_error(seal(data[:4], data[8:] + extra))


def test_foreign_and_newer_files_are_named() -> None:
    assert one_line_error(b"PK\x03\x04" + bytes(100)) == "not an atmc file"
    assert "short" in one_line_error(b"")
    newer = "file is format version 3, this atmc reads up to 1: upgrade atmc"
    assert one_line_error(b"atm\x03" + bytes(20)) == newer
    assert "atmc 0.1" in one_line_error(b"atm\x00" + bytes(20))


def survives(data: bytes, most: int = 5_000) -> None:
    """Only AtmcFormatError, or an artifact within its limit that is worth these very bytes."""
    try:
        artifact = codec.decode(data, max_elements=most)
    except codec.AtmcFormatError as error:
        assert "\n" not in str(error)
        return
    total = 0
    for entry in artifact.entries:
        value = entry.value
        if isinstance(value, codec.FactorizedWeight):
            total += value.u.elements + value.v.elements + value.c.elements
            value.weight()
        else:
            total += value.dense().size
    assert total <= most
    assert codec.decode(codec.encode(artifact)) == artifact


@relaxed(300)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    survives(data)
    survives(seal(b"atm\x01", data))


@relaxed(400)
@given(artifacts(), st.data())
def test_damaged_streams_with_a_good_checksum(artifact: codec.Artifact, draw: Any) -> None:
    stream = bytearray(codec.encode(artifact)[8:])
    for _ in range(draw.draw(st.integers(1, 3))):
        if stream:
            index = draw.draw(st.integers(0, min(len(stream), 60) - 1))
            stream[index] = draw.draw(st.integers(0, 255))
    survives(seal(b"atm\x01", bytes(stream)))


@relaxed(150)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.3]), st.booleans(), st.data())
def test_damaged_streams_of_uneven_weights(
    seed: int, density: float, in_order: bool, draw: Any
) -> None:
    """Where masks, densities and dead units are, and damage may lie anywhere."""
    artifact = uneven(np.random.default_rng(seed), density)
    stream = bytearray(codec.encode(ordered(artifact) if in_order else artifact)[8:])
    for _ in range(draw.draw(st.integers(1, 3))):
        stream[draw.draw(st.integers(0, len(stream) - 1))] = draw.draw(st.integers(0, 255))
    survives(seal(b"atm\x01", bytes(stream)), most=100_000)


def test_every_single_byte_of_a_small_stream_with_a_good_checksum() -> None:
    data = small_file()
    rng = np.random.default_rng(0)
    for index in range(8, len(data)):
        for byte in rng.integers(0, 256, 12):
            survives(seal(data[:4], data[8:index] + bytes([byte]) + data[index + 1 :]))


def test_max_elements_is_over_the_whole_file() -> None:
    one = linear(empty_factor((10, 10)))
    data = codec.encode(pack(one, one, codec.IntegerTensor((5,), [0] * 5)))
    # U and V of rank 0 count as their other side.
    assert codec.decode(data, max_elements=2 * 120 + 5)
    with pytest.raises(codec.AtmcFormatError, match="the limit"):
        codec.decode(data, max_elements=2 * 120 + 4)


def test_a_huge_claim_allocates_nothing() -> None:
    shape = (2**20, 2**30)
    factor = codec.SparseTensor(shape, [5], [0], [1], 0, 2)
    data = codec.encode(pack(linear(factor)))
    assert len(data) < 50
    with pytest.raises(codec.AtmcFormatError, match="the limit"):
        codec.decode(data)


# ---- files and the package


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "model.atmc"
    write(path, b"old")
    write(str(path), b"new")
    assert read(path) == b"new"
    assert os.listdir(tmp_path) == ["model.atmc"]


def test_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.atmc"
    write(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                write(path, b"new")
        assert os.listdir(tmp_path) == ["model.atmc"] and read(path) == b"old"
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "absent" / "model.atmc", b"new")


def test_torch_is_not_imported() -> None:
    code = "import sys, json, atmc.codec; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert "atmc.codec.container" in loaded
    assert not [name for name in loaded if name.split(".")[0] in ("torch", "torchvision", "scipy")]


def test_a_path_is_not_the_bytes_of_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "model.atmc", "model.atmc"):
        with pytest.raises(TypeError, match=r"decode takes the bytes of a file: give those"):
            codec.decode(path)  # type: ignore[arg-type]
