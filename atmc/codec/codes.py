"""Codes of a factor: a table of their frequencies, then the codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from atmc.codec.stream import (
    Int64Array,
    Reader,
    Writer,
    bounded_bits,
    categorical_bits,
    scale_frequencies,
    uniform_bits,
)
from atmc.errors import AtmcFormatError

# Mantissa bits of the table of frequencies, by its two flag bits; -1: no table, all equally likely.
_TABLES = (-1, 0, 1, 3)


def encode_codes(writer: Writer, codes: Int64Array, levels: int, part: str | None = None) -> None:
    """A table of frequencies, then the codes, each in [0, levels).

    The codes are charged to ``part``, by default to that of the table.
    """
    if levels <= 1 or codes.size == 0:
        return
    table = _best_table(codes, levels)
    writer.symbol(table.choice, len(_TABLES))
    if table.choice == 0:
        writer.part = part or writer.part
        writer.uniform(codes, levels)
        return
    writer.symbol(table.order, 4)
    largest = int(_tokens(np.int64(codes.size), _TABLES[table.choice]))
    writer.bounded(int(table.tokens[0]), largest)
    for step in _zigzag(np.diff(table.tokens)):
        writer.golomb(int(step), table.order)
    writer.part = part or writer.part
    writer.categorical(codes, table.frequencies)


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
    return _table_of_counts(np.bincount(codes, minlength=levels).astype(np.int64).tobytes())


# Closing loops encode a model many times, and few of its tensors change between two of them.
@lru_cache(maxsize=1024)
def _table_of_counts(data: bytes) -> _Table:
    """The table of the least total length, of equal ones the plainest.

    ``data``: how often each code occurs, as the bytes of an int64 array.
    """
    counts = np.frombuffer(data, dtype=np.int64)
    size = int(counts.sum())
    none = np.zeros(0, dtype=np.int64)
    best = _Table(uniform_bits(size, counts.size), 0, 0, none, none)
    for choice, mantissa in enumerate(_TABLES[1:], 1):
        tokens = _tokens(counts, mantissa)
        steps = _zigzag(np.diff(tokens))
        lengths = _golomb_bits(steps, np.arange(4)[:, None]).sum(axis=1)
        order = int(lengths.argmin())
        largest = int(_tokens(np.int64(size), mantissa))
        frequencies = scale_frequencies(_weights(tokens, mantissa))
        bits = 2.0 + bounded_bits(int(tokens[0]), largest) + int(lengths[order])
        bits += categorical_bits(counts, frequencies)
        if round(bits) < round(best.bits):
            best = _Table(bits, choice, order, tokens, frequencies)
    return best


def _floor_log2(values: Int64Array) -> Int64Array:
    # float64 is exact here, as counts stay below 2**53.
    return np.asarray(np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1)


def _tokens(counts: Int64Array | np.int64, mantissa: int) -> Int64Array:
    """Counts on a logarithmic grid: the nearest token, ties to the larger.

    Tokens below 2**mantissa stand for themselves; any other is an exponent and a mantissa.
    """
    counts = np.asarray(counts, dtype=np.int64)
    shift = np.maximum(_floor_log2(counts) - mantissa, 0)
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
    return 2 * _floor_log2(values + (1 << order)) + 1 - order
