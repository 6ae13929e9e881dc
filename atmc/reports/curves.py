"""Accuracy as curves: over file bits and multiply-adds for print, and over ε."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atmc.reports import figure as pictures
from atmc.reports.groups import AXES, Group

_NARROW = 5  # times the least: too few ticks at 1, 2 and 5 times a power of ten


def draw(path: Path, groups: Sequence[Group], *more: Path) -> None:
    """Clean, robust and certified accuracy over file bits and, where known, multiply-adds.

    A group with a finished run has a row of panels for each of the two.

    Args:
        path: ends in .svg, .png or .pdf.
        groups: of :func:`atmc.reports.groups.group_runs`.
        more: files of other formats for the same picture.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`atmc.reports.figure.picture`.
    """
    shown = [group for group in groups if group.finished]
    entries = [len(group.series()) + len(group.series(dense=True)) for group in shown]
    heights = [
        0.6 + 3.6 * len(group.axes) + 0.2 * math.ceil(count / 4)
        for group, count in zip(shown, entries, strict=True)
    ] or [1.0]
    width = 5.5 * max([2, *(len(_shown(group)) for group in shown)])
    with pictures.picture(path, width, sum(heights), *more) as figure:
        rows = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        for row, group in zip(rows, shown, strict=False):
            _draw_group(row, group)


def _draw_group(figure: Any, group: Group) -> None:
    figure.suptitle(group.title, x=0.01, ha="left", fontweight="bold")
    shown = _shown(group)
    panels = figure.subplots(len(group.axes), max(2, len(shown)), squeeze=False, sharey="col")
    lines: dict[str, Any] = {}
    for over, row in zip(group.axes, panels, strict=True):
        for panel, accuracy in zip(row, shown, strict=False):
            title = "clean accuracy" if accuracy == "clean" else group.robust_label(accuracy)
            lines |= _draw_panel(panel, group, over, accuracy, title)
        for panel in row[len(shown) :]:
            panel.set_axis_off()
    if lines:
        figure.legend(
            list(lines.values()),
            list(lines),
            loc="outside lower center",
            ncols=min(4, len(lines)),
        )


def _shown(group: Group) -> list[str]:
    """The accuracies that have a panel."""
    certified = [name for name in group.accuracies if name == "certified"]
    robust = [name for name in group.accuracies[:1] if name not in certified]
    return ["clean", *robust, *certified]


def _draw_panel(axes: Any, group: Group, over: str, accuracy: str, title: str) -> dict[str, Any]:
    """One accuracy of all series; the line of each by its name, for the legend."""
    lines: dict[str, Any] = {}
    extent: list[float] = []
    for series in group.series():
        points = series.points(accuracy, over)
        if points:
            sizes = [point.x for point in points]
            extent += sizes
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
    narrow = bool(extent) and 1 < max(extent) / min(extent) < _NARROW
    _tick_sizes(axes.xaxis, EngFormatter(), narrow)
    axes.set(xlabel=AXES[over].label, title=title)
    axes.margins(y=0.08)
    dense = group.dense_value(over)
    if dense:
        _add_dense_shares(axes, dense, f"of the {AXES[over].dense_name}", narrow)
    return lines


def _add_dense_shares(axes: Any, dense: int, label: str, narrow: bool) -> None:
    """A second scale above: the same sizes as shares of the dense net's."""
    above = axes.secondary_xaxis(
        "top", functions=(lambda size: size / dense, lambda share: share * dense)
    )
    _tick_sizes(above.xaxis, lambda share, _: f"{100 * share:.3g} %", narrow)
    above.tick_params(labelsize=7.5, length=2)
    above.spines["top"].set_visible(False)
    above.set_xlabel(label, fontsize=7.5, color="#444444")


def _tick_sizes(axis: Any, formatter: Any, narrow: bool) -> None:
    """Ticks at 1, 2 and 5 times each power of ten, or at even distances over a narrow range."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axis.set_major_locator(MaxNLocator(7) if narrow else LogLocator(subs=(1, 2, 5)))
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
