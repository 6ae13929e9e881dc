"""Pictures as files: SVG, PNG or PDF (the extra ``report``).

matplotlib is imported where it draws, and used without its global state.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atmc.extras import require
from atmc.files import write

SUFFIXES = (".svg", ".png", ".pdf")
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, to be searched and copied
    "svg.hashsalt": "atmc",
    "text.parse_math": False,  # names may hold dollars
}
# What would change from one time to the next, or with matplotlib's version.
_METADATA: dict[str, dict[str, None]] = {
    ".svg": {"Date": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
}
_DPI, _LONGEST = 150, 60_000  # a PNG has fewer than 2^16 pixels a side


def check_name(path: Path) -> None:
    """Refuse another suffix than .svg, .png or .pdf, by a ``ValueError``."""
    if path.suffix.lower() not in SUFFIXES:
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
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure to draw on, written in one step when the block ends without an error.

    What is drawn the same gives the same bytes.

    Args:
        path: its suffix chooses the format.
        width: in inches, as ``height``.
        height: a picture too long for a PNG gets fewer pixels an inch.

    Raises:
        MissingExtraError, ValueError, OSError: as :func:`check`; OSError also where writing fails.
    """
    check(path)
    import matplotlib
    from matplotlib.figure import Figure

    suffix = path.suffix.lower()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        data = io.BytesIO()
        with warnings.catch_warnings():
            # A letter that matplotlib's font lacks is a box in PNG and PDF, and itself in SVG.
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
            figure.savefig(
                data,
                format=suffix[1:],
                dpi=min(_DPI, _LONGEST / max(width, height)),
                metadata=_METADATA[suffix],
            )
    write(path, data.getvalue())
