"""What training minimizes: the loss on attacked inputs, and the attack that makes them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.attacks.channels_last import ChannelsLastGradients
from atmc.attacks.freezing import frozen
from atmc.attacks.gradient import n_fgsm, pgd
from atmc.inference import as_logits

TrainAttack = Literal["pgd", "atta", "n-fgsm", "none"]

_PGD_STEPS = 7  # what a cheaper attack is held against


def usual_steps(train_attack: TrainAttack) -> int:
    """Steps of a training-time attack where none are given."""
    return 1 if train_attack == "atta" else _PGD_STEPS


@dataclass(frozen=True)
class Objective:
    """What is minimized: the loss on attacked inputs, with ε warmed up.

    Args:
        eps: the ℓ∞ radius; 0 trains without an attack.
        train_attack: "pgd"; "atta" for steps from where the last visit to an example ended, or
            "n-fgsm" for a single step from noise, both watched by a :class:`Guard`; "none": clean
            inputs, whatever ε is.
        steps: of PGD, or of a visit of ATTA.
        step_size: length of a step at full ε; None for 2 ε / steps, of ATTA ε / 2.
        clean_weight: share of the loss on the clean batch, 0 to 1.
        teacher: a robust model whose predictions on the clean batch are a second target.
        distill: share of the loss on those predictions, 0 to 1.
        precision: autocast type of the layers, or None for float32.
        fast: let the attack take the faster way through thin convolutions, and gradients keep
            channels_last.
        bpda: let the attack's gradients past ReLUs that are off and losers of a max-pool.
        compiled: compile the attack's passes.
    """

    eps: float
    steps: int = _PGD_STEPS
    step_size: float | None = None
    clean_weight: float = 0.0
    teacher: nn.Module | None = None
    distill: float = 0.0
    precision: torch.dtype | None = None
    fast: bool = True
    train_attack: TrainAttack = "pgd"
    bpda: bool = False
    compiled: bool = False

    @property
    def attacked(self) -> bool:
        """Whether there is an attack at all."""
        return self.eps > 0 and self.train_attack != "none"

    def single_step(self, model: nn.Module, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """``x`` attacked by one noisy step of ``scale`` · ε."""
        eps = self.eps * scale
        if eps == 0:
            return x
        return n_fgsm(
            model,
            x,
            y,
            eps,
            precision=self.precision,
            fast=self.fast,
            bpda=self.bpda,
            compiled=self.compiled,
        )

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """``x`` attacked by PGD within ``scale`` · ε."""
        eps = self.eps * scale
        if eps == 0 or not self.attacked:
            return x
        steps, size = self.steps, self.step_size
        if self.train_attack == "atta":  # those are of a visit
            steps, size = max(steps, _PGD_STEPS), None
        step = 2 * self.eps / steps if size is None else size
        return self._pgd(model, x, y, eps, steps, step * scale)

    def visit(self, model: nn.Module, x: Tensor, y: Tensor, scale: float, start: Tensor) -> Tensor:
        """``x`` attacked by a few steps from ``start``, a point of the ball of ``scale`` · ε."""
        size = self.eps / 2 if self.step_size is None else self.step_size
        eps = self.eps * scale
        return self._pgd(model, x, y, eps, self.steps, size * scale, start)

    def _pgd(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: float,
        steps: int,
        step_size: float,
        start: Tensor | None = None,
    ) -> Tensor:
        return pgd(
            model,
            x,
            y,
            eps,
            steps,
            step_size=step_size,
            start=start,
            precision=self.precision,
            fast=self.fast,
            bpda=self.bpda,
            compiled=self.compiled,
        )

    def _one(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        loss = F.cross_entropy(logits, y)
        if target is None:
            return loss
        soft = F.kl_div(logits.log_softmax(1), target, reduction="batchmean", log_target=True)
        return (1 - self.distill) * loss + self.distill * soft

    def loss(self, model: nn.Module, x: Tensor, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits on the attacked batch.

        Inside ``plain_weights(model, graph=True)``, which must last until the gradients are there,
        both batches share the W formed for the step.
        """
        target = None
        if self.teacher is not None and self.distill > 0:
            with torch.no_grad(), frozen(self.teacher), self.autocast(x):
                target = as_logits(self.teacher(x)).float().log_softmax(1)
        layout = ChannelsLastGradients() if self.fast else contextlib.nullcontext()
        with layout, self.autocast(x):
            logits = as_logits(model(adv)).float()
            clean = as_logits(model(x)).float() if self.clean_weight > 0 else None
        loss = self._one(logits, y, target)
        if clean is not None:
            loss = (1 - self.clean_weight) * loss + self.clean_weight * self._one(clean, y, target)
        return loss, logits

    def autocast(self, x: Tensor) -> torch.autocast:
        """The autocast context of the layers."""
        return torch.autocast(x.device.type, self.precision, enabled=self.precision is not None)
