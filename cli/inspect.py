"""``atmc inspect``: where every bit of a file went. Never imports torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from atmc.codec import Artifact, FactorizedWeight, Sizes, decode, measure, read

from .errors import about
from .tables import show_columns, show_pairs

PARTS = ("positions", "values", "codebooks", "dense")


@click.command("inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(artifact: Path, as_json: bool) -> None:
    """Show where every bit of ARTIFACT went, per tensor and per part.

    A tensor's bits are its ideal code length. The header holds what is the whole file's: prefix,
    shapes, names and rounding; with it the parts add up to the file.
    """
    with about(artifact):
        content = decode(read(artifact))
    sizes = measure(content)
    # A file of a zoo model stores no names: a number is the tensor's place in the model's state.
    prefix = "#" if content.entries and content.entries[0].name is None else ""
    if as_json:
        tensors = [
            asdict(tensor) | {"name": prefix + tensor.name, "bits": tensor.bits}
            for tensor in sizes.tensors
        ]
        totals = {
            "meta": content.meta,
            "file_bits": sizes.file_bits,
            "paper_bits": sizes.paper_bits,
            "nonzeros": sizes.nonzeros,
            "parts": sizes.parts,
        }
        click.echo(json.dumps(totals | {"tensors": tensors}, indent=2))
        return
    _show(content, sizes, prefix)


def _show(content: Artifact, sizes: Sizes, prefix: str) -> None:
    rows = []
    for tensor, factor in zip(sizes.tensors, _are_factors(content), strict=True):
        rows.append(
            [
                prefix + tensor.name,
                "×".join(map(str, tensor.shape)) or "scalar",
                f"{tensor.elements:,}",
                f"{tensor.nonzeros:,}" if factor else "-",
                f"{tensor.nonzeros / max(1, tensor.elements):.2%}" if factor else "-",
                f"{tensor.levels}" if factor else "-",
                *(f"{tensor.parts[part]:,}" for part in PARTS),
                f"{tensor.paper_bits:,}" if factor else "-",
            ]
        )
    total = [f"{sizes.parts[part]:,}" for part in PARTS]
    elements = f"{sum(tensor.elements for tensor in sizes.tensors):,}"
    rows.append(
        ["total", "-", elements, f"{sizes.nonzeros:,}", "-", "-", *total, f"{sizes.paper_bits:,}"]
    )
    head = ["tensor", "shape", "elements", "nonzeros", "density", "levels", *PARTS, "paper bits"]
    show_columns(head, rows, left=2)
    click.echo()
    show_pairs(
        [
            ("model", str(content.meta.get("model", "not of the zoo"))),
            *((part, f"{bits:,} bits") for part, bits in sizes.parts.items()),
            ("file", f"{sizes.file_bits:,} bits = {sizes.file_bits // 8:,} bytes"),
        ]
    )


def _are_factors(content: Artifact) -> list[bool]:
    """For each row of ``Sizes.tensors`` whether it is a U, V or C, not of the dense part."""
    rows: list[bool] = []
    for entry in content.entries:
        rows += [True] * 3 if isinstance(entry.value, FactorizedWeight) else [False]
    return rows
