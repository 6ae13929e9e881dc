"""Projections onto l0 constraint sets: one budget for many tensors, per layer, filters, columns.

Every function is pure. A projection leaves the entries of largest magnitude and zeroes the others,
which is the nearest point of the set in the Euclidean norm.

The budget shared by all tensors is that of Gui et al. (NeurIPS 2019); budgets per layer, filters
and columns are those of Ye et al. (ICCV 2019).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atmc.errors import NotFiniteError

__all__ = [
    "Selection",
    "project_columns",
    "project_filters",
    "project_topk",
    "select",
    "topk_masks",
]

_SMALL = 2**17  # below so many entries, ranking all of them is as fast as looking for a bracket
_BLOCK = 2**17  # entries that are compared while they are in the cache
_AROUND = 0.02
_SAMPLED, _AROUND_GUESS = 2**16, 0.1  # entries from which a threshold is guessed, and its bracket


@dataclass(frozen=True, eq=False)
class Selection:
    """The k best entries of a flat tensor.

    Attributes:
        mask: bool, of the shape and on the device of the scores.
        threshold: the best score beyond them; 0 where no positive one is.
    """

    mask: Tensor
    threshold: float


def topk_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Bool masks of the ``k`` largest scores over all tensors together.

    Never more than ``k`` entries are selected, and fewer only where there are fewer positive
    scores: a score of zero never is. Ties go to the earlier tensor, then to the lower flat index.

    Examples:
        >>> masks = topk_masks([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], 2)
        >>> [mask.tolist() for mask in masks]
        [[True, False], [True]]

    Args:
        scores: nonnegative float tensors of any shape and dtype, on one device; infinity is
            allowed. They are compared in float32, or in float64 where one of them is float64.
        k: number of entries, at least 0.

    Returns:
        One mask a tensor, of its shape.

    Raises:
        ValueError: ``k`` negative or NaN; a score negative, NaN or not floating point.
    """
    flat = [score.detach().reshape(-1) for score in scores]
    for score in flat:
        if not score.is_floating_point():
            raise ValueError(f"scores must be float tensors, got {score.dtype}; convert them first")
    mask = select(torch.cat(flat) if flat else torch.empty(0), k).mask
    parts = torch.split(mask, [score.numel() for score in flat])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def select(
    scores: Tensor, k: int, near: float = 0.0, around: float = _AROUND, out: Tensor | None = None
) -> Selection:
    """The ``k`` largest of flat scores, and the threshold, which makes the next selection faster.

    One pass marks the entries that are certainly selected and collects the few in a bracket around
    ``near``, or around a guess from a sample, among which the answer is then exact. Where the
    bracket misses, all entries are ranked.

    Args:
        scores: as those of :func:`topk_masks`, of shape (n,).
        k: likewise.
        near: the threshold of an earlier selection whose scores and ``k`` were similar. It changes
            the time, never the answer; on a GPU it is not used.
        around: half the width of the bracket, as a share of ``near``: how far the threshold may
            have moved. It changes the time, never the answer.
        out: a bool tensor of shape (n,) to write the mask into: for many entries, fresh memory
            costs as much as the selection.

    Raises:
        ValueError: as :func:`topk_masks`.
    """
    if not k >= 0:
        raise ValueError(f"k must be 0 or more, got {k}")
    if out is None:
        out = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    if scores.device.type != "cpu":
        return _select_on_device(scores.detach(), k, out)
    patterns = _patterns(scores.detach())
    room, rest = k, patterns
    places: Tensor | None = None
    if len(patterns) > _SMALL and near == 0:
        near, around = _guess(patterns, k), max(around, _AROUND_GUESS)
    if len(patterns) > _SMALL and 0 < near < math.inf:
        low, high = (_pattern(near * side, patterns) for side in (1 - around, 1 + around))
        above, between = _split(patterns, max(1, low), high, out)
        # The first entry that is not selected must be in the bracket, unless all of them are.
        if above <= k and (low <= 1 or above + len(between) > k):
            room, places, rest = k - above, between, patterns[between]
    threshold = _threshold(rest, room)
    chosen = rest > threshold
    if threshold > 0:
        tied = (rest == threshold).nonzero()[:, 0]
        chosen[tied[: room - int(torch.count_nonzero(chosen))]] = True
    if places is None:
        out.copy_(chosen)
    else:
        out[places[chosen]] = True
    return Selection(out, _value(threshold, patterns))


