"""The data-aware start: each weight as U V, as C, or as U V + C, by what the bits of it buy.

From the covariance of a layer's inputs (:mod:`~atmc.factorization.covariance`) follows what an
approximation of W does to the output, and from :mod:`atmc.quantization.rates` what it costs in the
file. One price λ for a bit is set for all layers: each takes the form, the rank, the number of
nonzeros and the bits a value that minimize error + λ · bits, the error being a share of the energy
of the layer's output; and λ is the one at which all of them together fit into the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from atmc.factorization.approximation import low_rank, refit_left, sparse, spectrum
from atmc.factorization.covariance import WIDEST, Covariance, bias_of, input_covariances
from atmc.factorization.layers import FactorizedWeight, factorized_weights
from atmc.factorization.norms import estimate_statistics
from atmc.quantization.codebooks import quantized_codebook
from atmc.quantization.rates import code_bits, factor_bits, level_bits

Factors = Literal["uvc", "uv", "c"]
_Array = npt.NDArray[np.float64]

# Which of its factors a weight may hold.
KINDS: dict[Factors, tuple[str, ...]] = {
    "uvc": ("uv", "c", "uvc", ""),
    "uv": ("uv",),
    "c": ("c", ""),
}

_BITS = (2, 3, 4, 5)  # a value
_DENSITIES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # at which sparse forms are tried, times the mean
_ENTRY_BITS = 7.0  # of a nonzero with its place, a guess for that mean
_ROUNDS = 4  # of exchanges, where only the error is wanted
_CURVE = 2**16  # entries by which the error of a sparse form is estimated
_GRID = 64  # numbers of nonzeros that are compared
_SAMPLED = 2**14  # values by which the error of codebooks is judged
_HALVINGS = 50  # of the interval of log λ
_CORRECTIONS = 3  # of estimated sizes by real ones
_CLOSE = 0.01  # share of the budget that may stay unused
_WIDEST_EXACT = 1024  # columns of W; training makes up for a choice by the diagonal


@dataclass(frozen=True)
class Form:
    """How a weight is written.

    Attributes:
        rank: of U V; 0 for none.
        product_bits: bits a value of U and of V.
        nonzeros: of C.
        sparse_bits: bits a value of C.
    """

    rank: int = 0
    product_bits: int = 4
    nonzeros: int = 0
    sparse_bits: int = 4

    @property
    def factors(self) -> str:
        """Which factors hold nonzeros: "uv", "c", "uvc" or none."""
        return "uv" * (self.rank > 0) + "c" * (self.nonzeros > 0)


@dataclass(frozen=True, eq=False)
class Approximation:
    """The factors of one weight, with a leading axis of groups.

    Attributes:
        form: what was asked for.
        U: (groups, rows, rank).
        V: (groups, rank, rest).
        C: (groups, rows, rest).
        bits: of the three in the file, estimated, rounded to codebooks.
        error: Σ d S d' over the rows d of W - U V - C, as a share of Σ w S w'.
    """

    form: Form
    U: Tensor
    V: Tensor
    C: Tensor
    bits: float
    error: float


@dataclass(frozen=True, eq=False)
class _Options:
    """Forms of one weight, by estimates; arrays of one length."""

    errors: _Array
    bits: _Array
    ranks: _Array
    product_bits: _Array
    nonzeros: _Array
    sparse_bits: _Array

    def best(self, price: float, kinds: Sequence[str], scale: float = 1.0) -> int:
        """The index of the least error + price · scale · bits, among forms of such factors."""
        wanted = np.zeros(len(self.errors), bool)
        for kind in kinds:
            wanted |= ((self.ranks > 0) == ("uv" in kind)) & ((self.nonzeros > 0) == ("c" in kind))
        return int(np.where(wanted, self.errors + price * scale * self.bits, np.inf).argmin())

    def form(self, index: int) -> Form:
        values = self.ranks, self.product_bits, self.nonzeros, self.sparse_bits
        return Form(*(int(array[index]) for array in values))


class Weight:
    """One weight, and what its forms cost.

    Args:
        W: (groups, rows, rest).
        covariance: of its inputs.
    """

    def __init__(self, W: Tensor, covariance: Covariance) -> None:
        self.W, self.covariance = W, covariance
        self.energy = max(covariance.error(W), 1e-30)

    def options(self, density: float, factors: str = "uvc") -> _Options:
        """Forms by estimates of their errors and sizes.

        U V leaves the eigenvalues beyond its rank; C beside it is assumed to leave the share of
        that which C alone leaves of W.

        Args:
            density: nonzeros of C are looked for around this share.
            factors: that may hold nonzeros.
        """
        size = self.W.numel()
        groups, rows, rest = self.W.shape
        counts, shares, noise = self._sparse_curve(density) if "c" in factors else _NO_CURVE
        columns = []
        for rank, left, spread in self._ranks(factors):
            for b in _BITS if rank else _BITS[:1]:
                product = 4.0
                if rank:
                    product = sum(
                        factor_bits(groups * n * rank, groups * n * rank, b) for n in (rows, rest)
                    )
                coarse = 2 * _GAUSSIAN_NOISE[b] * spread if rank else 0.0
                for c in _BITS if len(counts) > 1 else _BITS[:1]:
                    errors = left * (shares + (1 - shares) * noise[c]) + coarse
                    bits = [product + _sparse_bits(size, int(n), c) for n in counts]
                    columns.append(np.stack(np.broadcast_arrays(errors, bits, rank, b, counts, c)))
        return _Options(*np.concatenate(columns, axis=1))

    def _sparse_curve(self, density: float) -> tuple[_Array, _Array, dict[int, float]]:
        """Numbers of nonzeros, the errors that C alone leaves, and what rounding adds, by bits."""
        size = self.W.numel()
        tried = sorted({min(size, max(1, round(size * density * d))) for d in _DENSITIES})
        W = self.W[:, :: max(1, size // _CURVE)]  # rows that stand for all
        energy, part = max(self.covariance.error(W), 1e-30), W.numel() / size
        errors, middle = [], W
        for k in tried:
            C = sparse(W, self.covariance, max(1, round(part * k)), rounds=_ROUNDS)
            errors.append(max(self.covariance.error(W - C) / energy, 1e-9))
            if k == tried[len(tried) // 2]:
                middle = C
        counts = np.unique(np.geomspace(max(1, tried[0] // 8), tried[-1], _GRID).round())
        shares = np.exp(np.interp(np.log(counts), np.log(tried), np.log(errors)))
        few = counts < tried[0]  # as much for each as the first ones bring
        shares[few] = 1 - (1 - errors[0]) * counts[few] / tried[0]
        counts, shares = np.append(0.0, counts), np.append(1.0, np.minimum(shares, 1.0))
        return counts, shares, _noise(middle)

    def _ranks(self, factors: str) -> Iterable[tuple[int, float, float]]:
        """Ranks with the error that they leave, and Σ σ squared over the rank: rounding errors."""
        yield 0, 1.0, 0.0
        if "uv" not in factors:
            return
        values, _ = spectrum(self.W, self.covariance)
        total = float(values.sum()) + 1e-30
        # At 2 bits, more than half of the full rank takes more bits than W.
        full = min(self.W.shape[1:])
        ranks = sorted({round(2 ** (i / 2)) for i in range(2, 2 * full.bit_length())} | {1})
        for rank in (r for r in ranks if r <= max(1, full // 2)):
            spread = values[:, :rank].sqrt().sum(1).square().sum() / rank
            yield rank, float(values[:, rank:].sum()) / total, float(spread) / total

    def approximation(self, form: Form) -> Approximation:
        """The factors of a form, each rounded to a codebook and the others refitted to that."""
        W, covariance = self.W, self.covariance
        groups, rows, rest = W.shape
        C = torch.zeros_like(W)
        U, V = W.new_zeros(groups, rows, 0), W.new_zeros(groups, 0, rest)
        bits = 0.0
        if form.rank:
            U, V = low_rank(W, covariance, form.rank)
            if form.nonzeros:
                C = sparse(W - U @ V, covariance, form.nonzeros, rounds=_ROUNDS)
                U, V = low_rank(W - C, covariance, form.rank)
            V, V_bits = _rounded(V, form.product_bits)
            U = refit_left(W - C, V, covariance)
            U, U_bits = _rounded(U, form.product_bits)
            bits += V_bits + U_bits
        else:
            bits += 2 * factor_bits(0, 0, 1)
        left = W - U @ V
        C = sparse(left, covariance, form.nonzeros)
        C, C_bits = _rounded(C, form.sparse_bits)
        error = covariance.error(left - C) / self.energy
        return Approximation(form, U, V, C, bits + C_bits, error)

    def exact(self, form: Form, factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
        """U, V and C whose U V + C is W, of a form's rank, or the full one where C is left out."""
        W = self.W
        groups, rows, rest = W.shape
        rank = form.rank if "c" in factors else min(rows, rest)
        if rank == 0:
            return W.new_zeros(groups, rows, 0), W.new_zeros(groups, 0, rest), W
        U, V = low_rank(W, self.covariance, rank)
        return U, V, W - U @ V if "c" in factors else torch.zeros_like(W)


