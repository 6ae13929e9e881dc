"""``report.html``: the figures that the template ``page.html`` shows.

Tables are HTML, so that they can be read without scripts; plots are drawn by ``page.js`` from the
JSON in the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

from atmc.reports import bits_plot
from atmc.reports.examples import Sheet
from atmc.reports.groups import AXES, Group, Series
from atmc.reports.layers import FACTORS
from atmc.reports.results import Result, series_order


@dataclass
class Content:
    """What goes on the page.

    Attributes:
        groups: runs that may be compared, together.
        layers: runs and :func:`atmc.reports.layers.bits_per_layer` of their artifacts.
        sheets: runs and their adversarial examples.
        notes: sentences on what is not there, and why.
    """

    groups: Sequence[Group]
    layers: list[tuple[Result, list[dict[str, Any]]]] = field(default_factory=list)
    sheets: list[tuple[Result, Sheet]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def render(content: Content) -> str:
    """The page, with the source of plotly.js in it (the extra ``report``)."""
    import jinja2
    from plotly.offline import get_plotlyjs

    from atmc import __version__

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    runs = [result for group in content.groups for result in group.results]
    names = dict.fromkeys(name for run in runs for name in run.accuracy)
    others = [name for name in names if name not in ("clean", "fgsm", "pgd", "worst")]
    tables = [_budget_table(group) for group in content.groups]
    return environment.from_string(_source("page.html")).render(
        **vars(content),
        title=_title(content.groups),
        facts=_facts(content.groups, runs),
        attacks=_unique(attack.settings for run in runs for attack in run.attacks),
        budget_tables=[table for table in tables if table.budgets],
        runs=runs,
        axes=AXES,
        accuracies=["clean", "fgsm", "pgd", *others, "worst"],
        caveats=_caveats(content.groups),
        data=_plot_data(content),
        version=__version__,
        style=_source("page.css"),
        plotly=get_plotlyjs(),
        script=_source("page.js"),
    )


def _source(name: str) -> str:
    return resources.files("atmc.reports").joinpath(name).read_text(encoding="utf-8")


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _title(groups: Sequence[Group]) -> str:
    datasets = ", ".join(_unique(group.dataset for group in groups))
    pairs = {(group.model, group.dataset) for group in groups}
    if len(pairs) == 1:
        return f"{groups[0].model} on {datasets}"
    models = len({model for model, _ in pairs})
    return f"{models} model{'s'[: models > 1]} on {datasets}"


def _facts(groups: Sequence[Group], runs: Sequence[Result]) -> list[tuple[str, str]]:
    """What was run, as names and values; empty where nothing is known."""
    failed = sum(run.failed for run in runs)
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    attacks = [attack for run in runs for attack in run.attacks]
    examples = sorted({a.examples for a in attacks if a.examples is not None})
    dense_bits = _unique(run.dense_bits for run in runs if run.dense_bits)
    radii = _unique(f"{group.eps:.4g}" for group in groups if group.eps is not None)
    return [
        ("Data set", ", ".join(_unique(group.dataset for group in groups))),
        ("Model", ", ".join(_unique(group.model for group in groups))),
        ("ε (ℓ∞, pixels in [0, 1])", ", ".join(radii)),
        ("Methods", str(len({run.method for run in runs if not run.dense}))),
        ("Runs", f"{len(runs) - failed} finished" + (f", {failed} failed" if failed else "")),
        ("Seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else ""),
        ("Test examples", " or ".join(f"{count:,}" for count in examples)),
        ("Dense bits", "; ".join(f"{bits:,}" for bits in dense_bits)),
    ]


@dataclass(frozen=True)
class _Cell:
    text: str
    spread: str = ""
    style: str = ""
    title: str | None = None


@dataclass(frozen=True)
class _BudgetTable:
    """Series down, budgets across.

    Attributes:
        title: of the group.
        budgets: each in bits, and in percent of the dense size, where that is known.
        rows: the name of each series, and its cells.
        dense: the name of each dense line, and its accuracies.
    """

    title: str
    budgets: list[tuple[int, float | None]]
    rows: list[tuple[str, list[_Cell]]]
    dense: list[tuple[str, str]]


def _budget_table(group: Group) -> _BudgetTable:
    compressed = [run for run in group.results if not run.dense]
    budgets = sorted({run.budget_bits for run in compressed if run.budget_bits is not None})
    dense = group.dense_value("file_bits")
    shares = [100 * bits / dense if dense else None for bits in budgets]
    curves = {series.name: series for series in group.series()}
    rows = []
    for name in _unique(run.series for run in sorted(compressed, key=series_order)):
        failures = [run for run in compressed if run.failed and run.series == name]
        cells = [_budget_cell(curves.get(name), failures, budget) for budget in budgets]
        rows.append((name, cells))
    return _BudgetTable(
        group.title,
        list(zip(budgets, shares, strict=True)),
        rows,
        [
            (series.name, _accuracies(series.mean("worst"), series.mean("clean")))
            for series in group.series(dense=True)
        ],
    )


def _budget_cell(series: Series | None, failures: Sequence[Result], budget: int) -> _Cell:
    if series is not None:
        clean, worst = (
            {point.budget_bits: point for point in series.points(accuracy)}.get(budget)
            for accuracy in ("clean", "worst")
        )
        shown = worst or clean
        if shown is not None:
            text = _accuracies(worst.mean if worst else None, clean.mean if clean else None)
            half = (shown.high - shown.low) / 2
            spread = f"± {half:.4f}, {shown.runs} runs" if shown.runs > 1 else ""
            return _Cell(text, spread)
    failed = [run for run in failures if run.budget_bits == budget]
    smallest = [run.smallest_bits for run in failed if run.smallest_bits is not None]
    if smallest:
        return _Cell(f"needs {min(smallest):,} bits", style="unreachable")
    if failed:
        return _Cell("failed", style="failed", title=failed[0].error)
    return _Cell("–", style="none")


def _accuracies(robust: float | None, clean: float | None) -> str:
    first, second = ("–" if value is None else f"{value:.4f}" for value in (robust, clean))
    return f"{first} ({second})"


def _caveats(groups: Sequence[Group]) -> list[str]:
    """What a reader has to know of these runs."""
    caveats = []
    for group in groups:
        where = f"{group.title}: " if len(groups) > 1 else ""
        if len({tuple(a.settings for a in run.attacks) for run in group.finished}) > 1:
            caveats.append(
                f"{where}Not all runs were attacked alike, or on as many examples: compare with "
                "care; results.csv tells them apart."
            )
        counts = Counter((run.series, run.budget_bits, run.seed) for run in group.finished)
        twins = sum(count for count in counts.values() if count > 1)
        if twins:
            caveats.append(
                f"{where}{twins} runs share method, bits, budget and seed with another: they "
                "differ in a setting that the curves do not show, and are averaged like seeds."
            )
    return caveats


def _plot_data(content: Content) -> dict[str, Any]:
    """What ``page.js`` reads."""
    colours = bits_plot.COLOURS
    return {
        "groups": [
            {
                "axes": [
                    {"key": over, **AXES[over]._asdict(), "dense_value": group.dense_value(over)}
                    for over in group.axes
                ],
                "robust": [
                    {"name": name, "label": group.robust_label(name)} for name in group.accuracies
                ],
                "series": [_series(group, series) for series in group.series()],
                "dense": [_series(group, series) for series in group.series(dense=True)],
            }
            for group in content.groups
        ],
        "stacks": {"parts": colours, "factors": dict(zip(FACTORS, colours.values(), strict=True))},
        "layers": [rows for _, rows in content.layers],
        "sheets": [asdict(sheet) for _, sheet in content.sheets],
    }


def _series(group: Group, series: Series) -> dict[str, Any]:
    keys = ("path", "seed", "series", "budget_bits", "file_bits", "paper_bits", "dense_bits")
    costs = ("nonzeros", "multiply_adds", "dense_multiply_adds", "latency_ms")
    return {
        "name": series.name,
        "style": series.style.plotly,
        "runs": [
            {key: getattr(run, key) for key in (*keys, *costs, "accuracy")}
            for run in series.results
        ],
        "points": {
            over: {
                name: [asdict(point) for point in series.points(name, over)]
                for name in ("clean", *group.accuracies)
            }
            for over in group.axes
        },
    }
