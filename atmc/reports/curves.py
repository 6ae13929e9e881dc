"""Curves: which runs form one, its mean and spread over seeds, and the figure for print.

matplotlib is imported where it draws, and used without its global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atmc.reports.results import Result, series_order

# Okabe & Ito's colours, which the colour-blind tell apart, without their yellow (invisible on
# white) and with a grey for their black, so that they show on light and on dark ground.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#808080")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_DASHES = ("solid", "dash", "dot")
MADE_BY = "atmc report"  # stands in the files, to tell them from others


@dataclass(frozen=True)
class Style:
    """How a series is drawn, in matplotlib's words and in plotly's; no two of 21 are alike.

    The second seven take the first seven's colours with other markers and dashed lines.
    """

    index: int

    @property
    def colour(self) -> str:
        """As ``#rrggbb``."""
        return _COLOURS[self.index % 7]

    @property
    def _turn(self) -> int:
        return self.index // 7 % 3

    @property
    def _mark(self) -> int:
        return (self.index + 3 * self._turn) % 7

    @property
    def matplotlib(self) -> dict[str, Any]:
        """Keywords of ``Axes.plot``."""
        return {"color": self.colour, "marker": _MARKERS[self._mark], "ls": _LINES[self._turn]}

    @property
    def plotly(self) -> dict[str, str]:
        """Colour, marker symbol and dash."""
        symbol, dash = _SYMBOLS[self._mark], _DASHES[self._turn]
        return {"colour": self.colour, "symbol": symbol, "dash": dash}


@dataclass(frozen=True)
class Point:
    """Runs of one series and one budget: mean, lowest and highest accuracy over their seeds.

    ``file_bits`` is the mean of their files.
    """

    budget_bits: int | None
    file_bits: float
    mean: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Series:
    """The finished runs of one method with one b."""

    name: str
    style: Style
    results: tuple[Result, ...]

    def points(self, accuracy: str) -> list[Point]:
        """The curve of an accuracy ("clean", "pgd", "worst", ...), by file bits."""
        groups: dict[tuple[str, int], list[Result]] = {}
        for result in self.results:
            if result.file_bits is not None and accuracy in result.accuracy:
                budget = result.budget_bits
                key = ("file", result.file_bits) if budget is None else ("budget", budget)
                groups.setdefault(key, []).append(result)
        points = []
        for (kind, size), group in groups.items():
            values = [result.accuracy[accuracy] for result in group]
            sizes = [result.file_bits or 0 for result in group]
            points.append(
                Point(
                    size if kind == "budget" else None,
                    sum(sizes) / len(sizes),
                    sum(values) / len(values),
                    min(values),
                    max(values),
                    len(group),
                )
            )
        return sorted(points, key=lambda point: point.file_bits)


@dataclass(frozen=True)
class Group:
    """Runs that may be compared: the same data set, model and ε."""

    dataset: str
    model: str
    eps: float | None
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """In words."""
        eps = "" if self.eps is None else f", ε = {self.eps:.4g}"
        return f"{self.model} on {self.dataset}{eps}"

    @property
    def finished(self) -> tuple[Result, ...]:
        """Those with figures."""
        return tuple(result for result in self.results if not result.failed)

    @property
    def accuracies(self) -> list[str]:
        """The names of robust accuracies that some run has: ``worst`` first, then as they come."""
        found = dict.fromkeys(name for run in self.finished for name in run.accuracy)
        return sorted((name for name in found if name != "clean"), key=lambda name: name != "worst")

    @property
    def dense_bits(self) -> int | None:
        """The size of the dense net, in bits, where it is known."""
        return next((run.dense_bits for run in self.finished if run.dense_bits), None)

    def series(self, dense: bool = False) -> list[Series]:
        """Its curves, or its dense lines, in a fixed order."""
        named: dict[str, list[Result]] = {}
        for result in sorted(self.finished, key=series_order):
            if result.dense == dense:
                named.setdefault(result.series, []).append(result)
        return [Series(name, Style(i), tuple(r)) for i, (name, r) in enumerate(named.items())]

    def attacks(self) -> list[str]:
        """Every attack on its runs, with its settings, each once."""
        return list(dict.fromkeys(a.settings for run in self.finished for a in run.attacks))