def project_topk(
    tensors: Sequence[Tensor],
    k: int,
    scores: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The tensors, zero outside ``topk_masks(scores, k)``.

    Scores default to the magnitudes, which makes it the projection onto "at most ``k`` nonzeros in
    all tensors together" (Gui et al., NeurIPS 2019). Raises as ``topk_masks`` does, and ValueError
    where the scores do not have the tensors' shapes.
    """
    if scores is None:
        scores = [tensor.detach().abs() for tensor in tensors]
    elif [score.shape for score in scores] != [tensor.shape for tensor in tensors]:
        raise ValueError("scores must have the shapes of the tensors, one for each")
    masks = topk_masks(scores, k)
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


def _select_on_device(scores: Tensor, k: int, out: Tensor) -> Selection:
    """The same by operations of fixed shapes: they wait for a GPU once, when the mask is there."""
    patterns = _bits(scores)
    if len(patterns) == 0:
        return Selection(out, 0.0)
    threshold = patterns.new_zeros(())
    if k < len(patterns):
        threshold = torch.topk(patterns, k + 1, sorted=False).values.amin().clamp(min=0)
    torch.gt(patterns, threshold, out=out)
    tied = (patterns == threshold) & (threshold > 0)
    room = k - torch.count_nonzero(out)
    out |= tied & (tied.cumsum(0, dtype=torch.int32) <= room)
    value = threshold.view(torch.float64 if patterns.dtype == torch.int64 else torch.float32)
    least, last = torch.stack([scores.amin().to(value.dtype), value]).tolist()
    _check(least)
    return Selection(out, last)


def _patterns(scores: Tensor) -> Tensor:
    """:func:`_bits` of scores that have been checked."""
    _check(float(scores.amin()) if scores.numel() else 0.0)
    return _bits(scores)


def _check(least: float) -> None:
    """Refuse scores by the least of them, which is NaN where any is."""
    if math.isnan(least):
        raise NotFiniteError("scores hold NaN; find where it arose")
    if least < 0:
        raise ValueError(f"scores must be 0 or more, got {least}; take magnitudes first")


def _bits(scores: Tensor) -> Tensor:
    """The bits of scores as int32 or int64, which are ordered as nonnegative floats are.

    A zero of negative sign comes out below all others.
    """
    if scores.dtype == torch.float64:
        return scores.view(torch.int64)
    return scores.float().view(torch.int32)


def _guess(patterns: Tensor, k: int) -> float:
    """The threshold of a sample; 0 where it has too few positive entries."""
    stride = len(patterns) // _SAMPLED | 1  # odd: in step with fewer of the tensors' strides
    sample = patterns[::stride].numpy()
    place = len(sample) - 1 - k // stride
    return _value(max(0, int(np.partition(sample, place)[place])), patterns) if place >= 0 else 0.0


def _pattern(value: float, like: Tensor) -> int:
    """The pattern of one number."""
    integer, kind = _types(like)
    with np.errstate(over="ignore", under="ignore"):
        return int(kind(value).view(integer))


def _value(pattern: int, like: Tensor) -> float:
    """The number of a pattern."""
    integer, kind = _types(like)
    return float(integer(pattern).view(kind))


def _types(patterns: Tensor) -> tuple[type[np.signedinteger], type[np.floating]]:
    return (np.int64, np.float64) if patterns.dtype == torch.int64 else (np.int32, np.float32)


def _split(patterns: Tensor, low: int, high: int, mask: Tensor) -> tuple[int, Tensor]:
    """Mark and count the entries above ``high``; indices of those from ``low`` to ``high``."""
    # By numpy, whose comparisons write bools several times faster than torch's.
    values, marks = patterns.numpy(), mask.numpy()
    count, places = 0, []
    for start in range(0, len(values), _BLOCK):
        block, above = values[start : start + _BLOCK], marks[start : start + _BLOCK]
        np.greater(block, high, out=above)
        count += int(np.count_nonzero(above))
        places.append(np.flatnonzero((block >= low) ^ above) + start)
    return count, torch.from_numpy(np.concatenate(places))


def _threshold(patterns: Tensor, room: int) -> int:
    """The largest pattern beyond the ``room`` best; 0 where no positive one is."""
    positive = patterns[patterns > 0]
    place = len(positive) - 1 - room
    if place < 0:
        return 0
    return int(np.partition(positive.numpy(), place)[place])
