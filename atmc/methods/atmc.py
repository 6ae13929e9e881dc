"""ATMC: pruning, factorization and quantization as one problem, under attack.

Gui et al., "Model Compression with Adversarial Robustness: A Unified Optimization Framework",
NeurIPS 2019; here under a budget of file bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atmc import codec, distributed
from atmc.accounting import fixed_bits, stored_dense_part
from atmc.factorization.importance import Importance
from atmc.factorization.layers import (
    factorize,
    live_factors,
    named_factors,
    plain_weights,
    train_factors,
)
from atmc.factorization.norms import estimate_statistics, foldable_norms
from atmc.factorization.start import DataAware, Factors
from atmc.inference import in_mode
from atmc.methods.base import Schedule, register
from atmc.methods.closing.constant_units import fold_constant_units
from atmc.methods.closing.dead_paths import drop_dead_paths
from atmc.methods.closing.effort import Effort
from atmc.methods.closing.shares import Prunings, close, every_weight, reason
from atmc.methods.closing.silent_units import empty_silent_units
from atmc.methods.closing.target import Target, encoded_bits, fit
from atmc.methods.closing.unit_order import UnitOrder
from atmc.methods.levels import LevelStage
from atmc.optim.atmc import ATMC, AUTO_GUESS, cubic
from atmc.optim.codebooks import round_dense_part
from atmc.optim.rounding import DISTORTION, rounded
from atmc.optim.splitting import rising_rho
from atmc.quantization.rates import FLOAT_BITS, code_bits, factor_bits, nonzeros_for_budget
from atmc.training.stage import Stage

# k aims above the budget, by more than the estimate errs (the entropy of the codes moves from
# duplicate to duplicate): the closing loop had better cut to the bit than fill up
# with what was not trained.
_AIM = 1.06
# This much more, shared out among the steps: few steps cut much at once, and what dead paths take
# along cannot come back.
_UNSEEN = 2.0
_LARGE_CUT = 0.75  # the share of entries below which what a cut keeps is looked at before
_MEASURE_EVERY = 5  # aims between real files; at first as many as it takes to agree on one rate
_TRIALS, _SAME_RATE = 4, 0.02
_FEWEST_AIMS, _MOST_AIMS, _FEWEST_DUPLICATES = 3, 50, 10  # in a stage
_DUPLICATE = 0.5  # of what an aim takes
_STATE = ("k_start", "k_target", "chosen", "rate", "aims", "trained")
_BATCHES = 8  # of the covariances of the inputs
_STATISTICS_BATCHES = 4  # of an estimate that the levels make anew
_NO_RETURN = "weights once pruned do not come back"
_ROUNDS, _NOTHING = 10, 0.001  # of the closing loop; share of the budget that may stay unused


class CompressStage(Stage):
    """ADMM under the budget: k shrinks as a cubic, levels are pulled in as ρ rises.

    k follows the *file*: every few steps the accountant says how many of the entries, as they
    rank now, the budget holds. Where the data-aware start chooses U V for a weight, U and V start
    with the directions of W that weigh most in the output and C with the rest; elsewhere C starts
    as W, and U and V stay empty.

    Args:
        epochs: length.
        lr: peak rate of Adam.
        target: the budget.
        state_dtype: of duplicates and duals, None for that of the factors.
        factors: that may hold nonzeros.
    """

    name = "compress"
    importance: Importance = "saliency"
    # Shares of k from which layers get their part: the first that leaves the paths alive.
    floors: tuple[float, ...] = (0.1, 0.2, 0.4)
    prune_only = False  # C alone, without duplicates
    shadows = True  # entries that are cut can come back
    shrink = 0.6  # share of the stage over which k shrinks
    duplicate_every = 10  # steps, or more where that would take too large a share of them
    aims_share, duplicates_share = 0.04, 0.03  # of the time of all steps

    def __init__(
        self,
        epochs: int,
        lr: float,
        target: Target,
        state_dtype: torch.dtype | None = None,
        factors: Factors = "c",
    ) -> None:
        super().__init__(epochs, lr)
        self.target = target
        self.state_dtype = state_dtype
        self.factors: Factors = factors
        self.trained: list[str] = []  # names of factors
        self.k_start = 0
        self.k_target = 0
        self.chosen = target.bits != "auto"
        self.rate = 1.0  # what the file takes for a bit of the estimate
        self.aims = 0

    def reshape(self, model: nn.Module) -> None:
        """Factorize."""
        factorize(model, identity=False)

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """ATMC around Adam."""
        self.model = model
        empty = fixed_bits(model, width=self.target.width, meta=self.target.meta)
        self.overhead = empty - self._dense_fixed(model)
        if self.resumed is not None:
            self.trained = self.resumed["trained"]
        else:
            self._choose_factors(model)
        train_factors(model, self.trained)
        self.order = UnitOrder.of(model, self.example)
        self.prunings = Prunings(model, self.example, self.order)
        self.effort = Effort.of(model, self.example, self.batch_size, self.gradients)
        self.optimizer = ATMC(
            model,
            self.optimization.build(model, self.lr),
            self.k_at,
            AUTO_GUESS if self.target.bits == "auto" else int(self.target.bits),
            rho=rising_rho(self.total_steps),
            duplicate_every=sys.maxsize if self.prune_only else self._duplicate_interval(),
            importance=self.importance,
            factors=self.trained,
            floor=self.floors[0],
            shadows=self.shadows,
            rdo=self.target.rdo,
            state_dtype=self.state_dtype,
        )
        self.k_start = self.optimizer.nonzeros
        self._drop_dead()
        self._keep_alive(0, self._aim())
        if not self.chosen and self.shrink == 0:
            self._settle_bits()
        return self.optimizer

    def _choose_factors(self, model: nn.Module) -> None:
        """Write U V where it pays, and name the factors that are trained."""
        if self.factors != "c":
            available = self.target.budget_bits - self.overhead - self._dense_now()
            batches = self.sample(_BATCHES)
            with in_mode(model, training=False):
                DataAware(batches, max(0.0, available), self.factors, exact=True)(model)
            distributed.broadcast(named_factors(model).values())
        self.trained = [
            name
            for name, factor in named_factors(model).items()
            if bool(factor.any()) or (name.endswith(".C") and "c" in self.factors)
        ]

    def _dense_fixed(self, model: nn.Module) -> int:
        return sum(
            codec.dense_fixed_bits(tensor.numel(), self.target.width)
            for tensor in stored_dense_part(model).values()
        )

    def _dense_now(self) -> int:
        """Bits of the dense part as it is now, masks of zeros included."""
        values = stored_dense_part(self.model).values()
        arrays = [tensor.detach().cpu().float().numpy() for tensor in values]
        tensors = [codec.quantize_dense(array, self.target.width) for array in arrays]
        entries = tuple(codec.Entry(None, tensor) for tensor in tensors)
        return 8 * len(codec.encode(codec.Artifact({}, entries)))

    def k_at(self, step: int) -> int:
        """k at a step: a cubic down to what the budget holds."""
        horizon = self.shrink * self.total_steps
        return cubic(max(self.k_start, self.k_target), self.k_target, horizon)(step)

    def _drop_dead(self) -> None:
        """Zero what training has cut off from the output."""
        self._drop_dead_from(self.model)
        self.optimizer.forget_zeros()

    def _drop_dead_from(self, model: nn.Module) -> None:
        if self.bounded:  # training on bounds silences units, which they can tell
            empty_silent_units(model, self.example, self.order)
        fold_constant_units(model, self.example, self.order)
        drop_dead_paths(model, self.example)

    def _keep_alive(self, step: int, alive_at: int) -> None:
        """Raise the floor where the next large cut would part most entries from the output.

        Small cuts are seen in time: what they part leaves its place in k to others.

        Args:
            step: of the stage.
            alive_at: a k that is known to leave the paths alive, and each larger one with it.
        """
        k = self.k_at(step + self._aim_interval())
        if k < min(alive_at, _LARGE_CUT * self.optimizer.nonzeros):
            for _ in self._rising_floors():
                if self._alive(k):
                    break

    def _rising_floors(self) -> Iterator[None]:
        """Set one floor after the other, from that of now on."""
        for floor in self.floors:
            if floor >= self.optimizer.floor:
                self.optimizer.floor = floor
                yield

    @torch.no_grad()
    def _alive(self, k: int) -> bool:
        """Whether most of the ``k`` entries that rank best now would reach the output."""
        return _most_left(self.prunings.of(self.optimizer.pruned(k)), k)

    @torch.no_grad()
    def _aim(self) -> int:
        """Set k to what the budget holds, entries ranked as they are now.

        Every few aims a real file is encoded; it corrects the rate of bits to estimated bits.

        Returns:
            The least k of the files that left most of their entries on paths to the output.
        """
        alive_at = self.optimizer.nonzeros
        ranks = list(self.optimizer.scores().values())
        bits = list(self.optimizer.bits.values())
        values = self._value_bits()
        fixed = self.overhead + self._dense_now()
        sizes = [rank.numel() for rank in ranks]
        above = _AIM + _UNSEEN / max(1, self.total_steps)
        for trial in range(_TRIALS):
            left = above * self.target.budget_bits / self.rate - fixed
            counts = nonzeros_for_budget(ranks, bits, max(0, left), values)
            self.k_target = sum(counts)
            if self.aims % _MEASURE_EVERY or (self.aims and trial):
                break
            estimate = fixed + sum(map(factor_bits, sizes, counts, bits, values))
            size, alive = self._file(self.k_target)
            if alive:
                alive_at = min(alive_at, self.k_target)
            last, self.rate = self.rate, size / estimate
            if abs(self.rate / last - 1) < _SAME_RATE:
                break
        self.aims += 1
        return alive_at

    def _value_bits(self) -> list[float]:
        """Bits a code takes, by factor: measured on the last duplicate where it is large enough."""
        rates = []
        for name, bits in self.optimizer.bits.items():
            duplicate = self.optimizer.duplicates.get(name)
            value = float(bits)
            if self.prune_only and bits != FLOAT_BITS:
                duplicate, _ = rounded(self.optimizer.factors[name], bits, rdo=self.target.rdo)
            if duplicate is not None and bits != FLOAT_BITS:
                nonzeros = duplicate[duplicate != 0]
                if nonzeros.numel() > 4 * 2**bits:
                    value = code_bits(torch.unique(nonzeros, return_inverse=True)[1])
            rates.append(value)
        return rates

    def _duplicate_interval(self) -> int:
        """Steps between duplicates, of which a stage has ten at least."""
        needed = self.effort.interval(self.duplicates_share, _DUPLICATE)
        return max(self.duplicate_every, min(needed, self.total_steps // _FEWEST_DUPLICATES))

    def _aim_interval(self) -> int:
        """Steps between aims, of which a stage has three at least and some fifty at most."""
        fewest, most = self.total_steps // _MOST_AIMS, self.total_steps // _FEWEST_AIMS
        needed = self.effort.interval(self.aims_share)
        return max(1, fewest, min(max(self.duplicate_every, needed), most))

    def after_step(self, step: int) -> None:
        """Aim again now and then; choose b where it is ours to choose, once k has settled."""
        if step % self._aim_interval() == 0:
            self._drop_dead()
            self._keep_alive(step, self._aim())
            if not self.chosen and 2 * step >= self.shrink * self.total_steps:
                # While k still shrinks: what fewer bits save goes to entries not yet cut.
                self._settle_bits(final=step >= self.shrink * self.total_steps)

    def _settle_bits(self, final: bool = True) -> None:
        table = self.optimizer.rate_distortion(self.k_target)
        bits = table.choose(DISTORTION)
        self.optimizer.set_bits(bits)
        self.chosen = final
        self._aim()
        available = self.optimizer.available
        if final and self.k_target >= available:
            # There are no more entries: the bits that are left go to finer codebooks.
            room = self.target.budget_bits - self._file(available)[0]
            finer = bits
            for step in table.path() if room > 0 else ():
                if table.rate(step) - table.rate(bits) > room:
                    break
                if table.error(step) <= table.error(bits):
                    finer = step
            if finer != bits:
                self.optimizer.set_bits(finer)
                self._aim()

    def penalty(self) -> Tensor:
        """The penalty of the splitting."""
        return self.optimizer.penalty()

    def finish(self, model: nn.Module) -> None:
        """The quantized duplicate becomes the model, at the largest k whose file fits.

        Where all entries fit and leave room, codebooks become finer.
        """
        if not self.chosen:
            self._drop_dead()
            self._settle_bits()
        target, whole = self.target, every_weight(model)
        available = self.optimizer.available
        self._renew_statistics(model)
        for _ in self._rising_floors():
            k, bits, alive = self._largest_k()
            if alive:
                break
        if target.bits == "auto" and k == available and not target.full(bits):
            self.optimizer.set_bits(FLOAT_BITS)
            self.optimizer.finalize(k)
            close(model, target, self.example)
            return
        self.optimizer.finalize(k)
        self._drop_dead_from(model)
        self.order.sort(model)
        round_dense_part(model, target.width, fold=False)
        data = fit(model, target, self.order.sort)
        target.outcome.bits = 8 * len(data)
        lost = "weights that reach no output are dropped" if self.shadows else _NO_RETURN
        target.outcome.reason = reason(target, whole, lost, finest=True)

    @torch.no_grad()
    def _renew_statistics(self, model: nn.Module) -> None:
        """Estimate the norms' statistics as they will be: dead channels take fewer bits."""
        if self.total_steps == 0 or not foldable_norms(model):
            return
        factors, fixed = self.optimizer.factors, self.overhead + self._dense_now()
        k = self.optimizer.nonzeros
        available, taken = self.target.budget_bits - fixed, self._file(k)[0] - fixed
        if taken > available > 0:
            k = int(k * available / taken)
        backup = {name: factor.clone() for name, factor in factors.items()}
        for name, value in self.optimizer.quantized(k).items():
            factors[name].copy_(value)
        with in_mode(model, training=False), plain_weights(model):
            estimate_statistics(model, self.sample(_STATISTICS_BATCHES))
        for name, value in backup.items():
            factors[name].copy_(value)

    def _largest_k(self) -> tuple[int, int, bool]:
        """The closing loop: encode, measure, and look for k between what fits and what does not.

        Returns:
            k; the bits of its file, 0 where none tried fits; whether most of its entries reach the
            output.
        """
        limit, fixed = self.target.budget_bits, self.overhead + self._dense_now()
        available = self.optimizer.available
        # Where nothing is left, what has been cut may come back.
        k = min(self.optimizer.nonzeros or max(1, self.k_target), available)
        fits, taken, alive = 0, 0, True  # taken is 0 until something fits
        over, excess = available + 1, 0
        for trial in range(_ROUNDS):
            bits, reached = self._file(k)
            if bits <= limit:
                fits, taken, alive = k, bits, reached
            else:
                over, excess = k, bits
            # Nothing lies between; or what is left of the budget is an entry, or next to nothing.
            if over - fits <= 1 or limit - taken < max(taken / max(1, fits), limit * _NOTHING):
                break
            if taken == 0:  # files grow about as k does
                k = min(int(0.999 * over * limit / excess), over - 1)
            elif excess == 0:  # what has been cut may come back; some of it is on no path
                more = (limit - fixed) / max(taken - fixed, 0.25 * (limit - fixed), 1)
                k = int(1.001 * fits * more) + 1
            elif trial % 3 == 2:
                k = (fits + over) // 2
            else:
                k = fits + int((over - fits) * (limit - taken) / (excess - taken))
            k = min(max(k, fits + 1), over - 1)
        # Where the estimate was so far off that nothing tried fits, fit() cuts the rest: an empty
        # model would be no answer.
        return fits if taken else over - 1, taken, alive

    def _file(self, k: int) -> tuple[int, bool]:
        """The real size of the file that finalizing at ``k`` would make; constants not folded.

        And whether most of the ``k`` entries reach the output.
        """
        probe = self.prunings.of(self.optimizer.quantized(k))
        return encoded_bits(probe, self.target, {}), _most_left(probe, k)

    def measure(self) -> dict[str, int]:
        """Nonzeros now, and the file they would make, estimated."""
        sizes = [factor.numel() for factor in self.optimizer.factors.values()]
        counts = [int(torch.count_nonzero(f)) for f in self.optimizer.factors.values()]
        bits = self.optimizer.bits.values()
        factors = sum(map(factor_bits, sizes, counts, bits, self._value_bits()))
        total = self.rate * (factors + self.overhead + self._dense_now())
        return {"nonzeros": sum(counts), "file_bits": round(total)}

    def state_dict(self) -> dict[str, Any]:
        """k, the aim and what it rests on, and whether b has been chosen."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        for name in _STATE:
            setattr(self, name, state[name])


def _most_left(pruned: nn.Module, k: int) -> bool:
    """Whether more than half of ``k`` nonzeros are left in the factors."""
    return 2 * sum(int(torch.count_nonzero(f)) for f in live_factors(pruned).values()) > k


class ProjectStage(CompressStage):
    """Global l0 projection of W after every step; codebooks at the end alone.

    Gui et al., NeurIPS 2019, section 4.
    """

    importance = "magnitude"
    floors = (0.0,)
    prune_only = True
    shadows = False


@register("atmc", unified=True)
def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """Pruning and quantization as one problem, of the factors that hold something; then levels."""
    return [
        CompressStage(schedule.epochs, schedule.lr, target, schedule.state_dtype, schedule.factors),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]


@register("l0")
def project(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """The pruning-only ancestor of ATMC; then the levels."""
    return [
        ProjectStage(schedule.epochs, schedule.lr, target),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]
