"""The inner maximization: FGSM, N-FGSM, PGD and WRM on inputs in [0, 1].

Any normalization belongs inside the model, so that ε is in pixels. Every attack forms each
factorized weight once, runs the model in eval mode, asks for the gradient of the input alone,
and does not change the model's mode, gradients and statistics.

Some arguments mean the same in all of them:

- ``model``: a classifier of inputs in [0, 1]
- ``x``: inputs (n, ...) in [0, 1]; ``y``: labels (n,), int64
- ``eps``: the ℓ∞ radius, in pixels of [0, 1]
- ``generator``: source of the random starts, on the device of ``x``; None for the global one
- ``precision``: run the layers under autocast in this type
- ``fast``: let thin convolutions take the faster way; the gradient differs by rounding
- ``bpda``: let gradients past ReLUs that are off and losers of a max-pool, as
  :mod:`atmc.attacks.bpda` says: stronger where the net's gradients are mostly zero
- ``compiled``: pass the model through ``torch.compile``; on a GPU all steps are one CUDA graph
  (:mod:`atmc.attacks.captured`). The first call takes long; on the CPU the others are slower too
  for small nets. Where it fails, the attack runs as it is, with a warning
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atmc.attacks.captured import run_compiled
from atmc.attacks.freezing import frozen
from atmc.attacks.losses import ExampleLoss, Loss, example_loss
from atmc.attacks.registry import default_step_size, register, register_training
from atmc.inference import as_logits

_NEAR = 1e-3  # deviation of the starts of an ascent on the divergence (Zhang et al., ICML 2019)


def _forward(model: nn.Module, x: Tensor, precision: torch.dtype | None) -> Tensor:
    """Logits in float32, whatever the precision of the layers."""
    with torch.autocast(x.device.type, precision, enabled=precision is not None):
        logits = as_logits(model(x))
    return logits.float()


def _ascent(
    model: nn.Module, x: Tensor, y: Tensor, loss: ExampleLoss, precision: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The loss to ascend, a scalar, and the logits."""
    logits = _forward(model, x, precision)
    # The sum, not the mean: an example's gradient does not depend on its batch.
    return loss(logits, y).sum(), logits


