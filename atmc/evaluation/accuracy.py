"""Clean and robust accuracy, per example and over named attacks, in float32 and eval mode."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atmc.attacks import packaged as packaged_attacks
from atmc.attacks.freezing import frozen
from atmc.attacks.gradient import default_step_size, fgsm, pgd, wrm
from atmc.attacks.losses import Loss
from atmc.data.loaded import Checked
from atmc.extras import require, version
from atmc.inference import PROBABILITIES, are_probabilities, as_logits, run
from atmc.parsing import parse_eps

ATTACKS = (
    *("fgsm", "pgd", "margin", "bpda", "wrm", "transfer"),
    *("autoattack", "cw-linf", "square"),
)
_STEPPED = ("pgd", "margin", "bpda", "transfer", "cw-linf", "square")
_PACKAGES = {
    "autoattack": "pyautoattack",
    "cw-linf": "adversarial-robustness-toolbox",
    "square": "adversarial-robustness-toolbox",
}
_EXAMPLES, _VALUES = 500, 2**23  # of a batch at the most
_CW_STEPS, _CW_STEP_SIZE, _SQUARE_STEPS = 50, 0.3, 1000


@dataclass(frozen=True)
class Source:
    """The model that adversarial examples of a transfer attack are made on, and its name."""

    name: str
    model: nn.Module = field(repr=False)


@dataclass(frozen=True)
class Attack:
    """A named attack with everything that has to be said of it.

    ``eps``, ``steps`` and the rest are None where the attack has no such thing. "margin" is PGD
    on the margin loss, "bpda" PGD with the smoother gradients of :mod:`atmc.attacks.bpda`;
    "transfer" is PGD on ``source``, all its steps, whose result is tried on the model; "autoattack"
    (the standard version), "cw-linf" and "square" are those of :mod:`atmc.attacks.packaged`.
    """

    name: str
    eps: float | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int | None = None
    loss: Loss | None = "ce"
    norm: str = "linf"
    source: Source | None = None

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """``x`` attacked, by one restart."""
        if self.name == "wrm":
            return wrm(model, x, y, steps=self.steps or 15)
        assert self.eps is not None
        if self.name == "fgsm":
            return fgsm(model, x, y, self.eps)
        if self.name in _PACKAGES:
            seed = 0 if generator is None else generator.initial_seed()
            return self._packaged(model, x, y, self.eps, seed)
        return pgd(
            model if self.source is None else self.source.model,
            x,
            y,
            self.eps,
            self.steps or 40,
            step_size=self.step_size,
            loss=self.loss or "ce",
            stop_when_fooled=self.source is None,
            generator=generator,
            bpda=self.name == "bpda",
        )

    def _packaged(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        if self.name == "autoattack":
            return packaged_attacks.autoattack(model, x, y, eps, seed=seed)
        assert self.steps is not None
        if self.name == "square":
            return packaged_attacks.square(model, x, y, eps, self.steps, seed=seed)
        assert self.step_size is not None
        return packaged_attacks.cw_linf(model, x, y, eps, self.steps, self.step_size, seed=seed)

    def row(self, classes: int | None = None) -> dict[str, Any]:
        """What report.json says of the attack; the accuracy is for the caller to add.

        Args:
            classes: that the model knows, where that is known.
        """
        row = {each.name: getattr(self, each.name) for each in fields(self)}
        source: Source | None = row.pop("source")
        if source is not None:
            row |= {"source": source.name, "source_attack": "pgd"}
        if self.name in _PACKAGES:
            package = _PACKAGES[self.name]
            row["package"] = " ".join(filter(None, (package, version(package))))
        if self.name == "autoattack" and classes is not None:
            row["components"] = list(packaged_attacks.components(classes))
        return row


def attack(
    name: str,
    *,
    eps: float | str,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = "ce",
    source: Source | None = None,
) -> Attack:
    """The attack of that name, one of :data:`ATTACKS`, with its settings resolved.

    ``pgd-100``, ``margin-100``, ``bpda-100`` and ``transfer-100`` take that many steps instead of
    ``steps``, and the step size that follows from them. "cw-linf" takes 50 steps of Adam and
    "square" tries 1,000 squares, or as many as in ``cw-linf-100`` and ``square-5000``; ``steps``,
    ``step_size``, ``restarts`` and ``loss`` are not theirs.

    Args:
        name: of the attack.
        eps: the ℓ∞ radius, in pixels of [0, 1]; a number, or as in ``"8/255"``.
        steps: of PGD.
        step_size: of PGD; None for 4/3 · ε / steps.
        restarts: of PGD.
        loss: of "pgd", "bpda" and "transfer".
        source: of "transfer": the model that the examples are made on.

    Raises:
        MissingExtraError: a package that the attack needs is not installed.
        ValueError: no such attack, a setting that cannot be, or "transfer" without a source.
    """
    name, own_steps = parse_attack(name)
    eps = parse_eps(eps)
    if steps < 1 or restarts < 1:
        raise ValueError("steps and restarts must be at least 1")
    if (name == "transfer") != (source is not None):
        raise ValueError("the attack transfer needs a source, and no other attack takes one")
    if name in _PACKAGES:
        require(_PACKAGES[name], "eval", name)
    if name == "fgsm":
        return Attack("fgsm", eps=eps, steps=1, step_size=eps, restarts=1)
    if name == "autoattack":
        return Attack("autoattack", eps=eps, loss=None)
    if name == "cw-linf":
        return Attack(name, eps, own_steps or _CW_STEPS, _CW_STEP_SIZE, 1, "margin")
    if name == "square":
        return Attack(name, eps, own_steps or _SQUARE_STEPS, None, 1, "margin")
    if name == "wrm":
        return Attack("wrm", steps=15, restarts=1, norm="l2-penalty")
    if own_steps is not None:
        steps, step_size = own_steps, None
    size = default_step_size(eps, steps) if step_size is None else step_size
    own_loss: Loss = "margin" if name == "margin" else loss
    return Attack(name, eps, steps, size, restarts, own_loss, source=source)


def parse_attack(name: str) -> tuple[str, int | None]:
    """An attack's name, and its number of steps where it is written as in ``pgd-100``.

    Raises:
        ValueError: no such attack.
    """
    base, _, digits = name.rpartition("-")
    if base in _STEPPED and digits.isdecimal() and int(digits) > 0:
        return base, int(digits)
    if name not in ATTACKS:
        known = ", ".join(ATTACKS)
        raise ValueError(f"unknown attack {name!r} (known: {known}; pgd-100 for 100 steps)")
    return name, None


def evaluation_batch(shape: tuple[int, ...]) -> int:
    """How many inputs of that shape are evaluated at a time: 500, fewer where they are large."""
    return max(1, min(_EXAMPLES, _VALUES // math.prod(shape)))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The predicted class of each example, in eval mode: (n,)."""
    with frozen(model):
        logits = as_logits(model(x))
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
        seed: of the random starts, which each attack, batch and restart has of its own.
        on_batch: called with the examples done so far.

    Returns:
        ``{"accuracy": {...}, "attacks": [...], "warnings": [...]}`` as in report.json. ``worst`` is
        per example, over the clean input and all attacks; a warning is a line that says why robust
        accuracies are not to be trusted.

    Raises:
        ValueError: no examples, or a batch that is not what it should be.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if not isinstance(batches, Checked):  # whoever has checked them has named them, too
        attacked = any(each.eps != 0 for each in attacks)
        batches = Checked(batches, "the loader", pixels=attacked)
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
    batches: Checked,
    attacks: Sequence[Attack],
    device: torch.device,
    seed: int,
    on_batch: Callable[[int], None] | None,
) -> dict[str, Any]:
    generator = torch.Generator(device)
    clean = total = worst = classes = 0
    held = [0] * len(attacks)
    notes: list[str] = []
    for batch, (x, y, *_) in enumerate(batches):
        x, y = x.to(device), y.to(device)
        if total == 0:
            output = run(model, x)
            classes = batches.classes = as_logits(output).shape[1]
            batches.check_labels(y, batches.what)
            notes = _notes(output, classes, attacks)
        right = predict(model, x) == y
        standing = right.clone()
        for index, each in enumerate(attacks):
            survives = right.clone()
            for restart in range(each.restarts or 1):
                left = survives.nonzero()[:, 0]
                if len(left) == 0:
                    break
                # Whatever other attacks are run, and whatever became of batches before.
                generator.manual_seed(_seed_of(each, seed, batch, restart))
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
        rows.append({**each.row(classes), "examples": total, "accuracy": count / total})
        before = accuracy.get(each.name)
        accuracy[each.name] = min(count / total, math.inf if before is None else before)
    accuracy["worst"] = worst / total
    return {"accuracy": accuracy, "attacks": rows, "warnings": notes}


def _seed_of(attack: Attack, seed: int, batch: int, restart: int) -> int:
    """Of the random starts of one restart on one batch."""
    name = zlib.crc32(f"{attack.name} {attack.loss}".encode())
    return int(np.random.SeedSequence((seed, name, batch, restart)).generate_state(1)[0])


def _notes(output: object, classes: int, attacks: Sequence[Attack]) -> list[str]:
    """What is to be said beside robust accuracies, by the outputs for a batch."""
    notes = [PROBABILITIES] if are_probabilities(output) else []
    few = packaged_attacks.components(classes) != packaged_attacks.components(4)
    if few and any(each.name == "autoattack" for each in attacks):
        names = ", ".join(packaged_attacks.components(classes))
        notes.append(f"AutoAttack ran {names} alone: the others need four classes or more")
    return notes
