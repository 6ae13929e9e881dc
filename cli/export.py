"""``atmc export``: the decoded model for other programs, checked before it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from atmc.exporters import export, formats

from .errors import about
from .options import setting
from .tables import printable, show_columns, show_pairs


def _shape(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{text!r} is no shape: give it as in 1,28,28")
    return sizes


@click.command("export")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(formats.names()),
    help="Of the file; by default that of the ending of --output, else onnx.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Take out dead filters, channels and units; W = U V as two thin layers where cheaper.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The file ({formats.endings()}), or for c the folder; by default beside the artifact.",
)
@click.option(
    "--input-shape",
    callback=_shape,
    metavar="C,H,W",
    help="Of one input; by default that which the run recorded, else the zoo's model's.",
)
@setting(
    "model",
    help="What to build where the file does not say: file.py:function, or a name of ours.",
    default=False,
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the file, or the folder of an export, if there is one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    artifact: Path,
    kind: str | None,
    compact: bool,
    output: Path | None,
    input_shape: tuple[int, ...] | None,
    model: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the decoded model of ARTIFACT as ONNX, safetensors, a torch.export program or C.

    ARTIFACT may also be the dense.safetensors of a run folder. The file takes batches of any size,
    and is written once it has been compared with the model on random inputs. C is a folder: the
    artifact, a decoder and the network, for devices without Python, compared where there is a C
    compiler.
    """
    with about(artifact):
        report = export(
            artifact,
            output,
            kind,
            compact=compact,
            model=model,
            input_shape=input_shape,
            overwrite=overwrite,
        )
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    difference = "not compared: no C compiler (cc, gcc or clang) on the path"
    if report["largest_difference"] is not None:
        difference = f"{report['largest_difference']:.2g} at most, of any output"
    show_pairs(
        [
            ("file", report["file"]),
            ("format", report["format"]),
            ("bytes", f"{report['bytes']:,}"),
            ("difference", difference),
        ]
    )
    if report["memory"] is not None:
        memory = {
            name: "unknown" if n is None else f"{n:,}" for name, n in report["memory"].items()
        }
        click.echo()
        show_columns(
            ("memory", "bytes"),
            [
                ["artifact", memory["artifact"]],
                ["constants", memory["constants"]],
                ["code (-Os, this machine)", memory["code"]],
                ["decoded weights", memory["weights"]],
                ["decoder's work, then activations", f"{memory['work']}, {memory['activations']}"],
                ["RAM", memory["ram"]],
            ],
        )
    if not report["compact"]:
        return
    before, after = report["before"], report["after"]
    rows = [
        [name, *(f"{side[key]:,}" for side in (before, after))]
        for name, key in (("parameters", "parameters"), ("multiply-adds", "multiply_adds"))
    ]
    latency = f"not measured: {report['latency_error']}"
    if report["latency_error"] is None:
        latency = "of a batch of one in onnxruntime, on one thread"
        rows.append(["latency (ms)", *(f"{side['latency_ms']:.3g}" for side in (before, after))])
    click.echo()
    show_columns(("", "before", "after"), rows)
    click.echo()
    thin = ", ".join(map(printable, report["thin"])) or "none"
    show_pairs([("thin layers", thin), ("latency", latency)])
