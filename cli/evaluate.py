"""``atmc evaluate``: clean and robust accuracy of the decoded file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click

from atmc import messages as wording
from atmc.attacks import registry
from atmc.attacks.losses import Loss
from atmc.certification.certificate import Bound
from atmc.engine.evaluation import evaluate
from atmc.engine.settings import Settings
from atmc.reports import curves
from atmc.reports import figure as pictures

from .errors import about
from .options import path, setting
from .plots import plot_option
from .tables import accuracy_pairs, show_checks, show_ladder, show_pairs, show_warnings

# Options that have other names than their settings.
_NAMES = {"eval_step_size": "step-size", "eval_examples": "examples"}


@click.command("evaluate")
@click.argument("artifact", type=click.Path(path_type=Path))
@setting("model", help="Model of a file that names none: file.py:function, or a zoo model.")
@setting(
    "dataset",
    help="Data set, as in atmc compress; by default that of the run folder, else the model's.",
    default=False,
)
@setting("data_root", help="Folder that holds the data sets; by default the run folder's.")
@setting("download")
@setting("image_size", help="Side of the images; by default the run folder's.")
@setting("eps", help="Attack radius (linf); by default the run folder's, else the data set's.")
@setting("eval_steps", help="PGD steps; by default the run folder's, else the data set's.")
@setting("eval_step_size", "--step-size", help="Step size of PGD; by default 4/3 eps / steps.")
@click.option(
    "--restarts",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Restarts of PGD.",
)
@setting("eval_examples", "--examples", help="Use the first N test examples; by default all.")
@click.option(
    *("--attack", "attacks"),
    multiple=True,
    default=("fgsm", "pgd"),
    metavar="NAME",
    help=f"{', '.join(registry.names())}; pgd-100 for 100 steps of the matching size; certified "
    "for interval bounds. May be repeated. [default: fgsm and pgd]",
)
@click.option(
    "--certify",
    type=click.Choice(get_args(Bound)),
    help="Certified accuracy by this bound; crown knows linear layers, ReLU and max-pools.",
)
@click.option(
    "--loss",
    type=click.Choice(get_args(Loss)),
    default="ce",
    show_default=True,
    help="Loss of pgd, bpda, transfer and the ladder.",
)
@path(
    "--source",
    "ARTIFACT",
    "Model that the attack transfer makes its examples on. May be repeated.",
    multiple=True,
)
@click.option(
    "--eps-grid",
    metavar="E,E,...",
    help="Also a ladder: PGD at each radius, with steps in proportion, and checks of the result.",
)
@plot_option("Draw the ladder")
@setting("seed", help="Seed of the random starts.")
@setting("device")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, keys as in report.json.")
def command(
    artifact: Path,
    restarts: int,
    attacks: tuple[str, ...],
    loss: Loss,
    source: tuple[Path, ...],
    certify: Bound | None,
    eps_grid: str | None,
    plot: Path | None,
    as_json: bool,
    **options: str | None,
) -> None:
    """Measure clean accuracy and accuracy under attacks of ARTIFACT, decoded, on the test split.

    ARTIFACT may also be the dense.safetensors of a run folder.
    """
    if plot is not None:
        if eps_grid is None:
            raise click.UsageError("--plot draws the ladder: give --eps-grid too")
        pictures.check(plot)
    texts = {key: text for key, text in options.items() if text is not None}
    with wording.options(named=_NAMES):
        settings = Settings.of(texts).resolved()
    with about(artifact):
        result = evaluate(
            artifact,
            attacks=attacks,
            restarts=restarts,
            loss=loss,
            sources=source,
            certify=certify,
            eps_grid=() if eps_grid is None else eps_grid.split(","),
            **{key.removeprefix("eval_"): settings[key] for key in texts},
        )
    if plot is not None:
        curves.draw_ladder(plot, result["accuracy"]["clean"], result["ladder"], artifact.name)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        bits = result["size"]["file_bits"]
        show_pairs([("file", f"{bits:,} bits = {bits // 8:,} bytes"), *accuracy_pairs(result)])
        if "ladder" in result:
            click.echo()
            show_ladder(result["ladder"])
            click.echo()
            show_checks(result["checks"])
    show_warnings(result)
    for check in result.get("checks", []):
        if not check["passed"]:
            click.echo(f"Warning: check {check['name']} failed: {check['detail']}", err=True)