def groups(results: Sequence[Result]) -> list[Group]:
    """Runs put together by data set, model and ε.

    A run that does not tell its ε (a failed one may not) goes to the first group that it fits.
    """
    found: dict[tuple[str, str, float | None], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.eps is None):
        eps = None if result.eps is None else round(result.eps, 6)
        key = result.dataset, result.model, eps
        if eps is None:
            key = next((known for known in found if known[:2] == key[:2]), key)
        found.setdefault(key, []).append(result)
    order = {id(result): index for index, result in enumerate(results)}
    return [
        Group(*key, tuple(sorted(found[key], key=lambda result: order[id(result)])))
        for key in sorted(found, key=lambda key: (key[0], key[1], key[2] or 0.0))
    ]


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None


def robust_label(group: Group, accuracy: str) -> str:
    """What a robust accuracy is, in words: under which attacks."""
    attacked = dict.fromkeys(
        tuple(dict.fromkeys(_short(a.name, a.steps) for a in run.attacks)) for run in group.finished
    )
    if accuracy == "worst":
        if len(attacked) > 1:
            return "robust accuracy, worst case of each run's attacks"
        names = ", ".join(next(iter(attacked), ()))
        return "robust accuracy, worst case" + (f" of {names}" if names else "")
    steps = {a.steps for run in group.finished for a in run.attacks if a.name == accuracy}
    return f"robust accuracy, {_short(accuracy, steps.pop() if len(steps) == 1 else None)}"


def _short(name: str, steps: int | None) -> str:
    return name if steps is None or steps < 2 else f"{name}-{steps}"


def draw(found: Sequence[Group]) -> dict[str, bytes]:
    """``curves.png`` and ``curves.svg``: clean and robust accuracy over file bits, a row a group.

    The same runs give the same bytes of SVG.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [group for group in found if group.finished]
    style: Any = {
        "svg.hashsalt": "atmc",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.parse_math": False,  # names are text
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#666666",
        "xtick.color": "#444444",
        "ytick.color": "#444444",
    }
    with matplotlib.rc_context(style):
        heights = [4.2 + 0.2 * math.ceil(_entries(group) / 4) for group in shown] or [1.0]
        figure = Figure(figsize=(11, sum(heights)), layout="constrained")
        rows = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        for row, group in zip(rows, shown, strict=False):
            _draw_group(row, group)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=160, metadata={"Software": MADE_BY})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": MADE_BY})
    return {"curves.png": png.getvalue(), "curves.svg": svg.getvalue()}


def _entries(group: Group) -> int:
    """Of its legend."""
    return len(group.series()) + len(group.series(dense=True))


def _draw_group(figure: Any, group: Group) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    robust = next(iter(group.accuracies), None)
    figure.suptitle(group.title, x=0.01, ha="left", fontweight="bold")
    left, right = figure.subplots(1, 2)
    panels = [(left, "clean", "clean accuracy")]
    if robust is None:
        right.set_axis_off()
    else:
        panels.append((right, robust, robust_label(group, robust)))
    handles: dict[str, Any] = {}
    for axes, accuracy, title in panels:
        for series in group.series():
            points = series.points(accuracy)
            if not points:
                continue
            sizes = [point.file_bits for point in points]
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(sizes, low, high, color=series.style.colour, alpha=0.15, lw=0)
            (line,) = axes.plot(
                sizes, [point.mean for point in points], ms=5, lw=1.6, **series.style.matplotlib
            )
            handles.setdefault(series.name, line)
        for index, series in enumerate(group.series(dense=True)):
            height = mean(
                [run.accuracy[accuracy] for run in series.results if accuracy in run.accuracy]
            )
            if height is not None:
                dots = (0, (4 - 2 * (index % 2), 2))
                line = axes.axhline(height, color="#222222", lw=1.1, ls=dots, zorder=1)
                handles.setdefault(series.name, line)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: _bits(bits)))
        axes.set_xlabel("file bits")
        axes.set_title(title, loc="left", fontsize=9)
        axes.grid(True, color="#e2e2e2", lw=0.6)
        axes.set_axisbelow(True)
        axes.margins(y=0.08)
        if group.dense_bits:
            _dense_share(axes, group.dense_bits)
    columns = min(4, max(1, len(handles)))
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
        )


def _dense_share(axes: Any, dense_bits: int) -> None:
    """A second scale above: the same sizes as shares of the dense net's."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    above = axes.secondary_xaxis(
        "top", functions=(lambda bits: bits / dense_bits, lambda share: share * dense_bits)
    )
    above.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    above.xaxis.set_minor_formatter(NullFormatter())
    above.tick_params(labelsize=7.5, length=2)
    above.spines["top"].set_visible(False)
    above.set_xlabel("of the dense bits", fontsize=7.5, color="#444444")


def _bits(bits: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if bits >= size:
            return f"{bits / size:.3g}{unit}"
    return f"{bits:.3g}"
