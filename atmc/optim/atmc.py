"""The constrained optimizer: ADMM on k nonzeros and 2^b levels, around any torch optimizer.

DESIGN of the step (θ is any of U, V, C; Gui et al., NeurIPS 2019, algorithm 1):

    primal      θ ← θ - γ ∇ [loss + (ρ/2) ‖θ - θ' + u‖²], then keep the k best entries of all
    duplicate   θ' ← the nearest point to θ + u with at most 2^b levels, on the support of θ
    dual        u ← u + θ - θ', with each duplicate and only then; zero off the support

With shadows s the k best are those of θ + s after the gradient step; what is not among them is the
new s, so that it moves on by the gradients of the pruned network and can come back (Lin et al.,
"Dynamic model pruning with feedback", ICLR 2020). Here s fades: what is noise in the steps of Adam,
which are as long for small gradients as for large ones, would add up over a long training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from atmc.factorization.importance import Importance, scores
from atmc.factorization.layers import factorized_weights
from atmc.optim.curvature import Curvature
from atmc.optim.rounding import DISTORTION, rate_distortion, rounded
from atmc.optim.splitting import Penalty, Schedule, Splitting, at
from atmc.projection import Selection, select
from atmc.quantization.rates import FLOAT_BITS, RateDistortion

Bits = int | Literal["auto"] | Mapping[str, int]

AUTO_GUESS = 4  # bits a value until "auto" has chosen
# Codebooks are searched from the last ones, and by the whole search at every tenth duplicate.
_COLD_EVERY = 10
_FADE = 0.998  # what a step leaves of a shadow
# How far from the last threshold of the projection the next is looked for, as a share of it.
_LEAST_MOVE, _MOST_MOVE = 0.02, 0.5


def cubic(start: int, end: int, steps: float) -> Callable[[int], int]:
    """k from ``start`` to ``end`` over ``steps``, fast at first (Zhu & Gupta, 2017).

    Examples:
        >>> k = cubic(1000, 200, 10)
        >>> k(0), k(5), k(10), k(20)
        (1000, 300, 200, 200)
    """

    def schedule(step: int) -> int:
        left = max(0.0, 1 - step / steps) if steps > 0 else 0.0
        return round(end + (start - end) * left**3)

    return schedule


def _nonzeros(tensors: Mapping[str, Tensor]) -> int:
    return int(torch.stack([torch.count_nonzero(tensor) for tensor in tensors.values()]).sum())


def _views(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts of a flat tensor in the shapes of others, by their names."""
    parts = torch.split(flat, [tensor.numel() for tensor in like.values()])
    return {
        name: part.view(tensor.shape)
        for part, (name, tensor) in zip(parts, like.items(), strict=True)
    }


