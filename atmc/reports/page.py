"""``report.html``: one page that holds all it needs, and asks the network for nothing.

Tables are HTML, so that they can be read without scripts; plots are drawn by ``page.js`` from the
JSON in the page. Every name comes from a file that anybody may have written: it is escaped here,
and the page forbids itself, by its content security policy, to load anything.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from atmc.reports.curves import Group, Point, Series, mean, robust_label
from atmc.reports.examples import Sheet
from atmc.reports.results import Result, series_order

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
NONE = "–"


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


def render(content: Content, plotly_js: str) -> str:
    """The page.

    Args:
        content: all that is on it.
        plotly_js: the source of plotly.js, which draws the plots.
    """
    title = _title(content.groups)
    results = [result for group in content.groups for result in group.results]
    sections = [("curves", "Curves"), ("budgets", "By budget"), ("runs", "Runs")]
    sections += [("bits", "Where the bits went"), ("examples", "Adversarial examples")]
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in sections)
    body = "".join(
        (
            f'<header class="page"><h1>{escape(title)}</h1>'
            '<p class="lead">Clean and robust accuracy of compressed classifiers over the size of '
            "their files.</p>",
            _facts(content.groups, results),
            f'<nav aria-label="Sections">{links}</nav></header><main>',
            _curves(content.groups),
            _budgets(content.groups),
            _runs(results, len(content.groups) > 1),
            _layers(content.layers),
            _sheets(content),
            "</main>",
            _footer(content),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · atmc report</title>"
        f'<link rel="icon" href="data:,"><style>{_own("page.css")}</style></head><body>{body}'
        f'<script type="application/json" id="data">{_json(_data(content))}</script>'
        f"<script>{plotly_js}</script><script>{_own('page.js')}</script></body></html>\n"
    )


def _own(name: str) -> str:
    return importlib.resources.files("atmc.reports").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it ends one."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _title(groups: Sequence[Group]) -> str:
    pairs = list(dict.fromkeys((group.model, group.dataset) for group in groups))
    if len(pairs) == 1:
        return f"{pairs[0][0]} on {pairs[0][1]}"
    sets = list(dict.fromkeys(dataset for _, dataset in pairs))
    models = len({model for model, _ in pairs})
    return f"{models} model{'s'[: models > 1]} on {', '.join(sets)}"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values)) or NONE


def _facts(groups: Sequence[Group], results: Sequence[Result]) -> str:
    failed = sum(result.failed for result in results)
    finished = [result for result in results if not result.failed]
    seeds = sorted({result.seed for result in results if result.seed is not None})
    examples = sorted({a.examples for r in finished for a in r.attacks if a.examples is not None})
    dense = list(dict.fromkeys(f"{r.dense_bits:,}" for r in finished if r.dense_bits))
    pairs = [
        ("Data set", _listed([group.dataset for group in groups])),
        ("Model", _listed([group.model for group in groups])),
        (
            "ε (ℓ∞, pixels in [0, 1])",
            _listed([f"{g.eps:.4g}" for g in groups if g.eps is not None]),
        ),
        ("Methods", str(len({result.method for result in results if not result.dense}))),
        ("Runs", f"{len(finished)} finished" + (f", {failed} failed" if failed else "")),
        ("Seeds", f"{len(seeds)} ({_listed(seeds)})" if seeds else NONE),
        ("Test examples", " or ".join(f"{count:,}" for count in examples) or NONE),
        ("Dense bits", "; ".join(dense) or NONE),
    ]
    attacks = list(dict.fromkeys(attack for group in groups for attack in group.attacks()))
    items = [_fact(name, text) for name, text in pairs]
    items.append(_fact("Attacks", "; ".join(attacks) or NONE, wide=True))
    return f'<dl class="facts">{"".join(items)}</dl>'


def _fact(name: str, text: str, wide: bool = False) -> str:
    where, how = (' class="wide"', ' class="plain"') if wide else ("", "")
    return f"<div{where}><dt>{escape(name)}</dt><dd{how}>{escape(text)}</dd></div>"


def _section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{"".join(parts)}</section>'


def _curves(groups: Sequence[Group]) -> str:
    parts = [
        '<p class="lead">Lines are means over seeds, bands reach from the lowest to the highest '
        "run of a budget. Point at a run for its figures; click a legend entry to hide a method, "
        "double-click to see it alone.</p>"
    ]
    for index, group in enumerate(groups):
        if len(groups) > 1:
            parts.append(f"<h3>{escape(group.title)}</h3>")
        if not group.finished:
            parts.append('<p class="note">No run of these finished.</p>')
            continue
        names = group.accuracies
        if len(names) > 1:
            options = "".join(
                f'<option value="{escape(name)}">{escape(robust_label(group, name))}</option>'
                for name in names
            )
            parts.append(
                '<div class="controls"><label>Show '
                f'<select id="robust-{index}">{options}</select></label></div>'
            )
        parts.append(
            f'<div class="plot" id="curves-{index}" role="figure" '
            f'aria-label="Accuracy over file bits: {escape(group.title)}; the tables below hold '
            'the same figures"></div>'
        )
    return _section("curves", "Curves", *parts)


def _spread(point: Point, values: str) -> str:
    if point.runs < 2:
        return values
    half = (point.high - point.low) / 2
    return f'{values}<span class="spread">± {half:.4f}, {point.runs} runs</span>'


def _budgets(groups: Sequence[Group]) -> str:
    parts = [
        '<p class="lead">Robust accuracy (worst case) at each budget, clean accuracy in brackets; '
        "± is half the distance from the lowest to the highest robust accuracy.</p>"
    ]
    for group in groups:
        table = _budget_table(group)
        if table is not None:
            parts += [f"<h3>{escape(group.title)}</h3>"] if len(groups) > 1 else []
            parts.append(table)
    if len(parts) == 1:
        parts.append('<p class="note">No run had a budget.</p>')
    return _section("budgets", "By budget", *parts)


def _budget_table(group: Group) -> str | None:
    """Series down, budgets across; None where no run had a budget."""
    compressed = [result for result in group.results if not result.dense]
    budgets = sorted({r.budget_bits for r in compressed if r.budget_bits is not None})
    if not budgets:
        return None
    head = "".join(
        f'<th scope="col">{budget:,} bits{_of_dense(budget, group.dense_bits)}</th>'
        for budget in budgets
    )
    curves = {series.name: series for series in group.series()}
    rows = []
    for name in dict.fromkeys(r.series for r in sorted(compressed, key=series_order)):
        failures = [r for r in compressed if r.failed and r.series == name]
        cells = [_budget_cell(curves.get(name), failures, budget) for budget in budgets]
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    for series in group.series(dense=True):
        said = _pair(
            mean([r.accuracy["worst"] for r in series.results if "worst" in r.accuracy]),
            mean([r.accuracy["clean"] for r in series.results if "clean" in r.accuracy]),
        )
        rows.append(
            f'<tr><th scope="row">{escape(series.name)}</th>'
            f'<td colspan="{len(budgets)}" class="text">{said}, not compressed</td></tr>'
        )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="By budget"><table><thead><tr>'
        f'<th class="text" scope="col">method</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _of_dense(bits: int, dense_bits: int | None) -> str:
    if not dense_bits:
        return ""
    return f'<br><span class="note">{100 * bits / dense_bits:.2g} % of dense</span>'


def _pair(robust: float | None, clean: float | None) -> str:
    first = NONE if robust is None else f"{robust:.4f}"
    return f"{first} ({NONE if clean is None else f'{clean:.4f}'})"


def _budget_cell(series: Series | None, failures: Sequence[Result], budget: int) -> str:
    if series is not None:
        clean = {point.budget_bits: point for point in series.points("clean")}.get(budget)
        worst = {point.budget_bits: point for point in series.points("worst")}.get(budget)
        shown = worst or clean
        if shown is not None:
            said = _pair(worst.mean if worst else None, clean.mean if clean else None)
            return f"<td>{_spread(shown, said)}</td>"
    here = [result for result in failures if result.budget_bits == budget]
    smallest = [r.smallest_bits for r in here if r.smallest_bits is not None]
    if smallest:
        return f'<td class="unreachable">needs {min(smallest):,} bits</td>'
    if here:
        return f'<td class="failed" title="{escape(here[0].error or "")}">failed</td>'
    return f'<td class="none">{NONE}</td>'


def _runs(results: Sequence[Result], several: bool) -> str:
    others = dict.fromkeys(name for result in results for name in result.accuracy)
    names = list(
        dict.fromkeys(("clean", "fgsm", "pgd", *(n for n in others if n != "worst"), "worst"))
    )
    head = [("method", True), ("bits", False)]
    head += [("model", True), ("data set", True), ("ε", False)] if several else []
    head += [("seed", False), ("budget bits", False), ("status", True)]
    head += [("file bits", False), ("paper bits", False)]
    head += [("nonzeros", False), *((name, False) for name in names), ("examples", False)]
    head += [("minutes", False), ("run", True)]
    cells = "".join(
        f'<th scope="col"{_text(text)}><button type="button">{escape(name)}</button></th>'
        for name, text in head
    )
    rows = "".join(f"<tr>{_run_row(result, names, several)}</tr>" for result in results)
    return _section(
        "runs",
        "Runs",
        '<p class="lead">Every run. A click on the head of a column sorts by it, another one turns '
        "the order round.</p>",
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Runs">'
        f'<table class="sortable" id="table"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>",
    )


def _text(text: bool) -> str:
    return ' class="text"' if text else ""


def _run_row(result: Result, names: Sequence[str], several: bool) -> str:
    examples = [attack.examples for attack in result.attacks if attack.examples is not None]
    seconds = [v for name, v in result.seconds.items() if name != "evaluate"]
    setting = [_cell(result.model, text=True), _cell(result.dataset, text=True)]
    setting = [*setting, _cell(result.eps, ".4g")] if several else []
    bits = result.bits
    auto = bits == "auto"
    cells = [
        _cell(result.method, text=True),
        f'<td data-value="0">{bits}</td>' if auto else _cell(bits),
        *setting,
        _cell(result.seed),
        _cell(result.budget_bits, ","),
        _status(result),
        _cell(result.file_bits, ","),
        _cell(result.paper_bits, ","),
        _cell(result.nonzeros, ","),
        *(_cell(result.accuracy.get(name), ".4f") for name in names),
        _cell(min(examples, default=None), ","),
        _cell(sum(seconds) / 60 if seconds else None, ".1f"),
        f'<td class="text path">{escape(result.path)}</td>',
    ]
    return "".join(cells)


def _cell(value: Any, form: str = "", text: bool = False) -> str:
    """A cell; ``data-value`` is what it is sorted by, empty where nothing is known."""
    if text:
        return f'<td class="text">{escape(str(value))}</td>'
    if value is None:
        return f'<td class="none" data-value="">{NONE}</td>'
    return f'<td data-value="{value}">{value:{form}}</td>'


def _status(result: Result) -> str:
    if not result.failed:
        if result.warnings:
            why = escape("; ".join(result.warnings))
            return f'<td class="text failed"><span class="why">done, but: {why}</span></td>'
        return '<td class="text">done</td>'
    if result.smallest_bits is None:
        why = escape(result.error or "")
        return f'<td class="text failed"><span class="why">failed: {why}</span></td>'
    return (
        f'<td class="text unreachable" title="{escape(result.error or "")}">'
        f"needs {result.smallest_bits:,} bits</td>"
    )


def _options(results: Sequence[Result]) -> str:
    return "".join(
        f'<option value="{index}">{escape(_run_name(result))}</option>'
        for index, result in enumerate(results)
    )


def _run_name(result: Result) -> str:
    size = "" if result.file_bits is None else f", {result.file_bits:,} file bits"
    seed = "" if result.seed is None else f", seed {result.seed}"
    return f"{result.series}{size}{seed} · {result.path}"


def _layers(layers: Sequence[tuple[Result, Any]]) -> str:
    if not layers:
        return _section(
            "bits",
            "Where the bits went",
            '<p class="note">No artifact lies beside the reports.</p>',
        )
    return _section(
        "bits",
        "Where the bits went",
        '<p class="lead">The file of one run, layer by layer, by ideal code length; what is the '
        "whole file's (prefix, shapes, rounding) is its header. The bars add up to the file.</p>",
        '<div class="controls"><label>Run '
        f'<select id="layers-run">{_options([result for result, _ in layers])}</select></label>'
        '<label>Stacked by <select id="layers-kind"><option value="parts">part of the file</option>'
        '<option value="factors">factor (W = U V + C)</option></select></label></div>'
        '<div class="plot" id="layers" role="figure" aria-label="File bits per layer"></div>',
    )


def _sheets(content: Content) -> str:
    parts = [f'<p class="note">{escape(note)}</p>' for note in content.notes]
    if content.sheets:
        parts.insert(
            0,
            '<p class="lead">The first images of the test split, none of them chosen, attacked '
            "anew for this page. A perturbation is shown as grey plus its sign and size: ε is "
            "white, −ε black.</p>"
            '<div class="controls"><label>Run <select id="sheet-run">'
            f"{_options([result for result, _ in content.sheets])}</select></label></div>"
            '<p class="note" id="sheet-said" aria-live="polite"></p>'
            '<div class="cards" id="sheet"></div>',
        )
    elif not parts:
        parts.append('<p class="note">There is no artifact to attack.</p>')
    return _section("examples", "Adversarial examples", *parts)


def caveats(groups: Sequence[Group]) -> list[str]:
    """What a reader has to know of the figures, some of it only where it is so."""
    said = [
        "Accuracies are of the decoded file, in float32 and eval mode, on the test split. “worst” "
        "counts an example as broken when any of the attacks run on it breaks it; a stronger "
        "attack can only lower it.",
        "Size is file bits: eight times the length of the artifact on disk. Paper bits (nonzeros × "
        "bits per value, the size that papers report) stand beside it and are not the size of any "
        "file.",
    ]
    for group in groups:
        where = f"{group.title}: " if len(groups) > 1 else ""
        settings = {tuple(a.settings for a in run.attacks) for run in group.finished}
        if len(settings) > 1:
            said.append(
                f"{where}Not all runs were attacked alike, or on as many examples: compare with "
                "care; results.csv tells them apart."
            )
        counted: dict[tuple[Any, ...], int] = {}
        for run in group.finished:
            key = run.series, run.budget_bits, run.seed
            counted[key] = counted.get(key, 0) + 1
        twins = sum(count for count in counted.values() if count > 1)
        if twins:
            said.append(
                f"{where}{twins} runs share method, bits, budget and seed with another: they "
                "differ in a setting that the curves do not show, and are averaged like seeds."
            )
    return said


def _footer(content: Content) -> str:
    from atmc import __version__

    items = "".join(f"<li>{escape(text)}</li>" for text in caveats(content.groups))
    return (
        f'<footer class="page"><section><h2>How to read this</h2><ul class="notes">{items}</ul>'
        f"</section><p>Made by <code>atmc report</code> {__version__}. The same figures are in "
        "<code>results.csv</code>, the curves for print in <code>curves.svg</code> and "
        "<code>curves.png</code>.</p></footer>"
    )


def _data(content: Content) -> dict[str, Any]:
    """What ``page.js`` reads."""
    return {
        "groups": [
            {
                "title": group.title,
                "dense_bits": group.dense_bits,
                "robust": [
                    {"name": name, "label": robust_label(group, name)} for name in group.accuracies
                ],
                "series": [_series(group, series) for series in group.series()],
                "dense": [_series(group, series) for series in group.series(dense=True)],
            }
            for group in content.groups
        ],
        "layers": [{"rows": rows} for _, rows in content.layers],
        "sheets": [asdict(sheet) for _, sheet in content.sheets],
    }


def _series(group: Group, series: Series) -> dict[str, Any]:
    keys = ("path", "seed", "series", "budget_bits", "file_bits", "paper_bits", "dense_bits")
    return {
        "name": series.name,
        "style": series.style.plotly,
        "runs": [
            {key: getattr(run, key) for key in (*keys, "nonzeros", "accuracy")}
            for run in series.results
        ],
        "points": {
            name: [asdict(point) for point in series.points(name)]
            for name in ("clean", *group.accuracies)
        },
    }
