"""PGD up a ladder of ε, and two checks that robust accuracy is what it says.

An attack that is fooled by masked gradients flatters a model; two things that must hold give it
away (Carlini et al., *On Evaluating Adversarial Robustness*, 2019). More ε can only break more. And
at ε = 0.5 every ball holds the grey picture, to which the model gives one class whatever the label
was, so that no more can be left than the share of the largest class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atmc.evaluation.accuracy import Attack, evaluate, predict

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
        batches: pairs (x, y) in a fixed order, passed over more than once.
        grid: the ε, in pixels of [0, 1], in any order; each is tried once.
        attack: PGD, with the step size that belongs to its own ε.
        seed: of the random starts.

    Returns:
        ``{"ladder": [...], "checks": [...]}``: for each ε, ascending, a row as of "attacks" in
        report.json; for each check its "name", whether it "passed", and the "detail" in words.

    Raises:
        ValueError: no examples, or an attack whose ε is 0, which gives nothing to scale.
    """
    rungs = [_scaled(attack, eps) for eps in sorted(set(grid))]
    found = evaluate(model, batches, rungs, seed=seed)
    rows: list[dict[str, Any]] = found["attacks"]
    checks = [
        monotone(found["accuracy"]["clean"], rows),
        *grey(model, *_first(batches, GREY_EXAMPLES), _scaled(attack, GREY), seed=seed),
    ]
    return {"ladder": rows, "checks": checks}


def _first(batches: Iterable[tuple[Tensor, ...]], count: int) -> tuple[Tensor, Tensor]:
    """The first examples, as many of them as there are."""
    taken: list[tuple[Tensor, Tensor]] = []
    for x, y, *_ in batches:
        taken.append((x, y))
        count -= len(y)
        if count <= 0:
            break
    x, y = (torch.cat(parts) for parts in zip(*taken, strict=True))
    return (x, y) if count >= 0 else (x[:count], y[:count])


def _scaled(attack: Attack, eps: float) -> Attack:
    """The attack at another ε, its steps as long in units of ε."""
    if not attack.eps or attack.step_size is None:
        raise ValueError("a ladder scales the steps of its attack: give it an eps above 0")
    return dataclasses.replace(attack, eps=eps, step_size=attack.step_size * eps / attack.eps)


def _check(name: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "detail": detail}


def monotone(clean: float, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether accuracy falls as ε grows: no rung stands above any below it, the clean one included.

    The same examples are attacked on each rung, so that a rise is the attack's failure and not
    chance; up to 1 / (2 √n), the most that a standard error over n examples can be, it is let pass.
    """
    lowest, lowest_eps, worst, where = clean, 0.0, 0.0, ""
    allowed = 0.0
    for row in rows:
        allowed = 0.5 / row["examples"] ** 0.5
        rise = row["accuracy"] - lowest
        if rise > max(worst, allowed):
            worst = rise
            where = (
                f"{row['accuracy']:.4f} at eps {row['eps']:.4g} is above {lowest:.4f} at eps "
                f"{lowest_eps:.4g}, where the attack did better in a smaller ball"
            )
        if rise < 0:
            lowest, lowest_eps = row["accuracy"], row["eps"]
    return _check(
        "monotone", not where, where or f"accuracy never rises with eps by more than {allowed:.4f}"
    )


def grey(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Whether at most the largest class's share is left where every ball holds the grey picture.

    "grey-ball" is the check of the attack: PGD *by itself*, from its random starts and not from the
    grey picture, has to get below a bound that certainly holds; where it does not, the model masks
    its gradients or the steps are too few, and smaller ε flatter too. "grey-picture" is the check
    of the model and of this program: with the grey picture tried on every example no attack can
    fail, unless the model's prediction depends on more than its input.

    Args:
        model: a classifier of inputs in [0, 1].
        x: inputs (n, ...) in [0, 1].
        y: labels (n,), int64.
        attack: PGD at ε = 0.5.
        seed: of the random starts.
    """
    share = int(y.bincount().max()) / len(y)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    survived = evaluate(model, [(x, y)], [attack], seed=seed)["attacks"][0]["accuracy"]
    pictures = torch.full_like(x, GREY, device=device)
    left = int((predict(model, pictures) == y.to(device)).sum()) / len(y)
    bound = f"of {len(y)} examples, the largest class has {share:.4f}"
    return [
        _check(
            "grey-ball",
            survived <= share,
            f"{attack.name}-{attack.steps} at eps {GREY} leaves {survived:.4f} {bound}"
            + ("" if survived <= share else ": it misses what it must find"),
        ),
        _check(
            "grey-picture",
            left <= share,
            f"the grey picture leaves {left:.4f} {bound}"
            + ("" if left <= share else ": the model gives one picture several classes"),
        ),
    ]
