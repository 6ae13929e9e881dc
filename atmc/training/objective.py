"""What training minimizes: the loss on attacked inputs, or that of TRADES."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.attacks.channels_last import ChannelsLastGradients
from atmc.attacks.freezing import frozen
from atmc.attacks.losses import divergence
from atmc.attacks.registry import training_attack
from atmc.certification.bounds import ball, margins, propagate
from atmc.certification.objective import warmup_penalty
from atmc.inference import as_logits
from atmc.messages import argument

_PGD_STEPS = 7
_WARMUP_PENALTY = 0.5  # λ_0 of Shi et al. (2021), at ε = 0


def default_steps(train_attack: str) -> int:
    """Steps of a training-time attack by default; of PGD, where the attack takes none."""
    return training_attack(train_attack).steps or _PGD_STEPS


@dataclass(frozen=True)
class Objective:
    """What is minimized: the loss on attacked inputs, or that of TRADES.

    TRADES (Zhang et al., ICML 2019, equation 5) is the loss on the clean batch and, β times, the
    divergence KL(p(x) || p(x')) to the prediction on the attacked one, which the attack ascends:
    in eval mode, from a prediction on x that stays. Gradients reach both predictions.

    Args:
        eps: the ℓ∞ radius at the end of a warm-up; 0 trains without an attack.
        steps: of PGD, or of a visit of ATTA.
        step_size: length of a step at full ε; None for 2 ε / steps, of ATTA ε / 2.
        clean_weight: share of the loss on the clean batch, 0 to 1; not with TRADES.
        trades_beta: β of TRADES; None for the loss on attacked inputs.
        teacher: a robust model whose predictions on the clean batch are a second target.
        distill: share of the loss on those predictions, 0 to 1.
        precision: autocast type of the layers, or None for float32.
        fast: let the attack take the faster way through thin convolutions and fold batch norms
            (:mod:`atmc.attacks.folding`), and gradients keep channels_last.
        train_attack: a name of :func:`atmc.attacks.registry.training_names`: "pgd"; "atta" for
            steps from where the last visit to an example ended, or "n-fgsm" for a single step from
            noise, both watched for collapse; "none": clean inputs, whatever ε is.
        bpda: let the attack's gradients past ReLUs that are off and losers of a max-pool.
        compiled: compile the attack's passes.
        interval_share: with the attack "interval", the share of the loss on interval bounds, 0 to
            1; the rest is of the attacked batch.
        interval_radius: with the attack "interval", the radius of the boxes over ε, 0 to 1. Below 1
            a box lies around an attacked input, inside the ball (SABR: Müller et al., ICLR 2023).

    Raises:
        ValueError: TRADES with a ``clean_weight``, or with an attack that ascends cross-entropy
            alone; an ``interval_share`` or ``interval_radius`` without the attack "interval", or a
            ``clean_weight`` with it.
    """

    eps: float
    steps: int = _PGD_STEPS
    step_size: float | None = None
    clean_weight: float = 0.0
    trades_beta: float | None = None
    teacher: nn.Module | None = None
    distill: float = 0.0
    precision: torch.dtype | None = None
    fast: bool = True
    train_attack: str = "pgd"
    bpda: bool = False
    compiled: bool = False
    interval_share: float = 1.0
    interval_radius: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what TRADES and interval bounds do not go with."""
        for name in ("interval_share", "interval_radius"):
            if (value := getattr(self, name)) < 1 and self.train_attack != "interval":
                raise ValueError(
                    f"{argument(name, value)} is for {argument('train_attack', 'interval')}: "
                    "give that too"
                )
        if self.bounded and self.clean_weight > 0:
            raise ValueError(
                f"{argument('clean_weight')} {self.clean_weight} does not apply to interval "
                f"bounds: leave it out, and lower {argument('interval_share')}"
            )
        if self.trades_beta is None or not self.attacked:
            return
        if self.clean_weight > 0:
            raise ValueError(
                f"{argument('clean_weight')} {self.clean_weight} does not apply to TRADES, whose "
                f"loss is on the clean batch: leave it out, and set {argument('trades_beta')}"
            )
        if not training_attack(self.train_attack).takes_loss:
            raise ValueError(
                f"the attack {self.train_attack} does not ascend the divergence of TRADES: train "
                f"on pgd, or with {argument('loss', 'cross-entropy')}"
            )

    @property
    def attacked(self) -> bool:
        """Whether there is an attack at all."""
        return self.eps > 0 and self.train_attack != "none"

    @property
    def bounded(self) -> bool:
        """Whether the loss is on interval bounds."""
        return self.attacked and self.train_attack == "interval"

    @property
    def pointwise(self) -> bool:
        """Whether a part of the loss is of the model's answers, not of bounds."""
        return not self.bounded or self.interval_share < 1

    @property
    def needs_attack(self) -> bool:
        """Whether the loss depends on an attacked batch."""
        return self.attacked and (self.pointwise or self.interval_radius < 1)

    @property
    def attack_eps(self) -> float:
        """How far the attacked batch may lie from the clean one: ε, less the radius of boxes."""
        around = self.bounded and self.interval_radius < 1
        return self.eps * (1 - self.interval_radius) if around else self.eps

    @property
    def gradients(self) -> int:
        """Passes of a batch, forward and backward, in a step: of its attack and of its loss."""
        training = 2 if self.clean_weight > 0 else 1
        if not self.attacked:
            return training
        if self.bounded:
            return training + 1 + int(self.needs_attack)
        return training + (1 if training_attack(self.train_attack).steps is None else self.steps)

    def autocast(self, x: Tensor) -> torch.autocast:
        """The autocast context of the layers."""
        return torch.autocast(x.device.type, self.precision, enabled=self.precision is not None)

    def loss(
        self, model: nn.Module, x: Tensor, adv: Tensor, y: Tensor, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the logits on the attacked batch; with bounds the worst in the ball.

        Inside ``plain_weights(model, graph=True)``, which must last until the gradients are
        computed, both batches share the W formed for the step.

        Args:
            model: in training mode.
            x: the clean batch (n, ...).
            adv: the attacked batch.
            y: labels (n,), int64.
            scale: of ε, from 0 to 1.
        """
        target = None
        if self.teacher is not None and self.distill > 0 and self.pointwise:
            with torch.no_grad(), frozen(self.teacher), self.autocast(x):
                target = as_logits(self.teacher(x)).float().log_softmax(1)
        if self.bounded:
            return self._bounded_loss(model, x, adv, y, target, scale)
        trades = self.trades_beta is not None and self.attacked
        layout = ChannelsLastGradients() if self.fast else contextlib.nullcontext()
        with layout, self.autocast(x):
            logits = as_logits(model(adv)).float()
            both = trades or self.clean_weight > 0
            clean = as_logits(model(x)).float() if both else logits
        if trades:
            assert self.trades_beta is not None
            robust = divergence(logits, clean.log_softmax(1)).mean()
            return self._batch_loss(clean, y, target) + self.trades_beta * robust, logits
        loss = self._batch_loss(logits, y, target)
        if both:
            clean_loss = self._batch_loss(clean, y, target)
            loss = (1 - self.clean_weight) * loss + self.clean_weight * clean_loss
        return loss, logits

    def _bounded_loss(
        self,
        model: nn.Module,
        x: Tensor,
        adv: Tensor,
        y: Tensor,
        target: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the worst margins in a box, and of a point of it."""
        centre = adv if self.interval_radius < 1 else x
        box = ball(centre, self.eps * self.interval_radius * scale)
        norms = any(hasattr(module, "running_mean") for module in model.modules())
        # Without a norm, whose scale is free, the bounds on the widths keep the logits small.
        penalized = norms and scale < 1
        if norms or self.pointwise:  # norms take their statistics from the point
            box.nominal = adv
        if penalized:
            box.journal = []
        with self.autocast(x):
            logits = propagate(model, box)
            worst = -margins(logits, y).float()
        loss = F.cross_entropy(worst, y)
        if self.pointwise:
            assert logits.nominal is not None
            point = self._batch_loss(logits.nominal.float(), y, target)
            loss = self.interval_share * loss + (1 - self.interval_share) * point
        if penalized:
            assert box.journal is not None
            loss = loss + _WARMUP_PENALTY * (1 - scale) * warmup_penalty(box, box.journal)
        return loss, worst

    def _batch_loss(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        loss = F.cross_entropy(logits, y)
        if target is None:
            return loss
        soft = F.kl_div(logits.log_softmax(1), target, reduction="batchmean", log_target=True)
        return (1 - self.distill) * loss + self.distill * soft
