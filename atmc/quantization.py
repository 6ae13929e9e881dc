"""Codebooks: 1-D k-means of a tensor's nonzeros, and codebooks of integers times a power of two.

Every function is pure. The nonzeros of a tensor are taken in flat (row-major) order; zeros are
never coded. A codebook's search runs on the host in float64, so that it gives the same levels
whatever the device; the codes are found where the values are.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atmc.buckets import Buckets

__all__ = [
    "QuantizedCodebook",
    "codebook",
    "nearest",
    "quantize",
    "quantized_codebook",
    "round_levels",
]

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

EXPONENT_MIN, EXPONENT_MAX = -126, 100

# Where the search for the bounds between levels starts: at the exact optimum where its table is
# small (up to _CANDIDATES distinct values, or hardly more of them than levels); with up to
# _SEARCHED levels, at the best choice among _CELLS candidates a level (at least _CANDIDATES);
# beyond, at the bounds that the density asks for: the table grows as the square of the levels.
_CANDIDATES = 512
_CELLS = 8
_SEARCHED = 512
# Above _MERGED values, values that agree to a thousandth are one point, as long as the error within
# the points is at most the share _SPREAD of that between them: what such points cannot see is
# where a bound cuts through one of them, far below the 1 % that is promised.
_MERGED = 2**16
_SPREAD = 0.01
# Refinement: steps to either side that a bound may move at a time; relative gain that ends it.
_WINDOW = 6
_CONVERGED = 1e-6
_WARM_CONVERGED = 1e-4  # the same from levels that are given, after two joint moves


def codebook(values: Tensor, levels: int, init: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codebook of at most ``levels`` levels for the nonzeros of ``values``, by 1-D k-means.

    A dynamic program over companded candidate bounds, then joint refinement of the bounds and
    Lloyd's iterations, all on prefix sums of the sorted values. Measured squared error: within 1 %
    of the optimum's for up to 512 levels (mostly within 0.1 %), a few percent beyond, where the
    program gives way to the density alone. Deterministic, and the same on every device.

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
    wide = levels.detach().double()
    midpoints = wide[:-1] / 2 + wide[1:] / 2
    return torch.bucketize(values.detach().double(), midpoints)


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
        raise ValueError("levels must be finite, got NaN or infinity")
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
    values: Tensor, levels: int, level_bits: int, init: Tensor | None = None
) -> QuantizedCodebook:
    """``codebook(values, levels, init)`` with its levels rounded to ``level_bits`` bits.

    Levels that become equal are merged, every nonzero is coded again by the nearest rounded level
    (the lower one on a tie), and levels without members are dropped. Raises as ``codebook`` and
    ``round_levels`` do.
    """
    # Levels of 16-bit values are not rounded to 16 bits on the way.
    nonzeros = _Nonzeros(values if values.dtype == torch.float64 else values.float())
    centroids = nonzeros.levels(levels, init)
    integers, exponent = round_levels(centroids, level_bits)
    integers = torch.unique(integers)
    codes = nonzeros.codes(integers.to(values.device).double() * 2.0**exponent)
    used = torch.bincount(codes, minlength=integers.numel()).cpu() > 0
    held = integers[used].to(values.device)
    if not bool(used.all()):
        codes = (used.cumsum(0) - 1).to(values.device)[codes]
    return QuantizedCodebook(held, exponent, codes, centroids)


class _Nonzeros:
    """The nonzeros of a tensor in flat order, and what its codebooks are made from."""

    def __init__(self, values: Tensor) -> None:
        if not values.is_floating_point():
            raise ValueError(f"values must be a float tensor, got {values.dtype}; convert it first")
        flat = values.detach().reshape(-1)
        self._kept = flat[flat != 0]
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        self._host = self._kept.to("cpu", wide).numpy()
        # Sums of the ends are finite where both are; NaN wins every comparison.
        with np.errstate(over="ignore", invalid="ignore"):
            ends = self._host[:0] if not self._host.size else [self._host.min(), self._host.max()]
        if not np.isfinite(ends).all():
            raise ValueError("values must be finite, got NaN or infinity; find where it arose")
        many = wide == torch.float32 and self._host.size > _MERGED
        self._buckets = Buckets(self._host) if many else None

    def levels(self, count: int, init: Tensor | None = None) -> Tensor:
        """At most ``count`` levels in the values' type, on the host."""
        if count < 1:
            raise ValueError(f"levels must be at least 1, got {count}")
        if self._host.size == 0:
            return self._kept.cpu()
        found = None
        buckets = self._buckets
        if buckets is not None and buckets.points.size > count:
            line = _Line(buckets.points, buckets.counts)
            bounds = _partition(line, count, init)
            # Fine enough where the values lie, or the buckets decide instead of the values.
            if buckets.spread() <= _SPREAD * line.total(bounds):
                found = line.centroids(bounds)
        if found is None:
            ordered = np.sort(self._host).astype(np.float64, copy=False)
            first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
            line = _Line(ordered[first], np.diff(np.append(first, ordered.size)))
            few = line.points.size <= count
            found = line.points if few else line.centroids(_partition(line, count, init))
        chosen = torch.from_numpy(found).to(self._kept.dtype)
        if bool((chosen == 0).any()):
            # Values of both signs share this level: those next to zero are its members.
            below = self._host[self._host < 0].max()
            above = self._host[self._host > 0].min()
            chosen[chosen == 0] = float(below if -below <= above else above)
        return chosen

    def codes(self, levels: Tensor) -> Tensor:
        """The index of the nearest level for each nonzero, where the values are."""
        if self._buckets is None or self._kept.device.type != "cpu":
            return nearest(self._kept, levels)
        return torch.from_numpy(self._buckets.nearest(levels.double().numpy()))


