"""Codebooks: 1-D k-means of a tensor's nonzeros, and codebooks of integers times a power of two.

Every function is pure. The nonzeros of a tensor are taken in flat (row-major) order; zeros are
never coded. A codebook's search runs on the host in float64, so that it gives the same levels
whatever the device; the codes are computed on the values' device.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atmc.errors import NotFiniteError
from atmc.quantization.buckets import Buckets
from atmc.quantization.entropy_constrained import bit_price, entropy_constrained, territories
from atmc.quantization.kmeans import Ints, Line, partition

__all__ = [
    "QuantizedCodebook",
    "codebook",
    "nearest",
    "quantize",
    "quantized_codebook",
    "round_levels",
]

EXPONENT_MIN, EXPONENT_MAX = -126, 100

# Above _MERGED values, values that agree to a thousandth are one point, as long as the error within
# the points is at most the share _SPREAD of that between them: what such points cannot see is
# where a bound cuts through one of them, far below the 1 % that is promised.
_MERGED = 2**16
_SPREAD = 0.01


def codebook(values: Tensor, levels: int, init: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codebook of at most ``levels`` levels for the nonzeros of ``values``, by 1-D k-means.

    A dynamic program over companded candidate bounds, then joint refinement of the bounds and
    Lloyd's iterations, all on prefix sums of the sorted values. Measured squared error: within 1 %
    of the optimum's for up to 512 levels (mostly within 0.1 %), a few percent beyond, where the
    program gives way to the density alone. Deterministic, and the same on every device.

    Examples:
        >>> levels, codes = codebook(torch.tensor([0.9, 1.1, 0.0, -2.0]), 2)
        >>> levels.tolist(), codes.tolist()
        ([-2.0, 1.0], [1, 1, 0])

    Args:
        values: float tensor of any shape.
        levels: the largest number of levels, at least 1.
        init: levels to start from (e.g. the previous codebook of slowly moving values) instead of
            the dynamic program: several times faster, but a local optimum, mostly within a few
            percent of the best. Ignored where its nearest-level cells do not split the values
            into exactly ``levels`` parts.

    Returns:
        The levels (values' dtype; ascending, distinct, nonzero) and the codes (int64, one per
        nonzero in flat order): the index of the nearest level, the lower one on a tie. Up to
        ``levels`` distinct values are returned as they are; without nonzeros both are empty.
        A level that would be exactly zero is moved to the value nearest to zero (the negative
        one on a tie).

    Raises:
        ValueError: ``levels`` < 1, values not floating point, or NaN or infinity among them.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    if not values.is_floating_point():
        raise ValueError(f"values must be a float tensor, got {values.dtype}; convert it first")
    nonzeros = _Nonzeros(values)
    chosen = nonzeros.levels(levels, init).to(values.device)
    return chosen, nonzeros.codes(chosen)


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Index (int64, shape of ``values``) of the nearest of the ascending ``levels``.

    Ties go to the lower level. Midpoints are formed in float64. Raises ValueError where there are
    values but no levels.
    """
    if levels.numel() == 0 and values.numel() > 0:
        raise ValueError("no levels to choose from; give at least one")
    return torch.bucketize(values.detach().double(), _midpoints(levels))


def _midpoints(levels: Tensor) -> Tensor:
    wide = levels.detach().double()
    return wide[:-1] / 2 + wide[1:] / 2


def quantize(values: Tensor, levels: Tensor, codes: Tensor) -> Tensor:
    """``levels[codes]`` at the nonzeros of ``values``, zero elsewhere.

    Shape of ``values``, dtype of ``levels``; differentiable in ``levels``. Raises ValueError where
    the number of codes is not the number of nonzeros.
    """
    mask = values.detach() != 0
    count = int(mask.sum())
    if codes.numel() != count:
        raise ValueError(f"{codes.numel()} codes for {count} nonzeros; they must be as many")
    return levels.new_zeros(values.shape).masked_scatter(mask, levels[codes])


