"""``atmc sweep``: many runs from one file, then their curves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from atmc.engine.sweep import Outcome, read_plan, sweep
from atmc.errors import MissingExtraError, ReportError
from atmc.reports.build import report

from .errors import Interrupted
from .options import path, setting


@click.command("sweep")
@path("--config", "FILE", "YAML: the settings of a run, and a list of points.", required=True)
@path("--output", "DIR", "Folder of all runs; finished runs in it are not repeated.", required=True)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at a time, each with its share of the threads.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the runs go: processes of this machine, or tasks of Ray.",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Of a Ray cluster. [default: RAY_ADDRESS, or the Ray of this machine, or a new one]",
)
@click.option(
    "--cpus",
    type=click.IntRange(min=1),
    help="CPUs that Ray reserves for a run, and its threads. [default: the setting threads, or 1]",
)
@click.option(
    "--gpus",
    type=click.FloatRange(min=0),
    help="GPUs that Ray reserves for a run; 0.5: two share one. [default: 1, if there are any]",
)
@setting("data_root", help="Folder that holds the data sets; by default that of CONFIG.")
@click.option("--dry-run", is_flag=True, help="Print the names of the runs and stop.")
def command(config: Path, output: Path, data_root: str | None, dry_run: bool, **where: Any) -> None:
    """Run methods × budgets × bits × seeds from shared dense starts, then draw their curves.

    The same command continues a sweep that was stopped: it resumes unfinished runs and skips
    finished ones. A run that fails stops no other and is reported at the end.
    """
    plan = read_plan(config, **({} if data_root is None else {"data_root": data_root}))
    points = (*plan.starts, *plan.points)
    if dry_run:
        for point in points:
            click.echo(point.name)
        return
    try:
        outcomes = sweep(plan, output, on_outcome=_printer(len(points)), **where)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: run the same command again to go on") from None
    try:
        for file in report(output, data_root=data_root).files:
            click.echo(str(file))
    except (MissingExtraError, ReportError) as error:
        click.echo(f"Warning: no curves: {error}", err=True)
    failed = [outcome for outcome in outcomes if outcome.status in ("failed", "in use")]
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {len(points)} runs failed, first {failed[0].point.name}: "
            f"{failed[0].error}: run the same command again to try them once more"
        )


def _printer(count: int) -> Callable[[Outcome], None]:
    """A function that prints one line for each run as it ends."""
    numbers = itertools.count(1)

    def show(outcome: Outcome) -> None:
        text = outcome.error
        if outcome.report is not None:
            accuracy, size = outcome.report["accuracy"], outcome.report["size"]
            text = (
                f"{size['file_bits']:,} bits, clean {accuracy['clean']:.4f}, "
                f"worst {accuracy['worst']:.4f}"
            )
            if "certified" in accuracy:
                text += f", certified {accuracy['certified']:.4f}"
        name, status = outcome.point.name, outcome.status
        click.echo(f"[{next(numbers)}/{count}] {name}: {status}: {text}")

    return show
