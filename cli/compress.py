"""``atmc compress``: one run, in a run folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from atmc import distributed
from atmc.engine.compression import run
from atmc.engine.folder import CONFIG, new_folder
from atmc.engine.inputs import Inputs
from atmc.engine.settings import Settings, read_config
from atmc.hardware import local_processes

from .errors import Interrupted
from .options import path, settings
from .progress import Display
from .tables import accuracy_pairs, printable, show_pairs, show_warnings


@click.command("compress")
@settings
@path("--config", "FILE", "YAML file of the same settings; options of this command win.")
@path("--output", "DIR", "Run folder; by default a new one under runs/.")
@click.option("--resume", is_flag=True, help="Continue the run in --output.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --output.")
@click.option("--quiet", is_flag=True, help="Show no progress, only the summary.")
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
    values = {} if config is None else read_config(config)
    values |= {key: value for key, value in options.items() if value is not None}
    chosen = Settings.of(values)
    if output is None:
        output = distributed.from_first(lambda: new_folder(chosen.resolved()))
    folder, first = output, distributed.is_first()
    try:
        with closing(Display(quiet or not first)) as display:
            result = run(
                chosen,
                Inputs(),
                folder,
                resume=resume,
                overwrite=overwrite,
                on_step=display.on_step,
                on_epoch=display.on_epoch,
            )
    except KeyboardInterrupt:
        if not (folder / CONFIG).is_file():
            raise
        local = local_processes()
        atmc = "atmc" if local == 1 else f"torchrun --nproc-per-node {local} -m atmc_cli"
        raise Interrupted(
            f"interrupted: go on with '{atmc} compress --output {folder} --resume'"
        ) from None
    if first:
        _show(result.report, folder)


def _show(report: dict[str, Any], folder: Path) -> None:
    size, budget = report["size"], report["budget_bits"]
    bits = size["file_bits"]
    share = "" if budget is None else f", {bits / budget:.1%} of the budget"
    unused = report.get("unused")  # reports of earlier versions do not have it
    seconds = [f"{name} {s:.1f}" for name, s in report["seconds"].items() if s is not None]
    pairs = [
        ("budget", "none" if budget is None else f"{budget:,} bits"),
        ("file", f"{bits:,} bits = {bits // 8:,} bytes{share}"),
    ]
    if unused is not None:
        pairs.append(("unused", f"{unused['bits']:,} bits: {unused['reason']}"))
    pairs += [
        ("paper bits", f"{size['paper_bits']:,}"),
        ("nonzeros", f"{size['nonzeros']:,}"),
        *_cost_pairs(report.get("cost")),
        *accuracy_pairs(report),
        ("seconds", ", ".join(seconds)),
        ("run folder", str(folder)),
    ]
    show_pairs(pairs)
    show_warnings(report)


def _cost_pairs(cost: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What the network costs once ``atmc export --compact`` has made it smaller."""
    if cost is None:  # reports of earlier versions do not have it
        return []
    dense, compact = cost["dense"], cost["compact"]
    if compact is None:
        count = "" if dense is None else f"{dense['multiply_adds']:,}; "
        return [("multiply-adds", f"{count}not compacted: {printable(cost['error'])}")]
    text = f"{compact['multiply_adds']:,} of {dense['multiply_adds']:,} by export --compact"
    if compact["latency_ms"] is not None:
        text += f"  (latency {compact['latency_ms']:.3g} of {dense['latency_ms']:.3g} ms)"
    return [("multiply-adds", text)]
