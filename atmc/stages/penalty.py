"""How the penalty weight of a stage's ADMM rises."""

from __future__ import annotations

from collections.abc import Callable

# ρ × steps at the end: below it the two copies are far apart then, above it nothing moves any more.
_PULL = 4000.0


def rising_rho(steps: int, last: float | None) -> Callable[[int], float]:
    """ρ by step: from zero, as the square of the progress.

    Args:
        steps: of the stage.
        last: ρ at the end; None makes the pull, summed over all steps, the same for any length.
    """
    steps = max(1, steps)
    end = _PULL / steps if last is None else last
    return lambda step: end * (step / steps) ** 2
