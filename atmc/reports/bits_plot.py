"""Where the bits of a file went, as a picture: a bar a tensor, stacked by part."""

from __future__ import annotations

import os
from pathlib import Path

from atmc.codec import Sizes
from atmc.reports import figure as pictures

# The parts of a file in the order of every table and stack: the header, which is no tensor's, last.
COLOURS = {
    "positions": pictures.BLUE,
    "values": pictures.SKY,
    "codebooks": pictures.ORANGE,
    "dense": pictures.GREEN,
    "header": pictures.GREY,
}
PARTS = tuple(COLOURS)


def draw(path: str | os.PathLike[str], sizes: Sizes, title: str = "") -> None:
    """A bar for each tensor under its name, in the file's order, and one for the file's header.

    Each bar, and each part in the legend, is labelled with its bits and share of the file.

    Args:
        path: ends in .svg, .png or .pdf.
        sizes: of :func:`atmc.codec.measure`.
        title: over the picture.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`atmc.reports.figure.picture`.
    """
    rows = [(tensor.name, tensor.parts) for tensor in sizes.tensors]
    rows.append(("file header", {"header": sizes.parts["header"]}))

    def label(bits: int) -> str:
        return f"{bits:,} bit{'s'[: bits != 1]} ({bits / sizes.file_bits:.1%})"

    longest = max(len(name) for name, _ in rows)
    with pictures.picture(Path(path), 7.5 + 0.1 * longest, 1.8 + 0.22 * len(rows)) as figure:
        from matplotlib.patches import Patch

        axes = figure.add_subplot()
        ends = [0] * len(rows)
        for part, colour in COLOURS.items():
            bars = {y: parts[part] for y, (_, parts) in enumerate(rows) if parts.get(part)}
            axes.barh(bars.keys(), bars.values(), left=[ends[y] for y in bars], color=colour)
            for y, bits in bars.items():
                ends[y] += bits
        for y, bits in enumerate(ends):
            axes.annotate(
                label(bits), (bits, y), xytext=(4, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set(xlabel="bits", xlim=(0, 1.25 * max(ends)), ylim=(len(rows) - 0.4, -0.6))
        axes.set_title(title)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        legend = [
            Patch(color=colour, label=f"{part} {label(sizes.parts[part])}")
            for part, colour in COLOURS.items()
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=2)
