"""``atmc evaluate``: clean and robust accuracy of the decoded file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click

from atmc import messages as wording
from atmc.attacks import registry
from atmc.attacks.losses import Loss
from atmc.engine.evaluation import evaluate
from atmc.engine.settings import Settings
from atmc.parsing import parse_eps
from atmc.reports import curves
from atmc.reports import figure as pictures

from .errors import about
from .options import setting
from .plots import plot_option
from .tables import accuracy_pairs, show_checks, show_ladder, show_pairs, show_warnings

_NAMED = {"eval_step_size": "step-size", "eval_examples": "examples"}  # settings called otherwise


def _known(
    context: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    for name in names:
        try:
            registry.parse(name)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return names


def _grid(context: click.Context, parameter: click.Parameter, text: str | None) -> list[float]:
    try:
        return [] if text is None else [parse_eps(each) for each in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("evaluate")
@click.argument("artifact", type=click.Path(path_type=Path))
@setting(
    "model",
    help="What to build where a file does not say: file.py:function, or a name of ours.",
    default=False,
)
@setting(
    "dataset",
    help="Data set, as of atmc compress; that of the run folder, else the model's, if not given.",
    default=False,
)
@setting("data_root")
@setting("download")
@setting("image_size")
@setting("eps")
@setting("eval_steps", help="PGD steps; the data set's if not given.")
@setting(
    "eval_step_size",
    "--" + _NAMED["eval_step_size"],
    help="Their length; follows eps and steps if not given.",
)
@click.option(
    "--restarts", type=click.IntRange(min=1), default=1, show_default=True, help="Of PGD."
)
@setting(
    "eval_examples",
    "--" + _NAMED["eval_examples"],
    help="The first N test examples; all if not given.",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    default=("fgsm", "pgd"),
    callback=_known,
    metavar="NAME",
    help=f"{', '.join(registry.names())}; pgd-100 for 100 steps (their length follows). "
    "May be given again. [default: fgsm and pgd]",
)
@click.option(
    "--loss",
    type=click.Choice(get_args(Loss)),
    default="ce",
    show_default=True,
    help="Of pgd, bpda, transfer and the ladder.",
)
@click.option(
    "--source",
    "sources",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="ARTIFACT",
    help="Model that the attack transfer is made on. May be given again.",
)
@click.option(
    "--eps-grid",
    callback=_grid,
    metavar="E,E,...",
    help="Also a ladder: PGD at each radius, steps scaled with it, and checks of its truth.",
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
    sources: tuple[Path, ...],
    eps_grid: list[float],
    plot: Path | None,
    as_json: bool,
    **options: str | None,
) -> None:
    """Measure clean accuracy and accuracy under attacks of ARTIFACT, decoded, on the test split.

    ARTIFACT may also be the dense.safetensors of a run folder.
    """
    transfers = [name for name in attacks if registry.parse(name)[0].source_attack]
    if transfers and not sources:
        raise click.UsageError(
            f"--attack {transfers[0]} needs --source ARTIFACT, the model it is made on"
        )
    if sources and not transfers:
        raise click.UsageError("--source is for --attack transfer: give that too")
    if plot is not None:
        if not eps_grid:
            raise click.UsageError("--plot draws the ladder: give --eps-grid too")
        pictures.check(plot)
    with wording.options(named=_NAMED):
        given = Settings.of({key: value for key, value in options.items() if value is not None})
        given.resolved()  # refuses an unknown data set
    with about(artifact):
        result = evaluate(
            artifact,
            model=given.start.model,
            dataset=None if options["dataset"] is None else given.data.dataset,
            data_root=given.data.data_root,
            download=given.data.download,
            image_size=given.data.image_size,
            attacks=attacks,
            eps=given.attack.eps,
            steps=given.evaluation.eval_steps,
            step_size=given.evaluation.eval_step_size,
            restarts=restarts,
            examples=given.evaluation.eval_examples,
            loss=loss,
            sources=sources,
            eps_grid=eps_grid,
            seed=given.run.seed,
            device=given.run.device,
        )
    if plot is not None:
        curves.draw_ladder(plot, result["accuracy"]["clean"], result["ladder"], artifact.name)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        bits = result["size"]["file_bits"]
        show_pairs([("file", f"{bits:,} bits = {bits // 8:,} bytes"), *accuracy_pairs(result)])
        if eps_grid:
            click.echo()
            show_ladder(result["ladder"])
            click.echo()
            show_checks(result["checks"])
    show_warnings(result)
    for check in result.get("checks", []):
        if not check["passed"]:
            click.echo(f"Warning: check {check['name']} failed: {check['detail']}", err=True)
