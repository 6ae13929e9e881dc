"""``atmc inspect``: where every bit of a file went. Never imports torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from atmc.codec import Inspection, Sizes, inspect
from atmc.reports import bits_plot
from atmc.reports import figure as pictures
from atmc.reports.bits_plot import PARTS

from .errors import about
from .plots import plot_option
from .tables import printable, show_columns, show_pairs


@click.command("inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@plot_option("Also draw it, one bar per tensor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(artifact: Path, plot: Path | None, as_json: bool) -> None:
    """Show where every bit of ARTIFACT went, per tensor and per part.

    A tensor's bits are its ideal code length. The header is the rest of the file: prefix, shapes,
    names and rounding. The parts add up to the size of the file. The file of a zoo model stores no
    names: #3 is the tensor at index 3 of the model's state dict.
    """
    if plot is not None:
        pictures.check(plot)
    with about(artifact):
        inspection = inspect(artifact)
    if plot is not None:
        title = f"{printable(artifact.name)}: {inspection.sizes.file_bits:,} bits"
        bits_plot.draw(plot, _printable(inspection.sizes), title)
    if as_json:
        click.echo(json.dumps(inspection.as_dict(), indent=2))
    else:
        _show(_printable(inspection.sizes), inspection)


def _printable(sizes: Sizes) -> Sizes:
    tensors = tuple(replace(tensor, name=printable(tensor.name)) for tensor in sizes.tensors)
    return replace(sizes, tensors=tensors)


def _show(sizes: Sizes, inspection: Inspection) -> None:
    def share(bits: int) -> str:
        return f"{bits / sizes.file_bits:.2%}"

    parts = [part for part in PARTS if part != "header"]
    rows = []
    for tensor in sizes.tensors:
        is_factor = tensor.factor != ""
        density = f"{tensor.nonzeros / max(1, tensor.elements):.2%}"
        sparsity = [f"{tensor.nonzeros:,}", density, f"{tensor.levels}"]
        rows.append(
            [
                tensor.name,
                "×".join(map(str, tensor.shape)) or "scalar",
                f"{tensor.elements:,}",
                *(sparsity if is_factor else ["-"] * 3),
                *(f"{tensor.parts[part]:,}" for part in parts),
                f"{tensor.bits:,}",
                share(tensor.bits),
                f"{tensor.paper_bits:,}" if is_factor else "-",
            ]
        )
    header = sizes.parts["header"]
    rows.append(["file header", *["-"] * (5 + len(parts)), f"{header:,}", share(header), "-"])
    elements = sum(tensor.elements for tensor in sizes.tensors)
    rows.append(
        [
            *("total", "-", f"{elements:,}", f"{sizes.nonzeros:,}", "-", "-"),
            *(f"{sizes.parts[part]:,}" for part in parts),
            *(f"{sizes.file_bits:,}", share(sizes.file_bits), f"{sizes.paper_bits:,}"),
        ]
    )
    head = ["tensor", "shape", "elements", "nonzeros", "density", "levels", *parts]
    show_columns([*head, "bits", "share", "paper bits"], rows, left=2)
    click.echo()
    show_pairs(
        [
            ("model", printable(str(inspection.meta.get("model", "not of the zoo")))),
            *((part, f"{bits:,} bits") for part, bits in sizes.parts.items()),
            ("factors", ", ".join(f"{f} {bits:,} bits" for f, bits in sizes.factors.items())),
            ("file", f"{sizes.file_bits:,} bits = {sizes.file_bits // 8:,} bytes"),
        ]
    )
