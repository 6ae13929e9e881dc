"""``--plot FILE``, of every command that draws. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from atmc.reports import figure as pictures


def plot_option(help: str) -> Callable[[Any], Any]:
    """``--plot FILE``: another suffix than those that can be drawn is refused as wrong use."""
    return click.option(
        "--plot",
        type=click.Path(path_type=Path),
        callback=_picture,
        metavar="FILE",
        help=f"{help}: .svg, .png or .pdf.",
    )


def _picture(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    try:
        if path is not None:
            pictures.check_name(path)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return path