def _partition(line: "_Line", count: int, init: Tensor | None) -> _Ints:
    """Bounds of a near-optimal partition into ``count`` parts; there are more points than that."""
    if init is not None:
        start = np.unique(init.detach().to("cpu", torch.float64).numpy())
        bounds = line.bounds(start) if start.size == count else None
        if bounds is not None and bounds.size == count + 1 > 2:
            for part in (32, 128):  # of the gap to the next bound
                bounds, error = _shift(line, bounds, _step(bounds, part))
            return _lloyd(line, bounds, error, _WARM_CONVERGED)
    return _refine(line, _search(line, count))


class _Line:
    """Distinct points, ascending, with their counts; the squared error of any run of them.

    A partition is given by its bounds: indices into ``points``, from 0 to their number, ascending.
    """

    def __init__(self, points: _Floats, counts: _Ints) -> None:
        self.points = points
        self.weight: _Floats = np.concatenate(([0.0], np.cumsum(counts, dtype=np.float64)))
        # Powers of two are exact, and keep squares of any float64 within range.
        self._scale = math.frexp(max(-points[0], points[-1]))[1]
        scaled = np.ldexp(points, -self._scale)
        # Sums run outward from the middle, where they are smallest, so that differences of two
        # prefixes lose little to cancellation.
        middle = scaled.size // 2
        self._origin = float(scaled[middle])
        self.scaled: _Floats = scaled
        offset = scaled - self._origin
        moment = offset * counts
        self._sum = _prefix(moment, middle)
        self._square = _prefix(moment * offset, middle)

    def error(self, start: _Ints, stop: _Ints) -> _Floats:
        """Squared error (scaled) of the runs start:stop around their means; empty runs are free."""
        count = self.weight[stop] - self.weight[start]
        total = self._sum[stop] - self._sum[start]
        spread = self._square[stop] - self._square[start]
        return np.maximum(spread - total * total / np.maximum(count, 1.0), 0.0)

    def total(self, bounds: _Ints) -> float:
        """Squared error of a partition, unscaled."""
        error = float(self.error(bounds[:-1], bounds[1:]).sum())
        return math.ldexp(error, 2 * self._scale) if error > 0 else 0.0

    def means(self, bounds: _Ints) -> _Floats:
        """Scaled means of the parts; each lies between the smallest and largest of its part."""
        mean = np.diff(self._sum[bounds]) / np.diff(self.weight[bounds]) + self._origin
        return np.clip(mean, self.scaled[bounds[:-1]], self.scaled[bounds[1:] - 1])

    def centroids(self, bounds: _Ints) -> _Floats:
        """Means of the parts, unscaled; each lies between the ends of its part, exactly."""
        mean = np.ldexp(self.means(bounds), self._scale)
        return np.clip(mean, self.points[bounds[:-1]], self.points[bounds[1:] - 1])

    def bounds(self, levels: _Floats) -> _Ints:
        """The partition by nearest level (ties to the lower), parts without points left out."""
        return _cut(self.points, levels)

    def assign(self, means: _Floats) -> _Ints:
        """The same for scaled means."""
        return _cut(self.scaled, means)


def _prefix(terms: _Floats, middle: int) -> _Floats:
    """Prefix sums with the zero at index ``middle``."""
    left = -np.cumsum(terms[:middle][::-1])[::-1]
    return np.concatenate((left, [0.0], np.cumsum(terms[middle:])))


def _cut(points: _Floats, levels: _Floats) -> _Ints:
    inner = np.searchsorted(points, levels[:-1] / 2 + levels[1:] / 2, side="right")
    inner = inner[(inner > 0) & (inner < points.size)]
    return np.concatenate(([0], inner[np.diff(inner, prepend=0) > 0], [points.size]))


