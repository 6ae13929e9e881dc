"""1-D k-means on the host: weighted points on a line, cut into parts of small squared error."""

import math

import numpy as np
import numpy.typing as npt

__all__ = ["Line", "partition"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Where the search for the bounds between levels starts: at the exact optimum where its table is
# small (hardly more distinct values than levels); with up to _SEARCHED levels, at the best choice
# among _CELLS candidates a level (at least _CANDIDATES); beyond, at the bounds that the density
# asks for: the table grows as the square of the levels.
_SLACK, _TABLE = 256, 2**22  # values beyond the levels, entries of the table: up to these, exact
_CANDIDATES = 128
_CELLS = 6
_SEARCHED = 512
# Refinement: steps to either side that a bound may move at a time; relative gain that ends it.
_WINDOW = 6
_CONVERGED = 1e-6
_WARM_CONVERGED = 1e-4  # the same when started from levels, after two joint moves


def partition(line: "Line", count: int, init: Floats | None = None) -> Ints:
    """Bounds of a near-optimal partition into ``count`` parts; there are more points than that.

    Args:
        line: the points.
        count: of parts, at least 1.
        init: levels to start from; ignored where they do not cut the points into ``count`` parts.
    """
    if init is not None:
        start = np.unique(init)
        bounds = line.bounds(start) if start.size == count else None
        if bounds is not None and bounds.size == count + 1 > 2:
            for part in (32, 128):  # of the gap to the next bound
                bounds, error = _shift(line, bounds, _step(bounds, part))
            return _lloyd(line, bounds, error, _WARM_CONVERGED)
    return _refine(line, _search(line, count))


class Line:
    """Distinct points, ascending, with their counts; the squared error of any run of them.

    A partition is described by its bounds: ascending indices into ``points``, 0 to their number.

    Attributes:
        points: the points.
        weight: how many values lie before each, and in all.
        scaled: the points times 2**-``scale``, within -1 to 1.
    """

    def __init__(self, points: Floats, counts: Ints) -> None:
        self.points = points
        self.weight: Floats = np.concatenate(([0.0], np.cumsum(counts, dtype=np.float64)))
        # Powers of two are exact, and keep squares of any float64 within range.
        self.scale = math.frexp(max(-points[0], points[-1]))[1]
        scaled = np.ldexp(points, -self.scale)
        # Sums run outward from the middle, where they are smallest, so that differences of two
        # prefixes lose little to cancellation.
        middle = scaled.size // 2
        self._origin = float(scaled[middle])
        self.scaled: Floats = scaled
        offset = scaled - self._origin
        moment = offset * counts
        self._sum = _prefix(moment, middle)
        self._square = _prefix(moment * offset, middle)

    def error(self, start: Ints, stop: Ints) -> Floats:
        """Squared error (scaled) of the runs start:stop around their means; empty runs are free."""
        count = self.weight[stop] - self.weight[start]
        total = self._sum[stop] - self._sum[start]
        spread = self._square[stop] - self._square[start]
        return np.maximum(spread - total * total / np.maximum(count, 1.0), 0.0)

    def total(self, bounds: Ints) -> float:
        """Squared error of a partition, unscaled."""
        error = float(self.error(bounds[:-1], bounds[1:]).sum())
        return math.ldexp(error, 2 * self.scale) if error > 0 else 0.0

    def means(self, bounds: Ints) -> Floats:
        """Scaled means of the parts; each lies between the smallest and largest of its part."""
        mean = np.diff(self._sum[bounds]) / np.diff(self.weight[bounds]) + self._origin
        return np.clip(mean, self.scaled[bounds[:-1]], self.scaled[bounds[1:] - 1])

    def centroids(self, bounds: Ints) -> Floats:
        """Means of the parts, unscaled; each lies between the ends of its part, exactly."""
        mean = np.ldexp(self.means(bounds), self.scale)
        return np.clip(mean, self.points[bounds[:-1]], self.points[bounds[1:] - 1])

    def bounds(self, levels: Floats) -> Ints:
        """The partition by nearest level (ties to the lower), parts without points left out."""
        return _cut(self.points, levels)

    def assign(self, means: Floats) -> Ints:
        """The same for scaled means."""
        return _cut(self.scaled, means)


def _prefix(terms: Floats, middle: int) -> Floats:
    """Prefix sums with the zero at index ``middle``."""
    left = -np.cumsum(terms[:middle][::-1])[::-1]
    return np.concatenate((left, [0.0], np.cumsum(terms[middle:])))


def _cut(points: Floats, levels: Floats) -> Ints:
    inner = np.searchsorted(points, levels[:-1] / 2 + levels[1:] / 2, side="right")
    inner = inner[(inner > 0) & (inner < points.size)]
    return np.concatenate(([0], inner[np.diff(inner, prepend=0) > 0], [points.size]))


def _search(line: Line, levels: int) -> Ints:
    """Bounds of a near-optimal partition into ``levels`` parts, before refinement."""
    size = line.points.size
    slack = size - levels
    if slack <= _SLACK and levels * slack * slack <= _TABLE:
        return _dynamic_program(line, np.arange(size + 1), levels, size)
    if levels > _SEARCHED:
        return _companded(line, levels - 1)
    candidates = _companded(line, max(_CELLS * levels, _CANDIDATES))
    # An optimal part spans about as many candidates as any other: many times that is no limit.
    return _dynamic_program(line, candidates, levels, max(5 * _CELLS, 8192 // levels))


def _companded(line: Line, cells: int) -> Ints:
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


def _dynamic_program(line: Line, candidates: Ints, levels: int, longest: int) -> Ints:
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
    chosen: Ints = candidates[bounds[::-1]]
    return chosen


def _refine(line: Line, bounds: Ints) -> Ints:
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


def _step(bounds: Ints, part: int) -> Ints:
    """For each inner bound, that part of the way to the nearer of its neighbours."""
    gaps = np.diff(bounds)
    step: Ints = np.maximum(np.minimum(gaps[:-1], gaps[1:]) // part, 1)
    return step


def _lloyd(line: Line, bounds: Ints, error: float, converged: float) -> Ints:
    """Nearest means and means of the nearest in turns, until a turn gains less than a share."""
    while True:
        previous = error
        bounds = line.assign(line.means(bounds))
        error = float(line.error(bounds[:-1], bounds[1:]).sum())
        if error >= previous * (1 - converged):
            return bounds


def _shift(line: Line, bounds: Ints, step: Ints) -> tuple[Ints, float]:
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
