"""``atmc evaluate``: clean and robust accuracy of the decoded file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from atmc.artifact_evaluation import evaluate_artifact
from atmc.evaluation import ATTACKS, parse_attack
from atmc.settings import from_mapping

from .errors import about
from .options import setting
from .tables import accuracy_pairs, show_pairs


def _known(
    context: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    for name in names:
        try:
            parse_attack(name)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return names


@click.command("evaluate")
@click.argument("artifact", type=click.Path(path_type=Path))
@setting(
    "dataset",
    help="Data set: digits or mnist; that of the run folder, else the model's, if not given.",
    default=False,
)
@setting("data_root")
@setting("eps")
@setting("eval_steps", help="PGD steps; the data set's if not given.")
@setting("eval_step_size", "--step-size", help="Their length; follows eps and steps if not given.")
@click.option(
    "--restarts", type=click.IntRange(min=1), default=1, show_default=True, help="Of PGD."
)
@setting("eval_examples", "--examples", help="The first N test examples; all if not given.")
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    default=("fgsm", "pgd"),
    callback=_known,
    metavar="NAME",
    help=f"{', '.join(ATTACKS)}; pgd-100 for 100 steps (their length follows). "
    "May be given again. [default: fgsm and pgd]",
)
@setting("seed", help="Seed of the random starts.")
@setting("device")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, keys as in report.json.")
def command(
    artifact: Path,
    restarts: int,
    attacks: tuple[str, ...],
    as_json: bool,
    **options: str | None,
) -> None:
    """Measure clean accuracy and accuracy under attacks of ARTIFACT, decoded, on the test split.

    ARTIFACT may also be the dense.safetensors of a run folder.
    """
    given = from_mapping({key: value for key, value in options.items() if value is not None})
    given.resolved()  # refuses an unknown data set
    with about(artifact):
        result = evaluate_artifact(
            artifact,
            dataset=None if options["dataset"] is None else given.dataset,
            data_root=given.data_root,
            attacks=attacks,
            eps=given.eps,
            steps=given.eval_steps,
            step_size=given.eval_step_size,
            restarts=restarts,
            examples=given.eval_examples,
            seed=given.seed,
            device=given.device,
        )
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    bits = result["size"]["file_bits"]
    show_pairs([("file", f"{bits:,} bits = {bits // 8:,} bytes"), *accuracy_pairs(result)])