# Approximations of each weight by form; each is made once.
_Makers = Mapping[str, Callable[[Form], Approximation]]


def approximations(
    weights: Mapping[str, Weight], available_bits: float, kinds: tuple[str, ...] = KINDS["uvc"]
) -> dict[str, Approximation]:
    """The approximations of all weights that leave the least error for so many bits.

    Args:
        weights: by name.
        available_bits: what the file has for factors.
        kinds: the factors that a weight may hold: of "uv", "c", "uvc", and "" for none.
    """
    size = sum(weight.W.numel() for weight in weights.values())
    density = min(1.0, available_bits / _ENTRY_BITS / max(1, size))
    options = {name: weight.options(density, "".join(kinds)) for name, weight in weights.items()}
    makers: _Makers = {name: cache(weight.approximation) for name, weight in weights.items()}
    # A choice among kinds rests on estimates: one for all layers may be better.
    choices = {kinds, *(single for single in KINDS.values() if set(single) < set(kinds))}
    searches = (_search(makers, options, available_bits, choice) for choice in sorted(choices))
    return min(searches, key=lambda found: _rank(found, available_bits))


def _rank(found: Mapping[str, Approximation], available_bits: float) -> tuple[bool, float]:
    """Whether they take too many bits, and their error."""
    over = sum(a.bits for a in found.values()) > available_bits
    return over, sum(a.error for a in found.values())


