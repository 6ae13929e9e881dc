"""``atmc report``: curves, tables and one HTML page from finished runs."""

from __future__ import annotations

from pathlib import Path

import click

from atmc.reports.build import report

from .options import setting


@click.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the files; by default DIR.",
)
@setting("data_root", help="Folder that holds the data sets; by default that of each run.")
@setting(
    "dataset",
    help="Your data set, to attack examples of: as the runs name it.",
    default=False,
)
@setting("model", help="Your model: file.py:function.", default=False)
def command(
    folder: Path,
    output: Path | None,
    data_root: str | None,
    dataset: str | None,
    model: str | None,
) -> None:
    """Write results.csv, curves.png, curves.svg and report.html of all runs below DIR.

    report.html is one file that opens offline.
    """
    written = report(folder, output, data_root=data_root, dataset=dataset, model=model)
    for warning in written.warnings:
        click.echo(f"Warning: {' '.join(warning.split())}", err=True)
    failed = f", {written.failed} failed" if written.failed else ""
    click.echo(f"{written.finished} finished run{'s'[: written.finished != 1]}{failed}")
    for path in written.files:
        click.echo(str(path))
