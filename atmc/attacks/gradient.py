"""The inner maximization: FGSM, N-FGSM, PGD and WRM on inputs in [0, 1].

Any normalization belongs inside the model, so that ε is in pixels. Every attack forms each
factorized weight once, runs the model in eval mode, asks for the gradient of the input alone,
and leaves the model's mode, gradients and statistics as it found them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from atmc.attacks.freezing import frozen
from atmc.attacks.losses import Loss, _example_loss
from atmc.inference import as_logits


def default_step_size(eps: float, steps: int) -> float:
    """4/3 · ε / steps: 0.01 for 40 steps at ε = 0.3, the MNIST standard."""
    return 4 / 3 * eps / steps


def _forward(model: nn.Module, x: Tensor, precision: torch.dtype | None) -> Tensor:
    """Logits in float32, the layers in ``precision`` where one is given."""
    with torch.autocast(x.device.type, precision, enabled=precision is not None):
        logits = as_logits(model(x))
    return logits.float()


def _ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    precision: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """What is climbed, a scalar, and the logits."""
    logits = _forward(model, x, precision)
    # The sum, not the mean: an example's gradient does not depend on its batch.
    return loss(logits, y).sum(), logits


@functools.cache
def _compiled(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """``_ascent``, compiled; with CUDA graphs where there is CUDA."""
    mode = "reduce-overhead" if device == "cuda" else None
    return torch.compile(_ascent, mode=mode)


def _gradient(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    precision: torch.dtype | None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gradient of the input, and the logits."""
    x = x.detach().requires_grad_(True)
    ascent = _compiled(x.device.type) if compiled else _ascent
    with torch.enable_grad():
        total, logits = ascent(model, x, y, loss, precision)
    return torch.autograd.grad(total, x)[0], logits.detach()


def _check(eps: float, steps: int, restarts: int = 1) -> None:
    if not eps >= 0:
        raise ValueError(f"eps is {eps}: give a number of at least 0")
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps is {steps} and restarts is {restarts}: both must be at least 1")


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, precision: torch.dtype | None = None
) -> Tensor:
    """One signed step of length ε from the clean input (Goodfellow et al., 2015).

    Args:
        model: a classifier of inputs in [0, 1].
        x: inputs (n, ...) in [0, 1].
        y: labels (n,), int64.
        eps: the ℓ∞ radius, in pixels of [0, 1].
        precision: run the layers under autocast in this type.

    Returns:
        The attacked inputs, in [0, 1] and within ε of ``x``.

    Raises:
        ValueError: a negative or NaN ε.
    """
    _check(eps, 1)
    with frozen(model):
        gradient, _ = _gradient(model, x, y, _example_loss("ce"), precision)
    return (x + eps * gradient.sign()).clamp(0, 1)