def round_levels(levels: Tensor, level_bits: int) -> tuple[Tensor, int]:
    """Integers and exponent with ``levels`` ~ integers * 2**exponent.

    Args:
        levels: finite float tensor, any shape.
        level_bits: 2 to 16, the sign included: abs(integer) <= 2**(level_bits - 1) - 1.

    Returns:
        The integers (int32, shape of ``levels``), rounded to nearest, and the smallest exponent in
        [-126, 100] for which they fit (beyond 100 they saturate; 0 without levels). A level that
        rounds to zero becomes 1 or -1, by its sign. Neighbours may become equal.

    Raises:
        ValueError: ``level_bits`` out of range, or NaN or infinity among the levels.
    """
    if not 2 <= level_bits <= 16:
        raise ValueError(f"level_bits must be 2 to 16, got {level_bits}")
    wide = levels.detach().double()
    if wide.numel() == 0:
        return wide.to(torch.int32), 0
    largest = float(wide.abs().amax())
    if not math.isfinite(largest):
        raise NotFiniteError("levels must be finite, got NaN or infinity")
    limit = 2 ** (level_bits - 1) - 1
    mantissa, power = math.frexp(largest)
    exponent = power - (level_bits - 1)
    if round(math.ldexp(mantissa, level_bits - 1)) > limit:
        exponent += 1
    exponent = min(max(exponent, EXPONENT_MIN), EXPONENT_MAX)
    integers = (wide * 2.0**-exponent).round().clamp(-limit, limit).to(torch.int32)
    unit = torch.where(wide < 0, -1, 1).to(torch.int32)
    return torch.where(integers == 0, unit, integers), exponent


@dataclass(frozen=True, eq=False)
class QuantizedCodebook:
    """A codebook whose levels are ``integers`` * 2**``exponent``, exactly.

    ``integers`` are int32, ascending, distinct and nonzero; ``codes`` int64, one per nonzero of
    the values in flat order. ``centroids`` are the levels before they were rounded (and some of
    them merged): what the search for the next codebook of slowly moving values starts from.
    """

    integers: Tensor
    exponent: int
    codes: Tensor
    centroids: Tensor

    @property
    def levels(self) -> Tensor:
        """The levels, float32; exact."""
        return self.integers.to(torch.float32) * 2.0**self.exponent


