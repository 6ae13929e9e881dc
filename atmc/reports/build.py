"""``atmc report``: curves, tables and one HTML page from finished runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atmc import codec
from atmc.artifact import decode
from atmc.data import Dataset
from atmc.errors import ReportError
from atmc.extras import require
from atmc.files import read, write
from atmc.messages import argument
from atmc.models.sources import Model
from atmc.reports import curves, examples, page
from atmc.reports.figure import SIGNATURES
from atmc.reports.groups import group_runs
from atmc.reports.layers import bits_per_layer
from atmc.reports.results import Result, find, to_csv

# The files, and what tells each from other programs' near its start.
_SIGNATURES = {
    "results.csv": b"method,bits,model,dataset,seed,budget_bits,file_bits",
    "curves.png": SIGNATURES[".png"],
    "curves.svg": SIGNATURES[".svg"],
    "report.html": b"\xc2\xb7 atmc report</title>",
}
_START = 2**16


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        files: results.csv, curves.png, curves.svg, report.html, with their folder.
        finished: how many finished runs are in it.
        failed: how many failed ones.
        warnings: a line for everything that was left out, and for figures not to be trusted.
    """

    files: tuple[Path, ...]
    finished: int
    failed: int
    warnings: tuple[str, ...]


def report(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    data_root: str | None = None,
    dataset: str | Dataset | None = None,
    model: str | Model | None = None,
    sheets: int = 14,
) -> Report:
    """Write results.csv, curves.png, curves.svg and report.html of all runs below a folder.

    Each file is written in one step. The same runs give the same bytes of the CSV and the SVG.

    Args:
        folder: searched for run folders, with everything below it.
        output: where the files go; None for ``folder``.
        data_root: where the data lies; None for where each run had it. Without it the page has no
            adversarial examples, and says so.
        dataset: a custom one, by its name in the runs or as an object. No other custom data set or
            model is used: no code is run because a file names it.
        model: a custom one, by its name or as :func:`atmc.compress` takes it.
        sheets: for how many runs, at most, there are adversarial examples.

    Raises:
        DataError, PythonPathError, RunError, SettingsError: `dataset` or `model` cannot be loaded.
        ReportError: no such folder, no run in it, or ``output`` is a file.
        MissingExtraError: a package of the extra ``report`` is missing.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    for package in ("matplotlib", "plotly", "jinja2"):
        require(package, "report", "a report")
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder: give one that holds run folders")
    results, warnings = find(folder)
    if not results:
        more = f" ({len(warnings)} damaged or foreign: {warnings[0]})" if warnings else ""
        raise ReportError(
            f"there is no run in {folder}{more}: give a folder that holds run folders, such as "
            "atmc compress leaves"
        )
    warnings += [f"{r.folder}: {warning}" for r in results for warning in r.warnings]
    output = folder if output is None else Path(output)
    if output.exists() and not output.is_dir():
        raise ReportError(f"{output} is a file: give a folder")
    _check_files(output)
    content = page.Content(group_runs(results))
    # No name for the sources: the data sets are freed before the page is rendered.
    _add_artifacts(content, results, warnings, examples.Sources(data_root, dataset, model), sheets)
    html = page.render(content)
    output.mkdir(parents=True, exist_ok=True)
    _check_files(output)  # again: the work took a while
    files = tuple(output / name for name in _SIGNATURES)
    csv, png, svg, html_page = files
    write(csv, to_csv(results))
    curves.draw(png, content.groups, svg)
    write(html_page, html.encode())
    failed = sum(result.failed for result in results)
    return Report(files, len(results) - failed, failed, tuple(warnings))


def _check_files(output: Path) -> None:
    """Refuse to write over a file that no report wrote, by a ``ReportError``."""
    for name, signature in _SIGNATURES.items():
        path = output / name
        if not path.exists():
            continue
        with path.open("rb") as file:
            start = file.read(_START)
        if signature not in start:
            raise ReportError(
                f"{path} is a file that atmc report did not write: give another "
                f"{argument('output')}, or rename it"
            )


def _add_artifacts(
    content: page.Content,
    results: Sequence[Result],
    warnings: list[str],
    sources: examples.Sources,
    sheets: int,
) -> None:
    """Read every artifact once: where its bits went, and for some of them the sheet."""
    readable = [r for r in results if not r.failed and (r.folder / "model.atmc").is_file()]
    chosen = {id(result) for result in examples.choose(readable, sheets)}
    for result in readable:
        path = result.folder / "model.atmc"
        try:
            artifact = _read_artifact(path, result)
        except (codec.AtmcFormatError, ReportError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.append(f"{path}: {reason}: its bits and examples are left out")
            continue
        content.layers.append((result, bits_per_layer(artifact)))
        if id(result) in chosen:
            try:
                content.sheets.append((result, examples.sheet(result, artifact, sources)))
            except examples.NoSheetError as error:
                if str(error) not in content.notes:
                    content.notes.append(str(error))
    warnings += content.notes


def _read_artifact(path: Path, result: Result) -> codec.Artifact:
    stored = read(path)
    artifact = decode(stored)
    if result.file_bits != 8 * len(stored):
        raise ReportError(f"{8 * len(stored)} bits, where report.json says {result.file_bits}")
    return artifact
