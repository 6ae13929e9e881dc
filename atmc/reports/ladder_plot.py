"""A ladder over ε as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atmc.reports import figure as pictures


def draw(path: Path, clean: float, rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """Accuracy over ε, from the clean accuracy on, written in one step.

    Args:
        path: ends in .svg, .png or .pdf.
        clean: accuracy at ε = 0.
        rows: "ladder" as :func:`atmc.evaluation.ladder.climb` gives it, at least one.
        title: over the picture.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`atmc.reports.figure.picture`.
    """
    points = [(0.0, clean), *((row["eps"], row["accuracy"]) for row in rows if row["eps"] > 0)]
    first = rows[0]
    with pictures.picture(path, 6, 4) as figure:
        axes = figure.add_subplot()
        label = f"{first['name']}-{first['steps']}, loss {first['loss']}"
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
        axes.set(
            xlabel="ε (ℓ∞, pixels in [0, 1])",
            ylabel=f"accuracy ({first['examples']:,} examples)",
            title=title,
            ylim=(0, 1.02),
        )
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend()
