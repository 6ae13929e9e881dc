"""Curves, tables and one HTML page from finished runs.

A folder of its own, because the page's style sheet and script lie beside the code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from atmc import codec, data
from atmc.artifact import decode
from atmc.data import Dataset
from atmc.engine.inputs import Inputs, check_dataset
from atmc.errors import ReportError
from atmc.extras import require
from atmc.files import read, write
from atmc.messages import argument
from atmc.models.sources import Model, build, is_own
from atmc.python_path import GIVEN
from atmc.reports import examples, page
from atmc.reports.curves import MADE_BY, draw, groups
from atmc.reports.layers import bits_per_layer
from atmc.reports.results import Result, find, to_csv

__all__ = ["Report", "ReportError", "report"]

# Near the start of each file that is written: what tells it from other people's.
_MARKS = {
    "results.csv": b"method,bits,model,dataset,seed,budget_bits,file_bits",
    "curves.png": MADE_BY.encode(),
    "curves.svg": MADE_BY.encode(),
    "report.html": b"\xc2\xb7 atmc report</title>",
}
_LOOKED_AT = 2**16


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
        dataset: one's own, by its name in the runs or as it is: examples of no other of one's own
            are attacked, since no code is run because a file says so.
        model: likewise, by its name or as :func:`atmc.compress` takes it.
        sheets: for how many runs, at most, there are adversarial examples.

    Raises:
        DataError, PythonPathError, RunError, SettingsError: `dataset` or `model` cannot be.
        ReportError: no such folder, no run in it, or ``output`` is a file.
        MissingExtraError: a package of the extra ``report`` is missing.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    for package in ("matplotlib", "plotly"):
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
    found = groups(results)
    content = page.Content(found)
    own = _Own.of(dataset, model, data_root)
    _open_artifacts(results, content, warnings, data_root, sheets, own)
    from plotly.offline import get_plotlyjs

    written = {
        "results.csv": to_csv(results),
        **draw(found),
        "report.html": page.render(content, get_plotlyjs()).encode(),
    }
    output.mkdir(parents=True, exist_ok=True)
    _check_files(output)  # once more: it took a while
    for name, content_of in written.items():
        write(output / name, content_of)
    failed = sum(result.failed for result in results)
    files = tuple(output / name for name in written)
    return Report(files, len(results) - failed, failed, tuple(warnings))


def _check_files(output: Path) -> None:
    """Refuse to write over a file that no report wrote.

    Raises:
        ReportError: there is one.
    """
    for name, mark in _MARKS.items():
        path = output / name
        if not path.exists():
            continue
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
        if mark not in start:
            raise ReportError(
                f"{path} is a file that atmc report did not write: give another "
                f"{argument('output')}, or rename it"
            )


@dataclass(frozen=True)
class _Own:
    """The data set and the model of one's own, each under the names that reports may call it."""

    datasets: dict[str, Dataset]
    models: dict[str, nn.Module]

    @classmethod
    def of(
        cls, dataset: str | Dataset | None, model: str | Model | None, data_root: str | None
    ) -> _Own:
        own = cls({}, {})
        if isinstance(dataset, str):
            found = data.kind(dataset)
            if found is None:
                raise ReportError(f"there is no data set {dataset!r}: name it as its runs do")
            if found == "own":  # others are loaded by their names
                loaded = data.load(dataset, data_root)
                own.datasets.update({dataset: loaded, loaded.name: loaded})
        elif dataset is not None:
            own.datasets[check_dataset(dataset).name] = dataset
        if isinstance(model, str):
            if not is_own(model):
                raise ReportError(f"{model!r} is no model of one's own: give file.py:function")
            own.models[model] = build(model)
        elif model is not None:
            given = Inputs(model)
            own.models[given.names["model"].removeprefix(GIVEN)] = given.build()
        return own


def _open_artifacts(
    results: Sequence[Result],
    content: page.Content,
    warnings: list[str],
    data_root: str | None,
    sheets: int,
    own: _Own,
) -> None:
    """Read every artifact once: where its bits went, and for some of them the sheet."""
    readable = [r for r in results if not r.failed and (r.folder / "model.atmc").is_file()]
    chosen = {id(result) for result in examples.choose(readable, sheets)}
    notes: dict[str, None] = {}
    for result in readable:
        path = result.folder / "model.atmc"
        try:
            held = read(path)
            artifact = decode(held)
        except codec.AtmcFormatError as error:
            warnings.append(f"{path}: {error}: its bits and examples are left out")
            continue
        except OSError as error:
            warnings.append(f"{path}: {error.strerror}: its bits and examples are left out")
            continue
        if result.file_bits != 8 * len(held):
            warnings.append(
                f"{path}: {8 * len(held)} bits, where report.json says {result.file_bits}: "
                "its bits and examples are left out"
            )
            continue
        content.layers.append((result, bits_per_layer(artifact)))
        if id(result) in chosen:
            try:
                sheet = examples.sheet(
                    result,
                    artifact,
                    data_root=data_root,
                    dataset=own.datasets.get(result.dataset),
                    model=own.models.get(result.model),
                )
                content.sheets.append((result, sheet))
            except examples.NoSheetError as error:
                notes[str(error)] = None
    examples.forget()
    content.notes = list(notes)
    warnings += content.notes