def _search(
    makers: _Makers,
    options: Mapping[str, _Options],
    available_bits: float,
    kinds: tuple[str, ...],
) -> dict[str, Approximation]:
    """The approximations that one price of a bit chooses, at the price at which they fit."""
    scale = dict.fromkeys(makers, 1.0)  # real bits over estimated ones
    allowed: dict[str, Sequence[str]] = dict.fromkeys(makers, kinds)
    found: dict[str, Approximation] = {}
    best: dict[str, Approximation] = {}

    def at(price: float) -> dict[str, int]:
        return {n: o.best(price, allowed[n], scale[n]) for n, o in options.items()}

    for trial in range(_CORRECTIONS):
        low, high = -60.0, 20.0  # of log λ
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            total = sum(scale[n] * options[n].bits[i] for n, i in at(math.exp(middle)).items())
            low, high = (middle, high) if total > available_bits else (low, middle)
        price = math.exp(high)
        for name, place in at(price).items():
            option, make = options[name], makers[name]
            if trial == 0:  # the best of each kind, by its real error and size
                places = {option.best(price, [kind]) for kind in kinds}
                tried = {i: make(option.form(i)) for i in places}
                place = min(tried, key=lambda i: tried[i].error + price * tried[i].bits)
                found[name] = tried[place]
                allowed[name] = [found[name].form.factors]
            else:
                found[name] = make(option.form(place))
            scale[name] = found[name].bits / option.bits[place]
        if not best or _rank(found, available_bits) < _rank(best, available_bits):
            best = dict(found)
        if (1 - _CLOSE) * available_bits <= sum(a.bits for a in found.values()) <= available_bits:
            break
    return best


@cache
def _sparse_bits(size: int, nonzeros: int, bits: int) -> float:
    return factor_bits(size, nonzeros, bits)


