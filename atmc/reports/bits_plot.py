"""Where the bits of a file went, as a picture: a bar a tensor, stacked by part."""

from __future__ import annotations

import os
from pathlib import Path

from atmc.codec import Sizes
from atmc.reports import figure as pictures

# The parts of a file in the order of every table and stack: the header, which is no tensor's, last.
PARTS = ("positions", "values", "codebooks", "dense", "header")
# Okabe & Ito's, as on the page of atmc report.
_COLOURS = dict(zip(PARTS, ("#0072b2", "#56b4e9", "#e69f00", "#009e73", "#808080"), strict=True))


def draw(path: str | os.PathLike[str], sizes: Sizes, title: str = "") -> None:
    """A bar for each tensor under its name, in the file's order, and one for the file's header.

    Each bar says its bits and their share of the file; the legend says it of each part.

    Args:
        path: ends in .svg, .png or .pdf.
        sizes: of :func:`atmc.codec.measure`.
        title: over the picture.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`atmc.reports.figure.picture`.
    """
    rows = [(tensor.name, tensor.parts) for tensor in sizes.tensors]
    rows.append(("file header", {"header": sizes.parts["header"]}))

    def count(bits: int) -> str:
        return f"{bits:,} bit{'s'[: bits != 1]} ({bits / sizes.file_bits:.1%})"

    longest = max(len(name) for name, _ in rows)
    with pictures.picture(Path(path), 7.5 + 0.1 * longest, 1.8 + 0.22 * len(rows)) as figure:
        from matplotlib.patches import Patch

        axes = figure.add_subplot()
        ends = [0] * len(rows)
        for part in PARTS:
            bars = {y: parts[part] for y, (_, parts) in enumerate(rows) if parts.get(part)}
            axes.barh(
                bars.keys(), bars.values(), left=[ends[y] for y in bars], color=_COLOURS[part]
            )
            for y, bits in bars.items():
                ends[y] += bits
        for y, bits in enumerate(ends):
            axes.annotate(
                count(bits),
                (bits, y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
            )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set(xlabel="bits", xlim=(0, 1.25 * max(ends)), ylim=(len(rows) - 0.4, -0.6))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left")
        legend = [
            Patch(color=_COLOURS[part], label=f"{part} {count(sizes.parts[part])}")
            for part in PARTS
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False)
