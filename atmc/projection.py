"""Projections onto l0 constraint sets: one budget for many tensors, per layer, filters, columns.

Every function is pure. A projection keeps the entries of largest magnitude and zeroes the others,
which is the nearest point of the set in the Euclidean norm.

The budget shared by all tensors is that of Gui et al. (NeurIPS 2019); budgets per layer, filters
and columns are those of Ye et al. (ICCV 2019).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "project_columns",
    "project_filters",
    "project_topk",
    "select",
    "topk_masks",
]

_DIGIT = 16

# The narrowing pass: below _SMALL entries it does not pay; it works in blocks that stay in the
# cache. A bracket is around a threshold that was given, or from a sample of _SAMPLED entries.
# Neighbours of up to _TINY entries are joined: a call costs more than they do.
_SMALL = 2**17
_TINY = 2**15
_SORTED = 2**15  # entries that are sorted sooner than counted, as those in a bracket are
_BLOCK = 2**17
_AROUND = 0.02
_SAMPLED = 2**16


@dataclass(frozen=True, eq=False)
class Selection:
    """The k best entries of all tensors.

    Attributes:
        masks: one bool mask a tensor, of its shape and on its device.
        threshold: score / cost of the best entry that was not kept for want of budget; 0 where
            none was.
    """

    masks: list[Tensor]
    threshold: float


def topk_masks(
    scores: Sequence[Tensor], k: float, costs: Sequence[float] | None = None
) -> list[Tensor]:
    """Bool masks of the ``k`` largest scores over all tensors together.

    Never more than ``k`` entries are kept, and fewer only where there are fewer positive scores:
    a score of zero is never kept. Ties go to the earlier tensor, then to the lower flat index.

    With ``costs`` the entries are ranked by score / cost, and ``k`` is a budget in the unit of the
    costs: the longest prefix of that ranking whose total cost is at most ``k`` is kept. This is
    the greedy solution of the knapsack problem; it is exact for the ranking (no other choice of
    the same cost has a larger total score), but may leave less than one entry's cost unspent. The
    total is formed in float64: the number kept at each distinct cost times that cost, added in the
    order in which the costs first appear. Costs of 1 give the plain result.

    Examples:
        >>> masks = topk_masks([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], 2)
        >>> [mask.tolist() for mask in masks]
        [[True, False], [True]]

    Args:
        scores: nonnegative float tensors of any shape, dtype and device; infinity is allowed. They
            are compared (and divided) in float32, or in float64 where one of them is float64.
        k: number of entries, or the budget; at least 0.
        costs: one positive number a tensor, the cost of each of its entries. A tensor of infinite
            cost keeps nothing.

    Returns:
        One mask a tensor, of its shape and on its device.

    Raises:
        ValueError: ``k`` negative or NaN; a score negative, NaN or not floating point; a cost not
            positive, or not one for each tensor.
    """
    return select(scores, k, costs).masks


def select(
    scores: Sequence[Tensor],
    k: float,
    costs: Sequence[float] | None = None,
    near: float = 0.0,
    out: Sequence[Tensor] | None = None,
    around: float = _AROUND,
) -> Selection:
    """``topk_masks``, with the threshold, by which the next selection is found faster.

    One pass over the entries marks those that are certainly kept and collects the few in a bracket
    around the threshold, among which the answer is then exact. The bracket is that around
    ``near``, or comes from a sample; where it misses, every entry is ranked.

    Args:
        scores: as in ``topk_masks``.
        k: likewise.
        costs: likewise.
        near: the threshold of an earlier selection whose scores and ``k`` were similar. It changes
            the time, never the answer.
        out: contiguous bool tensors of the scores' shapes to write the masks into: for many
            entries, fresh memory costs as much as the selection.
        around: half the width of the bracket around ``near``, as a share of it: by how much the
            threshold may have moved. It changes the time, never the answer.

    Raises:
        ValueError: as ``topk_masks``.
    """
    if not k >= 0:
        raise ValueError(f"k must be 0 or more, got {k}")
    prices = [1.0] * len(scores) if costs is None else [float(cost) for cost in costs]
    if len(prices) != len(scores):
        raise ValueError(f"{len(prices)} costs for {len(scores)} tensors; give one for each")
    if not all(price > 0 for price in prices):
        raise ValueError(f"costs must be positive, got {prices}")
    scores = [score.detach() for score in scores]
    _check(scores)

    masks = [s.new_empty(s.shape, dtype=torch.bool) for s in scores] if out is None else list(out)
    # Tensors of one cost share a histogram. Infinite costs are out of the competition.
    finite = dict.fromkeys(price for price in prices if price < math.inf)
    unit = {price: row for row, price in enumerate(finite)}
    double = any(score.dtype == torch.float64 for score in scores)
    for mask, price in zip(masks, prices, strict=True):
        if price not in unit:
            mask.zero_()
    runs = list(_runs(scores, prices))
    entries = [
        _Entries(score, mask, price, unit[price], double)
        for score, mask, price in (_joined(scores, masks, prices, run) for run in runs)
    ]
    if not entries:
        return Selection(masks, 0.0)
    above, rest = _narrow(entries, list(unit), k, near, around)
    bits = [each.bits for each in rest]
    rows = [each.row for each in entries]
    threshold, spent, ties = _threshold(bits, rows, list(unit), k, 64 if double else 32, above)

    filling = threshold > 0
    for each, part, tied in zip(entries, rest, ties, strict=True):
        keep = part.bits > threshold
        if filling:
            fits = _most(spent, each.row, tied, list(unit), k)
            spent[each.row] += fits
            filling = fits == tied
            if fits:
                keep[(part.bits == threshold).nonzero()[:fits, 0]] = True
        each.keep(part, keep)
    for run, each in zip(runs, entries, strict=True):
        if len(run) > 1:
            parts = torch.split(each.mask, [masks[index].numel() for index in run])
            for index, mask in zip(run, parts, strict=True):
                masks[index].view(-1).copy_(mask)
    return Selection(masks, _value(threshold, double))


def _runs(scores: Sequence[Tensor], prices: Sequence[float]) -> Iterator[list[int]]:
    """Indices of the tensors in competition, in order; small neighbours of one kind together."""
    run: list[int] = []
    for index, (score, price) in enumerate(zip(scores, prices, strict=True)):
        if price == math.inf:
            continue
        if run:
            last = scores[run[-1]]
            alike = price == prices[run[-1]] and score.dtype == last.dtype
            if alike and score.device == last.device and max(score.numel(), last.numel()) <= _TINY:
                run.append(index)
                continue
            yield run
        run = [index]
    if run:
        yield run


def _joined(
    scores: Sequence[Tensor], masks: Sequence[Tensor], prices: Sequence[float], run: Sequence[int]
) -> tuple[Tensor, Tensor, float]:
    """Score, mask and price of a run, flat; the mask of more than one tensor is a new one."""
    first = run[0]
    if len(run) == 1:
        return scores[first].reshape(-1), masks[first].view(-1), prices[first]
    score = torch.cat([scores[index].reshape(-1) for index in run])
    return score, score.new_empty(score.shape, dtype=torch.bool), prices[first]


def project_topk(
    tensors: Sequence[Tensor],
    k: float,
    scores: Sequence[Tensor] | None = None,
    costs: Sequence[float] | None = None,
) -> list[Tensor]:
    """The tensors, zero outside ``topk_masks(scores, k, costs)``.

    Scores default to the magnitudes, which makes it the projection onto "at most ``k`` nonzeros in
    all tensors together" (Gui et al., NeurIPS 2019). Raises as ``topk_masks`` does, and ValueError
    where the scores do not have the tensors' shapes.
    """
    if scores is None:
        scores = [tensor.detach().abs() for tensor in tensors]
    elif [score.shape for score in scores] != [tensor.shape for tensor in tensors]:
        raise ValueError("scores must have the shapes of the tensors, one for each")
    masks = topk_masks(scores, k, costs)
    return [tensor.masked_fill(~mask, 0) for tensor, mask in zip(tensors, masks, strict=True)]


def project_filters(tensor: Tensor, count: int) -> Tensor:
    """The ``count`` filters (rows of the (rows, rest) matrix) of largest L2 norm, zero elsewhere.

    Rows are the first dimension. Ties go to the lower row; rows of zeros never count. Raises as
    ``topk_masks`` does, and ValueError for a tensor without dimensions. (Ye et al., ICCV 2019.)
    """
    return _project_lines(tensor, count, 1)


def project_columns(tensor: Tensor, count: int) -> Tensor:
    """The ``count`` columns of the (rows, rest) matrix of largest L2 norm, zero elsewhere.

    A column is one position of a filter, across all filters. Ties go to the lower column; columns
    of zeros never count. Raises as ``project_filters`` does. (Ye et al., ICCV 2019.)
    """
    return _project_lines(tensor, count, 0)


def _project_lines(tensor: Tensor, count: int, along: int) -> Tensor:
    if tensor.dim() == 0:
        raise ValueError("a tensor without dimensions has no rows; give at least one dimension")
    matrix = tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))
    norms = torch.linalg.vector_norm(matrix.detach(), dim=along, keepdim=True, dtype=torch.float64)
    (mask,) = topk_masks([norms], count)
    return matrix.masked_fill(~mask, 0).reshape(tensor.shape)


def _check(scores: Sequence[Tensor]) -> None:
    """Raise ValueError unless every score is a float, at least 0 and not NaN."""
    for score in scores:
        if not score.is_floating_point():
            raise ValueError(f"scores must be float tensors, got {score.dtype}; convert them first")
    # The minimum is NaN where any entry is. One transfer a device, not one a tensor.
    lowest = [score.amin().double() for score in scores if score.numel()]
    for device in {low.device for low in lowest}:
        least = float(torch.stack([low for low in lowest if low.device == device]).amin())
        if math.isnan(least):
            raise ValueError("scores hold NaN; find where it arose")
        if least < 0:
            raise ValueError(f"scores must be 0 or more, got {least}; take magnitudes first")


def _bits(score: Tensor, price: float, double: bool) -> Tensor:
    """Flat int32 (or int64) patterns of score / price, ordered as the numbers are.

    Those of nonnegative floats are. A zero of negative sign comes out below all others. A quotient
    that underflows is the smallest positive number, since only zeros may count as zeros.
    """
    flat = score.reshape(-1).to(torch.float64 if double else torch.float32)
    pattern = torch.int64 if double else torch.int32
    if price == 1:
        return flat.view(pattern)
    return torch.maximum((flat / price).view(pattern), (flat > 0).to(pattern))


def _pattern(value: float, double: bool) -> int:
    """The pattern of one number."""
    kind = np.float64 if double else np.float32
    with np.errstate(over="ignore", under="ignore"):
        return int(kind(value).view(np.int64 if double else np.int32))


def _value(pattern: int, double: bool) -> float:
    """The number of a pattern."""
    kind = np.int64 if double else np.int32
    return float(kind(pattern).view(np.float64 if double else np.float32))


@dataclass(frozen=True, eq=False)
class _Part:
    """Some entries of a tensor: their patterns, and where they are (None: all, in order)."""

    bits: Tensor
    places: Tensor | None


@dataclass(frozen=True, eq=False)
class _Entries:
    """One tensor of the competition, flat, with its mask, price, and row in the histogram."""

    score: Tensor
    mask: Tensor
    price: float
    row: int
    double: bool

    def all(self) -> _Part:
        """Every entry."""
        return _Part(_bits(self.score, self.price, self.double), None)

    def sample(self, stride: int) -> Tensor:
        """Patterns of every ``stride``-th entry."""
        return _bits(self.score[::stride], self.price, self.double)

    def split(self, low: int, high: int) -> tuple[int, _Part]:
        """Mark and count the entries above ``high``; the part from ``low`` to ``high``."""
        if self.score.device.type == "cpu":
            return self._split_in_blocks(low, high)
        bits = _bits(self.score, self.price, self.double)
        torch.gt(bits, high, out=self.mask)
        inside = ((bits >= low) ^ self.mask).nonzero()[:, 0]
        return int(torch.count_nonzero(self.mask)), _Part(bits[inside], inside)

    def _split_in_blocks(self, low: int, high: int) -> tuple[int, _Part]:
        # By numpy, whose comparisons write bools several times faster than torch's.
        above = 0
        places, found = [np.empty(0, dtype=np.int64)], []
        mask, between = self.mask.numpy(), np.empty(_BLOCK, dtype=np.bool_)
        for start in range(0, self.score.numel(), _BLOCK):
            score = self.score[start : start + _BLOCK]
            bits = _bits(score, self.price, self.double).numpy()
            over, inside = mask[start : start + _BLOCK], between[: len(bits)]
            np.greater(bits, high, out=over)
            above += int(np.count_nonzero(over))
            np.greater_equal(bits, low, out=inside)
            np.bitwise_xor(inside, over, out=inside)
            at = np.flatnonzero(inside)
            found.append(bits[at])
            places.append(at + start)
        kind = np.int64 if self.double else np.int32
        chosen = np.concatenate(found) if found else np.empty(0, dtype=kind)
        return above, _Part(torch.from_numpy(chosen), torch.from_numpy(np.concatenate(places)))

    def keep(self, part: _Part, chosen: Tensor) -> None:
        """Mark the chosen entries of a part; what was marked before stays."""
        if part.places is None:
            self.mask.copy_(chosen)
        else:
            self.mask[part.places[chosen]] = True


def _narrow(
    entries: Sequence[_Entries], prices: Sequence[float], k: float, near: float, around: float
) -> tuple[npt.NDArray[np.int64], list[_Part]]:
    """Mark what is certainly kept; count it by price, and return what is left to rank."""
    total = sum(each.score.numel() for each in entries)
    if total >= _SMALL:
        for low, high in _brackets(entries, prices, k, near, around, total):
            above = np.zeros(len(prices), dtype=np.int64)
            upto = above.copy()
            parts = []
            for each in entries:
                count, part = each.split(low, high)
                above[each.row] += count
                upto[each.row] += count + part.bits.numel()
                parts.append(part)
            # The first entry that does not fit must be in the bracket, unless all of them are.
            fits = _total(above[:, None], prices)[0] <= k
            if fits and (low == 1 or _total(upto[:, None], prices)[0] > k):
                return above, parts
    return np.zeros(len(prices), dtype=np.int64), [each.all() for each in entries]


def _total(counts: npt.NDArray[np.int64], prices: Sequence[float]) -> npt.NDArray[np.float64]:
    """Cost of ``counts`` (prices x ...) entries; monotone in them, in spite of rounding."""
    total = np.zeros(counts.shape[1:])
    for count, price in zip(counts, prices, strict=True):
        total = total + count * price
    return total


def _most(
    spent: npt.NDArray[np.int64], row: int, tied: int, prices: Sequence[float], k: float
) -> int:
    """The most of ``tied`` entries at ``prices[row]`` that fit beside those ``spent``."""

    def fits(count: int) -> bool:
        more = spent.copy()
        more[row] += count
        return bool(_total(more, prices) <= k)

    low, high = 0, tied
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _brackets(
    entries: Sequence[_Entries],
    prices: Sequence[float],
    k: float,
    near: float,
    around: float,
    total: int,
) -> Iterator[tuple[int, int]]:
    """Patterns between which the threshold should lie: around ``near``, then from a sample."""
    double = entries[0].double
    if 0 < near < math.inf:
        low, high = (_pattern(near * side, double) for side in (1 - around, 1 + around))
        yield max(1, low), high
    stride = total // _SAMPLED | 1  # odd: in step with fewer of the tensors' own strides
    samples = [each.sample(stride).cpu().numpy() for each in entries]
    patterns = np.concatenate(samples).clip(min=0)
    cost = np.concatenate(
        [np.full(len(s), prices[each.row]) for s, each in zip(samples, entries, strict=True)]
    )
    order = np.argsort(-patterns, kind="stable")
    crossed = int(np.searchsorted(np.cumsum(cost[order]), k / stride))
    margin = 8 + int(6 * math.sqrt(crossed))
    last = len(order) - 1
    high = patterns[order[crossed - margin]] if crossed >= margin else np.iinfo(np.int64).max
    low = patterns[order[crossed + margin]] if crossed + margin <= last else 1
    yield max(1, int(low)), max(1, int(min(high, _pattern(math.inf, double))))


def _threshold(
    bits: Sequence[Tensor],
    rows: Sequence[int],
    prices: Sequence[float],
    k: float,
    width: int,
    start: npt.NDArray[np.int64],
) -> tuple[int, npt.NDArray[np.int64], list[int]]:
    """The first pattern, from the largest, whose entries do not all fit into the budget ``k``.

    Radix selection: each pass counts one digit of 16 bits, from the most significant, of the
    entries that agree with the threshold in the digits before.

    Args:
        bits: flat integer patterns, a tensor each.
        rows: for each tensor, the index of its price.
        prices: distinct prices.
        k: the budget.
        width: bits of a pattern.
        start: entries kept already at each price; every pattern given is below theirs.

    Returns:
        The threshold (0 where all positive entries fit), the number of entries above it at each
        price, and the number of entries equal to it in each tensor.
    """
    if len(prices) == 1 and sum(left.numel() for left in bits) <= _SORTED:
        return _threshold_by_sorting(bits, prices, k, start)
    threshold = 0
    above = start
    rest = list(bits)
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        # Without the sign, so that zeros of negative sign count as zeros.
        mask = 0x7FFF if shift == width - _DIGIT else 0xFFFF
        counts = np.zeros((len(prices), mask + 1), dtype=np.int64)
        for row, left in zip(rows, rest, strict=True):
            if left.numel():
                digits = (left >> shift) & mask
                counts[row] += torch.bincount(digits, minlength=mask + 1).cpu().numpy()
        down_to = above[:, None] + counts[:, ::-1].cumsum(axis=1)[:, ::-1]
        over = np.flatnonzero(_total(down_to, prices) > k)
        if over.size == 0:
            return 0, above, [0] * len(rest)
        found = int(over[-1])
        above = down_to[:, found] - counts[:, found]
        threshold |= found << shift
        # The digits are formed again: kept, they would be a copy of every tensor at once.
        rest = [left[(left >> shift) & mask == found] for left in rest]
    return threshold, above, [left.numel() for left in rest]


def _threshold_by_sorting(
    bits: Sequence[Tensor],
    prices: Sequence[float],
    k: float,
    start: npt.NDArray[np.int64],
) -> tuple[int, npt.NDArray[np.int64], list[int]]:
    """``_threshold`` of few entries at one price."""
    held = [np.maximum(left.cpu().numpy(), 0) for left in bits]  # zeros of negative sign
    ranked = np.sort(np.concatenate(held))
    positive = ranked.size - int(np.searchsorted(ranked, 0, side="right"))
    fits = _most(start, 0, positive, prices, k)
    if fits == positive:
        return 0, start + positive, [0] * len(held)
    threshold = int(ranked[-1 - fits])
    above = ranked.size - int(np.searchsorted(ranked, threshold, side="right"))
    return threshold, start + above, [int((left == threshold).sum()) for left in held]
