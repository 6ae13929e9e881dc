"""How a stage descends: its optimizer, its rate, weight decay and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from atmc.factorization.layers import factorized_weights, weight_names

OptimizerName = Literal["adam", "sgd"]
RateSchedule = Literal["one-cycle", "cosine", "piecewise", "constant"]


def adam(
    parameters: Iterable[nn.Parameter], lr: float, decay: dict[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """Adam, in one pass over memory where torch supports it.

    Args:
        parameters: what it moves.
        lr: its rate.
        decay: the decoupled weight decay (AdamW) of some of them; None for none at all.
    """
    moved = list(parameters)
    fused = all(_fusable(p) for p in moved)
    if decay is None:
        return torch.optim.Adam(moved, lr, fused=fused)
    return torch.optim.AdamW(_groups(moved, decay), lr, fused=fused)


def _fusable(p: Tensor) -> bool:
    if not p.is_floating_point() or p.device.type not in ("cpu", "cuda"):
        return False
    # The one pass would also write between the entries of a view with gaps.
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(p.dim())
    return p.is_contiguous() or (last is not None and p.is_contiguous(memory_format=last))


def _groups(moved: list[nn.Parameter], decay: dict[nn.Parameter, float]) -> list[dict[str, Any]]:
    """The parameters as groups of the same weight decay, in their order."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in moved:
        groups.setdefault(decay.get(parameter, 0.0), []).append(parameter)
    return [{"params": group, "weight_decay": each} for each, group in groups.items()]


def decay_shares(model: nn.Module) -> dict[nn.Parameter, float]:
    """The share of the weight decay that each parameter takes; none for one that is not named.

    The weights of layers decay, those that :func:`~atmc.factorization.layers.factorize` takes;
    biases, norms and whatever else a model has do not, as is the custom of the field.

    Of W = U V + C it is W that decays, by the factor 1 − γλ a step (γ the rate, λ the decay). From
    the identity start W is linear in its carrier and in C: both take all of the decay, and the
    deviation from the identity takes none. In U V without an identity each factor takes half.

    In the ADMM splitting the decay is a part of the primal step: of θ, before the decoupled penalty
    and the projection, which stay what they are, and never of duplicates and duals.
    """
    shares: dict[nn.Parameter, float] = {}
    for module in model.modules():
        for name in weight_names(module):
            parameter = module._parameters.get(name)
            if parameter is not None:
                shares[parameter] = 1.0
    for weight in factorized_weights(model):
        if weight.parametrization.identity == "none":
            shares[weight.U] = shares[weight.V] = 0.5
        shares[weight.C] = shares[weight.factors[weight.carrier]] = 1.0
    return shares


@dataclass(frozen=True)
class Optimization:
    """How a stage descends.

    Args:
        optimizer: "adam", or "sgd" with a momentum of 0.9.
        schedule: of the rate: "one-cycle"; "cosine", down from the peak; "piecewise", which drops
            to a tenth at 1/2 of the stage and again at 3/4; or "constant".
        weight_decay: of the weights (:func:`decay_shares`), per unit of the rate: decoupled from
            Adam's gradient (Loshchilov & Hutter, ICLR 2019), in SGD a part of the gradient.
        ema: decay of the averaged weights that a stage ends with (:class:`Average`); 0 for none.
    """

    optimizer: OptimizerName = "adam"
    schedule: RateSchedule = "one-cycle"
    weight_decay: float = 0.0
    ema: float = 0.0

    def build(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The optimizer of a model's parameters.

        Args:
            model: the model; factorized or not.
            lr: its rate at first.
        """
        moved = list(model.parameters())
        decay = None
        if self.weight_decay > 0:
            decay = {p: share * self.weight_decay for p, share in decay_shares(model).items()}
        if self.optimizer == "sgd":
            return torch.optim.SGD(_groups(moved, decay or {}), lr, momentum=0.9)
        return adam(moved, lr, decay)

    def lr_scale(self, progress: float) -> float:
        """The rate over its peak, at a progress from 0 to 1."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "piecewise":
            return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
        # One cycle: up over the first fifth, down as a cosine.
        if progress < 0.2:
            return 0.1 + 0.9 * progress / 0.2
        return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8)) * 0.99 + 0.01


class Average:
    """An exponential moving average of tensors that training changes.

    After each step a ← d a + (1 − d) θ, where d = min(decay, (1 + t) / (10 + t)) after t updates:
    the values before training are forgotten at once, however large the decay is.

    Args:
        tensors: θ, float tensors; the average starts from their values.
        decay: the largest d, below 1.
        changed: called after ``tensors`` took other values, for what depends on them.
    """

    def __init__(
        self, tensors: Sequence[Tensor], decay: float, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.tensors = [tensor.detach() for tensor in tensors]
        self.values = [tensor.clone() for tensor in self.tensors]
        self.decay = decay
        self.changed = changed
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the values of now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(self.values, self.tensors, self.updates)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the tensors hold their averages."""
        trained = [tensor.clone() for tensor in self.tensors]
        try:
            self.apply()
            yield
        finally:
            self._write(trained)

    def apply(self) -> None:
        """Let the tensors hold their averages from now on."""
        self._write(self.values)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.copy_(value)
        self.changed()

    def state_dict(self) -> dict[str, Any]:
        """The averages, which are not copied, and how many updates made them."""
        return {"values": self.values, "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)
        self.updates = state["updates"]
