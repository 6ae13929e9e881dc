"""The bit-size accountant: dense size, paper bits, file bits, and budget → (k, b).

All sizes are in bits. Paper bits are nonzeros × b, the size that papers report; file bits are
8 × the length of the artifact, as the codec writes it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from atmc import codec
from atmc.artifact import DENSE_WIDTHS, BudgetError, to_artifact
from atmc.factorization import (
    factorize,
    factorized_weights,
    named_factors,
    plain_weights,
    weight_names,
)
from atmc.preparation import copy_model
from atmc.projection import topk_masks
from atmc.quantization import quantized_codebook

FLOAT_BITS = 32  # values kept as they are, no codebook

_FREQUENCY_BITS = 3  # of a level: its entry in the frequency table, where there is one
CHOICES = range(1, 9)  # bits a value
_LEAST_MORE, _MOST_MORE = 2, 5  # bits of a level beyond those of its index
_AHEAD = 2  # bits beyond those that a tensor has, looked at for the next step
_HALF = 16  # bits of a float32, taken at a time
_TENSOR_BITS = 40  # counts, exponent and flags of one factor, rounded up


def level_bits(bits: int, nonzeros: int) -> int:
    """Bits that a level of a ``bits``-bit codebook of so many nonzeros is stored in.

    A bit more for every level quarters the squared error of rounding levels, one more for every
    value that of having so few of them: where n values share L levels, a level is worth
    log2(n / L) / 2 bits more than its index; and one more, as most levels are closer than average.
    """
    levels = min(2**bits, max(nonzeros, 1))
    more = math.ceil(math.log2(max(nonzeros, 1) / levels) / 2) + 1
    return min(16, bits + min(max(more, _LEAST_MORE), _MOST_MORE))


def dense_bits(model: nn.Module) -> int:
    """Weights of Conv and Linear layers × 32 bits, the dense size as the papers count it.

    The projections inside attention and the matrices of recurrent layers are linear layers too. A
    tied weight counts once.
    """
    weights: dict[int, Tensor] = {}  # by identity
    with plain_weights(model):
        for module in model.modules():
            for name in weight_names(module):
                weight = getattr(module, name)
                if weight is not None:
                    weights[id(weight)] = weight
    return 32 * sum(weight.numel() for weight in weights.values())


def paper_bits(tensors: Mapping[str, Tensor], bits: Mapping[str, int]) -> int:
    """Σ nonzeros × b over the factors."""
    return sum(int(torch.count_nonzero(tensor)) * bits[name] for name, tensor in tensors.items())


def file_bits(
    model: nn.Module, *, width: int = 8, meta: dict[str, Any] | None = None
) -> codec.Sizes:
    """The size of the artifact of a factorized model, per tensor and part, to the bit."""
    return codec.measure(to_artifact(model, width=width, meta=meta))


def _empty(model: nn.Module) -> nn.Module:
    """A copy with every factor zero."""
    empty = copy_model(model)
    if not factorized_weights(empty):
        factorize(empty)
    with torch.no_grad():
        for factor in named_factors(empty).values():
            factor.zero_()
    return empty


def empty_artifact(
    model: nn.Module, width: int, meta: dict[str, Any] | None = None
) -> codec.Artifact:
    """The artifact of a model, factorized or not, with every factor zero."""
    return to_artifact(_empty(model), width=width, meta=meta)


def fixed_bits(model: nn.Module, *, width: int, meta: dict[str, Any] | None = None) -> int:
    """The most that the file can take with every factor zero, whatever the dense part holds."""
    return codec.largest_bits(empty_artifact(model, width, meta), [width])[width]


def smallest_bits(model: nn.Module, *, meta: dict[str, Any] | None = None) -> int:
    """The smallest budget that can be promised: every factor zero, the dense part at its least."""
    return fixed_bits(model, width=min(DENSE_WIDTHS), meta=meta)


def dense_width(
    model: nn.Module,
    budget_bits: int,
    *,
    bits: int = max(CHOICES),
    meta: dict[str, Any] | None = None,
) -> int:
    """Bits a value of the dense part: the most that leave two thirds of the budget to factors.

    Or as much as they can take, every weight at ``bits`` bits, where that is less.

    Raises:
        BudgetError: no file fits; the message gives the smallest N that does.
    """
    empty = _empty(model)
    fixed = codec.largest_bits(to_artifact(empty, meta=meta), DENSE_WIDTHS)
    least = fixed[min(DENSE_WIDTHS)]
    if budget_bits < least:
        raise BudgetError(
            f"a budget of {budget_bits} bits is too small: the smallest possible file of this "
            f"model is {least} bits ({math.ceil(least / 8)} bytes)",
            least,
        )
    sizes = [weight.factors[weight.carrier].numel() for weight in factorized_weights(empty)]
    most = sum(factor_bits(size, size, bits) for size in sizes)
    for width in DENSE_WIDTHS:
        if fixed[width] <= max(budget_bits / 3, budget_bits - most):
            return width
    return min(DENSE_WIDTHS)


def position_bits(size: int, nonzeros: int) -> float:
    """The zeroth-order entropy of which ``nonzeros`` of ``size`` entries are kept."""
    if nonzeros in (0, size):
        return 0.0
    p = nonzeros / size
    return -size * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def factor_bits(size: int, nonzeros: int, bits: int, value_bits: float | None = None) -> float:
    """What a factor costs in the file, estimated.

    Args:
        size: its entries.
        nonzeros: how many are kept.
        bits: b; 32 for no codebook.
        value_bits: bits a code really takes (its entropy), b if not known.

    Levels are charged as a subset of those that :func:`level_bits` allows, codes by their entropy
    and a frequency table or without, whichever is shorter: as the codec writes them.
    """
    if nonzeros == 0:
        return 2.0
    places = position_bits(size, nonzeros) + _TENSOR_BITS
    if bits == FLOAT_BITS:
        return places + nonzeros * FLOAT_BITS
    levels = min(2**bits, nonzeros)
    book = position_bits(2 ** level_bits(bits, nonzeros) - 2, levels)
    values = nonzeros * math.log2(levels)
    if value_bits is not None:
        values = min(values, nonzeros * value_bits + levels * _FREQUENCY_BITS)
    return places + book + values


def k_for_budget(
    scores: Sequence[Tensor],
    bits: Sequence[int],
    available_bits: float,
    value_bits: Sequence[float] | None = None,
) -> int:
    """A k whose factors fit ``available_bits`` where those of k + 1 would not, estimated.

    The k best of ``scores`` fall where they fall: tensors are charged by how many of their
    entries are among them, ties going to the earlier tensor. Two histograms of the scores, of the
    first and of the last half of their bits, serve all k that are tried.

    Args:
        scores: of every factor, as the projection ranks them; compared in float32.
        bits: b of every factor.
        available_bits: what the file has left for factors.
        value_bits: measured bits a code of every factor.
    """
    values = [None] * len(bits) if value_bits is None else value_bits

    def fits(kept: Iterable[int]) -> bool:
        costs = (
            factor_bits(score.numel(), int(n), b, v)
            for score, n, b, v in zip(scores, kept, bits, values, strict=True)
        )
        return sum(costs) <= available_bits

    # Patterns of floats that are not negative are ordered as the floats are.
    rest = [score.detach().reshape(-1).float().view(torch.int32) for score in scores]
    rest = [patterns[patterns > 0] for patterns in rest]
    kept = np.array([patterns.numel() for patterns in rest])
    if fits(kept):
        return int(kept.sum())
    kept[:] = 0
    for shift in (_HALF, 0):
        digits = [(patterns >> shift) & (1 << _HALF) - 1 for patterns in rest]
        counts = _histograms(digits)
        # Column d: how many entries have digit d or a larger one; the last column has none.
        down_to = kept[:, None] + np.pad(counts[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1)))
        columns = list(down_to.T)
        first = bisect_left(columns[:-1], True, key=fits)
        kept = columns[first]
        # Those just below, of which some fit.
        rest = [p[d == first - 1] for p, d in zip(rest, digits, strict=True)]
    tied = [patterns.numel() for patterns in rest]

    def filled(more: int) -> list[int]:
        out = []
        for n, most in zip(kept, tied, strict=True):
            taken = min(more, most)
            more -= taken
            out.append(int(n) + taken)
        return out

    over = bisect_left(range(1, sum(tied)), True, key=lambda more: not fits(filled(more)))
    return int(kept.sum()) + over


def _histograms(digits: Sequence[Tensor]) -> npt.NDArray[np.int64]:
    """How often each digit occurs, a row a tensor."""
    largest = max((int(d.amax()) for d in digits if d.numel()), default=0)
    rows = [torch.bincount(d, minlength=largest + 1) for d in digits]
    return torch.stack([row.cpu() for row in rows]).numpy()


@dataclass(frozen=True)
class Plan:
    """A budget turned into what training is given: k, b per tensor, the dense part's width.

    ``file_bits`` is the file expected of it: the dense part at its most, the factors estimated.
    """

    k: int
    bits: dict[str, int]
    width: int
    budget_bits: int
    file_bits: float


def plan(
    model: nn.Module,
    scores: Sequence[Tensor],
    budget_bits: int,
    bits: int,
    *,
    meta: dict[str, Any] | None = None,
) -> Plan:
    """Budget → (k, b per tensor), before any training, with the file size expected of it.

    Args:
        model: factorized.
        scores: by which the projection will rank, in the order of the factors.
        budget_bits: N.
        bits: b to start from.
        meta: see :func:`atmc.artifact.to_artifact`.

    Raises:
        BudgetError: N is below the smallest possible file.
    """
    width = dense_width(model, budget_bits, meta=meta)
    fixed = fixed_bits(model, width=width, meta=meta)
    names = list(named_factors(model))
    k = k_for_budget(scores, [bits] * len(names), budget_bits - fixed)
    masks = topk_masks(scores, k)
    used = sum(factor_bits(mask.numel(), int(mask.sum()), bits) for mask in masks)
    return Plan(k, dict.fromkeys(names, bits), width, budget_bits, fixed + used)


Curve = Callable[[int], tuple[float, float]]  # error and rate of a tensor, by bits a value


def _curve(tensor: Tensor, sensitivity: float, rdo: bool) -> Curve:
    """The curve of a tensor that has nonzeros, measured where it is asked for, once."""
    values = tensor.detach()[tensor != 0].double()

    @cache
    def curve(bits: int) -> tuple[float, float]:
        book = quantized_codebook(values, 2**bits, level_bits(bits, len(values)), rdo=rdo)
        error = float((values - book.levels.to(values)[book.codes]).square().sum())
        rate = factor_bits(tensor.numel(), len(values), bits, code_bits(book.codes))
        return sensitivity * error, rate

    return curve


@dataclass(frozen=True)
class RateDistortion:
    """What each tensor would lose and cost at 1 to 8 bits a value.

    Attributes:
        names: of all tensors, the empty ones too.
        curves: of each nonempty tensor: Σ s_t ‖θ_t - θ'_t‖², and its bits in the file, estimated.
        energy: Σ s_t ‖θ_t‖² over all.
    """

    names: tuple[str, ...]
    curves: Mapping[str, Curve]
    energy: float

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], sensitivity: Mapping[str, float], *, rdo: bool = False
    ) -> RateDistortion:
        """Measure tensors, as far as the choice of bits asks for it.

        Args:
            tensors: the factors, zeros where they are pruned.
            sensitivity: s_t, what squared error in a tensor is worth to its layer.
            rdo: how tensors will be rounded, see :func:`atmc.quantization.quantized_codebook`.
        """
        filled = {name: tensor for name, tensor in tensors.items() if bool(tensor.any())}
        curves = {name: _curve(tensor, sensitivity[name], rdo) for name, tensor in filled.items()}
        energy = sum(
            sensitivity[name] * float(tensor.detach().double().square().sum())
            for name, tensor in filled.items()
        )
        return cls(tuple(tensors), curves, energy)

    def choose(self, distortion: float) -> dict[str, int]:
        """b per tensor: the fewest bits whose error stays in bounds.

        From one bit each, the tensor where more bits buy the most error a bit of file gets them,
        until Σ s_t ‖θ_t - θ'_t‖² ≤ ``distortion`` · Σ s_t ‖θ_t‖². Mostly that is one bit more; of
        a few values one bit more may leave a larger error, and is passed over for two.

        Args:
            distortion: the bound, as a share of the whole.
        """
        for bits in self.path():
            if self.error(bits) <= distortion * self.energy:
                break
        return bits

    def error(self, bits: Mapping[str, int]) -> float:
        """Σ s_t ‖θ_t - θ'_t‖² at these bits."""
        return sum(curve(bits[name])[0] for name, curve in self.curves.items())

    def rate(self, bits: Mapping[str, int]) -> float:
        """Bits of all tensors in the file, estimated, at these bits a value."""
        return sum(curve(bits[name])[1] for name, curve in self.curves.items())

    def path(self) -> Iterator[dict[str, int]]:
        """All that :meth:`choose` may choose, from one bit each on: the next is one step finer.

        It ends where no more bits leave a smaller error.
        """
        chosen = dict.fromkeys(self.names, min(CHOICES))

        def step(name: str) -> tuple[float, int]:
            """The most error a bit of file that more bits for a tensor buy, and how many."""
            now, curve = chosen[name], self.curves[name]
            error, rate = curve(now)
            best, at = 0.0, now
            for bits in range(now + 1, max(CHOICES) + 1):
                # Finer codebooks take longer to find, and are mostly not the ones that are sought.
                if bits > now + _AHEAD and best > 0:
                    break
                gain = (error - curve(bits)[0]) / max(curve(bits)[1] - rate, 1e-9)
                if gain > best:
                    best, at = gain, bits
            return best, at

        steps = {name: step(name) for name in self.curves}
        while True:
            yield dict(chosen)
            name = max(steps, key=lambda name: steps[name][0], default="")
            if not name or steps[name][0] <= 0:
                return
            chosen[name] = steps[name][1]
            steps[name] = step(name)


def code_bits(codes: Tensor) -> float:
    """The zeroth-order entropy of codes, in bits a code; 0 for none."""
    if codes.numel() == 0:
        return 0.0
    share = torch.bincount(codes).double() / codes.numel()
    share = share[share > 0]
    return float(-(share * share.log2()).sum())
