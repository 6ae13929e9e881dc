"""Runs that may be compared, their series, and the points of a curve: means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from atmc.reports.figure import Style, series_style
from atmc.reports.results import Result, series_order


class Axis(NamedTuple):
    """What curves are over.

    Attributes:
        name: in a word or two.
        label: of the axis, with what it is of.
        dense: the attribute of a run that has the same of the dense net.
        dense_name: of that, in words.
    """

    name: str
    label: str
    dense: str
    dense_name: str


# By the attribute of a run.
AXES = {
    "file_bits": Axis("file bits", "file bits", "dense_bits", "dense bits"),
    "multiply_adds": Axis(
        "multiply-adds",
        "multiply-adds of the compact network, for one example",
        "dense_multiply_adds",
        "dense multiply-adds",
    ),
}


@dataclass(frozen=True)
class Point:
    """Runs of one series and one budget: mean, lowest and highest accuracy over their seeds.

    ``x`` is the mean of what the curve is over.
    """

    budget_bits: int | None
    x: float
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

    def mean(self, accuracy: str) -> float | None:
        """An accuracy ("clean", "pgd", "worst", ...) over all its runs; None where none has it."""
        values = [run.accuracy[accuracy] for run in self.results if accuracy in run.accuracy]
        return fmean(values) if values else None

    def points(self, accuracy: str, over: str = "file_bits") -> list[Point]:
        """The curve of an accuracy over one of ``AXES``, from small files to large ones.

        A run without a budget is a point by the size of its file. One without the value, or where
        it is zero, which no logarithmic axis has, is left out.
        """
        runs_at: dict[tuple[int | None, int | None], list[Result]] = {}
        for run in self.results:
            if run.file_bits is not None and getattr(run, over) and accuracy in run.accuracy:
                size = run.file_bits if run.budget_bits is None else None
                runs_at.setdefault((run.budget_bits, size), []).append(run)
        points = []
        for runs in sorted(
            runs_at.values(), key=lambda runs: fmean(r.file_bits or 0 for r in runs)
        ):
            x = fmean(getattr(run, over) for run in runs)
            values = [run.accuracy[accuracy] for run in runs]
            budget = runs[0].budget_bits
            points.append(Point(budget, x, fmean(values), min(values), max(values), len(runs)))
        return points


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
        """The robust accuracies that some run has: ``worst`` first, then as they come."""
        names = dict.fromkeys(name for run in self.finished for name in run.accuracy)
        return sorted((name for name in names if name != "clean"), key=lambda name: name != "worst")

    @property
    def axes(self) -> list[str]:
        """Those of ``AXES`` that there are curves over: file bits always."""
        curves = [run for series in self.series() for run in series.results]
        return [
            over for over in AXES if over == "file_bits" or any(getattr(r, over) for r in curves)
        ]

    def dense_value(self, over: str) -> int | None:
        """What the dense net has on one of ``AXES``, where it is known."""
        values = (getattr(run, AXES[over].dense) for run in self.finished)
        return next(filter(None, values), None)

    def series(self, dense: bool = False) -> list[Series]:
        """Its curves, or its dense lines, in a fixed order."""
        named: dict[str, list[Result]] = {}
        for result in sorted(self.finished, key=series_order):
            if result.dense == dense:
                named.setdefault(result.series, []).append(result)
        return [
            Series(name, series_style(i), tuple(r)) for i, (name, r) in enumerate(named.items())
        ]

    def robust_label(self, accuracy: str) -> str:
        """What a robust accuracy is, in words: under which attacks."""
        attacks = dict.fromkeys(
            tuple(dict.fromkeys(_attack_name(a.name, a.steps) for a in run.attacks))
            for run in self.finished
        )
        if accuracy == "worst":
            if len(attacks) > 1:
                return "robust accuracy, worst case of each run's attacks"
            names = ", ".join(next(iter(attacks), ()))
            return "robust accuracy, worst case" + (f" of {names}" if names else "")
        if accuracy == "certified":
            bounds = dict.fromkeys(run.bound for run in self.finished if run.bound)
            return "certified accuracy" + (f", {' and '.join(bounds)} bounds" if bounds else "")
        steps = {a.steps for run in self.finished for a in run.attacks if a.name == accuracy}
        name = _attack_name(accuracy, steps.pop() if len(steps) == 1 else None)
        return f"robust accuracy, {name}"


def _mean_file_bits(runs: Sequence[Result]) -> float:
    return fmean(run.file_bits or 0 for run in runs)


def _attack_name(name: str, steps: int | None) -> str:
    return name if steps is None or steps < 2 else f"{name}-{steps}"


def group_runs(results: Sequence[Result]) -> list[Group]:
    """Runs put together by data set, model and ε.

    A run of unknown ε (a failed one may be) goes to the first group that it fits.
    """
    members: dict[tuple[str, str, float | None], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.eps is None):
        eps = None if result.eps is None else round(result.eps, 6)
        key = result.dataset, result.model, eps
        if eps is None:
            key = next((known for known in members if known[:2] == key[:2]), key)
        members.setdefault(key, []).append(result)
    position = {id(result): index for index, result in enumerate(results)}
    return [
        Group(*key, tuple(sorted(members[key], key=lambda result: position[id(result)])))
        for key in sorted(members, key=lambda key: (key[0], key[1], key[2] or 0.0))
    ]
