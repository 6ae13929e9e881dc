"""Warnings to whoever runs the library: one line each, shown by the command line as such."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO


class AtmcWarning(UserWarning):
    """Something was changed or left out, or a figure is not to be trusted; the message says what.

    Not an error: the work goes on.
    """


def warn(message: str) -> None:
    """Warn in one line, at the place that called the library."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == "atmc":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, AtmcWarning, stacklevel=level)


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Inside, each warning of the library is a line on stderr, the same one but once."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", AtmcWarning)
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, AtmcWarning):
                print(f"Warning: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
