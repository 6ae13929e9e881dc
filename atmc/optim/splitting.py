"""The ADMM splitting that every constrained optimizer here shares.

The variables θ are moved by any torch optimizer; each has a duplicate θ' in the constraint set and
a scaled dual u (Boyd et al., 2011, section 3.1.1):

    primal      θ ← θ - γ ∇ [loss + (ρ/2) ‖θ - θ' + u‖²]
    duplicate   θ' ← the nearest point of the set to θ + u
    dual        u ← u + θ - θ', with each duplicate and only then
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Schedule = Callable[[int], float]
Penalty = Literal["loss", "decoupled"]


def at(value: float | Schedule, step: int) -> float:
    """A setting that may be a function of the step, at that step."""
    return value(step) if callable(value) else value


class Wrapping(torch.optim.Optimizer):
    """An optimizer around another one; both share their groups and state.

    Args:
        inner: moves the parameters.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self._wrap(inner)

    def _wrap(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.param_groups = inner.param_groups
        self.state = inner.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of every parameter that the inner optimizer moves."""
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's ``state`` and ``param_groups``; tensors are not copied."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the inner optimizer's state."""
        self.inner.load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._wrap(self.inner)


class Splitting(Wrapping):
    """A torch optimizer over parameters, some of which have a duplicate and a dual.

    The penalty is part of the loss for plain gradient methods (add :meth:`penalty` to it).
    Optimizers that rescale gradients (Adam and its kind) would rescale ρ with them: there it
    is applied decoupled, as the proximal step θ ← (θ + γρ(θ' - u)) / (1 + γρ) with γ the group's
    rate, and :meth:`penalty` is zero. So a loop always adds it. The fixed point is then that of
    the rescaled gradient: under Adam levels settle nearer a median of what they stand for.

    Args:
        variables: θ by name; the optimizer holds them.
        optimizer: moves all parameters.
        rho: the penalty weight; a float or a function of the step. u is scaled, and rescaled
            by ρ_old / ρ_new when ρ changes.
        penalty: "loss", "decoupled", or None to choose by the inner optimizer.
        state_dtype: of duplicates and duals, None for that of the variables.

    Raises:
        ValueError: an optimizer that does not hold the variables, an unknown penalty, or a type
            that is no floating-point type.
    """

    def __init__(
        self,
        variables: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        rho: float | Schedule,
        penalty: Penalty | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        if missing := [name for name, variable in variables.items() if id(variable) not in groups]:
            raise ValueError(
                f"the optimizer does not hold {missing[0]}: build it from model.parameters() "
                "after atmc.factorize(model)"
            )
        if state_dtype is not None and not state_dtype.is_floating_point:
            raise ValueError(f"state_dtype is {state_dtype}: use a floating-point type")
        if penalty not in (None, *get_args(Penalty)):
            raise ValueError(f"unknown penalty {penalty!r}: use 'loss', 'decoupled' or None")
        if penalty is None:
            plain = isinstance(optimizer, (torch.optim.SGD, torch.optim.ASGD))
            penalty = "loss" if plain else "decoupled"
        self.variables = dict(variables)
        self.rho = rho
        self.penalty_kind: Penalty = penalty
        self.state_dtype = state_dtype
        self.steps = 0
        self.duplicates: dict[str, Tensor] = {}
        self.duals: dict[str, Tensor] = {}
        self._rho_now = float(at(rho, 0))
        super().__init__(optimizer)

    def _wrap(self, inner: torch.optim.Optimizer) -> None:
        super()._wrap(inner)
        groups = {id(p): group for group in inner.param_groups for p in group["params"]}
        self._groups = {name: groups[id(variable)] for name, variable in self.variables.items()}

    def penalty(self) -> Tensor:
        """(ρ/2) Σ ‖θ - θ' + u‖², to add to the loss; zero where it is applied decoupled."""
        first = next(iter(self.variables.values()))
        total = first.new_zeros(())
        if self.penalty_kind == "loss":
            for name, duplicate in self.duplicates.items():
                gap = self.variables[name] - duplicate + self.duals[name]
                total = total + gap.square().sum()
        return 0.5 * self._rho_now * total

    def _proximal(self) -> None:
        """The decoupled penalty; nothing where it is part of the loss."""
        if self.penalty_kind == "loss":
            return
        pulls: dict[float, list[str]] = {}
        for name in self.duplicates:
            pull = float(self._groups[name]["lr"]) * self._rho_now
            pulls.setdefault(pull, []).append(name)
        for pull, names in pulls.items():
            variables = [self.variables[name].detach() for name in names]
            duplicates, duals = (
                [
                    state[name].to(torch.promote_types(state[name].dtype, variable.dtype))
                    for name, variable in zip(names, variables, strict=True)
                ]
                for state in (self.duplicates, self.duals)
            )
            gaps = torch._foreach_sub(duplicates, duals)
            targets = [gap.to(v.dtype) for gap, v in zip(gaps, variables, strict=True)]
            torch._foreach_lerp_(variables, targets, pull / (1 + pull))

    def _shifted(self, name: str) -> Tensor:
        """θ + u, the point that the next duplicate is nearest to."""
        dual = self.duals.get(name)
        variable = self.variables[name].detach()
        return variable if dual is None else variable + dual

    def _renew(self, name: str, duplicate: Tensor) -> None:
        """Take a new duplicate, and with it the step of the dual."""
        variable = self.variables[name].detach()
        kind = self.state_dtype or variable.dtype
        gap = (variable - duplicate).to(kind)
        dual = self.duals.get(name)
        self.duals[name] = gap if dual is None else dual.add_(gap)
        self.duplicates[name] = duplicate.to(kind)

    def _set_rho(self, rho: float) -> None:
        if rho != self._rho_now:
            if rho > 0 and self.duals:
                torch._foreach_mul_(list(self.duals.values()), self._rho_now / rho)
            self._rho_now = rho

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, duplicates, duals and counters; tensors are not copied."""
        return {
            **super().state_dict(),
            "duplicates": dict(self.duplicates),
            "duals": dict(self.duals),
            "steps": self.steps,
            "rho": self._rho_now,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an optimizer of the same model.

        Raises:
            ValueError: a state of other variables than the model's.
        """
        for key in ("duplicates", "duals"):
            for name, value in state_dict[key].items():
                if name not in self.variables or value.shape != self.variables[name].shape:
                    raise ValueError(f"the state holds {name!r}, which does not fit this model")
        super().load_state_dict(state_dict)
        for key in ("duplicates", "duals"):
            copies = {}
            for name, value in state_dict[key].items():
                variable = self.variables[name]
                kind = self.state_dtype or variable.dtype
                copies[name] = value.to(variable.device, kind, copy=True)
            setattr(self, key, copies)
        self.steps = state_dict["steps"]
        self._rho_now = state_dict["rho"]


# ρ × steps at the end: below it the two copies are far apart then, above it nothing moves any more.
_PULL = 4000.0


def rising_rho(steps: int) -> Callable[[int], float]:
    """ρ by step: from zero, as the square of the progress.

    The pull towards the duplicates, summed over all steps, is the same for any number of them.
    """
    steps = max(1, steps)
    return lambda step: _PULL / steps * (step / steps) ** 2
