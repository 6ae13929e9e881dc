"""The budget of a file, and the closing loop that meets it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atmc import codec
from atmc.accounting import dense_width
from atmc.artifact import to_artifact
from atmc.errors import BudgetError
from atmc.factorization.importance import scores
from atmc.factorization.layers import factorized_weights, live_factors, named_factors
from atmc.models.preparation import live_tensors
from atmc.projection import topk_masks
from atmc.quantization.rates import CHOICES, FLOAT_BITS

UNBOUNDED = 2**62  # bits that no file reaches
ROOM = 0.03  # share of the budget that may stay unused without a reason in the report
_FULL = 0.99  # share of the budget from which a file counts as full

_Saved = list[tuple[Tensor, Tensor]]


@dataclass
class Outcome:
    """How a stage closed the file.

    Attributes:
        bits: the size of the file then.
        reason: why it is no larger.
        whole: why an earlier stage pruned nothing more, in words; None where it did.
    """

    bits: int = 0
    reason: str = ""
    whole: str | None = None

    def take(self, state: Mapping[str, Any]) -> None:
        """Take up the dict of a checkpoint, made by ``asdict``."""
        self.bits, self.reason, self.whole = state["bits"], state["reason"], state["whole"]


@dataclass(frozen=True)
class Encoded:
    """An artifact, the bytes of its file, and where their bits go."""

    artifact: codec.Artifact
    data: bytes
    sizes: codec.Sizes


@dataclass(frozen=True)
class Target:
    """What the file must be: its budget and its format.

    Args:
        budget_bits: the ceiling, in bits.
        bits: b, or "auto".
        width: bits a value of the dense part.
        meta: the metadata of the artifact, None for a user's model.
        rdo: whether rounding weighs error against the length of the codes.
        outcome: how the file was closed; stages write it, checkpoints store it.
    """

    budget_bits: int
    bits: int | str
    width: int
    meta: dict[str, Any] | None = None
    rdo: bool = False
    outcome: Outcome = field(default_factory=Outcome, compare=False, repr=False)
    _recent: deque[Encoded] = field(  # two: a closing loop goes back from what did not fit
        default_factory=partial(deque, maxlen=2), init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        """Refuse unsupported bits before any training."""
        if self.bits not in ("auto", *range(1, 9), FLOAT_BITS):
            raise ValueError(f"bits is {self.bits!r}: use 'auto', 1 to 8, or 32")

    @classmethod
    def of(
        cls,
        model: nn.Module,
        budget_bits: int | None,
        bits: int | str,
        meta: dict[str, Any] | None,
        *,
        rdo: bool = False,
    ) -> Target:
        """The target of a model; None for no ceiling.

        Raises:
            BudgetError: no file can keep the budget.
            ValueError: unsupported bits, or a model without a weight to factorize.
        """
        if budget_bits is None:
            budget_bits = UNBOUNDED
        most = int(bits) if isinstance(bits, int) else max(CHOICES)
        width = dense_width(model, budget_bits, bits=most, meta=meta)
        return cls(budget_bits, bits, width, meta, rdo)

    def encode(self, model: nn.Module) -> Encoded:
        """The file of a factorized model; equal content is not encoded twice in a row."""
        artifact = to_artifact(model, width=self.width, meta=self.meta)
        for recent in self._recent:
            if recent.artifact == artifact:
                return recent
        encoded = Encoded(artifact, *codec.encode_measured(artifact))
        self.remember(encoded)
        return encoded

    def remember(self, encoded: Encoded) -> None:
        """Do not encode this file again if it is asked for next."""
        self._recent.append(encoded)

    def full(self, bits: int) -> bool:
        """Whether a file of this size fits and fills the budget."""
        return _FULL * self.budget_bits <= bits <= self.budget_bits

    def unused(self, bits: int) -> dict[str, Any] | None:
        """The ``unused`` of report.json for a file of this size; None where it fills its budget."""
        room = self.budget_bits - bits
        if self.budget_bits == UNBOUNDED or room <= ROOM * self.budget_bits:
            return None
        reason = self.outcome.reason
        if self.budget_bits - self.outcome.bits <= ROOM * self.budget_bits:
            reason = (
                "what was trained last, levels and the dense part, takes fewer bits than before"
            )
        return {"bits": room, "reason": reason}


@torch.no_grad()
def encoded_bits(model: nn.Module, target: Target, values: Mapping[str, Tensor]) -> int:
    """The real size of the file if the factors were ``values``, by name; changes nothing."""
    factors = named_factors(model)
    backup = {name: factors[name].clone() for name in values}
    for name, value in values.items():
        factors[name].copy_(value)
    bits = target.encode(model).sizes.file_bits
    for name, value in backup.items():
        factors[name].copy_(value)
    return bits


def fit(model: nn.Module, target: Target, sort: Callable[[nn.Module], None] | None = None) -> bytes:
    """The closing loop: encode, measure, and drop the least entries until the file fits.

    Changes ``model`` only where the file is over the budget: zeroes entries of its factors. Where
    the last round dropped so many that there is room again, fewer are dropped.

    Args:
        model: factorized and rounded.
        target: the budget.
        sort: brings hidden units in order, in place; the first entry that is dropped breaks the
            order, and with it what the order saves.
    """

    def encode() -> Encoded:
        encoded = target.encode(model)
        if encoded.sizes.file_bits > target.budget_bits and sort is not None:
            sort(model)
            encoded = target.encode(model)
        return encoded

    nonzeros = 0  # of the last file over the budget
    before: _Saved | None = None  # and its tensors
    for attempt in range(64):
        encoded = encode()
        bits = encoded.sizes.file_bits
        if bits <= target.budget_bits:
            break
        nonzeros = _nonzeros(model)
        before = _saved(model)
        bits_each = max(1.0, bits / max(1, nonzeros))
        # Later rounds drop more at once, so that the loop ends however bad the estimate is.
        drop = math.ceil(max(1.0, (bits - target.budget_bits) / bits_each) * 1.5**attempt)
        _keep_best(model, max(0, nonzeros - drop))
    else:
        raise BudgetError(
            f"no file of the model fits into {target.budget_bits} bits any more: what is not "
            "compressed of it has grown; give a larger budget"
        )
    if before is None:
        return encoded.data
    fits, best = _nonzeros(model), _saved(model)
    while nonzeros - fits > 1 and not target.full(encoded.sizes.file_bits):
        keep = (fits + nonzeros) // 2
        _put_back(before)
        _keep_best(model, keep)
        trial = encode()
        if trial.sizes.file_bits <= target.budget_bits:
            fits, best, encoded = keep, _saved(model), trial
        else:
            nonzeros = keep
    _put_back(best)
    target.remember(encoded)
    return encoded.data


def _nonzeros(model: nn.Module) -> int:
    return sum(int(torch.count_nonzero(factor)) for factor in live_factors(model).values())


def _saved(model: nn.Module) -> _Saved:
    """All that a file stores and the order of units moves, with copies of the values."""
    return [(tensor, tensor.detach().clone()) for tensor in live_tensors(model)]


@torch.no_grad()
def _put_back(saved: _Saved) -> None:
    for tensor, values in saved:
        tensor.copy_(values)


@torch.no_grad()
def _keep_best(model: nn.Module, keep: int) -> None:
    """Zero all but the entries of the factors that change W the most."""
    factors = live_factors(model)
    ranks = {name: torch.empty_like(factor) for name, factor in factors.items()}
    scores(factorized_weights(model), "effect", ranks)
    masks = topk_masks([ranks[name] * (factor != 0) for name, factor in factors.items()], keep)
    for factor, mask in zip(factors.values(), masks, strict=True):
        factor.mul_(mask)