@functools.cache
def _compiled(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """``_ascent``, compiled; on a GPU for the shapes that are captured."""
    return torch.compile(_ascent, dynamic=False if device == "cuda" else None)


def _gradient(
    model: nn.Module,
    loss: ExampleLoss,
    precision: torch.dtype | None,
    x: Tensor,
    y: Tensor,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gradient of the input, and the logits."""
    x = x.detach().requires_grad_(True)
    ascent = _compiled(x.device.type) if compiled else _ascent
    with torch.enable_grad():
        total, logits = ascent(model, x, y, loss, precision)
    return torch.autograd.grad(total, x)[0], logits.detach()


def _compiled_steps(
    model: nn.Module,
    loss: ExampleLoss,
    steps: int,
    step_size: float,
    start: Tensor,
    y: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    precision: torch.dtype | None,
    fast: bool,
    bpda: bool,
) -> Tensor:
    """Signed steps of a frozen model, as :func:`_ascend` takes them."""

    def run(
        compiled: bool, adv: Tensor, y: Tensor, low: Tensor, high: Tensor, length: Tensor
    ) -> Tensor:
        for _ in range(steps):
            gradient, _ = _gradient(model, loss, precision, adv, y, compiled)
            adv = torch.clamp(adv + gradient.sign_().mul_(length), low, high)
        return adv

    inputs = start, y, low, high, start.new_full((), step_size)
    settings = loss, steps, precision, fast, bpda
    return run_compiled(model, partial(run, True), partial(run, False), inputs, settings)


def _check(eps: float, steps: int = 1, restarts: int = 1) -> None:
    if not eps >= 0:
        raise ValueError(f"eps is {eps}: give a number of at least 0")
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps is {steps} and restarts is {restarts}: both must be at least 1")


@torch.no_grad()
def _target(
    model: nn.Module, x: Tensor, y: Tensor, loss: str, precision: torch.dtype | None
) -> Tensor:
    """What outputs are compared with: labels, for "kl" the log-probabilities at ``x``."""
    return _forward(model, x, precision).log_softmax(1) if loss == "kl" else y


def _noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in [-1, 1), of the shape of ``x``."""
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return 2 * noise - 1


def _start(x: Tensor, eps: float, loss: str, generator: torch.Generator | None) -> Tensor:
    """A random offset to start from; not 0 for "kl", which has no gradient there."""
    if loss != "kl":
        return _noise(x, generator) * eps
    return _NEAR * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


@register(
    "fgsm",
    takes=("eps",),
    steps=1,
    settings=lambda requested: replace(requested, step_size=requested.eps, restarts=1, loss="ce"),
)
def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, precision: torch.dtype | None = None
) -> Tensor:
    """One signed step of length ε from the clean input (Goodfellow et al., 2015).

    Returns:
        The attacked inputs, in [0, 1] and within ε of ``x``.

    Raises:
        ValueError: a negative or NaN ε.
    """
    return pgd(model, x, y, eps, 1, step_size=eps, random_start=False, precision=precision)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 40,
    *,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    start: Tensor | None = None,
    loss: Loss | Literal["kl"] = "ce",
    stop_when_fooled: bool = False,
    generator: torch.Generator | None = None,
    precision: torch.dtype | None = None,
    fast: bool = True,
    bpda: bool = False,
    compiled: bool = False,
) -> Tensor:
    """Projected gradient ascent on the loss within the ℓ∞ ball (Madry et al., 2018).

    The arguments that are not listed are those of :mod:`atmc.attacks.gradient`.

    Args:
        steps: gradient steps a restart.
        step_size: length of a step; None for 4/3 · ε / steps.
        restarts: runs from different random points; each example keeps its worst.
        random_start: start from a uniform point of the ball instead of ``x``.
        start: where every restart starts instead.
        loss: "ce" (cross entropy), "margin" (Carlini-Wagner) or "dlr" (Croce-Hein); or "kl", the
            divergence from the prediction at ``x``, of which ``y`` is no part (TRADES, Zhang et
            al., ICML 2019). A random start of it is near ``x``: normal, with a deviation of 0.001.
        stop_when_fooled: an example that is misclassified takes no further step and leaves the
            batch. For evaluation: cheaper, and what was broken on the way stays broken.

    Returns:
        The attacked inputs, in [0, 1] and within ε of ``x``.

    Raises:
        ValueError: a negative ε, a number of steps or restarts below 1, an unknown loss, "dlr" for
            a model of fewer than 3 classes, or ``compiled`` with ``stop_when_fooled``.
    """
    _check(eps, steps, restarts)
    step = default_step_size(eps, steps) if step_size is None else step_size
    if compiled and stop_when_fooled:
        raise ValueError(
            "stop_when_fooled makes the batch smaller from step to step, which compiled passes do "
            "not follow: leave out one of them"
        )
    ascended = example_loss(loss)
    gradient_of = partial(_gradient, model, ascended, precision)
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    worst = worst_score = None
    with frozen(model, fast, bpda):
        target = _target(model, x, y, loss, precision)
        for _ in range(restarts):
            adv = x.detach()
            if start is not None:
                adv = torch.clamp(start, low, high)
            elif random_start:
                adv = torch.clamp(x + _start(x, eps, loss, generator), low, high)
            if compiled:
                adv = _compiled_steps(
                    *(model, ascended, steps, step, adv, target, low, high),
                    precision=precision,
                    fast=fast,
                    bpda=bpda,
                )
            else:
                box = low, high
                adv = _ascend(gradient_of, adv, y, target, box, steps, step, stop_when_fooled)
            if restarts == 1:
                return adv
            with torch.no_grad():
                logits = _forward(model, adv, precision)
                # Fooled counts above any loss: 1 where fooled, below 1 elsewhere.
                score = torch.sigmoid(ascended(logits, target)) * 0.5 + (logits.argmax(1) != y)
            if worst is None or worst_score is None:
                worst, worst_score = adv, score
            else:
                better = score > worst_score
                worst[better], worst_score[better] = adv[better], score[better]
    assert worst is not None
    return worst


