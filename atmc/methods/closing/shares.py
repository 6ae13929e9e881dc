"""The share of a family of prunings that the budget holds, and the end of a stage."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atmc import codec
from atmc.artifact import to_artifact
from atmc.factorization.layers import factorize, factorized_weights, live_factors, named_factors
from atmc.methods.closing.constant_units import fold_constant_units
from atmc.methods.closing.dead_paths import drop_dead_paths
from atmc.methods.closing.target import Target, encoded_bits, fit
from atmc.methods.closing.unit_order import UnitOrder
from atmc.models.preparation import copy_model, live_tensors, tensors_of
from atmc.optim.atmc import AUTO_GUESS
from atmc.optim.codebooks import round_dense_part
from atmc.optim.rounding import DISTORTION, rate_distortion, rounded
from atmc.quantization.rates import RateDistortion
from atmc.training.stage import Stage

# Retraining moves the entropy of the codes: aim a little above the budget, cut to it at the end.
_AIM = 1.02
_ROUNDS = 24
_FARTHEST = 8.0  # times a share that the next one may be, or less than it
_COARSER = [2 ** (i / 2) for i in range(7)]  # times the default distortion
_STUCK = 4  # tensors whose next codebook may be too large before the search ends
_TRIALS = 4  # of a choice of b and the share that follows from it
_CLOSE = 1.002  # shares this near to one another count as one
_ROUGHLY_CLOSE = 1.03  # likewise, while weights still move

_PLACE_BITS = 2  # of the position of a nonzero, a guess before the first file

_ALL: Mapping[str, int] = {}  # as many levels as b allows

Values = Mapping[str, Tensor]


@dataclass
class Codebooks:
    """What factors are rounded to.

    Attributes:
        bits: b for every factor.
        levels: how many levels, for factors that have fewer than 2^b.
        finest: whether finer ones would change nothing, or are not wanted.
    """

    bits: dict[str, int]
    levels: dict[str, int]
    finest: bool

    def rounded(self, values: Values, target: Target) -> Values:
        """Values by these codebooks."""
        return _rounded(values, target, self.bits, self.levels)


def fill_codebooks(model: nn.Module, target: Target) -> Codebooks:
    """The finest codebooks whose file keeps the budget, or overshoots what a few entries take.

    Along the path of rate and distortion; where the next step is too large a one, the tensor that
    takes it gets as many levels between the two as there is room for, and the path goes on
    without it.
    """
    factors = live_factors(model)
    if target.bits != "auto":
        return Codebooks(dict.fromkeys(factors, int(target.bits)), {}, True)
    table = rate_distortion(factorized_weights(model), factors, rdo=target.rdo)
    path = list(table.path())
    # Where most entries are nonzero, dropping one saves hardly more than its position costs.
    limit = target.budget_bits if _mostly_full(model, target) else _AIM * target.budget_bits
    levels: dict[str, int] = {}
    stuck: dict[str, int] = {}

    def size(bits: Mapping[str, int], levels: Mapping[str, int]) -> int:
        return _rounded_bits(model, target, bits, levels)

    near = path.index(table.choose(DISTORTION))
    while True:
        low, bits, taken = _furthest(path, table, lambda bits: size(bits, levels), limit, near)
        if low + 1 == len(path) or taken > limit:
            return Codebooks(bits, levels, not stuck and taken <= limit)
        name = next(n for n, b in path[low + 1].items() if b != bits[n])
        if len(stuck) == _STUCK or target.full(min(taken, target.budget_bits)):
            return Codebooks(bits, levels, False)
        fits, over = 2 ** bits[name], 2 ** path[low + 1][name]
        while over - fits > max(1, fits // 16):
            middle = (fits + over) // 2
            if size(path[low + 1], levels | {name: middle}) <= limit:
                fits = middle
            else:
                over = middle
        stuck[name] = bits[name]
        if fits > 2 ** bits[name]:
            levels[name], stuck[name] = fits, path[low + 1][name]
        path = [step | stuck for step in path[low:]]
        path = [step for i, step in enumerate(path) if i == 0 or step != path[i - 1]]
        near = 0


def _mostly_full(model: nn.Module, target: Target) -> bool:
    """Whether more than half of the entries of the nonempty factors are nonzero."""
    sizes = codec.measure(to_artifact(model, width=target.width, meta=target.meta))
    filled = [tensor for tensor in sizes.tensors if tensor.nonzeros]
    return 2 * sum(t.nonzeros for t in filled) > sum(t.elements for t in filled)


def _furthest(
    path: list[dict[str, int]],
    table: RateDistortion,
    size: Callable[[Mapping[str, int]], int],
    limit: float,
    near: int,
) -> tuple[int, dict[str, int], int]:
    """The last step of a path whose file is within the limit (or the first), and its size.

    After one real file the estimate predicts where the limit is, so that few files are encoded.
    """
    rates = [table.rate(step) for step in path]
    low, high, taken = -1, len(path), 0
    trial = near
    for attempt in range(_ROUNDS):
        last = size(path[trial])
        if last <= limit:
            low, taken = trial, last
        else:
            high = trial
        if high - low <= 1:
            break
        room = limit - last + rates[trial]
        trial = sum(rate <= room for rate in rates) - 1 if attempt < 4 else (low + high) // 2
        trial = min(max(trial, low + 1), high - 1)
    if low < 0:
        low, taken = 0, size(path[0])
    return low, path[low], taken


class Prunings:
    """A copy of a model that takes one pruning after another, to measure their files.

    Args:
        model: factorized; it is not changed.
        x: a few inputs, (n, ...).
        order: of the model.
    """

    def __init__(self, model: nn.Module, x: Tensor, order: UnitOrder) -> None:
        self._x, self._order = x, order
        self._probe = copy_model(model)
        pairs = zip(tensors_of(self._probe), tensors_of(model), strict=True)
        live = set(live_tensors(model))
        self._tensors = [(copied, tensor) for copied, tensor in pairs if tensor in live]

    @torch.no_grad()
    def of(self, values: Values) -> nn.Module:
        """The model of now with these factors, dead paths dropped, units in order.

        The next call changes the same copy.
        """
        for copied, tensor in self._tensors:
            copied.copy_(tensor)
        put(self._probe, values)
        drop_dead_paths(self._probe, self._x)
        self._order.sort(self._probe)
        return self._probe


@torch.no_grad()
def _rounded_bits(
    probe: nn.Module, target: Target, bits: Mapping[str, int], levels: Mapping[str, int] = _ALL
) -> int:
    factors = live_factors(probe)
    return encoded_bits(probe, target, _rounded(factors, target, bits, levels))


def _rounded(
    values: Values, target: Target, bits: Mapping[str, int], levels: Mapping[str, int] = _ALL
) -> Values:
    """Values by their codebooks; at a fixed b zero where that is nearer than the nearest level.

    A chosen b leaves no values so far from their level; and what it was chosen by knows no zeros.
    """
    rounded_values = {}
    for name, value in values.items():
        coded, _ = rounded(value, bits[name], rdo=target.rdo, levels=levels.get(name))
        if target.bits != "auto":
            coded.masked_fill_(value.detach().abs() < coded.abs() / 2, 0)
        rounded_values[name] = coded
    return rounded_values


def pruned_bits(model: nn.Module, target: Target, x: Tensor, values: Values) -> int:
    """The real size of the file of ``values``, dead paths dropped and rounded.

    Where b is chosen and the file is over the budget, coarser codebooks are tried.
    """
    probe = Prunings(model, x, UnitOrder.of(model, x)).of(values)
    factors = live_factors(probe)
    if target.bits != "auto":
        return _rounded_bits(probe, target, dict.fromkeys(factors, int(target.bits)))
    table = rate_distortion(factorized_weights(probe), factors, rdo=target.rdo)
    for scale in _COARSER:
        size = _rounded_bits(probe, target, table.choose(scale * DISTORTION))
        if size <= _AIM * target.budget_bits:
            break
    return size


@torch.no_grad()
def put(model: nn.Module, values: Values) -> None:
    """Write values into the factors, by name."""
    factors = named_factors(model)
    for name, value in values.items():
        factors[name].copy_(value)


def largest_share(over: Callable[[float], float], near: float, close: float = _CLOSE) -> float:
    """The largest share in (0, 1] that fits, nearly; 0 where none does.

    Args:
        over: the size at a share as a multiple of what it may be; it fits where that is at most 1.
            A share that does not fit is followed by no larger one that does.
        near: where to look first.
        close: the ratio of sizes, or of shares, from which on two count as one.
    """
    low = high = None  # (share, size) that fits, and that does not
    share, last = near, None
    for trial in range(_ROUNDS):
        size = over(share)
        if size <= 1:
            low = share, size
            if share == 1:
                return 1.0
        else:
            high = share, size
        if low is not None and (low[1] > 2 - close or (high and high[0] < close * low[0])):
            break
        if low is None or high is None:
            # Sizes grow as a power of shares, which two of them tell; at first as shares do.
            # What is not met then is bracketed, by steps that leave any stair.
            wanted = (1 - (close - 1) / 2) / size if size > 0 else _FARTHEST
            step = wanted
            if last is not None and share != last[0] and min(size, last[1]) > 0:
                power = math.log(size / last[1]) / math.log(share / last[0])
                step = wanted ** (1 / min(max(power, 0.3), 2.0))
            if trial > 1:
                step = min(step, 1 / 1.2) if size > 1 else max(step, 1.1)
            last = share, size
            share = min(1.0, share * min(max(step, 1 / _FARTHEST), _FARTHEST))
            continue
        # Between the two, where a straight line in logarithms meets the limit; every other time in
        # the middle, since sizes may be stairs.
        part = 0.5
        if trial % 2:
            part = -math.log(low[1]) / (math.log(high[1]) - math.log(low[1]))
        share = low[0] * (high[0] / low[0]) ** min(max(part, 0.05), 0.95)
    return 0.0 if low is None else low[0]


class ShareSearch:
    """The largest share of a family of prunings whose file keeps the budget.

    A family has one parameter, a share: from 0, the least that it can leave, to 1, everything.

    Args:
        model: factorized; a search prunes the weights of that moment.
        target: the budget.
        x: a few inputs, (n, ...).

    Attributes:
        share: the result of the last search.
        bits: b for every factor in that search.
    """

    def __init__(self, model: nn.Module, target: Target, x: Tensor) -> None:
        self.model, self.target, self.x = model, target, x
        self.order = UnitOrder.of(model, x)
        guess = AUTO_GUESS if target.bits == "auto" else int(target.bits)
        self.bits = dict.fromkeys(live_factors(model), guess)
        self._chosen = target.bits != "auto"
        entries = sum(w.factors[w.carrier].numel() for w in factorized_weights(model))
        self.share = min(1.0, target.budget_bits / (guess + _PLACE_BITS) / entries)

    def run(self, values_at: Callable[[float], Values], *, final: bool = True) -> float:
        """Search again, from the last share on.

        The budget is overshot a little, for :func:`close` to cut. Where b is chosen, it is chosen
        for the share, and the share is searched again, until both agree.

        Args:
            values_at: what the factors hold at a share, by name.
            final: whether nothing is trained between this search and the pruning. Another one is
                content with a share that is near, and only the first of all chooses b.
        """
        prunings = Prunings(self.model, self.x, self.order)

        def over(share: float) -> float:
            probe = prunings.of(values_at(share))
            return _rounded_bits(probe, self.target, self.bits) / (_AIM * self.target.budget_bits)

        def choose() -> bool:
            """Choose b for the share; whether it has changed."""
            if self.target.bits != "auto" or self.share == 0:
                return False
            probe = prunings.of(values_at(self.share))
            table = rate_distortion(
                factorized_weights(probe), live_factors(probe), rdo=self.target.rdo
            )
            before, self.bits = self.bits, table.choose(DISTORTION)
            return self.bits != before

        if not (final or self._chosen):
            choose()
            self._chosen = True
        for _ in range(_TRIALS if final else 1):
            near = self.share if self.share > 0 else 1.0
            self.share = largest_share(over, near, _CLOSE if final else _ROUGHLY_CLOSE)
            if not (final and choose()):
                break
        return self.share

    def state_dict(self) -> dict[str, Any]:
        """The share, and b."""
        return {"share": self.share, "bits": dict(self.bits)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.share, self.bits = state["share"], dict(state["bits"])


class ShareStage(Stage, ABC):
    """A stage that prunes by the share that the file holds.

    Args:
        epochs: length.
        lr: peak rate.
        target: the budget.
    """

    search: ShareSearch

    def __init__(self, epochs: int, lr: float, target: Target) -> None:
        super().__init__(epochs, lr)
        self.target = target

    def reshape(self, model: nn.Module) -> None:
        """Factorize; of the factors the one that starts as W is pruned, the others stay empty."""
        factorize(model, identity=False)

    @abstractmethod
    def values_at(self, share: float) -> Values:
        """What the factors hold at a share, by name."""

    def aim(self, *, final: bool = False) -> float:
        """The largest share whose file keeps the budget, with the weights as they are now.

        Args:
            final: whether the weights are then pruned to it; if not, the share is approximate.
        """
        return self.search.run(self.values_at, final=final)

    def state_dict(self) -> dict[str, Any]:
        """The share, and b."""
        return self.search.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.search.load_state_dict(state)


def close(model: nn.Module, target: Target, x: Tensor, pruned: str = "weights") -> None:
    """The end of a stage, in place: dead paths, units in order, codebooks, dense part, budget.

    Args:
        model: factorized.
        target: the budget; its outcome is set.
        x: a few inputs, (n, ...).
        pruned: what the stage pruned and cannot restore, in the plural.
    """
    whole = every_weight(model)
    order = UnitOrder.of(model, x)
    fold_constant_units(model, x, order)
    drop_dead_paths(model, x)
    order.sort(model)
    books = fill_codebooks(model, target)
    put(model, books.rounded(live_factors(model), target))
    round_dense_part(model, target.width, fold=False)
    data = fit(model, target, order.sort)
    target.outcome.bits = 8 * len(data)
    target.outcome.reason = reason(
        target, whole, f"{pruned} once pruned do not come back", finest=books.finest
    )


def every_weight(model: nn.Module) -> bool:
    """Whether a model has as many nonzeros as it has weights."""
    weights = factorized_weights(model)
    nonzeros = sum(int(torch.count_nonzero(f)) for f in live_factors(model).values())
    return nonzeros >= sum(weight.factors[weight.carrier].numel() for weight in weights)


def reason(target: Target, whole: bool, lost: str, *, finest: bool) -> str:
    """Why a file is no larger.

    Args:
        target: what b may be, and whether more could be retained.
        whole: whether every weight is retained.
        lost: why weights are missing, a clause.
        finest: whether all codebooks are as fine as they may be.
    """
    if not finest:
        return "the next finer codebook would not fit"
    asked = f"the {target.bits} bits a value asked for"
    bits = "the most bits a value" if target.bits == "auto" else asked
    everything = "every weight is kept" if whole else target.outcome.whole
    if everything is not None:
        return f"{everything}, at {bits}"
    return f"{lost}, and what is left has {bits}"
