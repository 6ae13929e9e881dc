"""Attacks by other packages, under the conditions of :mod:`atmc.attacks.gradient`.

The model is in eval mode, in float32, with plain weights. Randomness comes from a seed, and the
global generators of torch and numpy are restored afterwards. The packages are imported when an
attack runs (the extra ``eval``).

In all functions ``model`` is a classifier of inputs in [0, 1], ``x`` its inputs (n, C, H, W), ``y``
their labels (n,), int64, and ``eps`` the ℓ∞ radius, in pixels of [0, 1]. They return the attacked
inputs, in [0, 1] and within ε of ``x``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atmc.attacks.freezing import frozen
from atmc.attacks.registry import register
from atmc.inference import as_logits

_ART = "adversarial-robustness-toolbox"


@contextlib.contextmanager
def _isolated(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, the model is frozen and the global generators are at ``seed``.

    Parameters take no gradient inside, because ART runs backward passes into them and clears them.
    """
    state = np.random.get_state()
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with frozen(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            for p, _, _ in parameters:
                p.requires_grad_(False)
            yield
        finally:
            np.random.set_state(state)
            for p, required, gradient in parameters:
                p.requires_grad_(required)
                p.grad = gradient


_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
_FEW_CLASSES = ("apgd-ce", "fab", "square")  # the targeted DLR loss is of four logits
_TARGETS = 9


def components(classes: int) -> tuple[str, ...]:
    """The attacks that AutoAttack consists of, by the number of classes."""
    return _STANDARD if classes >= 4 else _FEW_CLASSES


def _few_classes(classes: int) -> str | None:
    """A warning where AutoAttack is not the standard version."""
    if components(classes) == _STANDARD:
        return None
    names = ", ".join(components(classes))
    return f"AutoAttack ran {names} alone: the others need four classes or more"


class _Logits(nn.Module):
    """A model as packages expect it: it returns two logits or more, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return as_logits(self.model(x))


def _classes(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return int(model(x[:1]).shape[1])


@register(
    "autoattack",
    takes=("eps", "seed"),
    settings=partial(replace, steps=None, step_size=None, restarts=None, loss=None),
    package="pyautoattack",
    components=components,
    warning=_few_classes,
)
def autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, seed: int = 0) -> Tensor:
    """AutoAttack, standard version, by pyautoattack (Croce & Hein, ICML 2020).

    With fewer than four classes it runs the attacks that are defined there (:func:`components`).
    """
    from pyautoattack import AutoAttack

    with _isolated(model, seed):
        logits = _Logits(model)
        classes = _classes(logits, x)
        attacks = list(components(classes))
        package = AutoAttack(
            logits, version="custom", attacks=attacks, eps=eps, seed=seed, device=x.device
        )
        # The settings of the standard version, but for targets that do not exist.
        package.apgd.n_restarts = package.apgd_targeted.n_restarts = package.fab.n_restarts = 1
        targets = min(_TARGETS, classes - 1)
        package.apgd_targeted.n_target_classes = package.fab.n_target_classes = targets
        adversarial: Tensor = package.run_standard_evaluation(x, y, batch_size=len(x))[0]
    return adversarial


def _estimator(model: nn.Module, x: Tensor, clip: tuple[Any, Any] = (0.0, 1.0)) -> Any:
    """ART's view of a model that takes inputs like ``x``."""
    from art.estimators.classification import PyTorchClassifier

    logits = _Logits(model).eval()
    return PyTorchClassifier(
        logits,
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        _classes(logits, x),
        clip_values=clip,
        device_type="gpu" if x.is_cuda else "cpu",
    )


def _within(adversarial: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest points in [0, 1] and within ε of ``x``."""
    return torch.clamp(adversarial, (x - eps).clamp(min=0), (x + eps).clamp(max=1))


# One pass over ART's constants, which decide only when Adam stops: once the model is fooled.
_CW_CONSTANTS = {"initial_const": 1e3, "largest_const": 2e3, "const_factor": 10.0}


@register(
    "cw-linf",
    takes=("eps", "steps", "step_size", "seed"),
    settings=partial(replace, step_size=0.3, restarts=1, loss="margin"),
    steps=50,
    numbered=True,
    package=_ART,
)
def cw_linf(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    step_size: float,
    *,
    seed: int = 0,
) -> Tensor:
    """The margin by Adam in tanh space, an example at a time, by ART (Carlini & Wagner, 2017).

    ART's attack searches for the smallest distortion within a box of pixels, [0, 1] by default,
    from ``x``. There a pixel at 0 or 1, as most of MNIST's are, starts where tanh is flat and
    hardly moves, and the result may lie farther than ε from ``x``. So the box passed is the ball,
    cut to [0, 1], and the start a uniform point of it (the paper starts from random points of a
    ball too, section VI.A): every result lies within ε. No smaller distortion is searched for,
    since it would not count for more. The result is clipped to the ball against rounding.

    Args:
        steps: of Adam, at most; an example stops when it fools the model.
        step_size: Adam's rate, in tanh space.

    Returns:
        The attacked inputs; the start where the search fails.
    """
    from art.attacks.evasion import CarliniLInfMethod

    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    if not bool((low < high).all()):  # ART refuses an empty box; ε is 0 or next to it
        return x.clone()
    with _isolated(model, seed):
        adversarial = low + (high - low) * torch.rand_like(x)
        for i in range(len(x)):
            box = low[i].cpu().numpy(), high[i].cpu().numpy()
            attack = CarliniLInfMethod(
                _estimator(model, x, box),
                learning_rate=step_size,
                max_iter=steps,
                decrease_factor=1 / 512,  # below the distortion at which the search ends
                verbose=False,
                **_CW_CONSTANTS,
            )
            start, label = adversarial[i : i + 1], y[i : i + 1]
            moved = attack.generate(start.cpu().numpy(), label.cpu().numpy())
            adversarial[i : i + 1] = torch.from_numpy(moved).to(x)
    return _within(adversarial, x, eps)


@register(
    "square",
    takes=("eps", "steps", "seed"),
    settings=partial(replace, step_size=None, restarts=1, loss="margin"),
    steps=1000,
    numbered=True,
    package=_ART,
)
def square(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, *, seed: int = 0
) -> Tensor:
    """Square Attack by ART: random search, no gradients (Andriushchenko et al., ECCV 2020).

    It lowers the margin. ART's settings but for the number of steps, each of which tries one
    square, at one place for all of ``x``.

    Args:
        steps: squares tried.
    """
    from art.attacks.evasion import SquareAttack

    if eps == 0:  # ART refuses it
        return x.clone()
    with _isolated(model, seed):
        attack = SquareAttack(
            _estimator(model, x), eps=eps, max_iter=steps, batch_size=len(x), verbose=False
        )
        adversarial = attack.generate(x.cpu().numpy(), y.cpu().numpy())
    return _within(torch.from_numpy(adversarial).to(x), x, eps)
