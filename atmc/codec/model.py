"""How positions and values of a factor are modelled: the part that decides a file's size.

Nothing else in the codec knows these probabilities; a better model replaces this file alone.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from atmc.codec.errors import AtmcFormatError
from atmc.codec.stream import PRECISION, TOTAL, Reader, Writer, categorical_bits, scale_frequencies

Int64Array = NDArray[np.int64]

_MAX_RUN = 4096
# Mantissa bits of the table of frequencies, by its two flag bits; -1: no table, all equally likely.
_TABLES = (-1, 0, 1, 3)


def _run_model(count: int, size: int) -> tuple[int, Int64Array]:
    """Longest run and the frequencies of the runs 0 .. longest, for count ones in size places.

    With every place a one independently, with p = count / size, run i < longest ("i zeros, then a
    one") has probability (1 - p)**i p; the last ("longest zeros") what remains. The longest is
    about 1/p, so that a run costs bits, where one place would cost less than the coder's rounding.
    """
    longest = min(1 << (size // count).bit_length() - 1, _MAX_RUN)
    miss = TOTAL - max(1, ((count << PRECISION) + size // 2) // size)
    left = [1 << 32]
    for _ in range(longest):
        left.append(left[-1] * miss >> PRECISION)
    weights = [a - b for a, b in itertools.pairwise(left)] + [left[-1]]
    return longest, scale_frequencies(np.array(weights, dtype=np.int64))


def _complement(indices: Int64Array, size: int) -> Int64Array:
    keep = np.ones(size, dtype=bool)
    keep[indices] = False
    return np.flatnonzero(keep).astype(np.int64, copy=False)


def write_subset(writer: Writer, indices: Int64Array, size: int) -> None:
    """Ascending distinct indices in [0, size), whose number the reader knows.

    The rarer of "in" and "not in" is written; what follows its last one is implied.
    """
    ones = _complement(indices, size) if 2 * indices.size > size else indices
    if ones.size == 0:
        return
    longest, frequencies = _run_model(int(ones.size), size)
    gaps = np.diff(ones, prepend=-1) - 1
    ends = np.cumsum(gaps // longest + 1)
    runs = np.full(int(ends[-1]), longest, dtype=np.int64)
    runs[ends - 1] = gaps % longest
    writer.categorical(runs, frequencies)


def read_subset(reader: Reader, count: int, size: int) -> Int64Array:
    """The indices that :func:`write_subset` wrote; 0 <= count <= size."""
    rare = min(count, size - count)
    found = [np.zeros(0, dtype=np.int64)]
    if rare:
        longest, frequencies = _run_model(rare, size)
    missing, place = rare, 0
    while missing:
        # Each run holds at most one of the missing, so that at least so many runs follow.
        runs = reader.categorical(min(missing, 1 << 20), frequencies)
        ends = place + np.cumsum(np.minimum(runs + 1, longest))
        place = int(ends[-1])
        if place > size:
            raise AtmcFormatError("damaged file: a position outside its tensor")
        hits = ends[runs < longest] - 1
        found.append(hits)
        missing -= hits.size
    ones = np.concatenate(found)
    return _complement(ones, size) if rare < count else ones


def encode_positions(writer: Writer, positions: Int64Array, elements: int) -> None:
    """The number of nonzeros and where they are."""
    writer.part = "positions"
    writer.bounded(int(positions.size), elements)
    write_subset(writer, positions, elements)


def decode_positions(reader: Reader, elements: int) -> Int64Array:
    """The inverse of :func:`encode_positions`."""
    return read_subset(reader, reader.bounded(elements), elements)


def encode_codes(writer: Writer, codes: Int64Array, levels: int) -> None:
    """A table of frequencies (under "codebooks"), then the codes, each in [0, levels)."""
    if levels == 1:
        return
    counts = np.bincount(codes, minlength=levels).astype(np.int64)
    choice, order, tokens, frequencies = _choose_table(counts)
    writer.part = "codebooks"
    writer.symbol(choice, len(_TABLES))
    mantissa = _TABLES[choice]
    if mantissa >= 0:
        writer.symbol(order, 4)
        writer.bounded(int(tokens[0]), int(_tokens(counts.sum(), mantissa)))
        for step in _zigzag(np.diff(tokens)):
            writer.golomb(int(step), order)
    writer.part = "values"
    if mantissa >= 0:
        writer.categorical(codes, frequencies)
    else:
        writer.uniform(codes, levels)


def decode_codes(reader: Reader, count: int, levels: int) -> Int64Array:
    """The inverse of :func:`encode_codes`."""
    if levels == 1:
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


def _choose_table(counts: Int64Array) -> tuple[int, int, Int64Array, Int64Array]:
    """(index in _TABLES, exp-Golomb order, tokens, frequencies) of the least total length.

    A table counts only where the values stay near their entropy: within 0.5 % for 10,000 values or
    more, else 2 % (16 bits more below 100). The finest table is always allowed.
    """
    total = int(counts.sum())
    used = counts[counts > 0]
    entropy = float((used * np.log2(total / used)).sum())
    limit = entropy * (1.005 if total >= 10_000 else 1.02) + (16 if total < 100 else 0)
    best: tuple[float, int, int, Int64Array, Int64Array] | None = None
    for choice in reversed(range(len(_TABLES))):
        mantissa = _TABLES[choice]
        if mantissa < 0:
            tokens, table, order = np.zeros(0, np.int64), 0, 0
            frequencies = scale_frequencies(np.ones(counts.size, dtype=np.int64))
        else:
            tokens = _tokens(counts, mantissa)
            steps = _zigzag(np.diff(tokens))
            table, order = min((int(_golomb_bits(steps, k).sum()), k) for k in range(4))
            frequencies = scale_frequencies(_weights(tokens, mantissa))
        values = categorical_bits(counts, frequencies)
        if best is None or (values <= limit and table + values < best[0]):
            best = table + values, choice, order, tokens, frequencies
    assert best is not None
    return best[1:]


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


def _golomb_bits(values: Int64Array, order: int) -> Int64Array:
    length = np.frexp((values + (1 << order)).astype(np.float64))[1].astype(np.int64) - 1
    return np.asarray(2 * length + 1 - order, dtype=np.int64)
