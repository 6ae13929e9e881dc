"""What a file says last: levels and codes of factors, the dense part, integers."""

from __future__ import annotations

import math

import numpy as np

from atmc.codec.codes import codes_bits, decode_codes, encode_codes
from atmc.codec.stream import BoolArray, Int64Array, Reader, Writer
from atmc.codec.subset import (
    read_counted_subset,
    read_subset,
    subset_bits,
    write_counted_subset,
    write_subset,
)
from atmc.codec.tensors import (
    KINDS,
    MAX_LEVELS,
    DenseTensor,
    Factor,
    FactorizedWeight,
    FloatSparseTensor,
    IntegerTensor,
    SparseTensor,
    Value,
    bfloat16_bits,
    bfloat16_value,
    code_range,
)
from atmc.errors import AtmcFormatError


def write_contents(writer: Writer, index: int, value: Value, live: BoolArray | None) -> None:
    """The values of one entry.

    Args:
        writer: of the stream.
        index: of the entry, to which the bits are charged.
        value: the entry.
        live: which values of the dense part may differ from zero, where that is known.
    """
    if isinstance(value, FactorizedWeight):
        for letter, factor in value.factors.items():
            writer.tensor = index, letter
            _write_factor(writer, factor)
        return
    writer.tensor, writer.part = (index, ""), "dense"
    if isinstance(value, DenseTensor):
        _write_dense(writer, value, live)
    else:
        _write_integers(writer, value)


def _write_factor(writer: Writer, factor: Factor) -> None:
    if isinstance(factor, FloatSparseTensor):
        writer.part = "values"
        words = factor.values.view(np.uint32)
        writer.uniform(words >> 16, 1 << 16)
        writer.uniform(words & 0xFFFF, 1 << 16)
    elif factor.nonzeros:
        writer.part = "codebooks"
        writer.symbol(factor.level_bits - 2, 15)
        writer.symbol(factor.exponent + 128, 256)
        # Levels are a subset of the 2**level_bits - 2 possible ones, coded as positions are.
        limit = (1 << factor.level_bits - 1) - 1
        writer.bounded(factor.levels.size - 1, min(MAX_LEVELS, 2 * limit) - 1)
        levels = factor.levels.astype(np.int64)
        write_subset(writer, levels + limit - (levels > 0), 2 * limit)
        encode_codes(writer, factor.codes, factor.levels.size, "values")


def read_factor(
    reader: Reader, shape: tuple[int, ...], positions: Int64Array, floats: bool
) -> Factor:
    """A factor with nonzeros at these positions."""
    count = positions.size
    if floats:
        high = reader.uniform(count, 1 << 16)
        words = high << 16 | reader.uniform(count, 1 << 16)
        return FloatSparseTensor(shape, positions, words.astype(np.uint32).view(np.float32))
    if not count:
        return SparseTensor(shape, positions, positions, np.zeros(0, np.int32), 0, 2)
    level_bits = reader.symbol(15) + 2
    exponent = reader.symbol(256) - 128
    limit = (1 << level_bits - 1) - 1
    size = reader.bounded(min(MAX_LEVELS, 2 * limit) - 1) + 1
    index = read_subset(reader, size, 2 * limit)
    levels = (index - limit + (index >= limit)).astype(np.int32)
    codes = decode_codes(reader, count, size)
    return SparseTensor(shape, positions, codes, levels, exponent, level_bits)


def _write_dense(writer: Writer, tensor: DenseTensor, live: BoolArray | None) -> None:
    """``live``: which values may differ from zero, where there is one for each output."""
    writer.symbol(tensor.width - 2, 8)
    writer.symbol(KINDS.index(tensor.kind), 2)
    if tensor.kind == "linear":
        writer.bits_of(bfloat16_bits(tensor.scale), 15)
    else:
        writer.bits_of(math.frexp(tensor.scale)[1] + 127, 8)
    low, high = code_range(tensor.kind, tensor.width)
    codes = tensor.codes
    if live is not None and not live.all():
        only_live = not bool(codes[~live].any())
        writer.symbol(only_live, 2)
        codes = codes[live] if only_live else codes
    places = np.flatnonzero(codes)
    nonzeros = codes[places]
    shifted = nonzeros - low - (nonzeros > 0)
    mask_bits = subset_bits(places.size, codes.size) + 2 * codes.size.bit_length()
    masked = mask_bits + codes_bits(shifted, high - low) < codes_bits(codes - low, high - low + 1)
    writer.symbol(masked, 2)
    if masked:
        write_counted_subset(writer, places, codes.size)
        encode_codes(writer, shifted, high - low)
    else:
        encode_codes(writer, codes - low, high - low + 1)


def read_dense(reader: Reader, shape: tuple[int, ...], live: BoolArray | None) -> DenseTensor:
    """A tensor of the dense part; ``live``: as in :func:`write_contents`."""
    width = reader.symbol(8) + 2
    kind = KINDS[reader.symbol(2)]
    if kind == "linear":
        scale = bfloat16_value(reader.bits_of(15))
    else:
        scale = math.ldexp(1.0, reader.bits_of(8) - 128)
    low, high = code_range(kind, width)
    codes = np.zeros(math.prod(shape), dtype=np.int64)
    places = np.arange(codes.size)
    if live is not None and not live.all() and reader.symbol(2):
        places = np.flatnonzero(live)
    if reader.symbol(2):
        places = places[read_counted_subset(reader, places.size)]
        nonzeros = decode_codes(reader, places.size, high - low) + low
        codes[places] = nonzeros + (nonzeros >= 0)
    else:
        codes[places] = decode_codes(reader, places.size, high - low + 1) + low
    return DenseTensor(shape, codes, scale, width, kind)


def _write_integers(writer: Writer, tensor: IntegerTensor) -> None:
    """The smallest value, then all above it in as many bits as the largest difference needs."""
    if tensor.values.size == 0:
        return
    low = int(tensor.values.min())
    width = (int(tensor.values.max()) - low).bit_length()
    writer.symbol(low < 0, 2)
    writer.golomb(abs(low), 0)
    writer.symbol(width, 65)
    # Differences reach 2**64 - 1: unsigned arithmetic wraps around to just that.
    above = tensor.values.view(np.uint64) - np.uint64(low % 2**64)
    for shift in range(0, width, 16):
        digits = above >> np.uint64(shift) & np.uint64(0xFFFF)
        writer.uniform(digits, 1 << min(16, width - shift))


def read_integers(reader: Reader, shape: tuple[int, ...]) -> IntegerTensor:
    """An integer tensor."""
    size = math.prod(shape)
    if size == 0:
        return IntegerTensor(shape, np.zeros(0, dtype=np.int64))
    negative = reader.symbol(2)
    low = reader.golomb(0) * (-1 if negative else 1)
    width = reader.symbol(65)
    above = np.zeros(size, dtype=np.uint64)
    for shift in range(0, width, 16):
        digits = reader.uniform(size, 1 << min(16, width - shift))
        above |= digits.astype(np.uint64) << np.uint64(shift)
    if not -(2**63) <= low <= 2**63 - 1 - int(above.max()):
        raise AtmcFormatError("damaged file: an integer over 64 bits")
    return IntegerTensor(shape, (above + np.uint64(low % 2**64)).view(np.int64))
