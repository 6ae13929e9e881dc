"""Clean and robust accuracy, per example and over named attacks, in float32 and eval mode."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atmc.attacks.freezing import frozen
from atmc.attacks.registry import Attack
from atmc.certification.certificate import Certificate
from atmc.data.loaded import Checked
from atmc.errors import CertificationError
from atmc.inference import (
    PROBABILITIES,
    are_probabilities,
    as_logits,
    device_of,
    float32_products,
    run,
)

_ENOUGH, _FEW = 10, 0.8  # examples a class, of which most classes should be; share of them
_EXAMPLES, _VALUES = 500, 2**23  # of a batch at the most


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
    certificate: Certificate | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Clean accuracy, accuracy under each attack, the worst case, and certified accuracy.

    Each example counts as broken by an attack when any step of any restart breaks it; broken
    examples leave the batch, so that further steps and restarts are spent on the rest. (The result
    of PGD is classified once more to be counted.)

    Args:
        model: a classifier of inputs in [0, 1].
        batches: pairs (x, y), in a fixed order.
        attacks: run one after the other, each by itself.
        certificate: of the model; None for no certified accuracy.
        seed: of the random starts, which differ by attack, batch and restart.
        on_batch: called with the number of examples done so far.

    Returns:
        ``{"accuracy": {...}, "attacks": [...], "certified": ..., "warnings": [...]}`` as in
        report.json. ``worst`` is per example, over the clean input and all attacks; a warning is a
        line that says why robust accuracies are not to be trusted.

    Raises:
        ValueError: no examples, or a batch that is not what it should be.
        CertificationError: no sound bounds are known of a function that the model calls; or an
            attack breaks what is certified.
    """
    device = device_of(model)
    if not isinstance(batches, Checked):  # a checked loader has its title already
        attacked = any(each.eps != 0 for each in attacks)
        batches = Checked(batches, "the loader", pixels=attacked)
    with float32_products(device):
        return _evaluate(model, batches, attacks, certificate, device, seed, on_batch)


def _evaluate(
    model: nn.Module,
    batches: Checked,
    attacks: Sequence[Attack],
    certificate: Certificate | None,
    device: torch.device,
    seed: int,
    on_batch: Callable[[int], None] | None,
) -> dict[str, Any]:
    clean = total = worst = classes = certified = 0
    survivors = [0] * len(attacks)
    warnings: list[str] = []
    labels: set[int] = set()
    for number, (x, y, *_) in enumerate(batches):
        x, y = x.to(device), y.to(device)
        if total == 0:
            output = run(model, x)
            classes = batches.classes = as_logits(output).shape[1]
            batches.check_labels(y, batches.what)
            warnings = _warnings(output, classes, attacks)
        correct = predict(model, x) == y
        unbroken, within = correct.clone(), correct.clone()
        for index, attack in enumerate(attacks):
            survives = _survives(model, x, y, correct, attack, (seed, number))
            survivors[index] += int(survives.sum())
            unbroken &= survives
            if certificate is not None and attack.eps is not None:
                within &= survives | (attack.eps > certificate.eps)
        clean += int(correct.sum())
        worst += int(unbroken.sum())
        if certificate is not None:
            proved = certificate(x, y)
            certified += int(proved.sum())
            if bool((proved & ~within).any()):
                raise CertificationError(
                    "an attack has broken examples that are certified: the certificate does not "
                    "hold for this network; please report it"
                )
        total += len(y)
        labels.update(y.tolist())
        if on_batch is not None:
            on_batch(total)
    if total == 0:
        raise ValueError("there are no examples to evaluate on")
    if total >= _ENOUGH * classes and len(labels) <= _FEW * classes:
        warnings.append(
            f"the {total:,} examples are of {len(labels)} of the {classes} classes: their "
            "accuracies are not those of all; mix the classes, or evaluate on all examples"
        )
    accuracy: dict[str, float | None] = {"clean": clean / total, "fgsm": None, "pgd": None}
    rows = []
    for attack, count in zip(attacks, survivors, strict=True):
        rows.append({**attack.row(classes), "examples": total, "accuracy": count / total})
        before = accuracy.get(attack.name)
        accuracy[attack.name] = min(count / total, math.inf if before is None else before)
    accuracy["worst"] = worst / total
    row = None
    if certificate is not None:
        accuracy["certified"] = certified / total
        row = certificate.row(total, certified / total)
    return {"accuracy": accuracy, "attacks": rows, "certified": row, "warnings": warnings}


def _survives(
    model: nn.Module, x: Tensor, y: Tensor, correct: Tensor, attack: Attack, seeds: tuple[int, int]
) -> Tensor:
    """Which of the correctly classified examples stay so under all restarts of an attack."""
    generator = torch.Generator(x.device)
    survives = correct.clone()
    for restart in range(attack.restarts or 1):
        left = survives.nonzero()[:, 0]
        if len(left) == 0:
            break
        # Independent of the other attacks, and of the batches before.
        generator.manual_seed(_start_seed(attack, *seeds, restart))
        adv = attack(model, x[left], y[left], generator)
        survives[left] = predict(model, adv) == y[left]
    return survives


def _start_seed(attack: Attack, seed: int, batch: int, restart: int) -> int:
    """The seed of the random starts of one restart on one batch."""
    name = zlib.crc32(f"{attack.name} {attack.loss}".encode())
    return int(np.random.SeedSequence((seed, name, batch, restart)).generate_state(1)[0])


def _warnings(output: object, classes: int, attacks: Sequence[Attack]) -> list[str]:
    """Why robust accuracies are not to be trusted, judged by the outputs for a batch."""
    warnings = [PROBABILITIES] if are_probabilities(output) else []
    for kind in {attack.name: attack.kind for attack in attacks}.values():
        warning = kind.warning(classes)
        warnings += [] if warning is None else [warning]
    return warnings
