"""Many numbers as few weighted points, by counting instead of sorting.

A float32 read as an integer is ordered as the number is, and without its last bits it names a
bucket of numbers that agree to a thousandth. Millions of values fall into some ten thousands of
buckets: enough for a codebook, whose levels are tens of buckets apart, at a fraction of the time
that sorting takes.
"""

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

_DROPPED = 13  # bits of a pattern that a bucket leaves open: 10 of the mantissa remain
_BLOCK = 2**16  # values that are worked on at a time, so that they stay in the cache


def _ordered(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Integers ordered as the values are; it is its inverse, up to the type."""
    return _flip(values.view(np.int32))


def _flip(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    flipped: npt.NDArray[np.int32] = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return flipped


class Buckets:
    """Values by bucket.

    Args:
        values: finite float32 numbers, one-dimensional, at least one.
    """

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self.values = values
        self._first = int(_ordered(values.min(keepdims=True))[0]) >> _DROPPED
        self._index = np.empty(values.size, dtype=np.int32)
        for start in range(0, values.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            np.right_shift(_ordered(values[block]), _DROPPED, out=self._index[block])
            self._index[block] -= np.int32(self._first)
        counts = np.bincount(self._index)
        sums = np.bincount(self._index, weights=values)
        self._filled = np.flatnonzero(counts)
        self.counts: _Ints = counts[self._filled]
        self.points: _Floats = sums[self._filled] / self.counts
        patterns = ((self._filled + self._first) << _DROPPED).astype(np.int32)
        self._lowest = _flip(patterns).view(np.float32)
        self._highest = _flip(patterns | np.int32((1 << _DROPPED) - 1)).view(np.float32)

    def spread(self) -> float:
        """About the squared error of the points as levels: values even within each bucket."""
        width = self._highest.astype(np.float64) - self._lowest
        return float((self.counts * width * width).sum() / 12)

    def between(self, borders: _Floats) -> _Ints:
        """How many of the ascending ``borders`` lie below each value.

        A bucket on one side of every border has one answer; values of the others are looked at
        one by one, so that it is exact.
        """
        ends = (self._lowest, self._highest)
        low, high = (np.searchsorted(borders, end, side="left") for end in ends)
        table = np.zeros(int(self._filled[-1]) + 1, dtype=np.int32)
        table[self._filled] = np.where(low == high, low, -1)
        codes = table[self._index].astype(np.int64)
        open_ = np.flatnonzero(codes < 0)
        codes[open_] = np.searchsorted(borders, self.values[open_], side="left")
        return codes
