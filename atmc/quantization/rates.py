"""What nonzeros cost in a file, estimated: positions, codes, levels; k and bits for a budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atmc.quantization.codebooks import quantized_codebook

FLOAT_BITS = 32  # float values, no codebook
_FREQUENCY_BITS = 3  # of a level: its entry in the frequency table, where there is one
CHOICES = range(1, 9)  # bits a value
_LEAST_MORE, _MOST_MORE = 2, 5  # bits of a level beyond those of its index
_AHEAD = 2  # bits beyond those that a tensor has, looked at for the next step
_DIGITS = ((20, 11), (10, 10), (0, 10))  # shift and width in bits of the parts of a float32
_TENSOR_BITS = 40  # counts, exponent and flags of one factor, rounded up

Curve = Callable[[int], tuple[float, float]]  # error and rate of a tensor, by bits a value


def level_bits(bits: int, nonzeros: int) -> int:
    """Bits that a level of a ``bits``-bit codebook of so many nonzeros is stored in.

    A bit more for every level quarters the squared error of rounding levels, one more for every
    value that of having so few of them: where n values share L levels, a level is worth
    log2(n / L) / 2 bits more than its index; and one more, as most levels are closer than average.
    """
    levels = min(2**bits, max(nonzeros, 1))
    more = math.ceil(math.log2(max(nonzeros, 1) / levels) / 2) + 1
    return min(16, bits + min(max(more, _LEAST_MORE), _MOST_MORE))


def position_bits(size: int, nonzeros: int) -> float:
    """The zeroth-order entropy of the positions of ``nonzeros`` among ``size`` entries."""
    if nonzeros in (0, size):
        return 0.0
    p = nonzeros / size
    return -size * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def factor_bits(size: int, nonzeros: int, bits: int, value_bits: float | None = None) -> float:
    """What a factor costs in the file, estimated.

    Args:
        size: its entries.
        nonzeros: how many there are.
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


def nonzeros_for_budget(
    scores: Sequence[Tensor],
    bits: Sequence[int],
    available_bits: float,
    value_bits: Sequence[float] | None = None,
) -> list[int]:
    """Nonzeros of each factor at a k that fits ``available_bits`` where k + 1 would not, estimated.

    The k best of ``scores`` fall where they fall: tensors are charged by how many of their
    entries are among them, ties going to the earlier tensor. Three histograms of the scores, of
    one third of their bits after the other, serve all k that are tried.

    Args:
        scores: of every factor, as the projection ranks them; compared in float32.
        bits: b of every factor.
        available_bits: what the file has left for factors.
        value_bits: measured bits a code of every factor.
    """
    values = [None] * len(bits) if value_bits is None else value_bits

    def fits(selected: Iterable[int]) -> bool:
        costs = (
            factor_bits(score.numel(), int(n), b, v)
            for score, n, b, v in zip(scores, selected, bits, values, strict=True)
        )
        return sum(costs) <= available_bits

    # Patterns of floats that are not negative are ordered as the floats are.
    rest = [score.detach().reshape(-1).float().view(torch.int32) for score in scores]
    rest = [patterns[patterns > 0] for patterns in rest]
    selected = np.array([patterns.numel() for patterns in rest])
    if fits(selected):
        return [int(n) for n in selected]
    selected[:] = 0
    for shift, width in _DIGITS:
        digits = [(patterns >> shift) & (1 << width) - 1 for patterns in rest]
        counts = _histograms(digits)
        # Column d: how many entries have digit d or a larger one; the last column has none.
        down_to = selected[:, None] + np.pad(
            counts[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1))
        )
        columns = list(down_to.T)
        first = bisect_left(columns[:-1], True, key=fits)
        selected = columns[first]
        # Those just below, of which some fit.
        rest = [p[d == first - 1] for p, d in zip(rest, digits, strict=True)]
    tied = [patterns.numel() for patterns in rest]

    def filled(more: int) -> list[int]:
        out = []
        for n, most in zip(selected, tied, strict=True):
            taken = min(more, most)
            more -= taken
            out.append(int(n) + taken)
        return out

    over = bisect_left(range(1, sum(tied)), True, key=lambda more: not fits(filled(more)))
    return filled(over)


def _histograms(digits: Sequence[Tensor]) -> npt.NDArray[np.int64]:
    """How often each digit occurs, a row a tensor."""
    largest = max((int(d.amax()) for d in digits if d.numel()), default=0)
    rows = [torch.bincount(d, minlength=largest + 1) for d in digits]
    return torch.stack([row.cpu() for row in rows]).numpy()


def _curve(tensor: Tensor, sensitivity: float, rdo: bool) -> Curve:
    """The curve of a tensor that has nonzeros, measured where it is asked for, once."""
    values = tensor.detach()[tensor != 0]

    @cache
    def curve(bits: int) -> tuple[float, float]:
        book = quantized_codebook(values, 2**bits, level_bits(bits, len(values)), rdo=rdo)
        gaps = values.double() - book.levels.to(values.device)[book.codes]
        error = float(gaps.square().sum())
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
