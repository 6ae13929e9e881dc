"""What training minimizes: the loss on attacked inputs, and the attack that makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.attacks import frozen, n_fgsm, pgd
from atmc.factorization import plain_weights

TrainAttack = Literal["pgd", "n-fgsm"]


@dataclass(frozen=True)
class Objective:
    """What is minimized: the loss on attacked inputs, with ε warmed up.

    Args:
        eps: the ℓ∞ radius; 0 trains without an attack.
        train_attack: "pgd", or "n-fgsm" for a single step, watched by a :class:`Guard`.
        steps: PGD steps of the training-time attack.
        step_size: length of a step at full ε; None for 2 ε / steps.
        clean_weight: share of the loss on the clean batch, 0 to 1.
        teacher: a robust model whose predictions on the clean batch are a second target.
        distill: share of the loss on those predictions, 0 to 1.
        precision: autocast type of the layers, or None for float32.
        fast: let the attack take the faster way through thin convolutions.
        bpda: let the attack's gradients past ReLUs that are off and losers of a max-pool.
        compiled: compile the attack's passes.
    """

    eps: float
    steps: int = 7
    step_size: float | None = None
    clean_weight: float = 0.0
    teacher: nn.Module | None = None
    distill: float = 0.0
    precision: torch.dtype | None = None
    fast: bool = True
    train_attack: TrainAttack = "pgd"
    bpda: bool = False
    compiled: bool = False

    def single_step(self, model: nn.Module, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """``x`` attacked by one noisy step of ``scale`` · ε."""
        eps = self.eps * scale
        if eps == 0:
            return x
        return n_fgsm(model, x, y, eps, **self._how())

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """``x`` attacked by PGD within ``scale`` · ε."""
        eps = self.eps * scale
        if eps == 0:
            return x
        step = 2 * self.eps / self.steps if self.step_size is None else self.step_size
        return pgd(
            model,
            x,
            y,
            eps,
            self.steps,
            step_size=step * scale,
            **self._how(),
        )

    def _how(self) -> dict[str, Any]:
        """How an attack's passes are run."""
        return {
            "precision": self.precision,
            "fast": self.fast,
            "bpda": self.bpda,
            "compiled": self.compiled,
        }

    def _one(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        loss = F.cross_entropy(logits, y)
        if target is None:
            return loss
        soft = F.kl_div(logits.log_softmax(1), target, reduction="batchmean", log_target=True)
        return (1 - self.distill) * loss + self.distill * soft

    def loss(self, model: nn.Module, x: Tensor, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits on the attacked batch."""
        target = None
        if self.teacher is not None and self.distill > 0:
            with torch.no_grad(), frozen(self.teacher), self.autocast(x):
                target = self.teacher(x).float().log_softmax(1)
        with plain_weights(model, graph=True), self.autocast(x):
            logits = model(adv).float()
            clean = model(x).float() if self.clean_weight > 0 else None
        loss = self._one(logits, y, target)
        if clean is not None:
            loss = (1 - self.clean_weight) * loss + self.clean_weight * self._one(clean, y, target)
        return loss, logits

    def autocast(self, x: Tensor) -> torch.autocast:
        """The autocast context of the layers."""
        return torch.autocast(x.device.type, self.precision, enabled=self.precision is not None)


class Guard:
    """Chooses the attack of each step, and watches single-step training for its collapse.

    A net that is trained on single steps may learn to be right on them alone, from one moment to
    the next ("catastrophic overfitting"; Wong et al., ICLR 2020). So every ``every`` steps some
    examples of the batch are attacked both ways: where PGD leaves less than ``share`` of the
    accuracy that the single step leaves, the next ``cure`` steps are trained on PGD.

    Args:
        objective: tells the attacks.
        every: steps between two looks.
        examples: of a batch that are looked at.
        share: of the accuracy, below which training counts as collapsed.
        cure: steps on PGD after a collapse.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        every: int = 50,
        examples: int = 64,
        share: float = 0.7,
        cure: int = 100,
    ) -> None:
        self.objective = objective
        self.every = every
        self.examples = examples
        self.share = share
        self.cure = cure
        self.collapses = 0
        self.left = 0  # steps on PGD that are still to be done

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, scale: float, step: int) -> Tensor:
        """``x`` attacked for step number ``step`` of a stage."""
        objective = self.objective
        if objective.train_attack == "pgd" or objective.eps * scale == 0:
            return objective.attack(model, x, y, scale)
        if self.left == 0 and step % self.every == 0 and self._collapsed(model, x, y, scale):
            self.collapses += 1
            self.left = self.cure
        if self.left > 0:
            self.left -= 1
            return objective.attack(model, x, y, scale)
        return objective.single_step(model, x, y, scale)

    def _collapsed(self, model: nn.Module, x: Tensor, y: Tensor, scale: float) -> bool:
        x, y = x[: self.examples], y[: self.examples]
        single, several = (
            self._right(model, attack(model, x, y, scale), y)
            for attack in (self.objective.single_step, self.objective.attack)
        )
        return several < self.share * single

    @torch.no_grad()
    def _right(self, model: nn.Module, x: Tensor, y: Tensor) -> int:
        with frozen(model), self.objective.autocast(x):
            return int((model(x).argmax(1) == y).sum())

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs."""
        return {"collapses": self.collapses, "left": self.left}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up :meth:`state_dict`."""
        self.collapses, self.left = state["collapses"], state["left"]