def n_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    noise: float = 2.0,
    generator: torch.Generator | None = None,
    precision: torch.dtype | None = None,
    fast: bool = True,
    bpda: bool = False,
    compiled: bool = False,
) -> Tensor:
    """One signed step of length ε from a point of uniform noise (de Jorge et al., NeurIPS 2022).

    For training: the noise is wider than the ball and stays in, since pulling the sum back into
    the ball is what lets single-step training collapse. No bound on ‖δ‖∞ below ``(1 + noise) · ε``
    is kept.

    Args:
        model: a classifier of inputs in [0, 1].
        x: inputs (n, ...) in [0, 1].
        y: labels (n,), int64.
        eps: the ℓ∞ radius, in pixels of [0, 1].
        noise: half the width of the noise, in units of ε.
        generator: source of the noise, on the device of ``x``.
        precision: run the layers under autocast in this type.
        fast: let thin convolutions take the faster way; the gradient differs by rounding.
        bpda: let gradients past ReLUs that are off and losers of a max-pool, as
            :mod:`atmc.attacks.bpda` says: stronger where the net's own gradients are mostly zero.
        compiled: pass the model through ``torch.compile``, with CUDA graphs on a GPU. The first
            call takes long; on the CPU the others are slower too for small nets.

    Returns:
        The attacked inputs, in [0, 1].

    Raises:
        ValueError: a negative or NaN ε or noise.
    """
    _check(eps, 1)
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: give a number of at least 0")
    spread = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    start = x + (2 * spread - 1) * (noise * eps)
    with frozen(model, fast, bpda):
        gradient, _ = _gradient(model, start, y, _example_loss("ce"), precision, compiled)
    return (start + eps * gradient.sign()).clamp(0, 1)


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
    loss: Loss = "ce",
    stop_when_fooled: bool = False,
    generator: torch.Generator | None = None,
    precision: torch.dtype | None = None,
    fast: bool = True,
    bpda: bool = False,
    compiled: bool = False,
) -> Tensor:
    """Projected gradient ascent on the loss within the ℓ∞ ball (Madry et al., 2018).

    Args:
        model: a classifier of inputs in [0, 1].
        x: inputs (n, ...) in [0, 1].
        y: labels (n,), int64.
        eps: the ℓ∞ radius, in pixels of [0, 1].
        steps: gradient steps a restart.
        step_size: length of a step; None for 4/3 · ε / steps.
        restarts: runs from different random points; each example keeps its worst.
        random_start: start from a uniform point of the ball instead of ``x``.
        start: where to start instead; every restart does.
        loss: "ce" (cross entropy), "margin" (Carlini-Wagner) or "dlr" (Croce-Hein).
        stop_when_fooled: an example that is misclassified takes no further step and leaves the
            batch. For evaluation: cheaper, and what was broken on the way stays broken.
        generator: source of the random starts, on the device of ``x``.
        precision: run the layers under autocast in this type.
        fast: let thin convolutions take the faster way; the gradient differs by rounding.
        bpda: let gradients past ReLUs that are off and losers of a max-pool, as
            :mod:`atmc.attacks.bpda` says: stronger where the net's own gradients are mostly zero.
        compiled: pass the model through ``torch.compile``, with CUDA graphs on a GPU. The first
            call takes long; on the CPU the others are slower too for small nets.

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
    example_loss = _example_loss(loss)
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    worst = worst_loss = None
    with frozen(model, fast, bpda):
        for _ in range(restarts):
            adv = x.detach()
            if start is not None:
                adv = torch.clamp(start, low, high)
            elif random_start:
                noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                adv = torch.clamp(x + (2 * noise - 1) * eps, low, high)
            if stop_when_fooled:
                adv = _ascend_until_fooled(
                    model, adv, y, low, high, steps, step, example_loss, precision
                )
            else:
                for _ in range(steps):
                    gradient, _ = _gradient(model, adv, y, example_loss, precision, compiled)
                    adv = torch.clamp(adv.add(gradient.sign_(), alpha=step), low, high)
            if restarts == 1:
                return adv
            with torch.no_grad():
                logits = _forward(model, adv, precision)
                # Fooled counts above any loss: 1 where fooled, below 1 elsewhere.
                score = torch.sigmoid(example_loss(logits, y)) * 0.5
                score = score + (logits.argmax(1) != y)
            if worst is None or worst_loss is None:
                worst, worst_loss = adv, score
            else:
                better = score > worst_loss
                worst[better], worst_loss[better] = adv[better], score[better]
    assert worst is not None
    return worst


def _ascend_until_fooled(
    model: nn.Module,
    start: Tensor,
    y: Tensor,
    low: Tensor,
    high: Tensor,
    steps: int,
    step_size: float,
    loss: Callable[[Tensor, Tensor], Tensor],
    precision: torch.dtype | None,
) -> Tensor:
    """Signed steps for the examples that are still classified rightly."""
    reached = start.clone()
    left = torch.arange(len(y), device=y.device)
    adv = start
    for _ in range(steps):
        gradient, logits = _gradient(model, adv, y, loss, precision)
        stands = logits.argmax(1) == y
        if not bool(stands.all()):
            reached[left] = adv
            left, adv, y, low, high, gradient = (
                value[stands] for value in (left, adv, y, low, high, gradient)
            )
            if len(left) == 0:
                return reached
        adv = torch.clamp(adv.add(gradient.sign_(), alpha=step_size), low, high)
    reached[left] = adv
    return reached


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
        model: a classifier of inputs in [0, 1].
        x: inputs (n, ...) in [0, 1].
        y: labels (n,), int64.
        gamma: the weight of the loss against the transport cost.
        steps: ascent steps.
        precision: run the layers under autocast in this type.

    Returns:
        The attacked inputs, in [0, 1].

    Raises:
        ValueError: a γ that is not positive, or a number of steps below 1.
    """
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}: give a positive number")
    _check(0.0, steps)
    adv = x.detach()
    example_loss = _example_loss("ce")
    with frozen(model):
        for t in range(steps):
            gradient, _ = _gradient(model, adv, y, example_loss, precision)
            ascent = gamma * gradient - (adv - x)
            adv = torch.clamp(adv + ascent / (t + 1) ** 0.5, 0, 1)
    return adv
