"""``atmc compress``: one run by its settings, in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from atmc.engine.compression import run
from atmc.engine.folder import CONFIG, new_folder
from atmc.engine.inputs import Inputs
from atmc.engine.settings import Settings, read_config

from .errors import Interrupted
from .options import settings
from .progress import watch
from .tables import accuracy_pairs, show_pairs, show_warnings


@click.command("compress")
@settings()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file of the same settings; an option given here wins.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run folder; a new one under runs/ if not given.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --output.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --output.")
@click.option("--quiet", is_flag=True, help="No progress; the summary alone.")
def command(
    config: Path | None,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **options: str | None,
) -> None:
    """Train a classifier, compress it into a file within the budget, evaluate the file.

    Without options: the embedded digits data, under a minute on two cores.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other: give one of them")
    if (resume or overwrite) and output is None:
        raise click.UsageError("--resume and --overwrite need --output: name the run folder")
    values = read_config(config) if config is not None else {}
    values |= {key: value for key, value in options.items() if value is not None}
    chosen = Settings.of(values)
    folder = new_folder(chosen.resolved()) if output is None else output
    try:
        with watch(quiet) as progress:
            result = run(
                chosen,
                Inputs(),
                folder,
                resume=resume,
                overwrite=overwrite,
                on_step=progress.on_step,
                on_epoch=progress.on_epoch,
            )
    except KeyboardInterrupt:
        if not (folder / CONFIG).is_file():
            raise
        raise Interrupted(
            f"interrupted: go on with 'atmc compress --output {folder} --resume'"
        ) from None
    _show(result.report, folder)


def _show(report: dict[str, Any], folder: Path) -> None:
    size, budget = report["size"], report["budget_bits"]
    share = "" if budget is None else f", {size['file_bits'] / budget:.1%} of the budget"
    bits = size["file_bits"]
    seconds = [f"{name} {s:.1f}" for name, s in report["seconds"].items() if s is not None]
    show_pairs(
        [
            ("budget", "none" if budget is None else f"{budget:,} bits"),
            ("file", f"{bits:,} bits = {bits // 8:,} bytes{share}"),
            *_unused(report),
            ("paper bits", f"{size['paper_bits']:,}"),
            ("nonzeros", f"{size['nonzeros']:,}"),
            *accuracy_pairs(report),
            ("seconds", ", ".join(seconds)),
            ("run folder", str(folder)),
        ]
    )
    show_warnings(report)


def _unused(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Why a file leaves room, where it does; reports of earlier versions say nothing of it."""
    unused = report.get("unused")
    return [] if unused is None else [("unused", f"{unused['bits']:,} bits: {unused['reason']}")]
