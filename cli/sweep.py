"""``atmc sweep``: many runs from one file, then their curves."""

from __future__ import annotations

from pathlib import Path

import click

from atmc.engine.sweep import Outcome, Plan, read_plan, sweep
from atmc.errors import MissingExtraError, ReportError
from atmc.reports.build import report

from .errors import Interrupted
from .options import setting


@click.command("sweep")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="YAML: the settings of a run, and a list of points.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder of all runs; what is finished in it is kept.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at a time, each with its share of the threads.",
)
@setting("data_root")
@click.option("--dry-run", is_flag=True, help="Name the runs, and run none.")
def command(config: Path, output: Path, jobs: int, data_root: str | None, dry_run: bool) -> None:
    """Run methods × budgets × bits × seeds from shared dense starts, then draw their curves.

    Finished runs are kept and others resumed, so that the same command goes on where it stopped. A
    run that fails is reported at the end and stops no other.
    """
    plan = read_plan(config, **({} if data_root is None else {"data_root": data_root}))
    count = len(plan.starts) + len(plan.points)
    if dry_run:
        for point in (*plan.starts, *plan.points):
            click.echo(point.name)
        return
    try:
        outcomes = sweep(plan, output, jobs=jobs, on_outcome=_Lines(plan))
    except KeyboardInterrupt:
        raise Interrupted("interrupted: run the same command again to go on") from None
    failed = [outcome for outcome in outcomes if outcome.status in ("failed", "in use")]
    try:
        for path in report(output, data_root=data_root).files:
            click.echo(str(path))
    except (MissingExtraError, ReportError) as error:
        click.echo(f"Warning: no curves: {error}", err=True)
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {count} runs failed, first {failed[0].point.name}: "
            f"{failed[0].error}: run the same command again to try them once more"
        )


class _Lines:
    """A line for each run as it ends."""

    def __init__(self, plan: Plan) -> None:
        self.count = len(plan.starts) + len(plan.points)
        self.done = 0

    def __call__(self, outcome: Outcome) -> None:
        self.done += 1
        said = outcome.error
        if outcome.report is not None:
            accuracy, size = outcome.report["accuracy"], outcome.report["size"]
            said = (
                f"{size['file_bits']:,} bits, clean {accuracy['clean']:.4f}, "
                f"worst {accuracy['worst']:.4f}"
            )
        name, status = outcome.point.name, outcome.status
        click.echo(f"[{self.done}/{self.count}] {name}: {status}: {said}")