def quantized_codebook(
    values: Tensor, levels: int, level_bits: int, init: Tensor | None = None, *, rdo: bool = False
) -> QuantizedCodebook:
    """``codebook(values, levels, init)`` with its levels rounded to ``level_bits`` bits.

    Levels that become equal are merged, every nonzero is coded again by the cheapest rounded level
    (the lower one on a tie), and levels without members are dropped. Raises as ``codebook`` and
    ``round_levels`` do.

    Args:
        values: float tensor of any shape.
        levels: the largest number of levels, at least 1.
        level_bits: 2 to 16.
        init: see :func:`codebook`.
        rdo: rate-distortion optimized: a value takes a level of a shorter code where that is worth
            its error (:mod:`atmc.quantization.entropy_constrained`), and codebooks may be smaller.
            Values that ``levels`` levels represent exactly stay. False: the nearest level is the
            cheapest.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    # Levels of 16-bit values are not rounded to 16 bits on the way.
    nonzeros = _Nonzeros(values if values.dtype == torch.float64 else values.float())
    if rdo and nonzeros.count:
        return _rate_distortion_optimized(nonzeros, levels, level_bits, init)
    centroids = nonzeros.levels(levels, init)
    integers, exponent = round_levels(centroids, level_bits)
    integers = torch.unique(integers)
    codes = nonzeros.codes(integers.to(values.device).double() * 2.0**exponent)
    return _used(integers, exponent, codes, centroids)


def _rate_distortion_optimized(
    nonzeros: "_Nonzeros", levels: int, level_bits: int, init: Tensor | None
) -> QuantizedCodebook:
    line, bounds = nonzeros.split(levels, init)
    exact = bounds.size == line.points.size + 1
    price = 0.0 if exact else bit_price(line, levels)
    coded = entropy_constrained(line, bounds, price)
    integers, exponent = round_levels(torch.from_numpy(line.centroids(coded.bounds)), level_bits)
    integers, merged = torch.unique(integers, return_inverse=True)
    shares = np.bincount(merged.numpy(), weights=np.exp2(-coded.lengths))
    scaled = np.ldexp(integers.numpy().astype(np.float64), exponent - line.scale)
    left, borders = territories(scaled, -price * np.log2(shares))
    codes = nonzeros.between(torch.from_numpy(np.ldexp(borders, line.scale)))
    # The next search starts where this one did: with all levels.
    centroids = torch.from_numpy(line.centroids(bounds))
    return _used(integers[torch.from_numpy(left)], exponent, codes, centroids)


def _used(integers: Tensor, exponent: int, codes: Tensor, centroids: Tensor) -> QuantizedCodebook:
    """The codebook without the levels that no code names."""
    used = torch.bincount(codes, minlength=integers.numel()).cpu() > 0
    levels = integers[used].to(codes.device)
    if not bool(used.all()):
        codes = (used.cumsum(0) - 1).to(codes.device)[codes]
    return QuantizedCodebook(levels, exponent, codes, centroids)


class _Nonzeros:
    """The nonzeros of a tensor in flat order, and the input of the search for its codebooks."""

    def __init__(self, values: Tensor) -> None:
        if not values.is_floating_point():
            raise ValueError(f"values must be a float tensor, got {values.dtype}; convert it first")
        flat = values.detach().reshape(-1)
        self._values = flat[flat != 0]
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        self._host = self._values.to("cpu", wide).numpy()
        # Sums of the ends are finite where both are; NaN wins every comparison.
        with np.errstate(over="ignore", invalid="ignore"):
            ends = self._host[:0] if not self._host.size else [self._host.min(), self._host.max()]
        if not np.isfinite(ends).all():
            raise NotFiniteError("values must be finite, got NaN or infinity; find where it arose")
        many = wide == torch.float32 and self._host.size > _MERGED
        self._buckets = Buckets(self._host) if many else None

    @property
    def count(self) -> int:
        """How many they are."""
        return int(self._host.size)

    def split(self, count: int, init: Tensor | None = None) -> tuple[Line, Ints]:
        """The values as points on a line, and the bounds of at most ``count`` parts of them."""
        start = None if init is None else init.detach().to("cpu", torch.float64).numpy()
        buckets = self._buckets
        if buckets is not None and buckets.points.size > count:
            line = Line(buckets.points, buckets.counts)
            bounds = partition(line, count, start)
            # Fine enough where the values lie, or the buckets decide instead of the values.
            if buckets.spread() <= _SPREAD * line.total(bounds):
                return line, bounds
        ordered = np.sort(self._host).astype(np.float64, copy=False)
        first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        line = Line(ordered[first], np.diff(np.append(first, ordered.size)))
        if line.points.size <= count:
            return line, np.arange(line.points.size + 1)
        return line, partition(line, count, start)

    def levels(self, count: int, init: Tensor | None = None) -> Tensor:
        """At most ``count`` levels in the values' type, on the host."""
        if self._host.size == 0:
            return self._values.cpu()
        line, bounds = self.split(count, init)
        chosen = torch.from_numpy(line.centroids(bounds)).to(self._values.dtype)
        if bool((chosen == 0).any()):
            # Values of both signs share this level: those next to zero are its members.
            below = self._host[self._host < 0].max()
            above = self._host[self._host > 0].min()
            chosen[chosen == 0] = float(below if -below <= above else above)
        return chosen

    def codes(self, levels: Tensor) -> Tensor:
        """The index of the nearest level for each nonzero, where the values are."""
        return self.between(_midpoints(levels))

    def between(self, borders: Tensor) -> Tensor:
        """How many of the ascending ``borders`` lie below each nonzero, where the values are."""
        if self._buckets is None or self._values.device.type != "cpu":
            return torch.bucketize(self._values.double(), borders.to(self._values.device))
        return torch.from_numpy(self._buckets.between(borders.numpy()))