def _search(line: _Line, levels: int) -> _Ints:
    """Bounds of a near-optimal partition into ``levels`` parts, before refinement."""
    size = line.points.size
    slack = size - levels
    if slack <= _CANDIDATES and levels * slack * slack <= 2**25:
        return _dynamic_program(line, np.arange(size + 1), levels, size)
    if levels > _SEARCHED:
        return _companded(line, levels - 1)
    candidates = _companded(line, max(_CELLS * levels, _CANDIDATES))
    # An optimal part spans about as many candidates as any other: many times that is no limit.
    return _dynamic_program(line, candidates, levels, max(8 * _CELLS, 16384 // levels))


def _companded(line: _Line, cells: int) -> _Ints:
    """The ends and up to ``cells`` inner bounds, dense as density**(1/3).

    That is the optimum at high resolution (Panter and Dite, 1951). A gap of width w between
    neighbours that holds the mass p counts w**(2/3) p**(1/3), and never more than one cell, so
    that outliers do not use up the cells of the others.
    """
    if cells >= line.points.size - 1:
        return np.arange(line.points.size + 1)
    width = np.diff(line.scaled)
    measure = np.cbrt(width * width * (line.weight[1:-1] - line.weight[:-2]))
    for _ in range(20):
        cell = float(measure.sum()) / cells
        np.minimum(measure, cell, out=measure)
    grown = np.cumsum(measure)
    # Half a cell off the multiples, or rounding would lose gaps that fill a cell.
    marks = cell * (np.arange(cells) + 0.5)
    inner = 1 + np.searchsorted(grown, marks).clip(max=measure.size - 1)
    return np.unique(np.concatenate(([0], inner, [line.points.size])))


def _dynamic_program(line: _Line, candidates: _Ints, levels: int, longest: int) -> _Ints:
    """Best partition into ``levels`` parts with bounds among ``candidates``.

    No part spans more than ``longest`` cells between neighbouring candidates.
    """
    cells = candidates.size - 1
    levels = min(levels, cells)
    # Part j ends at cell j + s with s in 0..slack: each part has one cell, slack are free.
    slack = cells - levels
    longest = min(longest, slack + 1)
    # cost[i, r]: error of the part that ends at cell i and spans longest - r cells.
    stops = np.arange(cells + 1)[:, None]
    starts = stops - longest + np.arange(longest)[None, :]
    cost = line.error(candidates[np.maximum(starts, 0)], candidates[stops])
    cost[starts < 0] = np.inf
    best = np.full(longest + slack, np.inf)
    best[longest - 1] = 0.0
    windows = np.lib.stride_tricks.sliding_window_view(best, longest)
    spans = np.empty((levels, slack + 1), dtype=np.int32)
    total = np.empty((slack + 1, longest))
    rows = np.arange(slack + 1)
    for part in range(levels):
        np.add(windows, cost[part + 1 : part + 2 + slack], out=total)
        choice = total.argmin(axis=1)
        spans[part] = longest - choice
        best[longest - 1 :] = total[rows, choice]
    bounds = [cells]
    for part in reversed(range(levels)):
        end = bounds[-1]
        bounds.append(end - int(spans[part, end - part - 1]))
    chosen: _Ints = candidates[bounds[::-1]]
    return chosen


def _refine(line: _Line, bounds: _Ints) -> _Ints:
    """A local optimum: joint moves of all bounds by shrinking steps, then Lloyd's iterations."""
    if bounds.size == 2:
        return bounds
    step = _step(bounds, 32)
    error = math.inf
    while True:
        previous, finest = error, bool((step == 1).all())
        bounds, error = _shift(line, bounds, step)
        if finest and error >= previous * (1 - _CONVERGED):
            break
        step = np.maximum(step // 4, 1)
    return _lloyd(line, bounds, error, _CONVERGED)


def _step(bounds: _Ints, part: int) -> _Ints:
    """For each inner bound, that part of the way to the nearer of its neighbours."""
    gaps = np.diff(bounds)
    step: _Ints = np.maximum(np.minimum(gaps[:-1], gaps[1:]) // part, 1)
    return step


def _lloyd(line: _Line, bounds: _Ints, error: float, converged: float) -> _Ints:
    """Nearest means and means of the nearest in turns, until a turn gains less than a share."""
    while True:
        previous = error
        bounds = line.assign(line.means(bounds))
        error = float(line.error(bounds[:-1], bounds[1:]).sum())
        if error >= previous * (1 - converged):
            return bounds


def _shift(line: _Line, bounds: _Ints, step: _Ints) -> tuple[_Ints, float]:
    """Best partition whose inner bounds each move by -_WINDOW.._WINDOW of their ``step``.

    Returns it with its squared error (scaled).
    """
    size = line.points.size
    moves = np.arange(-_WINDOW, _WINDOW + 1)
    places = np.clip(bounds[1:-1, None] + step[:, None] * moves, 1, size - 1)
    start, stop = places[:-1, :, None], places[1:, None, :]
    between = np.where(start < stop, line.error(start, np.maximum(stop, start)), np.inf)
    best = line.error(np.zeros_like(places[0]), places[0])
    came: list[npt.NDArray[np.intp]] = []
    for costs in between:
        total = best[:, None] + costs
        came.append(total.argmin(axis=0))
        best = total.min(axis=0)
    best = best + line.error(places[-1], np.full_like(places[-1], size))
    at = int(best.argmin())
    error, path = float(best[at]), [at]
    for choice in reversed(came):
        at = int(choice[at])
        path.append(at)
    moved = places[np.arange(len(path)), path[::-1]]
    return np.concatenate(([0], moved, [size])), error
