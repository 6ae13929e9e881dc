"""Subsets of 0 .. size - 1 as runs: all of them equally likely, but for their number."""

from __future__ import annotations

import itertools
import math

import numpy as np

from atmc.codec.stream import PRECISION, TOTAL, Int64Array, Reader, Writer, scale_frequencies
from atmc.errors import AtmcFormatError

_MAX_RUN = 4096


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
    absent = np.ones(size, dtype=bool)
    absent[indices] = False
    return np.flatnonzero(absent).astype(np.int64, copy=False)


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
    missing = rare = min(count, size - count)
    ones = [np.zeros(0, dtype=np.int64)]
    if rare:
        longest, frequencies = _run_model(rare, size)
    place = 0
    while missing:
        # Each run holds at most one of the missing, so that at least so many runs follow.
        runs = reader.categorical(min(missing, 1 << 20), frequencies)
        ends = place + np.cumsum(np.minimum(runs + 1, longest))
        place = int(ends[-1])
        if place > size:
            raise AtmcFormatError("damaged file: a position outside its tensor")
        ones.append(ends[runs < longest] - 1)
        missing -= ones[-1].size
    indices = np.concatenate(ones)
    return _complement(indices, size) if rare < count else indices


def write_counted_subset(writer: Writer, indices: Int64Array, size: int) -> None:
    """The number of the indices, and :func:`write_subset`."""
    writer.bounded(indices.size, size)
    write_subset(writer, indices, size)


def read_counted_subset(reader: Reader, size: int) -> Int64Array:
    """The inverse of :func:`write_counted_subset`."""
    return read_subset(reader, reader.bounded(size), size)


def subset_bits(count: int, size: int) -> float:
    """About what :func:`write_subset` takes: the entropy of ``count`` of ``size``, all alike."""
    if count in (0, size):
        return 0.0
    p = count / size
    return -size * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
