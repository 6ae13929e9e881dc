"""Codes of a factor: a table of their frequencies, then the codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from atmc.codec.stream import (
    Reader,
    Writer,
    bounded_bits,
    categorical_bits,
    scale_frequencies,
    uniform_bits,
)
from atmc.errors import AtmcFormatError

Int64Array = NDArray[np.int64]

# Mantissa bits of the table of frequencies, by its two flag bits; -1: no table, all equally likely.
_TABLES = (-1, 0, 1, 3)


def encode_codes(writer: Writer, codes: Int64Array, levels: int, part: str | None = None) -> None:
    """A table of frequencies, then (under ``part``, if given) the codes, each in [0, levels)."""
    if levels <= 1 or codes.size == 0:
        return
    table = _best_table(codes, levels)
    writer.symbol(table.choice, len(_TABLES))
    mantissa = _TABLES[table.choice]
    if mantissa >= 0:
        writer.symbol(table.order, 4)
        writer.bounded(int(table.tokens[0]), int(_tokens(np.int64(codes.size), mantissa)))
        for step in _zigzag(np.diff(table.tokens)):
            writer.golomb(int(step), table.order)
    writer.part = part or writer.part
    if mantissa >= 0:
        writer.categorical(codes, table.frequencies)
    else:
        writer.uniform(codes, levels)


def codes_bits(codes: Int64Array, levels: int) -> float:
    """What :func:`encode_codes` takes, nearly."""
    return 2.0 + _best_table(codes, levels).bits if levels > 1 and codes.size else 0.0


def decode_codes(reader: Reader, count: int, levels: int) -> Int64Array:
    """The inverse of :func:`encode_codes`."""
    if levels <= 1 or count == 0:
        return np.zeros(count, dtype=np.int64)
    mantissa = _TABLES[reader.symbol(len(_TABLES))]
    if mantissa < 0:
        return reader.uniform(count, levels)
    order = reader.symbol(4)
    largest = int(_tokens(np.int64(count), mantissa))
    tokens = [reader.bounded(largest)]
    for _ in range(levels - 1):
        step = reader.golomb(order)
        token = tokens[-1] + (-(step + 1) // 2 if step % 2 else step // 2)
        if not 0 <= token <= largest:
            raise AtmcFormatError("damaged file: a frequency out of range")
        tokens.append(token)
    weights = _weights(np.array(tokens, dtype=np.int64), mantissa)
    if not weights.any():
        raise AtmcFormatError("damaged file: a table without frequencies")
    return reader.categorical(count, scale_frequencies(weights))


@dataclass(frozen=True)
class _Table:
    """A table of frequencies; ``bits``: its length and that of the codes."""

    bits: float
    choice: int
    order: int
    tokens: Int64Array
    frequencies: Int64Array


def _best_table(codes: Int64Array, levels: int) -> _Table:
    """The one of the least total length, of equal ones the plainest."""
    return _table_of(np.bincount(codes, minlength=levels).astype(np.int64).tobytes(), levels)


# Closing loops encode a model many times, and few of its tensors change between two of them.
@lru_cache(maxsize=1024)
def _table_of(counted: bytes, levels: int) -> _Table:
    """The best table for codes that were counted; ``counted`` holds the bytes of int64 counts."""
    counts = np.frombuffer(counted, dtype=np.int64)
    size = int(counts.sum())
    none = np.zeros(0, dtype=np.int64)
    best = _Table(uniform_bits(size, levels), 0, 0, none, none)
    for choice, mantissa in enumerate(_TABLES[1:], 1):
        tokens = _tokens(counts, mantissa)
        lengths = _golomb_bits(_zigzag(np.diff(tokens)), np.arange(4, dtype=np.int64)[:, None]).sum(
            axis=1
        )
        order = int(lengths.argmin())
        largest = int(_tokens(np.int64(size), mantissa))
        frequencies = scale_frequencies(_weights(tokens, mantissa))
        bits = 2.0 + bounded_bits(int(tokens[0]), largest) + int(lengths[order])
        bits += categorical_bits(counts, frequencies)
        if round(bits) < round(best.bits):
            best = _Table(bits, choice, order, tokens, frequencies)
    return best


def _tokens(counts: Int64Array | np.int64, mantissa: int) -> Int64Array:
    """Counts on a logarithmic grid: the nearest token, ties to the larger.

    Tokens below 2**mantissa stand for themselves; any other is an exponent and a mantissa.
    """
    counts = np.asarray(counts, dtype=np.int64)
    # Bit length less one; float64 is exact here, as counts stay below 2**53.
    exponent = np.frexp(counts.astype(np.float64))[1].astype(np.int64) - 1
    shift = np.maximum(exponent - mantissa, 0)
    low = (shift << mantissa) + (counts >> shift)
    middle = _weights(low, mantissa) + _weights(low + 1, mantissa)
    return np.asarray(low + (2 * counts >= middle), dtype=np.int64)


def _weights(tokens: Int64Array, mantissa: int) -> Int64Array:
    """The counts that tokens stand for."""
    shift = np.maximum((tokens >> mantissa) - 1, 0)
    return np.asarray((tokens - (shift << mantissa)) << shift, dtype=np.int64)


def _zigzag(steps: Int64Array) -> Int64Array:
    return np.where(steps < 0, -2 * steps - 1, 2 * steps)


def _golomb_bits(values: Int64Array, order: Int64Array) -> Int64Array:
    length = np.frexp((values + (1 << order)).astype(np.float64))[1].astype(np.int64) - 1
    return np.asarray(2 * length + 1 - order, dtype=np.int64)
