"""A ladder over ε as a picture, PNG or SVG (the extra ``report``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atmc import codec
from atmc.extras import require

SUFFIXES = (".png", ".svg")


def check_name(path: Path) -> None:
    """Refuse another suffix than .png or .svg, by a ``ValueError``."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is no picture that can be drawn: end it in .png or .svg")


def check(path: Path) -> None:
    """Find out before the work whether :func:`draw` can write to ``path``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: another suffix than .png or .svg.
        OSError: there is no such folder.
    """
    check_name(path)
    if not path.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {path.parent}: make it, or give another path")
    require("matplotlib", "report", "a plot")


def draw(path: Path, clean: float, rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """Accuracy over ε, from the clean accuracy on, written in one step.

    Args:
        path: ends in .png or .svg.
        clean: accuracy at ε = 0.
        rows: "ladder" as :func:`atmc.ladder.climb` gives it, at least one.
        title: over the picture.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`check`; OSError also where writing fails.
    """
    check(path)
    from matplotlib.figure import Figure

    points = [(0.0, clean), *((row["eps"], row["accuracy"]) for row in rows if row["eps"] > 0)]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    first = rows[0]
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
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower(), dpi=150)
    codec.write(path, picture.getvalue())
