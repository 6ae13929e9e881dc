"""Accuracy as curves: over file bits for print, and over ε."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atmc.reports import figure as pictures
from atmc.reports.groups import Group


def draw(path: Path, groups: Sequence[Group], *more: Path) -> None:
    """Clean and robust accuracy over file bits, a row a group with a finished run.

    Args:
        path: ends in .svg, .png or .pdf.
        groups: of :func:`atmc.reports.groups.group_runs`.
        more: files of other formats for the same picture.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`atmc.reports.figure.picture`.
    """
    shown = [group for group in groups if group.finished]
    entries = [len(group.series()) + len(group.series(dense=True)) for group in shown]
    heights = [4.2 + 0.2 * math.ceil(count / 4) for count in entries] or [1.0]
    with pictures.picture(path, 11, sum(heights), *more) as figure:
        rows = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        for row, group in zip(rows, shown, strict=False):
            _draw_group(row, group)


def _draw_group(figure: Any, group: Group) -> None:
    figure.suptitle(group.title, x=0.01, ha="left", fontweight="bold")
    left, right = figure.subplots(1, 2)
    lines = _draw_panel(left, group, "clean", "clean accuracy")
    if group.accuracies:
        robust = group.accuracies[0]
        lines |= _draw_panel(right, group, robust, group.robust_label(robust))
    else:
        right.set_axis_off()
    if lines:
        figure.legend(
            list(lines.values()),
            list(lines),
            loc="outside lower center",
            ncols=min(4, len(lines)),
        )


def _draw_panel(axes: Any, group: Group, accuracy: str, title: str) -> dict[str, Any]:
    """One accuracy of all series; the line of each by its name, for the legend."""
    lines: dict[str, Any] = {}
    for series in group.series():
        points = series.points(accuracy)
        if points:
            sizes = [point.file_bits for point in points]
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(sizes, low, high, color=series.style.colour, alpha=0.15, lw=0)
            means = [point.mean for point in points]
            (lines[series.name],) = axes.plot(sizes, means, **series.style.matplotlib)
    for index, series in enumerate(group.series(dense=True)):
        height = series.mean(accuracy)
        if height is not None:
            dots = (0, (4 - 2 * (index % 2), 2))
            lines[series.name] = axes.axhline(height, color=pictures.INK, lw=1.1, ls=dots, zorder=1)
    from matplotlib.ticker import EngFormatter

    axes.set_xscale("log")
    _tick_sizes(axes.xaxis, EngFormatter())
    axes.set(xlabel="file bits", title=title)
    axes.margins(y=0.08)
    if group.dense_bits:
        _add_dense_shares(axes, group.dense_bits)
    return lines


def _add_dense_shares(axes: Any, dense_bits: int) -> None:
    """A second scale above: the same sizes as shares of the dense net's."""
    above = axes.secondary_xaxis(
        "top", functions=(lambda bits: bits / dense_bits, lambda share: share * dense_bits)
    )
    _tick_sizes(above.xaxis, lambda share, _: f"{100 * share:.3g} %")
    above.tick_params(labelsize=7.5, length=2)
    above.spines["top"].set_visible(False)
    above.set_xlabel("of the dense bits", fontsize=7.5, color="#444444")


def _tick_sizes(axis: Any, formatter: Any) -> None:
    """Ticks at 1, 2 and 5 times each power of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def draw_ladder(path: Path, clean: float, rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """Accuracy over ε, from the clean accuracy on.

    Args:
        path: ends in .svg, .png or .pdf.
        clean: accuracy at ε = 0.
        rows: "ladder" as :func:`atmc.evaluation.ladder.climb` returns it, at least one.
        title: over the picture.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`atmc.reports.figure.picture`.
    """
    points = [(0.0, clean), *((row["eps"], row["accuracy"]) for row in rows if row["eps"] > 0)]
    first = rows[0]
    with pictures.picture(path, 6, 4) as figure:
        axes = figure.add_subplot()
        label = f"{first['name']}-{first['steps']}, loss {first['loss']}"
        axes.plot(*zip(*points, strict=True), label=label, **pictures.series_style(0).matplotlib)
        axes.set(
            xlabel="ε (ℓ∞, pixels in [0, 1])",
            ylabel=f"accuracy ({first['examples']:,} examples)",
            title=title,
            ylim=(0, 1.02),
        )
        axes.set_xlim(left=0)
        axes.legend()