class ATMC(Splitting):
    """Any torch optimizer, under k nonzeros and 2^b levels a tensor.

    The inner optimizer moves all parameters; factors are then projected. Its state
    (momentum, second moments) is left alone off the support; it never moves a parameter that the
    projection has zeroed, since the projection comes last. Without shadows it is the only memory
    by which an entry that was cut can come back.

    Where the penalty goes, :class:`~atmc.optim.splitting.Splitting` says; a loop always adds it.

    Args:
        model: factorized already.
        optimizer: over the model's parameters, built after ``atmc.factorize``.
        k: nonzeros of all factors together; an int or a function of the step.
        bits: bits a value, for all factors or by name (``{"fc1.weight.V": 3}``); 32 means no
            codebook; "auto" chooses them by the error that quantization makes, anew whenever the
            nonzeros have changed by a twentieth.
        rho: the penalty weight; a float or a function of the step. u is scaled, and rescaled
            by ρ_old / ρ_new when ρ changes.
        duplicate_every: steps between duplicates.
        importance: "magnitude" ranks entries by |θ| (the paper's projection), "effect" by
            what they change in W, "saliency" by their size and, tempered, what cutting them costs
            the loss (:mod:`atmc.optim.curvature`).
        factors: names of those that share k nonzeros; None for all. The others must not be moved:
            ``atmc.factorization.train_factors`` sees to it.
        penalty: "loss", "decoupled", or None to choose by the inner optimizer.
        floor: share of k that every layer gets its part of, whatever the scores say, in proportion
            to the rows and columns of its W (as in the Erdős–Rényi kernel of Evci et al., "Rigging
            the lottery", ICML 2020): one threshold for all layers can empty one, and all is lost.
        shadows: whether entries that are cut go on from what they were, and can come back; one
            more tensor for each factor.
        rdo: round with an eye to the length of the codes, too
            (:mod:`atmc.quantization.entropy_constrained`); False: to the nearest level.
        state_dtype: of duplicates and duals, None for that of the factors. bfloat16 halves their
            memory; the quantized model is formed from the factors and keeps their precision.

    Raises:
        ValueError: a model that is not factorized, an optimizer that does not hold the
            factors, bits outside 1..8 and 32, a name that is no factor's, a bad setting.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        k: int | Callable[[int], int],
        bits: Bits = 4,
        *,
        rho: float | Schedule = 1.0,
        duplicate_every: int = 10,
        importance: Importance = "magnitude",
        factors: Collection[str] | None = None,
        penalty: Penalty | None = None,
        floor: float = 0.0,
        shadows: bool = False,
        rdo: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        self.weights = factorized_weights(model)
        if not self.weights:
            raise ValueError("the model has no factors: call atmc.factorize(model) first")
        whole = {n: f for weight in self.weights for n, f in weight.factors.items()}
        names = list(whole) if factors is None else list(factors)
        if unknown := [name for name in names if name not in whole]:
            raise ValueError(f"factors names {unknown[0]!r}, which is no factor of the model")
        if duplicate_every < 1:
            raise ValueError(f"duplicate_every is {duplicate_every}: give at least 1")
        if importance not in get_args(Importance):
            known = ", ".join(get_args(Importance))
            raise ValueError(f"unknown importance {importance!r}: use one of {known}")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor is {floor}: give a share of k from 0 to 1")
        if not names:
            raise ValueError("factors is empty: name one at least, or leave it out")
        self.factors = {name: factor for name, factor in whole.items() if name in names}
        super().__init__(self.factors, optimizer, rho=rho, penalty=penalty, state_dtype=state_dtype)
        groups = optimizer.param_groups
        moved = {id(p) for group in groups for p in group["params"] if p.requires_grad}
        if free := [n for n, f in whole.items() if n not in self.factors and id(f) in moved]:
            raise ValueError(f"the optimizer moves {free[0]!r}, which factors leaves out")
        self.k = k
        self.duplicate_every = duplicate_every
        self.importance: Importance = importance
        self.floor = floor
        sides = {n: sum(f.shape[-2:]) * math.prod(f.shape[:-2]) for n, f in self.factors.items()}
        self._parts = {name: side / sum(sides.values()) for name, side in sides.items()}
        self.shadows = {n: torch.zeros_like(f) for n, f in self.factors.items()} if shadows else {}
        by_loss = importance == "saliency"
        self.curvature = Curvature(self.factors) if by_loss else None
        self.rdo = rdo
        self.auto = bits == "auto"
        self._chosen_at = 0  # nonzeros when bits were chosen last
        self.set_bits(AUTO_GUESS if bits == "auto" else bits)
        self.finalized = False
        # Scores and support of the factors, flat: one selection for all of them.
        double = any(factor.dtype == torch.float64 for factor in self.factors.values())
        size = sum(factor.numel() for factor in self.factors.values())
        device = next(iter(self.factors.values())).device
        kind = torch.float64 if double else torch.float32
        self._flat_scores = torch.empty(size, dtype=kind, device=device)
        self._flat_support = torch.empty(size, dtype=torch.bool, device=device)
        self._scores = _views(self._flat_scores, self.factors)
        self._support = _views(self._flat_support, self.factors)
        self._scored: list[int] | None = None  # versions of the factors that the scores are of
        self._threshold = 0.0  # of the last projection: the next starts from it
        self._moves = _LEAST_MOVE
        self._centroids: dict[str, Tensor] = {}  # of the last codebooks

    def set_bits(self, bits: int | Mapping[str, int]) -> None:
        """Change the bits a value; takes effect with the next duplicate."""
        if isinstance(bits, int):
            bits = dict.fromkeys(self.factors, bits)
        if unknown := [name for name in bits if name not in self.factors]:
            raise ValueError(f"bits names {unknown[0]!r}, which is no factor of the model")
        if missing := [name for name in self.factors if name not in bits]:
            raise ValueError(f"bits says nothing of {missing[0]!r}: name every factor")
        for name, b in bits.items():
            if b not in (*range(1, 9), FLOAT_BITS):
                raise ValueError(f"bits of {name} is {b}: use 1 to 8, or 32 for no codebook")
        self.bits = dict(bits)

    @torch.no_grad()
    def choose_bits(self, k: int, distortion: float = DISTORTION) -> dict[str, int]:
        """b per tensor by rate and distortion, for the ``k`` entries that rank best now.

        Args:
            k: nonzeros of the result.
            distortion: the squared error allowed, as a share of the whole; the error of a layer
                is relative to the layer, so that layers of small weights count as much.
        """
        return self.rate_distortion(k).choose(distortion)

    @torch.no_grad()
    def rate_distortion(self, k: int) -> RateDistortion:
        """What the ``k`` entries that rank best now would lose and cost at any b."""
        return rate_distortion(self.weights, self.pruned(k), rdo=self.rdo)

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """Scores of the factors with their shadows, by name; the next call overwrites them.

        Not between a forward pass and its backward pass: for a moment the factors change.
        """
        if self._scored != self._versions():
            with self._whole():
                self._score()
            self._scored = self._versions()
        return self._scores

    def _versions(self) -> list[int]:
        return [factor._version for weight in self.weights for factor in weight.factors.values()]

    def _score(self) -> None:
        curvature = self.curvature
        roots = curvature.roots if curvature is not None and curvature.steps > 0 else None
        scores(self.weights, self.importance, self._scores, roots)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Inside, factors are those with their shadows, which lie where the factors are zero."""
        for name, shadow in self.shadows.items():
            self.factors[name].add_(shadow)
        try:
            yield
        finally:
            for name, shadow in self.shadows.items():
                self.factors[name].masked_fill_(shadow != 0, 0)

    @torch.no_grad()
    def pruned(self, k: int) -> dict[str, Tensor]:
        """The factors projected onto ``k``, by name; changes nothing."""
        return {name: self._with_shadow(name) * mask for name, mask in self.best(k).items()}

    def _with_shadow(self, name: str) -> Tensor:
        factor, shadow = self.factors[name].detach(), self.shadows.get(name)
        return factor if shadow is None else factor + shadow

    @torch.no_grad()
    def best(self, k: int) -> dict[str, Tensor]:
        """Masks of the ``k`` entries that rank best now, by name, of factors and shadows."""
        self.scores()
        return _views(self._select(k).mask, self._scores)

    def _select(self, k: int, out: Tensor | None = None) -> Selection:
        """The ``k`` entries of the best scores, each layer's best part of the floor among them."""
        raised: dict[str, tuple[Tensor, Tensor]] = {}
        while True:
            selection = select(self._flat_scores, k, self._threshold, self._moves, out)
            if not self._raise_short(selection.mask, k, raised):
                break
        for name, (places, values) in raised.items():
            self._scores[name].view(-1)[places] = values
        return selection

    def _raise_short(self, mask: Tensor, k: int, raised: dict[str, tuple[Tensor, Tensor]]) -> bool:
        """Raise the scores of the best entries where a mask has less than the floor.

        Args:
            mask: of all factors, flat.
            k: of which the floor is a share.
            raised: takes up the places and the scores that were there, by the names of factors.

        Returns:
            Whether a factor was short that had not been raised.
        """
        if self.floor == 0:
            return False
        masks = _views(mask, self._scores).values()
        counts = torch.stack([torch.count_nonzero(part) for part in masks]).tolist()
        before = len(raised)
        for name, count in zip(self._scores, counts, strict=True):
            scores = self._scores[name].view(-1)
            least = min(int(self.floor * k * self._parts[name]), scores.numel())
            if count < least and name not in raised:
                values, places = scores.topk(least)
                scores[places] = torch.where(values > 0, math.inf, values)
                raised[name] = places, values
        return len(raised) > before

    def _follow_nonzeros(self) -> None:
        nonzeros = self.nonzeros
        if self.auto and abs(nonzeros - self._chosen_at) > 0.05 * self._chosen_at:
            self.set_bits(self.choose_bits(nonzeros))
            self._chosen_at = nonzeros

    @property
    def nonzeros(self) -> int:
        """Nonzeros of all factors now."""
        return _nonzeros(self.factors)

    @property
    def available(self) -> int:
        """Nonzeros of all factors with their shadows, of which k is chosen."""
        return self.nonzeros + (_nonzeros(self.shadows) if self.shadows else 0)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Inner step, projection and, when it is due, duplicate and dual."""
        if self.finalized:
            raise RuntimeError("the optimizer is finalized: go on with CodebookOptimizer")
        loss = self.inner.step(closure)
        if self.curvature is not None:
            self.curvature.update()
        self._scored = None  # the projection changes the factors after it has scored them
        with torch.no_grad():
            self._proximal()
            self.steps += 1
            self._project(int(at(self.k, self.steps)))
            if self.steps % self.duplicate_every == 0:
                self._duplicate()
            self._set_rho(float(at(self.rho, self.steps)))
        return loss

    def _project(self, k: int) -> None:
        for name, shadow in self.shadows.items():
            self.factors[name].add_(shadow)
        self._score()
        last = self._threshold
        selection = self._select(k, self._flat_support)
        self._threshold = selection.threshold
        if 0 < last < math.inf:  # the next move should be like this one
            move = abs(self._threshold / last - 1)
            self._moves = min(max(2 * move, _LEAST_MOVE), _MOST_MOVE)
        for name, off in _views(~self._flat_support, self.factors).items():
            if name in self.shadows:
                self._renew_shadow(name, off)
            self.factors[name].masked_fill_(off, 0)
            if name in self.duplicates:
                self.duplicates[name].masked_fill_(off, 0)
                self.duals[name].masked_fill_(off, 0)

    def _renew_shadow(self, name: str, off: Tensor) -> None:
        """Take what is cut; what has come back is its own duplicate, not drawn to zero."""
        factor, shadow = self.factors[name], self.shadows[name]
        if name in self.duplicates:
            duplicate = self.duplicates[name]
            back = (shadow != 0) & ~off
            duplicate.copy_(torch.where(back, factor.to(duplicate.dtype), duplicate))
        shadow.copy_(factor).masked_fill_(~off, 0).mul_(_FADE)

    @torch.no_grad()
    def forget_zeros(self) -> None:
        """Zero duplicates and duals off the support, after something else than a step has pruned.

        They would draw the entries back otherwise.
        """
        for name in self.duplicates:
            off = self.factors[name] == 0
            self.duplicates[name].masked_fill_(off, 0)
            self.duals[name].masked_fill_(off, 0)

    def _duplicate(self) -> None:
        self._follow_nonzeros()
        if self.steps // self.duplicate_every % _COLD_EVERY == 0:
            self._centroids.clear()
        for name in self.factors:
            init = self._centroids.get(name)
            duplicate, centroids = rounded(self._shifted(name), self.bits[name], init, rdo=self.rdo)
            if centroids is not None:
                self._centroids[name] = centroids
            self._renew(name, duplicate)

    @torch.no_grad()
    def quantized(self, k: int) -> dict[str, Tensor]:
        """The duplicate of the factors projected onto ``k``, by name; changes nothing."""
        shifted = {name: self._shifted(name) for name in self.factors}
        for name, shadow in self.shadows.items():
            shifted[name] = shifted[name] + shadow
        masks = self.best(k)
        return {
            name: rounded(value * masks[name], self.bits[name], rdo=self.rdo)[0]
            for name, value in shifted.items()
        }

    @torch.no_grad()
    def finalize(self, k: int | None = None) -> None:
        """Make the quantized duplicate the model: W ← W'. No step may follow.

        The duplicate is taken afresh, of the factors projected onto ``k``: that of now if None.
        """
        self.duplicates = self.quantized(int(at(self.k, self.steps)) if k is None else k)
        for name, factor in self.factors.items():
            factor.copy_(self.duplicates[name])
        for shadow in self.shadows.values():
            shadow.zero_()
        self._scored = None
        self.finalized = True

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, duplicates, duals and counters; tensors are not copied."""
        return super().state_dict() | {
            "shadows": dict(self.shadows),
            "centroids": dict(self._centroids),
            "bits": dict(self.bits),
            "chosen_at": self._chosen_at,
            "floor": self.floor,
            "finalized": self.finalized,
            "curvature": None if self.curvature is None else self.curvature.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an optimizer of the same model.

        Raises:
            ValueError: a state of other factors than the model's.
        """
        shadows = state_dict["shadows"]
        shapes = [{n: s.shape for n, s in each.items()} for each in (shadows, self.shadows)]
        if shapes[0] != shapes[1]:
            raise ValueError("the state has other shadows: give the same factors and shadows")
        super().load_state_dict(state_dict)
        for name, shadow in self.shadows.items():
            shadow.copy_(shadows[name])
        self._scored = None
        self.set_bits(state_dict["bits"])
        self._centroids = dict(state_dict.get("centroids", {}))
        self._chosen_at = state_dict["chosen_at"]
        self.floor = state_dict["floor"]
        self.finalized = state_dict["finalized"]
        if self.curvature is not None:
            self.curvature.load_state_dict(state_dict["curvature"])
