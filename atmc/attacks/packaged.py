"""Attacks by their authors' or other people's packages, held to our terms.

They see the model as ours do: in eval mode, in float32, with plain weights. Their randomness comes
from a seed, and the global generators of torch and numpy are as before afterwards. The packages are
imported when an attack runs (the extra ``eval``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atmc.attacks.freezing import frozen
from atmc.inference import as_logits


@contextlib.contextmanager
def _held(model: nn.Module, seed: int) -> Iterator[None]:
    """The model as our attacks see it, the global generators at ``seed``; as before afterwards.

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
    """The attacks that AutoAttack consists of, one after the other, for so many classes."""
    return _STANDARD if classes >= 4 else _FEW_CLASSES


class _Logits(nn.Module):
    """A model as packages expect it: two logits or more are all that it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return as_logits(self.model(x))


def _classes(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return int(model(x[:1]).shape[1])


def autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, seed: int = 0) -> Tensor:
    """AutoAttack, standard version, by pyautoattack (Croce & Hein, ICML 2020).

    Of fewer than four classes the attacks that are defined there, see :func:`components`.

    Args:
        model: a classifier of inputs in [0, 1].
        x: inputs (n, C, H, W) in [0, 1], attacked as one batch.
        y: labels (n,), int64.
        eps: the ℓ∞ radius, in pixels of [0, 1].
        seed: of its random starts.

    Returns:
        The attacked inputs, in [0, 1] and within ε of ``x``.
    """
    from pyautoattack import AutoAttack

    with _held(model, seed):
        logits = _Logits(model)
        classes = _classes(logits, x)
        attacks = list(components(classes))
        package = AutoAttack(
            logits, version="custom", attacks=attacks, eps=eps, seed=seed, device=x.device
        )
        # The settings of the standard version, but for targets that there are not.
        package.apgd.n_restarts = package.apgd_targeted.n_restarts = package.fab.n_restarts = 1
        targets = min(_TARGETS, classes - 1)
        package.apgd_targeted.n_target_classes = package.fab.n_target_classes = targets
        adversarial: Tensor = package.run_standard_evaluation(x, y, batch_size=len(x))[0]
    return adversarial


def square(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, *, seed: int = 0
) -> Tensor:
    """Square Attack by ART: random search, no gradients (Andriushchenko et al., ECCV 2020).

    It lowers the margin. ART's own settings but for the number of steps, each of which tries one
    square, at one place for all of ``x``.

    Args:
        model: a classifier of inputs in [0, 1].
        x: inputs (n, C, H, W) in [0, 1].
        y: labels (n,), int64.
        eps: the ℓ∞ radius, in pixels of [0, 1].
        steps: squares tried.
        seed: of the search.

    Returns:
        The attacked inputs, in [0, 1] and within ε of ``x``.
    """
    from art.attacks.evasion import SquareAttack

    if eps == 0:  # ART refuses it
        return x.clone()
    with _held(model, seed):
        attack = SquareAttack(
            _estimator(model, x), eps=eps, max_iter=steps, batch_size=len(x), verbose=False
        )
        found = attack.generate(x.cpu().numpy(), y.cpu().numpy())
    return _within(torch.from_numpy(found).to(x), x, eps)


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

    ART's attack searches for the smallest distortion within a box of pixels, [0, 1] if not told
    otherwise, from ``x``. There a pixel at 0 or 1, as most of MNIST's are, starts where tanh is
    flat and hardly moves, and what is found may lie farther than ε from ``x``. So the box given is
    the ball, cut to [0, 1], and the start a uniform point of it (the paper starts from random
    points of a ball too, section VI.A): everything found lies within ε. No smaller distortion is
    searched for, since it would not count for more. The result is clipped to the ball against
    rounding; what fools the model then is broken.

    Args:
        model: a classifier of inputs in [0, 1].
        x: inputs (n, ...) in [0, 1].
        y: labels (n,), int64.
        eps: the ℓ∞ radius, in pixels of [0, 1].
        steps: of Adam, at most; an example stops when it fools the model.
        step_size: Adam's rate, in tanh space.
        seed: of the start.

    Returns:
        The attacked inputs, in [0, 1] and within ε of ``x``; the start where none was found.
    """
    from art.attacks.evasion import CarliniLInfMethod

    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    if not bool((low < high).all()):  # ART refuses an empty box; ε is 0 or next to it
        return x.clone()
    with _held(model, seed):
        found = low + (high - low) * torch.rand_like(x)
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
            one = attack.generate(found[i : i + 1].cpu().numpy(), y[i : i + 1].cpu().numpy())
            found[i : i + 1] = torch.from_numpy(one).to(x)
    return _within(found, x, eps)