def _ascend(
    gradient_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    adv: Tensor,
    y: Tensor,
    target: Tensor,
    box: tuple[Tensor, Tensor],
    steps: int,
    step_size: float,
    stop_when_fooled: bool,
) -> Tensor:
    """Signed steps, of all examples or of those that are still classified correctly."""
    low, high = box
    reached = adv.clone() if stop_when_fooled else adv
    left = torch.arange(len(y), device=y.device)
    for _ in range(steps):
        gradient, logits = gradient_of(adv, target)
        if stop_when_fooled and not bool((stands := logits.argmax(1) == y).all()):
            reached[left] = adv
            left, adv, y, target, low, high, gradient = (
                value[stands] for value in (left, adv, y, target, low, high, gradient)
            )
            if len(left) == 0:
                return reached
        adv = torch.clamp(adv.add(gradient.sign_(), alpha=step_size), low, high)
    if not stop_when_fooled:
        return adv
    reached[left] = adv
    return reached


register_training("pgd", steps=7, takes_loss=True)(pgd)
register_training(
    "atta",
    steps=1,
    step_size=lambda eps, steps: eps / 2,
    watched=True,
    remembers=True,
    takes_loss=True,
)(pgd)
_until_fooled = partial(pgd, stop_when_fooled=True)
register("pgd", numbered=True)(_until_fooled)
register("margin", numbered=True, settings=partial(replace, loss="margin"))(_until_fooled)
register("bpda", numbered=True)(partial(_until_fooled, bpda=True))


@register_training("n-fgsm", watched=True, takes_loss=True)
def n_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    noise: float = 2.0,
    loss: Literal["ce", "kl"] = "ce",
    generator: torch.Generator | None = None,
    precision: torch.dtype | None = None,
    fast: bool = True,
    bpda: bool = False,
    compiled: bool = False,
) -> Tensor:
    """One signed step of length ε from a point of uniform noise (de Jorge et al., NeurIPS 2022).

    For training: the noise is wider than the ball and stays in, since pulling the sum back into
    the ball is what lets single-step training collapse. ‖δ‖∞ is only below ``(1 + noise) · ε``.

    Args:
        noise: half the width of the noise, in units of ε.
        loss: "ce", or "kl" as of :func:`pgd`.

    Returns:
        The attacked inputs, in [0, 1].

    Raises:
        ValueError: a negative or NaN ε or noise.
    """
    _check(eps)
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: give a number of at least 0")
    start = x + _noise(x, generator) * (noise * eps)
    with frozen(model, fast, bpda):
        target = _target(model, x, y, loss, precision)
        if compiled:
            return _compiled_steps(
                *(model, example_loss(loss), 1, eps, start, target),
                *(start.new_zeros(()), start.new_ones(())),
                precision=precision,
                fast=fast,
                bpda=bpda,
            )
        gradient, _ = _gradient(model, example_loss(loss), precision, start, target)
    return (start + eps * gradient.sign()).clamp(0, 1)


@register(
    "wrm",
    takes=("steps",),
    steps=15,
    settings=partial(replace, eps=None, step_size=None, restarts=1, loss="ce", norm="l2-penalty"),
)
def wrm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    gamma: float = 1.3,
    steps: int = 15,
    *,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Ascent on γ · loss − ½ ‖δ‖₂² with steps 1 / √(t + 1): no ε (Sinha et al., 2018).

    Args:
        gamma: the weight of the loss against the transport cost.
        steps: ascent steps.

    Returns:
        The attacked inputs, in [0, 1].

    Raises:
        ValueError: a γ that is not positive, or a number of steps below 1.
    """
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}: give a positive number")
    _check(0.0, steps)
    adv = x.detach()
    with frozen(model):
        for t in range(steps):
            gradient, _ = _gradient(model, example_loss("ce"), precision, adv, y)
            ascent = gamma * gradient - (adv - x)
            adv = torch.clamp(adv + ascent / (t + 1) ** 0.5, 0, 1)
    return adv


register("transfer", numbered=True, source_attack="pgd")(pgd)


# Bounds need no attack; what share of the loss is not on them is on a step from a random start
# (Wong et al., ICLR 2020).
register_training("interval", steps=1, step_size=lambda eps, steps: 1.25 * eps / steps)(pgd)


@register_training("none")
def _no_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, **passes: Any) -> Tensor:
    return x
