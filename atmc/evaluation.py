"""Clean and robust accuracy, per example and over named attacks, in float32 and eval mode."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atmc.attacks import Loss, default_step_size, fgsm, frozen, pgd, wrm

ATTACKS = ("fgsm", "pgd", "margin", "bpda", "wrm", "autoattack")
_STEPPED = ("pgd", "margin", "bpda")


@dataclass(frozen=True)
class Attack:
    """A named attack with everything that has to be said of it.

    ``eps``, ``steps`` and the rest are None where the attack has no such thing. "margin" is PGD
    on the margin loss, "bpda" PGD with the smoother gradients of :mod:`atmc.bpda`; "autoattack" is
    the standard version of Croce & Hein (2020), by its own package.
    """

    name: str
    eps: float | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int | None = None
    loss: Loss | None = "ce"
    norm: str = "linf"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """``x`` attacked, by one restart."""
        if self.name == "wrm":
            return wrm(model, x, y, steps=self.steps or 15)
        assert self.eps is not None
        if self.name == "fgsm":
            return fgsm(model, x, y, self.eps)
        if self.name == "autoattack":
            return _autoattack(model, x, y, self.eps, 0 if generator is None else generator)
        return pgd(
            model,
            x,
            y,
            self.eps,
            self.steps or 40,
            step_size=self.step_size,
            loss=self.loss or "ce",
            stop_when_fooled=True,
            generator=generator,
            bpda=self.name == "bpda",
        )


def _autoattack(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, generator: torch.Generator | int
) -> Tensor:
    """AutoAttack, standard version, all of ``x`` as one batch."""
    from pyautoattack import AutoAttack

    seed = generator if isinstance(generator, int) else generator.initial_seed()
    with frozen(model), torch.random.fork_rng():
        package = AutoAttack(model, eps=eps, seed=seed, device=x.device)
        adversarial: Tensor = package.run_standard_evaluation(x, y, batch_size=len(x))[0]
    return adversarial


def attack(
    name: str,
    *,
    eps: float,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = "ce",
) -> Attack:
    """The attack of that name, one of :data:`ATTACKS`, with its settings resolved.

    ``pgd-100``, ``margin-100`` and ``bpda-100`` take that many steps instead of ``steps``, and the
    step size that follows from them.

    Raises:
        ValueError: no such attack, a setting that cannot be, or a package that is missing.
    """
    name, own_steps = parse_attack(name)
    if own_steps is not None:
        steps, step_size = own_steps, None
    if not eps >= 0 or steps < 1 or restarts < 1:
        raise ValueError("eps must be at least 0, steps and restarts at least 1")
    if name == "fgsm":
        return Attack("fgsm", eps=eps, steps=1, step_size=eps, restarts=1)
    if name in _STEPPED:
        size = default_step_size(eps, steps) if step_size is None else step_size
        return Attack(name, eps, steps, size, restarts, "margin" if name == "margin" else loss)
    if name == "autoattack":
        if importlib.util.find_spec("pyautoattack") is None:
            raise ValueError("autoattack needs pyautoattack: pip install 'atmc[eval]'")
        return Attack("autoattack", eps=eps, loss=None)
    return Attack("wrm", steps=15, restarts=1, norm="l2-penalty")


def parse_attack(name: str) -> tuple[str, int | None]:
    """An attack's name, and its number of steps where it is written as in ``pgd-100``.

    Raises:
        ValueError: no such attack.
    """
    base, dash, digits = name.partition("-")
    counted = base in _STEPPED and digits.isdecimal() and int(digits) > 0
    if base not in ATTACKS or (dash and not counted):
        known = ", ".join(ATTACKS)
        raise ValueError(f"unknown attack {name!r} (known: {known}; pgd-100 for 100 steps)")
    return base, int(digits) if dash else None


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The predicted class of each example, in eval mode: (n,)."""
    with frozen(model):
        logits: Tensor = model(x)
    return logits.argmax(1)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    attacks: Sequence[Attack],
    *,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Clean accuracy, accuracy under each attack, and the worst case over all of them.

    Each example counts as broken by an attack when any step of any restart breaks it; broken
    examples leave the batch, so that further steps and restarts are spent on the rest. (What PGD
    stopped at is classified once more to be counted.)

    Args:
        model: a classifier of inputs in [0, 1].
        batches: pairs (x, y), in a fixed order.
        attacks: run one after the other, each on its own.
        seed: of the random starts.
        on_batch: called with the examples done so far.

    Returns:
        ``{"accuracy": {...}, "attacks": [...]}`` as in report.json. ``worst`` is per example,
        over the clean input and all attacks.

    Raises:
        ValueError: no examples.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with _float32(device):
        return _evaluate(model, batches, attacks, device, seed, on_batch)


@contextlib.contextmanager
def _float32(device: torch.device) -> Iterator[None]:
    """No TF32 on a GPU, whose products and convolutions would round their inputs to 10 bits."""
    if device.type != "cuda":
        yield
        return
    backends: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def _evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    attacks: Sequence[Attack],
    device: torch.device,
    seed: int,
    on_batch: Callable[[int], None] | None,
) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(seed)
    clean = total = worst = 0
    held = [0] * len(attacks)
    for x, y, *_ in batches:
        x, y = x.to(device), y.to(device)
        right = predict(model, x) == y
        standing = right.clone()
        for index, each in enumerate(attacks):
            survives = right.clone()
            for _ in range(each.restarts or 1):
                left = survives.nonzero()[:, 0]
                if len(left) == 0:
                    break
                adv = each(model, x[left], y[left], generator)
                survives[left] = predict(model, adv) == y[left]
            held[index] += int(survives.sum())
            standing &= survives
        clean += int(right.sum())
        worst += int(standing.sum())
        total += len(y)
        if on_batch is not None:
            on_batch(total)
    if total == 0:
        raise ValueError("there are no examples to evaluate on")
    accuracy: dict[str, float | None] = {"clean": clean / total, "fgsm": None, "pgd": None}
    rows = []
    for each, count in zip(attacks, held, strict=True):
        row = asdict(each)
        row |= {"examples": total, "accuracy": count / total}
        rows.append(row)
        before = accuracy.get(each.name)
        accuracy[each.name] = min(count / total, math.inf if before is None else before)
    accuracy["worst"] = worst / total
    return {"accuracy": accuracy, "attacks": rows}
