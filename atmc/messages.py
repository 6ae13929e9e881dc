"""Messages to the user: how they name an argument, and warnings.

A message is written once, with :func:`argument` where it names one. The command line switches the
spelling: there it names an option.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

# Of the process, not of a context: threads that read data raise messages, too.
_options, _named = False, dict[str, str]()


def argument(name: str, value: object = None, *, option: str | None = None) -> str:
    """An argument in a message: ``budget_bits``, or ``--budget-bits`` on the command line.

    Args:
        name: in Python.
        value: as in ``device="cpu"`` and ``--device cpu``; True is an option alone; a tuple has the
            names that stand for values. None: the name alone.
        option: its name as an option, without dashes, where that differs.
    """
    if not _options:
        return name if value is None else f"{name}={_python(value)}"
    shown = "--" + (option or _named.get(name) or name.replace("_", "-"))
    return shown if value is None or value is True else f"{shown} {_text(value)}"


def _python(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value))})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def options(used: bool = True, named: Mapping[str, str] | None = None) -> Iterator[None]:
    """Inside, messages of this process name options; arguments where `used` is False.

    Args:
        used: as above.
        named: options that a command names otherwise than their arguments.
    """
    global _options, _named
    before = _options, _named
    _options, _named = used, dict(named or {})
    try:
        yield
    finally:
        _options, _named = before


def are_options() -> bool:
    """Whether messages name options now; for processes that are to do likewise."""
    return _options


class AtmcWarning(UserWarning):
    """Something was changed or left out, or a figure is not to be trusted; the work goes on."""


def warn(message: str) -> None:
    """Warn in one line, at the place that called the library."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == "atmc":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, AtmcWarning, stacklevel=level)


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Inside, each different warning of the library is one line on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", AtmcWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **to: Any) -> None:
            if issubclass(category, AtmcWarning):
                print(f"Warning: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                others(message, category, *place, **to)

        warnings.showwarning = show
        yield
