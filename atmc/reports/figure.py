"""The style of all pictures, and how they are written: SVG, PNG or PDF (the extra ``report``).

matplotlib is imported where it draws, and used without its global state.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atmc.extras import require
from atmc.files import write

# Okabe & Ito's colours, which the colour-blind tell apart, without their yellow (invisible on
# white) and with a grey for their black, so that they show on light and on dark ground.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#808080")
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = COLOURS
INK = "#222222"
# In matplotlib's words and in plotly's.
_MARKERS = (
    *(("o", "circle"), ("s", "square"), ("D", "diamond"), ("^", "triangle-up")),
    *(("v", "triangle-down"), ("P", "cross"), ("X", "x")),
)
_LINES = (("-", "solid"), ((0, (5, 2)), "dash"), ((0, (1, 1.5)), "dot"))
_RC: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text, to be searched and copied
    "svg.hashsalt": "atmc",
    "text.parse_math": False,  # names may hold dollars
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
# Nothing that changes with the time or with matplotlib's version.
_METADATA: dict[str, dict[str, str | None]] = {
    ".svg": {"Creator": "atmc", "Date": None},
    ".png": {"Software": "atmc"},
    ".pdf": {"Creator": "atmc", "CreationDate": None},
}
# By suffix, what the first bytes of a picture written here contain, and no other program's.
SIGNATURES = {".svg": b"<dc:title>atmc", ".png": b"Software\0atmc"}
_DPI, _LONGEST = 150, 60_000  # a PNG has fewer than 2^16 pixels a side


@dataclass(frozen=True)
class Style:
    """How a series is drawn.

    Attributes:
        matplotlib: keywords of ``Axes.plot``.
        plotly: colour, marker symbol and dash.
    """

    colour: str
    matplotlib: dict[str, Any]
    plotly: dict[str, str]


def series_style(index: int) -> Style:
    """The style of a series by its number: no two of 21 are alike.

    The second seven take the first seven's colours with other markers and dashed lines.
    """
    turn = index // 7 % 3
    colour = COLOURS[index % 7]
    marker, symbol = _MARKERS[(index + 3 * turn) % 7]
    line, dash = _LINES[turn]
    return Style(
        colour,
        {"color": colour, "marker": marker, "ls": line},
        {"colour": colour, "symbol": symbol, "dash": dash},
    )


def check_name(path: Path) -> None:
    """Refuse another suffix than .svg, .png or .pdf, by a ``ValueError``."""
    if path.suffix.lower() not in _METADATA:
        raise ValueError(f"{path} is no picture that can be drawn: end it in .svg, .png or .pdf")


def check(path: Path) -> None:
    """Find out before the work whether a picture can be written to ``path``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: another suffix than .svg, .png or .pdf.
        OSError: there is no such folder, or ``path`` is one.
    """
    check_name(path)
    if not path.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {path.parent}: make it, or give another path")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    require("matplotlib", "report", "a plot")


@contextmanager
def picture(path: Path, width: float, height: float, *more: Path) -> Iterator[Any]:
    """A matplotlib figure to draw on, written in one step when the block ends without an error.

    The same drawing gives the same bytes.

    Args:
        path: its suffix chooses the format.
        width: in inches, as ``height``.
        height: a picture too long for a PNG gets fewer pixels an inch.
        more: files of other formats for the same picture; it is laid out once.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`check`; OSError also where writing fails.
    """
    for each in (path, *more):
        check(each)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        contents = {}
        for each in (path, *more):
            contents[each] = _saved(figure, each.suffix.lower())
            figure.set_layout_engine("none")
    for each, content in contents.items():
        write(each, content)


def _saved(figure: Any, suffix: str) -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that matplotlib's font lacks is a box in PNG and PDF, and itself in SVG.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(
            data,
            format=suffix[1:],
            dpi=min(_DPI, _LONGEST / max(figure.get_size_inches())),
            metadata=_METADATA[suffix],
        )
    return data.getvalue()