def _noise(values: Tensor) -> dict[int, float]:
    """Squared errors of codebooks of values, as shares of their squares, by bits a value."""
    nonzeros = values[values != 0]
    nonzeros = nonzeros[:: 1 + len(nonzeros) // _SAMPLED].cpu()
    total = float(nonzeros.double().square().sum())
    noise = {}
    for bits in _BITS:
        book = quantized_codebook(nonzeros, 2**bits, level_bits(bits, len(nonzeros)))
        gaps = nonzeros.double() - book.levels.double()[book.codes]
        noise[bits] = float(gaps.square().sum()) / max(total, 1e-30)
    return noise


def _rounded(values: Tensor, bits: int) -> tuple[Tensor, float]:
    """Values by a codebook, and their bits in the file."""
    nonzeros = values[values != 0]
    if nonzeros.numel() == 0:
        return values, factor_bits(values.numel(), 0, bits)
    book = quantized_codebook(nonzeros, 2**bits, level_bits(bits, len(nonzeros)))
    out = torch.zeros_like(values)
    out[values != 0] = book.levels.to(values)[book.codes]
    size = factor_bits(values.numel(), len(nonzeros), bits, code_bits(book.codes))
    return out, size


@dataclass(frozen=True, eq=False)
class DataAware:
    """A start for :func:`~atmc.factorization.layers.factorize`: forms by rate and distortion.

    Norms' running statistics are estimated again, and a shift of the mean goes into the biases.

    Attributes:
        batches: of inputs, (n, ...), on the model's device; attacked ones among them.
        available_bits: what the file has for factors.
        factors: that may hold nonzeros.
        exact: start with the same outputs, for training that prunes: U and V have the ranks that
            were chosen, or the full ones without C, and are not rounded; C is all that they leave.
    """

    batches: Sequence[Tensor]
    available_bits: float
    factors: Factors = "uvc"
    exact: bool = False

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, Form]:
        """Write the factors of a model that has C = W; the forms by name.

        Args:
            model: factorized without an identity.
        """
        modes = {module: module.training for module in model.modules()}
        model.eval()
        slots = {weight.name: weight for weight in factorized_weights(model)}
        widest = _WIDEST_EXACT if self.exact else WIDEST
        weights = measured_weights(model, self.batches, widest)
        found = approximations(weights, self.available_bits, KINDS[self.factors])
        for name, approximation in found.items():
            if self.exact:
                write_factors(slots[name], *weights[name].exact(approximation.form, self.factors))
            else:
                a = approximation
                write_factors(slots[name], a.U, a.V, a.C)
                _correct_bias(model, weights[name], approximation, name)
        if not self.exact:
            estimate_statistics(model, self.batches)
        for module, mode in modes.items():
            module.training = mode
        return {name: approximation.form for name, approximation in found.items()}


@torch.no_grad()
def measured_weights(
    model: nn.Module, batches: Iterable[Tensor], widest: int = WIDEST
) -> dict[str, Weight]:
    """The weights of a factorized model with the covariances of their inputs, by name.

    Those that :func:`~atmc.factorization.covariance.input_covariances` leaves out are judged by
    themselves.

    Args:
        model: factorized; it runs in its present mode.
        batches: of inputs, (n, ...), on its device.
        widest: columns of W beyond which a covariance is a diagonal one.
    """
    covariances = input_covariances(model, batches, widest)
    weights = {}
    for slot in factorized_weights(model):
        layout = slot.parametrization.layout
        W = slot.parametrization.matrix(slot.U, slot.V, slot.C).detach().float()
        covariance = covariances.get(slot.name, Covariance.identity(layout, W.device))
        weights[slot.name] = Weight(W.reshape(layout.groups, layout.rows, layout.rest), covariance)
    return weights


def write_factors(slot: FactorizedWeight, U: Tensor, V: Tensor, C: Tensor) -> None:
    """Write factors with a leading axis of groups into a weight of full inner size."""
    rank = U.shape[-1]
    slot.U.zero_()[..., :rank] = U.reshape(*slot.U.shape[:-1], rank)
    slot.V.zero_()[..., :rank, :] = V.reshape(*slot.V.shape[:-2], rank, slot.V.shape[-1])
    slot.C.copy_(C.reshape(slot.C.shape))


def _correct_bias(model: nn.Module, weight: Weight, to: Approximation, name: str) -> None:
    """Let a layer's bias take up what its outputs have shifted by in the mean."""
    layer, _, attribute = name.rpartition(".")
    bias = bias_of(model.get_submodule(layer), attribute)
    if bias is not None:
        left = weight.W - to.U @ to.V - to.C
        bias += (left @ weight.covariance.mean[:, :, None]).flatten().to(bias)


_NO_CURVE = np.zeros(1), np.ones(1), dict.fromkeys(_BITS, 0.0)
_GAUSSIAN_NOISE = _noise(torch.special.ndtri(torch.linspace(1e-3, 0.999, 999)))
