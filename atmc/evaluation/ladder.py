"""PGD up a ladder of ε, and two checks that robust accuracy is what it says.

An attack that is fooled by masked gradients flatters a model; two things that must hold give it
away (Carlini et al., *On Evaluating Adversarial Robustness*, 2019). More ε can only break more. And
at ε = 0.5 every ball contains the grey picture, to which the model gives one class whatever the
label, so that robust accuracy is at most the share of the largest class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atmc.attacks.registry import Attack
from atmc.evaluation.accuracy import evaluate, predict
from atmc.inference import device_of

GREY = 0.5
GREY_EXAMPLES = 200


def climb(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    grid: Sequence[float],
    attack: Attack,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy under ``attack`` at each ε of ``grid``, its step size scaled with ε, and the checks.

    The checks are "monotone" (:func:`monotone`) and "grey-ball" and "grey-picture" (:func:`grey`).

    Args:
        model: a classifier of inputs in [0, 1].
        batches: pairs (x, y) in a fixed order, iterated more than once.
        grid: the ε, in pixels of [0, 1], in any order; each is tried once.
        attack: PGD, with the step size that belongs to its ε.
        seed: of the random starts.

    Returns:
        ``{"ladder": [...], "checks": [...]}``: for each ε, ascending, a row as of "attacks" in
        report.json; for each check its "name", whether it "passed", and the "detail" in words.

    Raises:
        ValueError: no examples, or an attack whose ε is 0, so that its steps cannot be scaled.
    """
    rungs = [_scaled(attack, eps) for eps in sorted(set(grid))]
    measured = evaluate(model, batches, rungs, seed=seed)
    rows: list[dict[str, Any]] = measured["attacks"]
    checks = [
        monotone(measured["accuracy"]["clean"], rows),
        *grey(model, *_first(batches, GREY_EXAMPLES), _scaled(attack, GREY), seed=seed),
    ]
    return {"ladder": rows, "checks": checks}


def _first(batches: Iterable[tuple[Tensor, ...]], count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` examples, or all if there are fewer."""
    taken: list[tuple[Tensor, Tensor]] = []
    missing = count
    for x, y, *_ in batches:
        taken.append((x, y))
        missing -= len(y)
        if missing <= 0:
            break
    x, y = (torch.cat(parts)[:count] for parts in zip(*taken, strict=True))
    return x, y


def _scaled(attack: Attack, eps: float) -> Attack:
    """The attack at another ε, its steps as long in units of ε."""
    if not attack.eps or attack.step_size is None:
        raise ValueError("a ladder scales the steps of its attack: give it an eps above 0")
    return dataclasses.replace(attack, eps=eps, step_size=attack.step_size * eps / attack.eps)


def _check(name: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "detail": detail}


def monotone(clean: float, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether accuracy falls as ε grows: no rung is above any before it, the clean one included.

    The same examples are attacked on each rung, so that a rise is the attack's failure and not
    chance. Rises up to 1 / (2 √n), the largest standard error over n examples, are tolerated.
    """
    lowest, lowest_eps = clean, 0.0
    tolerance = largest_rise = 0.0
    failure = ""
    for row in rows:
        tolerance = 0.5 / row["examples"] ** 0.5
        rise = row["accuracy"] - lowest
        if rise > max(largest_rise, tolerance):
            largest_rise = rise
            failure = (
                f"{row['accuracy']:.4f} at eps {row['eps']:.4g} is above {lowest:.4f} at eps "
                f"{lowest_eps:.4g}, where the attack did better in a smaller ball"
            )
        if rise < 0:
            lowest, lowest_eps = row["accuracy"], row["eps"]
    success = f"accuracy never rises with eps by more than {tolerance:.4f}"
    return _check("monotone", not failure, failure or success)


def grey(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Whether at most the largest class's share is left where every ball contains the grey picture.

    "grey-ball" checks the attack: PGD *by itself*, from its random starts and not from the grey
    picture, has to get below a bound that certainly holds; where it does not, the model masks its
    gradients or the steps are too few, and smaller ε flatter too. "grey-picture" checks the model
    and this program: with the grey picture tried on every example no attack can fail, unless the
    model's prediction depends on more than its input.

    Args:
        model: a classifier of inputs in [0, 1].
        x: inputs (n, ...) in [0, 1].
        y: labels (n,), int64.
        attack: PGD at ε = 0.5.
        seed: of the random starts.
    """
    share = int(y.bincount().max()) / len(y)
    device = device_of(model)
    under_attack = evaluate(model, [(x, y)], [attack], seed=seed)["attacks"][0]["accuracy"]
    pictures = torch.full_like(x, GREY, device=device)
    on_grey = int((predict(model, pictures) == y.to(device)).sum()) / len(y)
    bound = f"of {len(y)} examples, the largest class has {share:.4f}"
    ball = f"{attack.name}-{attack.steps} at eps {GREY} leaves {under_attack:.4f} {bound}"
    if under_attack > share:
        ball += ": it misses what it must find"
    picture = f"the grey picture leaves {on_grey:.4f} {bound}"
    if on_grey > share:
        picture += ": the model gives one picture several classes"
    return [
        _check("grey-ball", under_attack <= share, ball),
        _check("grey-picture", on_grey <= share, picture),
    ]
