"""Range-coded symbols: a thin writer and reader over constriction, with exact bit counts.

Every probability is an integer over 2**24, so that the bytes are the same on every machine.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, TypeAlias

import constriction
import numpy as np
from numpy.typing import NDArray

from atmc.errors import AtmcFormatError

_queue, _model = constriction.stream.queue, constriction.stream.model

BoolArray: TypeAlias = NDArray[np.bool_]
Int64Array: TypeAlias = NDArray[np.int64]
# A tensor of the file: the index of its entry, and "U", "V" or "C" for a factor, else "".
TensorKey: TypeAlias = tuple[int, str] | None
Costs: TypeAlias = dict[tuple[TensorKey, str], float]

PRECISION = 24
TOTAL = 1 << PRECISION
# Symbols per call to the coder: bounds the memory that a forged symbol count can claim.
_CHUNK = 1 << 20


def scale_frequencies(weights: Int64Array) -> Int64Array:
    """Integer frequencies >= 1 that add up to 2**24, in proportion to weights (sum in 1..2**38).

    f_i = 1 + floor(w_i * (2**24 - n) / sum(w)); the largest weight (the first such) gets the rest.
    """
    free = TOTAL - weights.size
    frequencies = 1 + weights * free // int(weights.sum())
    frequencies[int(np.argmax(weights))] += TOTAL - int(frequencies.sum())
    return np.asarray(frequencies, dtype=np.int64)


def _categorical(frequencies: Int64Array) -> Any:
    # constriction gives each of n symbols 1/2**24 and shares out the other 2**24 - n in proportion
    # to the weights. With weights f - 1 that sum to just that, its arithmetic is exact.
    return _model.Categorical((frequencies - 1).astype(np.float64), perfect=False)


class Writer:
    """Encodes symbols.

    Attributes:
        tensor: to which the next symbols belong.
        part: of the file, to which they belong.
        costs: ideal length in bits of all symbols, by tensor and part.
    """

    def __init__(self) -> None:
        self.tensor: TensorKey = None
        self.part = "header"
        self.costs: defaultdict[tuple[TensorKey, str], float] = defaultdict(float)
        self._encoder = _queue.RangeEncoder()

    def _charge(self, bits: float) -> None:
        self.costs[self.tensor, self.part] += bits

    def uniform(self, symbols: NDArray[Any], size: int) -> None:
        """Symbols in [0, size), 1 <= size <= 2**16, all equally likely."""
        if size > 1 and symbols.size:
            self._encoder.encode(
                np.ascontiguousarray(symbols, dtype=np.int32), _model.Uniform(size)
            )
            self._charge(uniform_bits(symbols.size, size))

    def categorical(self, symbols: NDArray[Any], frequencies: Int64Array) -> None:
        """Symbols in [0, n) with probabilities frequencies / 2**24 (n >= 2, each >= 1)."""
        if symbols.size == 0:
            return
        self._encoder.encode(
            np.ascontiguousarray(symbols, dtype=np.int32), _categorical(frequencies)
        )
        counts = np.bincount(symbols, minlength=frequencies.size)
        self._charge(categorical_bits(counts, frequencies))

    def bernoulli(self, ones: Int64Array, chances: Int64Array) -> None:
        """One bit for each chance / 2**24 (1 <= chance < 2**24) that it is 1; ``ones``: indices."""
        bits = np.zeros(chances.size, dtype=np.int32)
        bits[ones] = 1
        self._encoder.encode(bits, _model.Bernoulli(perfect=False), chances / TOTAL)
        self._charge(bernoulli_bits(ones, chances))

    def symbol(self, value: int, size: int) -> None:
        """One symbol in [0, size), 1 <= size <= 2**16, all equally likely."""
        if size > 1:
            self._encoder.encode(int(value), _model.Uniform(size))
            self._charge(uniform_bits(1, size))

    def bits_of(self, value: int, width: int) -> None:
        """``value`` in [0, 2**width), in digits of 16 bits, the highest (and shortest) first."""
        while width > 0:
            digit = (width - 1) % 16 + 1
            width -= digit
            self.symbol(value >> width & (1 << digit) - 1, 1 << digit)

    def golomb(self, value: int, order: int) -> None:
        """``value`` >= 0 by exp-Golomb of this order; value + 2**order must be < 2**64."""
        shifted = value + (1 << order)
        length = shifted.bit_length() - 1
        for _ in range(length - order):
            self.symbol(1, 2)
        self.symbol(0, 2)
        self.bits_of(shifted - (1 << length), length)

    def bounded(self, value: int, maximum: int) -> None:
        """``value`` in [0, maximum]: one bit for 0; else its bit length, then the bits below."""
        if maximum == 0:
            return
        self.symbol(value > 0, 2)
        if value:
            length = value.bit_length()
            self.symbol(length - 1, maximum.bit_length())
            self.bits_of(value - (1 << length - 1), length - 1)

    def finish(self, *, followed: bool = False) -> bytes:
        """The bytes of everything written: the fewest that decode to it when zeros follow.

        With ``followed``, the fewest that do so whatever follows.
        """
        return _seal(self._encoder, followed)


def _seal(encoder: Any, followed: bool) -> bytes:
    """The encoder's whole words, and of its undecided 64 bits the fewest bytes that decide them.

    Bytes are in big-endian order, highest digit first, so that any tail of zeros can be left out.
    Whole words stay even if zero: the length of the bytes bounds what they can hold.
    """
    sealed = encoder.get_compressed()
    done, (lower, width) = encoder.pos()
    words: bytes = sealed[:done].astype(">u4").tobytes()
    tail = int.from_bytes(sealed[done : done + 2].astype(">u4").tobytes().ljust(8, b"\0"), "big")
    # The tail may be any number in [lower, end): the multiple of 2**drop with the largest drop, of
    # which all that share its upper bits must lie within where other bytes follow.
    end = lower + width
    for drop in range(64, -1, -8):
        point = -(-lower >> drop) << drop
        if point + (1 << drop if followed else 1) <= end:
            break
    # Past 2**64 one is carried; constriction has done so if its tail is below ``lower``.
    carry, point = divmod(point, 1 << 64)
    carry -= tail < lower
    if carry:
        words = (int.from_bytes(words, "big") + carry).to_bytes(len(words), "big")
    return words + int(point).to_bytes(8, "big")[: 8 - drop // 8]


def categorical_bits(counts: Int64Array, frequencies: Int64Array) -> float:
    """Ideal length of ``counts[i]`` symbols i under probabilities frequencies / 2**24."""
    return float((counts * (PRECISION - np.log2(frequencies))).sum())


def uniform_bits(count: int, size: int) -> float:
    """Ideal length of ``count`` symbols of ``size``, all equally likely."""
    return count * (PRECISION - math.log2(TOTAL // size))


def bounded_bits(value: int, maximum: int) -> float:
    """Ideal length of :meth:`Writer.bounded`."""
    if maximum == 0:
        return 0.0
    if value == 0:
        return 1.0
    return 1.0 + uniform_bits(1, maximum.bit_length()) + value.bit_length() - 1


def bernoulli_bits(ones: Int64Array, chances: Int64Array) -> float:
    """Ideal length of bits of which those at ``ones`` are 1, under chances / 2**24."""
    zeros = PRECISION - np.log2(TOTAL - chances)
    taken = chances[ones]
    gained = np.log2(TOTAL - taken) - np.log2(taken)
    return float(zeros.sum() + gained.sum())


class Reader:
    """Decodes what a :class:`Writer` wrote; raises :class:`AtmcFormatError` otherwise.

    What is decoded is encoded again: so the reader knows when the stream is used up, and in the
    end that the bytes are just those of the decoded symbols, with nothing behind them.
    """

    def __init__(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4 + 8)
        self._data = data
        self._words = len(padded) // 4
        self._decoder = _queue.RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))
        self._mirror = _queue.RangeEncoder()

    def _read(self, model: Any, amount: int | NDArray[np.float64]) -> NDArray[np.int32]:
        """So many symbols, or one for each of the model's parameters."""
        try:
            symbols: NDArray[np.int32] = self._decoder.decode(model, amount)
        except AssertionError:
            raise AtmcFormatError("damaged file: no symbol has this code") from None
        if isinstance(amount, int):
            self._mirror.encode(symbols, model)
        else:
            self._mirror.encode(symbols, model, amount)
        if self._mirror.num_words() > self._words:
            raise AtmcFormatError("damaged file: the stream ends too early")
        return symbols

    def _read_chunks(self, model: Any, count: int) -> Int64Array:
        chunks = [np.zeros(0, dtype=np.int64)]
        for start in range(0, count, _CHUNK):
            chunks.append(self._read(model, min(count - start, _CHUNK)).astype(np.int64))
        return np.concatenate(chunks)

    def uniform(self, count: int, size: int) -> Int64Array:
        """``count`` symbols in [0, size)."""
        if size == 1:
            return np.zeros(count, dtype=np.int64)
        return self._read_chunks(_model.Uniform(size), count)

    def categorical(self, count: int, frequencies: Int64Array) -> Int64Array:
        """``count`` symbols with probabilities frequencies / 2**24."""
        return self._read_chunks(_categorical(frequencies), count)

    def bernoulli(self, chances: Int64Array) -> NDArray[np.int32]:
        """One bit for each chance, as :meth:`Writer.bernoulli` wrote them."""
        return self._read(_model.Bernoulli(perfect=False), chances / TOTAL)

    def symbol(self, size: int) -> int:
        """One symbol in [0, size)."""
        return int(self._read(_model.Uniform(size), 1)[0]) if size > 1 else 0

    def bits_of(self, width: int) -> int:
        """An integer of ``width`` bits."""
        value = 0
        while width > 0:
            digit = (width - 1) % 16 + 1
            width -= digit
            value = value << digit | self.symbol(1 << digit)
        return value

    def golomb(self, order: int) -> int:
        """An exp-Golomb integer."""
        length = order
        while self.symbol(2):
            length += 1
            if length > 63:
                raise AtmcFormatError("damaged file: an integer over 64 bits")
        return (1 << length) + self.bits_of(length) - (1 << order)

    def bounded(self, maximum: int) -> int:
        """An integer in [0, maximum]."""
        if maximum == 0 or self.symbol(2) == 0:
            return 0
        length = self.symbol(maximum.bit_length())
        value = (1 << length) + self.bits_of(length)
        if value > maximum:
            raise AtmcFormatError(f"damaged file: {value} where at most {maximum} is possible")
        return value

    def finish(self) -> None:
        """Raise unless the bytes end just where the decoded symbols do."""
        if self.used() != self._data:
            raise AtmcFormatError("damaged file: bytes behind the end of the stream")

    def used(self) -> bytes:
        """The bytes of what was read so far, if the stream ended here."""
        return _seal(self._mirror, followed=False)

    def rest(self) -> bytes:
        """The bytes behind a stream that was finished as ``followed``."""
        start = _seal(self._mirror, followed=True)
        if not self._data.startswith(start):
            raise AtmcFormatError("damaged file: the stream does not end as it must")
        return self._data[len(start) :]
